"""`openworldsam evaluate`: its files and errors, several processes, and the same code during training."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from trainings import assert_same, read_metrics, run

from openworldsam import cli
from openworldsam.checkpoint import load_weights
from openworldsam.config import load_config
from openworldsam.engine.checks import check_evaluation, check_training
from openworldsam.evaluation.benchmark import evaluate
from openworldsam.evaluation.paper_tables import with_tables
from openworldsam.evaluation.saved import Saving
from openworldsam.modeling import OpenWorldSAM

main = cli.command("evaluate")
parse_args = partial(cli.parse, "evaluate")
score_predictions = cli.command("score")

ROOT = Path(__file__).parents[2]
SHAPES = ["shapes_val", "shapes_novel_val", "shapes_refer_val", "shapes_absent_val"]


def options(tiny_weights, *more):
    opts = ["MODEL.WEIGHTS", tiny_weights / "model_final.pth", "DATASETS.SHAPES.SIZE", 64, "DATASETS.SHAPES.THING_SIZE"]
    opts += [[10, 40], "MODEL.PROMPT_ENCODER.TOKENIZER", tiny_weights / "beit3.spm", "DATALOADER.NUM_WORKERS", 0]
    return [*map(str, [*opts, "TEST.MAX_IMAGES", 3]), *more]


@pytest.fixture
def command(exit_status):
    """Run `openworldsam evaluate`; returns its exit status."""

    def run(output, benchmarks, opts):
        chosen = ["--benchmarks", *benchmarks] if benchmarks else []
        return exit_status(main, "--config-file", ROOT / "configs/tiny.yaml", *chosen, "--output", output, *opts)

    return run


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_the_file_and_the_table(command, tiny_weights, tmp_path, capsys, coco_sample):
    assert command(tmp_path, [*SHAPES, coco_sample], options(tiny_weights)) == 0
    results = results_of(tmp_path)
    told = {"preset": "paper", "protocol": "oracle", "sentences": "first", "num_absent": 0, "prompt_caps": False}
    told |= {"template": "{name}", "first_synonym": False, "readable_names": False}
    told |= {"missing": {}, "score": {"rule": "iou", "threshold": 0.3, "origin": "config"}}
    assert results["paper"] == {"row": None, "tuned_on": "", "reason": "MODEL.SAM2.IMAGE_SIZE is 128, the paper's 1024"}
    assert results.keys() == {"benchmarks", "paper", *told, "weights", "versions", "command", "seconds"}
    assert {key: results[key] for key in told} == told and results["seconds"] > 0
    assert results["weights"].keys() == {"sam2", "beit3", "adapter"}
    assert results["weights"]["adapter"].keys() == {"file", "layout", "fingerprint", "note", "trained_on"}
    assert results["versions"]["torch"] == torch.__version__.split("+")[0] and all(results["versions"].values())
    assert results["command"].startswith("openworldsam evaluate --config-file")
    segmentation = {"panoptic": "PQ", "instance": "AP", "semantic": "mIoU"}
    tasks = dict.fromkeys([*SHAPES, coco_sample], segmentation) | {
        "shapes_refer_val": {"referring": "cIoU"},
        "shapes_absent_val": {**segmentation, "absent": "false_positive_rate", "concept": "pmF1"},
    }
    printed = capsys.readouterr().out
    assert results["benchmarks"].keys() == tasks.keys()
    for name, content in results["benchmarks"].items():
        assert content.keys() == {*tasks[name], "protocol", "images", "dataset_images", "skipped", "remarks"}
        assert (content["images"], content["skipped"]) == (3, {})
        assert content["dataset_images"] == (3 if name == coco_sample else 500)
        assert content["protocol"] == ("present+absent" if name == "shapes_absent_val" else "oracle")
        for task, metric in tasks[name].items():
            assert 0 <= content[task][metric] <= 100
            assert f"{task} {metric}" in printed
    assert "\nscore: iou, threshold 0.3 (config)\n" in printed
    assert f"\nexposure to {coco_sample} is unknown: not a public benchmark\n" in printed
    assert not list(tmp_path.glob(".*.part"))


def test_overrides_may_follow_the_names_of_benchmarks():
    plain, names = ["--config-file", "c", "--output", "o"], ["a.b", "REEF", "SEED"]
    opts = ["TEST.PROTOCOL", "global", "MODEL.WEIGHTS", "a"]
    for words in (["--benchmarks", *names, *opts, *plain], [*plain, "--benchmarks", *names, *opts]):
        args = parse_args(words)
        assert (args.benchmarks, args.opts) == (names, opts)
    assert parse_args([*plain, *opts]).opts == opts
    assert parse_args(plain).benchmarks == parse_args([*plain, "--benchmarks", *names]).opts == []


def test_a_table_of_the_paper_names_its_benchmarks(command, tiny_weights, tmp_path, capsys, monkeypatch):
    assert with_tables(["table1", "reef_val", "pascal_voc_20_val"]) == [
        "ade20k_150_panoptic_val",
        "ade20k_100_instance_val",
        "ade20k_150_val",
        "ade20k_847_val",
        "pascal_voc_20_val",
        "pascal_context_59_val",
        "pascal_context_459_val",
        "sun_rgbd_37_val",
        "scannet_20_val",
        "scannet_20_panoptic_val",
        "scannet_40_val",
        "reef_val",
    ]
    assert with_tables(["table3"]) == ["refcocog_umd_val"] and "cityscapes_19_panoptic_val" in with_tables(["table8"])
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    assert command(tmp_path, ["table1", "shapes_val"], options(tiny_weights)) == 2  # the others are not there
    results = results_of(tmp_path)
    assert results["benchmarks"].keys() == {"shapes_val"} and results["missing"].keys() == set(with_tables(["table1"]))


def test_a_damaged_benchmark_takes_no_other_with_it(command, tiny_weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "cityscapes").mkdir()
    (tmp_path / "cityscapes/panoptic_val.json").write_text('{"images": [')
    assert command(tmp_path, ["cityscapes_19_panoptic_val", "shapes_val"], options(tiny_weights)) == 2
    assert "error: cityscapes_19_panoptic_val is left out: " in capsys.readouterr().err
    results = results_of(tmp_path)
    assert results["benchmarks"].keys() == {"shapes_val"} and "is not json" in str(results["missing"])


def test_the_config_names_the_datasets_and_the_seed_the_scenes(command, tiny_weights, tmp_path):
    found = []
    for seed in (0, 0, 1):
        opts = options(tiny_weights, "DATASETS.TEST", ["shapes_refer_val"], "DATASETS.SHAPES_SEED", seed)
        assert command(tmp_path, (), opts) == 0
        found.append(results_of(tmp_path)["benchmarks"]["shapes_refer_val"])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("benchmarks", "opts", "message"),
    [
        (["shapes_vall"], [], "unknown datasets ['shapes_vall']"),
        ((), [], "DATASETS.TEST is empty"),
        (["shapes_val"], ["TEST.PROTOCOL", "all"], "TEST.PROTOCOL is one of"),
        (["shapes_val"], ["DATASETS.SHAPES.SIZE", "8"], "DATASETS.SHAPES.SIZE must be"),
        (["shapes_val"], ["MODEL.WEIGHTS", "nowhere.pth"], "nowhere.pth"),
        (["shapes_val"], ["NO.SUCH", "1"], "NO.SUCH"),
        (["coco_2017_val_panoptic_openworldsam"], [], "panoptic_val2017.json not found"),
    ],
)
def test_errors_of_the_user_are_one_line(
    command, tiny_weights, tmp_path, capsys, monkeypatch, benchmarks, opts, message
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    assert command(tmp_path / "out", benchmarks, options(tiny_weights, *opts)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not (tmp_path / "out/results.json").exists()


def evaluate_own_share(opts, folder=None):
    """What each process of an evaluation runs."""
    cfg = load_config(ROOT / "configs/tiny.yaml", opts)
    check_evaluation(cfg)
    model = OpenWorldSAM(cfg)
    load_weights(model, cfg)
    return evaluate(cfg, model.eval(), Saving(Path(folder), {}) if folder else None)


def test_two_processes_find_what_one_finds(processes, tiny_weights):
    opts = options(tiny_weights, "DATASETS.TEST", str(["shapes_absent_val", "shapes_refer_val"]))
    two, nothing = processes.values(evaluate_own_share, opts, processes=2)
    one = evaluate_own_share(opts)
    assert nothing == {} and two == one and one["shapes_absent_val"]["images"] == 3


def test_two_processes_save_what_one_saves(processes, tiny_weights, tmp_path):
    opts = options(tiny_weights, "DATASETS.TEST", str(["shapes_absent_val", "shapes_refer_val"]))
    processes.values(evaluate_own_share, opts, tmp_path / "two", processes=2)
    evaluate_own_share(opts, tmp_path / "one")
    files = [{p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in ("one", "two")]
    assert files[0] == files[1] and len(files[0]) > 20


def test_saved_predictions_make_a_second_run_the_same_and_another_model_an_error(
    command, tiny_weights, tmp_path, capsys
):
    opts = ["--save-predictions", *options(tiny_weights)]
    assert command(tmp_path, ["shapes_val"], opts) == 0
    first = results_of(tmp_path)["benchmarks"]
    folder = tmp_path / "predictions/shapes_val"
    jsons = [f"--{key}={folder / kind / 'panoptic.json'}" for key, kind in (("gt", "truth"), ("pred", "prediction"))]
    score_predictions(["--task", "panoptic", *jsons, f"--output={tmp_path / 'scores.json'}"])
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert all(scores[metric] == first["shapes_val"]["panoptic"][metric] for metric in ("PQ", "SQ", "RQ"))
    assert command(tmp_path, ["shapes_val"], [*opts, "MODEL.MASK_DECODER.CHUNK", 7]) == 0
    assert results_of(tmp_path)["benchmarks"] == first
    assert command(tmp_path, ["shapes_val"], [*opts, "MODEL.INFERENCE.SCORE_THRESHOLD", 0.2]) == 2
    assert "made with other MODEL" in capsys.readouterr().err


def test_training_on_shapes_is_the_same_with_evaluation_and_without(tiny_weights, tmp_path):
    def train(name, *more):
        opts = options(tiny_weights, "DATASETS.TRAIN", ["shapes_train"], "OUTPUT_DIR", str(tmp_path / name))
        opts += ["SOLVER.MAX_ITER", 3, "SOLVER.STEPS", [], "SOLVER.IMS_PER_BATCH", 2, "SOLVER.LOG_PERIOD", 1]
        cfg = load_config(ROOT / "configs/tiny.yaml", [*opts, *more])
        check_training(cfg)
        return run(cfg)

    plain = train("plain")
    watched = train("watched", "DATASETS.TEST", SHAPES, "TEST.EVAL_PERIOD", 2)
    assert_same(watched, plain)
    lines = read_metrics(tmp_path / "watched")
    evaluated = next(line for line in lines if "shapes_val/PQ" in line)
    wanted = {
        "shapes_val/AP",
        "shapes_novel_val/mIoU",
        "shapes_refer_val/cIoU",
        "shapes_absent_val/false_positive_rate",
    }
    assert evaluated.keys() >= wanted and evaluated["iteration"] == 1
