"""Remaining runs of an experiment and the time they take, from made-up times."""

import json
from pathlib import Path

import pytest

from openworldsam.ablation.remaining import duration, remaining
from openworldsam.ablation.runs import Experiment

CONFIG = str(Path(__file__).parents[2] / "configs/shapes/paper.yaml")
BENCHMARKS = ("shapes_val", "shapes_novel_val")


def fill(folder, times=(), state=0, trained=False, seconds=0, benchmarks=BENCHMARKS):
    """Write what a run leaves: logged seconds per iteration, a state, an adapter, and an evaluation's seconds."""
    folder.mkdir(parents=True)
    lines = [{"iteration": 20 * n, "time": each} for n, each in enumerate(times)]
    (folder / "metrics.json").write_text('{"iteration": 0}\n' + "\n".join(map(json.dumps, lines)) + '\n{"iter')
    if state:
        (folder / f"state_{state:07d}.pth").touch()
    if trained:
        (folder / "adapter.safetensors").touch()
    if seconds:
        content = {"benchmarks": {name: {} for name in benchmarks}, "seconds": seconds}
        (folder / "results.json").write_text(json.dumps(content))


def say(folder, names=("E1", "E5"), workers=1, seeds=(42,), features=""):
    experiment = Experiment(CONFIG, folder, BENCHMARKS, ("MODEL.WEIGHTS", ""), 1000, features)
    return remaining(experiment, [(name, seed) for seed in seeds for name in names], workers)


def test_nothing_measured(tmp_path):
    assert say(tmp_path) == "2 of 2 runs remain; no run has measured yet how long they take"


def test_times_of_the_variant_or_of_all(tmp_path):
    fill(tmp_path / "E1/seed42", times=(1.0, 2.0, 3.0), trained=True, seconds=240)  # 2 s an iteration, 120 a benchmark
    fill(tmp_path / "E5/seed42", times=(6.0,), state=250)
    # E5 seed 42: 750 x 6 + 2 x 120 = 4740 s; E1 seed 43: 1000 x 2 + 240 = 2240; E5 seed 43: 6240; together 13220 s
    found = "3 of 4 runs remain (E5 seed 42 at 250 of 1,000 iterations), about "
    assert say(tmp_path, seeds=(42, 43)) == f"{found}3 h 40 min with 1 worker"
    # two workers: E5 seed 42 beside E1 seed 43, which ends first, then E5 seed 43: 2240 + 6240 = 8480 s
    assert say(tmp_path, workers=2, seeds=(42, 43)) == f"{found}2 h 21 min with 2 workers"
    # E3: mean of what both variants measured, 4 s: 4000 + 240 s
    assert say(tmp_path, names=("E1", "E3")) == "1 of 2 runs remain, about 1 h 11 min with 1 worker"


def test_an_evaluation_that_nobody_has_measured_is_not_left_out_silently(tmp_path):
    fill(tmp_path / "E1/seed42", times=(0.06,), state=1000, trained=True)
    begun = "2 of 2 runs remain (E1 seed 42 at 1,000 of 1,000 iterations)"
    assert say(tmp_path) == f"{begun}, more than 1 min with 1 worker"


def test_a_training_is_like_those_from_a_cache_or_those_without(tmp_path):
    fill(tmp_path / "E1/seed43", times=(1.0,), trained=True, seconds=120)
    assert say(tmp_path, ["E5"], features="all") == "1 of 1 runs remain, about 19 min with 1 worker"
    # no training has needed text_only's cache, and none has trained BEiT-3
    assert say(tmp_path, ["text_only"], features="all") == "1 of 1 runs remain, more than 19 min with 1 worker"
    assert say(tmp_path, ["E6"], features="all") == "1 of 1 runs remain, more than 2 min with 1 worker"
    fill(tmp_path / "E4/seed43", times=(4.0,))
    assert say(tmp_path, ["E6"], features="all") == "1 of 1 runs remain, about 1 h 9 min with 1 worker"
    assert say(tmp_path, ["E5"], features="all") == "1 of 1 runs remain, about 19 min with 1 worker"


def test_only_missing_work_is_counted(tmp_path):
    fill(tmp_path / "E1/seed42", times=(1.0,), trained=True, seconds=60, benchmarks=("shapes_val",))
    fill(tmp_path / "E5/seed42", trained=True, seconds=120)
    # E1 scores both benchmarks at a minute each; two_stage the same; E5 is finished
    assert say(tmp_path, names=("E1", "E5", "two_stage")) == (
        "2 of 3 runs remain (E1 seed 42 at 1,000 of 1,000 iterations), about 4 min with 1 worker"
    )
    fill(tmp_path / "two_stage/seed42", seconds=600)
    assert say(tmp_path, names=("E5", "two_stage")) == "all 2 runs are finished"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.1, "1 min"), (89, "1 min"), (3540, "59 min"), (3600, "1 h 0 min"), (7825, "2 h 10 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
