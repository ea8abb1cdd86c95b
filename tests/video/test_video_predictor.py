"""Object ids, with a predictor that finds colours."""

import numpy as np
import pytest
import torch

from openworldsam.checkpoint import convert_released
from openworldsam.video import VideoPredictor
from openworldsam.video.memory import read_video_weights

SIZE = (40, 100)
COLOURS = {"red": 200, "green": 100, "grey or green": 100}


class ColourPredictor:
    """Finds all pixels of a colour."""

    def __init__(self, predicted, head):
        self.predicted, self.head = predicted, head

    def set_image(self, image):
        self.image, self.features = image, object()

    def predict(self, prompts, task):
        masks = np.stack([self.image[..., 0] == COLOURS[prompt] for prompt in prompts])
        kept = np.flatnonzero(masks.any(axis=(1, 2)))
        scores = 0.9 - 0.1 * kept
        about = {"best_scores": np.full(len(prompts), self.image.max() / 400), "match": scores if self.head else None}
        iou = np.full(len(kept), 0.25) if self.head else scores
        return self.predicted(masks[kept], iou, kept, prompts=prompts, task=task, **about)


def frame_of(**places):
    """A frame with a square of each colour at x."""
    image = np.zeros((*SIZE, 3), np.uint8)
    for colour, x in places.items():
        image[10:30, x : x + 20] = COLOURS[colour]
    return image


@pytest.fixture
def video(predicted):
    """Make a video predictor that follows colours."""

    def make(*prompts, head=False, **options):
        return VideoPredictor(ColourPredictor(predicted, head), prompts, tracker="detection", **options)

    return make


def test_newcomers_are_looked_for_every_so_many_frames(video):
    clip = video("red", "green", every=3)
    seen = [set(clip.step(frame_of(red=5 * n, **({"green": 60} if n else {}))).scores) for n in range(5)]
    assert seen == [{1}, {1}, {1}, {1, 2}, {1, 2}]
    assert [(t.id, t.prompt, t.first_frame, t.last_frame) for t in clip.tracks] == [
        (1, "red", 0, 4),
        (2, "green", 3, 4),
    ]
    assert clip.tracks[1].score == clip.tracks[1].predicted_iou == pytest.approx(0.8)
    assert clip.tracks[1].match is None and clip.not_found == {}


def test_what_is_not_found_has_its_best_score(video):
    """It is looked for in every second frame; "grey or green" finds an object that has its name already."""
    clip = video("green", "grey or green", "red", every=2)
    for places in ({"green": 10}, {"green": 10, "red": 60}, {}):
        clip.step(frame_of(**places))
        assert [track.prompt for track in clip.tracks] == ["green"] and clip.not_found == {"red": 0.25}
    for _ in range(2):
        clip.step(frame_of(green=10, red=60))
    assert clip.not_found == {} and [track.prompt for track in clip.tracks] == ["green", "red"]


def test_both_scores_of_what_a_prompt_found_are_kept(video):
    clip = video("red", "green", every=1, head=True)
    frame = clip.step(frame_of(red=10, green=60))
    assert [(track.score, track.predicted_iou, track.match) for track in clip.tracks] == [
        (pytest.approx(score), 0.25, pytest.approx(score)) for score in (0.9, 0.8)
    ]
    known = clip.step(frame_of(red=12, green=62))
    for each in (frame, known):
        assert {object_id: scores["match"] for object_id, scores in each.evidence.items()} == each.scores


def test_equal_prompts_are_one(video):
    assert video("red ", "green", " red").prompts == ["red", "green"]


def test_every_0_looks_in_the_first_frame_alone(video):
    clip = video("red", "green", every=0)
    for n in range(4):
        clip.step(frame_of(red=10, **({"green": 60} if n else {})))
    assert len(clip.tracks) == 1


