"""The page's actions and its server; test_browser.py tests the page itself."""

import socket
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

gradio = pytest.importorskip("gradio")

from openworldsam import cli  # noqa: E402
from openworldsam.app.actions import ADD, SELECT, SLIDERS, Actions, view  # noqa: E402
from openworldsam.app.page import build_page  # noqa: E402
from openworldsam.app.session import TASK_THRESHOLDS  # noqa: E402
from openworldsam.app.uploads import Uploads  # noqa: E402
from openworldsam.checkpoint import knowledge, photograph_warning  # noqa: E402

main = cli.command("app")
parse_args = partial(cli.parse, "app")

ROOT = Path(__file__).parents[2]
USUAL = (0.7, 0.5, 0.5)


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    return Uploads(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def actions(shapes, uploads):
    return Actions(shapes, uploads, max_work=10**9)


@pytest.fixture
def place(uploads):
    """Make the path of an upload, as Gradio stores it."""

    def make(name):
        uploads.begin()
        path = Path(uploads) / "hash" / name
        path.parent.mkdir(parents=True)
        return path

    return make


@pytest.fixture
def upload(scenes, place):
    """An uploaded file."""
    path = place("mine.png")
    Image.fromarray(scenes["instance"].image).save(path)
    return path


def select(index, row_value=None):
    """The event of a click."""
    return gradio.SelectData(None, {"index": index, "value": None, "row_value": row_value})


def test_an_upload_is_shown_and_deleted(actions, upload, scenes):
    cleared, session, drawn, table, message, *controls = actions.open({"path": str(upload)}, None)
    warning = photograph_warning(actions.predictor.sources)
    assert cleared is None and table == [] and warning and message == f"now type what to look for\n{warning}"
    assert controls == [[], "instance", *USUAL, SELECT]
    assert session.name == "mine.png" and np.array_equal(session.image, scenes["instance"].image)
    assert drawn.shape == (448, 448, 3)
    assert not upload.parents[1].exists()


def test_a_wrong_file_is_deleted_and_the_old_image_stays(actions, session, place):
    path = place("<b>notes.txt")
    path.write_text("no image")
    with pytest.warns(UserWarning, match="^&lt;b&gt;notes.txt is not a readable image"):
        _, kept, _, _, message, *controls = actions.open({"path": str(path)}, session)
    assert kept is session and message.startswith("<b>notes.txt is not a readable image")
    assert len(controls) == 6 and all(control == gradio.skip() for control in controls)
    assert not path.parents[1].exists()
    with pytest.warns(UserWarning, match="the upload is gone"):
        assert actions.open({"path": str(path)}, None)[1] is None


def test_a_question_and_clicks(actions, upload, scenes):
    session = actions.open({"path": str(upload)}, None)[1]
    _, drawn, table, message = actions.ask(session, scenes["instance"].prompts, "instance", *USUAL)
    assert len(table) == 3 and message == f"{session.shown.summary}\n{photograph_warning(actions.predictor.sources)}"
    shown = actions.list_click(select([0, 1], table[2]), session)  # the table may be sorted by another column
    line, warning = shown[3].splitlines()
    assert session.selected == 2 and line == f"mask 3: {table[2][1]}, predicted IoU {table[2][2]:.3f}"
    assert warning == photograph_warning(actions.predictor.sources)
    assert np.array_equal(actions.show_all(session)[1], drawn)
    y, x = (place.mean() for place in session.shown.masks[0].nonzero())
    actions.image_click(select([448 * x / 192, 448 * y / 192]), session, SELECT)
    assert session.selected == session.mask_at(int(x), int(y)) is not None
    actions.show_all(session)
    assert len(actions.image_click(select([7, 7]), session, ADD)[2]) == 4
    assert actions.undo(session)[2] == table
    assert len(actions.ask_again(session, scenes["instance"].prompts, "instance", 1.0, 0.5, 0.5)[2]) == 0


def test_examples_are_opened_with_their_question(actions):
    for index, example in enumerate(actions.examples):
        session, _, _, _, prompts, task, *others = actions.open_example(select(index), None)
        assert np.array_equal(session.image, example.image)
        assert (prompts, task, others) == (example.prompts, example.task, [*USUAL, SELECT])
        session.ask(prompts, task, dict(zip(SLIDERS, USUAL, strict=True)))
        assert len(session.shown.masks) and view(session)[3] == session.shown.summary  # no warning, as it is no upload
    assert {example.task for example in actions.examples} == TASK_THRESHOLDS.keys()


def test_controls_before_there_is_an_image(actions):
    assert actions.ask_again(None, ["cat"], "instance", *USUAL) == [None, None, [], ""]
    for act in (lambda: actions.ask(None, ["cat"], "instance", *USUAL)[3], lambda: actions.save(None)[1]):
        with pytest.warns(UserWarning, match="there is no image"):
            assert act() == "there is no image: drop one, or choose an example"


def test_an_unforeseen_error_is_a_message(actions, session, monkeypatch, caplog):
    monkeypatch.setattr(session, "_predictor", None)
    with pytest.warns(UserWarning, match="went wrong on the server"):
        assert "went wrong on the server" in actions.ask(session, ["cat"], "instance", *USUAL)[3]
    assert "AttributeError" in caplog.text


@pytest.mark.parametrize(
    ("name", "label", "threshold", "columns"),
    [
        ("shapes", "Minimum predicted IoU", 0.7, ["predicted IoU"]),
        ("matching", "Minimum match score", 0.5, ["match score", "predicted IoU"]),
    ],
)
def test_the_page_says_which_score_counts(name, label, threshold, columns, tmp_path, monkeypatch, request):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    page = build_page(request.getfixturevalue(name), Uploads(tmp_path), queue=1, max_work=1)
    controls = {control.elem_id: control for control in page.blocks.values() if hasattr(control, "elem_id")}
    slider = controls["score_threshold"]
    assert (slider.label, slider.value) == (label, threshold)
    assert controls["table"].headers == ["#", "prompt", *columns, "% of image"]


@pytest.fixture
def page(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return build_page(shapes, Uploads(tmp_path), queue=1, max_work=1)


def test_the_heading_says_what_the_weights_know(page, shapes):
    heading, *_ = (block.value for block in page.blocks.values() if isinstance(block, gradio.HTML))
    assert "only the synthetic Shapes world" in heading and knowledge(shapes.sources) in heading


def test_the_message_is_text(page):
    (message,) = (block for block in page.blocks.values() if getattr(block, "elem_id", None) == "message")
    assert message.postprocess("<b>a & b</b>\n'c'") == "&lt;b&gt;a &amp; b&lt;/b&gt;\n'c'"


def test_sliders_start_at_the_values_of_the_config(shapes, page):
    sliders = {block.elem_id: block for block in page.blocks.values() if isinstance(block, gradio.Slider)}
    assert sliders.keys() == SLIDERS.keys()
    assert all(slider.value == getattr(shapes.model.inference, name) for name, slider in sliders.items())


def test_it_listens_to_this_machine_only_by_default():
    assert parse_args([]).host == "127.0.0.1" and parse_args(["--host", "0.0.0.0"]).host == "0.0.0.0"


def test_errors_of_the_command_are_one_line(capsys, exit_status):
    assert exit_status(main, "--config-file", "none.yaml") == 2
    assert capsys.readouterr().err.startswith("error: config none.yaml not found")


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys, exit_status):
    monkeypatch.setattr("openworldsam.app.command.find_spec", lambda _: None)
    assert exit_status(main) == 2
    assert capsys.readouterr().err == "error: the page needs Gradio: pip install -e '.[app]' -c requirements.txt\n"


def test_a_port_that_is_taken(tiny_opts, monkeypatch, capsys, exit_status):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        config = str(ROOT / "configs/tiny.yaml")
        assert exit_status(main, "--config-file", config, "--port", port, "--opts", *tiny_opts) == 2
    assert port in capsys.readouterr().err
