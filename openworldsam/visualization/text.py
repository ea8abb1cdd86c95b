"""Text of drawings: each character by a font that has it, and names that stay apart where there is none.

The fonts are DejaVu Sans (matplotlib brings it), those of $OPENWORLDSAM_FONT (paths, separated as in $PATH), and those
of the system.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from matplotlib import get_data_path
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from openworldsam.utils.files import regular_file
from openworldsam.utils.text import printable

GIVEN = "OPENWORLDSAM_FONT"
_DEJAVU = str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
_MISSING = "\u25a1"  # a square, which DejaVu has
_STRIKES = (109, 128, 136, 160, 96, 64)
"""Heights in pixels of the pictures that fonts of coloured emoji have in place of outlines."""
_STYLES = re.compile("bold|italic|oblique|light|thin|black|mono|condensed|serif", re.IGNORECASE)
_recent: list[str] = []
"""Fonts that had a character, so that a text of a script does not search all fonts for each of its letters."""


class Run(NamedTuple):
    """Characters of one font, which is drawn larger by 1 / scale."""

    text: str
    font: ImageFont.FreeTypeFont
    scale: float

    @property
    def width(self) -> float:
        """Width in pixels."""
        return self.font.getlength(self.text) * self.scale


def display_names(prompts: Sequence[str], chosen: Sequence[int], size: int, width: float) -> list[str]:
    """Shorten some of the prompts, given by index, to lines of at most `width` pixels that differ.

    A prompt that lacks a character in all fonts, or that is shortened to the same text as another, begins with its
    number among all prompts, from 1.
    """
    names = [fitted(prompts[index], size, width) for index in chosen]
    alike = Counter(dict(zip(chosen, names, strict=True)).values())
    return [
        fitted(f"{index + 1}: {prompts[index]}", size, width) if _MISSING in name or alike[name] > 1 else name
        for index, name in zip(chosen, names, strict=True)
    ]


def fitted(text: str, size: int, width: float) -> str:
    """Shorten a text to one line of at most `width` pixels; a square stands for a character that no font has."""
    shown = ""
    for char in printable(" ".join(text[:500].split())):
        if _follows(char):
            shown += "" if shown.endswith(_MISSING) else char
        else:
            shown += char if _font_file(char) else _MISSING
    if text_width(shown, size) <= width:
        return shown
    fitting = bisect_right(range(1, len(shown)), width, key=lambda kept: text_width(shown[:kept] + "...", size))
    return shown[:fitting].rstrip() + "..."


def text_width(text: str, size: int) -> float:
    """Width of a text in pixels."""
    return sum(run.width for run in _runs(text, size))


def draw_text(
    canvas: Image.Image, place: tuple[float, float], text: str, ink: tuple[int, int, int], size: int, side: str = "l"
) -> None:
    """Draw a text whose left end (side "l"), middle ("m") or right end ("r") is at a place, half-way up the letters."""
    runs, draw = _runs(text, size), ImageDraw.Draw(canvas)
    ascent, descent = load_font(size).getmetrics()
    x = place[0] - {"l": 0, "m": 0.5, "r": 1}[side] * sum(run.width for run in runs)
    baseline = place[1] + (ascent - descent) / 2
    for run in runs:
        if run.scale == 1:
            draw.text((x, baseline), run.text, ink, run.font, anchor="ls")
        else:
            top, height = run.font.getmetrics()[0], sum(run.font.getmetrics())
            picture = Image.new("RGBA", (math.ceil(run.width / run.scale), height))
            ImageDraw.Draw(picture).text((0, top), run.text, ink, run.font, anchor="ls", embedded_color=True)
            small = picture.resize((max(1, round(run.width)), max(1, round(height * run.scale))))
            canvas.paste(small, (round(x), round(baseline - top * run.scale)), small)
        x += run.width


@lru_cache(maxsize=64)
def load_font(size: int, file: str = _DEJAVU) -> ImageFont.FreeTypeFont:
    """Load a font, by default DejaVu Sans; OSError if it has no outlines and no picture of this size."""
    return ImageFont.truetype(file, size)


def _runs(text: str, size: int) -> list[Run]:
    """Split a text where its font changes."""
    parts: list[list[str]] = []  # text and font file
    for char in text:
        # the words of a script stay together, as some run from right to left; a picture of a space is wide
        stays = parts and (_follows(char) or (char == " " and _sized(parts[-1][1], size)[1] == 1))
        file = parts[-1][1] if stays else _font_file(char) or _DEJAVU
        if parts and parts[-1][1] == file:
            parts[-1][0] += char
        else:
            parts.append([char, file])
    return [Run(part, *_sized(file, size)) for part, file in parts]


def _follows(char: str) -> bool:
    """Whether a character changes the one before it: an accent, a joiner, the colour of a skin."""
    return unicodedata.category(char) in ("Mn", "Me", "Cf") or "\U0001f3fb" <= char <= "\U0001f3ff"


def _sized(file: str, size: int) -> tuple[ImageFont.FreeTypeFont, float]:
    """Load a font at a size, or at that of its pictures, and the scale that makes them as large."""
    for strike in (size, *_STRIKES):
        try:
            return load_font(strike, file), size / strike
        except OSError:
            continue
    raise ValueError(f"{file} is no font (of outlines or known pictures); set ${GIVEN} to a .ttf, .otf or .ttc file")


@lru_cache(maxsize=4096)
def _font_file(char: str) -> str | None:
    """Find a font that has a character and draws something for it."""
    if char.isascii() or _has(_DEJAVU, char):
        return _DEJAVU
    given = [file for file in os.environ.get(GIVEN, "").split(os.pathsep) if file]
    for file in given:
        _sized(str(regular_file(file, f"${GIVEN} names it")), 16)  # raises if it is no font
    for file in dict.fromkeys([*given, *_recent, *_system_fonts()]):
        if _has(file, char):
            _recent[:] = [file, *(other for other in _recent if other != file)]
            return file
    return None


def _has(file: str, char: str) -> bool:
    try:
        return bool(FT2Font(file).get_char_index(ord(char))) and _sized(file, 16)[0].getmask(char).getbbox() is not None
    except (OSError, RuntimeError, ValueError):  # a damaged font, or one of another kind
        return False


@lru_cache(maxsize=1)
def _system_fonts() -> list[str]:
    """List the fonts of the system, upright ones of usual weight first."""
    return sorted(findSystemFonts(), key=lambda file: (bool(_STYLES.search(Path(file).name)), file))
