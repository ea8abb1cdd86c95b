"""Training of the tiny SAM2's memory: clips, losses, and a file that image and video model load."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from openworldsam import cli
from openworldsam.checkpoint import load_component, read_weights, save_component
from openworldsam.config import load_config
from openworldsam.data.shapes.clip import Moving, render_clip
from openworldsam.data.shapes.drawing import Thing
from openworldsam.modeling import OpenWorldSAM
from openworldsam.pretraining import command
from openworldsam.pretraining.memory import LEAST, MovingThings, TinyMemory, Tracked
from openworldsam.video.memory import SAM2Memory

CONFIG = Path(__file__).parents[2] / "configs/shapes/paper.yaml"


@pytest.fixture
def cfg(opts):
    """Config of a tiny SAM2, whose random weights are saved."""
    torch.manual_seed(0)
    cfg = load_config(CONFIG, opts)
    save_component(OpenWorldSAM(cfg), "sam2", cfg.MODEL.SAM2.WEIGHTS, "random", torch.float16)
    return cfg


@pytest.fixture
def tiny(cfg):
    model = OpenWorldSAM(cfg)
    load_component(model, "sam2", read_weights(cfg.MODEL.SAM2.WEIGHTS))
    torch.manual_seed(1)
    return TinyMemory(model)


def test_things_may_leave_the_scene(world):
    away = [Moving(Thing("circle", "red", 64, 64, 40), step) for step in ((70, 0), (-70, 0), (0, 70), (0, -70))]
    for one in away:
        areas = [np.count_nonzero(identity) for _, identity in render_clip(world, 1, [one], 3)]
        assert areas[0] > 1000 and areas[2] == 0


def test_clips_are_reproducible_and_things_come_and_go(world):
    data = MovingThings(world, 3, 5)
    clips = default_collate([data[index] for index in range(30)])
    assert clips.images.shape == (30, 5, 3, 128, 128) and clips.masks.shape == (30, 5, 128, 128)
    again = data[7]
    assert torch.equal(again.images, clips.images[7]) and torch.equal(again.masks, clips.masks[7])
    there = clips.masks.sum(dim=(2, 3)) >= LEAST
    assert there[:, 0].all() and 0.05 < (~there[:, 1:]).float().mean() < 0.5
    gone = ~there[:, 1:-1] & there[:, 2:]
    assert gone.any(), "some come back"
    inside = clips.images[there][0][:, clips.masks[there][0]].float()
    assert inside.std(dim=1).max() < 60, "a thing has one colour"


@torch.no_grad()
def test_batched_clips_equal_single_clips(tiny, world):
    data = MovingThings(world, 5, 4)
    clips = default_collate([data[index] for index in range(3)])
    logits, presence = tiny.track(clips)
    for n in range(3):
        alone = tiny.track(Tracked(clips.images[n : n + 1], clips.masks[n : n + 1]))
        torch.testing.assert_close(logits[n], alone[0][0], rtol=1e-4, atol=2e-3)
        torch.testing.assert_close(presence[n], alone[1][0], rtol=1e-4, atol=2e-3)


def test_gradients_reach_only_the_memory_and_the_presence_head(tiny, world):
    data = MovingThings(world, 5, 4)
    losses = tiny.losses(default_collate([data[index] for index in range(4)]), 1)
    torch.stack(list(losses.values())).sum().backward()
    assert not any(p.requires_grad for p in tiny.model.parameters())
    reached = {name for name, p in tiny.memory.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    for module in ("memory_attention", "memory_encoder", "obj_ptr_proj", "sam_mask_decoder.pred_obj_score_head"):
        assert any(name.startswith(module) for name in reached), module
    assert {name.split(".")[0] for name in reached if not name.startswith("sam_mask_decoder.pred_obj")}.isdisjoint(
        {"image_encoder", "sam_mask_decoder", "sam_prompt_encoder", "no_mem_embed"}
    )


def test_a_batch_without_visible_things_has_a_loss(tiny, world):
    clips = default_collate([MovingThings(world, 5, 3)[0]])
    clips.masks[:, 1:] = False
    losses = tiny.losses(clips, 1)
    assert losses["masks"] == 0 and losses["presence"] > 0
    torch.stack(list(losses.values())).sum().backward()


def test_the_command_adds_a_memory_and_keeps_the_image_model(opts, cfg, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "SCORED_SCENES", 2)
    before = read_weights(cfg.MODEL.SAM2.WEIGHTS).components["sam2"]
    words = ["pretrain", "memory", "--config", str(CONFIG), "--output", str(tmp_path / "out"), "--steps", "2"]
    cli.main([*words, "--batch-size", "2", *opts])
    file = read_weights(tmp_path / "out/sam2_video.safetensors")
    assert file.metadata["note"] == "random; memory: 2 steps of 2 clips"
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, file.components["sam2"][name])}
    assert changed and all(name.startswith("sam_mask_decoder.pred_obj_score_head.") for name in changed)
    model = OpenWorldSAM(cfg)
    load_component(model, "sam2", file)
    SAM2Memory.from_file(model, file)
