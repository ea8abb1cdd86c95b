"""What users meet: the command, its errors, states that cannot be used, real data."""

import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from processes import is_running
from trainings import ONE_STEP, adapter_of, assert_same, read_metrics, register, run, train

from openworldsam import cli
from openworldsam.checkpoint import convert_released, convert_to_released, load_weights, read_weights
from openworldsam.config import load_config
from openworldsam.data.loader import training_dataset
from openworldsam.engine.cache_features import build_cache
from openworldsam.engine.train import run_training
from openworldsam.engine.trainer import Trainer
from openworldsam.engine.training_state import newest_state, resume
from openworldsam.evaluation.benchmark import evaluate
from openworldsam.modeling import OpenWorldSAM
from openworldsam.utils.launch import launch
from openworldsam.utils.locking import lock

main = cli.command("train")

ROOT = Path(__file__).parents[2]


def change_records(data, change):
    records = json.loads((data / "records.json").read_text())
    change(records)
    (data / "records.json").write_text(json.dumps(records))


@pytest.fixture
def command(data, tiny_weights, tmp_path, exit_status):
    """Run `openworldsam train` with some words; returns its exit status."""

    def run(*words):
        opts = ["MODEL.WEIGHTS", tiny_weights / "model_final.pth", "DATASETS.TRAIN", [register(data)]]
        opts += ["OUTPUT_DIR", tmp_path / "out", "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", [2], "SOLVER.IMS_PER_BATCH", 2]
        opts += ["MODEL.PROMPT_ENCODER.TOKENIZER", tiny_weights / "beit3.spm", "DATALOADER.NUM_WORKERS", 0]
        flags = [word for word in words if str(word).startswith("--")]
        more = [word for word in words if word not in flags]
        return exit_status(main, "--config-file", ROOT / "configs/tiny.yaml", *flags, *opts, *more)

    return run


def test_the_command_trains_resumes_and_writes_the_adapter_alone(command, tmp_path, capsys):
    output = tmp_path / "out"
    assert command("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", []) == 0
    assert command() == 2
    assert "give --resume, or another OUTPUT_DIR" in capsys.readouterr().err
    assert command("--resume") == 0
    adapter = read_weights(output / "adapter.safetensors")
    assert adapter.components.keys() == {"adapter"} and adapter.metadata["preset"] == "paper"
    assert json.loads(adapter.metadata["sam2"])["file"] == "model_final.pth"
    state = torch.load(output / "state_0000003.pth", weights_only=True)
    assert all(name.startswith("adapter.") for name in state["trained"])
    assert load_config(output / "config.yaml").SOLVER.MAX_ITER == 3


@pytest.mark.parametrize("name", ["log.txt", "metrics.json", "config.yaml", "state_0000009.pth"])
def test_a_pipe_among_the_outputs_is_an_error_and_not_waited_for(command, name, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / name)
    assert command("--resume") == 2
    assert f"{name} " in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "out" / name).is_fifo()


def test_a_dry_run_says_what_would_happen_and_writes_nothing(command, make_cfg, tmp_path, capsys):
    assert command("--dry-run") == 0
    printed = capsys.readouterr().out
    assert "6 images" in printed and "3 (6 images, 1.0 epochs)" in printed and "x 0.1 at 2 (66.7 %)" in printed
    trained = sum(p.numel() for p in Trainer(make_cfg()).model.adapter.parameters())
    assert f"{trained:,} parameters" in printed and "memory       frozen weights 0.0" in printed
    assert command("--dry-run", "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR") == 0
    assert "learning rate 0.0001, along a cosine to 0\n" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["coco/openworldsam", "refcocog/openworldsam_released", "cityscapes/openworldsam"])
