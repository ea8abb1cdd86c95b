"""What the runs show beside what the paper says: a table, a plot, and words that follow from the numbers."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from tabulate import tabulate

from openworldsam.ablation.plots import bar_plot
from openworldsam.ablation.runs import ADAPTER, VARIANTS, differences, read_results, read_settings
from openworldsam.engine.evaluate import RESULTS
from openworldsam.utils.files import save_atomically

FIGURES = "figures.json"
"""Of the experiment's folder: what `figures` has drawn."""
METRICS = {"PQ": "panoptic", "AP": "instance", "mIoU": "semantic"}
"""What is compared, with its task."""


class PaperRow(NamedTuple):
    """A row of the paper: where it stands, its "Train Params", and its ADE-150 columns by metric."""

    source: str
    trained: str
    scores: dict[str, float]


def _row(source: str, trained: str, *scores: float) -> PaperRow:
    return PaperRow(source, trained, dict(zip(METRICS, scores, strict=True)))


PAPER = {
    "E1": _row("Table 5, E1", "1.2 (M)", 0.4, 1.0, 1.2),
    "E3": _row("Table 5, E3", "1.7 (M)", 35.1, 17.1, 56.8),
    "E5": _row("Table 5, E5; Table 4, BEiT-3-Large, text ✓, image ✓", "4.5 (M)", 35.2, 16.9, 60.4),
    "text_only": _row("Table 4, BEiT-3-Large, text ✓, image ✗", "-", 13.6, 3.1, 26.3),
}
COMPARISONS = {
    "Tie-breakers": ("E3", "E1"),
    "Soft prompting": ("E5", "E3"),
    "The image in the prompt encoder": ("E5", "text_only"),
    "Fusion `add` instead of `replace`": ("add", "E5"),
    "Fusion `broadcast` instead of `replace`": ("broadcast", "E5"),
}
"""What each pair of variants is about; the paper has rows for the first three."""

AGREES, DISAGREES = "as in the paper", "other than in the paper"
HIGHER, LOWER = "higher", "lower"
UNDECIDED, ONE_SEED, NOT_RUN = "no difference that the seeds show", "one seed, which shows no spread", "not run"


class Spread(NamedTuple):
    """Mean and sample standard deviation over seeds; None of a single seed."""

    mean: float
    std: float | None

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.std is None else f" ± {self.std:.1f}")


@dataclass(frozen=True)
class Run:
    """A finished run: its config by key, trained parameters, and the content of its results.json."""

    seed: int
    settings: dict[str, Any]
    parameters: int
    results: dict[str, Any]


Runs = dict[str, list[Run]]
"""By variant, in ascending order of seeds."""


def read_runs(folder: Path) -> Runs:
    """All finished runs of an experiment's folder.

    Raises:
        ValueError: they differ in more than the variant and the seed, or a file is damaged.
    """
    paths = {name: [p.parent for p in (folder / name).glob(f"seed*/{RESULTS}")] for name in VARIANTS}
    runs = {name: sorted(map(_read_run, found), key=lambda run: run.seed) for name, found in paths.items()}
    own = {key for variant in VARIANTS.values() for key in variant.opts[::2]}
    listed = [run for found in runs.values() for run in found]
    for run in listed[1:]:
        others = set(differences(listed[0].settings, run.settings)) - own - {"SEED"}
        if others:
            raise ValueError(f"the runs in {folder} cannot be compared: they differ in {', '.join(sorted(others))}")
    return runs


def _read_run(folder: Path) -> Run:
    results = read_results(folder / RESULTS)
    settings = read_settings(folder)
    # the caches are of the prompt encoder's variant; whether there was one must be the same for all
    settings["DATASETS.FEATURE_CACHE"] = bool(settings.get("DATASETS.FEATURE_CACHE"))
    encoders = {f"weights of the {name}": results["weights"][name]["fingerprint"] for name in ("sam2", "beit3")}
    with safe_open(folder / ADAPTER, framework="pt") as file:
        parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return Run(settings["SEED"], settings | encoders, parameters, results)


