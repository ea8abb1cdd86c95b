"""Properties of drawings: places, colours, counts, edge cases and speed, not pixels."""

import hashlib
import json
import time
from itertools import combinations

import cv2
import numpy as np
import pytest

from openworldsam.inference.nms import layer_order
from openworldsam.visualization.drawing import (
    _text_size,
    _to_canvas,
    at_drawn_size,
    contact_sheet,
    draw_clicks,
    draw_comparison,
    draw_masks,
    draw_prediction,
    place_labels,
    pole_of_inaccessibility,
)
from openworldsam.visualization.legend import (
    LabelledMasks,
    comparison_legend,
    draw_legend,
    fill_color,
    legend_rows,
    mask_colors,
    prompt_colors,
)
from openworldsam.visualization.text import text_width


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def labelled(masks, prompts=("cat",), index=None, task="instance"):
    """Masks with falling scores, by default of the first prompt."""
    index = [0] * len(masks) if index is None else index
    scores = np.linspace(0.99, 0.39, len(masks), dtype=np.float32)
    return LabelledMasks(task, tuple(prompts), masks, scores, np.array(index, dtype=np.int64))


def nothing(width, height, prompts=("cat",)):
    return labelled(np.zeros((0, height, width), dtype=bool), prompts)


def discs(width, height, count, radius, seed=0):
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, height, width), dtype=np.uint8)
    for mask in masks:
        cv2.circle(mask, (int(rng.integers(width)), int(rng.integers(height))), radius, (1,), -1)
    return masks.astype(bool)