def test_a_dry_run_needs_neither_data_nor_weights(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    tiny = load_config(ROOT / "configs/tiny.yaml")
    sizes = [*flat(tiny.MODEL.SAM2, "MODEL.SAM2"), *flat(tiny.MODEL.PROMPT_ENCODER, "MODEL.PROMPT_ENCODER")]
    main(["--config-file", str(ROOT / f"configs/{name}.yaml"), "--dry-run", *sizes, "MODEL.SAM2.WEIGHTS", "no.pt"])
    printed = capsys.readouterr().out
    iterations, steps, rate, _ = SCHEDULES[name]
    epochs = {
        "coco/openworldsam": "25.0 epochs of the published 104,000",
        "refcocog/openworldsam_released": "36.5 epochs of",
        "cityscapes/openworldsam": "15.0 epochs of the published 2,975",
    }
    assert f"{iterations:,} ({8 * iterations:,} images, {epochs[name]}" in printed
    assert f"learning rate {rate:g}," in printed
    assert all(f"{step:,} (" in printed for step in steps)
    assert ": not there (" in printed and "not there: " in printed and "no.pt" in printed


def flat(node, prefix):
    """The keys of a config node and their values, as on a command line."""
    return [word for key, value in node.items() for word in (f"{prefix}.{key}", str(value) or "''")]


def test_a_missing_evaluation_set_is_found_before_the_first_step(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    opts = ["DATASETS.TEST", ["coco_2017_val_panoptic_openworldsam"], "TEST.EVAL_PERIOD", 2]
    assert command(*opts) == 2
    assert "panoptic_val2017.json not found" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("state*"))


def test_a_dry_run_refuses_what_a_training_from_a_cache_would(command, make_cfg, tmp_path, capsys):
    build_cache(make_cfg(), tmp_path / "cache")
    capsys.readouterr()
    run_dry = partial(command, "--dry-run", "DATASETS.FEATURE_CACHE")
    assert run_dry(tmp_path / "cache") == 0 and "of 6 images" in capsys.readouterr().out
    assert run_dry(tmp_path / "none") == 0 and "cache        not there (" in capsys.readouterr().out
    assert run_dry(tmp_path / "cache", "INPUT.FLIP", True) == 2 and "INPUT.FLIP is on" in capsys.readouterr().err


def test_images_without_objects_are_counted_beforehand_and_not_asked(command, data, tmp_path, capsys):
    def forget(records):
        for record in records[:3]:
            record["segments_info"] = []
        for segment in records[3]["segments_info"]:
            segment["iscrowd"] = 1

    change_records(data, forget)
    assert command("--dry-run") == 0
    assert "2 images, 3 prompts; 4 images without an object are passed over" in capsys.readouterr().out
    assert command() == 0
    assert [line["skipped_images"] for line in read_metrics(tmp_path / "out")][-1] == 0
    change_records(data, lambda records: [record.update(segments_info=[]) for record in records])
    for words in (["--dry-run"], ["OUTPUT_DIR", tmp_path / "other"]):
        assert command(*words) == 2
        assert "none of the 6 images of" in capsys.readouterr().err


def test_a_dry_run_counts_what_only_label_images_tell(command, tmp_path, capsys):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for index in range(4):
        Image.new("RGB", (20, 20)).save(tmp_path / f"images/{index}.png")
        Image.new("L", (20, 20), 255 * (index > 0)).save(tmp_path / f"labels/{index}.png")
    (tmp_path / "labels/3.png").write_bytes(b"no picture")
    name = f"void_{tmp_path.name}"
    (tmp_path / "own.yaml").write_text(f"name: {name}\nimages: images\nlabels: labels\nclasses: [a, b]\nignore: 255\n")
    own = ["--dry-run", "DATASETS.OWN", [str(tmp_path / "own.yaml")], "DATASETS.TRAIN", [name]]
    assert command(*own) == 0
    printed = capsys.readouterr().out
    assert "4 images, 1 prompts; 2 images without an object are passed over; the ground truth of 1 images" in printed
    Image.new("L", (20, 20), 255).save(tmp_path / "labels/0.png")
    assert command(*own) == 2 and "none of 4 images has ground truth to learn from" in capsys.readouterr().err


def test_two_trainings_do_not_share_a_folder(command, tmp_path, capsys):
    with lock(tmp_path / "out/.lock", "taken"):
        assert command() == 2
    assert "another training is writing to" in capsys.readouterr().err
    assert command("SOLVER.MAX_ITER", 1, "SOLVER.STEPS", []) == 0


def test_more_processes_than_gpus_is_an_error(command, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert command("--num-gpus=2") == 2
    assert "2 processes need a GPU each, but this machine has 1" in capsys.readouterr().err
    assert command("--num-machines=2") == 2
    assert "need --dist-url" in capsys.readouterr().err


def test_metrics_hold_no_step_twice_after_a_kill(make_cfg, tmp_path):
    cfg = make_cfg("out", "SOLVER.LOG_PERIOD", 1, "SOLVER.CHECKPOINT_PERIOD", 2)
    run(cfg)
    (tmp_path / "out/state_0000006.pth").unlink()  # as if killed after step 6, before its state was written
    with (tmp_path / "out/metrics.json").open("a") as file:
        file.write('{"iteration": 5, "total_l')
    run(cfg, resume=True)
    lines = read_metrics(tmp_path / "out")
    assert [line["iteration"] for line in lines] == list(range(6))


def test_the_first_step_after_resuming_has_the_rate_of_a_changed_schedule(make_cfg, tmp_path):
    drops = ["SOLVER.LOG_PERIOD", 1, "SOLVER.STEPS"]
    run(make_cfg("out", *drops, [4]))
    (tmp_path / "out/state_0000006.pth").unlink()
    run(make_cfg("out", *drops, [3]), resume=True)
    rates = [line["lr"] for line in read_metrics(tmp_path / "out")]
    assert rates == pytest.approx([1e-3] * 3 + [1e-4] * 3)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_stopped_training_logs_no_step_that_it_did_not_make(make_cfg, tmp_path, caplog, steps):
    class Stopped(Trainer):
        def run_step(self):
            if self.iter == steps:
                raise KeyboardInterrupt
            super().run_step()

    with caplog.at_level("INFO", logger="openworldsam.engine.hooks"), pytest.raises(KeyboardInterrupt):
        run_training(Stopped(make_cfg()))
    lines = [record.getMessage() for record in caplog.records if record.name == "openworldsam.engine.hooks"]
    assert [line.split()[0] for line in lines] == ["2/6"] * (steps > 0)
    assert [line["iteration"] for line in read_metrics(tmp_path / "out")] == [1] * (steps > 0)


def test_a_trained_prompt_encoder_is_saved_and_found(make_cfg, tiny_weights, tmp_path):
    cfg = make_cfg("out", "MODEL.PROMPT_ENCODER.TRAINABLE", True)
    before = read_weights(tiny_weights / "model_final.pth").components["beit3"]
    run(cfg)
    trained = read_weights(tmp_path / "out/beit3.safetensors")
    assert trained.components["beit3"].keys() == before.keys()
    assert any(not torch.equal(trained.components["beit3"][name], before[name]) for name in before)
    adapter = read_weights(tmp_path / "out/adapter.safetensors")
    assert json.loads(adapter.metadata["beit3"])["fingerprint"] == trained.source("beit3").fingerprint
    parts = convert_released(tiny_weights / "model_final.pth", tmp_path / "parts")
    opts = ["MODEL.WEIGHTS", str(adapter.path), "MODEL.SAM2.WEIGHTS", str(parts["sam2"])]
    opts += ["MODEL.PROMPT_ENCODER.WEIGHTS", str(trained.path)]
    sources = load_weights(OpenWorldSAM(merged := make_cfg("out", *opts)), merged)
    assert sources["beit3"].file == "beit3.safetensors"


SCHEDULES = {
    "coco/openworldsam": (325_000, [289_250, 312_000], 1e-4, 0.05),
    "coco/openworldsam_released": (500_000, [327_778, 355_092], 1e-4, 0.05),
    "refcocog/openworldsam": (41_061, [36_544, 39_418], 1e-5, 0.05),
    "cityscapes/openworldsam": (5_578, [4_964, 5_354], 1e-5, 0.05),
    "refcocog/openworldsam_released": (100_000, [30_000], 1e-4, 1e-4),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_published_schedules(name):
    solver = load_config(ROOT / f"configs/{name}.yaml").SOLVER
    expected = SCHEDULES[name]
    assert (solver.MAX_ITER, list(solver.STEPS), solver.BASE_LR, solver.WEIGHT_DECAY) == expected
    assert (solver.IMS_PER_BATCH, solver.CLIP_GRADIENTS.CLIP_VALUE, solver.GAMMA) == (8, 0.005, 0.1)
    if name == "coco/openworldsam":
        assert solver.MAX_ITER == 25 * 104_000 // 8
        assert list(solver.STEPS) == [round(0.89 * solver.MAX_ITER), round(0.96 * solver.MAX_ITER)]
    if images := {"refcocog/openworldsam": 21_899, "cityscapes/openworldsam": 2_975}.get(name):
        assert round(15 * images / 8) == solver.MAX_ITER
        assert list(solver.STEPS) == [int(0.89 * solver.MAX_ITER), int(0.96 * solver.MAX_ITER)]


def test_norms_do_not_decay(cfg):
    trainer = Trainer(cfg)
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    free = {names[id(p)] for g in trainer.optimizer.param_groups if not g["weight_decay"] for p in g["params"]}
    assert free == {name for name in names.values() if name.startswith("adapter") and "norm" in name}
    assert isinstance(trainer.optimizer, torch.optim.AdamW)


def test_a_loss_that_is_not_finite_names_the_images(cfg):
    trainer = Trainer(cfg)
    with torch.no_grad():
        trainer.model.adapter.tie_breakers.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"loss is not finite at iteration 0, images: .*\.png, .*\.png"):
        run_training(trainer)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])  # fp16 has a scaler
