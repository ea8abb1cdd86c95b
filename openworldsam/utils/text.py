"""Text of bounded length for messages."""

from __future__ import annotations

import reprlib

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 3, 100, 100
_REPR.maxlist = _REPR.maxtuple = _REPR.maxset = _REPR.maxdict = 20


def brief(value: object) -> str:
    """Describe a value of a file in at most 100 characters; the time is bounded too, however large the value is."""
    try:
        return shortened(_REPR.repr(value), 100)
    except ValueError:  # Python prints no number of more than 4,300 digits
        return f"a {type(value).__name__} with thousands of digits"


def shortened(text: str, width: int = 1000) -> str:
    """Cut a text in its middle, to at most `width` characters."""
    return text if len(text) <= width else f"{text[: width - width // 3 - 3]}...{text[len(text) - width // 3 :]}"
