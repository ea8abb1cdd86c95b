"""The tiny SAM2's memory can be made: clips, losses, a file that the image model and the video model load."""

from pathlib import Path

import numpy as np
import pytest
import torch

from openworldsam.checkpoint import load_component, read_weights, save_component
from openworldsam.config import load_config
from openworldsam.data.shapes import World
from openworldsam.data.shapes.clip import Moving, render_clip
from openworldsam.data.shapes.drawing import Thing
from openworldsam.modeling import OpenWorldSAM
from openworldsam.pretraining import command
from openworldsam.pretraining.memory import LEAST, MovingThings, TinyMemory, Tracked, collate, training_losses
from openworldsam.video.memory import SAM2Memory

CONFIG = Path(__file__).parents[2] / "configs/shapes/openworldsam.yaml"
WORLD = World(size=128, num_things=(2, 3), thing_size=(30, 60))


@pytest.fixture
def opts(tmp_path):
    """Of a tiny SAM2 with random weights."""
    opts = [
        *("MODEL.SAM2.WEIGHTS", str(tmp_path / "sam2.safetensors"), "MODEL.SAM2.EMBED_DIM", "16"),
        *("MODEL.SAM2.IMAGE_SIZE", "128", "MODEL.SAM2.WIDTH", "32", "MODEL.SAM2.WINDOW_SPEC", "(8, 4, 4, 4)"),
        *("DATASETS.SHAPES.SIZE", "128", "DATASETS.SHAPES.THING_SIZE", "(30, 60)", "DATALOADER.NUM_WORKERS", "0"),
    ]
    torch.manual_seed(0)
    cfg = load_config(CONFIG, opts)
    save_component(OpenWorldSAM(cfg), "sam2", cfg.MODEL.SAM2.WEIGHTS, "random", torch.float16)
    return opts


@pytest.fixture
def tiny(opts):
    cfg = load_config(CONFIG, opts)
    model = OpenWorldSAM(cfg)
    load_component(model, "sam2", read_weights(cfg.MODEL.SAM2.WEIGHTS))
    torch.manual_seed(1)
    return TinyMemory(model)


def test_things_may_leave_the_scene():
    away = [Moving(Thing("circle", "red", 64, 64, 40), step) for step in ((70, 0), (-70, 0), (0, 70), (0, -70))]
    for one in away:
        areas = [np.count_nonzero(identity) for _, identity in render_clip(WORLD, 1, [one], 3)]
        assert areas[0] > 1000 and areas[2] == 0


def test_clips_are_drawn_again_the_same_and_things_come_and_go():
    data = MovingThings(WORLD, 3, 5)
    clips = collate([data[index] for index in range(30)])
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
def test_clips_together_are_clips_one_by_one(tiny):
    data = MovingThings(WORLD, 5, 4)
    clips = collate([data[index] for index in range(3)])
    logits, presence = tiny.track(clips)
    for n in range(3):
        alone = tiny.track(Tracked(clips.images[n : n + 1], clips.masks[n : n + 1]))
        torch.testing.assert_close(logits[n], alone[0][0], rtol=1e-4, atol=2e-3)
        torch.testing.assert_close(presence[n], alone[1][0], rtol=1e-4, atol=2e-3)


def test_the_loss_reaches_the_memory_and_the_head_alone(tiny):
    data = MovingThings(WORLD, 5, 4)
    losses = training_losses(tiny, collate([data[index] for index in range(4)]), 1)
    torch.stack(list(losses.values())).sum().backward()
    assert not any(p.requires_grad for p in tiny.model.parameters())
    reached = {name for name, p in tiny.memory.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    for module in ("memory_attention", "memory_encoder", "obj_ptr_proj", "sam_mask_decoder.pred_obj_score_head"):
        assert any(name.startswith(module) for name in reached), module
    assert {name.split(".")[0] for name in reached if not name.startswith("sam_mask_decoder.pred_obj")}.isdisjoint(
        {"image_encoder", "sam_mask_decoder", "sam_prompt_encoder", "no_mem_embed"}
    )


def test_a_batch_in_which_nothing_is_to_be_seen_has_a_loss(tiny):
    clips = collate([MovingThings(WORLD, 5, 3)[0]])
    clips.masks[:, 1:] = False
    losses = training_losses(tiny, clips, 1)
    assert losses["masks"] == 0 and losses["presence"] > 0
    torch.stack(list(losses.values())).sum().backward()


def test_the_command_adds_a_memory_and_leaves_the_image_model(opts, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "SCORED_SCENES", 2)
    cfg = load_config(CONFIG, opts)
    before = read_weights(cfg.MODEL.SAM2.WEIGHTS).components["sam2"]
    words = ["memory", "--config-file", str(CONFIG), "--output", str(tmp_path / "out"), "--steps", "2"]
    command.main([*words, "--batch-size", "2", *opts])
    file = read_weights(tmp_path / "out/sam2_video.safetensors")
    assert file.metadata["note"] == "random; memory: 2 steps of 2 clips"
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, file.components["sam2"][name])}
    assert changed and all(name.startswith("sam_mask_decoder.pred_obj_score_head.") for name in changed)
    model = OpenWorldSAM(cfg)
    load_component(model, "sam2", file)
    SAM2Memory.from_file(model, file)
