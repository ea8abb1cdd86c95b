"""Training of the tiny encoders: data, losses, resuming, and weight files that a model loads."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from openworldsam import cli
from openworldsam.checkpoint import load_component, load_weights, read_weights
from openworldsam.config import load_config
from openworldsam.data.shapes import crowded, render
from openworldsam.modeling import OpenWorldSAM
from openworldsam.pretraining import beit3, clip, sam2
from openworldsam.pretraining.loop import Schedule, pretrain, validate
from openworldsam.utils.locking import lock

main = cli.command("pretrain")

ROOT = Path(__file__).parents[2]


def config(opts):
    return load_config(ROOT / "configs/shapes/paper.yaml", opts)


def command(encoder, output, opts, steps=3):
    words = [encoder, "--config-file", ROOT / "configs/shapes/paper.yaml", "--output", output]
    main([*map(str, words), "--steps", str(steps), "--batch-size", "2", *opts])


@pytest.fixture
def short(monkeypatch):
    """Use little data, and every loss within the first steps."""
    for encoder in (sam2, beit3):
        monkeypatch.setattr(encoder, "SEEING_STEPS", 1)
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


def test_both_clip_encoders_load_the_trained_clip(opts, short, tmp_path, monkeypatch):
    library, counts = pytest.importorskip("transformers"), []
    with monkeypatch.context() as killed:
        killed.setattr(library.CLIPTokenizer, "save_pretrained", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command("clip", tmp_path / "out", opts)
    validated = "openworldsam.pretraining.command.validate"
    monkeypatch.setattr(validated, lambda model, data, count: counts.append(count) or validate(model, data, count))
    command("clip", tmp_path / "out", [*opts, "TEST.MAX_IMAGES", "2"])  # writes again what is incomplete
    assert counts == [2, 2]
    folder = str(tmp_path / "out/clip")
    encoder = ["MODEL.PROMPT_ENCODER.WEIGHTS", folder, "MODEL.PROMPT_ENCODER.TOKENIZER", folder]
    trained = torch.load(tmp_path / "out/clip_state.pth", weights_only=True)["model"]
    embeddings = {}
    for name, width in (("CLIPTextEncoder", clip.WIDTH), ("CLIPLateFusionEncoder", 2 * clip.WIDTH)):
        keys = ["MODEL.PROMPT_ENCODER.NAME", name, "MODEL.PROMPT_ENCODER.EMBED_DIM", width, "MODEL.WEIGHTS", ""]
        cfg = config([*opts, *encoder, *keys])
        model = OpenWorldSAM(cfg)
        load_component(model, model.prompt_encoder.component.name, read_weights(folder))
        for each, value in model.prompt_encoder.state_dict().items():
            torch.testing.assert_close(value, trained[f"encoder.{each}"], rtol=1e-3, atol=1e-3)
        images = model.prompt_inputs([torch.zeros(3, 128, 128, dtype=torch.uint8)])
        with torch.no_grad():
            embeddings[width] = model.encode_prompts(images, ["red star", "grass"], torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(embeddings[clip.WIDTH], embeddings[2 * clip.WIDTH][:, : clip.WIDTH])
    assert not torch.equal(*embeddings[clip.WIDTH])


def test_a_caption_joins_texts_of_its_scene(world):
    data = clip.CaptionedScenes((world, crowded(world)), 3)
    counts = Counter()
    for index in range(30):
        scene = render((world, crowded(world))[index % 2], 3, index, "all")
        groups = list(beit3.texts_by_region(scene).values())
        texts = data[index].caption.split(", ")
        found = [next(n for n, group in enumerate(groups) if text in group) for text in texts]
        assert len({*found}) == len(texts) and np.array_equal(data[index].image.permute(1, 2, 0), scene.image)
        counts[len(texts)] += 1
    assert {*counts} == {1, 2, 3, 4}


def test_the_contrast_of_a_batch(opts, short, tmp_path):
    """Of three images and captions whose logits are known, the loss and the hits are calculated by hand."""
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 3.0], [0.0, 0.0, 2.0]])

    class Known(clip.ContrastiveCLIP):
        def similarity(self, batch):
            return logits

    known = Known(torch.nn.Linear(1, 1))
    rows = [np.log(np.exp(row).sum()) - row[n] for n, row in enumerate(logits.numpy())]
    columns = [np.log(np.exp(column).sum()) - column[n] for n, column in enumerate(logits.numpy().T)]
    assert known.losses(None, 1)["contrast"].item() == pytest.approx(np.mean(rows + columns), abs=1e-6)
    assert known.scores(None)["image of the caption"].tolist() == [1, 1, 0]


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
        pretrain(tiny, sam2.PromptedScenes((world, crowded(world)), 1, 2), Schedule(9, 2, 1e-3), state, 0)
        return tiny.state_dict()

    whole = train(tmp_path / "whole.pth")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts.pth", stop_at=4)
    assert torch.load(tmp_path / "parts.pth", weights_only=True)["step"] == 2
    parts = train(tmp_path / "parts.pth")
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_two_trainings_do_not_share_a_state(opts, tmp_path, capsys):
    with lock(tmp_path / "out/.sam2.lock", ""), pytest.raises(SystemExit):
        command("sam2", tmp_path / "out", opts)
    assert f"another training is writing {tmp_path}/out/sam2_state.pth" in capsys.readouterr().err


@pytest.mark.parametrize("exact", [True, False])
def test_points_and_boxes_match_their_segments(world, exact):
    x = sam2.PromptedScenes((world,), 3, 5, exact)[0]
    assert x.masks.shape == (5, 128, 128)
    for mask, (px, py), box in zip(x.masks.numpy(), x.points.tolist(), x.boxes.numpy(), strict=True):
        assert mask[int(py), int(px)]
        ys, xs = np.nonzero(mask)
        true = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert np.abs(box - true).max() <= (0 if exact else 10)


def test_every_text_refers_to_its_region(world):
    """Several things share a name; an absent name has no region."""
    kinds = Counter()
    for index in range(20):
        of_scene = (world, crowded(world))[index % 2]
        x = beit3.DescribedScenes((world, crowded(world)), 3, 8, grid=4)[index]
        scene = render(of_scene, 3, index, "all")
        texts = beit3.texts_by_region(scene)
        for text, mask, told in zip(x.texts, x.masks.numpy(), x.segments, strict=True):
            owners = [ids for ids, group in texts.items() if text in group] or [()]
            assert len(owners) == 1 and np.array_equal(mask, np.isin(scene.segment_map, owners[0]))
            assert bool(told.any()) == (len(owners[0]) == 1)
            kinds["absent" if not owners[0] else "several" if len(owners[0]) > 1 else beit3._kind(text, of_scene)] += 1
    assert kinds.keys() == {*beit3.KINDS, "several"}


def test_a_missing_name_is_pointed_nowhere(world, opts):
    cfg = config([*opts, "MODEL.PROMPT_ENCODER.TOKENIZER", str(ROOT / "weights/shapes/beit3.spm")])
    pointing = beit3.PointingBEiT3(OpenWorldSAM(cfg).prompt_encoder, world)
    data = beit3.DescribedScenes((world,), 3, 8, grid=pointing.grid)
    index = next(i for i in range(50) if not data[i].masks.flatten(1).any(dim=1).all())
    batch = default_collate([data[index]])
    with torch.no_grad():
        pointing.place_head.bias[-1] = 1000
        found = pointing.scores(batch)
    assert found["absent"].all() and not any(hits.any() for kind, hits in found.items() if kind != "absent")
    losses = pointing.losses(batch, beit3.SEEING_STEPS + 1)
    assert all(value.isfinite() for value in losses.values())


def test_clicks_correct_the_largest_error():
    truth = torch.zeros(3, 20, 20, dtype=torch.bool)
    truth[:, 4:14, 4:14] = True
    found = truth.clone()
    found[0, 4:14, 4:9] = False  # misses the left half
    found[1, 14:20, 14:20] = True  # a corner too much
    points, labels = sam2.corrections(found, truth, 2)
    assert labels[:, 0].tolist() == [1, 0, 1]
    (x, y), (u, v), (p, q) = points[:, 0].tolist()
    assert 4 < x < 9 and 6 < y < 12 and u >= 16 and v >= 16 and 8 <= p <= 10 and 8 <= q <= 10
    assert (points[:, 0] != points[:, 1]).any(dim=1).all()
    found = truth.clone()
    found[:, 3, 8] = True  # a single pixel too much
    points, labels = sam2.corrections(found, truth, 3)
    assert points[0, 0].tolist() == [8.5, 3.5] and labels.tolist() == [[0, -1, -1]] * 3


def test_a_spoilt_mask_is_like_the_true_one_and_bounded():
    torch.manual_seed(0)
    target = torch.zeros(40, 1, 64, 64)
    target[:, :, 10:40, 20:50] = 1
    logits = sam2.spoilt(target, torch.zeros(40, 1, 16, 16))
    assert logits.abs().max() <= 32 and logits.isfinite().all()
    iou = sam2.paired_iou(sam2.at_size(logits, target[:, 0].bool()), target[:, 0].bool())
    assert iou.min() > 0.3 and iou.mean() < 0.95  # none is lost, few are whole


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
