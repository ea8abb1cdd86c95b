"""Variants of the model, each trained and scored by the train and evaluation tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from openworldsam.ablation.jobs import Job
from openworldsam.cli import run as run_command
from openworldsam.config import load_config
from openworldsam.config_files import flat
from openworldsam.data.datasets.catalog import SEGMENTATION
from openworldsam.engine.checks import check_evaluation
from openworldsam.engine.evaluate import RESULTS
from openworldsam.engine.training_state import newest_state
from openworldsam.utils.files import read_json, save_text
from openworldsam.utils.safe_yaml import read_yaml

ADAPTER, CONFIG = "adapter.safetensors", "config.yaml"
"""Files of a run in its folder; one without a training has no adapter."""


class Variant(NamedTuple):
    """A variant of the full model.

    title: description.
    opts: config keys in which it differs from the full model, or from variant `of`.
    of: trained variant whose adapters it evaluates with these keys, without a training of its own.
    """

    title: str
    opts: tuple[str, ...] = ()
    of: str = ""


_NO_SOFT_PROMPT = ("MODEL.ADAPTER.NUM_LAYERS", "0")
_TEXT_ONLY = ("MODEL.PROMPT_ENCODER.USE_IMAGE", "False")
TRAINABLE, _CACHE = "MODEL.PROMPT_ENCODER.TRAINABLE", "DATASETS.FEATURE_CACHE"
_TRAINED = (TRAINABLE, "True", _CACHE, "")
_MORE = "2.5 times as many"  # a value that depends on the config
_NO_PROMPT = ("MODEL.PROMPT_ENCODER.NAME", "ZeroPromptEncoder", "MODEL.PROMPT_ENCODER.WEIGHTS", "")
CLIP = "output/shapes/clip"
"""Folder of the tiny CLIP, which `openworldsam pretrain clip` makes."""
_CLIP = ("MODEL.PROMPT_ENCODER.WEIGHTS", CLIP, "MODEL.PROMPT_ENCODER.TOKENIZER", CLIP)


def _clip(name: str, width: int) -> tuple[str, ...]:
    return (*_CLIP, "MODEL.PROMPT_ENCODER.NAME", name, "MODEL.PROMPT_ENCODER.EMBED_DIM", str(width))


VARIANTS = {
    "E1": Variant("one query, no soft prompting", ("MODEL.ADAPTER.NUM_TIE_BREAKERS", "0", *_NO_SOFT_PROMPT)),
    "E2": Variant("E3, zeros for the prompt embedding at inference", _NO_PROMPT, of="E3"),
    "E3": Variant("tie-breakers, no soft prompting", _NO_SOFT_PROMPT),
    "E4": Variant("E3, BEiT-3 trained too", (*_NO_SOFT_PROMPT, *_TRAINED)),
    "E5": Variant("full model, fusion `replace`"),
    "E6": Variant("E5, BEiT-3 trained too", _TRAINED),
    "text_only": Variant("E5, prompt encoder without the image", _TEXT_ONLY),
    "clip_text": Variant("E5, CLIP's text tower", _clip("CLIPTextEncoder", 160)),
    "clip_late_fusion": Variant("E5, CLIP's two towers", _clip("CLIPLateFusionEncoder", 320)),
    "add": Variant("E5, fusion `add`", ("MODEL.ADAPTER.FUSION", "add")),
    "broadcast": Variant("E5, fusion `broadcast`", ("MODEL.ADAPTER.FUSION", "broadcast")),
    "focal_alone": Variant("E5, trained without the Dice loss", ("MODEL.CRITERION.DICE_WEIGHT", "0.0")),
    "two_stage": Variant("E5, two-stage inference", ("MODEL.INFERENCE.TWO_STAGE", "True"), of="E5"),
    "E5_more_queries": Variant(
        "E5, 2.5 times the tie-breakers at inference", ("MODEL.ADAPTER.NUM_TIE_BREAKERS", _MORE), of="E5"
    ),
}
"""Variants by name; this is also their order in the report."""
MAY_DIFFER = {"OUTPUT_DIR", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS", "DATASETS.HELD_OUT"}
"""Config keys that do not count when runs are compared."""


class State(NamedTuple):
    """How far a run is: iterations done, of how many, and the benchmarks that are still to be scored."""

    done: int
    iterations: int
    benchmarks: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether nothing remains."""
        return self.done == self.iterations and not self.benchmarks


