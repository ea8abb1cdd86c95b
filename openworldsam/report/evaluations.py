"""Reads what evaluations have written, and derives what the page shows of every class.

Shapes: n classes in the rows and m in the columns of a confusion table.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from openworldsam.engine.evaluate import PREDICTIONS, RESULTS
from openworldsam.evaluation.answer import NO_CLASS
from openworldsam.evaluation.comparison import Comparison
from openworldsam.evaluation.metrics.semantic import SemanticScores
from openworldsam.evaluation.saved import SavedPredictions
from openworldsam.evaluation.summary import HEADLINES, Results, headlines, score_line
from openworldsam.utils.files import read_json

CLASS_METRICS = {"IoU": "semantic", "AP": "instance", "PQ": "panoptic"}
"""Per-class metrics with their tasks. Classes are sorted by the first one available, as in Fig. 9."""

ClassMetrics = dict[str, dict[str, float]]
"""Values by metric and class name, 0 to 100; without those that are not available."""

OVERVIEW = (
    "ade20k_150_val",
    "ade20k_847_val",
    "pascal_context_59_val",
    "pascal_context_459_val",
    "sun_rgbd_37_val",
    "scannet_40_val",
)
"""Six benchmarks of semantic segmentation, for Fig. 2; the paper's text does not name the six of its own."""

NOTHING = "no class"
"""Column of a confusion table for pixels without a predicted class."""


class Evaluation(NamedTuple):
    """The output folder of openworldsam evaluate: its name on the page, its path, and the content of results.json."""

    name: str
    folder: Path
    content: dict[str, Any]

    @property
    def benchmarks(self) -> Results:
        """The results by benchmark; see `Benchmark.content`."""
        return self.content["benchmarks"]

    @property
    def paper(self) -> Comparison:
        """Its place in the paper."""
        return Comparison(**self.content.get("paper", {"reason": "the results are of an older version"}))

    def saved(self, benchmark: str) -> SavedPredictions | None:
        """The saved predictions on a benchmark; None if it was evaluated without --save-predictions."""
        folder = self.folder / PREDICTIONS / benchmark
        return SavedPredictions.written(folder) if folder.is_dir() else None


def read_evaluations(folders: Sequence[Path], names: Sequence[str] | None = None) -> list[Evaluation]:
    """Read the results of evaluations from output folders of openworldsam evaluate.

    The page calls them by `names`, by default by the ends of their paths, as long as it takes to tell them apart.

    Raises:
        FileNotFoundError: a folder has no results.
        ValueError: results are damaged, or the names are not unique or not one per folder.
    """
    names = names or _path_ends([Path(os.path.realpath(folder)).parts for folder in folders])
    if len(names) != len(folders) or len(set(names)) < len(names):
        raise ValueError(f"--names needs {len(folders)} different names, one per run; got {', '.join(names)}")
    contents = [_read_results(folder / RESULTS) for folder in folders]
    return [Evaluation(*each) for each in zip(names, folders, contents, strict=True)]


