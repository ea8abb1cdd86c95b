"""Training of the tiny encoders: data, losses, resuming, and weight files that a model loads."""

from pathlib import Path

import numpy as np
import pytest
import torch

from openworldsam.checkpoint import load_weights
from openworldsam.config import load_config
from openworldsam.data.shapes import render
from openworldsam.modeling import OpenWorldSAM
from openworldsam.pretraining import beit3, sam2
from openworldsam.pretraining.command import main
from openworldsam.pretraining.loop import Schedule, pretrain

ROOT = Path(__file__).parents[2]


def config(opts):
    return load_config(ROOT / "configs/shapes/paper.yaml", opts)


def command(encoder, output, opts, steps=3):
    words = [encoder, "--config-file", ROOT / "configs/shapes/paper.yaml", "--output", output]
    main([*map(str, words), "--steps", str(steps), "--batch-size", "2", *opts])


@pytest.fixture
def short(monkeypatch):
    """Use little data, and every loss within the first steps."""
    monkeypatch.setattr("openworldsam.pretraining.loop.SEEING_STEPS", 1)
    monkeypatch.setattr("openworldsam.pretraining.command.TOKENIZER_SCENES", 40)
    monkeypatch.setattr("openworldsam.pretraining.command.SCORED_SCENES", 4)
    monkeypatch.setattr("openworldsam.pretraining.loop.PERIOD", 2)


def test_the_model_loads_both_trained_encoders(opts, short, tmp_path):
    command("sam2", tmp_path / "out", opts)
    command("beit3", tmp_path / "out", opts)
    cfg = config([*opts, "MODEL.WEIGHTS", ""])
    model = OpenWorldSAM(cfg)
    sources = load_weights(model, cfg, need_adapter=False)
    assert sources["sam2"].note == sources["beit3"].note == "trained on the Shapes world, 3 steps of 2 scenes"
    trained = torch.load(tmp_path / "out/sam2_state.pth", weights_only=True)["model"]
    ours = model.image_encoder.state_dict()
    for name, value in ours.items():
        torch.testing.assert_close(value, trained[f"image_encoder.{name}"], rtol=1e-3, atol=1e-3)


def test_a_resumed_training_gives_the_same_weights(opts, short, world, tmp_path):
    class Stopping(sam2.TinySAM2):
        def losses(self, batch, step):
            if step == self.stop_at:
                raise KeyboardInterrupt
            return super().losses(batch, step)

    def train(state, stop_at=None):
        torch.manual_seed(0)
        tiny = Stopping(OpenWorldSAM(config(opts))).train()
        tiny.stop_at = stop_at
        pretrain(tiny, sam2.PromptedScenes(world, 1, 2), Schedule(5, 2, 1e-3), state, 0)
        return tiny.state_dict()

    whole = train(tmp_path / "whole.pth")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts.pth", stop_at=4)
    assert torch.load(tmp_path / "parts.pth", weights_only=True)["step"] == 2
    parts = train(tmp_path / "parts.pth")
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


@pytest.mark.parametrize("exact", [True, False])
def test_points_and_boxes_match_their_segments(world, exact):
    x = sam2.PromptedScenes(world, 3, 5, exact)[0]
    assert x.masks.shape == (5, 128, 128)
    for mask, (px, py), box in zip(x.masks.numpy(), x.points.tolist(), x.boxes.numpy(), strict=True):
        assert mask[int(py), int(px)]
        ys, xs = np.nonzero(mask)
        true = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert np.abs(box - true).max() <= (0 if exact else 10)


def test_every_text_refers_to_one_region(world):
    several = 0
    for index in range(5):
        x = beit3.DescribedScenes(world, 3, 8, grid=4)[index]
        scene = render(world, 3, index, "all")
        texts = beit3.texts_by_region(scene)
        for text, mask, told in zip(x.texts, x.masks.numpy(), x.segments, strict=True):
            owners = [ids for ids, group in texts.items() if text in group]
            assert len(owners) == 1 and np.array_equal(mask, np.isin(scene.segment_map, owners[0]))
            assert bool(told.any()) == (len(owners[0]) == 1)
            several += len(owners[0]) > 1
    assert several


def test_a_shared_name_refers_to_all_its_things(world):
    for index in range(20):
        scene = render(world, 3, index, "all")
        texts = beit3.texts_by_region(scene)
        for shape in {segment.name for segment in scene.segments if segment.is_thing}:
            having = tuple(segment.id for segment in scene.segments if segment.name == shape)
            assert len(having) == 1 or {shape, f"the {shape}"} <= {*texts[having]}


def test_tokens_first_attend_to_their_place(opts):
    """After `start_local`, the token of a point attends most to the cell that contains it."""
    torch.manual_seed(0)
    tiny = sam2.TinySAM2(OpenWorldSAM(config([*opts, "MODEL.SAM2.WIDTH", "128"]))).eval()
    tiny.start_local()
    decoder = tiny.mask_decoder
    token = tiny.points(torch.tensor([[40.0, 88.0]]))[0, 0]
    attention = decoder.decoder.transformer.layers[0].cross_attn_token_to_image
    keys = attention.k_proj(decoder.positions().flatten(2)[0].T)
    likeness = attention.q_proj(token - decoder.prompt_encoder.point_embeddings[1].weight[0]) @ keys.T
    assert divmod(int(likeness.argmax()), 8) in [(5, 2), (5, 1), (4, 2), (5, 3), (6, 2)]


def test_boxes_give_two_corner_tokens_and_points_one_token(opts):
    tiny = sam2.TinySAM2(OpenWorldSAM(config(opts))).eval()
    encoder = tiny.mask_decoder.prompt_encoder
    points, boxes = torch.tensor([[40.0, 88.0], [7.0, 9.0]]), torch.tensor([[30.0, 70, 60, 100], [0, 0, 20, 30]])
    tokens = tiny.points_or_boxes(points, boxes, torch.tensor([True, False]))
    corners, _ = encoder(points=None, boxes=boxes[:1], masks=None)
    torch.testing.assert_close(tokens[0, :2], corners[0])
    torch.testing.assert_close(tokens[1, :1], tiny.points(points)[1])
    assert tiny.points(points).shape == (2, 1, 32)
