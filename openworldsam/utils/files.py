"""Files: atomic writing, JSON, PNG, checksums, and the search for missing ones."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import socket
import stat
import time
import unicodedata
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError

_LEFT: dict[str, dict[str, list[Path]]] = {}
"""Parts that killed processes left, by folder and `_key` of the file, as found at the first writing to a folder."""


def regular_file(path: str | Path, hint: str = "") -> Path:
    """Return the path of a file for reading: a regular one, so that reading it comes to an end.

    Raises:
        FileNotFoundError: no such file; the message ends with the hint.
        ValueError: it is a folder, pipe, socket or device.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last one of a name with a zero byte
        raise FileNotFoundError(f"{path} not found. {hint}".rstrip()) from None
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is {_kind(mode)}, where a file is needed. {hint}".rstrip())
    return Path(path)


def output_file(path: str | Path) -> Path:
    """Return the file to write for a path: itself, or the target of a link, which stays a link.

    Raises:
        FileExistsError: it is a folder, pipe, socket or device.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # making its folder reports the latter
        if not stat.S_ISREG(mode := os.stat(path).st_mode):
            raise FileExistsError(f"{path} is {_kind(mode)}, not a regular file; give the name of a file to write")
    return Path(os.path.realpath(path) if os.path.islink(path) else path)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def save_safetensors(path: Path, write: Callable[[Path], object]) -> None:
    """`save_atomically` for a writer of safetensors, which has temporary files of its own beside what it writes."""

    def within(partial: Path) -> None:
        # named as a part, so that the next writing removes what a killed process leaves of it
        folder = partial.with_name(re.sub(r"-\d+\.part$", f"-{next(_NUMBERS)}.part", partial.name))
        folder.mkdir()
        try:
            write(folder / "part")
            os.replace(folder / "part", partial)
        finally:
            shutil.rmtree(folder)

    save_atomically(path, within)


def save_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside its final place and rename it when it is complete and on the disk.

    Its folder is created; a link is written through. File permissions follow the umask, also with writers that set
    their own (safetensors). Parts that killed processes of this machine left of the same file are removed.

    Raises:
        OSError: it cannot be written, or its place is taken by a folder or device; what was there before is untouched.
    """
    target = output_file(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(target)
    partial = target.with_name(f"{_key(target)}{MACHINE}-{os.getpid()}-{next(_NUMBERS)}.part")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        write(partial)
        partial.chmod(mode)
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    except (SafetensorError, RuntimeError) as error:  # raised by writers on a full disk
        raise OSError(f"{path} could not be written: {str(error).splitlines()[0]}") from error
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(partial)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def _key(target: Path) -> str:
    """Start of the name of a file's parts; with a digest, as the name may be as long as the file system allows."""
    return f".{target.name[:20]}.{hashlib.blake2b(os.fsencode(target.name), digest_size=8).hexdigest()}."


def _machine() -> str:
    """Digest of what a process number belongs to: the machine, its start and, in a container, the namespace."""
    words = [socket.gethostname()]
    with contextlib.suppress(OSError):
        words += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.blake2b("\n".join(words).encode(), digest_size=4).hexdigest()


MACHINE, _NUMBERS = _machine(), itertools.count()
_PART = re.compile(r"(\..{1,20}\.[0-9a-f]{16}\.)([0-9a-f]{8})-(\d{1,9})-\d+\.part", re.DOTALL)


def _remove_left(target: Path) -> None:
    """Remove the parts of a file that killed processes have left."""
    folder = str(target.parent)
    if folder not in _LEFT:
        left = _LEFT.setdefault(folder, {})
        for name in os.listdir(folder):
            if (part := _PART.fullmatch(name)) and is_left(target.with_name(name), part[2], int(part[3])):
                left.setdefault(part[1], []).append(target.with_name(name))
    for path in _LEFT[folder].pop(_key(target), ()):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def is_left(part: Path, machine: str, process: int) -> bool:
    """Whether nobody writes a part any more: its process has ended or, on another machine, done nothing for a day."""
    if machine != MACHINE or os.name != "posix":  # elsewhere, os.kill would end the process
        return part.exists() and time.time() - part.stat().st_mtime > 86_400
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it runs for somebody else
        pass
    return False


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
        ValueError: it is no regular file, not JSON, cut short, nested too deeply, or not an object.
    """
    content = read_any_json(path, hint)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def read_any_json(path: str | Path, hint: str = "", objects: Callable[[list[Any]], Any] | None = None) -> Any:
    """Read a JSON file that may hold anything; errors as for `read_json`.

    Args:
        path, hint: see there.
        objects: makes each object of its (key, value) pairs, or raises ValueError; default: a dict.
    """
    text = regular_file(path, hint).read_bytes()
    try:
        return json.loads(text, object_pairs_hook=objects)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not json ({error}); it may be cut short, fetch or make it again") from error


@contextlib.contextmanager
def named(name: object) -> Iterator[None]:
    """Prefix the ValueErrors raised inside with the name of an image or file, unless they start with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(f"{name} ") else f"{name}: {error}") from error


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


def find_files(folder: str | Path, suffixes: Collection[str]) -> list[Path]:
    """List the files below a folder by their suffixes, given in lower case and meant in any; sorted.

    Linked folders are entered, but for one that leads back to a folder above it. Names that start with a dot are left
    out. Broken links and pipes are listed, so that reading them reports them.
    """

    def below(path: str, above: frozenset[str]) -> Iterator[Path]:
        for entry in os.scandir(path):
            if entry.name.startswith("."):
                continue
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():  # is_dir fails at a link to itself
                if (real := os.path.realpath(entry.path)) not in above:
                    yield from below(entry.path, above | {real})
            elif Path(entry.name).suffix.lower() in suffixes:
                yield Path(entry.path)

    return sorted(below(str(folder), frozenset([os.path.realpath(folder)]))) if os.path.isdir(folder) else []


def by_stem(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """Index the files below a folder (`find_files`) by their relative paths without suffixes.

    Letters with accents, which macOS writes as two characters, count as one in the index.

    Raises:
        ValueError: two files differ only in their suffixes.
    """
    found: dict[str, Path] = {}
    for path in find_files(folder, suffixes):
        stem = unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())
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
