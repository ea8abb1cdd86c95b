import errno
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from openworldsam import cli
from openworldsam.config import load_config
from openworldsam.data.datasets.shapes import configured_world
from openworldsam.data.shapes.clip import Moving, render_clip
from openworldsam.data.shapes.drawing import Thing
from openworldsam.utils.files import save_png
from openworldsam.utils.text import rounded_down
from openworldsam.video import VideoPredictor, open_clip, results

main = cli.command("video")

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


def test_two_shapes_cross_and_keep_their_ids(tmp_path, monkeypatch, capsys, caplog):
    """The whole command with the weights that ship; the circle hides nearly all of the square for some frames."""
    monkeypatch.chdir(ROOT)
    identities = write_clip(tmp_path / "clip", CROSSING, 16)
    assert min(np.count_nonzero(identity == 1) for identity in identities) < 100
    words = ["--config-file", "configs/shapes/refer.yaml", "--input", tmp_path / "clip", "--output", tmp_path / "out"]
    words += ["--prompts", "blue square", "green circle", "--task", "referring"]
    main([*map(str, words), "--tracker", "detection", "--every", "1"])
    printed = capsys.readouterr().out
    assert "16 frames, blue square 1, green circle 1" in printed
    assert caplog.text.count("on a photograph their masks mean nothing") == 1
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
    assert overlay.times == pytest.approx([line["time"] for line in lines], abs=1e-4)


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
    assert "no mask passed the threshold 0.99 (best predicted IoU 0." in capsys.readouterr().out
    about = json.loads((tmp_path / "out/tracks.json").read_text())
    assert about["tracks"] == [] and about["not_found"].keys() == {"cat"}
    assert about["score"] == {"rule": "iou", "threshold": 0.99}


def test_both_scores_are_in_the_files_and_what_is_not_found_is_named(matching_opts, tmp_path, capsys):
    write_clip(tmp_path / "clip", CROSSING, 2)
    words = ["--config-file", ROOT / "configs/tiny.yaml", "--input", tmp_path / "clip", "--prompts", "cat", "grass"]
    words += ["--tracker", "detection", "--every", "1", "--output"]

    def run(output, threshold):
        opts = [*matching_opts, "MODEL.INFERENCE.MATCH_THRESHOLD", threshold]
        main([*map(str, [*words, tmp_path / output]), "--opts", *opts])
        return json.loads((tmp_path / output / "tracks.json").read_text())

    assert run("none", "0.99")["score"] == {"rule": "match", "threshold": 0.99}
    assert "no mask passed the threshold 0.99 (best match score 0." in capsys.readouterr().out
    best = json.loads((tmp_path / "none/tracks.json").read_text())["not_found"]
    (low, missing), (high, found) = sorted((score, prompt) for prompt, score in best.items())
    about = run("one", str((low + high) / 2))
    assert about["not_found"] == {missing: pytest.approx(low)} and {t["prompt"] for t in about["tracks"]} == {found}
    assert f"{missing} not found (best {rounded_down(low)})" in capsys.readouterr().out
    assert all(track["match"] == track["score"] != track["predicted_iou"] for track in about["tracks"])
    objects = [seen for line in lines_of(tmp_path / "one") for seen in line["objects"]]
    assert objects and all(seen["match"] == seen["score"] != seen["predicted_iou"] for seen in objects)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "frames.jsonl").read_text().splitlines()]


def test_a_frame_that_fails_stops_no_other(tiny, tmp_path, capsys, exit_status):
    """One cannot be read, one has another size, one cannot be saved."""
    write_clip(tmp_path / "clip", CROSSING, 5)
    (tmp_path / "clip/1.png").write_bytes(b"damaged")
    Image.new("RGB", (30, 20)).save(tmp_path / "clip/2.png")
    (tmp_path / "out/masks/000001.png").mkdir(parents=True)
    assert exit_status(main, *tiny("clip")) == 1
    out = capsys.readouterr().out
    about, lines = json.loads((tmp_path / "out/tracks.json").read_text()), lines_of(tmp_path / "out")
    assert [(line["frame"], line["time"]) for line in lines] == [(0, 0), (2, 0.16)]
    assert f"{tmp_path}/clip: 3 lost" in out and all(why in out for why in about["lost"])
    read, size, save = about["lost"]
    assert "clip/1.png is not a readable image" in read and "the frame at 0.08 s: frame 1 is 30 x 20" in size
    assert "the frame at 0.12 s: " in save and "masks/000001.png" in save
    assert {seen["id"] for line in lines for seen in line["objects"]} <= {track["id"] for track in about["tracks"]}
    overlay = open_clip(tmp_path / "out/overlay.mp4")
    assert len(list(overlay.frames)) == 2 and overlay.times == pytest.approx([0, 0.16])