def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(make_cfg, precision):
    trainer = Trainer(make_cfg("out", "MODEL.PRECISION", precision))
    before = adapter_of(trainer)
    trainer.model.adapter.tie_breakers.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match=r"a gradient is not finite at iteration 0, images: .*\.png"):
        run_training(trainer)
    assert_same(adapter_of(trainer), before)


def test_unreadable_images_are_skipped_and_counted(make_cfg, data, tmp_path):
    (data / "2.png").write_bytes(b"nothing")
    (data / "4_panoptic.png").unlink()
    cfg = make_cfg("out", "SOLVER.LOG_PERIOD", 1)
    run(cfg)
    lines = read_metrics(tmp_path / "out")
    skipped = [name for position in range(12) for name in training_dataset(cfg)[position]["skipped"]]
    assert {Path(name).name for name in skipped} == {"2.png", "4.png"}
    assert lines[-1]["skipped_images"] == len(skipped) >= 4  # 6 steps of 2 images are two epochs


def test_too_large_a_share_of_unreadable_images_stops_the_training(make_cfg, data):
    for name in "2345":
        (data / f"{name}.png").write_bytes(b"nothing")
    opts = ["SOLVER.MAX_ITER", 40, "SOLVER.STEPS", [], "DATALOADER.MAX_SKIPPED"]
    with pytest.raises(ValueError, match=r"could not be read and \d+ could, more than DATALOADER\.MAX_SKIPPED 0\.01"):
        run(make_cfg("out", *opts, 0.01))
    run(make_cfg("all", *opts, 3.0))


