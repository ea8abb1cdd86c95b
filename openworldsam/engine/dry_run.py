"""Description of a training that is not run; its data and weights may still be missing."""

from __future__ import annotations

import contextlib
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from openworldsam.checkpoint import load_weights
from openworldsam.config import starting_config
from openworldsam.data.datasets.benchmarks import PANOPTIC
from openworldsam.data.datasets.referring import REFERRING
from openworldsam.data.feature_cache import FeatureCache, tokenizer_fingerprint
from openworldsam.data.loader import training_dataset
from openworldsam.modeling import OpenWorldSAM
from openworldsam.modeling.prompt_encoders.cached import CachedPromptEncoder, without_prompt_encoder

PUBLISHED = {
    "coco_2017_train_panoptic_openworldsam": 104_000,
    "refcocog_umd_train": REFERRING["refcocog"].splits["train"].images,
    "cityscapes_19_panoptic_train": PANOPTIC["cityscapes_19_panoptic_train"].expected,
}
"""Numbers of images in the paper's training sets, for those that are missing here."""


def describe_training(cfg: CfgNode) -> str:
    """Describe data, trained parameters, schedule, memory and weights of a config that `check_training` passed.

    Raises:
        ValueError: data, weights or a cache exist but do not fit.
    """
    cfg = starting_config(cfg)
    model = _model(cfg).to("meta")  # only shapes are needed
    data, images = _data(cfg)
    solver = cfg.SOLVER
    visits = solver.MAX_ITER * solver.IMS_PER_BATCH
    published = sum(PUBLISHED.get(name, 0) for name in cfg.DATASETS.TRAIN)
    epochs = f"{visits:,} images"
    if images or published:
        epochs += f", {visits / (images or published):.1f} epochs"
    if not images and published:
        epochs += f" of the published {published:,}"
    drops = ", ".join(f"{step:,} ({100 * step / solver.MAX_ITER:.1f} %)" for step in solver.STEPS) or "no iteration"
    changes = f"x {solver.GAMMA:g} at {drops}"
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR":
        changes = f"along a cosine to {solver.BASE_LR_END:g}"
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    # fp32: frozen weights; trained weights with their gradients and AdamW's two moments
    alone = " without the prompt encoder" if isinstance(model.prompt_encoder, CachedPromptEncoder) else ""
    frozen = 4 * sum(p.numel() for p in parameters if not p.requires_grad)
    optimized = 16 * sum(p.numel() for p in trained)
    rest = alone if cfg.MODEL.PROMPT_ENCODER.TRAINABLE else ""
    lines = [
        f"preset       {cfg.PRESET}",
        f"data         {data}",
        f"trained      {sum(p.numel() for p in trained):,} parameters in {len(trained)} tensors{rest}",
        f"adapter      {model.adapter.size()}",
        f"batch        {solver.IMS_PER_BATCH} images on {comm.get_world_size()} processes, "
        f"{solver.ACCUMULATE} micro-batches each",
        f"iterations   {solver.MAX_ITER:,} ({epochs})",
        f"schedule     learning rate {solver.BASE_LR:g}, {changes}",
        f"memory       frozen weights{alone} {frozen / 1e9:.2f} GB, "
        f"trained part{rest} with optimizer {optimized / 1e6:.0f} MB, "
        f"mask decoder up to {0.05 * cfg.MODEL.MASK_DECODER.CHUNK:.1f} GB at 1024 px; other activations not measured",
        f"weights      {_weights(cfg, model)}",
    ]
    if cfg.DATASETS.FEATURE_CACHE:
        lines.append(f"cache        {_cache(cfg)}")
    return "\n".join(lines)


def _model(cfg: CfgNode) -> OpenWorldSAM:
    """Build the model; without its prompt encoder for a training from a cache, and where its folder is missing."""
    if not cfg.DATASETS.FEATURE_CACHE:
        with contextlib.suppress(FileNotFoundError):  # of config.json, which has the sizes of an encoder of a library
            return OpenWorldSAM(cfg)
    return OpenWorldSAM(without_prompt_encoder(cfg))


def _data(cfg: CfgNode) -> tuple[str, int]:
    """Describe DATASETS.TRAIN; also returns its number of images, 0 if it is missing."""
    names = ", ".join(cfg.DATASETS.TRAIN)
    try:
        dataset = training_dataset(cfg)
    except FileNotFoundError as error:
        return f"{names}: not there ({error})", 0
    images, found = len(dataset.records), [dataset.texts(record) for record in dataset.sample_records()]
    texts = sum(map(len, filter(None, found))) * images // len(found)
    if not texts:
        raise ValueError(f"{names}: none of {images} images has ground truth to learn from")
    about = "" if len(found) == images else "about "
    data = f"{names}: {images:,} images, {about}{texts:,} prompts"
    if empty := dataset.num_empty + found.count([]):
        data += f"; {empty:,} images without an object are passed over"
    if unreadable := found.count(None):
        data += f"; the ground truth of {unreadable:,} images cannot be read"
    return data, images


def _cache(cfg: CfgNode) -> str:
    """Describe DATASETS.FEATURE_CACHE; its weights are compared when the training starts."""
    try:
        cache = FeatureCache(cfg.DATASETS.FEATURE_CACHE)
    except FileNotFoundError as error:
        return f"not there ({error})"
    cache.check(cfg, tokenizer_fingerprint(cfg))
    return f"{cache.num_prompts:,} prompts of {cache.num_images:,} images"


def _weights(cfg: CfgNode, model: OpenWorldSAM) -> str:
    """Name the weight files, or those that are missing."""
    encoder = [] if cfg.DATASETS.FEATURE_CACHE else [cfg.MODEL.PROMPT_ENCODER[key] for key in ("WEIGHTS", "TOKENIZER")]
    paths = dict.fromkeys([cfg.MODEL.WEIGHTS, cfg.MODEL.SAM2.WEIGHTS, cfg.MODEL.SCORE_HEAD.WEIGHTS, *encoder])
    if missing := [path for path in paths if path and not Path(path).exists()]:
        return f"not there: {', '.join(missing)} (openworldsam doctor says how to get them)"
    # checks that every tensor fits; a model on meta takes no memory
    sources = load_weights(model, cfg, need_adapter=False)
    return ", ".join(f"{name}: {source.file}" for name, source in sources.items())
