"""Files: atomic writing, JSON, PNG, checksums, and the search for missing ones."""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError


def save_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside its final place and rename it when it is complete and on the disk.

    Its folder is created. File permissions follow the umask, also with writers that set their own (safetensors).

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        write(partial)
        partial.chmod(mode)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (SafetensorError, RuntimeError) as error:  # raised by writers on a full disk
        raise OSError(f"{path} could not be written: {str(error).splitlines()[0]}") from error
    finally:
        partial.unlink(missing_ok=True)


def save_text(path: Path, text: str | Iterable[str]) -> None:
    """Write a UTF-8 text atomically; an iterable is written piece by piece."""

    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)

    save_atomically(path, write)


def save_json(path: str | Path, content: object, indent: int | None = None) -> None:
    """Write a JSON file atomically."""
    save_text(Path(path), json.dumps(content, indent=indent))


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG atomically: uint8 [H, W, 3], or uint8 or uint16 [H, W]."""
    save_atomically(path, lambda partial: Image.fromarray(pixels).save(partial, format="PNG"))


def png_bytes(pixels: np.ndarray, **options: Any) -> bytes:
    """Encode a PNG in memory; options are those of Pillow's PNG writer."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", **options)
    return file.getvalue()


def read_json(path: str | Path, hint: str = "") -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        FileNotFoundError: no such file; the message ends with the hint.
        ValueError: it is not JSON, cut short, or not an object.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} not found. {hint}".rstrip()) from None
    except ValueError as error:
        raise ValueError(f"{path} is not json ({error}); it may be cut short, fetch or make it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object with images and annotations")
    return content


@contextmanager
def named(name: object) -> Iterator[None]:
    """Prefix the ValueErrors raised inside with the name of an image or file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def find_missing(paths: Iterable[str | Path]) -> list[str]:
    """List the paths that do not exist; reads each folder once, which is faster than a request for every file."""
    listings: dict[str, set[str]] = {}
    missing = []
    for path in map(str, paths):
        folder, name = os.path.split(path)
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in listings[folder]:
            missing.append(path)
    return missing


def find_files(folder: str | Path, suffixes: Sequence[str]) -> list[Path]:
    """List the files below a folder by their suffixes, given in lower case and meant in any; sorted.

    Linked folders are entered, but for one that leads back to a folder above it. Names that start with a dot are left
    out. Broken links are listed, so that reading them reports them.
    """

    def below(path: str, above: frozenset[str]) -> Iterator[Path]:
        for entry in os.scandir(path):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if (real := os.path.realpath(entry.path)) not in above:
                    yield from below(entry.path, above | {real})
            elif Path(entry.name).suffix.lower() in suffixes and (entry.is_file() or not os.path.exists(entry.path)):
                yield Path(entry.path)

    return sorted(below(str(folder), frozenset([os.path.realpath(folder)]))) if os.path.isdir(folder) else []


def by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Index the files below a folder (`find_files`) by their relative paths without suffixes.

    Raises:
        ValueError: two files differ only in their suffixes.
    """
    found: dict[str, Path] = {}
    for path in find_files(folder, suffixes):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise ValueError(f"{folder} has several files named {stem}: {found[stem].name} and {path.name}")
        found[stem] = path
    return found


def checksum(*paths: Path) -> int:
    """CRC-32 of the concatenated bytes of files."""
    value = 0
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**20):
                value = zlib.crc32(block, value)
    return value
