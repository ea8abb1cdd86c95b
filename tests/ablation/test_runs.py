"""`openworldsam ablate`: the whole command, resuming, feature caches, variants of others, and errors."""

import json
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from processes import is_running, run_script
from safetensors.torch import load_file

from openworldsam import cli
from openworldsam.ablation.runs import VARIANTS, Experiment
from openworldsam.config import load_config
from openworldsam.data.datasets import shapes
from openworldsam.engine import train
from openworldsam.engine.training_state import newest_state
from openworldsam.modeling import OpenWorldSAM

main = cli.command("ablate")

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/shapes/paper.yaml")


def command(tmp_path, opts, *more):
    """Run the command in this process and return its exit status; it reports in out/report.md by itself."""
    words = ["--config-file", CONFIG, "--output", tmp_path / "out"]
    words += [] if "--benchmarks" in more else ["--benchmarks", "shapes_val"]
    try:
        main([*map(str, [*words, *more, "--iterations", 2]), *opts])
    except SystemExit as exited:
        return exited.code
    return 0


def test_one_command_trains_scores_draws_and_reports(opts, tmp_path, capfd):
    """Here runs are processes side by side, as for users."""
    more = ["--runs", "E1", "E5", "--seeds", "2", "--workers", "2", "--figures", tmp_path / "docs/images"]
    more += ["--report", tmp_path / "docs/report.md"]
    assert command(tmp_path, opts, *more) == 0, capfd.readouterr().err
    folders = [tmp_path / f"out/{name}/seed{seed}" for name in ("E1", "E5") for seed in (42, 43)]
    states = [load_file(folder / "adapter.safetensors") for folder in folders]
    assert not any("tie_breakers" in name for name in states[0]) and states[2]["adapter.tie_breakers"].shape == (3, 32)
    assert not torch.equal(states[2]["adapter.tie_breakers"], states[3]["adapter.tie_breakers"])
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    assert all(result["benchmarks"].keys() == {"shapes_val"} for result in results)
    report = (tmp_path / "docs/report.md").read_text()
    numbers = [sum(tensor.numel() for tensor in state.values()) for state in states]
    assert all(f"| {number:,} " in report for number in numbers) and "Seeds: 42, 43." in report
    assert "**Tie-breakers** (E3 against E1): PQ not run (paper 35.1 against 0.4)" in report
    for picture in ("report.png", *(f"images/{name}.png" for name in ("equal_shapes", "tie_breakers"))):
        assert f"]({picture})" in report and (tmp_path / "docs" / picture).read_bytes().startswith(b"\x89PNG")
    lines = [line for line in capfd.readouterr().out.splitlines() if " seed " in line]
    assert [line.partition(": started")[0] for line in lines if "started" in line] == [
        *("E1 seed 42", "E5 seed 42", "E1 seed 43", "E5 seed 43")
    ]
    assert len(lines) == 8 and lines[-1].endswith(": finished; all 4 runs are finished")
    assert all("2/2  loss_" in (folder / "console.txt").read_text() for folder in folders)
    assert command(tmp_path, opts, *more, "--dry-run") == 0
    assert capfd.readouterr().out == "all 4 runs are finished\n"


def test_side_by_side_equals_one_by_one(opts, tmp_path, request, capfd):
    more = ["--runs", "E1", "two_stage", "--seeds", "1"]
    assert command(tmp_path / "a", opts, *more, "--workers", "3") == 0, capfd.readouterr().err
    request.getfixturevalue("calls")
    assert command(tmp_path / "b", opts, *more) == 0
    for name in ("E1", "E5", "two_stage"):
        one, other = (tmp_path / f"{folder}/out/{name}/seed42" for folder in "ab")
        results = [json.loads((folder / "results.json").read_text())["benchmarks"] for folder in (one, other)]
        assert results[0] == results[1]
        if name != "two_stage":
            states = [load_file(folder / "adapter.safetensors") for folder in (one, other)]
            assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_figures_of_a_given_adapter_need_no_run(opts, tmp_path, calls, capsys):
    assert command(tmp_path, opts, "--runs", "E5", "--seeds", "1") == 0
    adapter = tmp_path / "out/E5/seed42/adapter.safetensors"
    assert command(tmp_path / "new", opts, "--runs", "--figures", tmp_path / "images", "--adapter", adapter) == 0
    assert calls == ["train", "evaluate"] and not (tmp_path / "new/out/report.md").exists()
    captions = [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(tmp_path / "images"))]
    assert {line.partition(": ")[0] for line in captions} == {str(path) for path in (tmp_path / "images").iterdir()}
    assert len(captions) >= 2 and not any("(E1" in line for line in captions)