def spread(runs: list[Run], benchmark: str, metric: str) -> Spread | None:
    """Of a metric over seeds; None if no run has it."""
    found = [run.results["benchmarks"].get(benchmark, {}).get(METRICS[metric], {}).get(metric) for run in runs]
    values = [value for value in found if value is not None]
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def verdict(one: Spread | None, other: Spread | None, paper: float | None = None) -> str:
    """Whether one variant is better than another here as it is in the paper.

    Args:
        one, other: of the two variants.
        paper: the same difference in the paper; without it the answer is `HIGHER` or `LOWER`.
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
    """Write the report of all runs in a folder, and its plot beside it.

    Args:
        folder: of the experiment.
        path: the Markdown file; the plot gets its name with .png.
        command: what has made it.

    Raises:
        ValueError: no run is finished, or they cannot be compared.
    """
    runs = read_runs(folder)
    listed = [run for found in runs.values() for run in found]
    if not listed:
        raise ValueError(f"{folder} holds no finished run to report on")
    benchmarks = list(dict.fromkeys(name for run in listed for name in run.results["benchmarks"]))
    plot = path.with_suffix(".png")
    spreads = {b: {m: {name: spread(runs[name], b, m) for name in VARIANTS} for m in METRICS} for b in benchmarks}
    bar_plot(spreads, {name: row.scores for name, row in PAPER.items()}, plot)
    lines = [*_head(listed, command), f"![Scores of every variant]({plot.name})", ""]
    for benchmark in benchmarks:
        lines += [f"## {benchmark}", "", _table(runs, benchmark), "", *_words(runs, benchmark), ""]
    lines += _figures(folder, path)
    save_atomically(path, lambda partial: partial.write_text("\n".join(lines).rstrip() + "\n"))


def _head(runs: list[Run], command: str) -> list[str]:
    """What all runs have in common."""
    settings, seeds = runs[0].settings, sorted({run.seed for run in runs})
    lost = [PAPER[name].scores["mIoU"] - PAPER["E5"].scores["mIoU"] for name in ("E3", "text_only")]
    benchmarks = {b: content for run in runs for b, content in run.results["benchmarks"].items()}
    cached = ", from caches of what the frozen encoders compute" if settings["DATASETS.FEATURE_CACHE"] else ""
    scored = ", ".join(f"{b} ({c['images']} images, protocol {c['protocol']})" for b, c in benchmarks.items())
    return [
        "# The paper's ablations, repeated",
        "",
        f"Written by `{command}` from the runs; nothing here was typed by hand but the paper's numbers.",
        "",
        f"Every run trains an adapter for {settings['SOLVER.MAX_ITER']:,} iterations of "
        f"{settings['SOLVER.IMS_PER_BATCH']} images of {', '.join(settings['DATASETS.TRAIN'])}, preset "
        f"{settings['PRESET']}{cached}, and is scored on {scored}. Seeds: {', '.join(map(str, seeds))}. Values are "
        "means over seeds ± their sample standard deviation. Two variants differ if their means are further apart "
        f'than the sum of both standard deviations; otherwise there is "{UNDECIDED}".',
        "",
        "The paper's rows (Sec. 4.4) are of ADE20K-150, zero-shot, one number each without a spread: what can be "
        "compared is their order, not their size. Its tables are what counts here; its prose says -1.5 mIoU without "
        f"cross-attention and -34.4 for the text alone, where the tables give {lost[0]:.1f} and {lost[1]:.1f}.",
        "",
    ]


def _table(runs: Runs, benchmark: str) -> str:
    """Every variant beside the paper's row."""
    rows = []
    for name, variant in VARIANTS.items():
        found, paper = runs[name], PAPER.get(name)
        ours = [spread(found, benchmark, metric) for metric in METRICS]
        theirs = [f"{paper.scores[m]:.1f}" for m in METRICS] if paper else ["-"] * len(METRICS)
        trained = f"{found[0].parameters:,}" if found else "-"
        cells = [NOT_RUN if value is None else str(value) for value in ours]
        source = (paper.source, paper.trained) if paper else ("no row", "-")
        rows.append([f"**{name}**: {variant.what}", trained, len(found), *cells, *source, *theirs])
    ours_head = ["run", "trained parameters", "seeds", *METRICS]
    headers = [*ours_head, "paper", "Train Params", *(f"{metric} (ADE-150)" for metric in METRICS)]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _words(runs: Runs, benchmark: str) -> list[str]:
    """Where the order is that of the paper, and where not."""
    counts: Counter[str] = Counter()
    lines = []
    for what, (one, other) in COMPARISONS.items():
        known = one in PAPER and other in PAPER
        parts = []
        for metric in METRICS:
            ours, others = (spread(runs[name], benchmark, metric) for name in (one, other))
            theirs = [PAPER[name].scores[metric] for name in (one, other)] if known else []
            said = verdict(ours, others, theirs[0] - theirs[1] if theirs else None)
            numbers = [f"here {ours} against {others}"] if ours and others else []
            numbers += [f"paper {theirs[0]:.1f} against {theirs[1]:.1f}"] if theirs else []
            parts.append(f"{metric} {said}" + (f" ({', '.join(numbers)})" if numbers else ""))
            counts[said] += known
        lines.append(f"* **{what}** ({one} against {other}): {'; '.join(parts)}." + _no_row(known))
    total = ", ".join(f"{counts[said]} {said}" for said in counts if counts[said])
    return [f"Of the {counts.total()} orderings that the paper's rows give: {total}.", "", *lines]


def _no_row(known: bool) -> str:
    return "" if known else " The paper has no such row."


def _figures(folder: Path, path: Path) -> list[str]:
    """The figures that were drawn for this folder; links relative to the report."""
    if not (folder / FIGURES).exists():
        return []
    lines = ["## Figures", ""]
    for figure in json.loads((folder / FIGURES).read_text()):
        link = os.path.relpath(figure["file"], path.resolve().parent)
        lines += [f"### {figure['title']}", "", f"![{figure['title']}]({link})", "", figure["words"], ""]
    return lines
