"""The command, end to end with the Shapes weights."""

import errno
import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import is_running
from pycocotools.coco import COCO

from openworldsam import cli
from openworldsam.annotate import results
from openworldsam.config import load_config
from openworldsam.data.datasets.shapes import demo_scene
from openworldsam.modeling import OpenWorldSAM
from openworldsam.utils.text import rounded_down

main = cli.command("annotate")
parse_args = partial(cli.parse, "annotate")

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/shapes/paper.yaml"
SCENES = 4


@pytest.fixture(scope="module")
def scenes():
    return [demo_scene(load_config(CONFIG), index) for index in range(SCENES)]


@pytest.fixture
def folder(scenes, tmp_path):
    """The scenes as files, a broken file, and a prompt file with everything in the scenes."""
    images = tmp_path / "images"
    (images / "more").mkdir(parents=True)
    for index, scene in enumerate(scenes):
        Image.fromarray(scene.image).save(images / ("more" if index % 2 else "") / f"scene{index}.png")
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    lines = {("" if s.is_thing else "stuff: ") + s.name for scene in scenes for s in scene.segments}
    (tmp_path / "prompts.txt").write_text("\n".join(sorted(lines)))
    return tmp_path


@pytest.fixture
def words(folder, paper_opts):
    """Make a command line."""

    def make(output="out", task="panoptic", **flags):
        paths = {"config-file": CONFIG, "input": folder / "images", "prompts": folder / "prompts.txt"}
        options = {**paths, "task": task, "output": folder / output, "num-processes": 1, **flags}
        flat = [word for key, value in options.items() for word in (f"--{key}", *([] if value is True else [value]))]
        return list(map(str, [*flat, "--opts", *paper_opts, "DATALOADER.NUM_WORKERS", 1]))

    return make


@pytest.fixture
def command(words, exit_status):
    """Run the command; return its exit status."""
    return lambda *arguments, **flags: exit_status(main, *words(*arguments, **flags))


def files(folder):
    """Contents of all result files, by name."""
    paths = [p for p in folder.rglob("*") if p.is_file() and p.suffix in (".json", ".png", ".xml", ".txt")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if not p.name.startswith("log")}


def test_labels_too_long_for_cvat_are_refused_before_the_run(folder, command, capsys):
    (folder / "prompts.txt").write_text("circle\n" + "c" * 64 + "\nthe " + "very " * 20 + "last square\n")
    assert command(cvat=True) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: CVAT takes labels of up to 64 characters, 1 of the prompts are longer: shorten")
    assert not (folder / "out/records").exists()


def test_hostile_names_are_listed_in_a_line_each(folder, command, capsys):
    images = folder / "images"
    for path in [*images.rglob("*.png")][1:]:
        path.unlink()
    (images / "broken.jpg").rename(images / "a\nscene9.png\t\x1b[2J.png")
    assert command() == 1
    reason = "its name has characters that no annotation file can hold"
    assert (folder / "out/unreadable.txt").read_text() == f"a\\nscene9.png\\t\\x1b[2J.png\t{reason}\n"
    printed, logged = capsys.readouterr().out, (folder / "out/log.txt").read_text()
    for text in (printed, logged):
        assert f"a\\nscene9.png\\t\\x1b[2J.png: {reason}" in text and "\x1b[2J" not in text


def test_a_folder(folder, scenes, command, capsys):
    assert command(**{"overlays": True, "label-studio": True, "cvat": True}) == 1
    printed = capsys.readouterr().out
    assert f"{SCENES} images: " in printed and "1 failed" in printed
    for told in (printed, (folder / "out/log.txt").read_text()):
        assert told.count("on a photograph their masks mean nothing") == 1
    out = folder / "out"
    name, reason = (out / "unreadable.txt").read_text().rstrip("\n").split("\t")
    assert name == "broken.jpg" and "not a readable image" in reason and reason in printed
    coco = COCO(out / "instances.json")
    assert [image["file_name"] for image in coco.imgs.values()] == [
        "more/scene1.png", "more/scene3.png", "scene0.png", "scene2.png"
    ]  # fmt: skip
    assert coco.dataset["info"]["weights"]["sam2"]["file"] == "sam2.safetensors"
    overlap = total = 0
    for image in coco.imgs.values():
        scene = scenes[int(image["file_name"][-5])]
        with Image.open(out / "semantic" / image["file_name"]) as png:
            labels = np.array(png)
        classes = (out / "classes.txt").read_text().splitlines()
        for segment in scene.segments:
            if not segment.is_thing:
                truth = scene.segment_map == segment.id
                overlap += (truth & (labels == classes.index(segment.name))).sum()
                total += truth.sum()
        assert (out / "overlays" / image["file_name"]).exists()
    assert overlap / total > 0.5  # 0.60 measured, as every image is asked for every class; a random class gives 0.1
    assert (out / "label_studio.json").exists() and (out / "cvat.xml").exists()
    before = files(out)
    assert command(overlays=True) == 1
    assert "5 images, 4 of them are done" in (out / "log.txt").read_text()
    assert files(out) == before


