"""Augmentations move image and ground truth together."""

import numpy as np
import pytest
import torch
from panopticapi.utils import id2rgb
from PIL import Image

from openworldsam.data import augmentation
from openworldsam.data.augmentation import flip, large_scale_jitter
from openworldsam.data.mapper import DatasetMapper
from openworldsam.data.records import as_record

SIZE = 96


def generator(seed=0):
    return np.random.default_rng(seed)


def disc(height, width, row, column, radius):
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def painted(height=120, width=180):
    """An image whose red channel shows target 0 and whose green channel both masks of target 1; with the targets."""
    red = disc(height, width, 50, 60, 35)[None]
    green = torch.stack([disc(height, width, 60, 140, 30), disc(height, width, 95, 20, 18)])
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[0][red[0]] = 255
    image[1][green.any(dim=0)] = 255
    return image, [red, green]


def iou(a, b):
    return float((a & b).sum() / (a | b).sum())


def centroid(weights):
    share = weights.double() / weights.sum()
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in weights.shape)
    return float(share.sum(1) @ rows), float(share.sum(0) @ columns)


def scaled_by(monkeypatch, factor):
    monkeypatch.setattr(augmentation, "SCALES", (factor, factor))


def test_flip_moves_image_and_targets_together():
    image, targets = painted()
    source, times = generator(), 0
    for _ in range(400):
        flipped, moved = flip(image, targets, source)
        is_mirrored = not torch.equal(flipped, image)
        times += is_mirrored
        assert torch.equal(flipped, image.flip(2) if is_mirrored else image)
        assert torch.equal(moved[0][0], flipped[0] == 255)
        assert torch.equal(moved[1].any(dim=0), flipped[1] == 255)
        assert moved[1].shape == targets[1].shape
    assert 150 < times < 250


def test_flip_leaves_its_input_alone():
    image, targets = painted()
    copies = image.clone(), [target.clone() for target in targets]
    for seed in range(4):
        flip(image, targets, generator(seed))
    torch.testing.assert_close((image, targets), copies)


def test_jitter_keeps_image_and_targets_aligned():
    image, targets = painted()
    source, compared = generator(), 0
    for _ in range(60):
        pixels, moved = large_scale_jitter(image, targets, SIZE, source)
        for channel, target in zip(pixels[:2], moved, strict=True):
            colour = channel > 127
            if colour.sum() > 300:  # smaller ones are mostly edge
                compared += 1
                assert iou(colour, target.any(dim=0)) > 0.88
    assert compared > 40


def test_jitter_keeps_the_masks_of_a_target_apart():
    image, targets = painted()
    for seed in range(20):
        _, moved = large_scale_jitter(image, targets, SIZE, generator(seed))
        assert [len(target) for target in moved] == [1, 2]
        assert not (moved[1][0] & moved[1][1]).any()


@pytest.mark.parametrize("factor", [0.2, 0.5])
def test_shrinking_does_not_shift_targets_against_the_image(monkeypatch, factor):
    scaled_by(monkeypatch, factor)
    target = disc(600, 600, 299.5, 299.5, 200)[None]
    image = (target.to(torch.uint8) * 255).expand(3, -1, -1)
    pixels, (moved,) = large_scale_jitter(image, [target], SIZE, generator())
    np.testing.assert_allclose(centroid(moved[0]), centroid(pixels[0]), atol=0.1)


@pytest.mark.parametrize(("height", "width"), [(120, 180), (180, 120), (7, 300), (SIZE, SIZE), (1, 1)])
def test_jitter_gives_squares_of_the_size_asked_for(height, width):
    image = torch.full((3, height, width), 200, dtype=torch.uint8)
    targets = [torch.ones(2, height, width, dtype=torch.bool), torch.zeros(0, height, width, dtype=torch.bool)]
    for seed in range(10):
        pixels, moved = large_scale_jitter(image, targets, SIZE, generator(seed))
        assert pixels.dtype == torch.uint8 and pixels.shape == (3, SIZE, SIZE)
        assert all(target.dtype == torch.bool for target in moved)
        assert [target.shape for target in moved] == [(2, SIZE, SIZE), (0, SIZE, SIZE)]


def test_jitter_pads_the_lower_right_with_zeros():
    image = torch.full((3, 120, 180), 200, dtype=torch.uint8)
    everything, padded = torch.ones(1, 120, 180, dtype=torch.bool), 0
    for seed in range(30):
        pixels, (target,) = large_scale_jitter(image, [everything], SIZE, generator(seed))
        content = target[0]
        height, width = int(content.any(dim=1).sum()), int(content.any(dim=0).sum())
        assert content[:height, :width].all() and content.sum() == height * width
        assert (pixels[:, content] == 200).all() and (pixels[:, ~content] == 0).all()
        padded += height < SIZE
        if width < SIZE:  # nothing is cropped, so the shape is the image's
            assert height == pytest.approx(width * 120 / 180, abs=1)
    assert padded > 10


