"""Report of the ablation: tables, plots and verdicts, with the paper's numbers beside those measured here."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from openworldsam.ablation.plots import recall_label, recall_metrics, recall_plot, save_figure, score_plot
from openworldsam.ablation.record import DrawnFigure, FinishedRun, Runs, read_record, record_of, save_record
from openworldsam.ablation.results import COMPARED, NOT_RUN, PAPER, UNDECIDED, read_runs, spread, verdict
from openworldsam.ablation.runs import TRAINABLE, VARIANTS
from openworldsam.evaluation.exposure import exposure
from openworldsam.utils.files import save_text

BEGIN = "<!-- Conclusions: written by hand, kept when this file is generated again. -->"
END = "<!-- End of the conclusions. -->"
UNWRITTEN = "The conclusions have not been written yet."
CROWD = "recall_of_4_to_8"
"""Recall that is compared like the scores."""
COMPARISONS = {
    "Tie-breakers": ("E3", "E1"),
    "Soft prompting": ("E5", "E3"),
    "BEiT-3 trained too, without soft prompting": ("E4", "E3"),
    "BEiT-3 trained too": ("E6", "E5"),
    "The image in the prompt encoder": ("E5", "text_only"),
    "BEiT-3 instead of CLIP, both without the image": ("text_only", "clip_text"),
    "BEiT-3 instead of CLIP, both with the image": ("E5", "clip_late_fusion"),
    "Fusion `add` instead of `replace`": ("add", "E5"),
    "Fusion `broadcast` instead of `replace`": ("broadcast", "E5"),
    "The Dice loss in training": ("E5", "focal_alone"),
    "Two-stage inference": ("two_stage", "E5"),
    "More tie-breakers at test time": ("E5_more_queries", "E5"),
    "The prompt embedding at test time": ("E3", "E2"),
}
"""Pairs of variants by the idea that they isolate."""


def write_report(folder: Path, path: Path, command: str, figures: Sequence[DrawnFigure] = ()) -> None:
    """Write the report of all runs in an experiment's folder to a Markdown file, with its plots and record beside it.

    Keeps an earlier report's conclusions, its recorded runs that the folder lacks and, if no figures are given, its
    figures.

    Raises:
        FileNotFoundError, ValueError: see `read_runs`; or no run is finished, or the conclusions have no end.
    """
    runs = read_runs(folder, path)
    finished = [run for found in runs.values() for run in found]
    if not finished:
        raise ValueError(f"neither {folder} nor {record_of(path)} has a finished run to report on")
    kept, here = conclusions(path), path.parent.resolve()
    shown = [each._replace(file=os.path.relpath(Path(each.file).resolve(), here)) for each in figures]
    shown = shown or read_record(path).figures
    save_record(path, runs, shown)
    benchmarks = list(dict.fromkeys(name for run in finished for name in run.results["benchmarks"]))
    several = [name for name in benchmarks if recall_metrics(runs, name)]
    recall = [("Recall by the number of equal things", "_recall", recall_plot(runs, several))] if several else []
    lines = ["# The paper's ablations, repeated", "", BEGIN, "", kept, "", END, ""]
    lines += _introduction(finished, command, record_of(path).name)
    for title, suffix, plotted in (("Scores of every variant", "", score_plot(runs, benchmarks)), *recall):
        plot = path.with_name(f"{path.stem}{suffix}.png")
        save_figure(plotted, plot)
        lines += [f"![{title}]({plot.name})", ""]
    for benchmark in benchmarks:
        seen = dict.fromkeys(line for run in finished for line in exposure(run.results["weights"], [benchmark]))
        notes = [*(f"* {line}" for line in seen), ""] if seen else []
        lines += [f"## {benchmark}", "", _table(runs, benchmark), "", *notes, *_recall_table(runs, benchmark)]
        lines += [*_verdicts(runs, benchmark), ""]
    if shown:
        lines += ["## Figures", ""]
        for figure in shown:
            lines += [f"### {figure.title}", "", f"![{figure.title}]({figure.file})", "", figure.caption, ""]
    save_text(path, "\n".join(lines).rstrip() + "\n")


def conclusions(path: Path) -> str:
    """Return the conclusions in the file if it is an earlier report.

    Raises:
        ValueError: they have no end.
    """
    _, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN) if path.exists() else ("", "", "")
    kept, end, _ = rest.partition(END)
    if begin and not end:
        raise ValueError(f"the conclusions in {path} have no end; put this line below them: {END}")
    return kept.strip() or UNWRITTEN


def _introduction(runs: list[FinishedRun], command: str, record: str) -> list[str]:
    """Describe the settings that all runs share."""
    settings, seeds = runs[0].settings, sorted({run.seed for run in runs})
    lost = [PAPER[name].scores["mIoU"] - PAPER["E5"].scores["mIoU"] for name in ("E3", "text_only")]
    benchmarks = {b: content for run in runs for b, content in run.results["benchmarks"].items()}
    was_cached = any(run.settings.get("DATASETS.FEATURE_CACHE") for run in runs)
    cached = ", from cached features of the frozen encoders" if was_cached else ""
    live = ", ".join(name for name, variant in VARIANTS.items() if TRAINABLE in variant.opts)
    scored = ", ".join(f"{b} ({c['images']} images, protocol {c['protocol']})" for b, c in benchmarks.items())
    others = ", ".join(name for name, variant in VARIANTS.items() if variant.of)
    return [
        f"Generated by `{command}` from the runs in its folder and in [{record}]({record}), which has the scores of "
        "each; the conclusions above and the paper's numbers were entered by hand.",
        "",
        f"Every run trains an adapter for {settings['SOLVER.MAX_ITER']:,} iterations of "
        f"{settings['SOLVER.IMS_PER_BATCH']} images from {', '.join(settings['DATASETS.TRAIN'])}, preset "
        f"{settings['PRESET']}{cached}, and is scored on {scored}; {others} evaluate adapters of other runs instead, "
        f"and {live} train the prompt encoder too, without a cache. Seeds: {', '.join(map(str, seeds))}. Values are "
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
        theirs = [str(paper.scores.get(metric, "-") if paper else "-") for metric in COMPARED]
        source = (paper.source, paper.trained) if paper else ("not reported", "-")
        rows.append([f"**{name}**: {variant.title}", trained, len(found), *ours, *source, *theirs])
    columns = ["run", "trained parameters", "seeds", *COMPARED, "paper", "Train Params"]
    headers = [*columns, *(f"{metric} (ADE-150)" for metric in COMPARED)]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _recall_table(runs: Runs, benchmark: str) -> list[str]:
    """Tabulate the recall of every variant that was run, if the benchmark has things."""
    metrics = recall_metrics(runs, benchmark)
    if not metrics:
        return []
    rows = [[f"**{n}**", *(spread(runs[n], benchmark, m) or NOT_RUN for m in metrics)] for n in VARIANTS if runs[n]]
    headers = ["recall of one of so many equal things", *map(recall_label, metrics)]
    return [tabulate(rows, headers, tablefmt="github", disable_numparse=True), ""]


def _verdicts(runs: Runs, benchmark: str) -> list[str]:
    """Say for each comparison and metric whether the order is the paper's."""
    counts: Counter[str] = Counter()
    lines = []
    metrics = [*COMPARED, *(metric for metric in recall_metrics(runs, benchmark) if metric == CROWD)]
    for idea, pair in COMPARISONS.items():
        parts, paper = [], [PAPER[name].scores for name in pair if name in PAPER]
        for metric in metrics:
            ours, others = (spread(runs[name], benchmark, metric) for name in pair)
            theirs = [scores[metric] for scores in paper if metric in scores]
            reported = len(theirs) == len(pair)
            said = verdict(ours, others, theirs[0] - theirs[1] if reported else None)
            numbers = [f"here {ours} against {others}"] if ours and others else []
            numbers += [f"paper {theirs[0]:.1f} against {theirs[1]:.1f}"] if reported else []
            what = f"recall of one of {recall_label(metric)}" if metric == CROWD else metric
            parts.append(f"{what} {said}" + (f" ({', '.join(numbers)})" if numbers else ""))
            counts[said] += reported
        end = "" if len(paper) == len(pair) else " Not reported in the paper."
        lines.append(f"* **{idea}** ({' against '.join(pair)}): {'; '.join(parts)}.{end}")
    total = ", ".join(f"{count} {said}" for said, count in counts.items() if count)
    return [f"Of the {counts.total()} comparisons that the paper reports: {total}.", "", *lines]
