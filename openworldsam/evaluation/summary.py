"""Summaries of benchmark results: scalars for logs, a table and remarks for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from openworldsam.evaluation.paper_tables import Column, Number

HEADLINES = {
    "panoptic": ("PQ", "SQ", "RQ"),
    "instance": ("AP", "AP50", "AP_box"),
    "cityscapes": ("AP_cityscapes", "AP50_cityscapes"),
    "semantic": ("mIoU",),
    "referring": ("cIoU", "mIoU"),
    "generalized_referring": ("gIoU", "cIoU", "N-acc", "T-acc"),
    "absent": ("false_positive_rate",),
    "concept": ("cgF1", "pmF1", "IL_MCC"),
}
"""The metrics of each task that logs and tables show."""

NOTES = {"skipped": "not scored", "remarks": "to be noted"}
"""Entries of a result that list images with a reason, and the words for them."""

Results = dict[str, dict[str, Any]]
"""`Benchmark.content` by benchmark."""


def scalars(results: Results) -> dict[str, dict[str, float]]:
    """Available metrics by dataset and name, as Detectron2's EvalHook logs them (shapes_val/PQ)."""
    return {
        name: {
            metric: value
            for task in HEADLINES
            for metric, value in content.get(task, {}).items()
            if metric != "per_class" and value is not None
        }
        for name, content in results.items()
    }


def headlines(
    results: Results, numbers: Mapping[Column, Number] | None = None
) -> dict[Column, tuple[float | None, Number | None]]:
    """Return each headline metric, with the paper's number if it was measured by the paper's protocol (oracle)."""
    return {
        (name, task, metric): (
            content[task].get(metric),
            (numbers or {}).get((name, task, metric)) if content["protocol"] == "oracle" else None,
        )
        for name, content in results.items()
        for task, metrics in HEADLINES.items()
        for metric in (metrics if task in content else ())
    }


def table(results: Results, numbers: Mapping[Column, Number] | None = None) -> str:
    """Tabulate the headline metrics, one per line, beside the paper's numbers; see `headlines`."""
    rows = []
    for (name, task, metric), (value, paper) in headlines(results, numbers).items():
        content = results[name]
        row = [name, content["protocol"], content["images"], f"{task} {metric}", number(value, ".2f")]
        if paper:
            difference = "" if value is None else f"{value - paper.value:+.2f}"
            row += [f"{paper.value:.1f}", difference, str(paper.table)]
        rows.append(row)
    header = ("benchmark", "protocol", "images", "metric", "measured", "paper", "difference", "table")
    return tabulate(rows, header, disable_numparse=True, colalign=("left",) * 2 + ("right", "left") + ("right",) * 4)


def remarks(results: Results) -> list[str]:
    """Warnings about the figures: images that were not scored, or whose ground truth is empty."""
    lines = []
    for name, content in results.items():
        for kind, verb in NOTES.items():
            if said := content[kind]:
                file, reason = next(iter(said.items()))
                lines.append(f"{name}: {len(said)} images {verb}, such as {file}: {reason}")
    return lines


def number(value: float | None, form: str) -> str:
    """Format a metric; "n/a" if there is none."""
    return "n/a" if value is None else format(value, form)
