import json
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from openworldsam import OpenWorldSAMPredictor, cli, demo
from openworldsam.data.datasets.shapes import split_seed
from openworldsam.data.shapes import World, expressions, render
from openworldsam.utils.text import rounded_down

main = cli.command("segment")

ROOT = Path(__file__).parents[1]


@pytest.fixture
def command(tiny_opts, tmp_path):
    """Make a command line for the tiny model."""

    def make(*words, prompts=("cat", "grass"), opts=tiny_opts):
        asked = ["--prompts", *prompts] if prompts else []
        fixed = ["--config-file", ROOT / "configs/tiny.yaml", "--output", tmp_path / "out", *asked]
        return list(map(str, [*fixed, *words, "--opts", *opts]))

    return make


def test_every_task_writes_an_overlay_and_a_coco_json(command, photograph, tmp_path, capsys):
    main(command("--input", photograph, "--task", "all"))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "These weights are rule-made, not trained, seed 0: the masks mean nothing."
    for task in ("semantic", "instance", "panoptic", "referring"):
        with Image.open(tmp_path / f"out/chelsea_{task}.png") as overlay:
            assert overlay.width >= 451
        path = tmp_path / f"out/chelsea_{task}.json"
        content = json.loads(path.read_text())
        assert content["info"]["task"] == task and content["info"]["preset"] == "paper"
        assert content["info"]["weights"]["sam2"]["file"] == "model_final.pth"
        coco = COCO(path)
        assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["cat", "grass"]
        annotations = coco.loadAnns(coco.getAnnIds())
        assert annotations
        for annotation in annotations:
            mask = coco.annToMask(annotation)
            assert mask.shape == (300, 451) and mask.sum() == annotation["area"]
            ys, xs = np.nonzero(mask)
            assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
    assert not list((tmp_path / "out").glob("*.part")) and not list((tmp_path / "out").glob(".*"))


def test_equal_prompts_are_one(command, photograph, tmp_path):
    main(command("--input", photograph, prompts=(" a cat", "a  cat", "sky")))
    content = json.loads((tmp_path / "out/chelsea_instance.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["a cat", "sky"]


def test_a_damaged_image_does_not_stop_the_others(command, photograph, tmp_path, capsys, exit_status):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    assert exit_status(main, *command("--input", tmp_path / "broken.jpg", "missing.png", photograph)) == 1
    errors = capsys.readouterr().err
    assert "broken.jpg is not a readable image" in errors and "missing.png not found" in errors
    assert (tmp_path / "out/chelsea_instance.png").is_file()


def test_an_image_that_fails_at_any_stage_stops_no_other(
    command, photograph, tmp_path, monkeypatch, capsys, exit_status
):
    """One fails to be predicted, one to be drawn, two to be saved."""
    paths = [tmp_path / name for name in ("large.png", "odd.png", 82 * "\u6c34" + ".png", "taken.png", "good.png")]
    for side, path in zip((100, 101, 30, 30, 30), paths, strict=True):
        Image.new("RGB", (side, 20)).save(path)
    (tmp_path / "out/taken_instance.png").mkdir(parents=True)
    set_image, draw = OpenWorldSAMPredictor.set_image, demo.draw_prediction

    def set_most(self, image):
        if image.shape[1] == 100:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB")
        return set_image(self, image)

    def draw_most(image, prediction):
        if image.shape[1] == 101:
            raise AttributeError("no 'font'")
        return draw(image, prediction)

    monkeypatch.setattr(OpenWorldSAMPredictor, "set_image", set_most)
    monkeypatch.setattr(demo, "draw_prediction", draw_most)
    assert exit_status(main, *command("--input", *paths)) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4 and all(str(path) in line for path, line in zip(paths, errors, strict=False))
    reasons = (
        "CUDA out of memory.",
        "no 'font'",
        "file name too long",
        "is a folder, not a regular file; give the name of a file to write",
    )
    assert all(line.endswith(reason) for line, reason in zip(errors, reasons, strict=True))
    assert (tmp_path / "out/good_instance.json").is_file()


def test_nothing_done_has_its_own_exit_status(command, capsys, exit_status):
    assert exit_status(main, *command("--input", "missing.png")) == 2
    assert "missing.png not found" in capsys.readouterr().err


def test_nothing_found_says_why(command, photograph, capsys):
    main([*command("--input", photograph), "MODEL.INFERENCE.SCORE_THRESHOLD", "0.99"])
    assert "no mask passed the threshold 0.99 (best predicted IoU 0." in capsys.readouterr().out


def test_prompts_that_are_not_found_are_named(command, matching_opts, photograph, tmp_path, capsys):
    """The threshold lies between the match scores of the two prompts."""
    words = command("--input", photograph, opts=matching_opts)
    main([*words, "MODEL.INFERENCE.MATCH_THRESHOLD", "0.01"])
    both = json.loads((tmp_path / "out/chelsea_instance.json").read_text())
    assert both["images"][0]["not_found"] == {} and both["info"]["score"]["rule"] == "match"
    best = [max(a["match"] for a in both["annotations"] if a["category_id"] == n) for n in (1, 2)]
    (low, missing), (high, found) = sorted(zip(best, ("cat", "grass"), strict=True))
    capsys.readouterr()
    main([*words, "MODEL.INFERENCE.MATCH_THRESHOLD", str((low + high) / 2)])
    content = json.loads((tmp_path / "out/chelsea_instance.json").read_text())
    assert content["images"][0]["not_found"] == {missing: pytest.approx(low)}
    assert content["info"]["score"]["threshold"] == pytest.approx((low + high) / 2)
    names = {category["id"]: category["name"] for category in content["categories"]}
    assert {names[annotation["category_id"]] for annotation in content["annotations"]} == {found}
    assert f"{missing} not found (best {rounded_down(low)})" in capsys.readouterr().out


def test_images_of_one_name_are_refused(command, photograph, tmp_path, capsys, exit_status):
    shutil.copy(photograph, tmp_path / "chelsea.png")
    assert exit_status(main, *command("--input", photograph, tmp_path / "chelsea.png")) == 2
    assert "overwrite each other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompts", "opts", "message"),
    [
        (["cat", " "], [], "prompt 1 is empty"),
        (["cat"], ["MODEL.WEIGHTS", "none.pth"], "none.pth not found"),
        (["cat"], ["MODEL.WEIGHT", "none.pth"], "MODEL.WEIGHT"),
        (["cat"], ["MODEL.WEIGHTS"], "config key MODEL.WEIGHTS needs a value, got nothing"),
    ],
)
def test_errors_are_one_readable_line(command, tiny_opts, photograph, prompts, opts, message, capsys, exit_status):
    assert exit_status(main, *command("--input", photograph, prompts=prompts, opts=[*tiny_opts, *opts])) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0]