def test_pixels_away_from_masks_and_labels_are_unchanged():
    image = noise(640, 480)
    masks = np.zeros((1, 480, 640), dtype=bool)
    masks[0, 100:300, 100:400] = True
    drawn = draw_prediction(image, labelled(masks))
    assert drawn.dtype == np.uint8 and drawn.shape[0] == 480 and drawn.shape[1] > 640
    touched = cv2.dilate(masks[0].astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
    np.testing.assert_array_equal(drawn[:, :640][~touched], image[~touched])
    assert (drawn[:, :640][masks[0]] != image[masks[0]]).any(axis=-1).mean() > 0.9


def test_draw_masks_is_draw_prediction_without_legend_and_by_default_without_scores():
    image, prediction = noise(640, 480), labelled(discs(640, 480, 2, 6))
    with_scores = draw_masks(image, prediction, scores=True)
    np.testing.assert_array_equal(draw_prediction(image, prediction)[:, :640], with_scores)
    without = draw_masks(image, prediction)
    assert without.shape == with_scores.shape == (480, 640, 3)
    # the masks are smaller than their labels, which are wider with " 0.99" and " 0.39"
    changed = [(drawn != image).any(axis=-1).sum() for drawn in (with_scores, without)]
    assert changed[0] > changed[1]
    assert draw_masks(image, prediction, max_side=320).shape == (240, 320, 3)


def test_inputs_are_not_modified_and_drawing_is_deterministic():
    image, prediction = noise(500, 400), labelled(discs(500, 400, 5, 60))
    before = image.copy(), prediction.masks.copy()
    first, second = draw_prediction(image, prediction), draw_prediction(image, prediction)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(prediction.masks, before[1])


def test_the_smaller_mask_is_on_top_and_of_equal_ones_the_higher_score():
    """Half of the image lies over the whole in either order, so once below a higher score."""
    image = np.zeros((480, 640, 3), dtype=np.uint8)
    masks = np.ones((2, 480, 640), dtype=bool)
    masks[0, :, 320:] = False
    light = [fill_color(color) for color in prompt_colors(2)]
    for order in ([0, 1], [1, 0]):
        drawn = draw_prediction(image, labelled(masks[order], ("left", "all"), order, "semantic"), alpha=1.0)
        np.testing.assert_array_equal(drawn[400, 60], light[0])
        np.testing.assert_array_equal(drawn[400, 580], light[1])
        equal = labelled(masks[[1, 1]], ("left", "all"), order, "semantic")  # falling scores
        np.testing.assert_array_equal(draw_prediction(image, equal, alpha=1.0)[400, 60], light[order[0]])


def lines(masks, colors, prompts):
    """Masks of the pixels with the pure colour of each outline, drawn over a black image of 640 x 480."""
    prediction = labelled(masks, prompts, range(len(masks)), "semantic")
    drawn = draw_masks(np.zeros((480, 640, 3), np.uint8), prediction, alpha=0.0).astype(int)
    return [(np.abs(drawn - color) < 60).all(axis=-1) for color in colors]


@pytest.mark.parametrize("gap", [0, 2, 6])
def test_masks_that_touch_share_one_line_in_the_colour_of_the_smaller(gap):
    masks = np.zeros((2, 480, 640), dtype=bool)
    masks[0, :, :400], masks[1, :, 400 + gap :] = True, True
    large, small = lines(masks, prompt_colors(2), ("large", "small"))
    column = np.flatnonzero(small[40])
    assert not large[40].any() and len(column) == 2 and np.ptp(column) == 1 and 398 <= column[0] <= 399 + gap


def test_masks_apart_have_a_line_each_and_none_along_the_edge_of_the_image():
    masks = np.zeros((2, 480, 640), dtype=bool)
    masks[0, :, :400], masks[1, :, 407:] = True, True
    large, small = lines(masks, prompt_colors(2), ("large", "small"))
    assert np.flatnonzero(large[40]).tolist() == [399, 400] and np.flatnonzero(small[40]).tolist() == [406, 407]


def test_specks_are_filled_but_not_outlined():
    """A mask with a far part and a hole of 5 x 5 pixels and a part of 6 x 6; a mask of 5 x 5 pixels is outlined."""
    masks = np.zeros((2, 480, 640), dtype=bool)
    masks[0, 100:300, 100:400] = True
    masks[0, 200:205, 150:155] = False
    masks[0, 400:405, 400:405] = masks[0, 400:406, 500:506] = True
    masks[1, 20:25, 600:605] = True
    large, small = lines(masks, prompt_colors(2), ("", ""))
    assert large[100, 120:200].all() and large[400:406, 500:506].any() and small[15:30, 595:610].any()
    assert not large[395:410, 395:410].any() and not large[190:215, 140:165].any()
    drawn = draw_masks(np.zeros((480, 640, 3), np.uint8), labelled(masks, ("", "b"), [0, 1]), alpha=1.0)
    assert drawn[402, 402].any() and not drawn[202, 152].any()


def test_one_mask_alone_keeps_its_colour():
    masks = np.zeros((2, 480, 640), dtype=bool)
    masks[0, :, :400] = masks[1, :, 400:] = True
    image, prediction = np.zeros((480, 640, 3), np.uint8), labelled(masks)
    drawn = draw_masks(image, prediction, alpha=1.0, only=1)
    assert not drawn[400, 60].any()
    np.testing.assert_array_equal(drawn[400, 580], draw_masks(image, prediction, alpha=1.0)[400, 580])
    np.testing.assert_array_equal(drawn[400, 580], fill_color(mask_colors(prediction)[1]))


def test_clicks_are_a_green_plus_and_a_red_minus():
    """Of radius 7, with white bars from -3.5 to 3.5: only the plus has one above its middle."""
    drawn = draw_clicks(np.zeros((200, 300, 3), np.uint8), [(50, 60), (250.5, 100)], [1, 0]).astype(int)
    (red, green, _), (red_2, green_2, _) = drawn[60 + 4, 50 + 3], drawn[100 + 4, 250 + 3]
    assert green > red + 60 and red_2 > green_2 + 60
    assert drawn[60, 48].min() == drawn[60 - 3, 50].min() == drawn[100, 248].min() == 255 > drawn[100 - 3, 250].min()
    changed = np.argwhere(drawn.any(axis=-1))
    assert changed.min(axis=0).tolist() == [53, 43] and not drawn[:53].any() and not drawn[:, 60:240].any()


def test_labels_neither_overlap_nor_leave_the_image():
    rng = np.random.default_rng(0)
    anchors = [(int(rng.integers(600)), int(rng.integers(400))) for _ in range(150)]
    sizes = [(int(rng.integers(20, 120)), 18) for _ in anchors]
    rects = place_labels(anchors, [[size] for size in sizes], (600, 400))
    placed = [(rect, size) for rect, size in zip(rects, sizes, strict=True) if rect is not None]
    assert len(placed) > 60 and len(rects) == 150
    for (x0, y0, x1, y1), size in placed:
        assert x0 >= 0 and y0 >= 0 and x1 <= 600 and y1 <= 400 and (x1 - x0, y1 - y0) == size
    for (one, _), (two, _) in combinations(placed, 2):
        assert one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]


