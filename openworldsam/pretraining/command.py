"""The command line of openworldsam pretrain."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from openworldsam.checkpoint import load_component, read_weights, save_component
from openworldsam.checkpoint.knowledge import SHAPES_NOTE
from openworldsam.config import load_config
from openworldsam.data.datasets.shapes import configured_world, split_seed
from openworldsam.data.shapes import crowded, render
from openworldsam.modeling import OpenWorldSAM
from openworldsam.modeling.prompt_encoders.beit3 import BEiT3PromptEncoder
from openworldsam.modeling.prompt_encoders.beit3_tokenizer import train_tokenizer
from openworldsam.pretraining import beit3, clip, memory, sam2
from openworldsam.pretraining.loop import Schedule, pretrain, validate
from openworldsam.utils.device import usable_device
from openworldsam.utils.launch import launch_command
from openworldsam.utils.locking import lock

logger = logging.getLogger(__name__)

SCHEDULES = {
    "sam2": Schedule(steps=12_000, batch_size=8, learning_rate=1e-3),
    "beit3": Schedule(steps=30_000, batch_size=8, learning_rate=1e-3, warmup=500),
    "clip": Schedule(steps=3_000, batch_size=64, learning_rate=1e-3),
    "memory": Schedule(steps=1_500, batch_size=6, learning_rate=5e-4),
}
TRAINED_FRAMES, SCORED_FRAMES = 8, 12
"""Frames of a clip."""
VIDEO = "sam2_video.safetensors"
"""SAM2 with a memory, in the output folder; the shipped adapters were trained with the SAM2 without it."""
TOKENIZER_SCENES = 3000
"""Scenes whose texts train the tokenizer."""
SCORED_SCENES = 200
"""Scenes to score an encoder on after its training, unless TEST.MAX_IMAGES says."""


def pretrain_component(args: argparse.Namespace) -> None:
    """Train an encoder and write it to its path in the config; CLIP and a SAM2 with memory go to the output folder."""
    cfg = load_config(args.config, args.opts)
    cfg.MODEL.DEVICE = usable_device(cfg.MODEL.DEVICE)
    cfg.MODEL.PRECISION = "bf16"
    args.output.mkdir(parents=True, exist_ok=True)
    setup_logger(str(args.output / f"{args.encoder}.log"), name="openworldsam")
    schedule = SCHEDULES[args.encoder]
    schedule = schedule._replace(steps=args.steps or schedule.steps, batch_size=args.batch_size or schedule.batch_size)
    seed_all_rng(cfg.SEED)
    state = args.output / f"{args.encoder}_state.pth"
    trainings = {"sam2": _train_sam2, "beit3": _train_beit3, "clip": _train_clip, "memory": _train_memory}
    with lock(args.output / f".{args.encoder}.lock", f"another training is writing {state}; use another --output"):
        trainings[args.encoder](cfg, schedule, state)


def _train_sam2(cfg: CfgNode, schedule: Schedule, state: Path) -> None:
    world = configured_world(cfg)
    model = OpenWorldSAM(cfg).to(cfg.MODEL.DEVICE)
    tiny = sam2.TinySAM2(model).train()
    tiny.start_local()
    data = sam2.PromptedScenes((world, crowded(world)), _seed(cfg, "sam2_train"))
    pretrain(tiny, data, schedule, state, cfg.DATALOADER.NUM_WORKERS)
    for name, scored in (("scenes", world), ("crowds", crowded(world))):
        exact = sam2.PromptedScenes((scored,), _seed(cfg, "sam2_val"), exact=True)
        logger.info("IoU, %s: %s", name, validate(tiny.eval(), exact, cfg.TEST.MAX_IMAGES or SCORED_SCENES))
    save_component(model, "sam2", cfg.MODEL.SAM2.WEIGHTS, _note(schedule), torch.float16)


def _train_beit3(cfg: CfgNode, schedule: Schedule, state: Path) -> None:
    world, tokenizer = configured_world(cfg), Path(cfg.MODEL.PROMPT_ENCODER.TOKENIZER)
    if not tokenizer.is_file():
        pieces = cfg.MODEL.PROMPT_ENCODER.VOCAB_SIZE - 1  # BEiT-3's ids are shifted by one
        # bpe keeps words whole, the default splits even them; Unicode's normal forms would be 240 of 243 kB
        train_tokenizer(tokenizer, _texts(cfg), pieces, model_type="bpe", normalization_rule_name="identity")
    model = OpenWorldSAM(cfg)
    assert isinstance(model.prompt_encoder, BEiT3PromptEncoder)
    pointing = beit3.PointingBEiT3(model.prompt_encoder, world).to(cfg.MODEL.DEVICE).train()
    described = partial(beit3.DescribedScenes, num_texts=4, grid=pointing.grid)
    data = described((world, crowded(world)), _seed(cfg, "beit3_train"))
    pretrain(pointing, data, schedule, state, cfg.DATALOADER.NUM_WORKERS)
    for name, scored in (("scenes", world), ("crowds", crowded(world))):
        held_out = described((scored,), _seed(cfg, "beit3_val"))
        found = validate(pointing.eval(), held_out, cfg.TEST.MAX_IMAGES or SCORED_SCENES)
        logger.info("share of texts that point into their region, %s: %s", name, found)
    save_component(model, "beit3", cfg.MODEL.PROMPT_ENCODER.WEIGHTS, _note(schedule), torch.float16)


def _train_clip(cfg: CfgNode, schedule: Schedule, state: Path) -> None:
    world, folder, keys = configured_world(cfg), state.with_name("clip"), cfg.MODEL.PROMPT_ENCODER
    if not (folder / "config.json").is_file():
        clip.write_untrained(folder, keys.IMAGE_SIZE, keys.PATCH_SIZE, _texts(cfg))
    keys.NAME, keys.EMBED_DIM = "CLIPLateFusionEncoder", 2 * clip.WIDTH
    keys.TOKENIZER, keys.WEIGHTS, cfg.MODEL.WEIGHTS = str(folder), "", ""  # no weights: it starts at random
    model = OpenWorldSAM(cfg)
    contrastive = clip.ContrastiveCLIP(model.prompt_encoder).to(cfg.MODEL.DEVICE).train()
    data = clip.CaptionedScenes((world, crowded(world)), _seed(cfg, "clip_train"))
    pretrain(contrastive, data, schedule, state, cfg.DATALOADER.NUM_WORKERS)
    for name, scored in (("scenes", world), ("crowds", crowded(world))):
        held_out = clip.CaptionedScenes((scored,), _seed(cfg, "clip_val"))
        found = validate(contrastive.eval(), held_out, cfg.TEST.MAX_IMAGES or SCORED_SCENES)
        logger.info("share of captions that are nearest to their image, of 10 %s: %s", name, found)
    save_component(model, "clip", folder / "model.safetensors", _note(schedule), torch.float16)


def _train_memory(cfg: CfgNode, schedule: Schedule, state: Path) -> None:
    if not cfg.MODEL.SAM2.WEIGHTS:
        raise ValueError("MODEL.SAM2.WEIGHTS is empty; the memory extends an existing SAM2")
    world, file = configured_world(cfg), read_weights(cfg.MODEL.SAM2.WEIGHTS)
    model = OpenWorldSAM(cfg)
    load_component(model, "sam2", file)
    tiny = memory.TinyMemory(model.to(cfg.MODEL.DEVICE))
    data = memory.MovingThings(world, _seed(cfg, "memory_train"), TRAINED_FRAMES)
    scored = memory.MovingThings(world, _seed(cfg, "memory_val"), SCORED_FRAMES)
    pretrain(tiny, data, schedule, state, cfg.DATALOADER.NUM_WORKERS)
    logger.info("tracking: %s", validate(tiny, scored, cfg.TEST.MAX_IMAGES or SCORED_SCENES))
    note = f"{file.metadata.get('note', file.path.name)}; memory: {schedule.steps} steps of {schedule.batch_size} clips"
    save_component(model, "sam2", state.with_name(VIDEO), note, torch.float16, tiny.memory.video_state())


def _texts(cfg: CfgNode) -> Iterator[str]:
    """Yield the texts of the scenes that train a tokenizer."""
    for index in range(TOKENIZER_SCENES):
        scene = render(configured_world(cfg), _seed(cfg, "tokenizer"), index, "all")
        yield from (text for group in beit3.texts_by_region(scene).values() for text in group)


def _seed(cfg: CfgNode, purpose: str) -> int:
    """Return the seed of scenes that no split has."""
    return split_seed(cfg.DATASETS.SHAPES_SEED, purpose)


def _note(schedule: Schedule) -> str:
    return f"{SHAPES_NOTE}, {schedule.steps} steps of {schedule.batch_size} scenes"


def run(args: argparse.Namespace) -> None:
    """Run the command; exits with 2 after a user error."""
    launch_command(pretrain_component, args=(args,))
