"""The training loop (paper Sec. 4 "Implementation", A.1, A.3).

The loss of a step is the mean over the prompts with ground truth of all its images, however processes and micro-batches
divide them.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import TrainerBase
from detectron2.solver import build_lr_scheduler, get_default_optimizer_params
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from openworldsam.checkpoint import Source, find_source, load_weights
from openworldsam.config import starting_config
from openworldsam.data.feature_cache import FeatureCache, tokenizer_fingerprint
from openworldsam.data.loader import training_batches, training_dataset
from openworldsam.engine.confusions import Confusions
from openworldsam.modeling import OpenWorldSAM
from openworldsam.modeling.criterion import num_present
from openworldsam.modeling.prompt_encoders import prompt_encoder_class
from openworldsam.modeling.prompt_encoders.cached import without_prompt_encoder
from openworldsam.utils.device import upload

logger = logging.getLogger(__name__)

FORGIVEN = 20
"""Unreadable images that never stop a training, whatever their share."""


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over the trained parameters; no weight decay on norms."""
    groups = get_default_optimizer_params(
        model, base_lr=cfg.SOLVER.BASE_LR, weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM
    )
    return torch.optim.AdamW(groups, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)


class Trainer(TrainerBase):
    """Trains the adapter of an `OpenWorldSAM`; `engine.train.run_training` saves states, logs and writes the result.

    Args:
        cfg: a config that `check_training` has passed; SOLVER.IMS_PER_BATCH images a step are divided among processes
            and micro-batches.

    Attributes:
        folder: OUTPUT_DIR.
        dataset: the training set, indexed by position.
        sources: the weight file of each component.
        last_image: an input of the last step, as `OpenWorldSAM.forward` takes it.
        skipped, all_skipped: unreadable images so far, of this process and of all.
        confusions: how often absent prompts were found, on all processes.

    Raises:
        FileNotFoundError, ValueError: weights or data are missing or do not fit.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.cfg = cfg = starting_config(cfg)
        self.folder = Path(cfg.OUTPUT_DIR)
        seed_all_rng(cfg.SEED)  # the same adapter on every process
        self.dataset = training_dataset(cfg)
        if cfg.DATASETS.FEATURE_CACHE:
            self.model, self.sources = self._cached_model()
        else:
            self.model = OpenWorldSAM(cfg)
            self.model.prompt_encoder.prepare()
            self.sources = load_weights(self.model, cfg, need_adapter=False)
        logger.info("adapter of %s", self.model.adapter.size())
        self.model.to(cfg.MODEL.DEVICE).train()
        self.step_model: nn.Module = self.model
        if comm.get_world_size() > 1:
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
        self.skipped = self.all_skipped = 0
        self.confusions = Confusions(cfg.INPUT.NEGATIVES)
        self.last_image: dict[str, Any] = {}
        self.batches: Iterator[list[dict[str, Any]]] = iter(())
        seed_all_rng(cfg.SEED + comm.get_rank())  # but its own dropout

    def _cached_model(self) -> tuple[OpenWorldSAM, dict[str, Source]]:
        """The model without its prompt encoder, whose output comes from the cache with the data."""
        cache = FeatureCache(self.cfg.DATASETS.FEATURE_CACHE)
        model = OpenWorldSAM(without_prompt_encoder(self.cfg))
        sources = load_weights(model, self.cfg, need_adapter=False)
        component = prompt_encoder_class(self.cfg).component
        if component and (source := find_source(component, self.cfg)):
            sources[component.name] = source
        fingerprints = {name: source.fingerprint for name, source in sources.items()}
        cache.check(self.cfg, fingerprints | tokenizer_fingerprint(self.cfg))
        if component and component.name not in sources:
            made_by = cache.header.fingerprints.get(component.name, "")
            sources[component.name] = Source(str(cache.folder), "feature cache", made_by)
        self.dataset.cache = cache
        some, texts = self.dataset.sample_records(), self.dataset.texts
        lacking = [r for r in some if cache.missing(r["image_id"], texts(r) or (), Path(r["file_name"]).name)[0]]
        if lacking:  # unreadable images are not in the cache, and no problem: training skips them too
            logger.warning(
                "%s lacks prompts of %d of %d images, such as %s; training stops at the first of them that is readable",
                *(cache.folder, len(lacking), len(some), lacking[0]["file_name"]),
            )
        return model, sources

    def before_train(self) -> None:
        """Start the loader at the first step's images."""
        super().before_train()
        solver, world_size = self.cfg.SOLVER, comm.get_world_size()
        self.batches = training_batches(
            self.dataset,
            batch_size=solver.IMS_PER_BATCH // (world_size * solver.ACCUMULATE),
            start=self.start_iter * solver.IMS_PER_BATCH,
            rank=comm.get_rank(),
            world_size=world_size,
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
        )

    def run_step(self) -> None:
        """One update from SOLVER.IMS_PER_BATCH images.

        Raises:
            FloatingPointError: the loss or a gradient is not finite; names the images.
            ValueError: too many images could not be read.
        """
        batches = [list(map(self.confusions.choose, next(self.batches))) for _ in range(self.cfg.SOLVER.ACCUMULATE)]
        self.last_image = batches[-1][0]
        shares = self._backward(batches)
        self.scaler.unscale_(self.optimizer)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(trained, self.cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE)
        losses, gradient_norm = self._check_step(shares, norm, batches)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        scale = self.scaler.get_scale()  # halved by each step that the scaler skips
        if scale < 1:
            raise FloatingPointError(f"gradients are not finite up to iteration {self.iter}, images: {_names(batches)}")
        self.optimizer.zero_grad()
        as_they_are = {"lr": self.optimizer.param_groups[0]["lr"], "skipped_images": self.all_skipped}
        if self.scaler.is_enabled():
            as_they_are["gradient_scale"] = scale
        self.storage.put_scalars(**as_they_are, smoothing_hint=False)
        self.storage.put_scalars(**losses, total_loss=sum(losses.values()), gradient_norm=gradient_norm)
        self.scheduler.step()

    def _backward(self, batches: list[list[dict[str, Any]]]) -> dict[str, Tensor]:
        """Backpropagate the loss of all micro-batches and processes, each of which divides by its present prompts.

        Returns this process's share of each loss.
        """
        counts = torch.tensor([num_present([t for x in batch for t in x["targets"]]) for batch in batches]).float()
        total = upload(counts.sum(), self.model.device)
        if comm.get_world_size() > 1:
            dist.all_reduce(total)
        shares: dict[str, Tensor] = {}
        best_scores: list[Tensor] = []
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            wait = isinstance(self.step_model, DistributedDataParallel) and not last
            with self.step_model.no_sync() if wait else contextlib.nullcontext():  # type: ignore[operator]
                losses = self.step_model(batch)
                share = counts[index].item() / total
                loss = torch.stack(list(losses.values())).sum() * share
                # DDP averages over processes, but the loss of a step is their sum
                self.scaler.scale(loss * comm.get_world_size()).backward()
            if self.cfg.INPUT.NEGATIVES:
                best_scores.append(self.model.best_scores)
            for name, value in losses.items():
                shares[name] = shares.get(name, 0) + value.detach() * share
        if best_scores:
            self._note_confusions(batches, torch.cat(best_scores).tolist())
        return shares

    def _note_confusions(self, batches: list[list[dict[str, Any]]], best_scores: list[float]) -> None:
        """Count how well absent prompts scored, with the images of all processes in the order of their positions."""
        scores, of_images = iter(best_scores), []
        for x in itertools.chain(*batches):
            prompts = zip(x["prompts"], x["targets"], itertools.islice(scores, len(x["prompts"])), strict=True)
            of_images.append([(prompt, score) for prompt, target, score in prompts if not len(target)])
        for images in zip(*comm.all_gather(of_images), strict=True):
            for found in images:
                self.confusions.update(found)

    def _check_step(
        self, shares: dict[str, Tensor], norm: Tensor, batches: list[list[dict[str, Any]]]
    ) -> tuple[dict[str, float], float]:
        """Sum the losses and skipped images over processes; the host waits for the device once.

        A loss or gradient that is not finite, or too many skipped images, stop every process here: before the weights
        change, and with no process left waiting for another.

        Returns the step's losses by name, and the norm of the gradients.
        """
        self.skipped += sum(len(x["skipped"]) for batch in batches for x in batch)
        values = torch.stack([*shares.values(), torch.full_like(norm, self.skipped)])
        if comm.get_world_size() > 1:
            dist.all_reduce(values)
        *losses, skipped, gradient_norm = torch.cat([values, norm[None]]).tolist()
        if not all(map(math.isfinite, losses)):
            raise FloatingPointError(f"the loss is not finite at iteration {self.iter}, images: {_names(batches)}")
        if not self.scaler.is_enabled() and not math.isfinite(gradient_norm):  # a scaler skips the step
            raise FloatingPointError(f"a gradient is not finite at iteration {self.iter}, images: {_names(batches)}")
        self.all_skipped = int(skipped)
        seen, allowed = (self.iter + 1) * self.cfg.SOLVER.IMS_PER_BATCH, self.cfg.DATALOADER.MAX_SKIPPED
        if self.all_skipped > FORGIVEN + allowed * seen:
            raise ValueError(
                f"{self.all_skipped} images could not be read and {seen} could, more than DATALOADER.MAX_SKIPPED "
                f"{allowed:g} allows; log.txt names them"
            )
        return dict(zip(shares, losses, strict=True)), gradient_norm


def _names(batches: list[list[dict[str, Any]]]) -> str:
    """The file names of a step on all processes; every process must call it."""
    names = comm.all_gather([x["file_name"] for batch in batches for x in batch])
    return ", ".join(name for of_process in names for name in of_process)
