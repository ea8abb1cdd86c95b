"""What the page's controls do. No error leaves here: each becomes a message.

Whatever a person sees comes from the `Session` in the page's state, which the server keeps for that browser tab alone.
"""

from __future__ import annotations

import base64
import html
import logging
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import gradio as gr
import numpy as np

from openworldsam.app.download import results_zip
from openworldsam.app.examples import examples
from openworldsam.app.session import Session
from openworldsam.app.uploads import discard, read_upload
from openworldsam.checkpoint import provenance
from openworldsam.predictor.predictor import OpenWorldSAMPredictor

logger = logging.getLogger(__name__)

SINGLE_OUT, ADD, TAKE_AWAY = "singles a mask out", "adds, or begins a mask", "takes away"
LABELS = {ADD: 1, TAKE_AWAY: 0}
SLIDERS = {
    "score_threshold": "Score, at least",
    "nms_threshold": "Overlap of two masks of a prompt, at most",
    "overlap_threshold": "Visible part of a mask, at least",
}
"""Each threshold and what the page calls it."""

View = list[Any]
"""Values of the components that show a session: itself, picture, table, message."""


def view(session: Session | None, message: str = "") -> View:
    """What is to be seen of a session; without a message, what was found."""
    if session is None:
        return [None, None, [], message]
    if not message and session.shown is not None:
        message = session.shown.summary
        if session.selected is not None:
            number, prompt, score, _ = session.table()[session.selected]
            message = f"mask {number}: {prompt}, score {score}"
    return [session, session.picture(), session.table(), message]


class Actions:
    """The actions; each returns what is to be seen then.

    Args:
        predictor: everybody's.
    """

    def __init__(self, predictor: OpenWorldSAMPredictor) -> None:
        self.predictor, self.lock = predictor, Lock()
        self.examples = list(examples(predictor.cfg))

    def open(self, upload: str | None, session: Session | None) -> View:
        """Take a picture, and delete the file at once; the picture before stays if it is none."""
        if upload is None:
            return [None, *view(session)]
        path = Path(upload)
        try:
            session, message = self._begin(lambda: read_upload(path), path.name, session)
        finally:
            discard(path)
        return [None, *view(session, message or "now type what to look for")]

    def open_example(self, event: gr.SelectData, session: Session | None) -> View:
        """Take an example's picture and ask its question."""
        example = self.examples[event.index]
        session, message = self._begin(lambda: example.image, example.name, session)
        return [*view(session, message), example.prompts, example.task]

    def ask(self, session: Session | None, prompts: list[str], task: str, *thresholds: float) -> View:
        """Ask, or ask anew with other thresholds."""
        options = dict(zip(SLIDERS, thresholds, strict=True))
        return view(*self._do(lambda own: own.ask(prompts, task, options), session))

    def ask_again(self, session: Session | None, prompts: list[str], task: str, *thresholds: float) -> View:
        """As `ask`, if something was asked before."""
        asked = session is not None and session.shown is not None
        return self.ask(session, prompts, task, *thresholds) if asked else view(session)

    def list_click(self, event: gr.SelectData, session: Session | None) -> View:
        """Single out a row of the table, which may be sorted."""

        def select(own: Session) -> None:
            own.selected = int(event.row_value[0]) - 1

        return view(*self._do(select, session))

    def picture_click(self, event: gr.SelectData, session: Session | None, meaning: str) -> View:
        """Single out or correct the mask under the click."""

        def click(own: Session) -> None:
            x, y = own.pixel(*event.index)
            if meaning == SINGLE_OUT:
                own.selected = own.mask_at(x, y)
            else:
                own.click(x, y, LABELS[meaning])

        return view(*self._do(click, session))

    def undo(self, session: Session | None) -> View:
        """Take a click back."""
        return view(*self._do(Session.undo, session))

    def show_all(self, session: Session | None) -> View:
        """Single nothing out."""

        def select(own: Session) -> None:
            own.selected = None

        return view(*self._do(select, session))

    def save(self, session: Session | None) -> tuple[dict[str, str] | None, str]:
        """The archive for `SAVE`, and a message."""
        files: list[dict[str, str]] = []

        def pack(own: Session) -> None:
            info = provenance(self.predictor.cfg, self.predictor.sources)
            content = base64.b64encode(results_zip(own, info)).decode()
            files.append({"name": f"{Path(own.name).stem}.zip", "content": content})

        _, message = self._do(pack, session)
        return (files[0], "saved") if files else (None, message)

    def _begin(
        self, picture: Callable[[], np.ndarray], name: str, session: Session | None
    ) -> tuple[Session | None, str]:
        """A session of a picture, or the present one and why there is no other."""
        begun: list[Session] = []
        message = self._message(lambda: begun.append(Session(self.predictor, self.lock, picture(), name)))
        return (begun[0] if begun else session), message

    def _do(self, action: Callable[[Session], None], session: Session | None) -> tuple[Session | None, str]:
        """Do something with a session: it, and what went wrong, if anything."""

        def with_picture() -> None:
            if session is None:
                raise ValueError("there is no picture: drop one, or choose an example")
            action(session)

        return session, self._message(with_picture)

    def _message(self, action: Callable[[], None]) -> str:
        """What went wrong, if anything; the page says it too."""
        try:
            action()
            return ""
        except FileNotFoundError:  # somebody else dropped the same file at the same moment, and it has been deleted
            message = "the picture got lost on its way: drop it again"
        except ValueError as error:
            message = str(error)
        except Exception:
            logger.exception("a request failed")
            message = "something went wrong on the server; its log says what"
        gr.Warning(html.escape(message), title="That did not work")
        return message
