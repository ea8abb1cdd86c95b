"""The variants of the model that are compared, and how each is trained and scored: by the tools for that."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from openworldsam.config import load_config
from openworldsam.data.datasets.coco import SEGMENTATION
from openworldsam.engine import cache_features, evaluate, train
from openworldsam.evaluation.benchmark import check_benchmarks
from openworldsam.evaluation.metrics.accumulator import named

ADAPTER, CONFIG = "adapter.safetensors", "config.yaml"
"""What a training leaves in its folder."""


class Variant(NamedTuple):
    """What a variant is, in words, and the config keys in which it differs from the full model."""

    what: str
    opts: tuple[str, ...] = ()


_NO_SOFT_PROMPT = ("MODEL.ADAPTER.NUM_LAYERS", "0")
_TEXT_ONLY = ("MODEL.PROMPT_ENCODER.USE_IMAGE", "False")
VARIANTS = {
    "E1": Variant("no tie-breakers, no soft prompting", ("MODEL.ADAPTER.NUM_TIE_BREAKERS", "0", *_NO_SOFT_PROMPT)),
    "E3": Variant("tie-breakers, no soft prompting", _NO_SOFT_PROMPT),
    "E5": Variant("the model, fusion `replace`"),
    "text_only": Variant("E5, its prompt encoder does not see the image", _TEXT_ONLY),
    "add": Variant("E5, fusion `add`", ("MODEL.ADAPTER.FUSION", "add")),
    "broadcast": Variant("E5, fusion `broadcast`", ("MODEL.ADAPTER.FUSION", "broadcast")),
}
_PLACES = {"OUTPUT_DIR", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS"}
"""Config keys that say where a run is made, not what it is."""


@dataclass(frozen=True)
class Experiment:
    """Runs of the variants that differ in nothing else.

    config_file, opts: of the full model, E5.
    folder: gets a folder NAME/seedN for each run, and the caches.
    benchmarks: datasets to score on.
    iterations: of each training, in place of SOLVER.MAX_ITER; SOLVER.STEPS shrink with it. 0: as configured.
    features: "none" or "all", what feature caches hold beside prompt embeddings; empty: train without a cache.

    Raises:
        ValueError: the config is not that of the full model, or a benchmark has no PQ, AP and mIoU.
    """

    config_file: str
    folder: Path
    benchmarks: tuple[str, ...] = ("shapes_val",)
    opts: tuple[str, ...] = ()
    iterations: int = 0
    features: str = ""

    def __post_init__(self) -> None:
        cfg = self.cfg
        adapter = cfg.MODEL.ADAPTER
        whole = adapter.NUM_TIE_BREAKERS and adapter.NUM_LAYERS and cfg.MODEL.PROMPT_ENCODER.USE_IMAGE
        if not whole or adapter.FUSION != "replace":
            raise ValueError(
                "the config is that of E5, which the others are compared with: it needs tie-breakers, soft-prompt "
                "layers, MODEL.ADAPTER.FUSION replace and MODEL.PROMPT_ENCODER.USE_IMAGE True"
            )
        cfg.DATASETS.TEST = list(self.benchmarks)
        check_benchmarks(cfg)
        for name in self.benchmarks:
            if not {*SEGMENTATION} <= {*MetadataCatalog.get(name).tasks}:
                raise ValueError(f"the ablation compares PQ, AP and mIoU, on which {name} is not scored")

    @property
    def cfg(self) -> CfgNode:
        """The config of the full model, a new one each time."""
        return load_config(self.config_file, self.opts)

    @cached_property
    def _schedule(self) -> tuple[str, ...]:
        if not self.iterations:
            return ()
        solver, last = self.cfg.SOLVER, self.iterations
        steps = {round(step * last / solver.MAX_ITER) for step in solver.STEPS}
        return "SOLVER.MAX_ITER", str(last), "SOLVER.STEPS", str(sorted(s for s in steps if 0 < s < last))

    def run_folder(self, name: str, seed: int) -> Path:
        """Where a run is."""
        return self.folder / name / f"seed{seed}"

    def cache(self, name: str) -> Path:
        """The feature cache of a variant: one for each prompt encoder."""
        return self.folder / ("cache_text_only" if _TEXT_ONLY[0] in VARIANTS[name].opts else "cache")

    def options(self, name: str, seed: int) -> list[str]:
        """The config keys of a run. Its adapter begins anew, whatever MODEL.WEIGHTS is, and is scored in the end."""
        opts = [*self.opts, *self._schedule, *VARIANTS[name].opts, "MODEL.WEIGHTS", "", "TEST.EVAL_PERIOD", "0"]
        if self.features:
            opts += ["DATASETS.FEATURE_CACHE", str(self.cache(name))]
        return [*opts, "SEED", str(seed), "OUTPUT_DIR", str(self.run_folder(name, seed))]

    def build_caches(self, work: Sequence[tuple[str, int]]) -> None:
        """Make the caches that the trainings among these runs (name, seed) need.

        Raises:
            ChildProcessError: it failed, and has said why.
        """
        waiting = [(name, seed) for name, seed in work if not (self.run_folder(name, seed) / ADAPTER).exists()]
        for cache, run in {self.cache(name): (name, seed) for name, seed in waiting}.items():
            words = ["--output", str(cache), "--image-features", self.features, *self.options(*run)]
            in_own_process(cache_features.main, ["--config-file", self.config_file, *words])

    def run(self, name: str, seed: int) -> None:
        """Train and score a variant; what is there of it already is not done again.

        Raises:
            ValueError: what is there was made with other settings.
            ChildProcessError: the training or evaluation failed, and has said why.
        """
        folder, opts = self.run_folder(name, seed), self.options(name, seed)
        config = ["--config-file", self.config_file]
        if (folder / CONFIG).exists():
            wanted = flat(yaml.safe_load(load_config(self.config_file, opts).dump()))
            if different := differences(read_settings(folder), wanted):
                raise ValueError(f"{folder} was made with another {', '.join(different)}; use another --output")
        if not (folder / ADAPTER).exists():
            in_own_process(train.main, [*config, "--resume", *opts])
        results = folder / evaluate.RESULTS
        scored = [*read_results(results)["benchmarks"]] if results.exists() else []
        if not {*self.benchmarks} <= {*scored}:  # the file is written anew: what it held must be in it again
            words = ["--benchmarks", *dict.fromkeys([*scored, *self.benchmarks]), "--output", str(folder), *opts]
            in_own_process(evaluate.main, [*config, *words, "MODEL.WEIGHTS", str(folder / ADAPTER)])


def read_results(path: Path) -> dict[str, Any]:
    """The content of a results.json."""
    with named(path):
        results: dict[str, Any] = json.loads(path.read_text())
    return results


def read_settings(folder: Path) -> dict[str, Any]:
    """The config that a run was trained with, by key."""
    return flat(yaml.safe_load((folder / CONFIG).read_text()))


def flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A nested config by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return found


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys in which two runs differ; those that only one has are of another version of the code."""
    return sorted(key for key in one.keys() & other.keys() - _PLACES if one[key] != other[key])


def in_own_process(main: Callable[[Sequence[str]], None], words: Sequence[str]) -> None:
    """Run the main function of a tool as a process of its own: memory, loggers and generators are those of a new one.

    Raises:
        ChildProcessError: it failed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports once for all runs
    process = context.Process(target=main, args=(list(words),))
    process.start()
    try:
        process.join()
    finally:
        process.terminate()
    if process.exitcode:
        raise ChildProcessError(
            f"{main.__module__} ended with exit status {process.exitcode}; the same command goes on"
        )
