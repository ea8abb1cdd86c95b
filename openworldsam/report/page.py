"""Parts of the page: one HTML file with embedded images and without scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from openworldsam.engine.evaluate import ASKED
from openworldsam.evaluation.exposure import exposure
from openworldsam.evaluation.paper_tables import Number
from openworldsam.evaluation.summary import HEADLINES, NOTES, headlines, image_count, incomparable, number, score_line
from openworldsam.report.evaluations import CLASS_METRICS, ClassMetrics, Evaluation
from openworldsam.report.html import Html, join, note, tag
from openworldsam.report.pictures import PictureRow
from openworldsam.visualization.drawing import RGBImage

STYLE = """
:root { color-scheme: light dark; --ink: #1e1e1e; --paper: #fff; --line: #ddd; --note: #666; --link: #0645ad }
@media (prefers-color-scheme: dark) {
    :root { --ink: #e6e6e6; --paper: #161616; --line: #444; --note: #aaa; --link: #8ab4f8 }
    .chart { background: #fff } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1500px; padding: 0 1.2rem;
    color: var(--ink); background: var(--paper) }
h1, h2, h3 { line-height: 1.2 } h2 { border-top: 2px solid; padding-top: .6rem; margin-top: 2.5rem }
h1, h2, h3 { scroll-margin-top: 3rem; overflow-wrap: anywhere } a { color: var(--link) }
table { border-collapse: collapse; margin: .8rem 0 } .wide { overflow-x: auto }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
td { min-width: 4.5em } code { overflow-wrap: anywhere } td.number, th.number { text-align: right }
td.number { font-variant-numeric: tabular-nums }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 320px)); gap: .2rem .6rem }
.pictures figure { margin: 0 } .pictures img { width: 100% }
.chip { display: inline-block; margin: 0 .8rem .8rem 0 }
.chip i { display: inline-block; width: .9em; height: .9em; margin-right: .35em; vertical-align: -.1em }
.wide img { max-width: max(100%, 700px) } .chart { width: fit-content; max-width: 100% }
.note { color: var(--note) } .bad { color: #e0304a }
nav { position: sticky; top: 0; background: var(--paper); display: flex; flex-wrap: wrap; gap: .2rem 1rem;
    padding: .4rem 0 }
@media (max-width: 640px) { table { font-size: 13px } th, td { padding-right: .5rem } }
"""


META = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'


def page(title: str, sections: Sequence[tuple[str, Html]]) -> str:
    """Assemble the document from a title and the heading and body of each section."""
    links = join((tag("a", heading, href=f"#s{i}") for i, (heading, _) in enumerate(sections)), "\n")
    parts = [join((tag("h2", heading, id=f"s{i}"), body), "\n") for i, (heading, body) in enumerate(sections)]
    head = tag("head", Html(META), tag("title", title), tag("style", Html(STYLE)))
    body = tag("body", join((tag("h1", title), tag("nav", links), *parts), "\n"))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def html_table(header: Sequence[object], rows: Iterable[Sequence[object]], numbers: int = 0) -> Html:
    """Build a table; the last `numbers` columns are right-aligned."""
    first = len(header) - numbers

    def line(cells: Sequence[object], kind: str) -> Html:
        return tag("tr", *(tag(kind, cell, class_="number" if i >= first else "") for i, cell in enumerate(cells)))

    lines = [line(header, "th"), *(line(row, "td") for row in rows)]
    return tag("div", tag("table", join(lines, "\n")), class_="wide")


def figure_html(figure: Figure, alt: str) -> Html:
    """Embed a chart in the page."""
    image = _embedded(lambda file: figure.savefig(file, format="png", dpi=110), "png", alt)
    return tag("div", image, class_="wide chart")


def picture_html(picture: RGBImage, alt: str) -> Html:
    """Embed a picture, uint8 [H, W, 3], in the page."""
    return _embedded(lambda file: Image.fromarray(picture).save(file, format="WebP", quality=70), "webp", alt)


def _embedded(save: Callable[[io.BytesIO], None], kind: str, alt: str) -> Html:
    save(file := io.BytesIO())
    text = base64.b64encode(file.getvalue()).decode()
    return tag("img", alt=alt, src=f"data:image/{kind};base64,{text}")


def about_runs(runs: Sequence[Evaluation]) -> Html:
    """Tabulate preset, protocol, prompt options, score, weights and command, with a column per run."""
    columns = []
    for run in runs:
        content = run.content
        options = {key: content.get(key) for key in map(str.lower, ASKED)}
        prompts = ", ".join(f"{key} {value}" for key, value in options.items() if value is not None)
        score = score_line(content["score"]) if "score" in content else ""
        weights = join((_source(name, source) for name, source in content["weights"].items()), "<br>")
        command = join((tag("code", content["command"]), f"{content.get('seconds')} s"), "<br>")
        columns.append((content["preset"], content["protocol"], prompts, score, weights, command))
    names = ("preset", "protocol", "prompts", "score", "weights", "command and time")
    return html_table(("run", *(run.name for run in runs)), zip(names, *columns, strict=True))


def _source(name: str, source: dict[str, Any]) -> Html:
    origin = (f"{name}: {source['layout']}, ", tag("code", source["fingerprint"][:12]))
    return join((*origin, " ", tag("span", source["note"], class_="note")) if source.get("note") else origin)


def scores(runs: Sequence[Evaluation], benchmarks: Sequence[str]) -> Html:
    """Tabulate the number of images and the headline metrics of every run, with the paper's number and the difference,
    or why there is none; below it, what the weights have seen of the benchmarks."""
    found = [headlines(run.benchmarks, run.paper) for run in runs]
    rows: list[tuple[object, ...]] = []
    for name in benchmarks:
        scored = [run.benchmarks.get(name) for run in runs]
        rows.append((name, "images", *(image_count(content) if content else "n/a" for content in scored)))
        for column in ((name, task, metric) for task, metrics in HEADLINES.items() for metric in metrics):
            if any(column in values for values in found):
                cells = (_score(*values.get(column, (None, None))) for values in found)
                rows.append((name, f"{column[1]} {column[2]}", *cells))
    table = html_table(("benchmark", "metric", *(run.name for run in runs)), rows, len(runs))
    lines = []
    for run in runs:
        measured = [name for name in benchmarks if name in run.benchmarks]
        said = exposure(run.content["weights"], measured) + incomparable(run.benchmarks, run.paper)
        lines += [note(f"{run.name}: {line}") for line in said]
    return join((table, *lines))


def _score(value: float | None, paper: Number | None) -> Html:
    difference = f", {value - paper.value:+.2f}" if paper and value is not None else ""
    beside = (" ", tag("span", f"paper {paper.value:.1f}{difference}", class_="note")) if paper else ()
    return join((number(value, ".2f"), *beside))


def notes(runs: Sequence[Evaluation], benchmarks: Sequence[str]) -> Html:
    """Tabulate every missing benchmark, every part of a benchmark, and every image that was not scored or has an empty
    ground truth."""
    rows = []
    for run in runs:
        rows += [(run.name, name, "missing", reason) for name, reason in run.content.get("missing", {}).items()]
        for name in (name for name in benchmarks if name in run.benchmarks):
            content = run.benchmarks[name]
            if content.get("dataset_images") is None:
                rows.append((run.name, name, f"{content['images']} images scored", "of how many is not recorded"))
            elif " of " in (counted := image_count(content)):
                lost = len(content.get("skipped", {}))
                left = content["dataset_images"] - content["images"] - lost
                reason = f"{lost} could not be read, {left} were not asked for"
                rows.append((run.name, name, f"{counted} images scored", reason))
            for kind, verb in NOTES.items():
                rows += [(run.name, name, f"{verb}: {file}", reason) for file, reason in content.get(kind, {}).items()]
    if not rows:
        return tag("p", "Every image of every benchmark was read and scored.")
    return html_table(("run", "benchmark", "note", "reason"), rows)


def class_table(runs: Mapping[str, ClassMetrics], classes: Sequence[str]) -> Html:
    """Tabulate the metrics of all classes, folded up."""
    columns = [(run, metric) for metric in CLASS_METRICS for run, metrics in runs.items() if metric in metrics]
    rows = [(c, *(number(runs[r][m].get(c), ".1f") for r, m in columns)) for c in classes]
    table = html_table(("class", *(f"{m}, {r}" for r, m in columns)), rows, len(columns))
    return tag("details", tag("summary", f"{len(classes)} classes in numbers"), table)


def picture_table(rows: Sequence[PictureRow], task: str) -> Html:
    """Show pictures side by side, as far as the screen is wide enough, with a legend of the colours below each row."""
    parts = []
    for row in rows:
        chips = [
            tag("span", tag("i", style=f"background: rgb{color}"), text, class_="chip")
            for text, color in row.legend.items()
        ]
        figures = [
            tag("figure", tag("figcaption", name), picture_html(picture, f"{row.file_name}, {task}, {name}"))
            for name, picture in row.pictures.items()
        ]
        parts.append(tag("div", *figures, class_="pictures"))
        parts.append(tag("p", tag("b", row.file_name), " ", *chips))
    return join(parts, "\n")
