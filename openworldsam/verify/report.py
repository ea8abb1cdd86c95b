"""The report of a verification in sentences, and as a Markdown page to attach to an issue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from openworldsam.utils.text import shortened
from openworldsam.verify.fusions import verdict

Content = Mapping[str, Any]
"""Result of `verify`."""
TELLING = {"beit3": ("evf_sam2_multitask", "evf_sam2", "beit3_large"), "sam2": ("sam2_hiera_large",)}
"""Downloads that a released checkpoint's components may come from."""


def summary(content: Content) -> list[str]:
    """Sentences: the file, the origin of each component, the fusion, and everything odd."""
    copies = content["copies"]
    lines = [
        f"file: {content['file']}, layout {content['layout']}, {copies['tensors']:,} tensors, of which "
        f"{copies['copies']:,} are second copies and {copies['not_read']:,} are not read; SHA-256 {content['sha256']}"
    ]
    lines += [_origin(name, compared) for name, compared in content["compared"].items() if compared or name in TELLING]
    lines.append(_fusion(content))
    if content["note"]:
        lines.append(f"note of the file: {content['note']}")
    return [*lines, *_odd(content)]


def _origin(component: str, compared: Content) -> str:
    """Name the public file that a component equals, or comes closest to."""
    same = [file for file, found in compared.items() if found["equal"] == found["tensors"]]
    if same:
        return f"{component}: equal to that of {' and '.join(same)} in all {compared[same[0]]['tensors']:,} tensors"
    near = {file: found for file, found in compared.items() if found["comparable"] == found["tensors"]}
    advice = " ".join(TELLING.get(component, ()))
    advice = f"; `openworldsam download {advice}` fetches the files to compare with" if advice else ""
    if not near:
        return f"{component}: no public file at hand has its shapes{advice}"
    closest = min(near, key=lambda file: near[file]["difference"])
    found = near[closest]
    return (
        f"{component}: equal to none at hand; closest is {closest}, {found['equal']:,} of {found['tensors']:,} tensors "
        f"equal, relative difference {found['difference']:.2g}{advice}"
    )


def _fusion(content: Content) -> str:
    if content["fusions"]:
        return verdict(content["fusions"])
    if content["loads"]:
        return "fusion: not tried, the weights do not fit the config"
    return "fusion: not tried, no COCO panoptic images at hand (--images DIR, or DETECTRON2_DATASETS)"


def _odd(content: Content) -> list[str]:
    lines = [f"does not fit config {content['config']}: {content['loads']}"] if content["loads"] else []
    odd = {"second copies that differ from the first": content["copies"]["differing"]}
    for name, facts in content["components"].items():
        odd[f"constant tensors of {name}, as before a training"] = facts["constant"]
        odd[f"tensors of {name} with values beyond 1,000"] = facts["unusual"]
    named = [(kind, names) for kind, names in odd.items() if names]
    return lines + [f"odd: {len(names)} {kind}, such as {shortened(names[0], 200)}" for kind, names in named]


def markdown(content: Content) -> str:
    """The whole report."""
    size = f"{content['bytes']:,} bytes" if content["bytes"] is not None else "a folder or several files"
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    parts = [
        f"# {content['file']}",
        "\n".join(f"* {line}" for line in summary(content)),
        f"{size}; config {content['config']}, preset {content['preset']}; {versions}",
        "## Components",
        _table(_components(content), ("component", "tensors", "parameters", "formats", "fingerprint", "values", "rms")),
    ]
    rows = [
        (
            name,
            file,
            found["comparable"],
            found["equal"],
            "" if found["difference"] is None else f"{found['difference']:.2g}",
        )
        for name, compared in content["compared"].items()
        for file, found in compared.items()
    ]
    if rows:
        header = ("component", "public file", "tensors of equal shape", "equal", "relative difference")
        parts += ["## Compared with public files", _table(rows, header)]
    if content["fusions"]:
        parts += ["## Fusions", *_fusions(content["fusions"])]
    return "\n\n".join(parts) + "\n"


def _components(content: Content) -> list[tuple[object, ...]]:
    return [
        (
            name,
            facts["tensors"],
            f"{facts['parameters']:,}",
            ", ".join(f"{number} {kind}" for kind, number in facts["formats"].items()),
            facts["fingerprint"],
            f"{facts['smallest']:.4g} to {facts['largest']:.4g}",
            f"{facts['rms']:.3g}",
        )
        for name, facts in content["components"].items()
    ]


def _fusions(found: Content) -> list[str]:
    rows = []
    for fusion, iou in found["mean_iou"].items():
        lead = found["leads"].get(fusion, {"mean": None, "error": None})
        rows.append((fusion, _number(iou), _number(lead["mean"]), _number(lead["error"])))
    about = (
        f"{found['images']} images, each asked for the classes that it has. Mean IoU (%): over images, of the mean "
        "over the ground-truth masks of the IoU with the best of their prompts' queries."
    )
    skipped = [f"Skipped {file}: {reason}" for file, reason in found["skipped"].items()]
    return [about, _table(rows, ("fusion", "mean IoU", "behind the best", "standard error")), *skipped]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    return tabulate(rows, header, tablefmt="pipe", disable_numparse=True)
