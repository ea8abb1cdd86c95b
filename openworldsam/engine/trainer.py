"""The training loop (paper Sec. 4 "Implementation", A.1, A.3).

The loss of a step is the mean over all prompts of all its images, wherever they are: on whichever process, in
whichever accumulated part.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase, TrainerBase, hooks
from detectron2.solver import build_lr_scheduler, get_default_optimizer_params
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import JSONWriter, TensorboardXWriter
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from openworldsam.checkpoint import (
    Source,
    find_source,
    load_weights,
    read_weights,
    save_adapter,
    save_component,
)
from openworldsam.checkpoint.loading import training_record
from openworldsam.config import config_value
from openworldsam.data.feature_cache import FeatureCache, tokenizer_fingerprint
from openworldsam.data.loader import training_batches, training_dataset
from openworldsam.engine.checks import check_config, starting_config
from openworldsam.engine.hooks import Checkpoints, Pictures, ProgressLine
from openworldsam.engine.training_state import METRICS, forget_metrics, load_state, restore_generators
from openworldsam.evaluation.benchmark import evaluate
from openworldsam.evaluation.summary import scalars
from openworldsam.modeling import OpenWorldSAM
from openworldsam.modeling.prompt_encoders import prompt_encoder_class

logger = logging.getLogger(__name__)

FEW_SKIPPED = 20
"""Unreadable images that are no reason to stop, whatever their share."""


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over what is trained; no weight decay on norms."""
    groups = get_default_optimizer_params(
        model, base_lr=cfg.SOLVER.BASE_LR, weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM
    )
    return torch.optim.AdamW(groups, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)


def _names(parts: list[list[dict[str, Any]]]) -> str:
    """The file names of a step on all processes; every process must call it."""
    own = [x["file_name"] for part in parts for x in part]
    return ", ".join(name for names in comm.all_gather(own) for name in names)


