"""The page in a real browser, as people use it. Screenshots lie in pytest's folder of the test: look at them."""

import base64
import io
import json
import re
import shutil
import zipfile
from threading import Lock

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")

from openworldsam.app.actions import SLIDERS  # noqa: E402
from openworldsam.app.command import serve  # noqa: E402
from openworldsam.app.session import Session  # noqa: E402
from openworldsam.app.uploads import MAX_BYTES  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 120_000
"""Milliseconds: the machine may be busy."""
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the server puts uploads."""
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def address(shapes, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", "")  # so that it is put back
        page = serve(shapes, "127.0.0.1", None, folder)
        yield page.local_url
        page.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, address):
    """Make a visitor: a page of its own browser profile that asks nobody but the server."""
    contexts = []

    def make():
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 1000}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: elsewhere.append(request.url) if _is_elsewhere(request.url, address) else 0)
        page.goto(address)
        page.locator("#ask").wait_for()
        return page

    elsewhere = []
    yield make
    for context in contexts:
        context.close()
    assert not elsewhere


def _is_elsewhere(url, address):
    return not url.startswith((address, "data:", "blob:"))


@pytest.fixture
def pictures(scenes, tmp_path):
    """Files of two pictures."""
    paths = {}
    for task in ("instance", "panoptic"):
        paths[task] = tmp_path / f"{task}.png"
        Image.fromarray(scenes[task].image).save(paths[task])
    return paths


def files(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def says(page, text):
    sync_api.expect(page.locator("#message textarea")).to_have_value(re.compile(text), timeout=PATIENCE)


def upload(page, path):
    page.locator("#upload input[type=file]").set_input_files(path)


def ask(page, prompts):
    field = page.locator("#prompts input")
    for prompt in prompts:
        field.fill(prompt)
        field.press("Enter")
    page.locator("#ask").click()


def canvas(page):
    """The picture that is seen, uint8 [h, w, 3]."""
    source = page.locator("#canvas img").get_attribute("src")
    return np.array(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGB"))


def click(page, x, y):
    """Click at a pixel of a scene of 192."""
    box = page.locator("#canvas img").bounding_box()
    side = min(box["width"], box["height"])
    left, top = (box["width"] - side) / 2, (box["height"] - side) / 2
    page.locator("#canvas img").click(position={"x": left + x * side / 192, "y": top + y * side / 192})


def alone(shapes, image, prompts):
    """The picture that somebody sees who has the model alone."""
    session = Session(shapes, Lock(), image, "alone.png")
    session.ask(prompts, "instance", {"score_threshold": 0.7, "nms_threshold": 0.5})
    return session


def test_upload_prompt_result_refine_download(visit, shapes, scenes, pictures, folder, tmp_path):
    page, before = visit(), files(folder)
    page.screenshot(path=tmp_path / "1_empty.png")
    upload(page, pictures["instance"])
    says(page, "now type")
    assert files(folder) == before
    page.screenshot(path=tmp_path / "2_upload.png")

    example = scenes["instance"]
    ask(page, example.prompts)
    expected = alone(shapes, example.image, example.prompts)
    says(page, expected.shown.summary)
    assert np.array_equal(canvas(page), expected.drawn())
    page.screenshot(path=tmp_path / "3_result.png", full_page=True)

    page.locator("#table").get_by_text(str(expected.table()[1][2]), exact=True).first.click()
    says(page, "^mask 2: ")
    page.screenshot(path=tmp_path / "4_single.png", full_page=True)
    page.locator("#everything").click()
    says(page, expected.shown.summary)
    x, y = (int(place.mean()) for place in expected.shown.masks[0].nonzero()[::-1])
    click(page, x, y)
    says(page, f"^mask {expected.mask_at(x, y) + 1}: ")

    single = canvas(page)
    page.get_by_label("Remove").check()
    click(page, x + 12, y)
    page.wait_for_function("old => document.querySelector('#canvas img').src !== old", arg=_source(page))
    assert not np.array_equal(canvas(page), single)
    page.screenshot(path=tmp_path / "5_refined.png", full_page=True)
    with page.expect_download(timeout=PATIENCE) as download:
        page.locator("#save").click()
    assert download.value.suggested_filename == "instance.zip"
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.namelist() == ["instance.json", "instance_ids.png", "instance_overlay.png"]
        content = json.loads(archive.read("instance.json"))
    assert [category["name"] for category in content["categories"]] == example.prompts
    areas = [annotation["area"] for annotation in content["annotations"]]
    assert len(areas) == len(expected.shown.masks) and areas != expected.shown.masks.sum(axis=(1, 2)).tolist()

    source = _source(page)
    page.locator("#undo").click()
    page.wait_for_function("old => document.querySelector('#canvas img').src !== old", arg=source)
    assert np.array_equal(canvas(page), single)

    page.locator("#score_threshold input[type=number]").fill("1")
    page.locator("#score_threshold input[type=number]").press("Enter")
    says(page, r"no mask passed the threshold 1 \(best 0\.")
    page.screenshot(path=tmp_path / "6_nothing.png", full_page=True)
    assert files(folder) == before


def _source(page):
    return page.locator("#canvas img").get_attribute("src")


def test_what_goes_wrong_is_said(visit, pictures, folder, tmp_path):
    page, before = visit(), files(folder)
    ask(page, ["circle"])
    says(page, "there is no image")
    notes, large = tmp_path / "notes.txt", tmp_path / "large.png"
    notes.write_text("no picture")
    upload(page, notes)
    says(page, "notes.txt is not a readable image")
    page.screenshot(path=tmp_path / "1_wrong_file.png")
    assert files(folder) == before
    Image.new("1", (5000, 4000)).save(large)
    upload(page, large)
    says(page, "large.png has 5000 x 4000 pixels; the limit is 16 million")
    large.write_bytes(bytes(MAX_BYTES + 1))
    upload(page, large)
    page.get_by_text(re.compile("maximum allowed size|too large|exceed", re.IGNORECASE)).first.wait_for()
    page.screenshot(path=tmp_path / "2_too_large.png")


def test_two_at_once_see_their_own(visit, shapes, scenes, pictures, folder, tmp_path):
    before, pages = files(folder), {task: visit() for task in pictures}
    for task, page in pages.items():
        upload(page, pictures[task])
    for page in pages.values():
        says(page, "now type")
    for page in pages.values():
        ask(page, ["square", "ring"])
    for task, page in pages.items():
        expected = alone(shapes, scenes[task].image, ["square", "ring"])
        says(page, re.escape(expected.shown.summary))
        assert np.array_equal(canvas(page), expected.drawn())
        page.screenshot(path=tmp_path / f"{task}.png", full_page=True)
    assert files(folder) == before


def test_an_example(visit, shapes, scenes, tmp_path):
    page, example = visit(), scenes["panoptic"]
    expected = Session(shapes, Lock(), example.image, "alone.png")
    expected.ask(example.prompts, "panoptic", {name: getattr(shapes.model.inference, name) for name in SLIDERS})
    page.locator("#examples button").nth(0).click()
    says(page, expected.shown.summary)
    page.locator("#overlap_threshold").wait_for()
    page.screenshot(path=tmp_path / "example.png", full_page=True)