def test_a_clip_of_which_no_frame_can_be_done(tiny, tmp_path, monkeypatch, capsys, exit_status):
    write_clip(tmp_path / "clip", CROSSING, 2)

    def fails(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB")

    monkeypatch.setattr(VideoPredictor, "step", fails)
    assert exit_status(main, *tiny("clip")) == 2
    error = capsys.readouterr().err
    assert error.endswith("clip has a result; the frame at 0.00 s: CUDA out of memory.\n")


def test_a_full_disk_ends_the_run_and_a_kill_loses_no_names(tiny, tmp_path, monkeypatch, capsys, exit_status):
    write_clip(tmp_path / "clip", CROSSING, 4)
    saved = []

    def full(path, pixels):
        if len(saved) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        saved.append(json.loads((tmp_path / "out/tracks.json").read_text())["tracks"] if saved else [])
        save_png(path, pixels)

    monkeypatch.setattr(results, "save_png", full)
    assert exit_status(main, *tiny("clip")) == 2
    assert "000002.png: no space left on device" in capsys.readouterr().err
    seen = {each["id"] for each in lines_of(tmp_path / "out")[0]["objects"]}
    assert seen and seen <= {track["id"] for track in saved[1]}  # known before the second frame was saved


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named_by_the_list_of_frames_too(tiny, tmp_path, monkeypatch, capsys, exit_status):
    write_clip(tmp_path / "clip", CROSSING, 2)
    monkeypatch.setattr(results, "output_file", lambda _: Path("/dev/full"))
    assert exit_status(main, *tiny("clip")) == 2
    assert capsys.readouterr().err.endswith("error: cannot use /dev/full: no space left on device\n")


@pytest.mark.parametrize(("codec", "copied"), [("aac", True), ("pcm_s16le", True), ("libmp3lame", False)])
def test_the_sound_is_copied_or_its_loss_is_said(tiny, tmp_path, caplog, codec, copied):
    """An MP4 cannot have MP3 of 8 kHz."""
    with av.open(str(tmp_path / "clip.mov"), "w") as file:
        video, sound = file.add_stream("mpeg4", rate=10), file.add_stream(codec, rate=8000, layout="mono")
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for number in range(10):
            file.mux(video.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * number, np.uint8))))
            tone = (8000 * np.sin(np.arange(800 * number, 800 * number + 800) / 3)).astype(np.int16)[None]
            heard = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            heard.sample_rate, heard.pts, heard.time_base = 8000, 800 * number, Fraction(1, 8000)
            file.mux(sound.encode(heard))
        file.mux(video.encode(None))
        file.mux(sound.encode(None))
    main(tiny("clip.mov", "MODEL.INFERENCE.SCORE_THRESHOLD", "0.99"))
    with av.open(str(tmp_path / "out/overlay.mp4")) as overlay, av.open(str(tmp_path / "clip.mov")) as clip:
        assert len(overlay.streams.audio) == copied
        assert ("the overlay has no sound" in caplog.text) != copied
        if copied:
            both = [[f.to_ndarray() for f in file.decode(audio=0)] for file in (overlay, clip)]
            assert len(both[0]) == len(both[1]) > 5 and all(map(np.array_equal, *both))
    assert open_clip(tmp_path / "out/overlay.mp4").length == 10


def test_the_times_of_a_damaged_clip_are_kept(tiny, tmp_path, write_video, exit_status):
    write_video(tmp_path / "clip.avi", [np.full((48, 64, 3), 20 * n, np.uint8) for n in range(8)], "MJPG")
    content = bytearray((tmp_path / "clip.avi").read_bytes())
    start = [place for place in range(len(content)) if content[place : place + 3] == b"\xff\xd8\xff"][3]
    content[start : start + 200] = bytes(200)
    (tmp_path / "clip.avi").write_bytes(content)
    assert exit_status(main, *tiny("clip.avi")) == 1
    times = [n / 12.5 for n in (0, 1, 2, 4, 5, 6, 7)]
    assert [line["time"] for line in lines_of(tmp_path / "out")] == pytest.approx(times)
    overlay = open_clip(tmp_path / "out/overlay.mp4")
    assert len(list(overlay.frames)) == 7 and overlay.times == pytest.approx(times, abs=1e-4)


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
