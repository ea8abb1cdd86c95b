"""Parts of the page: one HTML file with embedded images and without scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from openworldsam.engine.evaluate import ASKED
from openworldsam.evaluation.paper_tables import Number
from openworldsam.evaluation.summary import HEADLINES, NOTES, headlines, incomparable, number
from openworldsam.report.evaluations import CLASS_METRICS, ClassMetrics, Evaluation
from openworldsam.report.pictures import PictureRow
from openworldsam.visualization.drawing import RGBImage

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1500px; padding: 0 1.2rem; color: #1e1e1e }
h1, h2, h3 { line-height: 1.2 } h2 { border-top: 2px solid #1e1e1e; padding-top: .6rem; margin-top: 2.5rem }
table { border-collapse: collapse; margin: .8rem 0 } .wide { overflow-x: auto }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
.pictures td, .pictures th { border: 0; padding: 0 .5rem .2rem 0 } .pictures img { width: 100%; min-width: 240px }
.chip { display: inline-block; margin: 0 .8rem .2rem 0; white-space: nowrap }
.chip i { display: inline-block; width: .9em; height: .9em; margin-right: .35em; vertical-align: -.1em }
img { max-width: 100% } code { overflow-wrap: anywhere } .note { color: #666 } .bad { color: #b00020 }
nav a { margin-right: 1rem }
"""


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """Assemble the document from a title and the heading (both plain text) and body (HTML) of each section."""
    links = "".join(f'<a href="#s{i}">{escape(heading)}</a>' for i, (heading, _) in enumerate(sections))
    parts = [f'<h2 id="s{i}">{escape(heading)}</h2>\n{body}' for i, (heading, body) in enumerate(sections)]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    body = "\n".join([f"<h1>{escape(title)}</h1>", f"<nav>{links}</nav>", *parts])
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """Build a table of HTML cells; the last `numbers` columns are right-aligned."""
    first = len(header) - numbers

    def line(cells: Sequence[str], tag: str) -> str:
        marks = (' class="number"' if i >= first else "" for i in range(len(cells)))
        return "<tr>" + "".join(f"<{tag}{m}>{cell}</{tag}>" for m, cell in zip(marks, cells, strict=True)) + "</tr>"

    lines = [line(header, "th"), *(line(row, "td") for row in rows)]
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


def figure_html(figure: Figure, alt: str) -> str:
    """Embed a chart in the page."""
    return _embedded(lambda file: figure.savefig(file, format="png", dpi=110), "png", alt)


def picture_html(picture: RGBImage, alt: str) -> str:
    """Embed a picture, uint8 [H, W, 3], in the page."""
    return _embedded(lambda file: Image.fromarray(picture).save(file, format="JPEG", quality=80), "jpeg", alt)


def _embedded(save: Callable[[io.BytesIO], None], kind: str, alt: str) -> str:
    save(file := io.BytesIO())
    text = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(alt, quote=True)}" src="data:image/{kind};base64,{text}">'


def about_runs(runs: Sequence[Evaluation]) -> str:
    """Tabulate preset, protocol, prompt options, weights and command of each run."""
    rows = []
    for run in runs:
        content = run.content
        options = {key: content.get(key) for key in map(str.lower, ASKED)}
        prompts = ", ".join(f"{key} {value}" for key, value in options.items() if value is not None)
        weights = "<br>".join(f"{escape(name)}: {_source(source)}" for name, source in content["weights"].items())
        command = f"<code>{escape(content['command'])}</code><br>{content.get('seconds')} s"
        rows.append((*map(escape, (run.name, content["preset"], content["protocol"], prompts)), weights, command))
    return html_table(("run", "preset", "protocol", "prompts", "weights", "command and time"), rows)


def _source(source: dict[str, Any]) -> str:
    note = f" <span class='note'>{escape(source['note'])}</span>" if source.get("note") else ""
    return f"{escape(source['layout'])}, <code>{escape(source['fingerprint'][:12])}</code>{note}"


def scores(runs: Sequence[Evaluation], benchmarks: Sequence[str]) -> str:
    """Tabulate the headline metrics of every run, with the paper's number and the difference, or why there is none."""
    found = [headlines(run.benchmarks, run.paper) for run in runs]
    columns = ((name, task, metric) for name in benchmarks for task, ms in HEADLINES.items() for metric in ms)
    rows = []
    for column in columns:
        cells = [_score(*values[column]) if column in values else "" for values in found]
        if any(cells):
            rows.append((escape(column[0]), f"{column[1]} {column[2]}", *cells))
    reasons = [(run.name, line) for run in runs for line in incomparable(run.benchmarks, run.paper)]
    lines = "".join(f"<p class='note'>{escape(f'{name}: {line}')}</p>" for name, line in reasons)
    return html_table(("benchmark", "metric", *(escape(run.name) for run in runs)), rows, len(runs)) + lines


def _score(value: float | None, paper: Number | None) -> str:
    text = number(value, ".2f")
    if paper:
        difference = "" if value is None else f", {value - paper.value:+.2f}"
        text += f" <span class='note'>paper {paper.value:.1f}{difference}</span>"
    return text


def notes(runs: Sequence[Evaluation], benchmarks: Sequence[str]) -> str:
    """Tabulate every missing benchmark, and every image that was not scored or has an empty ground truth."""
    rows = []
    for run in runs:
        rows += [(run.name, name, "missing", reason) for name, reason in run.content.get("missing", {}).items()]
        for name in benchmarks:
            for kind, verb in NOTES.items():
                images = run.benchmarks.get(name, {}).get(kind, {})
                rows += [(run.name, name, f"{verb}: {file}", reason) for file, reason in images.items()]
    if not rows:
        return "<p>Every image of every benchmark was read and scored.</p>"
    return html_table(("run", "benchmark", "note", "reason"), [tuple(map(escape, row)) for row in rows])


def class_table(runs: Mapping[str, ClassMetrics], classes: Sequence[str]) -> str:
    """Tabulate the metrics of all classes, folded up."""
    columns = [(run, metric) for metric in CLASS_METRICS for run, metrics in runs.items() if metric in metrics]
    rows = [(escape(c), *(number(runs[r][m].get(c), ".1f") for r, m in columns)) for c in classes]
    header = ("class", *(f"{m}, {escape(r)}" for r, m in columns))
    summary = f"<summary>{len(classes)} classes in numbers</summary>"
    return f"<details>{summary}{html_table(header, rows, len(columns))}</details>"


def picture_table(rows: Sequence[PictureRow], task: str) -> str:
    """Show pictures side by side, with a legend of the colours below each row."""
    lines = []
    for row in rows:
        chips = "".join(
            f'<span class="chip"><i style="background: rgb{color}"></i>{escape(text)}</span>'
            for text, color in row.legend.items()
        )
        lines.append("<tr>" + "".join(f"<th>{escape(name)}</th>" for name in row.pictures) + "</tr>")
        images = (picture_html(picture, f"{row.file_name}, {task}, {name}") for name, picture in row.pictures.items())
        lines.append("<tr>" + "".join(f"<td>{image}</td>" for image in images) + "</tr>")
        lines.append(f'<tr><td colspan="{len(row.pictures)}"><b>{escape(row.file_name)}</b> {chips}</td></tr>')
    return '<div class="wide"><table class="pictures">' + "\n".join(lines) + "</table></div>"