@dataclass(frozen=True)
class Experiment:
    """Runs that differ only in variant and seed.

    Args:
        config_file, opts: config of the full model, E5.
        folder: gets a folder NAME/seedN for each run, and the feature caches.
        benchmarks: datasets to score on.
        iterations: replaces SOLVER.MAX_ITER, and SOLVER.STEPS are scaled; 0 keeps both.
        features: image features in the feature caches, "none" or "all"; empty to train without a cache, as E4 and E6
            always do.

    Raises:
        ValueError: the config is not of the full model, or a benchmark has no PQ, AP and mIoU.
    """

    config_file: str
    folder: Path
    benchmarks: tuple[str, ...]
    opts: tuple[str, ...] = ()
    iterations: int = 0
    features: str = ""

    def __post_init__(self) -> None:
        cfg = self.cfg
        adapter, encoder = cfg.MODEL.ADAPTER, cfg.MODEL.PROMPT_ENCODER
        whole = adapter.NUM_TIE_BREAKERS and adapter.NUM_LAYERS and encoder.USE_IMAGE and not encoder.TRAINABLE
        if not whole or adapter.FUSION != "replace":
            raise ValueError(
                "the config must be that of E5, the full model: tie-breakers, soft-prompt layers, "
                "MODEL.ADAPTER.FUSION replace, MODEL.PROMPT_ENCODER.USE_IMAGE True and TRAINABLE False"
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

    def adapter(self, name: str, seed: int) -> Path:
        """Return the adapter file that a run scores: of its own training, or of the variant that it evaluates."""
        return adapter_of(self.run_folder(name, seed))

    def cache(self, name: str) -> Path | None:
        """Return the folder of a variant's feature cache; variants with E5's prompt encoder share one.

        None without a cache. The features of a prompt encoder in training change, and cannot be kept.
        """
        opts = VARIANTS[name].opts
        if not self.features or TRAINABLE in opts:
            return None
        own = any(key.startswith("MODEL.PROMPT_ENCODER.") for key in opts)
        return self.folder / (f"cache_{name}" if own else "cache")

    def options(self, name: str, seed: int) -> list[str]:
        """Return the config keys of a run, which trains a new adapter and is evaluated only at the end."""
        variant = VARIANTS[name]
        more = str(5 * self.cfg.MODEL.ADAPTER.NUM_TIE_BREAKERS // 2)
        own = [more if word == _MORE else word for word in _own_opts(name)]
        opts = [*self.opts, *own, "MODEL.WEIGHTS", "", "TEST.EVAL_PERIOD", "0"]
        if last := self.iterations:
            solver = self.cfg.SOLVER
            steps = {round(step * last / solver.MAX_ITER) for step in solver.STEPS}
            opts += ["SOLVER.MAX_ITER", str(last), "SOLVER.STEPS", str(sorted(s for s in steps if 0 < s < last))]
        if cache := self.cache(variant.of or name):
            opts += [_CACHE, str(cache)]
        return [*opts, "SEED", str(seed), "OUTPUT_DIR", str(self.run_folder(name, seed))]

    def settings(self, name: str, seed: int) -> dict[str, Any]:
        """Return the config of a run, by dotted key, for comparisons."""
        return _comparable(yaml.safe_load(load_config(self.config_file, self.options(name, seed)).dump()))

    def state(self, name: str, seed: int) -> State:
        """Return how far a run is.

        Raises:
            ValueError: the run's folder was made with other settings.
        """
        folder, settings = self.run_folder(name, seed), self.settings(name, seed)
        made_with = read_settings(folder) if (folder / CONFIG).exists() else {}
        if different := differences(made_with, settings):
            raise ValueError(f"{folder} was made with another {', '.join(different)}; use another --output")
        iterations = 0 if VARIANTS[name].of else settings["SOLVER.MAX_ITER"]
        saved = newest_state(folder)
        done = iterations if (folder / ADAPTER).exists() else int(saved.stem.split("_")[1]) if saved else 0
        results = folder / RESULTS
        scored = [*read_json(results)["benchmarks"]] if results.exists() else []
        # the file is replaced, so all of its benchmarks are scored again
        wanted = () if {*self.benchmarks} <= {*scored} else tuple(dict.fromkeys([*scored, *self.benchmarks]))
        return State(done, iterations, wanted)

    def cache_jobs(self, work: Sequence[tuple[str, int]], parts: int) -> list[Job]:
        """List the jobs that build, in so many parts, the feature caches of the runs (name, seed) to train."""
        waiting = [run for run in work if not self.adapter(*run).exists() and not VARIANTS[run[0]].of]
        jobs = []
        for cache, run in {cache: run for run in waiting if (cache := self.cache(run[0]))}.items():
            words = ["--config", self.config_file, "--output", str(cache), "--image-features", self.features]
            for part in range(parts):
                of_part = [*words, "--part", str(part), "--num-parts", str(parts), *self.options(*run)]
                title, console = f"{cache.name}, part {part + 1} of {parts}", cache / f"console{part}.txt"
                jobs.append(Job(title, console, partial(run_command, "cache", of_part)))
        return jobs

    def job(self, name: str, seed: int) -> Job:
        """Return a run as a job."""
        needs = self.adapter(name, seed) if VARIANTS[name].of else None
        console = self.run_folder(name, seed) / "console.txt"
        return Job(f"{name} seed {seed}", console, partial(self.run, name, seed), needs)

    def run(self, name: str, seed: int) -> None:
        """Train and score a variant, as far as this has not been done yet."""
        folder, opts, state = self.run_folder(name, seed), self.options(name, seed), self.state(name, seed)
        config = ["--config", self.config_file]
        if VARIANTS[name].of:
            save_text(folder / CONFIG, load_config(self.config_file, opts).dump())
        elif not (folder / ADAPTER).exists():
            run_command("train", [*config, "--resume", *opts])
        if state.benchmarks:
            words = ["--benchmarks", *state.benchmarks, "--output", str(folder), *opts]
            for component, file in trained_files(folder).items():
                words += ["MODEL.WEIGHTS" if component == "adapter" else "MODEL.PROMPT_ENCODER.WEIGHTS", str(file)]
            run_command("evaluate", [*config, *words])


def adapter_of(folder: Path) -> Path:
    """Return the adapter file that the run in a folder NAME/seedN scores."""
    return folder.parents[1] / (VARIANTS[folder.parent.name].of or folder.parent.name) / folder.name / ADAPTER


def trained_files(folder: Path) -> dict[str, Path]:
    """Return the weight files, by component, that the run in a folder NAME/seedN scores as a training has made them.

    Raises:
        FileNotFoundError: there is no adapter.
    """
    adapter = adapter_of(folder)
    if not adapter.exists():
        raise FileNotFoundError(f"{adapter} is missing, which {folder} scores; delete that folder to run it again")
    with_encoder = TRAINABLE in VARIANTS[adapter.parents[1].name].opts
    files = sorted(adapter.parent.glob("*.safetensors")) if with_encoder else [adapter]
    return {path.stem: path for path in files}


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the config that a run was made with, by dotted key, for comparisons."""
    return _comparable(read_yaml(folder / CONFIG))


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a config by which runs are compared."""
    values = flat(config)
    # each prompt encoder has its own cache: only whether there was one counts, and only where there can be one
    cached = bool(values.pop(_CACHE, ""))
    return values if values.get(TRAINABLE) else values | {_CACHE: cached}


def _own_opts(name: str) -> tuple[str, ...]:
    """Return the config keys and values of a variant, and before them those of the variant that it evaluates."""
    variant = VARIANTS[name]
    return (*_own_opts(variant.of), *variant.opts) if variant.of else variant.opts


def own_keys(name: str, other: str) -> set[str]:
    """Return the config keys in which runs of two variants may differ: the seed, and those that make the variants."""
    return {"SEED"} if name == other else {"SEED", *_own_opts(name)[::2], *_own_opts(other)[::2]}


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """List the keys in which two runs differ; a key that only one of them has belongs to another code version."""
    return sorted(key for key in one.keys() & other.keys() - MAY_DIFFER if one[key] != other[key])
