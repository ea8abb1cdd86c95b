"""Text from outside (file names, prompts, values of files) made safe, in content and length, to print, log and list."""

from __future__ import annotations

import locale
import logging
import math
import re
import reprlib
import unicodedata

JOINERS = "\u200c\u200d"
"""Invisible characters that belong to the spelling of Persian, Hindi and emoji."""
_COLOR = re.compile("(\x1b\\[[0-9;]*m)")  # of a terminal, as in Detectron2's tables
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 3, 100, 100
_REPR.maxlist = _REPR.maxtuple = _REPR.maxset = _REPR.maxdict = 20


def printable(text: object, keep: str = "") -> str:
    r"""Escape what moves a cursor, forges a line, hides text or is no text, as "\n", "\x1b" or "\udcff".

    These are control and formatting characters, line separators and lone surrogates (undecodable bytes of a file
    name), except `JOINERS` and those to keep.
    """
    kept = JOINERS + keep
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(
        char.encode("unicode_escape").decode() if char not in kept and unicodedata.category(char) in hidden else char
        for char in str(text)
    )


class PrintableRecord(logging.LogRecord):
    """A log record whose text cannot forge lines or drive the terminal, and fits the encoding of a log file.

    Other libraries keep their line breaks and colours, which their tables need.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        if self.exc_info:
            self.exc_text = printable(logging.Formatter().formatException(self.exc_info), keep="\n")

    def getMessage(self) -> str:
        """Return the message, escaped."""
        message, encoding = super().getMessage(), locale.getpreferredencoding(False)
        if self.name.partition(".")[0] in ("openworldsam", "__main__"):
            message = printable(message)
        else:
            parts = _COLOR.split(message)
            message = "".join(part if index % 2 else printable(part, keep="\n\t") for index, part in enumerate(parts))
        return message.encode(encoding, "backslashreplace").decode(encoding)


def brief(value: object) -> str:
    """Describe a value of a file in at most 100 characters; the time is bounded too, however large the value is."""
    try:
        return shortened(_REPR.repr(value), 100)
    except ValueError:  # Python prints no number of more than 4,300 digits
        return f"a {type(value).__name__} with thousands of digits"


def rounded_down(score: float) -> str:
    """Write a score with two digits; 0.699 becomes 0.69, as 0.70 would seem to reach a threshold of 0.7."""
    return f"{math.floor(100 * score) / 100:.2f}"


def not_found(best_score: float, threshold: float) -> str:
    """Say of a prompt without a mask what its best query scored, and whether it passed a threshold; 0 for none."""
    reason = "covered by others" if 0 < threshold < best_score else "not found"
    return f"{reason} (best {rounded_down(best_score)})"


def shortened(text: str, width: int = 500) -> str:
    """Cut a text in its middle, to at most `width` characters."""
    return text if len(text) <= width else f"{text[: width - width // 3 - 3]}...{text[len(text) - width // 3 :]}"
