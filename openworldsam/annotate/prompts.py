"""Prompts as words, and as files with one per line."""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from pathlib import Path
from typing import NamedTuple

from openworldsam.data.datasets.coco import COCO_STUFF
from openworldsam.modeling.prompt_encoders import clean_prompts
from openworldsam.modeling.prompt_encoders.base import check_prompts
from openworldsam.utils.files import named, regular_file
from openworldsam.utils.text import printable

MARKS = {"thing:": True, "stuff:": False}


class Prompts(NamedTuple):
    """P texts, and whether each names things or stuff."""

    texts: tuple[str, ...]
    is_thing: tuple[bool, ...]


def add_prompt(found: dict[str, bool], prompt: str, stuff: Container[str] = COCO_STUFF) -> None:
    """Add a prompt, with or without the mark "thing:" or "stuff:", to texts and whether each is a thing.

    Without a mark it is stuff if its text is among those of `stuff`, in lower case. Equal texts are one.

    Raises:
        ValueError: nothing follows the mark, an unprintable character, or both a thing and stuff.
    """
    mark = next((mark for mark in MARKS if prompt.lower().startswith(mark)), "")
    if not (text := prompt[len(mark) :].strip()):
        raise ValueError(f"{prompt!r} has no prompt after the mark")
    (text,) = clean_prompts([text])
    if printable(text) != text:
        raise ValueError(f"{prompt!r} has an unprintable character")
    _add(found, text, MARKS.get(mark, text.lower() not in stuff))


def _add(found: dict[str, bool], text: str, is_thing: bool) -> None:
    if found.setdefault(text, is_thing) != is_thing:
        raise ValueError(f"{text!r} is both a thing and stuff; keep one of them")


def read_prompts(path: str | Path) -> Prompts:
    """Read a UTF-8 prompt file; empty lines and lines that begin with "#" are skipped, equal prompts are one.

    "stuff: wet sand" marks a prompt as stuff, "thing: a window" as a thing. A prompt without a mark is a thing unless
    it is a stuff class of COCO, such as "grass" or "Sky". Only panoptic segmentation uses the difference.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not UTF-8, or has no prompt, or an empty, unprintable or contradictory one.
    """
    try:
        lines = regular_file(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"prompt file {path} not found; write one prompt per line into it") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    found: dict[str, bool] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.strip().startswith("#"):
            with named(f"{path}, line {number}"):
                add_prompt(found, line.strip())
    if not found:
        raise ValueError(f"{path} has no prompt; write one per line")
    return Prompts(tuple(found), tuple(found.values()))


def parse_prompts(words: Sequence[str]) -> Prompts:
    """Prompts of a command line: texts, with or without a mark as in `read_prompts`, and @FILE for those of a file.

    A single word that is the name of a file, or ends in .txt, stands for its prompts, too.

    Raises:
        FileNotFoundError, ValueError: as in `read_prompts`.
    """
    if len(words) == 1 and not words[0].startswith("@") and (words[0].endswith(".txt") or os.path.isfile(words[0])):
        return read_prompts(words[0])
    check_prompts(words)
    found: dict[str, bool] = {}
    for word in words:
        if word.startswith("@"):
            for text, is_thing in zip(*read_prompts(word[1:]), strict=True):
                _add(found, text, is_thing)
        else:
            add_prompt(found, word)
    return Prompts(tuple(found), tuple(found.values()))
