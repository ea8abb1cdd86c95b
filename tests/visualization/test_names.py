"""Names in drawings: scripts that DejaVu Sans lacks."""

import os

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

from openworldsam.visualization import LabelledMasks, draw_prediction, text
from openworldsam.visualization.text import display_names, draw_text, fitted, load_font, text_width

CAT, DOG, EMOJI = "\u732b", "\u72ac", "\U0001f408"


@pytest.fixture(autouse=True)
def no_other_fonts(monkeypatch):
    """No font but DejaVu, and no memory of others."""
    monkeypatch.setattr(text, "_system_fonts", list)
    monkeypatch.delenv("OPENWORLDSAM_FONT", raising=False)
    text._font_file.cache_clear()
    text._recent.clear()
    yield
    text._font_file.cache_clear()
    text._recent.clear()


@pytest.fixture
def font(tmp_path):
    """A font of two Chinese characters: a high bar and a low one."""
    glyphs = {}
    for name, bottom, top in ((".notdef", 0, 0), ("cat", 500, 800), ("dog", 0, 300)):
        pen = TTGlyphPen(None)
        if top:
            for point in ((100, bottom), (100, top), (900, top), (900, bottom)):
                (pen.lineTo if pen.points else pen.moveTo)(point)
            pen.closePath()
        glyphs[name] = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({ord(CAT): "cat", ord(DOG): "dog"})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Two", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "two.ttf")
    return str(tmp_path / "two.ttf")


@pytest.fixture(params=["given", "found"])
def known(request, font, monkeypatch):
    """The font is given by the user, or found on the system."""
    if request.param == "given":
        monkeypatch.setenv("OPENWORLDSAM_FONT", font)
    else:
        monkeypatch.setattr(text, "_system_fonts", lambda: ["nowhere.ttf", __file__, font])


def drawn(line, size=20):
    canvas = Image.new("RGB", (200, 40), "white")
    draw_text(canvas, (4, 20), line, (0, 0, 0), size)
    return np.asarray(canvas)[..., 0] < 128


def test_characters_that_no_font_has_are_numbered():
    names = display_names(["sky", CAT, DOG, f"a {EMOJI}\u200d\U0001f680 here"], range(4), 20, 400)
    assert names == ["sky", "2: \u25a1", "3: \u25a1", "4: a \u25a1\u25a1 here"]


def test_a_font_that_has_them_draws_them(known):
    assert display_names([CAT, f"{DOG} a", EMOJI], range(3), 20, 400) == [CAT, f"{DOG} a", "3: \u25a1"]
    cat, dog = drawn(CAT), drawn(DOG)
    assert cat.any() and dog.any() and not (cat & dog).any()
    assert np.nonzero(cat)[0].max() < np.nonzero(dog)[0].min()
    assert text_width(f"a{CAT}b", 20) == load_font(20).getlength("a") + 20 + load_font(20).getlength("b")


def test_names_shortened_to_the_same_text_are_numbered():
    names = display_names([*(f"the bird in the tree {n} " + "x" * 90 for n in range(2)), "sky"], [0, 1, 2], 20, 200)
    assert names[0].startswith("1: the bird") and names[1].startswith("2: the bird") and names[2] == "sky"
    assert all(name.endswith("...") and text_width(name, 20) <= 200 for name in names[:2])
    assert display_names(["sky", "sea", "sky"], [0, 1, 0], 20, 200) == ["sky", "sea", "sky"]


def test_pictures_in_place_of_outlines_are_scaled(monkeypatch, known):
    """Fonts of coloured emoji have pictures of one size."""
    sized, single = text._sized, drawn(CAT)
    monkeypatch.setattr(
        text, "_sized", lambda file, size: (sized(file, 100)[0], size / 100) if "two" in file else sized(file, size)
    )
    assert np.mean(drawn(CAT) == single) > 0.98 and drawn(CAT).any()
    assert text_width(CAT, 20) == pytest.approx(20)


def test_control_characters_are_escaped():
    assert fitted("a\x1b[2J\nb\u202ec\ud800", 20, 1000) == r"a\x1b[2J b\u202ec\ud800"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "not found. [$]OPENWORLDSAM_FONT names it"),
        (lambda path: path.write_bytes(b"no font"), "is no font"),
        (os.mkfifo, "is a pipe"),
    ],
)
def test_a_given_file_that_is_no_font_is_named(tmp_path, monkeypatch, make, said):
    make(tmp_path / "given.ttf")
    monkeypatch.setenv("OPENWORLDSAM_FONT", str(tmp_path / "given.ttf"))
    with pytest.raises((ValueError, FileNotFoundError), match=f"given.ttf {said}"):
        fitted(CAT, 20, 100)


def test_labels_and_legend_tell_such_prompts_apart(known):
    """Only the two names differ between the drawings."""
    image, masks = np.zeros((300, 300, 3), np.uint8), np.ones((1, 300, 300), bool)
    one, two = (
        draw_prediction(image, LabelledMasks("instance", (name,), masks, np.ones(1, np.float32), np.zeros(1, np.int64)))
        for name in (CAT, DOG)
    )
    differing = (one != two).any(axis=(0, 2)).nonzero()[0]
    assert differing.min() < one.shape[0] < differing.max()