def test_a_lone_label_is_centred_on_its_anchor_and_pushed_inside_at_the_edge():
    assert place_labels([(100, 50)], [[(40, 10)]], (200, 100)) == [(80, 45, 120, 55)]
    assert place_labels([(199, 0)], [[(40, 10)]], (200, 100)) == [(160, 0, 200, 10)]


def test_a_label_without_room_is_shortened_or_dropped():
    assert place_labels([(5, 5)], [[(40, 10)]], (30, 100)) == [None]
    assert place_labels([(5, 5)], [[(40, 10), (20, 10)]], (30, 100)) == [(0, 0, 20, 10)]
    assert place_labels([(5, 5)], [[(25, 10), (20, 10)]], (30, 100)) == [(0, 0, 25, 10)]
    first, second = place_labels([(20, 5), (20, 5)], [[(40, 10)], [(40, 10)]], (40, 12))
    assert first is not None and second is None
    assert place_labels([], [], (30, 100)) == []


def test_a_long_name_is_in_full_where_it_has_room():
    """On the wide image the label is as long as the text; on one of 448 pixels it ends at the edges."""
    name = "the small purple star that is left of the ring and below the two yellow triangles"
    for width, full in ((1200, True), (448, False)):
        image, masks = np.zeros((448, width, 3), np.uint8), np.zeros((1, 448, width), dtype=bool)
        masks[0, 200:210, 200:210] = True
        drawn = draw_masks(image, labelled(masks, (name,)))
        columns = np.flatnonzero((drawn == prompt_colors(1)[0]).all(axis=-1).sum(axis=0) > 3)
        text = _text_size((width, 448))
        assert (np.ptp(columns) > text_width(name, text)) == full and np.ptp(columns) > 20 * text


def test_pole_lies_inside_a_ring_and_in_the_middle_of_a_bar():
    ring = np.zeros((101, 101), dtype=np.uint8)
    cv2.circle(ring, (50, 50), 40, (1,), -1)
    cv2.circle(ring, (50, 50), 25, (0,), -1)
    x, y = pole_of_inaccessibility(ring.astype(bool))
    assert ring[y, x] == 1
    assert pole_of_inaccessibility(np.ones((11, 101), dtype=bool)) == (50, 5)


def test_palette_is_distinct_deterministic_and_stable_under_more_prompts():
    assert len(set(prompt_colors(500))) == 500
    assert prompt_colors(20) == prompt_colors(500)[:20]
    closest = min(np.abs(np.subtract(a, b)).sum() for a, b in combinations(prompt_colors(7), 2))
    assert closest > 60


@pytest.mark.parametrize("task", ["semantic", "referring"])
def test_one_colour_per_prompt(task):
    prediction = labelled(np.ones((4, 8, 8), dtype=bool), ("a", "b"), [0, 1, 0, 1], task)
    assert mask_colors(prediction) == prompt_colors(2) * 2


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_instances_of_a_prompt_get_distinct_shades_near_its_colour(task):
    prediction = labelled(np.ones((30, 8, 8), dtype=bool), ("a", "b"), [0, 1] * 15, task)
    colors = mask_colors(prediction)
    assert colors[:2] == prompt_colors(2) and len(set(colors)) == 30
    blue_minus_red = np.array(colors)[:, 2] - np.array(colors)[:, 0]
    assert (blue_minus_red[::2] > 0).all() and (blue_minus_red[1::2] < 0).all()


