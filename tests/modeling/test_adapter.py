"""Adapter: Eq. 1, the soft-prompt transformer, fusions, and chunks of decoder tokens."""

import pytest
import torch

from openworldsam.modeling.adapter import Adapter, DecoderTokens, grow_tie_breakers

B, C, D, K, S = 3, 32, 24, 4, 5
POSITIONS = torch.zeros(1, C, S, S)


def adapter(**options):
    torch.manual_seed(0)
    return Adapter(embed_dim=D, width=C, num_tie_breakers=options.pop("num_tie_breakers", K), **options).eval()


@pytest.fixture
def batch():
    """Embeddings of five prompts on three images; the second image has none."""
    torch.manual_seed(1)
    return torch.randn(5, D), torch.randn(B, C, S, S), torch.tensor([0, 0, 2, 2, 2])


def test_equation_1(batch):
    module = adapter(num_layers=0)
    tokens = module(*batch, POSITIONS)
    for p in range(5):
        for k in range(K):
            expected = module.projector(batch[0][p]) + module.tie_breakers[k]
            torch.testing.assert_close(tokens.queries[p * K + k], expected)
    assert tokens.shared is None
    assert tokens.image_index.tolist() == [0] * 2 * K + [2] * 3 * K


def test_without_tie_breakers_a_prompt_has_one_query(batch):
    assert adapter(num_tie_breakers=0)(*batch, POSITIONS).queries.shape == (5, C)


def reference_transformer(module, queries, memory, interaction):
    """Straightforward version for one image, with the same weights: queries [P, K, C], memory [S*S, C]."""
    x = queries
    for layer in module.soft_prompt.layers:
        groups = [x.reshape(1, -1, C)] if interaction == "image" else list(x[:, None].unbind(0))
        attended = []
        for group in groups:
            y = layer.self_attn_norm(group)
            attended.append(group + layer.self_attn(y, y, y)[0])
        x = torch.cat(attended).reshape(1, -1, C)
        x = x + layer.cross_attn(layer.cross_attn_norm(x), memory[None], memory[None])[0]
        x = x + layer.mlp(layer.mlp_norm(x))
        x = x.reshape(queries.shape)
    return x


@pytest.mark.parametrize("interaction", ["prompt", "image"])
def test_batched_transformer_equals_a_loop_over_images(batch, interaction):
    embeddings, embed, index = batch
    module = adapter(interaction=interaction, fusion="replace")
    tokens = module(embeddings, embed, index, POSITIONS).queries.view(5, K, C)
    queries = module.projector(embeddings)[:, None] + module.tie_breakers
    for image in (0, 2):
        expected = reference_transformer(module, queries[index == image], embed[image].flatten(1).T, interaction)
        torch.testing.assert_close(tokens[index == image], expected, rtol=1e-4, atol=1e-5)


def test_fusions(batch):
    tokens = {f: adapter(fusion=f, interaction="image")(*batch, POSITIONS) for f in ("replace", "add", "broadcast")}
    queries, refined = tokens["broadcast"].queries, tokens["replace"].queries
    torch.testing.assert_close(tokens["add"].queries, queries + refined)
    torch.testing.assert_close(tokens["broadcast"].shared, refined)
    chunk = torch.tensor([8, 9])  # image 2 has queries 8 to 19
    gathered = tokens["broadcast"].gather(chunk)
    assert gathered.shape == (2, 12, C)
    torch.testing.assert_close(gathered, queries[chunk][:, None] + refined[8:])


def test_broadcast_with_interaction_prompt_stays_within_the_prompt(batch):
    tokens = adapter(fusion="broadcast", interaction="prompt")(*batch, POSITIONS)
    gathered = tokens.gather(torch.tensor([5]))  # query 1 of prompt 1
    torch.testing.assert_close(gathered[0], tokens.queries[5] + tokens.shared[4:8])


def test_without_transformer_the_token_is_the_query(batch):
    results = [adapter(fusion=f, num_layers=0)(*batch, POSITIONS) for f in ("replace", "add", "broadcast")]
    assert all(r.shared is None and torch.equal(r.queries, results[0].queries) for r in results)


def test_chunks_cover_every_query_once_and_separate_groups():
    group = torch.tensor([0] * 5 + [1] * 2 + [3] * 4)
    queries = torch.zeros(11, C)
    selected = torch.tensor([0, 1, 2, 3, 4, 6, 7, 10])
    for shared in (None, queries):
        chunks = DecoderTokens(queries, queries, group, group, shared=shared).chunks(selected, 3)
        assert [c.tolist() for c in chunks] == [[0, 1, 2], [3, 4], [6], [7, 10]]
    assert DecoderTokens(queries, queries, group, group).chunks(selected[:0], 3) == []


