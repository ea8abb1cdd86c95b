"""What evaluations have written, as the page needs it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from openworldsam.engine.evaluate import PREDICTIONS, RESULTS
from openworldsam.evaluation.answer import NO_CLASS
from openworldsam.evaluation.metrics.semantic import SemanticScores
from openworldsam.evaluation.paper_tables import Column, Number, paper_numbers
from openworldsam.evaluation.saved import SavedPredictions
from openworldsam.evaluation.summary import HEADLINES, Results

CLASS_METRICS = {"IoU": "semantic", "AP": "instance", "PQ": "panoptic"}
"""What is shown of every class, with its task; classes are sorted by the first that there is, as in Fig. 9."""

ClassMetrics = dict[str, dict[str, float]]
"""By metric and name of a class, 0 to 100; without those that are not available."""


class Run(NamedTuple):
    """A folder that tools/eval_net.py has filled: its name on the page, and the content of its results.json."""

    name: str
    folder: Path
    content: dict[str, Any]

    @property
    def benchmarks(self) -> Results:
        """See `Benchmark.content`."""
        found: Results = self.content["benchmarks"]
        return found

    @property
    def paper(self) -> Mapping[Column, Number]:
        """The paper's numbers for what was run, if it has such a row."""
        return paper_numbers(self.content.get("paper_row"))

    def saved(self, benchmark: str) -> SavedPredictions | None:
        """Its predictions; None if it was run without saving them."""
        folder = self.folder / PREDICTIONS / benchmark
        return SavedPredictions.written(folder) if folder.is_dir() else None


def read_runs(folders: Sequence[Path], names: Sequence[str] | None = None) -> list[Run]:
    """Read evaluations.

    Args:
        folders: their --output folders.
        names: of each, on the page; by default those of the folders.

    Raises:
        FileNotFoundError: a folder has no results.
        ValueError: results are damaged, or the names are not one, of its own, for each folder.
    """
    names = names or [folder.resolve().name for folder in folders]
    if len(names) != len(folders) or len(set(names)) < len(names):
        raise ValueError(f"give {len(folders)} runs as many names, all different (--names); got {', '.join(names)}")
    return [Run(name, folder, _read_results(folder / RESULTS)) for name, folder in zip(names, folders, strict=True)]


def _read_results(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        for benchmark in content["benchmarks"].values():
            _check_benchmark(benchmark)
        texts = [content["preset"], content["protocol"], content["command"], *content.get("missing", {}).values()]
        texts += [source[key] for source in content["weights"].values() for key in ("layout", "fingerprint")]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("something is no text")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} not found; tools/eval_net.py --output {path.parent} writes it") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not what tools/eval_net.py writes; it may be cut short") from error
    return content


def _check_benchmark(content: Mapping[str, Any]) -> None:
    """KeyError, TypeError or AttributeError if a benchmark lacks what the page shows."""
    said = [*content.get("skipped", {}).values(), *content.get("remarks", {}).values()]
    if not all(isinstance(text, str) for text in [content["protocol"], *said]):
        raise TypeError("something is no text")
    for task in HEADLINES.keys() & content.keys():
        for metrics in (content[task], *content[task]["per_class"].values()):
            for value in (value for name, value in metrics.items() if name != "per_class"):
                if value is not None and not isinstance(value, (int, float)):
                    raise TypeError(f"a metric is {value!r}")


def families(benchmarks: Sequence[str]) -> dict[str, list[str]]:
    """Benchmarks that are of the same classes by what they have in common: cityscapes_19 has semantic and panoptic."""
    found: dict[str, list[str]] = {}
    for name in benchmarks:
        found.setdefault(re.sub(r"(_panoptic|_instance)?_val$", "", name), []).append(name)
    return found


def class_metrics(run: Run, benchmarks: Sequence[str]) -> ClassMetrics:
    """`CLASS_METRICS` of a family of benchmarks, those of them that are available for a class at least."""
    found: ClassMetrics = {}
    for metric, task in CLASS_METRICS.items():
        per_class = [run.benchmarks.get(name, {}).get(task, {}).get("per_class", {}) for name in benchmarks]
        values = {
            c: metrics[metric] for each in per_class for c, metrics in each.items() if metrics.get(metric) is not None
        }
        if values:
            found[metric] = values
    return found


class Confusion(NamedTuple):
    """Of the pixels of each of R classes, the percentage that was taken for each of C others.

    rows: R names; columns: C names, the last may be `NOTHING`; percent: [R, C].
    """

    rows: list[str]
    columns: list[str]
    percent: np.ndarray


NOTHING = "no class"


def confusion(saved: SavedPredictions, worst: int = 12, others: int = 12) -> Confusion | None:
    """What the classes of the lowest IoU are taken for.

    Args:
        saved: predictions of a benchmark.
        worst: number of classes, of those that the ground truth has.
        others: most columns beside these: the classes that take most of their pixels.

    Returns:
        worst first, their own columns in the same order; None without semantic predictions or ground truth.
    """
    names = saved.class_names
    scores = SemanticScores(len(names), ignore=NO_CLASS)
    for image_id in tqdm(saved.image_ids(), unit="image", disable=None):  # None: only on a terminal
        answers = saved.answers(image_id)
        if answers[0].semantic is None or answers[1].semantic is None:
            return None
        scores.update(answers[0].semantic, answers[1].semantic)
    ious = {c: metrics["IoU"] for c, metrics in scores.compute().per_class.items() if metrics["IoU"] is not None}
    rows = sorted(ious, key=lambda c: (ious[c], c))[:worst]
    if not rows:
        return None
    counts = scores.confusion[rows]
    shares = 100 * counts / counts.sum(axis=1, keepdims=True)
    taking = [
        c for c in np.argsort(-shares.sum(axis=0), kind="stable").tolist() if shares[:, c].any() and c not in rows
    ]
    columns = rows + sorted(taking[:others], key=lambda c: c == len(names))
    return Confusion(
        [names[c] for c in rows], [NOTHING if c == len(names) else names[c] for c in columns], shares[:, columns]
    )