@pytest.mark.parametrize(("prompts", "instances"), [(1, 6), (4, 3), (7, 2)])
def test_instances_look_different(prompts, instances):
    """In CIELAB, where a difference of 2.3 is just noticeable."""
    masks = np.ones((prompts * instances, 1, 1), dtype=bool)
    colors = mask_colors(labelled(masks, "abcdefg"[:prompts], list(range(prompts)) * instances))
    lab = cv2.cvtColor(np.array([colors], np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    assert min(np.linalg.norm(one - two) for one, two in combinations(lab, 2)) > 15


def test_shades_go_by_size_so_that_they_are_the_same_in_every_task():
    masks = np.zeros((3, 8, 8), dtype=bool)
    masks[0, 0, 0] = masks[1, :4] = masks[2, :, :3] = True  # 1, 32 and 24 pixels
    by_order = mask_colors(labelled(np.ones((3, 8, 8), dtype=bool)))
    assert mask_colors(labelled(masks)) == [by_order[2], by_order[0], by_order[1]]


def test_legend_counts_masks_and_keeps_prompts_without_any():
    prediction = labelled(np.ones((3, 8, 8), dtype=bool), ("a", "b", "c"), [2, 0, 2])
    rows = legend_rows(prediction)
    assert [(row.prompt, row.count) for row in rows] == [("a", 1), ("b", 0), ("c", 2)]
    assert [row.summary for row in rows] == ["1 mask, 0.69", "no mask", "2 masks, best 0.99"]
    assert [len(row.shades) for row in rows] == [1, 1, 2]
    sought = prediction._replace(best_scores=np.array([0.69, 0.125, 0.99]))
    assert [row.summary for row in legend_rows(sought)] == [
        "1 mask, 0.69",
        "not found (best 0.12)",
        "2 masks, best 0.99",
    ]
    hidden = legend_rows(sought._replace(threshold=0.1))[1]
    assert hidden.summary == "covered by others (best 0.12)" and hidden.count == 0


def test_legend_goes_below_wide_images_and_beside_others():
    wide = draw_prediction(noise(900, 300), nothing(900, 300))
    tall = draw_prediction(noise(300, 900), nothing(300, 900))
    assert wide.shape[1] == 900 and wide.shape[0] > 300
    assert tall.shape[0] == 900 and tall.shape[1] > 300


def test_a_legend_with_room_has_long_names_in_full():
    """40 characters of 8 pixels are more than the 20 letter heights of 12 pixels that many rows have room for."""
    name = "the small purple star left of the yellow ring"
    few, many = (
        draw_legend(legend_rows(nothing(1, 1, [name, *map(str, range(n))])), (900, 600), 12).width for n in (1, 60)
    )
    assert few > text_width(name, 12) + 6 * 12 > many / 2


@pytest.mark.parametrize(("width", "height"), [(640, 480), (900, 300)])
def test_legend_of_500_prompts_stays_bounded(width, height):
    masks = np.zeros((1, height, width), dtype=bool)
    masks[0, 50:99, 50:99] = True
    prompts = [f"{n} " + "word " * 200 for n in range(500)]
    drawn = draw_prediction(noise(width, height), labelled(masks, prompts, [499]))
    assert drawn.shape[0] <= 2 * height and drawn.shape[1] <= 2 * width


@pytest.mark.parametrize(
    ("width", "height"),
    [(64, 48), (1, 1), (1, 500), (3, 2000), (449, 448), (20000, 10), (10, 20000), (40000, 3), (4000, 3000)],
)
def test_any_size_gives_a_drawing_of_bounded_size(width, height):
    masks = np.zeros((3, height, width), dtype=bool)
    masks[0] = True
    masks[1, : height // 2 + 1, : width // 2 + 1] = True
    masks[2, -1, -1] = True
    drawn = draw_prediction(noise(width, height), labelled(masks, ("a", "b"), [0, 1, 0]))
    assert drawn.ndim == 3 and drawn.dtype == np.uint8
    assert 448 <= max(drawn.shape) <= 1600 + 700 and min(drawn.shape[:2]) >= 8


def test_max_side_limits_the_drawing():
    drawn = draw_prediction(noise(800, 400), labelled(discs(800, 400, 2, 50)), max_side=400)
    assert drawn.shape[1] == 400


def test_a_mask_below_a_pixel_of_the_canvas_stays_visible():
    image, masks = np.zeros((2000, 2000, 3), dtype=np.uint8), np.zeros((1, 2000, 2000), dtype=bool)
    masks[0, 1600, 400] = True
    drawn = draw_prediction(image, labelled(masks, ("",)), max_side=500)
    assert drawn[380:420, 80:120].any() and not drawn[:300, :500].any()


def test_without_masks_the_image_is_unchanged():
    image = noise(600, 500)
    for prompts in (("a", "b"), ()):
        drawn = draw_prediction(image, nothing(600, 500, prompts))
        np.testing.assert_array_equal(drawn[:, :600], image)


@pytest.mark.parametrize("prompt", ["", "猫", "кошка", "قطة", "🐈", "a\nb\tc\x00", "\ud800", "x" * 100_000])
def test_any_prompt_can_be_drawn(prompt):
    drawn = draw_prediction(noise(500, 400), labelled(discs(500, 400, 2, 50), (prompt, "b"), [0, 1]))
    assert drawn.shape[0] == 400


def test_masks_that_cover_everything_and_each_other():
    draw_prediction(noise(500, 400), labelled(np.ones((200, 400, 500), dtype=bool)))


@pytest.mark.parametrize(
    "image",
    [*(np.zeros(shape, np.uint8) for shape in ((0, 5, 3), (5, 0, 3), (5, 5), (5, 5, 4))), np.zeros((5, 5, 3))],
)
def test_bad_images_are_refused(image):
    with pytest.raises(ValueError, match=r"need a non-empty uint8 \[H, W, 3\] image, got"):
        draw_prediction(image, nothing(5, 5))
    with pytest.raises(ValueError, match="image, got"):
        contact_sheet([("bad", image)], 1)


def test_mismatching_predictions_are_refused():
    image, masks = noise(7, 5), np.ones((2, 5, 7), dtype=bool)
    with pytest.raises(ValueError, match=r"bool \[N, 5, 7\].*got bool \[2, 7, 5\]"):
        draw_prediction(image, labelled(masks.swapaxes(1, 2)))
    with pytest.raises(ValueError, match=r"got uint8 \[2, 5, 7\]"):
        draw_prediction(image, labelled(masks.view(np.uint8).astype(np.uint8)))
    with pytest.raises(ValueError, match=r"each of 2 masks, got \[2\] and \[1\]"):
        draw_prediction(image, labelled(masks, index=[0]))
    with pytest.raises(ValueError, match="prompt indices below 1, got 0 to 1"):
        draw_prediction(image, labelled(masks, index=[0, 1]))


@pytest.mark.parametrize("options", [{"alpha": -0.1}, {"alpha": 1.1}, {"alpha": float("nan")}, {"max_side": 63}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="need 0 <= alpha <= 1 and max_side >= 64"):
        draw_prediction(noise(7, 5), labelled(np.ones((1, 5, 7), dtype=bool)), **options)


def test_contact_sheet_holds_every_panel_unchanged():
    panels = [(f"panel {n}", noise(60 + 10 * n, 40 + 5 * n, seed=n)) for n in range(5)]
    sheet = contact_sheet(panels, 3)
    assert sheet.dtype == np.uint8 and sheet.shape[1] > 90 + 100 + 80 and sheet.shape[0] > 50 + 60
    for _, panel in panels:
        _, _, (x, y), _ = cv2.minMaxLoc(cv2.matchTemplate(sheet, panel, cv2.TM_SQDIFF))
        np.testing.assert_array_equal(sheet[y : y + panel.shape[0], x : x + panel.shape[1]], panel)
    assert contact_sheet(panels[:1], 4).shape[1] < 100


def test_a_comparison_has_the_image_all_predictions_and_one_legend():
    """The cells of two predictions and those of four make full rows, and equal prompts have equal colours."""
    image, masks = np.zeros((448, 500, 3), np.uint8), np.zeros((1, 448, 500), dtype=bool)
    masks[0, :, 100:400] = True
    one = labelled(masks, ("cat", "dog"), [1], "semantic")._replace(best_scores=np.array([0.1, 0.99]))
    two = labelled(masks, ("dog", "the dog"), [0], "referring")
    gap, height = 12, 448 + 24 + 12
    for count, columns in ((2, 2), (4, 3), (3, 5)):
        predictions = {"a": one, "b": two, **{f"{n}": one for n in range(2, count)}}
        sheet = draw_comparison(image, "name", predictions)
        rows = (count + 2) // columns
        assert (count + 2) % columns == 0 and sheet.shape[0] == height * rows
        cell = [divmod(n, columns) for n in range(count + 2)]
        corners = [sheet[row * height + 24 + 5, gap + column * (500 + gap) + 200] for row, column in cell]
        assert not corners[0].any() and all((corner == corners[1]).all() and corner.any() for corner in corners[1:-1])


def test_the_legend_of_a_comparison_says_what_no_task_found():
    masks = np.ones((1, 448, 500), dtype=bool)
    found = labelled(masks, ("cat", "dog"), [1])._replace(best_scores=np.array([0.125, 0.99]))
    missed = labelled(masks[:0], ("cat", "dog"))._replace(best_scores=np.array([0.125, 0.25]))
    rows = comparison_legend([missed, found])
    assert [(row.prompt, row.summary, row.shades) for row in rows] == [
        ("cat", "not found (best 0.12)", (prompt_colors(2)[0],)),
        ("dog", "", (prompt_colors(2)[1],)),
    ]
    assert rows == comparison_legend([found, missed])


def test_contact_sheet_needs_panels_and_columns():
    with pytest.raises(ValueError, match="got 0 and 1"):
        contact_sheet([], 1)
    with pytest.raises(ValueError, match="got 1 and 0"):
        contact_sheet([("one", noise(5, 5))], 0)


def test_a_crowd_is_drawn_in_time():
    image, prediction = noise(1000, 700), labelled(discs(1000, 700, 60, 60), ("a", "b"), [0, 1] * 30)
    draw_prediction(image, prediction)  # loads the fonts
    start = time.process_time()
    draw_prediction(image, prediction)
    assert time.process_time() - start < 1.5


def test_a_bare_image_has_the_size_of_one_with_masks():
    for width, height in ((60, 30), (500, 400)):
        image = noise(width, height)
        assert at_drawn_size(image).shape == draw_masks(image, nothing(width, height)).shape
    assert np.array_equal(at_drawn_size(image), image)
    with pytest.raises(ValueError, match="uint8"):
        at_drawn_size(image / 255)


@pytest.mark.parametrize(
    ("task", "digest"),
    [
        ("instance", "23241f91ebad846b"),
        ("panoptic", "23241f91ebad846b"),
        ("semantic", "5b9b83cf3edda291"),
        ("referring", "5b9b83cf3edda291"),
    ],
)
def test_structure_is_as_recorded(task, digest):
    """Topmost masks, colours, label anchors and legend, which do not depend on fonts and lines."""
    masks = discs(320, 240, 6, 45)
    prediction = labelled(masks, ("cat", "a black dog", "grass"), [0, 1, 2, 0, 2, 1], task)
    layers = _to_canvas(masks[layer_order(masks, prediction.scores)], (448, 336))
    structure = {
        "layers": layers[::8, ::8].tolist(),
        "anchors": [pole_of_inaccessibility(layers == n + 1) for n in range(len(masks))],
        "colors": mask_colors(prediction),
        "legend": [(row.prompt, row.shades, row.summary) for row in legend_rows(prediction)],
    }
    assert draw_masks(noise(320, 240), prediction).shape == (336, 448, 3)
    assert hashlib.sha256(json.dumps(structure).encode()).hexdigest()[:16] == digest