def test_too_many_unreadable_images_stop_the_training(make_cfg, data):
    for path in data.glob("*_panoptic.png"):
        path.unlink()
    with pytest.raises(ValueError, match="none of the 6 images can be learnt from: 6 are unreadable"):
        run(make_cfg())


HEAD = ["MODEL.SCORE_HEAD.HIDDEN", 8, "MODEL.CRITERION.SCORE_WEIGHT", 1.0]
ALONE = [*HEAD, "MODEL.ADAPTER.TRAINABLE", False, "MODEL.CRITERION.MASK_WEIGHT", 0.0]


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.IMS_PER_BATCH", 3, "SOLVER.ACCUMULATE", 2], "not divisible by 1 processes x 2"),
        (["SEED", -1], "SEED must be at least 0"),
        (["SOLVER.MAX_ITER", 0], "MAX_ITER must be at least 1"),
        (["SOLVER.ACCUMULATE", 0], "ACCUMULATE must be at least 1"),
        (["SOLVER.STEPS", [9]], "ascend and lie within"),
        (["SOLVER.STEPS", ["1"]], "ascend and lie within"),
        (["SOLVER.STEPS", [1, 1]], "ascend and lie within"),
        (["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.0], "CLIP_VALUE must be above 0"),
        (["SOLVER.BASE_LR", float("inf")], "BASE_LR has no usable value"),
        (["SOLVER.BASE_LR", -1.0], "BASE_LR must be above 0"),
        (["SOLVER.PICTURE_PERIOD", -1], "PICTURE_PERIOD must be at least 0"),
        (
            ["SOLVER.CLIP_GRADIENTS.ENABLED", False],
            "CLIP_GRADIENTS.ENABLED is Detectron2.s and has no effect",
        ),
        (
            ["SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR"],
            "WarmupMultiStepLR, WarmupCosineLR, got 'WarmupSt",
        ),
        (
            ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 1.0],
            "BASE_LR_END is from 0 to 0.001",
        ),
        (["SOLVER.WARMUP_METHOD", "slow"], "WARMUP_METHOD is one of linear, constant, got 'slow'"),
        (["SOLVER.WARMUP_FACTOR", -1.0], "WARMUP_FACTOR is from 0 to 1, got -1"),
        (["OUTPUT_DIR", ""], "OUTPUT_DIR is empty"),
        (["DATASETS.TRAIN", ["nothing"]], "unknown datasets"),
        (["TEST.EVAL_PERIOD", 3], "DATASETS.TEST is empty"),
        (["MODEL.WEIGHTS", ""], "no weights"),
        (["INPUT.NEGATIVES", -1], "INPUT.NEGATIVES must be at least 0"),
        (["INPUT.NEGATIVES", 2], "INPUT.NEGATIVES 2 needs a score head"),
        (["MODEL.SCORE_HEAD.HIDDEN", -8, "MODEL.CRITERION.SCORE_WEIGHT", 1.0], "HIDDEN must be at least 0, got -8"),
        (["MODEL.SCORE_HEAD.HIDDEN", 8], "HIDDEN is 8 and MODEL.CRITERION.SCORE_WEIGHT 0: a training needs both"),
        (
            ["MODEL.CRITERION.SCORE_WEIGHT", 1.0],
            "HIDDEN is 0 and MODEL.CRITERION.SCORE_WEIGHT 1: a training",
        ),
        (["MODEL.CRITERION.SCORE_WEIGHT", -1.0, "MODEL.SCORE_HEAD.HIDDEN", 8], "SCORE_WEIGHT must be at least 0"),
        (["MODEL.ADAPTER.TRAINABLE", False], "ADAPTER.TRAINABLE False trains a score head alone: set"),
        ([*HEAD, "MODEL.ADAPTER.TRAINABLE", False], "score head alone: set .* MASK_WEIGHT 0"),
        (
            [*ALONE, "MODEL.PROMPT_ENCODER.TRAINABLE", True],
            "no MODEL.PROMPT_ENCODER.TRAINABLE",
        ),
        ([*HEAD, "MODEL.CRITERION.MASK_WEIGHT", 0.0], "masks would get worse: set one, or MODEL.ADAPTER.TRAINABLE"),
        (["MODEL.CRITERION.MASK_WEIGHT", 0.0], "masks would get worse"),
        (["MODEL.INFERENCE.SCORE", "match"], "SCORE match needs a score head"),
        (["MODEL.INFERENCE.MATCH_THRESHOLD", 1.5], "MATCH_THRESHOLD is a number from 0 to 1, got 1.5"),
        ([*HEAD, "MODEL.SCORE_HEAD.DROPOUT", 2.0], "DROPOUT from 0 to 1, got 8 and 2.0"),
        (["MODEL.SCORE_HEAD.WEIGHTS", "head.safetensors"], "SCORE_HEAD.WEIGHTS needs MODEL.SCORE_HEAD.HIDDEN"),
    ],
)
def test_settings_that_cannot_be_trained_are_named(make_cfg, opts, message):
    with pytest.raises(ValueError, match=message):
        Trainer(make_cfg("out", *opts))