def _path_ends(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Shorten paths to their last parts, the fewest that differ; to the last one if some are equal."""
    longest = max(map(len, paths), default=1)
    ends = (["/".join(parts[-kept:]) for parts in paths] for kept in range(1, longest + 1))
    return next((names for names in ends if len(set(names)) == len(names)), [parts[-1] for parts in paths])


def _read_results(path: Path) -> dict[str, Any]:
    """Read a results.json and check that it has everything the page shows."""
    content = read_json(path, f"openworldsam evaluate --output {path.parent} writes it")
    try:
        texts = [content["preset"], content["protocol"], content["command"], *content.get("missing", {}).values()]
        for source in content["weights"].values():
            texts += [source["layout"], source["fingerprint"]]
            texts += [source.get(key, "") for key in ("file", "note", "trained_on")]
        if "score" in content:
            texts.append(score_line(content["score"]))
        if "paper" in content:
            texts += [each or "" for each in Comparison(**content["paper"])]
        for benchmark in content["benchmarks"].values():
            if not isinstance(benchmark["images"], int) or not isinstance(benchmark.get("dataset_images") or 0, int):
                raise TypeError("a number of images is missing")
            texts += [benchmark["protocol"], *benchmark.get("skipped", {}).values()]
            texts += benchmark.get("remarks", {}).values()
            for task in HEADLINES.keys() & benchmark.keys():
                for metrics in (benchmark[task], *benchmark[task]["per_class"].values()):
                    for value in (value for name, value in metrics.items() if name != "per_class"):
                        if value is not None and not math.isfinite(value):
                            raise TypeError(f"a metric is {value!r}")
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a text is missing")
        json.dumps(content, ensure_ascii=False).encode()  # no half of a surrogate pair
    except (KeyError, TypeError, AttributeError, OverflowError, UnicodeEncodeError) as error:
        raise ValueError(f"{path} is not what openworldsam evaluate writes; evaluate again") from error
    return content


def families(benchmarks: Sequence[str]) -> dict[str, list[str]]:
    """Group benchmarks that share their classes: cityscapes_19 has a semantic and a panoptic one."""
    groups: dict[str, list[str]] = {}
    for name in benchmarks:
        groups.setdefault(re.sub(r"(_panoptic|_instance)?_val$", "", name), []).append(name)
    return groups


def overview_scores(run: Evaluation) -> dict[str, float]:
    """Return the mIoU on the benchmarks of Fig. 2 that can be compared with the paper's."""
    found = headlines(run.benchmarks, run.paper)
    values = {name: found.get((name, "semantic", "mIoU"), (None, None)) for name in OVERVIEW}
    return {name: value for name, (value, paper) in values.items() if paper and value is not None}


def class_metrics(run: Evaluation, benchmarks: Sequence[str]) -> ClassMetrics:
    """Return `CLASS_METRICS` over a family of benchmarks; a metric that no class has is left out."""
    found: ClassMetrics = {}
    for metric, task in CLASS_METRICS.items():
        for name in benchmarks:
            per_class = run.benchmarks.get(name, {}).get(task, {}).get("per_class", {})
            values = {c: metrics[metric] for c, metrics in per_class.items() if metrics.get(metric) is not None}
            if values:
                found[metric] = found.get(metric, {}) | values
    return found


class Confusion(NamedTuple):
    """Predicted classes of the pixels of some true classes.

    rows: n true classes.
    columns: m predicted classes; the last may be `NOTHING`.
    percent: [n, m], percentage of the pixels of each true class.
    """

    rows: list[str]
    columns: list[str]
    percent: np.ndarray


def confusion(saved: SavedPredictions, worst: int = 12, others: int = 12) -> Confusion | None:
    """Count what the classes with the lowest IoU are mistaken for, in predictions on a benchmark.

    Args:
        worst: number of true classes to show.
        others: most further columns; those that take most pixels of the shown classes.

    Returns:
        the table, worst class first, with the columns of the shown classes first and in the same order; None without
        semantic predictions or ground truth.
    """
    names = saved.class_names
    scores = SemanticScores(len(names), ignore=NO_CLASS)
    for image_id in tqdm(saved.image_ids(), unit="image", disable=None):  # None: only on a terminal
        predicted, truth = saved.answers(image_id)
        if predicted.semantic is None or truth.semantic is None:
            return None
        scores.update(predicted.semantic, truth.semantic)
    ious = {c: metrics["IoU"] for c, metrics in scores.compute().per_class.items() if metrics["IoU"] is not None}
    rows = sorted(ious, key=lambda c: (ious[c], c))[:worst]
    if not rows:
        return None
    counts = scores.confusion[rows]
    percent = 100 * counts / counts.sum(axis=1, keepdims=True)
    by_share = np.argsort(-percent.sum(axis=0), kind="stable").tolist()
    taking = [c for c in by_share if percent[:, c].any() and c not in rows]
    columns = rows + sorted(taking[:others], key=lambda c: c == len(names))
    texts = [*names, NOTHING]
    return Confusion([texts[c] for c in rows], [texts[c] for c in columns], percent[:, columns])