def test_a_killed_run_is_resumed_and_a_changed_image_predicted_again(folder, words, command, processes, leave_part):
    assert command("whole") == 1
    run = processes.start(main, words())
    records = folder / "out/records"
    while len(list(records.rglob("*.json"))) < 2:
        assert is_running(run.pids[0])
        time.sleep(0.01)
    workers = Path(f"/proc/{run.pids[0]}/task/{run.pids[0]}/children").read_text().split()
    run.send(signal.SIGKILL)
    run.ended()
    time.sleep(0.5)
    assert workers and not any(map(is_running, workers))
    assert not (folder / "out/instances.json").exists()
    done = {path: path.stat().st_mtime_ns for path in records.rglob("*.json")}
    first = min(done)
    kept = [folder / "out/records/.a.json.1.part", folder / "out/.of_others.part", leave_part(folder / "out/b.json")]
    for path in kept:
        path.touch()
    left = [leave_part(path) for path in (folder / "out/instances.json", first)]
    os.utime(folder / "images" / first.relative_to(records).with_suffix(".png"), ns=(1, 1))
    assert command() == 1
    assert {path for path, time_ in done.items() if path.stat().st_mtime_ns != time_} == {first}
    one, other = files(folder / "whole"), files(folder / "out")
    assert one.keys() == other.keys() and not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)
    assert all(one[name] == other[name] for name in one if name != str(first.relative_to(folder / "out")))


def test_two_processes_give_the_files_of_one(folder, command, words, processes):
    assert command("one") == 1
    (ended,) = processes(main, words("two", **{"num-processes": 2}))
    assert ended.status == 1, ended.stderr
    one, two = files(folder / "one"), files(folder / "two")
    assert len(one) == 3 * SCENES + 5 and one == two


def test_lost_images(folder, command, capsys):
    """One that was damaged after it was done, a broken link, a name that is no text."""
    (folder / "images/broken.jpg").unlink()
    assert command() == 0
    (folder / "images/scene0.png").write_bytes(b"")
    (folder / "images/link.png").symlink_to("nowhere.png")
    Path(os.fsdecode(bytes(folder / "images") + b"/caf\xe9.png")).write_bytes(b"")
    capsys.readouterr()
    assert command() == 1
    captured = capsys.readouterr()
    assert "3 images: " in captured.out and "3 failed" in captured.out
    assert "Traceback" not in captured.err
    listed = (folder / "out/unreadable.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in listed] == [r"caf\udce9.png", "link.png", "scene0.png"]
    coco = COCO(folder / "out/instances.json")
    assert {image["file_name"] for image in coco.imgs.values()} == {"more/scene1.png", "more/scene3.png", "scene2.png"}
    assert not (folder / "out/semantic/scene0.png").exists()


def test_no_image_takes_others_with_it(folder, scenes, words, command, exit_status, monkeypatch, capsys):
    """One fails to be predicted, one to be drawn, two to be saved; the others are done, and a rerun does the rest."""
    images, out = folder / "images", folder / "out"
    (images / "broken.jpg").unlink()
    long = 82 * "\u6c34" + ".png"  # of 250 bytes, its record of 251
    Image.fromarray(scenes[0].image).save(images / long)
    Image.fromarray(scenes[0].image[:100]).save(images / "wide.png")
    Image.fromarray(scenes[0].image[:, :100]).save(images / "high.png")
    (out / "records/scene0.json").mkdir(parents=True)
    (out / "semantic/scene2.png").mkdir(parents=True)
    answer, draw = OpenWorldSAM.answer, results.draw_prediction

    def answer_most(self, batch, *args, **options):
        if any(inputs["image"].shape[1] == 100 for inputs in batch):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB")
        return answer(self, batch, *args, **options)

    def draw_most(image, *args):
        if image.shape[1] == 100:
            raise RuntimeError
        return draw(image, *args)

    with monkeypatch.context() as patch:
        patch.setattr(OpenWorldSAM, "answer", answer_most)
        patch.setattr(results, "draw_prediction", draw_most)
        assert exit_status(main, *words(overlays=True), "TEST.IMS_PER_BATCH", "3") == 1
    listed = dict(line.split("\t") for line in (out / "unreadable.txt").read_text(encoding="utf-8").splitlines())
    assert listed.keys() == {"wide.png", "high.png", "scene0.png", "scene2.png"}
    assert listed["wide.png"] == "CUDA out of memory." and listed["high.png"] == "RuntimeError"
    assert "scene0.json" in listed["scene0.png"] and "scene2.png" in listed["scene2.png"]
    coco = COCO(out / "instances.json")
    assert {image["file_name"] for image in coco.imgs.values()} == {"more/scene1.png", "more/scene3.png", long}
    assert "4 failed" in capsys.readouterr().out
    (out / "records/scene0.json").rmdir()
    (out / "semantic/scene2.png").rmdir()
    record = out / "records/more/scene1.json"
    record.write_text("damaged")
    assert command(overlays=True) == 0
    assert "7 images: " in capsys.readouterr().out and record.read_text() != "damaged"
    assert (out / "unreadable.txt").read_text() == ""


def test_a_full_disk_ends_the_run_and_a_rerun_goes_on(folder, command, monkeypatch, capsys):
    (folder / "images/broken.jpg").unlink()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "a.png")

    with monkeypatch.context() as patch:
        patch.setattr(results, "save_png", full)
        assert command() == 2
    assert "error: cannot use a.png: no space left on device" in capsys.readouterr().err
    assert command() == 0