def test_an_empty_training_set_is_an_error(make_cfg, data):
    change_records(data, list.clear)
    with pytest.raises(ValueError, match="no image"):
        Trainer(make_cfg())


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.ADAPTER.FUSION", "add"], r"another ADAPTER\.FUSION"),
        (["MODEL.ADAPTER.NUM_HEADS", 4], r"another MODEL\.ADAPTER\.NUM_HEADS"),
        (["MODEL.PRECISION", "bf16"], r"another MODEL\.PRECISION"),
        (["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 2.0], r"another SOLVER\.CLIP_GRADIENTS\.CLIP_VALUE"),
        (["PRESET", "improved"], "another preset"),
        (["SOLVER.IMS_PER_BATCH", 3], r"another SOLVER\.IMS_PER_BATCH"),
        (["SEED", 1], "another SEED"),
        (["MODEL.ADAPTER.NUM_LAYERS", 0, "MODEL.WEIGHTS", "ENCODERS"], "NUM_LAYERS"),
    ],
)
def test_a_state_of_another_model_is_refused(make_cfg, tiny_weights, tmp_path, opts, message):
    run(make_cfg("out", "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", []))
    if "ENCODERS" in opts:
        parts = convert_released(tiny_weights / "model_final.pth", tmp_path / "parts")
        opts = [*opts[:2], "MODEL.WEIGHTS", "", "MODEL.SAM2.WEIGHTS", str(parts["sam2"])]
        opts += ["MODEL.PROMPT_ENCODER.WEIGHTS", str(parts["beit3"])]
    trainer = Trainer(make_cfg("out", *opts))
    with pytest.raises(ValueError, match=message):
        resume(trainer)