class Trainer(TrainerBase):
    """Trains the adapter of an `OpenWorldSAM`.

    Args:
        cfg: the config; SOLVER.IMS_PER_BATCH images a step are divided among processes and accumulated parts.

    Raises:
        FileNotFoundError, ValueError: weights or data are missing or do not fit.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        check_config(cfg)
        self.cfg = cfg = starting_config(cfg)
        self.parts = cfg.SOLVER.ACCUMULATE
        world_size = comm.get_world_size()
        self.part_size = cfg.SOLVER.IMS_PER_BATCH // (world_size * self.parts)
        seed_all_rng(cfg.SEED)  # the same adapter on every process
        self.dataset = training_dataset(cfg)
        for name in cfg.DATASETS.TEST if cfg.TEST.EVAL_PERIOD else ():
            DatasetCatalog.get(name)  # what is missing is found now, not at the first evaluation
        self.model, self.sources = self._cached_model() if cfg.DATASETS.FEATURE_CACHE else self._whole_model()
        self.model.to(cfg.MODEL.DEVICE).train()
        self.step_model: nn.Module = self.model
        if world_size > 1:
            device_ids = [comm.get_local_rank()] if self.model.device.type == "cuda" else None
            self.step_model = DistributedDataParallel(
                self.model,
                device_ids=device_ids,
                broadcast_buffers=False,
                find_unused_parameters=self.model.train_prompt_encoder,  # such as tokens that no text has
            )
        self.optimizer = build_optimizer(cfg, self.model)
        self.scheduler = build_lr_scheduler(cfg, self.optimizer)
        self.scaler = torch.amp.GradScaler(self.model.device.type, enabled=cfg.MODEL.PRECISION == "fp16")
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.skipped = self.all_skipped = 0  # unreadable images, of this process and of all
        seed_all_rng(cfg.SEED + comm.get_rank())  # but dropout of its own
        self.last_image: dict[str, Any] = {}
        self._batches: Iterator[list[dict[str, Any]]] | None = None

    def _whole_model(self) -> tuple[OpenWorldSAM, dict[str, Source]]:
        model = OpenWorldSAM(self.cfg)
        return model, load_weights(model, self.cfg, need_adapter=False)

    def _cached_model(self) -> tuple[OpenWorldSAM, dict[str, Source]]:
        """The model without its prompt encoder, whose output comes with the data."""
        cache = FeatureCache(self.cfg.DATASETS.FEATURE_CACHE)
        cfg = self.cfg.clone()
        cfg.MODEL.PROMPT_ENCODER.NAME = "CachedPromptEncoder"
        model = OpenWorldSAM(cfg)
        sources = load_weights(model, self.cfg, need_adapter=False)
        component = prompt_encoder_class(self.cfg).component
        if component and (source := find_source(component, cfg)):
            sources[component.name] = source
        fingerprints = {name: source.fingerprint for name, source in sources.items()}
        cache.check(self.cfg, fingerprints | tokenizer_fingerprint(self.cfg))
        if component and component.name not in sources:
            made_by = cache.header.fingerprints.get(component.name, "")
            sources[component.name] = Source(str(cache.folder), "feature cache", made_by)
        self.dataset.cache = cache
        some = self.dataset.sample_records()
        lacking = [r for r in some if cache.missing(r["image_id"], self.dataset.mapper.texts(r))[0]]
        if lacking:  # an image that could not be read is not held, and will not be read now
            logger.warning(
                "%s lacks prompts of %d of %d images, such as %s; a training stops when it meets one that can be read",
                *(cache.folder, len(lacking), len(some), lacking[0]["file_name"]),
            )
        return model, sources

    @property
    def folder(self) -> Path:
        """OUTPUT_DIR."""
        return Path(self.cfg.OUTPUT_DIR)

    def _build_hooks(self) -> list[HookBase]:
        cfg = self.cfg
        # the state is saved first: what fails after it loses no step
        built: list[HookBase] = [hooks.IterationTimer(), Checkpoints(cfg.SOLVER.CHECKPOINT_PERIOD)]
        built.append(Pictures(cfg.SOLVER.PICTURE_PERIOD))
        if cfg.TEST.EVAL_PERIOD:
            built.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, lambda: scalars(evaluate(cfg, self.model))))
        if comm.is_main_process():
            folder = str(self.folder)
            writers = [
                ProgressLine(self.max_iter, cfg.SOLVER.IMS_PER_BATCH),
                JSONWriter(str(self.folder / METRICS)),
                TensorboardXWriter(folder),
            ]
            built.append(hooks.PeriodicWriter(writers, period=cfg.SOLVER.LOG_PERIOD))
        return built

    def run_step(self) -> None:
        """One update from SOLVER.IMS_PER_BATCH images.

        Raises:
            FloatingPointError: the loss or a gradient is not finite; names the images.
        """
        batch_start = self.iter * self.cfg.SOLVER.IMS_PER_BATCH
        if self._batches is None:
            self._batches = training_batches(
                self.dataset,
                batch_size=self.part_size,
                start=batch_start,
                rank=comm.get_rank(),
                world_size=comm.get_world_size(),
                num_workers=self.cfg.DATALOADER.NUM_WORKERS,
            )
        parts = [next(self._batches) for _ in range(self.parts)]
        self.last_image = parts[-1][0]
        shares = self._backward(parts)
        self.scaler.unscale_(self.optimizer)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, self.cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE)
        figures = self._checked(shares, norm, parts)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        scale = self.scaler.get_scale()
        if scale < 1:  # halved by each step that the scaler left out
            raise FloatingPointError(f"gradients are not finite up to iteration {self.iter}, images: {_names(parts)}")
        self.optimizer.zero_grad()
        self._record(figures, scale)
        self.scheduler.step()

    def _backward(self, parts: list[list[dict[str, Any]]]) -> dict[str, Tensor]:
        """Gradients of the mean over all prompts of all parts and processes; returns this process's share of it."""
        counts = torch.tensor([sum(len(x["prompts"]) for x in part) for part in parts], dtype=torch.float32)
        total = counts.sum().to(self.model.device, non_blocking=True)
        if comm.get_world_size() > 1:
            dist.all_reduce(total)
        shares: dict[str, Tensor] = {}
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            wait = isinstance(self.step_model, DistributedDataParallel) and not last
            with self.step_model.no_sync() if wait else contextlib.nullcontext():  # type: ignore[operator]
                losses = self.step_model(part)
                share = counts[index].item() / total
                loss = torch.stack(list(losses.values())).sum() * share
                # DDP takes the mean over processes, the loss of a step is their sum
                self.scaler.scale(loss * comm.get_world_size()).backward()
            for name, value in losses.items():
                shares[name] = shares.get(name, 0) + value.detach() * share
        return shares

    def _checked(self, shares: dict[str, Tensor], norm: Tensor, parts: list[list[dict[str, Any]]]) -> dict[str, float]:
        """The step's losses over all processes, "skipped_images" so far and "gradient_norm", in one copy to the host.

        A loss or gradient that is not finite, or too many skipped images, stop every process here, before the weights
        change and with none left waiting.
        """
        self.skipped += sum(len(x["skipped"]) for part in parts for x in part)
        values = torch.stack([*shares.values(), torch.full_like(norm, self.skipped)])
        if comm.get_world_size() > 1:
            dist.all_reduce(values)
        names = [*shares, "skipped_images", "gradient_norm"]
        figures = dict(zip(names, torch.cat([values, norm[None]]).tolist(), strict=True))
        if not all(math.isfinite(figures[name]) for name in shares):
            raise FloatingPointError(f"the loss is not finite at iteration {self.iter}, images: {_names(parts)}")
        if not self.scaler.is_enabled() and not math.isfinite(figures["gradient_norm"]):  # else the step is left out
            raise FloatingPointError(f"a gradient is not finite at iteration {self.iter}, images: {_names(parts)}")
        self.all_skipped = int(figures["skipped_images"])
        seen = (self.iter + 1) * self.cfg.SOLVER.IMS_PER_BATCH
        if self.all_skipped > FEW_SKIPPED + self.cfg.DATALOADER.MAX_SKIPPED * seen:
            raise ValueError(
                f"{self.all_skipped} images could not be read and {seen} could, more than DATALOADER.MAX_SKIPPED "
                f"{self.cfg.DATALOADER.MAX_SKIPPED:g} allows; log.txt names them"
            )
        return figures

    def _record(self, figures: dict[str, float], scale: float) -> None:
        """Log the step: figures of `_checked`, and the gradients' scale, halved whenever a step is left out."""
        self.storage.put_scalar("lr", self.optimizer.param_groups[0]["lr"], smoothing_hint=False)
        self.storage.put_scalar("gradient_norm", figures.pop("gradient_norm"))
        if self.scaler.is_enabled():
            self.storage.put_scalar("gradient_scale", scale, smoothing_hint=False)
        self.storage.put_scalar("skipped_images", figures.pop("skipped_images"), smoothing_hint=False)
        self.storage.put_scalars(total_loss=sum(figures.values()), **figures)

    def state(self) -> dict[str, Any]:
        """What a resumed training must get back."""
        return {
            "trained": {name: p.detach().cpu() for name, p in self.model.named_parameters() if p.requires_grad},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped": self.all_skipped,
            "record": self._fixed(),
            "weights": self._fingerprints(),
        }

    def _fixed(self) -> dict[str, str]:
        """What may not change when a training goes on: the adapter's recipe and what the order of images hangs on.

        Its length, learning rate schedule and dataset folders may.
        """
        cfg = self.cfg
        order = hashlib.sha256()
        for record in self.dataset.records:
            order.update(f"{record['image_id']} ".encode())
        keys = ["SEED", "SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR", "SOLVER.WEIGHT_DECAY", "DATASETS.TRAIN"]
        keys += ["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "MODEL.PRECISION", "MODEL.SAM2.IMAGE_SIZE"]
        keys += ["INPUT.ANTIALIAS", *prompt_encoder_class(cfg).settings]
        keys += ["INPUT.MAX_PROMPTS", "INPUT.FLIP", "INPUT.LARGE_SCALE_JITTER"]
        keys += [f"MODEL.{room}.{key}" for room in ("ADAPTER", "CRITERION") for key in cfg.MODEL[room]]
        fixed = {key: str(config_value(cfg, key)) for key in keys}
        return {**training_record(cfg), **fixed, "list of images": order.hexdigest()[:16]}

    def _fingerprints(self) -> dict[str, str]:
        """Of the encoders; the adapter's changes as it is trained."""
        return {name: source.fingerprint for name, source in self.sources.items() if name != "adapter"}

    def resume(self) -> None:
        """Go on from the newest state in OUTPUT_DIR, if there is one.

        Raises:
            ValueError: the newest state is damaged, or of another preset, other encoders, another seed or batch size.
        """
        state = load_state(self.folder)
        if state is None:
            return
        for name, ours in (("record", self._fixed()), ("weights", self._fingerprints())):
            # a key that an earlier version did not record cannot be compared
            if different := sorted(key for key, value in state[name].items() if ours.get(key, value) != value):
                raise ValueError(
                    f"{self.folder} was trained with another {', '.join(different)}; use another OUTPUT_DIR"
                )
        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if {n: p.shape for n, p in parameters.items()} != {n: p.shape for n, p in state["trained"].items()}:
            raise ValueError(f"{self.folder} was trained with other layers; use another OUTPUT_DIR")
        if state["iteration"] > self.max_iter:
            raise ValueError(f"{self.folder} is at iteration {state['iteration']}, beyond MAX_ITER {self.max_iter}")
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        with torch.no_grad():
            for name, value in state["trained"].items():
                parameters[name].copy_(value)
        restore_generators(state["generators"])
        self.skipped = state["skipped"] if comm.is_main_process() else 0
        self.start_iter = self.iter = state["iteration"]
        logger.info("resumed at iteration %d", self.start_iter)

    def run(self) -> None:
        """Train to SOLVER.MAX_ITER and write what was trained: adapter.safetensors, and with
        MODEL.PROMPT_ENCODER.TRAINABLE the prompt encoder's weights."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if comm.is_main_process():
            forget_metrics(self.folder / METRICS, self.start_iter)
        self.register_hooks(self._build_hooks())
        self.train(self.start_iter, self.max_iter)
        if not comm.is_main_process():
            return
        if self.model.train_prompt_encoder and (component := self.model.prompt_encoder.component):
            path = self.folder / f"{component.name}.safetensors"
            save_component(self.model, component.name, path, note="trained together with the adapter")
            self.sources[component.name] = read_weights(path).source(component.name)
        save_adapter(self.model, self.folder / "adapter.safetensors", self.cfg, self.sources)