def test_finished_work_is_not_repeated(opts, tmp_path, calls):
    assert command(tmp_path, opts, "--runs", "E1", "--seeds", "1") == 0
    assert calls == ["train", "evaluate"]
    folder = tmp_path / "out/E1/seed42"
    before = load_file(folder / "adapter.safetensors")
    assert command(tmp_path, opts, "--runs", "E1", "--seeds", "1") == 0
    assert calls == ["train", "evaluate"]
    assert command(tmp_path, opts, "--runs", "E1", "--seeds", "1", "--benchmarks", "shapes_novel_val") == 0
    assert calls == ["train", "evaluate", "evaluate"]
    assert [*json.loads((folder / "results.json").read_text())["benchmarks"]] == ["shapes_val", "shapes_novel_val"]
    (folder / "adapter.safetensors").unlink()  # as if the training had been stopped
    (folder / "results.json").unlink()
    assert command(tmp_path, opts, "--runs", "E1", "--seeds", "1") == 0
    after = load_file(folder / "adapter.safetensors")
    assert calls[3:] == ["train", "evaluate"] and all(torch.equal(after[name], before[name]) for name in before)


def test_a_stopped_training_is_resumed(opts, tmp_path, calls, monkeypatch):
    more = ["--runs", "E5", "--seeds", "1"]
    each = (*opts, "SOLVER.CHECKPOINT_PERIOD", "1")
    assert command(tmp_path / "whole", each, *more) == 0
    step = train.Trainer.run_step

    def stopped(self):
        if self.iter == 1:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(train.Trainer, "run_step", stopped)
    assert command(tmp_path, each, *more) == 130
    folder = tmp_path / "out/E5/seed42"
    assert newest_state(folder) and not (folder / "adapter.safetensors").exists()
    monkeypatch.setattr(train.Trainer, "run_step", step)
    assert command(tmp_path, each, *more) == 0
    resumed, whole = (load_file(f / "adapter.safetensors") for f in (folder, tmp_path / "whole/out/E5/seed42"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_one_cache_per_prompt_encoder(opts, tmp_path, calls, monkeypatch):
    monkeypatch.setitem(shapes.SPLITS, "shapes_train", shapes.SPLITS["shapes_train"]._replace(images=4))
    assert command(tmp_path, opts, "--runs", "E3", "text_only", "--seeds", "2", "--feature-cache", "all") == 0
    assert calls == ["cache"] * 2 + ["train", "evaluate"] * 4
    more = ["--runs", "two_stage", "--seeds", "1", "--workers", "2", "--feature-cache", "all"]
    assert command(tmp_path, opts, *more) == 0
    assert calls[10:] == ["cache"] * 2 + ["train", "evaluate", "evaluate"]  # a part for each worker
    headers = [json.loads((tmp_path / f"out/{name}/header.json").read_text()) for name in ("cache", "cache_text_only")]
    assert [header["settings"]["MODEL.PROMPT_ENCODER.USE_IMAGE"] for header in headers] == [True, False]


def test_a_variant_of_another_brings_it_along_and_scores_its_adapter(opts, tmp_path, calls, monkeypatch):
    assert command(tmp_path, opts, "--runs", "E2", "--seeds", "2") == 0
    assert calls == ["train", "evaluate"] * 2 + ["evaluate"] * 2
    folders = [tmp_path / f"out/{name}/seed43" for name in ("E3", "E2")]
    assert not (folders[1] / "adapter.safetensors").exists()
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    assert results[0]["weights"]["adapter"] == results[1]["weights"]["adapter"] and "beit3" not in results[1]["weights"]
    assert results[0]["benchmarks"] != results[1]["benchmarks"]
    rows = filter(re.compile(r"\| \*\*E\d\*\*:").match, (tmp_path / "out/report.md").read_text().splitlines())
    columns = {row.split("**")[1]: [word.strip() for word in row.split("|")][2:7] for row in rows}
    assert columns["E2"][:2] == columns["E3"][:2] and columns["E2"] != columns["E3"] and columns["E5"][1] == "0"
    assert command(tmp_path, opts, "--runs", "E2", "--seeds", "2") == 0 and len(calls) == 6
    assert command(tmp_path, (*opts, "SOLVER.BASE_LR", "1e-3"), "--runs", "E2", "--seeds", "2") == 2


def test_a_prompt_encoder_in_training_has_no_cache_and_is_scored_as_trained(opts, tmp_path, calls, monkeypatch):
    monkeypatch.setitem(shapes.SPLITS, "shapes_train", shapes.SPLITS["shapes_train"]._replace(images=4))
    assert command(tmp_path, opts, "--runs", "E3", "E4", "--seeds", "1", "--feature-cache", "all") == 0
    assert calls == ["cache", *["train", "evaluate"] * 2] and not (tmp_path / "out/cache_E4").exists()
    folders = [tmp_path / f"out/{name}/seed42" for name in ("E3", "E4")]
    frozen, trained = (json.loads((folder / "results.json").read_text())["weights"]["beit3"] for folder in folders)
    assert trained["note"] == "trained together with the adapter" and frozen["fingerprint"] != trained["fingerprint"]
    report = (tmp_path / "out/report.md").read_text()
    for folder in folders:
        model = OpenWorldSAM(load_config(folder / "config.yaml"))
        assert f" | {sum(p.numel() for p in model.parameters() if p.requires_grad):,} " in report


def test_more_queries_than_trained_are_drawn(opts, tmp_path, calls):
    assert command(tmp_path, opts, "--runs", "E5_more_queries", "--seeds", "1") == 0
    results = json.loads((tmp_path / "out/E5_more_queries/seed42/results.json").read_text())
    assert "4 of 7 tie-breakers are drawn" in results["weights"]["adapter"]["note"]
    row = next(r for r in (tmp_path / "out/report.md").read_text().splitlines() if r.startswith("| **E5_more"))
    tensors = load_file(tmp_path / "out/E5/seed42/adapter.safetensors").values()
    assert row.split("|")[2].strip() == f"{sum(tensor.numel() for tensor in tensors):,}"


def test_variants_differ_only_in_their_keys(opts, tmp_path):
    experiment = Experiment(
        CONFIG, tmp_path, ("shapes_val",), (*opts, "SOLVER.MAX_ITER", "100", "SOLVER.STEPS", "[80,90]")
    )
    settings = {n: load_config(CONFIG, experiment.options(n, 7)).MODEL for n in VARIANTS}
    adapters = {n: (m.ADAPTER.NUM_TIE_BREAKERS, m.ADAPTER.NUM_LAYERS, m.ADAPTER.FUSION) for n, m in settings.items()}
    full = (3, 3, "replace")
    assert adapters == {"E1": (0, 0, "replace"), "E3": (3, 0, "replace"), "E5": full, "text_only": full} | {
        **{"E4": (3, 0, "replace"), "E6": full},
        **{"clip_text": full, "clip_late_fusion": full},
        **{name: (3, 3, name) for name in ("add", "broadcast")},
        "focal_alone": full,
        **{"E2": (3, 0, "replace"), "two_stage": full, "E5_more_queries": (7, 3, "replace")},
    }
    assert [n for n, m in settings.items() if not m.PROMPT_ENCODER.USE_IMAGE] == ["text_only"]
    encoders = {"clip_text": "CLIPTextEncoder", "clip_late_fusion": "CLIPLateFusionEncoder", "E2": "ZeroPromptEncoder"}
    assert all(encoders.get(n, "BEiT3PromptEncoder") == m.PROMPT_ENCODER.NAME for n, m in settings.items())
    assert [n for n, m in settings.items() if m.PROMPT_ENCODER.TRAINABLE] == ["E4", "E6"]
    assert [n for n, m in settings.items() if m.INFERENCE.TWO_STAGE] == ["two_stage"]
    assert [n for n, m in settings.items() if not m.CRITERION.DICE_WEIGHT] == ["focal_alone"]
    for iterations, steps in ((0, [80, 90]), (20, [16, 18]), (1, [])):
        short = Experiment(CONFIG, tmp_path, ("shapes_val",), experiment.opts, iterations)
        solver = load_config(CONFIG, short.options("E5", 7)).SOLVER
        assert (solver.MAX_ITER, list(solver.STEPS)) == (iterations or 100, steps)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seeds", "0"], "need --seeds >= 1"),
        (["--report", "report.json"], "report.json must be a .md file"),
        (["--workers", "0"], "need --workers >= 1, got 0"),
        (["--benchmarks", "shapes_vall"], "unknown datasets ['shapes_vall']"),
        (["--benchmarks", "shapes_refer_val"], "shapes_refer_val is not scored by PQ, AP and mIoU"),
        (["MODEL.ADAPTER.FUSION", "broadcast"], "MODEL.ADAPTER.FUSION replace"),
        (["NO.SUCH", "1"], "NO.SUCH"),
        (["--runs", "clip_text"], "clip_text needs output/shapes/clip, which openworldsam pretrain clip makes"),
        (["--runs", "E1", "--figures", "images"], "figures need a trained adapter"),
        (["--figures", "images", "--adapter", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
        (["MODEL.SAM2.WEIGHTS", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_user_errors_are_one_line(opts, tmp_path, capsys, calls, more, message):
    flags = more if more[0].startswith("--") else []
    assert command(tmp_path, [*opts, *([] if flags else more)], *flags) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out/report.md").exists()


def test_a_run_with_other_settings_is_refused(opts, tmp_path, capsys, calls):
    assert command(tmp_path, opts, "--runs", "E1", "--seeds", "1") == 0
    assert command(tmp_path, (*opts, "DATASETS.HELD_OUT", "[]"), "--runs", "E1", "--seeds", "1") == 0
    assert command(tmp_path, (*opts, "SOLVER.BASE_LR", "1e-3"), "--runs", "E1", "--seeds", "1") == 2
    assert "made with another SOLVER.BASE_LR" in capsys.readouterr().err
    done = len(calls)
    assert command(tmp_path, (*opts, "SOLVER.BASE_LR", "1e-3"), "--runs", "E3", "--seeds", "1") == 2
    assert "E1 and E3" in (error := capsys.readouterr().err) and "differ in SOLVER.BASE_LR" in error
    assert len(calls) == done  # nothing was trained for it


def test_a_failed_run_stops_the_command_and_is_named(processes, opts, tmp_path):
    folders = ["--output", tmp_path / "out", "--report", tmp_path / "report.md"]
    ended = processes.script(ROOT / "tools/ablate.py", *folders, *opts, "MODEL.SAM2.WEIGHTS", "nowhere.pth")
    (error,) = ended.stderr.splitlines()
    assert ended.status == 2 and error.startswith("error: E1 seed 42 failed: weight file nowhere.pth not found")
    assert "36 of 36 runs remain; no run has measured yet how long they take\n" in ended.stdout
    assert ended.stdout.count(" seed ") == 1 and not (tmp_path / "report.md").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_leaves_no_process_and_continues(processes, opts, tmp_path, capsys, number, status):
    """Stopped within two trainings, which save every step."""
    words = ["--config-file", CONFIG, "--output", tmp_path, "--runs", "E1", "E3", "--seeds", "1", "--workers", "2"]
    words = [*map(str, words), "--iterations", "900", *opts, "SOLVER.CHECKPOINT_PERIOD", "1"]
    started = processes.start(run_script, str(ROOT / "tools/ablate.py"), *words)
    folders = [tmp_path / f"{name}/seed42" for name in ("E1", "E3")]
    while not all(map(newest_state, folders)):
        time.sleep(0.01)
    children = Path(f"/proc/{started.pids[0]}/task/{started.pids[0]}/children").read_text().split()
    started.send(number)
    (ended,) = started.ended()
    assert ended.status == status and len(children) == 2 and not any(map(is_running, children))
    main([*words, "--dry-run"])
    done = [int(newest_state(folder).stem[-7:]) for folder in folders]
    found = ", ".join(f"E{2 * n + 1} seed 42 at {done[n]} of 900 iterations" for n in range(2))
    assert capsys.readouterr().out.startswith(f"2 of 2 runs remain ({found})")