def test_the_same_images_in_another_order_are_refused(make_cfg, data):
    cfg = make_cfg("out", "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", [])
    run(cfg)
    change_records(data, list.reverse)
    with pytest.raises(ValueError, match="another list of images"):
        resume(Trainer(cfg))


def test_gradients_that_never_become_finite_end_an_fp16_training(make_cfg, tmp_path):
    opts = ["MODEL.PRECISION", "fp16", "SOLVER.MAX_ITER", 30, "SOLVER.STEPS", []]
    trainer = Trainer(make_cfg("out", *opts))
    trainer.model.adapter.tie_breakers.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match=r"not finite up to iteration 16, images: .*\.png"):
        run_training(trainer)
    assert not (tmp_path / "out/adapter.safetensors").exists()


def test_the_progress_line_and_the_events(make_cfg, tmp_path, caplog):
    with caplog.at_level("INFO", logger="openworldsam.engine.hooks"):
        run(make_cfg("out", "SOLVER.LOG_PERIOD", 2))
    lines = [record.getMessage() for record in caplog.records if record.name == "openworldsam.engine.hooks"]
    assert [line.split()[0] for line in lines] == ["2/6", "4/6", "6/6"]
    assert all(word in lines[-1] for word in ("left", "images/s", "loss_mask", "total_loss", "lr ", "gradient norm"))
    assert next((tmp_path / "out").glob("events.out.tfevents.*")).stat().st_size > 0


def launch_both(*args):
    """`train` on two processes that this one starts, all in a session of their own."""
    os.setsid()
    launch(train, num_gpus=2, args=args)


