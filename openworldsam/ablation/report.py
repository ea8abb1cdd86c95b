"""Report of the ablation: table, plot and verdicts, with the paper's numbers beside those measured here."""

from __future__ import annotations

import math
import os
import statistics
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from safetensors import safe_open
from tabulate import tabulate

from openworldsam.ablation.runs import ADAPTER, VARIANTS, differences, read_settings
from openworldsam.engine.evaluate import RESULTS
from openworldsam.evaluation.exposure import exposure
from openworldsam.evaluation.paper_tables import PAPER_TABLES
from openworldsam.utils.files import read_any_json, read_json, save_atomically, save_text

FIGURES = "figures.json"
"""File in the experiment's folder that lists the figures drawn by `figures`."""
COMPARED = {"PQ": "panoptic", "AP": "instance", "mIoU": "semantic"}
"""Metrics to compare, with their tasks."""


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
    "E3": _paper_row("Table 5, E3", "1.7 (M)", 5, "E3"),
    "E5": _paper_row("Table 5, E5; Table 4, BEiT-3-Large, text ✓, image ✓", "4.5 (M)", 5, "E5"),
    "text_only": _paper_row("Table 4, BEiT-3-Large, text ✓, image ✗", "-", 4, "BEiT-3-Large, text"),
}
COMPARISONS = {
    "Tie-breakers": ("E3", "E1"),
    "Soft prompting": ("E5", "E3"),
    "The image in the prompt encoder": ("E5", "text_only"),
    "Fusion `add` instead of `replace`": ("add", "E5"),
    "Fusion `broadcast` instead of `replace`": ("broadcast", "E5"),
}
"""Pairs of variants by the idea that they isolate; the paper reports the first three."""

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


def read_runs(folder: Path) -> Runs:
    """Read all finished runs in an experiment's folder.

    Raises:
        ValueError: the runs differ in more than variant and seed, or a file is damaged.
    """
    paths = {name: [p.parent for p in (folder / name).glob(f"seed*/{RESULTS}")] for name in VARIANTS}
    runs = {name: sorted(map(_read_run, found), key=lambda run: run.seed) for name, found in paths.items()}
    expected = {"SEED", *(key for variant in VARIANTS.values() for key in variant.opts[::2])}
    finished = [run for found in runs.values() for run in found]
    for run in finished[1:]:
        if unexpected := set(differences(finished[0].settings, run.settings)) - expected:
            raise ValueError(f"the runs in {folder} differ in {', '.join(sorted(unexpected))} and cannot be compared")
    return runs


def _read_run(folder: Path) -> FinishedRun:
    results, settings = read_json(folder / RESULTS), read_settings(folder)
    # each prompt encoder has its own cache; only whether there was one must be equal
    settings["DATASETS.FEATURE_CACHE"] = bool(settings.get("DATASETS.FEATURE_CACHE"))
    sources = {f"weights of the {name}": source["fingerprint"] for name, source in results["weights"].items()}
    sources.pop("weights of the adapter", None)  # trained by the run
    with safe_open(folder / ADAPTER, framework="pt") as file:
        parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return FinishedRun(settings["SEED"], settings | sources, parameters, results)


def spread(runs: list[FinishedRun], benchmark: str, metric: str) -> Spread | None:
    """Compute the spread of a metric over seeds; None if no run has it."""
    found = [run.results["benchmarks"].get(benchmark, {}).get(COMPARED[metric], {}).get(metric) for run in runs]
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


