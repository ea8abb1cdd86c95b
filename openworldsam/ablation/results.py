"""Results of the finished runs of an experiment: values over seeds, verdicts, and the paper's rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from openworldsam.ablation.record import FinishedRun, Runs, read_record, record_of
from openworldsam.ablation.runs import VARIANTS, differences, own_keys, read_settings, trained_files
from openworldsam.engine.evaluate import RESULTS
from openworldsam.evaluation.metrics.instance import RECALL
from openworldsam.evaluation.paper_tables import PAPER_TABLES
from openworldsam.utils.files import read_json

COMPARED = {"PQ": "panoptic", "AP": "instance", "mIoU": "semantic"}
"""Metrics to compare, with their tasks."""
TASKS = COMPARED | dict.fromkeys(RECALL, "instance")
"""All metrics of the report, with their tasks."""


class PaperRow(NamedTuple):
    """A row of the paper: its table, its "Train Params", and its ADE-150 numbers by metric."""

    source: str
    trained: str
    scores: dict[str, float]


def _paper_row(source: str, trained: str, table: int, row: str) -> PaperRow:
    ade150 = dict(zip(COMPARED, PAPER_TABLES[table].rows[row], strict=False))  # the columns begin with PQ, AP, mIoU
    return PaperRow(source, trained, {metric: value for metric, value in ade150.items() if value is not None})


PAPER = {
    "E1": _paper_row("Table 5, E1", "1.2 (M)", 5, "E1"),
    "E2": _paper_row("Table 5, E2", "1.7 (M)", 5, "E2"),
    "E3": _paper_row("Table 5, E3", "1.7 (M)", 5, "E3"),
    "E4": _paper_row("Table 5, E4", "674.0 (M)", 5, "E4"),
    "E5": _paper_row("Table 5, E5; Table 4, BEiT-3-Large, text ✓, image ✓", "4.5 (M)", 5, "E5"),
    "E6": _paper_row("Table 5, E6", "677.2 (M)", 5, "E6"),
    "text_only": _paper_row("Table 4, BEiT-3-Large, text ✓, image ✗", "-", 4, "BEiT-3-Large, text"),
    "clip_text": _paper_row("Table 4, CLIP-Large, text ✓, image ✗", "-", 4, "CLIP-Large, text"),
    "clip_late_fusion": _paper_row("Table 4, CLIP-Large, text ✓, image ✓", "-", 4, "CLIP-Large"),
    "two_stage": _paper_row("Table 1, + two-stage inference", "-", 1, "+ two-stage inference"),
}
AGREES, DISAGREES = "as in the paper", "unlike the paper"
HIGHER, LOWER = "higher", "lower"
UNDECIDED, ONE_SEED, NOT_RUN = "within the spread of the seeds", "one seed, no spread", "not run"


class Spread(NamedTuple):
    """Mean and sample standard deviation over seeds; std is None for a single seed."""

    mean: float
    std: float | None

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.std is None else f" ± {self.std:.1f}")


def read_runs(folder: Path, report: Path) -> Runs:
    """Read all finished runs in an experiment's folder, and from a report's record those that the folder lacks.

    A recorded run that evaluates another's adapter is used only if the folder has no run of that adapter's seed.

    Raises:
        FileNotFoundError: an adapter that was scored is missing.
        ValueError: the runs differ in more than variant and seed, or a file is damaged.
    """
    here = {name: [_read_run(path.parent) for path in (folder / name).glob(f"seed*/{RESULTS}")] for name in VARIANTS}
    seeds = {name: {run.seed for run in found} for name, found in here.items()}
    runs = {}
    for name, recorded in read_record(report).runs.items():
        lacking = [run for run in recorded if run.seed not in seeds[name] | seeds.get(VARIANTS[name].of, set())]
        runs[name] = sorted([*here[name], *lacking], key=lambda run: run.seed)
    compare(folder, report, [(name, run.settings) for name, found in runs.items() for run in found])
    return runs


def compare(folder: Path, report: Path, runs: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Check that runs (variant, settings) of an experiment's folder and a record differ in variant and seed alone.

    Raises:
        ValueError: two of them do not.
    """
    for (name, one), (other, two) in combinations(runs, 2):
        if unexpected := set(differences(one, two)) - own_keys(name, other):
            record = record_of(report)
            place = f"{folder} and {record}" if record.exists() else folder
            raise ValueError(
                f"runs of {name} and {other} in {place} differ in {', '.join(sorted(unexpected))} and cannot be "
                "compared; use another --output or --report"
            )


def _read_run(folder: Path) -> FinishedRun:
    results, settings = read_json(folder / RESULTS), read_settings(folder)
    trained, weights = trained_files(folder), results["weights"]
    sources = {f"weights of the {name}": weights[name]["fingerprint"] for name in weights.keys() - trained.keys()}
    parameters = sum(map(_parameters, trained.values()))
    return FinishedRun(settings["SEED"], settings | sources, parameters, results)


def _parameters(path: Path) -> int:
    """Count the values in a file of weights."""
    with safe_open(path, framework="pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def spread(runs: list[FinishedRun], benchmark: str, metric: str) -> Spread | None:
    """Compute the spread of a metric over seeds; None if no run has it."""
    found = [run.results["benchmarks"].get(benchmark, {}).get(TASKS[metric], {}).get(metric) for run in runs]
    values = [value for value in found if value is not None]
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def verdict(one: Spread | None, other: Spread | None, paper: float | None = None) -> str:
    """Say whether variant `one` is better than `other`, and whether the paper agrees.

    Without the paper's difference between the two, the verdict is `HIGHER` or `LOWER`.
    """
    if one is None or other is None:
        return NOT_RUN
    if one.std is None or other.std is None:
        return ONE_SEED
    difference = one.mean - other.mean
    if abs(difference) <= one.std + other.std:
        return UNDECIDED
    if paper is None:
        return HIGHER if difference > 0 else LOWER
    return AGREES if difference * paper > 0 else DISAGREES