def test_terminating_the_launcher_ends_its_processes(processes, data, tiny_weights, tmp_path):
    opts = ["SOLVER.MAX_ITER", 5000, "SOLVER.STEPS", [], "SOLVER.CHECKPOINT_PERIOD", 1]
    launcher = processes.start(launch_both, data, tiny_weights, tmp_path / "out", opts)
    while newest_state(tmp_path / "out") is None and is_running(launcher.pids[0]):
        time.sleep(0.05)
    launcher.send(signal.SIGTERM)
    (ended,) = launcher.ended()
    assert ended.status == 128 + signal.SIGTERM, ended.stderr
    with pytest.raises(ProcessLookupError):  # its session is soon empty
        for _ in range(200):
            os.killpg(launcher.pids[0], 0)
            time.sleep(0.1)


def test_a_damaged_state_is_refused_by_name(make_cfg, tmp_path):
    cfg = make_cfg("out", "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", [])
    run(cfg)
    path = tmp_path / "out/state_0000001.pth"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state_0000001\.pth cannot be read"):
        resume(Trainer(cfg))
    torch.save({"iteration": 1}, path)
    with pytest.raises(ValueError, match=r"no training state, it lacks generators, optimizer.*delete it"):
        resume(Trainer(cfg))


def test_a_full_disk_while_saving_leaves_the_last_state(make_cfg, tmp_path, monkeypatch):
    cfg = make_cfg("out", "SOLVER.CHECKPOINT_PERIOD", 2)
    save = torch.save

    def fail_later(content, path, *rest):
        if content["iteration"] > 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(content, path, *rest)

    monkeypatch.setattr(torch, "save", fail_later)
    with pytest.raises(OSError, match="No space left"):
        run(cfg)
    monkeypatch.undo()
    assert {p.name for p in (tmp_path / "out").glob("*state*")} == {"state_0000002.pth"}
    resumed = run(cfg, resume=True)
    whole = run(make_cfg("whole"))
    assert_same(resumed, whole)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_resumes(make_cfg, precision):
    opts = ["MODEL.PRECISION", precision]
    whole = run(make_cfg("whole", *opts))
    run(make_cfg("parts", *opts, "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", []))
    resumed = run(make_cfg("parts", *opts), resume=True)
    assert_same(resumed, whole)


def test_pictures_come_along_and_change_nothing(make_cfg, tmp_path):
    plain = run(make_cfg("plain"))
    watched = run(make_cfg("watched", "SOLVER.PICTURE_PERIOD", 2))
    assert_same(watched, plain)
    assert sorted(p.name for p in (tmp_path / "watched/pictures").iterdir()) == [f"000000{n}.png" for n in (2, 4, 6)]
    with Image.open(tmp_path / "watched/pictures/0000002.png") as picture:
        assert picture.width > 100


def test_evaluation_comes_along_and_changes_nothing(make_cfg, coco_sample, tmp_path):
    plain = run(make_cfg("plain"))
    opts = ["DATASETS.TEST", [coco_sample], "TEST.EVAL_PERIOD", 2, "SOLVER.LOG_PERIOD", 1]
    watched = run(make_cfg("watched", *opts))
    assert_same(watched, plain)
    lines = read_metrics(tmp_path / "watched")
    assert {line["iteration"] for line in lines if "coco_sample/PQ" in line} >= {1, 3}


