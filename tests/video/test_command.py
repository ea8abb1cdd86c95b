import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openworldsam.config import load_config
from openworldsam.data.datasets.shapes import configured_world
from openworldsam.data.shapes.clip import Moving, render_clip
from openworldsam.data.shapes.drawing import Thing
from openworldsam.video import open_clip
from openworldsam.video.command import main

ROOT = Path(__file__).parents[2]
CROSSING = (
    Moving(Thing("square", "blue", 40, 80, 70), (7.5, 1.5)),
    Moving(Thing("circle", "green", 152, 110, 80), (-7.5, -1.5)),
)
APART = (*range(5), *range(11, 16))
"""Frames of the crossing in which both are clearly visible."""


def write_clip(folder, things, count):
    """Write a clip as images; return the id of each pixel by frame."""
    world = configured_world(load_config(ROOT / "configs/shapes/refer.yaml"))
    folder.mkdir()
    identities = []
    for number, (image, identity) in enumerate(render_clip(world, 1, things, count)):
        Image.fromarray(image).save(folder / f"{number}.png")
        identities.append(identity)
    return identities


def iou(a, b):
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


def test_two_shapes_cross_and_keep_their_ids(tmp_path, monkeypatch, capsys):
    """The whole command with the weights that ship; the circle hides nearly all of the square for some frames."""
    monkeypatch.chdir(ROOT)
    identities = write_clip(tmp_path / "clip", CROSSING, 16)
    assert min(np.count_nonzero(identity == 1) for identity in identities) < 100
    words = ["--config-file", "configs/shapes/refer.yaml", "--input", tmp_path / "clip", "--output", tmp_path / "out"]
    words += ["--prompts", "blue square", "green circle", "--task", "referring"]
    main([*map(str, words), "--tracker", "detection", "--every", "1"])
    assert "16 frames, blue square 1, green circle 1" in capsys.readouterr().out
    about = json.loads((tmp_path / "out/tracks.json").read_text())
    assert about["frames"] == 16 and about["weights"]["sam2"]["file"] == "sam2.safetensors"
    ids = {track["prompt"]: track["id"] for track in about["tracks"]}
    lines = [json.loads(line) for line in (tmp_path / "out/frames.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(16))
    for number in APART:
        id_map = np.asarray(Image.open(tmp_path / "out" / lines[number]["file"]))
        assert id_map.dtype == np.uint16 and set(np.unique(id_map)) <= {0, 1, 2}
        assert iou(id_map == ids["blue square"], identities[number] == 1) > 0.5, number
        assert iou(id_map == ids["green circle"], identities[number] == 2) > 0.5, number
        areas = {seen["id"]: seen["area"] for seen in lines[number]["objects"]}
        assert areas == {track: np.count_nonzero(id_map == track) for track in (1, 2)}
    overlay = open_clip(tmp_path / "out/overlay.mp4")
    assert overlay.fps == 25 and len(list(overlay.frames)) == 16


@pytest.fixture
def tiny(video_predictor, tmp_path):
    """Make a command line for the tiny model."""
    cfg = video_predictor.cfg
    opts = ["MODEL.WEIGHTS", cfg.MODEL.WEIGHTS, "MODEL.PROMPT_ENCODER.TOKENIZER", cfg.MODEL.PROMPT_ENCODER.TOKENIZER]

    def make(clip, *overrides, opts=opts):
        words = ["--config-file", ROOT / "configs/tiny.yaml", "--prompts", "cat", "--output", tmp_path / "out"]
        return [*map(str, [*words, "--input", tmp_path / clip]), "--opts", *opts, *overrides]

    return make


def test_a_video_by_memory_and_results_are_not_mixed(tiny, write_video, tmp_path, capsys, exit_status):
    rng = np.random.default_rng(0)
    write_video(tmp_path / "clip.mp4", [rng.integers(0, 256, (51, 75, 3), dtype=np.uint8) for _ in range(3)])
    main(tiny("clip.mp4"))
    assert len(list((tmp_path / "out/masks").glob("*.png"))) == 3
    assert json.loads((tmp_path / "out/tracks.json").read_text())["tracker"] == "memory"
    assert exit_status(main, *tiny("clip.mp4")) == 2
    assert "out has results already" in capsys.readouterr().err


def test_nothing_found_says_why(tiny, tmp_path, capsys):
    write_clip(tmp_path / "clip", CROSSING, 2)
    main(tiny("clip", "MODEL.INFERENCE.SCORE_THRESHOLD", "0.99"))
    assert "no mask passed the threshold 0.99 (best 0." in capsys.readouterr().out
    assert json.loads((tmp_path / "out/tracks.json").read_text())["tracks"] == []


def test_results_written_before_an_error_are_complete(tiny, tmp_path, capsys, exit_status):
    write_clip(tmp_path / "clip", CROSSING, 2)
    Image.new("RGB", (30, 20)).save(tmp_path / "clip/2.png")
    assert exit_status(main, *tiny("clip")) == 2
    assert "frame 2 is 30 x 20 pixels" in capsys.readouterr().err
    about = json.loads((tmp_path / "out/tracks.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "out/frames.jsonl").read_text().splitlines()]
    assert about["frames"] == len(lines) == len(list((tmp_path / "out/masks").iterdir())) == 2
    assert {seen["id"] for line in lines for seen in line["objects"]} <= {track["id"] for track in about["tracks"]}


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("none.mp4", [], "none.mp4 not found"),
        ("clip", ["MODEL.WEIGHT", "x"], "MODEL.WEIGHT"),
        ("clip", ["MODEL.WEIGHTS", "none.pth"], "none.pth not found"),
        ("clip", None, "model_final.pth has no video memory"),
    ],
)
def test_errors_are_one_readable_line(tiny, tiny_opts, tmp_path, capsys, name, overrides, message, exit_status):
    write_clip(tmp_path / "clip", CROSSING, 1)
    assert exit_status(main, *tiny(name, opts=tiny_opts) if overrides is None else tiny(name, *overrides)) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0]
    assert ("--tracker detection" in errors[0]) == (overrides is None)
    assert not (tmp_path / "out").exists()
