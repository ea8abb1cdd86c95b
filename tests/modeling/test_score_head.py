"""Score head: sizes, equality pairs, its loss by hand, and what its gradient reaches."""

import math

import pytest
import torch
from detectron2.config import get_cfg

from openworldsam.config import add_openworldsam_config
from openworldsam.modeling import Adapter, ImageFeatures
from openworldsam.modeling.criterion import Criterion, best_ious
from openworldsam.modeling.score_head import CROP, ScoreHead, appearance_width, masked_region

TRAINING = ("MODEL.CRITERION.SCORE_WEIGHT", 1.0, "MODEL.SCORE_HEAD.DROPOUT", 0.0, "MODEL.ADAPTER.DROPOUT", 0.0)
ALONE = (*TRAINING, "MODEL.ADAPTER.TRAINABLE", False, "MODEL.CRITERION.MASK_WEIGHT", 0.0)


@pytest.fixture
def with_head(build, head_opts):
    return lambda *opts: build(*head_opts, *opts)


def batch_of(pictures, *present, absent=0):
    """An input for each picture, with that many prompts that have two masks, and then absent ones."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for image, count in zip(pictures, present, strict=False):
        masks = [torch.rand(2, *image.shape[1:], generator=generator) > 0.5 for _ in range(count)]
        none = [torch.zeros(0, *image.shape[1:], dtype=torch.bool)] * absent
        prompts = [*("cat", "sky", "tree")[:count], *("dog", "lynx")[:absent]]
        batch.append({"image": image, "prompts": prompts, "targets": masks + none})
    return batch


@torch.no_grad()
def match_scores(model, pictures, *prompts):
    """Match scores [R] of prompts about each picture, decoded together."""
    index = torch.arange(len(prompts)).repeat_interleave(torch.tensor([len(texts) for texts in prompts]))
    texts = [text for per_image in prompts for text in per_image]
    features = model.encode_images(list(pictures))
    embeddings = model.encode_prompts(model.prompt_inputs(list(pictures)), texts, index)
    tokens = model.decoder_tokens(features, embeddings, index)
    with model.autocast():
        decoded = model.mask_decoder(features, tokens)
    return model.match_logits(features, embeddings, tokens, *decoded).sigmoid()


def test_the_head_and_all_that_is_trained_stay_small():
    cfg = get_cfg()
    add_openworldsam_config(cfg)
    cfg.MODEL.SCORE_HEAD.HIDDEN = 256
    head, adapter = (sum(p.numel() for p in part.parameters()) for part in (ScoreHead(cfg), Adapter(cfg, 1024)))
    assert head <= 0.5e6 and head + adapter <= 5e6


@pytest.mark.parametrize("fusion", ["replace", "broadcast"])
def test_a_batch_chunks_and_single_prompts_give_the_same_scores(with_head, pictures, fusion):
    opts = ["MODEL.ADAPTER.FUSION", fusion]
    model, chunked = with_head(*opts), with_head(*opts, "MODEL.MASK_DECODER.CHUNK", 3)
    asked = ["cat", "grass"], ["dog", "sky", "a red car"]
    together = match_scores(model, pictures, *asked)
    assert together.shape == (5 * model.adapter.num_queries,)
    assert together.std() > 0.01  # these weights tell queries apart
    torch.testing.assert_close(match_scores(chunked, pictures, *asked), together, rtol=1e-4, atol=1e-5)
    alone = [match_scores(model, [x], [text]) for x, texts in zip(pictures, asked, strict=True) for text in texts]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tie_breakers", [0, 1])
def test_one_query_per_prompt(build, pictures, tie_breakers):
    opts = ["MODEL.SCORE_HEAD.HIDDEN", 16, "MODEL.ADAPTER.NUM_TIE_BREAKERS", tie_breakers, *TRAINING]
    model = build(*opts, weights=False)
    assert match_scores(model, pictures, ["cat", "sky"], ["dog"]).shape == (3,)
    assert model(batch_of(pictures, 2, 1, absent=1)) and model.train()(batch_of(pictures, 2, 1, absent=1))["loss_score"]


def test_the_score_reads_prompt_words_mask_and_image(with_head, pictures):
    """Each input changes it: a head that ignored one would be blind to names, masks or what they show."""
    model = with_head()
    features, index = model.encode_images(pictures[:1]), torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        embeddings = model.encode_prompts(model.prompt_inputs(pictures[:1]), ["cat", "sky"], index)
        tokens = model.decoder_tokens(features, embeddings, index)
        logits, iou = model.mask_decoder(features, tokens)
        width = model.prompt_encoder.embed_dim
        other_words = torch.cat([embeddings[:, :width], embeddings.flip(0)[:, width:]], dim=1)
        score = model.match_logits(features, embeddings, tokens, logits, iou)
        others = [
            model.match_logits(features, other_words, tokens, logits, iou),
            model.match_logits(features, embeddings, tokens._replace(prompts=tokens.prompts.flip(0)), logits, iou),
            model.match_logits(features, embeddings, tokens, logits.flip(-1) - 1, iou),
            model.match_logits(features, embeddings, tokens, logits, 1 - iou),
            model.match_logits(features._replace(embed=-features.embed), embeddings, tokens, logits, iou),
        ]
    assert min(float((other - score).abs().max()) for other in others) > 1e-5


def test_masked_region_by_hand():
    embed = torch.zeros(2, 8, 1, 1)
    embed[1] = 3
    finest, middle = torch.zeros(2, 1, 4, 4), torch.arange(16.0).view(2, 2, 2, 2)
    finest[0, 0, 0, 0] = 16
    logits = torch.full((2, 4, 4), -100.0)
    logits[0, :2, :2] = 100  # a quarter of image 0
    logits[1] = 100  # all of image 1
    features = ImageFeatures(embed, (finest, middle))
    means, form, size = masked_region(features, torch.tensor([0, 1]), logits)
    torch.testing.assert_close(size, torch.tensor([[0.25, 0.5], [1, 1]]))
    assert form.shape == (2, 1, CROP, CROP) and (form[1] == 1).all() and form[0, 0, 0, 0] == 1
    torch.testing.assert_close(means[:, 8:], torch.tensor([[4.0, 0, 4], [0, 9.5, 13.5]]))
    assert (means[:, :8] == torch.tensor([[0.0], [3]])).all() and means.shape[1] == appearance_width(8)


def test_the_form_depends_on_neither_place_nor_size():
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")

    def disc(column, row, radius):
        return ((x - column) ** 2 + (y - row) ** 2 < radius**2) * 40.0 - 20

    square = ((x - 30).abs().maximum((y - 40).abs()) < 12) * 40.0 - 20
    blank = ImageFeatures(torch.zeros(1, 8, 16, 16), (torch.zeros(1, 1, 64, 64), torch.zeros(1, 2, 32, 32)))
    masks = torch.stack([disc(20, 20, 16), disc(40, 30, 8), square, torch.full((64, 64), -20.0)])
    form = masked_region(blank, torch.zeros(4, dtype=torch.long), masks).form.flatten(1)
    assert (form[0] - form[1]).abs().mean() < 0.04 < 0.12 < (form[0] - form[2]).abs().mean()
    assert form[3].max() < 1e-6  # nothing to show


def test_queries_carry_the_match_score_and_the_predicted_iou_stays(with_head, build, pictures):
    model, without = with_head(), build()
    features, index = model.encode_images(pictures[:1]), torch.zeros(2, dtype=torch.long)
    embeddings = model.encode_prompts(model.prompt_inputs(pictures[:1]), ["cat", "sky"], index).detach()
    queries, plain = model.queries(features, embeddings), without.queries(features, embeddings)
    torch.testing.assert_close(queries.match, match_scores(model, pictures[:1], ["cat", "sky"]), rtol=1e-5, atol=1e-6)
    assert plain.match is None
    assert torch.equal(queries.scores, plain.scores) and torch.equal(queries.logits, plain.logits)
    assert model.no_queries().match.shape == (0,)


@pytest.mark.parametrize("score", ["match", "product"])
def test_a_model_without_a_head_refuses_its_scores(build, score):
    with pytest.raises(ValueError, match=rf"MODEL\.INFERENCE\.SCORE {score} needs a score head"):
        build("MODEL.INFERENCE.SCORE", score)


def test_the_loss_by_hand():
    """Two queries of a prompt with two masks, two of an absent prompt; on masks of 1 x 4 pixels."""
    on, off = 3.0, -3.0
    logits = torch.tensor([[[[on, on, off, off]], [[on, on, on, off]]], [[[on] * 4], [[off] * 4]]])
    masks = torch.tensor([[[True, True, False, False]], [[False, False, False, True]]])
    targets = [masks, torch.zeros(0, 1, 4, dtype=torch.bool)]
    assert best_ious(logits, targets).tolist() == [[1.0, pytest.approx(2 / 3)], [0.0, 0.0]]

    scores = torch.tensor([[2.0, -1.0], [0.0, 1.0]])

    def entropy(score, target):
        p = 1 / (1 + math.exp(-score))
        return -target * math.log(p) - (1 - target) * math.log(1 - p)

    present, absent = entropy(2, 1) + entropy(-1, 2 / 3), entropy(0, 0) + entropy(1, 0)
    loss = Criterion(score_weight=3.0).score_loss(scores, logits, targets)
    assert loss.keys() == {"loss_score"}
    assert loss["loss_score"].item() == pytest.approx(3 * (present / 2 + absent / 2) / 1)  # one prompt is present


def test_masks_of_no_pixel_have_no_iou():
    empty = torch.full((1, 2, 1, 4), -1.0)
    assert best_ious(empty, [torch.zeros(1, 1, 4, dtype=torch.bool)]).tolist() == [[0.0, 0.0]]


def test_the_loss_of_micro_batches_adds_up_to_that_of_the_batch():
    generator = torch.Generator().manual_seed(0)
    logits, scores = torch.randn(6, 3, 4, 4, generator=generator), torch.randn(6, 3, generator=generator)
    targets = [torch.rand(n, 8, 8, generator=generator) > 0.5 for n in (1, 0, 2, 0, 0, 3)]
    loss = Criterion(score_weight=2.0).score_loss
    whole = loss(scores, logits, targets)["loss_score"]
    parts = [(slice(0, 2), 1), (slice(2, 6), 2)]  # with their present prompts
    shares = [loss(scores[part], logits[part], targets[part])["loss_score"] * n / 3 for part, n in parts]
    torch.testing.assert_close(sum(shares), whole)


def test_absent_prompts_leave_the_loss_of_masks_as_it_is(with_head, pictures):
    model = with_head(*TRAINING).train()
    without, among = (model(batch_of(pictures, 2, 1, absent=absent)) for absent in (0, 2))
    assert without.keys() == {"loss_mask", "loss_score"}
    torch.testing.assert_close(among["loss_mask"], without["loss_mask"], rtol=1e-4, atol=1e-5)
    assert among["loss_score"] > without["loss_score"]
    assert model.best_scores.shape == (7,) and ((model.best_scores > 0) & (model.best_scores < 1)).all()


def test_the_gradient_of_the_score_reaches_head_and_adapter_but_not_the_decoder(with_head, pictures):
    model = with_head(*TRAINING).train()
    for module in (model.mask_decoder, model.image_encoder):
        module.requires_grad_(True)
    model(batch_of(pictures, 2, 1, absent=1))["loss_score"].backward()
    learns = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {name.split(".")[0] for name in learns} == {"score_head", "adapter"}
    assert learns >= {f"score_head.{name}" for name, _ in model.score_head.named_parameters()}
    assert "adapter.projector.0.weight" in learns


def test_a_head_that_is_trained_alone_leaves_the_adapter_as_it_is(with_head, pictures):
    model = with_head(*ALONE, "MODEL.ADAPTER.DROPOUT", 0.5).train()
    assert not any(module.training for module in model.adapter.modules()) and model.score_head.training
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = [model(batch_of(pictures, 2, 1, absent=2)) for _ in range(2)]
    assert losses[0].keys() == {"loss_score"} and torch.equal(losses[0]["loss_score"], losses[1]["loss_score"])
    losses[0]["loss_score"].backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"score_head.{name}" for name in model.score_head.state_dict()}
    assert model(batch_of(pictures, 2, 1, absent=2))["loss_score"] < losses[0]["loss_score"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(with_head, pictures, precision):
    exact, half = (match_scores(with_head("MODEL.PRECISION", p), pictures[:1], ["cat"]) for p in ("fp32", precision))
    assert half.dtype == torch.float32 and 0 < (half - exact).abs().max() < 0.1
    model = with_head(*ALONE, "MODEL.PRECISION", precision).train()
    assert model(batch_of(pictures, 2, 1, absent=1))["loss_score"].isfinite()


@pytest.mark.parametrize("options", [{"hidden": -1}, {"dropout": 1.5}])
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match=r"MODEL\.SCORE_HEAD\.HIDDEN is 0 \(no head\) or more, DROPOUT from 0 to 1"):
        ScoreHead(**options)
