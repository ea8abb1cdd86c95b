"""Variants of the model, each trained and scored by the train and evaluation tools."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from openworldsam.config import load_config
from openworldsam.data.datasets.catalog import SEGMENTATION
from openworldsam.engine import cache_features, evaluate, train
from openworldsam.engine.checks import check_evaluation
from openworldsam.utils.files import read_json
from openworldsam.utils.safe_yaml import read_yaml

ADAPTER, CONFIG = "adapter.safetensors", "config.yaml"
"""Files that a training leaves in its folder."""


class Variant(NamedTuple):
    """A variant: its description, and the config keys in which it differs from the full model."""

    title: str
    opts: tuple[str, ...] = ()


_NO_SOFT_PROMPT = ("MODEL.ADAPTER.NUM_LAYERS", "0")
_TEXT_ONLY = ("MODEL.PROMPT_ENCODER.USE_IMAGE", "False")
VARIANTS = {
    "E1": Variant("no tie-breakers, no soft prompting", ("MODEL.ADAPTER.NUM_TIE_BREAKERS", "0", *_NO_SOFT_PROMPT)),
    "E3": Variant("tie-breakers, no soft prompting", _NO_SOFT_PROMPT),
    "E5": Variant("full model, fusion `replace`"),
    "text_only": Variant("E5, prompt encoder without the image", _TEXT_ONLY),
    "add": Variant("E5, fusion `add`", ("MODEL.ADAPTER.FUSION", "add")),
    "broadcast": Variant("E5, fusion `broadcast`", ("MODEL.ADAPTER.FUSION", "broadcast")),
}
_PLACES = {"OUTPUT_DIR", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS"}
"""Config keys that describe where a run is computed; they may differ."""


@dataclass(frozen=True)
class Experiment:
    """Runs that differ only in variant and seed.

    Args:
        config_file, opts: config of the full model, E5.
        folder: gets a folder NAME/seedN for each run, and the feature caches.
        benchmarks: datasets to score on.
        iterations: replaces SOLVER.MAX_ITER, and SOLVER.STEPS are scaled; 0 keeps both.
        features: image features in the feature caches, "none" or "all"; empty to train without a cache.

    Raises:
        ValueError: the config is not of the full model, or a benchmark has no PQ, AP and mIoU.
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
                "the config must be that of E5, the full model: tie-breakers, soft-prompt layers, "
                "MODEL.ADAPTER.FUSION replace and MODEL.PROMPT_ENCODER.USE_IMAGE True"
            )
        cfg.DATASETS.TEST = list(self.benchmarks)
        check_evaluation(cfg)
        for name in self.benchmarks:
            if not {*SEGMENTATION} <= {*MetadataCatalog.get(name).tasks}:
                raise ValueError(f"{name} is not scored by PQ, AP and mIoU, which the ablation compares")

    @property
    def cfg(self) -> CfgNode:
        """A new copy of the full model's config."""
        return load_config(self.config_file, self.opts)

    def run_folder(self, name: str, seed: int) -> Path:
        """Return the folder of a run."""
        return self.folder / name / f"seed{seed}"

    def cache(self, name: str) -> Path:
        """Return the folder of a variant's feature cache; variants with the same prompt encoder share one."""
        return self.folder / ("cache_text_only" if _TEXT_ONLY[0] in VARIANTS[name].opts else "cache")

    def options(self, name: str, seed: int) -> list[str]:
        """Return the config keys of a run, which trains a new adapter and is evaluated only at the end."""
        opts = [*self.opts, *VARIANTS[name].opts, "MODEL.WEIGHTS", "", "TEST.EVAL_PERIOD", "0"]
        if last := self.iterations:
            solver = self.cfg.SOLVER
            steps = {round(step * last / solver.MAX_ITER) for step in solver.STEPS}
            opts += ["SOLVER.MAX_ITER", str(last), "SOLVER.STEPS", str(sorted(s for s in steps if 0 < s < last))]
        if self.features:
            opts += ["DATASETS.FEATURE_CACHE", str(self.cache(name))]
        return [*opts, "SEED", str(seed), "OUTPUT_DIR", str(self.run_folder(name, seed))]

    def build_caches(self, work: Sequence[tuple[str, int]]) -> None:
        """Build the feature caches for those of the runs (name, seed) that are not trained yet.

        Raises:
            ChildProcessError: building failed; the subprocess has printed why.
        """
        waiting = [(name, seed) for name, seed in work if not (self.run_folder(name, seed) / ADAPTER).exists()]
        for cache, run in {self.cache(name): (name, seed) for name, seed in waiting}.items():
            words = ["--output", str(cache), "--image-features", self.features, *self.options(*run)]
            run_in_subprocess(cache_features.main, ["--config-file", self.config_file, *words])

    def run(self, name: str, seed: int) -> None:
        """Train and score a variant, as far as this has not been done yet.

        Raises:
            ValueError: the run's folder was made with other settings.
            ChildProcessError: training or evaluation failed; the subprocess has printed why.
        """
        folder, opts = self.run_folder(name, seed), self.options(name, seed)
        config = ["--config-file", self.config_file]
        if (folder / CONFIG).exists():
            wanted = flat(yaml.safe_load(load_config(self.config_file, opts).dump()))
            if different := differences(read_settings(folder), wanted):
                raise ValueError(f"{folder} was made with another {', '.join(different)}; use another --output")
        if not (folder / ADAPTER).exists():
            run_in_subprocess(train.main, [*config, "--resume", *opts])
        results = folder / evaluate.RESULTS
        scored = [*read_json(results)["benchmarks"]] if results.exists() else []
        if not {*self.benchmarks} <= {*scored}:  # the file is replaced, so all of its benchmarks are scored again
            words = ["--benchmarks", *dict.fromkeys([*scored, *self.benchmarks]), "--output", str(folder), *opts]
            run_in_subprocess(evaluate.main, [*config, *words, "MODEL.WEIGHTS", str(folder / ADAPTER)])


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the config that a run was trained with, by dotted key."""
    return flat(read_yaml(folder / CONFIG))


def flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Flatten a nested config to dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return found


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """List the keys in which two runs differ; a key that only one of them has belongs to another code version."""
    return sorted(key for key in one.keys() & other.keys() - _PLACES if one[key] != other[key])


def run_in_subprocess(main: Callable[[Sequence[str]], None], words: Sequence[str]) -> None:
    """Run the main function of a tool in a new process, with fresh memory, loggers and random generators.

    Raises:
        ChildProcessError: the process failed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # import once for all runs
    process = context.Process(target=main, args=(list(words),))
    process.start()
    try:
        process.join()
    finally:
        process.terminate()
    if process.exitcode:
        raise ChildProcessError(
            f"{main.__module__} ended with exit status {process.exitcode}; the same command continues"
        )
