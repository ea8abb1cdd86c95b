"""Prompt files: one prompt per line."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from openworldsam.data.datasets.coco import COCO_STUFF
from openworldsam.modeling.prompt_encoders import clean_prompts
from openworldsam.utils.text import printable

MARKS = {"thing:": True, "stuff:": False}


class Prompts(NamedTuple):
    """P texts, and whether each names things or stuff."""

    texts: tuple[str, ...]
    is_thing: tuple[bool, ...]


def split_mark(prompt: str) -> tuple[str, bool | None]:
    """Strip the mark "thing:" or "stuff:"; return the text and whether it is a thing (None without a mark)."""
    mark = next((mark for mark in MARKS if prompt.lower().startswith(mark)), "")
    return prompt[len(mark) :].strip(), MARKS.get(mark)


def read_prompts(path: str | Path) -> Prompts:
    """Read a UTF-8 prompt file; empty lines and lines that begin with "#" are skipped, equal prompts are one.

    "stuff: wet sand" marks a prompt as stuff, "thing: a window" as a thing. A prompt without a mark is a thing unless
    it is a stuff class of COCO, such as "grass" or "Sky". Only panoptic segmentation uses the difference.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not UTF-8, or has no prompt, or an empty, unprintable or contradictory one.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} not found; write one prompt per line into it") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    found: dict[str, bool] = {}
    for number, line in enumerate(lines, start=1):
        if not (line := line.strip()) or line.startswith("#"):
            continue
        text, mark = split_mark(line)
        if not text:
            raise ValueError(f"{path}, line {number}: {line!r} has no prompt after the mark")
        (text,) = clean_prompts([text])
        if printable(text) != text:
            raise ValueError(f"{path}, line {number}: {line!r} has an unprintable character")
        is_thing = text.lower() not in COCO_STUFF if mark is None else mark
        if found.setdefault(text, is_thing) != is_thing:
            raise ValueError(f"{path}, line {number}: {text!r} is both a thing and stuff; keep one of them")
    if not found:
        raise ValueError(f"{path} has no prompt; write one per line")
    return Prompts(tuple(found), tuple(found.values()))
