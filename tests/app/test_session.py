"""Sessions without the page."""

import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from openworldsam.app.session import MAX_CHARACTERS, MAX_PROMPTS, TASK_THRESHOLDS, Session, with_clicks
from openworldsam.checkpoint import provenance
from openworldsam.utils.text import rounded_down

USUAL = {"score_threshold": 0.7, "nms_threshold": 0.5, "overlap_threshold": 0.5}


@pytest.fixture
def asked(session, scenes):
    """A session with an answer of three instances."""
    session.ask(scenes["instance"].prompts, "instance", USUAL)
    assert len(session.shown.masks) == 3
    return session


def middle(mask):
    """x, y of a pixel of a mask."""
    places = np.argwhere(mask)
    y, x = places[len(places) // 2].tolist()
    return x, y


def same(a, b):
    return a.prompts == b.prompts and np.array_equal(a.masks, b.masks) and np.array_equal(a.scores, b.scores)


@pytest.mark.parametrize("task", TASK_THRESHOLDS)
def test_the_answer_is_the_predictors(begin, shapes, scenes, task):
    example, session = scenes[task], begin(task)
    session.ask([example.prompts[0], *(f" {prompt} " for prompt in example.prompts)], task, USUAL)
    shapes.set_image(example.image)
    options = {name: USUAL[name] for name in TASK_THRESHOLDS[task]}
    alone = shapes.predict(example.prompts, task, stuff=["sand", "water", "stone", "sky", "grass", "brick"], **options)
    assert len(alone.masks) and same(session.shown, alone)
    assert np.array_equal(session.shown.is_thing, alone.is_thing)


def test_thresholds_move_without_the_model(asked, monkeypatch):
    scores = asked.shown.scores
    for name in ("encode_images", "encode_prompts", "queries"):
        monkeypatch.setattr(asked._predictor.model, name, None)
    asked.ask(asked.found.prompts, "instance", {**USUAL, "score_threshold": float(scores[1])})
    assert np.array_equal(asked.shown.scores, scores[:2])


def test_a_mask_is_selected(asked):
    masks = asked.shown.masks
    apart = masks & (masks.sum(axis=0) == 1)  # pixels of one mask only
    largest = int(apart.sum(axis=(1, 2)).argmax())
    everything, (x, y) = asked.drawn(), middle(apart[largest])
    asked.selected = asked.mask_at(x, y)
    alone = asked.drawn()
    assert asked.selected == largest and everything.shape == alone.shape == (448, 448, 3)
    assert alone[:20, :20].mean() < everything[:20, :20].mean() / 2  # a corner far from it is darkened
    assert asked.mask_at(0, 0) is None


def test_a_place_in_the_drawn_image_is_a_pixel(session):
    """The scene of 192 pixels is drawn at 448."""
    assert session.pixel([0, 0]) == (0, 0)
    assert session.pixel([224, 112]) == (96, 48)
    assert session.pixel([447.9, 448]) == (191, 191)


def test_the_table_lists_the_masks(asked):
    table, shown = asked.table(), asked.shown
    assert [row[0] for row in table] == [1, 2, 3]
    assert [row[1] for row in table] == [shown.prompts[index] for index in shown.prompt_index]
    assert [row[2] for row in table] == pytest.approx(shown.scores.tolist(), abs=6e-4)
    assert table[0][3] == pytest.approx(100 * shown.masks[0].sum() / 192**2, abs=0.005)


def test_masks_of_texts_have_both_scores_and_those_of_clicks_one(matching):
    session = Session(matching, np.zeros((60, 90, 3), np.uint8), "black.png", max_work=10**9)
    best = matching.predict(["cat", "grass"], image=session._encoded).best_scores
    thresholds = {**USUAL, "score_threshold": float(best.mean())}
    session.ask(["cat", "grass"], "instance", thresholds)
    (missing,) = session.found.not_found
    assert f"{missing} not found (best {rounded_down(min(best))})" in session.message
    session.click(3, 4, 1)
    table, shown = session.table(), session.shown
    assert [row[2:4] for row in table[:-1]] == [
        [pytest.approx(match, abs=6e-4), pytest.approx(iou, abs=6e-4)]
        for match, iou in zip(shown.match[:-1].tolist(), shown.predicted_iou[:-1].tolist(), strict=True)
    ]
    assert table[-1][1:4] == ["object", "", pytest.approx(shown.scores[-1], abs=6e-4)]
    iou = f"predicted IoU {shown.scores[-1]:.3f}"
    assert session.message == f"mask {len(table)}: object, {iou}, no match score, as clicks have no name"
    session.selected = 0
    assert session.message.startswith(f"mask 1: {table[0][1]}, match score {shown.match[0]:.3f}, predicted IoU ")
    with zipfile.ZipFile(io.BytesIO(session.archive({}))) as archive:
        content = json.loads(archive.read("black.json"))
    assert content["images"][0]["not_found"] == {missing: pytest.approx(min(best))}
    assert ["match" in annotation for annotation in content["annotations"]] == [True] * (len(table) - 1) + [False]


def test_a_click_corrects_the_selected_mask(asked):
    before, inside = asked.shown, middle(asked.shown.masks[1])
    asked.selected = 1
    asked.click(*inside, 1)
    asked.click(3, 4, 0)
    expected = asked._predictor.click([inside, (3, 4)], [1, 0], mask=before.logits[1], image=asked._encoded)
    assert np.array_equal(asked.shown.masks[1], expected.masks[0]) and asked.shown.scores[1] == expected.scores[0]
    assert asked.shown.prompts == before.prompts and asked.selected == 1
    assert np.array_equal(asked.shown.masks[[0, 2]], before.masks[[0, 2]])
    assert np.array_equal(asked.shown.boxes[1], expected.boxes[0])


def test_a_click_without_a_mask_makes_one(asked):
    before = asked.shown
    asked.click(3, 4, 1)
    asked.click(150, 180, 0)
    alone = asked._predictor.click([(3, 4), (150, 180)], [1, 0], image=asked._encoded)
    assert len(asked.shown.masks) == 4 and asked.selected == 3
    assert np.array_equal(asked.shown.masks[3], alone.masks[0])
    assert asked.table()[3][1] == "object" and asked.shown.is_thing[3]
    assert np.array_equal(asked.shown.masks[:3], before.masks)


def test_a_mask_where_texts_found_none(session):
    session.ask(["circle"], "instance", {**USUAL, "score_threshold": 1.0})
    assert session.shown.summary.startswith("no mask passed the threshold 1 (best predicted IoU 0.")
    session.click(3, 4, 1)
    assert session.table()[0][1] == "object"
    session.undo()
    assert session.table() == [] and session.selected is None


def test_clicks_are_undone_one_by_one(asked):
    states = [asked.shown]
    for selected, label in ((0, 1), (0, 0), (None, 1), (3, 1)):
        asked.selected = selected
        asked.click(20 + 10 * len(states), 100, label)
        assert not same(asked.shown, states[-1])
        states.append(asked.shown)
    for state in reversed(states[:-1]):
        asked.undo()
        assert same(asked.shown, state)
    with pytest.raises(ValueError, match="no click to undo"):
        asked.undo()


def test_another_question_forgets_clicks(asked):
    before = asked.shown
    asked.click(3, 4, 1)
    asked.ask(before.prompts, "instance", USUAL)
    assert same(asked.shown, before) and asked.selected is None
    with pytest.raises(ValueError, match="no click to undo"):
        asked.undo()


def test_a_click_that_cannot_be_changes_nothing(asked):
    before = asked.shown
    with pytest.raises(ValueError, match="select a mask first"):
        asked.click(20, 20, 0)
    with pytest.raises(ValueError, match="outside the image"):
        asked.click(2000, 20, 1)
    assert same(asked.shown, before)
    asked.click(3, 4, 1)
    assert len(asked.shown.masks) == 4


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_a_corrected_mask_takes_pixels_from_the_others(begin, scenes, task):
    """Masks never overlap; undoing the click returns the pixels."""
    session = begin("panoptic")
    session.ask(scenes["panoptic"].prompts, task, {**USUAL, "score_threshold": 0.5})
    before = session.shown
    areas = before.masks.sum(axis=(1, 2))
    large, other = np.argsort(-areas)[:2].tolist()
    place = middle(before.masks[other])
    session.selected = large
    session.click(*place, 1)
    alone = session._predictor.click([place], mask=before.masks[large], image=session._encoded)
    assert np.array_equal(session.shown.masks[session.selected], alone.masks[0])
    assert session.shown.masks.sum(axis=0).max() == 1
    assert (session.shown.masks.any(axis=0) >= before.masks[other] & alone.masks[0]).all()
    session.undo()
    assert same(session.shown, before) and session.selected == large


def test_masks_take_pixels_from_each_other(predicted):
    """Four pixels by hand: the last correction wins, and a mask without pixels is not shown until the undo."""

    def four_pixels(task, masks):
        prompt = "object" if task == "interactive" else "cat"
        return predicted(np.array(masks)[:, None], prompts=(prompt,), task=task)

    found = four_pixels("panoptic", [[1, 1, 0, 0], [0, 0, 1, 0]])
    second, first = (four_pixels("interactive", [pixels]) for pixels in ([0, 1, 1, 0], [1, 1, 1, 0]))
    shown, slots = with_clicks(found, {1: second})
    assert slots == [0, 1] and shown.masks[:, 0].tolist() == [[1, 0, 0, 0], [0, 1, 1, 0]]
    shown, slots = with_clicks(found, {0: first, 1: second})
    assert slots == [0] and shown.masks[:, 0].tolist() == [[1, 1, 1, 0]]
    shown, slots = with_clicks(found, {1: second, 0: first})
    assert slots == [0, 1] and shown.masks[:, 0].tolist() == [[1, 0, 0, 0], [0, 1, 1, 0]]
    shown, slots = with_clicks(found, {2: first})
    assert slots == [2] and shown.prompts == ("cat", "object") and shown.prompt_index.tolist() == [1]
    shown, slots = with_clicks(replace(found, task="instance"), {0: first})
    assert slots == [0, 1] and shown.masks[:, 0].tolist() == [[1, 1, 1, 0], [0, 0, 1, 0]]


def test_marks_overrule_what_is_stuff(begin):
    """Without marks sky is stuff and a circle is a thing."""
    session = begin("panoptic")
    session.ask(["stuff: circle", "thing: Sky", "grass"], "panoptic", {**USUAL, "score_threshold": 0.0})
    things = dict(zip(session.shown.prompt_index.tolist(), session.shown.is_thing.tolist(), strict=True))
    assert session.shown.prompts == ("circle", "Sky", "grass") and things == {0: False, 1: True, 2: False}


def test_clicks_and_archives_need_a_question(session):
    with pytest.raises(ValueError, match="ask something first"):
        session.click(1, 1, 1)
    with pytest.raises(ValueError, match="ask something first"):
        session.archive({})
    assert session.table() == [] and session.mask_at(0, 0) is None


@pytest.mark.parametrize(
    ("prompts", "task", "message"),
    [
        ([], "instance", "no prompt"),
        ([" "], "instance", "no prompt"),
        (["cat", " "], "instance", "prompt 1 is empty"),
        (["cat"], "colour", "task is one of"),
        ([str(n) for n in range(MAX_PROMPTS + 1)], "instance", "at most 100 prompts"),
        (["c" * (MAX_CHARACTERS + 1)], "instance", "at most 100 prompts of 300 characters"),
    ],
)
def test_bad_questions(session, prompts, task, message):
    with pytest.raises(ValueError, match=message):
        session.ask(prompts, task, USUAL)
    assert session.shown is None


def test_two_visitors_at_once_get_their_own(begin):
    """Each gets the answer of a lone visitor, whatever the order of the threads."""

    def visit(name):
        session = begin(name)
        session.ask(["square", "circle"], "instance", USUAL)
        return session.shown

    names = ("instance", "panoptic")
    alone = [visit(name) for name in names]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(visit, names))
    assert all(map(same, together, alone)) and not same(*alone)


def test_the_archive_holds_what_is_shown(asked, tmp_path):
    asked.click(3, 4, 1)
    content = asked.archive(provenance(asked._predictor.cfg, asked._predictor.sources))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["scene.json", "scene_ids.png", "scene_overlay.png"]
        archive.extractall(tmp_path)
    coco = COCO(tmp_path / "scene.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == [*asked.found.prompts, "object"]
    masks = np.stack([coco.annToMask(annotation) for annotation in coco.loadAnns(coco.getAnnIds())])
    assert np.array_equal(masks, asked.shown.masks)
    with Image.open(tmp_path / "scene_ids.png") as ids:
        assert np.array_equal(np.asarray(ids), asked.shown.label_map)
    with Image.open(tmp_path / "scene_overlay.png") as overlay:
        assert overlay.height >= 448 and overlay.width > 448
    assert json.loads((tmp_path / "scene.json").read_text())["info"]["preset"] == "paper_with_dice_loss"
