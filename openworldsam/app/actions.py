"""Handlers of the page's controls. They raise nothing: every error becomes a message.

Their arguments come from outside as they are: any program can send what the page never would. Each works on the
`Session` in the page's state, which the server keeps for one browser tab alone.
"""

from __future__ import annotations

import base64
import html
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from openworldsam.app.examples import ExampleQuestion, example_questions
from openworldsam.app.session import Session, number
from openworldsam.app.uploads import Uploads
from openworldsam.checkpoint import photograph_warning, provenance
from openworldsam.predictor import OpenWorldSAMPredictor
from openworldsam.utils.text import brief, printable

logger = logging.getLogger(__name__)

SELECT, ADD, REMOVE = "Select", "Add", "Remove"
LABELS = {ADD: 1, REMOVE: 0}
FIRST_TASK = "instance"
"""Task of a new image."""
SLIDERS = {
    "score_threshold": "Minimum {score}",
    "nms_threshold": "Maximum overlap of two masks of a prompt",
    "overlap_threshold": "Minimum visible part of a mask",
}
"""Label of the slider for each threshold; {score} is that of the model."""

View = list[Any]
"""Values of the components that show a session: the session itself, image, table and message."""
T = TypeVar("T")


def view(session: Session | None, message: str = "") -> View:
    """Show a session; its own message is the default."""
    if session is None:
        return [None, None, [], message]
    return [session, session.drawn(), session.table(), message or session.message]


def attempt(action: Callable[[], T]) -> tuple[T | None, str]:
    """Run an action; return its result and "", or None and an error message, which the page also pops up."""
    try:
        return action(), ""
    except ValueError as error:
        message = printable(error)
    except Exception:
        logger.exception("a request failed")
        message = "something went wrong on the server; see its log"
    gr.Warning(html.escape(message), title="That did not work")
    return None, message


def change(session: Session | None, action: Callable[[Session], T]) -> tuple[T | None, str]:
    """`attempt` an action on a session; without a session the message asks for an image."""

    def checked() -> T:
        if session is None:
            raise ValueError("there is no image: drop one, or choose an example")
        return action(session)

    return attempt(checked)


def sent(event: gr.EventData, key: str) -> Any:
    """Read a value that the browser sends with an event.

    Raises:
        ValueError: there is none.
    """
    data = event._data
    if not isinstance(data, dict) or key not in data:
        raise ValueError(f"the request lacks {key} in its event")
    return data[key]


class Actions:
    """One method per control; each returns the `View` that follows. All sessions share the predictor.

    Args:
        max_work: see `Session`.
    """

    def __init__(self, predictor: OpenWorldSAMPredictor, uploads: Uploads, max_work: int) -> None:
        self.predictor, self.uploads, self.max_work = predictor, uploads, max_work
        self.warning = photograph_warning(predictor.sources)  # shown with every image but the examples
        predictor.photograph_warning = ""
        self.examples = list(example_questions(predictor.cfg))
        self.thresholds = [getattr(predictor.model.inference, name) for name in SLIDERS]

    def open(self, upload: object, session: Session | None) -> View:
        """Begin a session with an uploaded image, delete the file and reset all controls; if it is no image, the old
        session and the controls stay."""
        if upload is None:
            return [None, *view(session), *self.unchanged]

        def begin() -> Session:
            return Session(self.predictor, *self.uploads.take(upload), self.max_work, self.warning)

        new, message = attempt(begin)
        controls = self.unchanged if new is None else self.controls([], FIRST_TASK)
        return [None, *view(new or session, message), *controls]

    def open_example(self, event: gr.EventData, session: Session | None) -> View:
        """Begin a session with an example image, fill in its prompts and task, and reset the other controls."""

        def begin() -> tuple[Session, ExampleQuestion]:
            example = self.examples[number(sent(event, "index"), len(self.examples), "example")]
            return Session(self.predictor, example.image, example.name, self.max_work), example

        new, message = attempt(begin)
        if new is None:
            return [*view(session, message), *self.unchanged]
        return [*view(new[0]), *self.controls(new[1].prompts, new[1].task)]

    def controls(self, prompts: list[str], task: str) -> list[Any]:
        """List the controls' values for a new image: prompts, task, the model's thresholds, clicks that select."""
        return [prompts, task, *self.thresholds, SELECT]

    @property
    def unchanged(self) -> list[Any]:
        """Controls that keep their values."""
        return [gr.skip()] * len(self.controls([], ""))

    def ask(self, session: Session | None, prompts: Any, task: Any, *thresholds: Any) -> View:
        """Segment what the prompts name, with the thresholds in the order of `SLIDERS`."""
        options = dict(zip(SLIDERS, thresholds, strict=True))
        return view(session, change(session, lambda s: s.ask(prompts, task, options))[1])

    def ask_again(self, session: Session | None, prompts: Any, task: Any, *thresholds: Any) -> View:
        """`ask` if the session has an answer already."""
        asked = session is not None and session.shown is not None
        return self.ask(session, prompts, task, *thresholds) if asked else view(session)

    def list_click(self, event: gr.EventData, session: Session | None) -> View:
        """Select the mask of a table row; its number counts, as the table may be sorted."""

        def select(s: Session) -> None:
            row, masks = sent(event, "row_value"), 0 if s.shown is None else len(s.shown.masks)
            s.select(number(row[0] if isinstance(row, list) and row else row, masks + 1, "mask", first=1) - 1)

        return view(session, change(session, select)[1])

    def image_click(self, event: gr.EventData, session: Session | None, mode: Any) -> View:
        """Select or correct the mask under the click."""

        def click(s: Session) -> None:
            x, y = s.pixel(sent(event, "index"))
            if mode == SELECT:
                s.select(s.mask_at(x, y))
            elif mode in (ADD, REMOVE):
                s.click(x, y, LABELS[mode])
            else:
                raise ValueError(f"a click is to {SELECT}, {ADD} or {REMOVE}, got {brief(mode)}")

        return view(session, change(session, click)[1])

    def undo(self, session: Session | None) -> View:
        """Undo the last click."""
        return view(session, change(session, Session.undo)[1])

    def show_all(self, session: Session | None) -> View:
        """Select no mask."""
        return view(session, change(session, lambda s: s.select(None))[1])

    def save(self, session: Session | None) -> tuple[dict[str, str] | None, str]:
        """Pack the archive; return the argument of `page.SAVE_SCRIPT` and a message."""

        def pack(s: Session) -> dict[str, str]:
            content = s.archive(provenance(self.predictor.cfg, self.predictor.sources))
            return {"name": f"{Path(s.name).stem}.zip", "content": base64.b64encode(content).decode()}

        file, message = change(session, pack)
        return file, message or "saved"
