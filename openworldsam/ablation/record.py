"""The record of a report: a JSON file beside it with the numbers of its runs, and its figures.

Unlike the folders of trainings, it is small enough to commit, so that runs of several machines can be combined.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from openworldsam.ablation.runs import MAY_DIFFER, VARIANTS
from openworldsam.engine.evaluate import IRRELEVANT
from openworldsam.evaluation.summary import NOTES
from openworldsam.utils.files import read_json, save_json


class FinishedRun(NamedTuple):
    """A finished run.

    settings: config values by dotted key, and the fingerprints of the weights that it did not train.
    parameters: number of trained parameters.
    results: content of results.json; from a record, without scores of single classes.
    """

    seed: int
    settings: dict[str, Any]
    parameters: int
    results: dict[str, Any]


Runs = dict[str, list[FinishedRun]]
"""Runs by variant, in ascending order of seeds."""


class DrawnFigure(NamedTuple):
    """A figure of the report: path of its picture (in a record, from the report's folder), title and caption."""

    file: str
    title: str
    caption: str


class Record(NamedTuple):
    """Contents of a record."""

    runs: Runs
    figures: list[DrawnFigure]


def record_of(report: Path) -> Path:
    """Return the path of a report's record."""
    return report.with_suffix(".json")


def save_record(report: Path, runs: Runs, figures: Sequence[DrawnFigure]) -> None:
    """Write the record of a report: settings that all runs share once, paths of weights left out."""
    listed = [(name, run) for name, found in runs.items() for run in found]
    settings = [{key: value for key, value in run.settings.items() if _is_compared(key)} for _, run in listed]
    shared = {k: v for k, v in sorted(settings[0].items()) if all(k in each and each[k] == v for each in settings)}
    content = []
    for (name, run), each in zip(listed, settings, strict=True):
        own = {key: value for key, value in sorted(each.items()) if key not in shared}
        content.append({"variant": name, **run._asdict(), "settings": own, "results": _without_classes(run.results)})
    record = {"settings": shared, "runs": content, "figures": [figure._asdict() for figure in figures]}
    save_json(record_of(report), record, indent=1)


def _is_compared(key: str) -> bool:
    return key not in MAY_DIFFER and not (key.startswith("MODEL.") and key.rpartition(".")[2] in IRRELEVANT)


def _without_classes(results: dict[str, Any]) -> dict[str, Any]:
    """Return what a record keeps of results.json."""
    benchmarks = {}
    for name, content in results["benchmarks"].items():
        benchmarks[name] = {key: content[key] for key in ("images", "protocol", *NOTES)}
        for task, scores in content.items():
            if task not in NOTES and isinstance(scores, dict):
                kept = {metric: value for metric, value in scores.items() if metric != "per_class"}
                benchmarks[name][task] = {m: None if value is None else float(value) for m, value in kept.items()}
    return {"benchmarks": benchmarks, "weights": results["weights"]}


def read_record(report: Path) -> Record:
    """Read the record of a report; it is empty if there is none. Unknown variants are left out.

    Raises:
        ValueError: the file is damaged.
    """
    path = record_of(report)
    runs: Runs = {name: [] for name in VARIANTS}
    if not path.exists():
        return Record(runs, [])
    content = read_json(path)
    try:
        for run in content["runs"]:
            settings, results = content["settings"] | run["settings"], _without_classes(run["results"])
            finished = FinishedRun(int(run["seed"]), settings, int(run["parameters"]), results)
            runs.get(run["variant"], []).append(finished)
        return Record(runs, [DrawnFigure(**figure) for figure in content["figures"]])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not the record of an ablation's report ({error}); move it away") from error
