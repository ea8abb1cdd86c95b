"""Summaries of benchmark results: scalars for logs, a table and remarks for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from openworldsam.evaluation.comparison import Comparison
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

NOT_COMPARED = Comparison()

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


def headlines(results: Results, paper: Comparison = NOT_COMPARED) -> dict[Column, tuple[float | None, Number | None]]:
    """Return each headline metric, with the paper's number if it can be compared."""
    return {
        (name, task, metric): (content[task].get(metric), paper.number((name, task, metric), content)[0])
        for name, content in results.items()
        for task, metrics in HEADLINES.items()
        for metric in (metrics if task in content else ())
    }


def table(results: Results, paper: Comparison = NOT_COMPARED) -> str:
    """Tabulate the headline metrics, one per line, beside the paper's numbers; see `headlines`."""
    rows = []
    for (name, task, metric), (value, published) in headlines(results, paper).items():
        content = results[name]
        row = [name, content["protocol"], image_count(content), f"{task} {metric}", number(value, ".2f")]
        if published:
            difference = "" if value is None else f"{value - published.value:+.2f}"
            row += [f"{published.value:.1f}", difference, str(published.table)]
        rows.append(row)
    header = ("benchmark", "protocol", "images", "metric", "measured", "paper", "difference", "table")
    return tabulate(rows, header, disable_numparse=True, colalign=("left",) * 2 + ("right", "left") + ("right",) * 4)


def image_count(content: Mapping[str, Any]) -> str:
    """Return the number of images scored, "of" that of the dataset where it is another."""
    scored, whole = content["images"], content.get("dataset_images")
    return str(scored) if whole in (scored, None) else f"{scored} of {whole}"


def remarks(results: Results, paper: Comparison = NOT_COMPARED) -> list[str]:
    """Warnings about the figures: images that were not scored, or whose ground truth is empty, and why there is no
    number of the paper."""
    lines = []
    for name, content in results.items():
        for kind, verb in NOTES.items():
            if said := content[kind]:
                file, reason = next(iter(said.items()))
                lines.append(f"{name}: {len(said)} images {verb}, such as {file}: {reason}")
    return lines + incomparable(results, paper)


def score_line(score: Mapping[str, Any]) -> str:
    """Say by which rule and threshold masks were found; see `checkpoint.score_rule`."""
    return f"score: {score['rule']}, threshold {score['threshold']:g} ({score['origin']})"


def incomparable(results: Results, paper: Comparison) -> list[str]:
    """Say of each benchmark of the paper why its numbers cannot be compared; once if the reason is always the same."""
    reasons = {}
    for name, content in results.items():
        columns = ((name, task, metric) for task in content for metric in HEADLINES.get(task, ()))
        if reason := next(filter(None, (paper.number(column, content)[1] for column in columns)), ""):
            reasons[name] = reason
    if paper.reason:
        return [f"not compared with the paper: {paper.reason}"] if reasons else []
    return [f"{name}: not compared with the paper: {reason}" for name, reason in reasons.items()]


def number(value: float | None, form: str) -> str:
    """Format a metric; "n/a" if there is none."""
    return "n/a" if value is None else format(value, form)
