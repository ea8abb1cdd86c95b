"""Results of the finished runs of an experiment: values over seeds, verdicts, and the paper's rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from openworldsam.ablation.runs import MAY_DIFFER, VARIANTS, differences, own_keys, read_settings, trained_files
from openworldsam.engine.evaluate import RESULTS
from openworldsam.evaluation.metrics.instance import RECALL
from openworldsam.evaluation.paper_tables import PAPER_TABLES
from openworldsam.utils.files import read_json, save_json

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


class FinishedRun(NamedTuple):
    """A finished run: seed, config values by key, number of trained parameters, content of results.json."""

    seed: int
    settings: dict[str, Any]
    parameters: int
    results: dict[str, Any]


Runs = dict[str, list[FinishedRun]]
"""Runs by variant, in ascending order of seeds."""


class Drawn(NamedTuple):
    """A figure of the report: path of its picture, title and caption."""

    file: str
    title: str
    words: str


class Record(NamedTuple):
    """Contents of the file beside a report: its runs (variant, run), and its figures with paths relative to it.

    A training takes hours and its folder megabytes; here runs of several machines meet.
    """

    runs: list[tuple[str, FinishedRun]]
    figures: list[Drawn]


def record_of(report: Path) -> Path:
    """Return the file beside a report that keeps the numbers of its runs."""
    return report.with_suffix(".json")


def read_runs(folder: Path, report: Path) -> Runs:
    """Read all finished runs in an experiment's folder, and from a report's record those that the folder lacks.

    Raises:
        FileNotFoundError: an adapter that was scored is missing.
        ValueError: the runs differ in more than variant and seed, or a file is damaged.
    """
    runs = {name: [_read_run(path.parent) for path in (folder / name).glob(f"seed*/{RESULTS}")] for name in VARIANTS}
    record = record_of(report)
    for name, run in read_record(report).runs:
        if run.seed not in (other.seed for other in runs[name]):
            runs[name].append(run)
    for found in runs.values():
        found.sort(key=lambda run: run.seed)
    with_record = f"{folder} and {record}" if record.exists() else folder
    compare(with_record, [(name, run.settings) for name, found in runs.items() for run in found])
    return runs


def save_record(report: Path, runs: Runs, figures: Sequence[Drawn]) -> None:
    """Write the record of a report: of every run the trained parameters, scores, weights' sources and settings."""
    listed = [(name, run) for name, found in runs.items() for run in found]
    settings = [{key: run.settings[key] for key in run.settings.keys() - MAY_DIFFER} for _, run in listed]
    shared = {k: v for k, v in sorted(settings[0].items()) if all(k in each and each[k] == v for each in settings)}
    content = []
    for (name, run), each in zip(listed, settings, strict=True):
        own = {key: value for key, value in sorted(each.items()) if key not in shared}
        content.append({"variant": name, **run._asdict(), "settings": own, "results": _compared(run.results)})
    record = {"settings": shared, "runs": content, "figures": [drawn._asdict() for drawn in figures]}
    save_json(record_of(report), record, indent=1)


def _compared(results: dict[str, Any]) -> dict[str, Any]:
    """Return what a report shows of the content of results.json."""
    benchmarks = {}
    for name, scored in results["benchmarks"].items():
        benchmarks[name] = {key: scored[key] for key in ("images", "protocol")}
        for metric, task in TASKS.items():
            if metric in scored.get(task, {}):
                benchmarks[name].setdefault(task, {})[metric] = scored[task][metric]
    return {"benchmarks": benchmarks, "weights": results["weights"]}


def read_record(report: Path) -> Record:
    """Read the record of a report; it is empty if there is none. Variants that are no more are left out.

    Raises:
        ValueError: the file is damaged.
    """
    path = record_of(report)
    if not path.exists():
        return Record([], [])
    content = read_json(path)
    try:
        found = [(run.pop("variant"), content["settings"] | run.pop("settings"), run) for run in content["runs"]]
        runs = [(name, FinishedRun(settings=settings, **rest)) for name, settings, rest in found if name in VARIANTS]
        return Record(runs, [Drawn(**figure) for figure in content["figures"]])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the record of an ablation's report ({error}); move it away") from error


def compare(place: object, runs: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Check that runs (variant, settings), whose place an error names, differ in variant and seed alone.

    Raises:
        ValueError: two of them do not.
    """
    for (name, one), (other, two) in combinations(runs, 2):
        if unexpected := set(differences(one, two)) - own_keys(name, other):
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
