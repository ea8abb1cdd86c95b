"""Tables of a benchmark from the content of its json, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from openworldsam.speed.pipeline import PER_IMAGE, STAGES

Content = Mapping[str, Any]
"""Content of benchmark.json."""


def markdown(content: Content) -> str:
    """The whole report."""
    names = [c["name"] for c in content["configurations"]]
    parts = [_about(content), _costs(content["records"])]
    if len(names) == 2:
        parts.append(_ratios(content["records"], *names))
    return "\n\n".join(parts) + "\n"


def _about(content: Content) -> str:
    machine, peaks = content["machine"], content["peaks"]
    memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB"
    gpu = f", {machine['gpu']} ({machine['gpu_memory_bytes'] / 2**30:.0f} GiB)" if machine["gpu"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    rates = [f"{rate / 1e9:,.0f} GFLOP/s {kind}" for kind, rate in peaks.items() if kind != "copy"]
    rates.append(f"{peaks['copy'] / 1e9:,.1f} GB/s read and written by a copy")
    loads = " and ".join(f"{load:.1f}" for load in machine["load"])
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, {memory}{gpu}; {versions}.",
        f"{content['date']}, load before and after: {loads}. Best rates just before: {', '.join(rates)}.",
        f"Median of {content['repeats']}, after {content['warmup']} to warm up; image {content['image']}.",
        *(
            f"{c['name']}: {c['config']}, preset {c['preset']}, {c['parameters'] / 1e6:,.1f} M parameters, "
            f"weights {c['weights']}, tokenizer {c['tokenizer']}."
            for c in content["configurations"]
        ),
    ]
    return "  \n".join(lines)


def _costs(records: Iterable[Mapping[str, Any]]) -> str:
    rows = []
    for r in records:
        row = [r["configuration"], _variant(r), r["work"], r["images"], r["prompts"] or ""]
        if r["error"]:
            rows.append([*row, r["error"]])
            continue
        over = r["median_s"] / r["floor_s"] if r["floor_s"] else None
        row += [_number(r[key], 1e3) for key in ("median_s", "p90_s", "floor_s")] + [_number(over)]
        row += [_number(r["operations"], 1e-9), _number(r["bytes"], 1e-6), _number(r["peak_bytes"], 1e-6)]
        row.append("" if r["waits"] is None else r["waits"])
        rows.append([*row, _number(r["images_per_s"]), _number(r["prompts_per_s"])])
    header = ("configuration", "run", "work", "images", "prompts", "median ms", "p90 ms", "floor ms", "time / floor")
    return _table(rows, (*header, "GFLOP", "MB moved", "peak MB", "waits", "images/s", "prompts/s"), text=3)


def _ratios(records: Sequence[Mapping[str, Any]], ours: str, other: str) -> str:
    """Ratios of the second configuration's costs to the first's."""
    of_other = {_key(r): r for r in records if r["configuration"] == other}
    rows = []
    for a in (r for r in records if r["configuration"] == ours):
        # plain has no cache to train from
        b = of_other.get(_key(a)) or of_other.get(_key({**a, "work": a["work"].split(",")[0] + ", no cache"}))
        if b is None or a["error"] or b["error"]:
            continue
        ratios = [b[key] / a[key] if a[key] and b[key] else None for key in ("median_s", "operations", "peak_bytes")]
        run, prompts, theirs = _variant(a), a["prompts"] or "", _number(b["median_s"], 1e3)
        rows.append([run, a["work"], prompts, _number(a["median_s"], 1e3), theirs, *map(_number, ratios)])
        if a["work"] == "whole" and other == "plain":
            again = _without_image(records, a)
            times = _number(b["median_s"] / again)
            rows.append([run, "the same image again", prompts, _number(again, 1e3), theirs, times])
    header = ("run", "work", "prompts", f"{ours} ms", f"{other} ms", "time x", "operations x", "peak memory x")
    return _table(rows, header, text=2)


def _without_image(records: Iterable[Mapping[str, Any]], whole: Mapping[str, Any]) -> float:
    """Seconds for prompts about an encoded image: the sum of the medians of the stages that depend on prompts."""
    same = ("configuration", "precision", "compiled", "prompts")
    return sum(
        r["median_s"]
        for r in records
        if r["work"] in STAGES and r["work"] not in PER_IMAGE and all(r[key] == whole[key] for key in same)
    )


def _key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record[key] for key in ("work", "images", "prompts", "precision", "compiled"))


def _variant(record: Mapping[str, Any]) -> str:
    return record["precision"] + (", compiled" if record["compiled"] else "")


def _number(value: float | None, scale: float = 1) -> str:
    """Format with three digits."""
    if value is None:
        return ""
    scaled = value * scale
    return f"{scaled:,.0f}" if scaled >= 100 else f"{scaled:.3g}"


def _table(rows: Sequence[Sequence[Any]], header: Sequence[str], text: int) -> str:
    """Markdown table whose first columns are text, and the others numbers."""
    align = ("left",) * text + ("right",) * (len(header) - text)
    full = [[*row, *[""] * (len(header) - len(row))] for row in rows]
    return tabulate(full, header, tablefmt="pipe", disable_numparse=True, colalign=align)