def test_training_on_real_images_lowers_the_loss(make_cfg, coco_sample, data, tmp_path):
    """Loader, mapper, matcher, loss, state, resume and evaluation on real data."""
    opts = ["DATASETS.TRAIN", [coco_sample], "DATASETS.TEST", [coco_sample], "SOLVER.MAX_ITER", 20, "SOLVER.STEPS"]
    opts += [[18], "SOLVER.LOG_PERIOD", 1, "SOLVER.CHECKPOINT_PERIOD", 10, "TEST.EVAL_PERIOD", 20]
    opts += ["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0, "SOLVER.BASE_LR", 0.002]
    cfg = make_cfg("out", *opts)
    run(cfg)
    lines = read_metrics(tmp_path / "out")
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    assert len(losses) == 20
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    trainer = Trainer(cfg)
    resume(trainer)
    assert trainer.start_iter == 20
    results = evaluate(cfg, trainer.model)["coco_sample"]
    assert 0 <= results["panoptic"]["PQ"] <= 100 and results["panoptic"].keys() >= {"SQ", "RQ", "PQ_th", "PQ_st"}
    assert trainer.model.adapter.training


def test_training_starts_afresh_or_from_a_named_adapter(make_cfg, tiny_weights, tmp_path):
    parts = convert_released(tiny_weights / "model_final.pth", tmp_path / "parts")
    encoders = ["MODEL.SAM2.WEIGHTS", str(parts["sam2"]), "MODEL.PROMPT_ENCODER.WEIGHTS", str(parts["beit3"])]
    shipped = read_weights(parts["adapter"]).components["adapter"]["adapter.tie_breakers"]

    def start_of(weights, initial, *more):
        opts = [*encoders, "MODEL.WEIGHTS", weights, "SOLVER.INIT_WEIGHTS", initial, *more]
        return Trainer(make_cfg("out", *opts)).model.adapter.tie_breakers

    assert torch.equal(start_of("", str(parts["adapter"])), shipped)
    assert torch.equal(start_of(str(parts["adapter"]), ""), shipped)
    assert torch.equal(start_of("", str(parts["adapter"]), "MODEL.ADAPTER.NUM_TIE_BREAKERS", 6)[:4], shipped)
    fresh = start_of(str(parts["adapter"]), "fresh")
    assert not torch.equal(fresh, shipped) and torch.equal(fresh, start_of("", ""))


def test_training_may_start_with_more_tie_breakers(make_cfg, tiny_weights, tmp_path):
    cfg = make_cfg("out", "MODEL.ADAPTER.NUM_TIE_BREAKERS", 6, *ONE_STEP)
    start = Trainer(cfg).model.adapter.tie_breakers
    learned = read_weights(tiny_weights / "model_final.pth").components["adapter"]["adapter.tie_breakers"]
    assert torch.equal(start[:4], learned)
    run(cfg)
    trained = read_weights(tmp_path / "out/adapter.safetensors")
    tie_breakers = trained.components["adapter"]["adapter.tie_breakers"]
    assert tie_breakers.shape == start.shape and (tie_breakers != start).any(dim=1).all()
    assert "note" not in trained.metadata  # these are learned
    resume(again := Trainer(cfg))
    assert torch.equal(again.model.adapter.tie_breakers, tie_breakers)


def test_a_training_with_image_layers_resumes_and_its_adapter_fits_no_other_model(
    make_cfg, tiny_weights, tmp_path, caplog
):
    caplog.set_level("INFO", "openworldsam")
    weights = str(tiny_weights / "model_final.pth")
    opts = ["MODEL.WEIGHTS", "", "MODEL.SAM2.WEIGHTS", weights, "MODEL.PROMPT_ENCODER.WEIGHTS", weights]
    opts += ["MODEL.ADAPTER.IMAGE_LAYERS", 2, "SOLVER.STEPS", []]
    whole = run(make_cfg("whole", *opts, "SOLVER.MAX_ITER", 4))
    assert "of them re-inject the image" in caplog.text and whole["image_injection.up.weight"].any()
    run(make_cfg("parts", *opts, "SOLVER.MAX_ITER", 2))
    assert_same(run(make_cfg("parts", *opts, "SOLVER.MAX_ITER", 4), resume=True), whole)
    cfg = make_cfg("whole", *opts, "MODEL.WEIGHTS", str(tmp_path / "whole/adapter.safetensors"))
    load_weights(OpenWorldSAM(cfg), cfg)
    cfg.MODEL.ADAPTER.IMAGE_LAYERS = 0
    with pytest.raises(ValueError, match=r"NUM_LAYERS 3, and MODEL\.ADAPTER\.IMAGE_LAYERS 2\."):
        load_weights(OpenWorldSAM(cfg), cfg)
    with pytest.raises(ValueError, match=r"no place for MODEL\.ADAPTER\.IMAGE_LAYERS"):
        convert_to_released(cfg.MODEL.WEIGHTS, weights, weights, tmp_path / "full.pth")