def test_no_image_done_has_its_own_exit_status(folder, command):
    for path in (folder / "images").rglob("*.png"):
        path.unlink()
    assert command() == 2


def test_no_mask_passes_and_another_question_is_refused(folder, words, command, capsys):
    (folder / "images/broken.jpg").unlink()
    main([*words(task="instance"), "MODEL.INFERENCE.SCORE_THRESHOLD", "1.0"])
    assert "4 of them have none: no mask passed the threshold 1 (best predicted IoU 0." in capsys.readouterr().out
    assert (folder / "out/unreadable.txt").read_text() == ""
    (folder / "prompts.txt").write_text("cat")
    assert command(task="semantic") == 2
    expected = "has predictions made with other task, prompts, things, MODEL, threshold; use another --output"
    assert expected in capsys.readouterr().err.splitlines()[-1]


def test_what_is_found_nowhere_is_named_with_its_best_score(folder, matching_opts, exit_status, capsys):
    (folder / "images/broken.jpg").unlink()
    (folder / "prompts.txt").write_text("cat\ngrass\n")

    def run(output, threshold):
        words = ["--config-file", ROOT / "configs/tiny.yaml", "--input", folder / "images", "--task", "instance"]
        words += ["--prompts", folder / "prompts.txt", "--output", folder / output, "--num-processes", 1]
        opts = [*matching_opts, "MODEL.INFERENCE.MATCH_THRESHOLD", threshold, "DATALOADER.NUM_WORKERS", 0]
        assert exit_status(main, *words, "--opts", *opts) == 0
        return json.loads((folder / output / "instances.json").read_text()), capsys.readouterr().out

    content, printed = run("none", 0.99)
    assert f"{SCENES} of them have none: no mask passed the threshold 0.99 (best match score 0." in printed
    best = {text: max(image["not_found"][text] for image in content["images"]) for text in ("cat", "grass")}
    (low, missing), (high, _) = sorted((score, prompt) for prompt, score in best.items())
    content, printed = run("one", (low + high) / 2)
    assert f"{missing} not found (best {rounded_down(low)})" in printed
    assert all(missing in image["not_found"] for image in content["images"]) and content["annotations"]
    assert content["info"]["score"] == {"rule": "match", "threshold": pytest.approx((low + high) / 2)}
    assert all(a["match"] == a["score"] != a["predicted_iou"] for a in content["annotations"])


def test_a_long_prompt_is_cut_in_the_summary(folder, command, capsys):
    (folder / "prompts.txt").write_text("very " * 1000)
    command()
    assert max(map(len, capsys.readouterr().out.splitlines())) < 500


def test_errors_are_one_line(folder, command, capsys):
    assert command(input=folder / "none") == 2
    assert command(prompts=folder / "none.txt") == 2
    errors = capsys.readouterr().err.splitlines()
    assert [error.split(":")[0] for error in errors] == ["error", "error"]
    assert "none is not a folder" in errors[0] and "none.txt not found" in errors[1]
    with pytest.raises(SystemExit):
        parse_args(["--input", "a"])
