"""The page in a real browser. Each test leaves screenshots in its folder."""

import base64
import io
import json
import re
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")

from openworldsam.app.actions import SLIDERS  # noqa: E402
from openworldsam.app.command import serve  # noqa: E402
from openworldsam.app.examples import example_questions  # noqa: E402
from openworldsam.app.session import Session  # noqa: E402
from openworldsam.app.uploads import MAX_BYTES  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 120_000
"""Timeout in milliseconds; the machine may be busy."""
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The server's folder for uploads."""
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def address(shapes, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", "")  # restored afterwards
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
    """Make a visitor: a page in its own browser profile, which may contact no other server."""
    contexts, elsewhere = [], []

    def watch(request):
        if not request.url.startswith((address, "data:", "blob:")):
            elsewhere.append(request.url)

    def make(width=1280):
        contexts.append(browser.new_context(viewport={"width": width, "height": 1000}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", watch)
        page.goto(address)
        page.locator("#ask").wait_for()
        return page

    yield make
    for context in contexts:
        context.close()
    assert not elsewhere


@pytest.fixture
def images(scenes, tmp_path):
    """Two image files."""
    paths = {task: tmp_path / f"{task}.png" for task in ("instance", "panoptic")}
    for task, path in paths.items():
        Image.fromarray(scenes[task].image).save(path)
    return paths


@pytest.fixture
def answered(begin, shapes):
    """Make a session with an example image and the answer that the page should show."""

    def ask(scene, prompts, task="instance"):
        session = begin(scene)
        session.ask(prompts, task, {name: getattr(shapes.model.inference, name) for name in SLIDERS})
        return session

    return ask


def files(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def says(page, text):
    sync_api.expect(page.locator("#message")).to_contain_text(re.compile(text), timeout=PATIENCE)


def upload(page, path):
    page.locator("#upload input[type=file]").set_input_files(path)


def ask(page, prompts):
    field = page.locator("#prompts input")
    for prompt in prompts:
        field.fill(prompt)
        field.press("Enter")
    page.locator("#ask").click()


def source(page):
    return page.locator("#canvas img").get_attribute("src")


def canvas(page):
    """The image shown, uint8 [h, w, 3]."""
    return np.array(Image.open(io.BytesIO(base64.b64decode(source(page).partition(",")[2]))).convert("RGB"))


def wait_for_another_image(page, old):
    page.wait_for_function("old => document.querySelector('#canvas img').src !== old", arg=old)


def click(page, x, y):
    """Click at a pixel of a scene of 192 x 192 pixels."""
    box = page.locator("#canvas img").bounding_box()
    side = min(box["width"], box["height"])
    left, top = (box["width"] - side) / 2, (box["height"] - side) / 2
    page.locator("#canvas img").click(position={"x": left + x * side / 192, "y": top + y * side / 192})


def test_upload_prompt_result_refine_download(visit, answered, scenes, images, folder, tmp_path):
    page, before = visit(), files(folder)
    page.screenshot(path=tmp_path / "1_empty.png")
    upload(page, images["instance"])
    says(page, "now type")
    assert files(folder) == before
    page.screenshot(path=tmp_path / "2_upload.png")

    prompts = scenes["instance"].prompts
    ask(page, prompts)
    expected = answered("instance", prompts)
    says(page, re.escape(expected.shown.summary))
    assert np.array_equal(canvas(page), expected.drawn())
    page.screenshot(path=tmp_path / "3_result.png", full_page=True)

    page.locator("#table").get_by_text(str(expected.table()[1][2]), exact=True).first.click()
    says(page, "mask 2: ")
    page.screenshot(path=tmp_path / "4_single.png", full_page=True)
    page.locator("#everything").click()
    says(page, re.escape(expected.shown.summary))
    x, y = (int(place.mean()) for place in expected.shown.masks[0].nonzero()[::-1])
    click(page, x, y)
    says(page, f"mask {expected.mask_at(x, y) + 1}: ")

    single = canvas(page)
    page.get_by_label("Remove").check()
    click(page, x + 12, y)
    wait_for_another_image(page, source(page))
    assert not np.array_equal(canvas(page), single)
    page.screenshot(path=tmp_path / "5_refined.png", full_page=True)
    with page.expect_download(timeout=PATIENCE) as download:
        page.locator("#save").click()
    assert download.value.suggested_filename == "instance.zip"
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.namelist() == ["instance.json", "instance_ids.png", "instance_overlay.png"]
        content = json.loads(archive.read("instance.json"))
    assert [category["name"] for category in content["categories"]] == prompts
    areas = [annotation["area"] for annotation in content["annotations"]]
    assert len(areas) == len(expected.shown.masks) and areas != expected.shown.masks.sum(axis=(1, 2)).tolist()

    refined = source(page)
    page.locator("#undo").click()
    wait_for_another_image(page, refined)
    assert np.array_equal(canvas(page), single)

    page.locator("#thresholds button").first.click()
    page.locator("#score_threshold input[type=number]").fill("1")
    page.locator("#score_threshold input[type=number]").press("Enter")
    says(page, r"no mask passed the threshold 1 \(best predicted IoU 0\.")
    page.screenshot(path=tmp_path / "6_nothing.png", full_page=True)
    assert files(folder) == before


def test_errors_are_messages(visit, folder, tmp_path):
    page, before = visit(), files(folder)
    ask(page, ["circle"])
    says(page, "there is no image")
    notes, large = tmp_path / "notes.txt", tmp_path / "large.png"
    notes.write_text("no image")
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


def test_two_visitors_at_once_see_their_own(visit, answered, images, folder, tmp_path):
    before, pages = files(folder), {task: visit() for task in images}
    for task, page in pages.items():
        upload(page, images[task])
    for page in pages.values():
        says(page, "now type")
    for page in pages.values():
        ask(page, ["square", "ring"])
    for task, page in pages.items():
        expected = answered(task, ["square", "ring"])
        says(page, re.escape(expected.shown.summary))
        assert np.array_equal(canvas(page), expected.drawn())
        page.screenshot(path=tmp_path / f"{task}.png", full_page=True)
    assert files(folder) == before


def test_an_example_and_clicks_by_keyboard(visit, shapes, tmp_path):
    """The cross starts in the middle of the image, three arrows up move it by 6 % of the height."""
    page, example = visit(), next(example_questions(shapes.cfg))
    page.locator("#examples button").nth(0).click()
    expected = Session(shapes, example.image, "", 10**9)
    expected.ask(example.prompts, example.task, {name: getattr(shapes.model.inference, name) for name in SLIDERS})
    says(page, re.escape(expected.shown.summary))
    page.screenshot(path=tmp_path / "example.png", full_page=True)
    status, image = page.locator("#message"), page.locator("#canvas button:has(img)")
    assert (status.get_attribute("role"), status.get_attribute("aria-live")) == ("status", "polite")
    assert "arrow keys" in image.get_attribute("aria-label")
    image.focus()
    for key in ("ArrowUp", "ArrowUp", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    says(page, f"mask {expected.mask_at(*expected.pixel([224, 0.44 * 448])) + 1}: ")
    page.screenshot(path=tmp_path / "keyboard.png", full_page=True)


def test_on_a_phone_the_image_comes_first_and_nothing_is_cut_off(visit, tmp_path):
    page = visit(390)
    tops = [page.locator(f"#{name}").bounding_box()["y"] for name in ("canvas", "message", "mode", "upload", "ask")]
    assert tops == sorted(tops) and not page.locator("#score_threshold").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#table .table-wrap").evaluate("table => table.scrollWidth <= table.clientWidth")
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