def test_an_object_that_is_gone_for_a_while_keeps_its_id(video):
    clip = video("red", every=1)
    seen = [set(clip.step(frame_of(**places)).scores) for places in ({"red": 10}, {}, {"red": 25}, {"red": 80})]
    assert seen == [{1}, set(), {1}, {2}], "what turns up far away is another"


def test_an_object_that_is_gone_for_long_is_forgotten(video):
    places = ({"red": 10}, {}, {"red": 12}, {}, {}, {"red": 10})
    clip = video("red", every=1, forget=2)
    assert [set(clip.step(frame_of(**x)).scores) for x in places] == [{1}, set(), {1}, set(), set(), {2}]
    assert [(track.first_frame, track.last_frame) for track in clip.tracks] == [(0, 2), (5, 5)]


def test_the_memory_of_what_is_gone_is_freed(video_predictor, monkeypatch):
    clip = VideoPredictor(video_predictor, ["cat", "grass"], every=0, forget=2)
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    clip.step(image)
    memories, side = clip._tracker.memories, 4 * video_predictor.model.image_encoder.feature_side
    absent = torch.full((1, side, side), -1024.0), torch.tensor([-10.0])
    monkeypatch.setattr(clip._tracker.sam2, "carry_on", lambda *_: absent)
    assert len(memories) == len(clip.tracks) > 0
    clip.step(image)
    assert len(memories) == len(clip.tracks)
    clip.step(image)
    assert not memories and not clip.step(image).scores


def test_an_object_of_two_names_has_one_id(video):
    clip = video("green", "grey or green", every=1)
    for x in (10, 14):
        frame = clip.step(frame_of(green=x))
    assert list(frame.scores) == [1] and clip.tracks[0].prompt == "green"
    assert np.array_equal(frame.id_map > 0, frame_of(green=14)[..., 0] > 0)


def test_a_crossing_of_two_colours(video):
    """The nearer one hides the other for a while; each comes out as itself."""
    clip = video("red", "green", every=1)
    for n in range(13):
        frame = clip.step(frame_of(green=5 * n, red=60 - 5 * n))  # red is drawn over green
        assert frame.id_map[20, 60 - 5 * n] == {"red": 1, "green": 2}["red"]
    assert len(clip.tracks) == 2 and frame.id_map[20, 65] == 2


def test_the_memory_carries_on_between_the_questions(video_predictor):
    clip = VideoPredictor(video_predictor, ["cat", "grass"], every=2)
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    counts = []
    for _ in range(4):
        frame = clip.step(image)
        assert set(np.unique(frame.id_map)) - {0} <= frame.scores.keys()
        assert len(frame.evidence) == len(clip.tracks) - sum(counts[-1:]), "only of new ones"
        counts.append(len(clip.tracks))
    assert counts[0] > 0 and counts[0] == counts[1] and counts[2] == counts[3]
    assert [track.id for track in clip.tracks] == list(range(1, counts[-1] + 1))


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompt"),
        (["red", " "], {}, "prompt 1 is empty"),
        (["red"], {"task": "semantic"}, "task is one of instance, referring"),
        (["red"], {"every": -1}, "every at least 0"),
        (["red"], {"forget": 0}, "forget at least 1"),
    ],
)
def test_a_bad_argument_is_named(video, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        video(*prompts, **options)


def test_frames_of_another_size_are_refused(video):
    clip = video("red")
    clip.step(frame_of(red=3))
    with pytest.raises(ValueError, match="frame 1 is 50 x 40 pixels, earlier ones are 100 x 40"):
        clip.step(frame_of(red=3)[:, :50])


def test_the_sam2_of_a_file_of_its_own_is_read(tiny_cfg, tmp_path):
    written = convert_released(tiny_cfg.MODEL.WEIGHTS, tmp_path)
    tiny_cfg.MODEL.WEIGHTS, tiny_cfg.MODEL.SAM2.WEIGHTS = str(written["adapter"]), str(written["sam2"])
    assert read_video_weights(tiny_cfg).path == written["sam2"]
