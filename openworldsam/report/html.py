"""HTML in which every text is escaped: only `tag` makes markup, and it escapes what is not yet `Html`."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


class Html(str):
    """Markup, which enters a tag as it is."""


def tag(name: str, *content: object, **attributes: object) -> Html:
    """Make an element; content and attributes are escaped, an attribute that is empty or None is left out."""
    marks = "".join(f' {key.rstrip("_")}="{escape(str(value))}"' for key, value in attributes.items() if value)
    return Html(f"<{name}{marks}>" if name == "img" else f"<{name}{marks}>{join(content)}</{name}>")


def join(parts: Iterable[object], between: str = "") -> Html:
    """Put parts side by side, with markup between them."""
    return Html(between.join(part if isinstance(part, Html) else escape(str(part)) for part in parts))


def note(text: str) -> Html:
    """Make a paragraph in grey."""
    return tag("p", text, class_="note")
