"""The page: what is where, and which action of `actions.py` belongs to what is touched."""

from __future__ import annotations

import base64
import io
from typing import Any

import gradio as gr
import numpy as np
from gradio.data_classes import FileData, ImageData
from PIL import Image

from openworldsam.app.actions import ADD, SINGLE_OUT, SLIDERS, TAKE_AWAY, Actions
from openworldsam.app.session import THRESHOLDS
from openworldsam.app.uploads import MAX_BYTES, MAX_PIXELS
from openworldsam.modeling import TASKS
from openworldsam.parity.rule_weights import NOTE
from openworldsam.predictor.predictor import OpenWorldSAMPredictor

COLUMNS = ["#", "prompt", "score", "% of picture"]
QUEUE = 32
"""Requests that wait for the model, at most."""

SAVE = """(file) => {
    if (!file) return;
    const bytes = Uint8Array.from(atob(file.content), (letter) => letter.charCodeAt(0));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([bytes], {type: "application/zip"}));
    link.download = file.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}"""
"""Saves what the server sent: so no result needs to lie on its disk until the browser comes for it."""


def build(predictor: OpenWorldSAMPredictor) -> gr.Blocks:
    """The page for a model."""
    actions = Actions(predictor)
    with gr.Blocks(title="OpenWorldSAM", analytics_enabled=False) as page:
        session = gr.State(None)
        gr.Markdown(_heading(predictor))
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                upload = _drop_zone()
                prompts = gr.Dropdown(
                    [], value=[], multiselect=True, allow_custom_value=True, elem_id="prompts",
                    label="Prompts", info="a noun or a sentence, then Enter; as many as you like",
                )  # fmt: skip
                task = gr.Radio(list(TASKS), value="instance", label="Task", elem_id="task")
                ask = gr.Button("Segment", variant="primary", elem_id="ask")
                sliders = _sliders(predictor)
                gr.Markdown("Examples")
                gallery = gr.Gallery(
                    [(example.image, ", ".join(example.prompts)) for example in actions.examples],
                    columns=4, height=150, show_label=False, allow_preview=False, buttons=[], elem_id="examples",
                )  # fmt: skip
            with gr.Column(scale=3, min_width=320):
                canvas = _canvas()
                message = gr.Textbox(show_label=False, interactive=False, max_lines=3, elem_id="message")
                meaning = gr.Radio(
                    [SINGLE_OUT, ADD, TAKE_AWAY], value=SINGLE_OUT, label="A click on the picture", elem_id="meaning"
                )
                with gr.Row():
                    everything = gr.Button("Show all masks", elem_id="everything")
                    undo = gr.Button("Undo click", elem_id="undo")
                    save = gr.Button("Download results", elem_id="save")
                table = gr.Dataframe(
                    headers=COLUMNS, interactive=False, max_height=300, label="Masks (click one)", elem_id="table"
                )
                file = gr.JSON(visible=False)
        shown, question = [session, canvas, table, message], [session, prompts, task, *sliders]
        turn: dict[str, Any] = {  # of one request after the other, as they share the model
            "concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private", "show_progress_on": canvas,
        }  # fmt: skip
        upload.upload(actions.open, [upload, session], [upload, *shown], **turn)
        example = gallery.select(actions.open_example, session, [*shown, prompts, task], **turn)
        example.then(actions.ask, question, shown, **turn)
        ask.click(actions.ask, question, shown, **turn)
        gr.on(
            [slider.input for slider in sliders], actions.ask_again, question, shown, trigger_mode="always_last", **turn
        )
        task.input(actions.ask_again, question, shown, **turn)
        task.change(_visible_sliders, task, sliders, api_visibility="private")
        table.select(actions.list_click, session, shown, **turn)
        canvas.select(actions.picture_click, [session, meaning], shown, **turn)
        undo.click(actions.undo, session, shown, **turn)
        everything.click(actions.show_all, session, shown, **turn)
        save.click(actions.save, session, [file, message], **turn).then(
            None, file, None, js=SAVE, api_visibility="private"
        )
    return page.queue(max_size=QUEUE)


def _heading(predictor: OpenWorldSAMPredictor) -> str:
    sources = predictor.sources.values()
    files = ", ".join(dict.fromkeys(source.file for source in sources))
    meaningless = any(source.note.startswith(NOTE) for source in sources)
    warning = f" These weights are {NOTE}: the masks mean nothing." if meaningless else ""
    return f"# OpenWorldSAM\nPreset {predictor.cfg.PRESET}; weights: {files}.{warning}"


def _drop_zone() -> gr.File:
    """Where a picture is given; its path goes on as it is, where Gradio would leave an empty file beside it."""
    limits = f"Picture, up to {MAX_BYTES / 2**20:.0f} MB and {MAX_PIXELS / 1e6:g} million pixels"
    zone = gr.File(label=limits, height=160, elem_id="upload")

    def path_of(upload: FileData | None) -> str | None:
        return upload.path if upload else None

    zone.preprocess = path_of  # type: ignore[method-assign,assignment]  # a subclass would make Gradio write a .pyi
    return zone


def _sliders(predictor: OpenWorldSAMPredictor) -> list[gr.Slider]:
    """The thresholds, from what the config has."""
    options, first = predictor.model.inference, THRESHOLDS["instance"]
    return [
        gr.Slider(0, 1, getattr(options, name), step=0.01, label=label, visible=name in first, elem_id=name)
        for name, label in SLIDERS.items()
    ]


def _visible_sliders(task: str) -> list[Any]:
    return [gr.update(visible=name in THRESHOLDS[task]) for name in SLIDERS]


def _canvas() -> gr.Image:
    """The picture; its pixels go to the browser within the answer, where Gradio would write a file."""
    canvas = gr.Image(
        type="numpy", interactive=False, buttons=["fullscreen"], label="Picture", elem_id="canvas", height=500
    )

    def in_memory(picture: np.ndarray | None) -> ImageData | None:
        if picture is None:
            return None
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="PNG", compress_level=1)
        return ImageData(url=f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}")

    canvas.postprocess = in_memory  # type: ignore[method-assign,assignment]  # a subclass would make Gradio write a .pyi
    return canvas
