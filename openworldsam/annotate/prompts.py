"""The file of prompts: one a line."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from openworldsam.data.datasets.coco import COCO_STUFF

MARKS = {"thing:": True, "stuff:": False}
JOINERS = {0x200C: None, 0x200D: None}
"""Invisible characters that belong to the spelling of Persian, Hindi and emoji."""


class Prompts(NamedTuple):
    """P texts, and of each whether it names things rather than stuff."""

    texts: tuple[str, ...]
    is_thing: tuple[bool, ...]


def split_mark(prompt: str) -> tuple[str, bool | None]:
    """A prompt without its mark "thing:" or "stuff:", and whether it names things; None if it has no mark."""
    mark = next((mark for mark in MARKS if prompt.lower().startswith(mark)), "")
    return prompt[len(mark) :].strip(), MARKS.get(mark)


def read_prompts(path: str | Path) -> Prompts:
    """Read a file of prompts.

    A prompt is a line; empty lines and those that begin with "#" are left out. "stuff: wet sand" marks one that names
    a region, "thing: a window" one that names objects. Unmarked ones are things, unless they are stuff classes of COCO,
    such as "grass" or "sky", whatever their case. Only panoptic segmentation treats them apart.

    Args:
        path: a UTF-8 text.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no text, has no prompt, an empty one, or one twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} not found; it is to have one prompt a line") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a UTF-8 text: {error}") from error
    found: dict[str, bool] = {}
    for number, words in enumerate(map(str.split, lines), start=1):
        line = " ".join(words)
        if not line or line.startswith("#"):
            continue
        text, is_thing = split_mark(line)
        if not text:
            raise ValueError(f"{path}, line {number}: {line!r} is no prompt")
        if not text.translate(JOINERS).isprintable():
            raise ValueError(f"{path}, line {number}: {line!r} is no prompt, it holds a character without a shape")
        if text in found:
            raise ValueError(f"{path}, line {number}: {text!r} is there already")
        found[text] = text.lower() not in COCO_STUFF if is_thing is None else is_thing
    if not found:
        raise ValueError(f"{path} has no prompt; it is to have one a line")
    return Prompts(tuple(found), tuple(found.values()))