def test_jitter_scales_by_a_tenth_to_twice_the_size():
    image = torch.full((3, 60, 60), 255, dtype=torch.uint8)
    target = torch.ones(1, 60, 60, dtype=torch.bool)
    source = generator()
    widths = np.array([int(large_scale_jitter(image, [target], 100, source)[1][0][0, 0].sum()) for _ in range(400)])
    assert 10 <= widths.min() < 15
    assert 0.45 < (widths == 100).mean() < 0.61  # (2 - 1) / (2 - 0.1) = 0.53
    assert 0.12 < (widths < 50).mean() < 0.30  # (0.5 - 0.1) / (2 - 0.1) = 0.21


def test_jitter_enlarges_and_crops_anywhere(monkeypatch):
    scaled_by(monkeypatch, 2.0)
    ramp = torch.arange(200, dtype=torch.uint8)
    columns, rows = ramp.expand(200, 200), ramp[:, None].expand(200, 200)
    image = torch.stack([columns, rows, columns])
    source = generator()
    corners = []
    for _ in range(60):
        pixels, _ = large_scale_jitter(image, [], 100, source)
        (left, right), (top, bottom) = pixels[0, 0, [0, -1]].tolist(), pixels[1, [0, -1], 0].tolist()
        # 100 of the side's 200 pixels are at hand: the crop is half of the image
        assert right - left == pytest.approx(99, abs=1) and bottom - top == pytest.approx(99, abs=1)
        corners.append((left, top))
    for side in zip(*corners, strict=True):
        assert min(side) < 15 and max(side) > 85
    assert abs(np.corrcoef(np.array(corners).T)[0, 1]) < 0.4


def test_jitter_at_scale_one_changes_nothing(monkeypatch):
    scaled_by(monkeypatch, 1.0)
    image = torch.from_numpy(generator().integers(0, 256, (3, 40, SIZE), dtype=np.uint8))
    target = image[:1] > 127
    pixels, (moved,) = large_scale_jitter(image, [target], SIZE, generator())
    assert torch.equal(pixels[:, :40], image) and torch.equal(moved[:, :40], target)
    assert not pixels[:, 40:].any() and not moved[:, 40:].any()


def test_the_generator_alone_decides():
    image, targets = painted()
    first, second, other = (large_scale_jitter(image, targets, SIZE, generator(seed)) for seed in (4, 4, 5))
    torch.testing.assert_close(first, second)
    assert not torch.equal(first[0], other[0])


def test_targets_that_leave_the_crop_go_with_their_prompts(monkeypatch, tmp_path):
    scaled_by(monkeypatch, 2.0)
    ids = np.zeros((60, 60), dtype=np.uint32)
    ids[2:12, 2:12], ids[2:12, 48:58], ids[48:58, 48:58] = 1, 2, 3
    image = np.zeros((60, 60, 3), dtype=np.uint8)
    image[..., 0], image[..., 1] = 255 * (ids == 1), 255 * ((ids == 2) | (ids == 3))
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(id2rgb(ids)).save(tmp_path / "panoptic.png")
    record = {
        "file_name": str(tmp_path / "image.png"), "image_id": 0, "height": 60, "width": 60,
        "pan_seg_file_name": str(tmp_path / "panoptic.png"),
        "segments_info": [{"id": i, "category_id": c, "iscrowd": 0} for i, c in ((1, 0), (2, 1), (3, 1))],
    }  # fmt: skip
    mapper = DatasetMapper(
        class_names=("red", "green"), is_thing=(True, False), large_scale_jitter=True, image_size=SIZE
    )
    source, seen = generator(), set()
    for _ in range(120):
        mapped = mapper(as_record(record), source)
        for key in ("prompts", "class_ids", "is_thing"):
            assert len(mapped[key]) == len(mapped["targets"])
        for name, class_id, is_thing, target in zip(
            mapped["prompts"], mapped["class_ids"], mapped["is_thing"], mapped["targets"], strict=True
        ):
            assert (name, is_thing) == (("red", True), ("green", False))[class_id]
            assert target.flatten(1).any(dim=1).all()
            assert (mapped["image"][class_id][target.any(dim=0)] > 40).all()  # corners, at least
        seen.add(tuple((name, len(target)) for name, target in zip(mapped["prompts"], mapped["targets"], strict=True)))
    assert {(("red", 1),), (("green", 1),)} <= seen
