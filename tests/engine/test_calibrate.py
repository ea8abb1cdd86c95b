"""`openworldsam calibrate`: its files, thresholds in the weights and who says them, several processes, and errors."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from openworldsam import cli
from openworldsam.checkpoint import load_weights, read_weights, save_component, score_rule
from openworldsam.config import load_config
from openworldsam.engine.checks import check_evaluation
from openworldsam.evaluation.calibration import calibrate
from openworldsam.evaluation.summary import score_line
from openworldsam.modeling import OpenWorldSAM
from openworldsam.report.calibration import read_calibration
from openworldsam.report.command import build_report
from openworldsam.report.evaluations import read_evaluations

evaluate = cli.command("evaluate")
main = cli.command("calibrate")
parse_args = partial(cli.parse, "calibrate")

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/shapes/paper.yaml"
HEAD = ["MODEL.SCORE_HEAD.HIDDEN", "8"]


@pytest.fixture(scope="module")
def untrained_head(tmp_path_factory, shapes_opts):
    """File of a score head that has learned nothing, for the adapter that ships."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("head") / "score_head.safetensors"
    save_component(OpenWorldSAM(load_config(CONFIG, [*shapes_opts, *HEAD])), "score_head", path, note="untrained")
    return path


@pytest.fixture
def opts(shapes_opts, untrained_head, tmp_path):
    """Overrides for three scenes of each split and a copy of the head."""
    head = shutil.copy(untrained_head, tmp_path / "head.safetensors")
    opts = [*shapes_opts, *HEAD, "MODEL.SCORE_HEAD.WEIGHTS", str(head), "MODEL.INFERENCE.SCORE", "match"]
    return [*opts, "TEST.MAX_IMAGES", "3", "DATALOADER.NUM_WORKERS", "0"]


@pytest.fixture
def command(exit_status, tmp_path):
    return lambda *words: exit_status(main, "--config-file", CONFIG, "--output", tmp_path / "out", *words)


def test_the_files_the_thresholds_and_who_says_them(command, opts, tmp_path, capsys, exit_status):
    head, out = tmp_path / "head.safetensors", tmp_path / "out"
    tensors, metadata = read_weights(head).components, read_weights(head).metadata
    assert command("--store", *opts) == 0
    printed = capsys.readouterr().out
    content = json.loads((out / "calibration.json").read_text())
    assert content["datasets"] == ["shapes_held_out", "shapes_crowd_held_out"]
    assert (content["protocol"], content["images"]) == ("present+absent", 6)
    assert list(content["scores"]) == ["iou", "match", "product"] and content["weights"].keys() >= {"score_head"}
    for rule, found in content["scores"].items():
        assert 0 < found["ece"] < 1 and 0 < found["f1"] < 1 and f"{rule}: ece {found['ece']:.3f}, auc " in printed
    assert 0 < content["right"] < content["queries"] and content["true_masks"] > 3
    assert Image.open(out / "calibration.png").size[0] > 1000
    stored = read_weights(head)
    thresholds = {rule: content["scores"][rule]["threshold"] for rule in ("match", "product")}
    assert stored.thresholds == thresholds and stored.metadata.items() >= metadata.items()
    torch.testing.assert_close(stored.components, tensors, rtol=0, atol=0)

    status = exit_status(evaluate, "--config-file", CONFIG, "--benchmarks", "shapes_held_out", "--output", out, *opts)
    line = f"score: match, threshold {thresholds['match']:g} (stored with the weights)"
    assert status == 0 and f"\n{line}\n" in capsys.readouterr().out
    score = json.loads((out / "results.json").read_text())["score"]
    assert score_line(score) == line
    page = build_report(read_evaluations([out]), images=0)
    assert line in page and "Calibration" in page and "match score" in page
    assert f"shapes_held_out, shapes_crowd_held_out, present+absent: 6 images, {content['queries']} queries" in page
    (out / "calibration.json").unlink()
    assert "Calibration" not in build_report(read_evaluations([out]), images=0)


