"""tools/ablate.py: the whole command, resuming, feature caches, and errors."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openworldsam.ablation import runs
from openworldsam.ablation.command import main
from openworldsam.ablation.runs import VARIANTS, Experiment
from openworldsam.config import load_config
from openworldsam.data.datasets import shapes
from openworldsam.engine.training_state import newest_state

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/shapes/paper.yaml")


def command(tmp_path, opts, *more):
    """Run the command in this process and return its exit status."""
    words = ["--config-file", CONFIG, "--output", tmp_path / "out", "--report", tmp_path / "docs/report.md"]
    try:
        main([*map(str, [*words, *more, "--iterations", 2]), *opts])
    except SystemExit as exited:
        return exited.code
    return 0


def test_one_command_trains_scores_draws_and_reports(opts, tmp_path, capfd):
    """Here each training and evaluation runs in its subprocess, as for users."""
    more = ["--runs", "E1", "E5", "--seeds", "2", "--figures", tmp_path / "docs/images"]
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
    assert "run 4 of 4: E5, seed 43" in capfd.readouterr().out


def test_figures_of_a_given_adapter_need_no_run(opts, tmp_path, calls):
    assert command(tmp_path, opts, "--runs", "E5", "--seeds", "1") == 0
    adapter = tmp_path / "out/E5/seed42/adapter.safetensors"
    assert command(tmp_path / "new", opts, "--runs", "--figures", tmp_path / "images", "--adapter", adapter) == 0
    assert calls == ["train", "evaluate"] and not (tmp_path / "new/docs").exists()
    figures = json.loads((tmp_path / "new/out/figures.json").read_text())
    assert figures[0]["file"] == str(tmp_path / "images/equal_shapes.png") and "(E1)" not in figures[0]["words"]


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
    step = runs.train.Trainer.run_step

    def stopped(self):
        if self.iter == 1:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(runs.train.Trainer, "run_step", stopped)
    assert command(tmp_path, each, *more) == 130
    folder = tmp_path / "out/E5/seed42"
    assert newest_state(folder) and not (folder / "adapter.safetensors").exists()
    monkeypatch.setattr(runs.train.Trainer, "run_step", step)
    assert command(tmp_path, each, *more) == 0
    resumed, whole = (load_file(f / "adapter.safetensors") for f in (folder, tmp_path / "whole/out/E5/seed42"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_one_cache_per_prompt_encoder(opts, tmp_path, calls, monkeypatch):
    monkeypatch.setitem(shapes.SPLITS, "shapes_train", shapes.SPLITS["shapes_train"]._replace(images=4))
    assert command(tmp_path, opts, "--runs", "E3", "text_only", "--seeds", "2", "--feature-cache", "all") == 0
    assert calls == ["cache_features"] * 2 + ["train", "evaluate"] * 4
    headers = [json.loads((tmp_path / f"out/{name}/header.json").read_text()) for name in ("cache", "cache_text_only")]
    assert [header["settings"]["MODEL.PROMPT_ENCODER.USE_IMAGE"] for header in headers] == [True, False]


def test_variants_differ_only_in_their_keys(opts, tmp_path):
    experiment = Experiment(CONFIG, tmp_path, opts=(*opts, "SOLVER.MAX_ITER", "100", "SOLVER.STEPS", "[80,90]"))
    settings = {n: load_config(CONFIG, experiment.options(n, 7)).MODEL for n in VARIANTS}
    adapters = {n: (m.ADAPTER.NUM_TIE_BREAKERS, m.ADAPTER.NUM_LAYERS, m.ADAPTER.FUSION) for n, m in settings.items()}
    full = (3, 3, "replace")
    assert adapters == {"E1": (0, 0, "replace"), "E3": (3, 0, "replace"), "E5": full, "text_only": full} | {
        name: (3, 3, name) for name in ("add", "broadcast")
    }
    assert [n for n, m in settings.items() if not m.PROMPT_ENCODER.USE_IMAGE] == ["text_only"]
    for iterations, steps in ((0, [80, 90]), (20, [16, 18]), (1, [])):
        short = Experiment(CONFIG, tmp_path, opts=experiment.opts, iterations=iterations)
        solver = load_config(CONFIG, short.options("E5", 7)).SOLVER
        assert (solver.MAX_ITER, list(solver.STEPS)) == (iterations or 100, steps)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seeds", "0"], "need --seeds >= 1"),
        (["--benchmarks", "shapes_vall"], "unknown datasets ['shapes_vall']"),
        (["--benchmarks", "shapes_refer_val"], "shapes_refer_val is not scored by PQ, AP and mIoU"),
        (["MODEL.ADAPTER.FUSION", "broadcast"], "MODEL.ADAPTER.FUSION replace"),
        (["NO.SUCH", "1"], "NO.SUCH"),
        (["--runs", "E1", "--figures", "images"], "figures need a trained adapter"),
        (["--figures", "images", "--adapter", "nowhere.safetensors"], "nowhere.safetensors does not exist"),
        (["MODEL.SAM2.WEIGHTS", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_user_errors_are_one_line(opts, tmp_path, capsys, calls, more, message):
    flags = more if more[0].startswith("--") else []
    assert command(tmp_path, [*opts, *([] if flags else more)], *flags) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "docs").exists()


def test_a_run_with_other_settings_is_refused(opts, tmp_path, capsys, calls):
    assert command(tmp_path, opts, "--runs", "E1", "--seeds", "1") == 0
    assert command(tmp_path, (*opts, "SOLVER.BASE_LR", "1e-3"), "--runs", "E1", "--seeds", "1") == 2
    assert "made with another SOLVER.BASE_LR" in capsys.readouterr().err
    assert command(tmp_path, (*opts, "SOLVER.BASE_LR", "1e-3"), "--runs", "E3", "--seeds", "1") == 2
    assert "differ in SOLVER.BASE_LR and cannot be compared" in capsys.readouterr().err


def test_a_failed_process_stops_the_command(processes, opts, tmp_path):
    folders = ["--output", tmp_path / "out", "--report", tmp_path / "report.md"]
    ended = processes.script(ROOT / "tools/ablate.py", *folders, *opts, "MODEL.SAM2.WEIGHTS", "nowhere.pth")
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.status == 2 and len(errors) == 2 and "nowhere.pth" in errors[0]
    assert "engine.train ended with exit status 2" in errors[1]
    assert ended.stdout.count("run ") == 1 and not (tmp_path / "report.md").exists()