def test_an_output_that_cannot_be_written_is_an_error_before_the_model_is_loaded(
    command, photograph, tmp_path, capsys, exit_status, monkeypatch
):
    monkeypatch.setattr("openworldsam.demo.OpenWorldSAMPredictor", None)
    (tmp_path / "out").write_text("a file where the folder should be")
    assert exit_status(main, *command("--input", photograph)) == 2
    assert capsys.readouterr().err == f"error: cannot use {tmp_path / 'out'}: file exists\n"


def test_the_tools_run_as_commands(processes, tmp_path, photograph, monkeypatch):
    """The commands of `make demo`, from another folder."""
    monkeypatch.chdir(tmp_path)

    def run_tool(name, *words):
        ended = processes.script(ROOT / "tools" / name, "--config-file", ROOT / "configs/tiny.yaml", *words)
        assert ended.status == 0, ended.stderr
        return ended.stdout

    run_tool("make_rule_weights.py", "--output", "weights")
    opts = ["MODEL.WEIGHTS", "weights/model_final.pth", "MODEL.PROMPT_ENCODER.TOKENIZER", "weights/beit3.spm"]
    words = ["--input", photograph, "--prompts", "cat", "--output", "out", "--opts", *opts]
    assert run_tool("demo.py", *words).startswith("These weights are rule-made")
    assert (tmp_path / "out/chelsea_instance.json").is_file()


def test_a_scene_is_asked_for_everything_in_it_and_a_shape_that_is_not(command, tmp_path, capsys):
    words = command("--scene", 3, "--task", "all", "--stuff", "water", prompts=())
    main([*words, "DATASETS.SHAPES.SIZE", "128", "DATASETS.SHAPES.THING_SIZE", "(30, 60)"])
    assert str(tmp_path / "out/scene3_sheet.png") in capsys.readouterr().out
    scene = render(World(size=128, thing_size=(30, 60)), split_seed(0, "demo"), 3)
    with Image.open(tmp_path / "out/scene3.png") as image:
        assert np.array_equal(np.asarray(image), scene.image)
    asked = json.loads((tmp_path / "out/scene3_panoptic.json").read_text())["categories"]
    assert {category["name"] for category in asked} == {segment.name for segment in scene.segments} | {"circle"}
    sentences = json.loads((tmp_path / "out/scene3_referring.json").read_text())["categories"]
    assert sentences and {sentence["name"] for sentence in sentences} <= set(chain(*expressions(scene).values()))


def test_weights_of_the_shapes_world_warn_once_of_photographs(tmp_path, photograph, shapes_opts, caplog):
    shutil.copy(photograph, tmp_path / "cat.png")
    words = ["--config-file", str(ROOT / "configs/shapes/openworldsam.yaml"), "--prompts", "cat", "--output"]
    for images, times in ((["--input", photograph, tmp_path / "cat.png"], 1), (["--scene", 3], 0)):
        main([*words, str(tmp_path / "out"), *map(str, images), "--opts", *shapes_opts])
        assert caplog.text.count("on a photograph their masks mean nothing") == times
        caplog.clear()


def test_a_bad_scene_is_an_error(command, capsys, exit_status):
    assert exit_status(main, *command("--scene", -1)) == 2
    assert "--scene is 0 or more, got -1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(command("--scene", 1, "--input", "a.png"))