def write_report(folder: Path, path: Path, command: str) -> None:
    """Write the report of all runs in an experiment's folder to a Markdown file, with its plot beside it as .png.

    Raises:
        ValueError: no run is finished, or the runs cannot be compared.
    """
    runs = read_runs(folder)
    finished = [run for found in runs.values() for run in found]
    if not finished:
        raise ValueError(f"{folder} has no finished run to report on")
    benchmarks = list(dict.fromkeys(name for run in finished for name in run.results["benchmarks"]))
    plot = path.with_suffix(".png")
    save_figure(_bar_plot(runs, benchmarks), plot)
    lines = [*_introduction(finished, command), f"![Scores of every variant]({plot.name})", ""]
    for benchmark in benchmarks:
        seen = dict.fromkeys(line for run in finished for line in exposure(run.results["weights"], [benchmark]))
        notes = [*(f"* {line}" for line in seen), ""] if seen else []
        lines += [f"## {benchmark}", "", _table(runs, benchmark), "", *notes, *_verdicts(runs, benchmark), ""]
    if (folder / FIGURES).exists():
        lines += ["## Figures", ""]
        for figure in read_any_json(folder / FIGURES):
            link = os.path.relpath(figure["file"], path.resolve().parent)
            lines += [f"### {figure['title']}", "", f"![{figure['title']}]({link})", "", figure["words"], ""]
    save_text(path, "\n".join(lines).rstrip() + "\n")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG atomically."""
    save_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=120))


def _bar_plot(runs: Runs, benchmarks: list[str]) -> Figure:
    """Draw the scores of all variants, with a row of panels per benchmark and a panel per metric."""
    figure = Figure(figsize=(4.2 * len(COMPARED), 3.2 * len(benchmarks)), layout="constrained")
    names = list(VARIANTS)
    for row, benchmark in zip(figure.subplots(len(benchmarks), len(COMPARED), squeeze=False), benchmarks, strict=True):
        for axis, metric in zip(row, COMPARED, strict=True):
            theirs = {names.index(name) + 0.2: paper.scores[metric] for name, paper in PAPER.items()}
            axis.bar(list(theirs), list(theirs.values()), 0.4, color="#bbbbbb", label="paper, ADE-150")
            ours = {x - 0.2: found for x, name in enumerate(names) if (found := spread(runs[name], benchmark, metric))}
            means, deviations = [value.mean for value in ours.values()], [value.std or 0 for value in ours.values()]
            axis.bar(list(ours), means, 0.4, yerr=deviations, capsize=3, color="#0072b2", label=f"here, {benchmark}")
            axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
            axis.set_ylim(0, 100)
            axis.set_title(metric)
        row[0].legend()
    return figure


def _introduction(runs: list[FinishedRun], command: str) -> list[str]:
    """Describe the settings that all runs share."""
    settings, seeds = runs[0].settings, sorted({run.seed for run in runs})
    lost = [PAPER[name].scores["mIoU"] - PAPER["E5"].scores["mIoU"] for name in ("E3", "text_only")]
    benchmarks = {b: content for run in runs for b, content in run.results["benchmarks"].items()}
    cached = ", from cached features of the frozen encoders" if settings["DATASETS.FEATURE_CACHE"] else ""
    scored = ", ".join(f"{b} ({c['images']} images, protocol {c['protocol']})" for b, c in benchmarks.items())
    return [
        "# The paper's ablations, repeated",
        "",
        f"Generated by `{command}` from its runs; only the paper's numbers were entered by hand.",
        "",
        f"Every run trains an adapter for {settings['SOLVER.MAX_ITER']:,} iterations of "
        f"{settings['SOLVER.IMS_PER_BATCH']} images from {', '.join(settings['DATASETS.TRAIN'])}, preset "
        f"{settings['PRESET']}{cached}, and is scored on {scored}. Seeds: {', '.join(map(str, seeds))}. Values are "
        "means over seeds ± the sample standard deviation. Two variants differ if the difference of their means "
        f'exceeds the sum of their standard deviations; otherwise they are "{UNDECIDED}".',
        "",
        "The paper's numbers (Sec. 4.4) are for ADE20K-150, zero-shot, one value each without a spread: only the order "
        "of the variants can be compared. They are taken from its tables; its prose gives -1.5 mIoU without "
        f"cross-attention and -34.4 with the text alone, where the tables give {lost[0]:.1f} and {lost[1]:.1f}.",
        "",
    ]


def _table(runs: Runs, benchmark: str) -> str:
    """Tabulate every variant beside the paper's row."""
    rows = []
    for name, variant in VARIANTS.items():
        found, paper = runs[name], PAPER.get(name)
        trained = f"{found[0].parameters:,}" if found else "-"
        ours = [str(spread(found, benchmark, metric) or NOT_RUN) for metric in COMPARED]
        theirs = [f"{paper.scores[m]:.1f}" for m in COMPARED] if paper else ["-"] * len(COMPARED)
        source = (paper.source, paper.trained) if paper else ("not reported", "-")
        rows.append([f"**{name}**: {variant.title}", trained, len(found), *ours, *source, *theirs])
    columns = ["run", "trained parameters", "seeds", *COMPARED, "paper", "Train Params"]
    headers = [*columns, *(f"{metric} (ADE-150)" for metric in COMPARED)]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _verdicts(runs: Runs, benchmark: str) -> list[str]:
    """Say for each comparison and metric whether the order is the paper's."""
    counts: Counter[str] = Counter()
    lines = []
    for idea, (one, other) in COMPARISONS.items():
        reported = one in PAPER and other in PAPER
        parts = []
        for metric in COMPARED:
            ours, others = (spread(runs[name], benchmark, metric) for name in (one, other))
            theirs = [PAPER[name].scores[metric] for name in (one, other)] if reported else []
            said = verdict(ours, others, theirs[0] - theirs[1] if theirs else None)
            numbers = [f"here {ours} against {others}"] if ours and others else []
            numbers += [f"paper {theirs[0]:.1f} against {theirs[1]:.1f}"] if theirs else []
            parts.append(f"{metric} {said}" + (f" ({', '.join(numbers)})" if numbers else ""))
            counts[said] += reported
        end = "" if reported else " Not reported in the paper."
        lines.append(f"* **{idea}** ({one} against {other}): {'; '.join(parts)}.{end}")
    total = ", ".join(f"{count} {said}" for said, count in counts.items() if count)
    return [f"Of the {counts.total()} comparisons that the paper reports: {total}.", "", *lines]