def test_chunks_of_many_tokens_are_smaller():
    group = torch.zeros(4000, dtype=torch.long)
    queries = torch.zeros(4000, 1)
    tokens = DecoderTokens(queries, queries, group, group, shared=queries)
    sizes = {len(chunk) for chunk in tokens.chunks(torch.arange(4000), 32)}
    assert sizes == {32 * 512 // 4000}


def test_key_positions_change_only_the_keys(batch):
    positions = torch.randn(1, C, S, S)
    plain = adapter(key_positions=False)(*batch, positions).queries
    with_positions = adapter(key_positions=True)(*batch, positions).queries
    assert not torch.allclose(plain, with_positions)
    torch.testing.assert_close(adapter(key_positions=True)(*batch, POSITIONS).queries, plain)


def test_tie_breaker_std():
    assert 0.8 < adapter(num_tie_breakers=200).tie_breakers.std() < 1.2
    assert 0.08 < adapter(num_tie_breakers=200, tie_breaker_std=0.1).tie_breakers.std() < 0.12


@pytest.mark.parametrize(
    ("learned", "mean", "deviation"),
    [
        ([[0.0, 10.0], [2.0, 14.0]], [1.0, 12.0], 5**0.5),  # squares 1, 1, 4 and 4; one degree of freedom a channel
        ([[1.0, 3.0]], [1.0, 3.0], 2**0.5),
        ([[1.0, 3.0]] * 3, [1.0, 3.0], 0.0),
    ],
)
def test_the_distribution_of_drawn_tie_breakers(learned, mean, deviation):
    learned = torch.tensor(learned)
    drawn = grow_tie_breakers(learned, 40_000)[len(learned) :]
    torch.testing.assert_close(drawn.mean(dim=0), torch.tensor(mean), rtol=0, atol=0.04)
    torch.testing.assert_close(drawn.std(dim=0), torch.full((2,), deviation), rtol=0.02, atol=1e-6)
    assert abs(torch.corrcoef(drawn.T)[0, 1]) < 0.02 or not deviation


def test_grown_tie_breakers_begin_with_the_learned_ones():
    learned = adapter().tie_breakers
    many, few = grow_tie_breakers(learned, 20), grow_tie_breakers(learned, 7)
    assert torch.equal(many[:K], learned) and torch.equal(many[:7], few)
    assert torch.equal(grow_tie_breakers(learned, K), learned)


def test_the_first_queries_of_a_grown_adapter_are_those_of_the_learned(batch):
    few, many = adapter(num_layers=0), adapter(num_layers=0, num_tie_breakers=9)
    grown = grow_tie_breakers(few.tie_breakers, 9)
    many.load_state_dict({**few.state_dict(), "tie_breakers": grown})
    assert torch.equal(
        many(*batch, POSITIONS).queries.view(5, 9, C)[:, :K], few(*batch, POSITIONS).queries.view(5, K, C)
    )


def injecting(**options):
    """An adapter with two image layers that no longer begin as the identity."""
    module = adapter(image_layers=2, **options)
    torch.nn.init.normal_(module.image_injection.up.weight)
    return module


def test_image_layers_begin_as_the_identity(batch):
    plain, module = adapter(), adapter(image_layers=2)
    left = module.load_state_dict(plain.state_dict(), strict=False)
    assert left.missing_keys and not left.unexpected_keys
    torch.testing.assert_close(module(*batch, POSITIONS).queries, plain(*batch, POSITIONS).queries, rtol=0, atol=0)


@pytest.mark.parametrize("key_positions", [False, True])
def test_image_layers_let_each_embedding_attend_to_its_image(batch, key_positions):
    embeddings, embed, index = batch
    module = injecting(key_positions=key_positions)
    injection, positions = module.image_injection, torch.randn(1, C, S, S)
    prompts = module(embeddings, embed, index, positions).prompts
    for p, image in enumerate(index.tolist()):
        values = embed[image].flatten(1).T[None]
        keys = values + positions.flatten(2).transpose(1, 2) if key_positions else values
        x = injection.down(embeddings[p])[None, None]
        for norm, attention in zip(injection.norms, injection.layers, strict=True):
            x = x + attention(norm(x), keys, values)[0]
        expected = module.projector(embeddings[p] + injection.up(x[0, 0]))
        torch.testing.assert_close(prompts[p], expected, rtol=1e-4, atol=1e-5)
    other = module(embeddings[:1], embed[1:2], index[:1], positions).prompts
    assert (other[0] - prompts[0]).abs().max() > 1e-3


def test_every_tensor_of_the_image_layers_is_trained(batch):
    module = injecting().train()
    module(*batch, POSITIONS).queries.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    # a key's bias adds the same to every score, which softmax removes
    assert all(p.grad.any() for p in module.image_injection.parameters())


@pytest.mark.parametrize(
    ("width", "size"),
    [
        (768, "4,876,032 parameters; 923,136 of them re-inject the image"),
        (
            1024,
            "5,532,416 parameters; 1,054,976 of them re-inject the image; 532,416 above the 5,000,000 of the paper's",
        ),
    ],
)
def test_the_size_with_two_image_layers(width, size):
    with torch.device("meta"):
        assert Adapter(embed_dim=width, image_layers=2).size().removesuffix(" Table 10") == size
    assert Adapter(embed_dim=1024).size() == "4,477,440 parameters"


def test_image_layers_are_counted_from_0():
    with pytest.raises(ValueError, match=r"MODEL\.ADAPTER\.IMAGE_LAYERS must be at least 0, got -1"):
        adapter(image_layers=-1)
    with pytest.raises(ValueError, match="NUM_HEADS must divide the width 32, got 5"):
        adapter(image_layers=1, num_layers=0, num_heads=5)
