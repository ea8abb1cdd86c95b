"""Bad inputs: small files that are large, endless or code, and good inputs with something changed."""

import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors.torch import load_file, save_file


class Spoiled(NamedTuple):
    """A copy of a file of the world, or of a folder with a file in it changed.

    change: the new content, None for no file, a function of the old content or of the path, or for a json new values by
        their place, such as "images.0.height", where ... deletes.
    """

    file: str
    change: Any
    folder: str = ""


def place(given, target, world):
    """Make an input at a path: a text, bytes, files by their names, a `Spoiled`, or a function that makes it."""
    if isinstance(given, Spoiled):
        if given.folder:
            shutil.copytree(world / given.folder, target)
            target /= given.file
        else:
            shutil.copy(world / given.file, target)
        spoil(target, given.change)
    elif isinstance(given, dict):
        for name, content in given.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            place(content, target / name, world)
    elif callable(given):
        given(target)
    else:
        target.write_bytes(given if isinstance(given, bytes) else given.encode())


def spoil(path, change):
    if change is None or change in MAKERS:
        path.unlink(missing_ok=True)
        if change:
            change(path)
    elif isinstance(change, dict):
        content = json.loads(path.read_text())
        for where, value in change.items():
            *way, last = [int(step) if step.lstrip("-").isdigit() else step for step in where.split(".")]
            at = content
            for step in way:
                at = at[step]
            if value is ...:
                del at[last]
            else:
                at[last] = value
        path.write_text(json.dumps(content))
    else:
        content = change(path.read_bytes()) if callable(change) else change
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def half(content):
    return content[: len(content) // 2]


def fifo(path):
    os.mkfifo(path)


def folder(path):
    path.mkdir()


def dangling(path):
    path.symlink_to("nowhere")


def loop(path):
    path.symlink_to(path.name)


MAKERS = (fifo, folder, dangling, loop)


def linked(make):
    """A link to what a function makes."""

    def link(path):
        make(path.with_name("linked"))
        path.symlink_to("linked")

    return link


def png(width, height, pixels=b"", bits=1, kind=0):
    """A PNG of any size: by default grey of one bit."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def bomb(side=13_300):
    """Few bytes that become side x side pixels."""
    return png(side, side, bytes((side + 7) // 8 + 1) * side)


def picture(kind, size=(40, 30), mode="RGB", value=0):
    """A picture of one value in a format of Pillow."""
    file = BytesIO()
    Image.new(mode, size, value).save(file, kind)
    return file.getvalue()


class Code:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch PWNED",)


def pickled(content):
    return pickle.dumps(content, protocol=2)


def saved(content):
    """A function that saves by torch."""
    return lambda path: torch.save(content, path)


def aliases(depth=9):
    """YAML of a few lines whose last value has 9 ** depth items."""
    lines = ["l0: &l0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"l{n}: &l{n} [{','.join([f'*l{n - 1}'] * 9)}]" for n in range(1, depth)]
    return "\n".join(lines)


def tensors(change):
    """Change the tensors of a safetensors file, with its metadata kept."""

    def make(content):
        path = Path("changed.safetensors")
        path.write_bytes(content)
        state = load_file(path)
        save_file({name: tensor.contiguous() for name, tensor in change(state).items()}, path)
        content = path.read_bytes()
        path.unlink()
        return content

    return make


def zipped(**files):
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()
