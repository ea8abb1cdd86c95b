"""The encoders of the Shapes world can be made: data, losses, states, files that a model then loads."""

from pathlib import Path

import numpy as np
import pytest
import torch

from openworldsam.checkpoint import load_weights
from openworldsam.config import load_config
from openworldsam.data.shapes import World, render
from openworldsam.modeling import OpenWorldSAM
from openworldsam.pretraining import beit3, sam2
from openworldsam.pretraining.command import main
from openworldsam.pretraining.loop import Schedule, pretrain

ROOT = Path(__file__).parents[2]
WORLD = World(size=128, num_things=(2, 3), thing_size=(30, 60))


@pytest.fixture
def opts(tmp_path):
    weights = tmp_path / "weights"
    return [
        *("MODEL.SAM2.WEIGHTS", str(weights / "sam2.safetensors"), "MODEL.SAM2.EMBED_DIM", "16"),
        *("MODEL.SAM2.IMAGE_SIZE", "128", "MODEL.SAM2.WIDTH", "32", "MODEL.SAM2.WINDOW_SPEC", "(8, 4, 4, 4)"),
        *("MODEL.PROMPT_ENCODER.WEIGHTS", str(weights / "beit3.safetensors"), "MODEL.PROMPT_ENCODER.IMAGE_SIZE", "64"),
        *("MODEL.PROMPT_ENCODER.TOKENIZER", str(weights / "beit3.spm"), "MODEL.PROMPT_ENCODER.EMBED_DIM", "24"),
        *("DATASETS.SHAPES.SIZE", "128", "DATASETS.SHAPES.THING_SIZE", "(30, 60)", "DATALOADER.NUM_WORKERS", "0"),
    ]


def config(opts):
    return load_config(ROOT / "configs/shapes/openworldsam.yaml", opts)


def command(encoder, output, opts, steps=3):
    words = [encoder, "--config-file", ROOT / "configs/shapes/openworldsam.yaml", "--output", output]
    main([*map(str, words), "--steps", str(steps), "--batch-size", "2", *opts])


@pytest.fixture
def short(monkeypatch):
    """Little data, and every part of the losses within the first steps."""
    monkeypatch.setattr(sam2, "AFFINITY_STEPS", 1)
    monkeypatch.setattr(beit3, "HEADS_ONLY_STEPS", 1)
    monkeypatch.setattr("openworldsam.pretraining.command.TOKENIZER_SCENES", 40)
    monkeypatch.setattr("openworldsam.pretraining.command.SCORED_SCENES", 4)
    monkeypatch.setattr("openworldsam.pretraining.loop.PERIOD", 2)


def test_both_encoders_are_made_and_found_by_the_model(opts, short, tmp_path):
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


def test_a_training_taken_up_again_gives_the_same_weights(opts, short, tmp_path):
    def train(state, stop_at=None):
        torch.manual_seed(0)
        tiny = sam2.TinySAM2(OpenWorldSAM(config(opts))).train()

        def losses(batch, step):
            if step == stop_at:
                raise KeyboardInterrupt
            return sam2.training_losses(tiny, batch, step)

        pretrain(tiny, sam2.PromptedScenes(WORLD, 1, 2), sam2.collate, losses, Schedule(5, 2, 1e-3), state, 0)
        return tiny.state_dict()

    whole = train(tmp_path / "whole.pth")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts.pth", stop_at=4)
    assert torch.load(tmp_path / "parts.pth", weights_only=True)["step"] == 2
    parts = train(tmp_path / "parts.pth")
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_points_and_boxes_belong_to_their_segments():
    for kind, labels in (("point", [1, -1]), ("box", [2, 3])):
        x = sam2.PromptedScenes(WORLD, 3, 5, kind)[0]
        assert x.masks.shape == (5, 128, 128) and x.labels.tolist() == [labels] * 5
        for mask, (first, second) in zip(x.masks.numpy(), x.points.numpy(), strict=True):
            ys, xs = np.nonzero(mask)
            if kind == "point":
                assert mask[int(first[1]), int(first[0])]
            else:
                assert [*first, *second] == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_every_text_is_true_of_its_segment_alone():
    x = beit3.DescribedScenes(WORLD, 3, 8, grid=4)[0]
    scene = render(WORLD, 3, 0, "all")
    texts = beit3.describe(scene)
    for text, mask in zip(x.texts, x.masks.numpy(), strict=True):
        owners = [id_ for id_, own in texts.items() if text in own]
        assert len(owners) == 1 and np.array_equal(mask, scene.segment_map == owners[0])


def test_cells_tell_box_and_form_of_their_segment():
    scene = render(WORLD, 3, 0, "all")
    cells = sam2.describe_cells(scene, 16)
    assert cells.shape == (4 + 64 + 1, 8, 8)
    for row, column in np.ndindex(8, 8):
        id_ = scene.segment_map[16 * row + 8, 16 * column + 8]
        if id_ == 0:
            assert not cells[:, row, column].any()
            continue
        ys, xs = np.nonzero(scene.segment_map == id_)
        box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / 128
        np.testing.assert_allclose(cells[:4, row, column], box, rtol=1e-6)
        share = len(ys) / ((ys.max() + 1 - ys.min()) * (xs.max() + 1 - xs.min()))
        assert abs(cells[4:-1, row, column].mean() - share) < 0.1
        assert cells[-1, row, column] == (4 if scene.segments[id_ - 1].is_thing else 1)


def test_a_perfect_telling_costs_nothing_but_the_form():
    cells = torch.from_numpy(sam2.describe_cells(render(WORLD, 3, 0, "all"), 16))[None]
    along = (torch.arange(8) + 0.5) / 8
    place = torch.stack(torch.meshgrid(along, along, indexing="xy"))[None]
    told = torch.cat([place, cells[:, :4], torch.logit(cells[:, 4:-1], eps=1e-6)], dim=1)
    best = sam2.telling_loss(told, cells)
    worse = told.clone()
    worse[:, 0] += 0.1
    assert 0 <= best < sam2.telling_loss(worse, cells)


def test_what_tokens_look_for_first_is_their_own_place(opts):
    """After `start_local` a point's token attends most to the cell that it lies in."""
    torch.manual_seed(0)
    tiny = sam2.TinySAM2(OpenWorldSAM(config([*opts, "MODEL.SAM2.WIDTH", "128"]))).eval()
    tiny.start_local()
    decoder = tiny.mask_decoder
    points = torch.tensor([[[40.0, 88.0], [0, 0]]])
    tokens, _ = decoder.prompt_encoder(points=(points, torch.tensor([[1, -1]])), boxes=None, masks=None)
    attention = decoder.decoder.transformer.layers[0].cross_attn_token_to_image
    keys = attention.k_proj(decoder.positions().flatten(2)[0].T)
    likeness = attention.q_proj(tokens[0, 0] - decoder.prompt_encoder.point_embeddings[1].weight[0]) @ keys.T
    assert divmod(int(likeness.argmax()), 8) in [(5, 2), (5, 1), (4, 2), (5, 3), (6, 2)]


def test_beit3_wants_the_sam2_first(opts, short, tmp_path, capsys):
    with pytest.raises(SystemExit) as exited:
        command("beit3", tmp_path / "out", opts)
    assert exited.value.code == 2 and "sam2.safetensors" in capsys.readouterr().err
