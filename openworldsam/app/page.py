"""Layout of the page, and which handler of `actions.py` each control calls."""

from __future__ import annotations

import base64
import html
import logging
from typing import Any

import gradio as gr
import numpy as np
from gradio.data_classes import ImageData

from openworldsam.app.actions import ADD, FIRST_TASK, REMOVE, SELECT, SLIDERS, Actions
from openworldsam.app.scripts import SAVE_SCRIPT
from openworldsam.app.session import SCORE_NAMES, TASK_THRESHOLDS, score_columns
from openworldsam.app.uploads import MAX_BYTES, MAX_PIXELS, Uploads
from openworldsam.checkpoint import knowledge
from openworldsam.inference import SCORES, TASKS
from openworldsam.parity.rule_weights import NOTE
from openworldsam.predictor import OpenWorldSAMPredictor
from openworldsam.utils.files import png_bytes
from openworldsam.utils.text import printable

logger = logging.getLogger(__name__)


class Page(gr.Blocks):
    """Blocks that pass the values of a request on as they came, for `Actions` to check.

    Gradio would fetch the addresses in them, copy files, and answer a wrong type with a traceback in the log.
    """

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """Return the session in place of its component's value, and the other values."""
        if len(inputs) != len(block_fn.inputs):
            got = f"{len(inputs)} values, not {len(block_fn.inputs)}"
            raise gr.Error(f"this is no request of this page: it has {got}", print_exception=False)
        return [
            state[block._id] if block.stateful else value for block, value in zip(block_fn.inputs, inputs, strict=True)
        ]


def build_page(predictor: OpenWorldSAMPredictor, uploads: Uploads, *, queue: int, max_work: int) -> Page:
    """Build the page for a model; at most `queue` requests wait for it, and `max_work` is as in `Session`."""
    actions = Actions(predictor, uploads, max_work)
    scores = [SCORE_NAMES[name] for name in score_columns(predictor)]
    sources = predictor.sources.values()
    files = ", ".join(dict.fromkeys(source.file for source in sources))
    known = knowledge(predictor.sources) or "The files of these weights do not say what they were trained on."
    if any(source.note.startswith(NOTE) for source in sources):
        known = f"These weights are {NOTE}: the masks mean nothing."
    with Page(title="OpenWorldSAM", analytics_enabled=False) as page:
        session = gr.State(None)
        gr.HTML(f"<h1>OpenWorldSAM</h1><p>{html.escape(printable(known))}</p>")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                canvas = _canvas()
                message = _message()
                mode = gr.Radio([SELECT, ADD, REMOVE], value=SELECT, label="Click on the image", elem_id="mode")
                with gr.Row():
                    everything = gr.Button("Show all", size="md", min_width=90, elem_id="everything")
                    undo = gr.Button("Undo", size="md", min_width=90, elem_id="undo")
                    save = gr.Button("Download", size="md", min_width=90, elem_id="save")
            with gr.Column(scale=2, min_width=320):
                limits = f"Image, up to {MAX_BYTES / 2**20:.0f} MB and {MAX_PIXELS / 1e6:g} million pixels"
                upload = gr.File(label=limits, height=160, elem_id="upload")
                prompts = gr.Dropdown(
                    [], value=[], multiselect=True, allow_custom_value=True, elem_id="prompts",
                    label="Prompts", info="a noun or a sentence, then Enter; repeat for more",
                )  # fmt: skip
                task = gr.Radio(list(TASKS), value=FIRST_TASK, label="Task", elem_id="task")
                ask = gr.Button("Segment", variant="primary", elem_id="ask")
                with gr.Accordion("Thresholds", open=False, elem_id="thresholds"):
                    sliders = _sliders(predictor)
                gr.Markdown("Examples")
                gallery = gr.Gallery(
                    [(example.image, example.task) for example in actions.examples],
                    columns=4, height=150, show_label=False, allow_preview=False, buttons=[], elem_id="examples",
                )  # fmt: skip
        table = gr.Dataframe(
            headers=["#", "prompt", *scores, "% of image"], interactive=False,
            max_height=300, label="Masks (click to select)", elem_id="table",
        )  # fmt: skip
        gr.HTML(f"<small>Preset {html.escape(printable(f'{predictor.cfg.PRESET}; weights: {files}'))}</small>")
        file = gr.JSON(visible=False)
        shown, controls = [session, canvas, table, message], [prompts, task, *sliders]
        question = [session, *controls]
        turn: dict[str, Any] = {  # one request at a time, as they share the model
            "concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private", "show_progress_on": canvas,
        }  # fmt: skip
        upload.upload(actions.open, [upload, session], [upload, *shown, *controls, mode], **turn)
        example = gallery.select(actions.open_example, session, [*shown, *controls, mode], **turn)
        example.then(actions.ask, question, shown, **turn)
        ask.click(actions.ask, question, shown, **turn)
        gr.on(
            [slider.input for slider in sliders], actions.ask_again, question, shown, trigger_mode="always_last", **turn
        )
        task.input(actions.ask_again, question, shown, **turn)
        task.change(_slider_visibility, task, sliders, api_visibility="private")
        table.select(actions.list_click, session, shown, **turn)
        canvas.select(actions.image_click, [session, mode], shown, **turn)
        undo.click(actions.undo, session, shown, **turn)
        everything.click(actions.show_all, session, shown, **turn)
        save.click(actions.save, session, [file, message], **turn).then(
            None, file, None, js=SAVE_SCRIPT, api_visibility="private"
        )
    page.queue(max_size=queue, api_open=False)
    return page


def _sliders(predictor: OpenWorldSAMPredictor) -> list[gr.Slider]:
    """Make a slider for each threshold, at the value of the model."""
    options = predictor.model.inference
    return [
        gr.Slider(
            0, 1, getattr(options, name), step=0.01, label=label.format(score=SCORES[options.score]), elem_id=name,
            visible=name in TASK_THRESHOLDS["instance"],
        )
        for name, label in SLIDERS.items()
    ]  # fmt: skip


def _slider_visibility(task: Any) -> list[Any]:
    applying = TASK_THRESHOLDS.get(task, ()) if isinstance(task, str) else ()
    return [gr.update(visible=name in applying) for name in SLIDERS]


def _message() -> gr.HTML:
    """Make the line that says what happened; `SETUP_SCRIPT` lets screen readers announce it."""
    message = gr.HTML(elem_id="message")

    def as_text(value: str | None) -> str | None:
        return value and html.escape(value, quote=False)

    message.postprocess = as_text  # type: ignore[method-assign]
    return message


def _canvas() -> gr.Image:
    """Make the image control. Its pixels travel within the answer; Gradio would write a file."""
    canvas = gr.Image(
        type="numpy", interactive=False, buttons=["fullscreen"], label="Image", elem_id="canvas",
        height="min(500px, 95vw)",
    )  # fmt: skip

    def in_memory(image: np.ndarray | None) -> ImageData | None:
        if image is None:
            return None
        return ImageData(url=f"data:image/png;base64,{base64.b64encode(png_bytes(image, compress_level=1)).decode()}")

    canvas.postprocess = in_memory  # type: ignore[method-assign,assignment]  # a subclass would make Gradio write a .pyi
    return canvas