def loaded(*opts):
    cfg = load_config(CONFIG, [*map(str, opts)])
    model = OpenWorldSAM(cfg)
    load_weights(model, cfg)
    return model, cfg


def test_where_a_threshold_comes_from(opts, capsys):
    assert score_line(score_rule(*loaded(*opts))) == "score: match, threshold 0.5 (not calibrated)"
    given = score_rule(*loaded(*opts, "MODEL.INFERENCE.MATCH_THRESHOLD", 0.25))
    assert score_line(given) == "score: match, threshold 0.25 (config)"
    paper = score_rule(*loaded(*opts, "MODEL.INFERENCE.SCORE", "iou"))
    assert score_line(paper) == "score: iou, threshold 0.7 (config)"


def test_predictions_of_another_stored_threshold_are_not_mixed(command, opts, tmp_path, exit_status, capsys):
    words = ["--config-file", CONFIG, "--benchmarks", "shapes_absent_val", "--output", tmp_path / "run"]
    words += ["--save-predictions", *opts, "TEST.MAX_IMAGES", "1"]
    assert exit_status(evaluate, *words) == 0 == exit_status(evaluate, *words)
    assert command("--store", *opts) == 0
    assert exit_status(evaluate, *words) == 2
    assert "made with other threshold; use another --output" in capsys.readouterr().err


def calibrate_own_share(opts):
    """What each process of the command runs."""
    model, cfg = loaded(*opts, "DATASETS.TEST", "['shapes_held_out']")
    check_evaluation(cfg)
    found = calibrate(cfg, model)
    return found and found.content()


def test_two_processes_find_what_one_finds(processes, opts):
    two, nothing = processes.values(calibrate_own_share, opts, processes=2)
    assert nothing is None and two == calibrate_own_share(opts) and two["images"] == 3


def test_without_a_head_the_predicted_iou_alone_is_calibrated(command, paper_opts, tmp_path):
    assert command(*paper_opts, "TEST.MAX_IMAGES", 1, "DATALOADER.NUM_WORKERS", 0) == 0
    content = json.loads((tmp_path / "out/calibration.json").read_text())
    assert list(content["scores"]) == ["iou"] and content["queries"] > content["right"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL.INFERENCE.SCORE", "match", *HEAD], "has no score head, so MODEL.INFERENCE.SCORE match"),
        (["--store"], "there is no score head to store thresholds with"),
        (["DATASETS.HELD_OUT", "[]"], "nothing to calibrate on: DATASETS.HELD_OUT is empty"),
        (["DATASETS.HELD_OUT", "['shapes_val']", "--store"], "shapes_val is also trained or tested on"),
        (["DATASETS.HELD_OUT", "['nowhere']"], "unknown datasets ['nowhere']"),
        (["DATASETS.HELD_OUT", "['coco_2017_train_panoptic_held_out']"], "held_out.json not found"),
    ],
)
def test_errors_of_the_user_are_one_line(command, paper_opts, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    assert command(*paper_opts, *words) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not (tmp_path / "out/calibration.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"scores": {"beauty": {}}},
        {"scores": {"iou": {"ece": None}}},
        {"scores": {}},
        {"scores": []},
        {"images": "3"},
        {"queries": 10**400},
        {"datasets": [3]},
        {"protocol": "half a pair \ud800"},
    ],
)
def test_a_damaged_calibration_is_one_line(tmp_path, change):
    bins = [{"queries": 1, "right": 1, "score": 0.5, "iou": 1.0}]
    scores = {"iou": {"ece": 0.5, "auc": None, "threshold": None, "f1": 0.0, "bins": bins}}
    good = {"images": 1, "queries": 1, "right": 1, "datasets": ["a"], "protocol": "oracle", "scores": scores}
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(good))
    assert read_calibration(tmp_path) == good
    path.write_text(json.dumps({**good, **change}))
    with pytest.raises(ValueError, match=r"calibration\.json is not what openworldsam calibrate writes; calibrate"):
        read_calibration(tmp_path)
