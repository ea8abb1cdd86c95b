import pytest
import torch

from openworldsam.modeling.adapter import Adapter, DecoderTokens

B, C, D, K, S = 3, 32, 24, 4, 5
POSITIONS = torch.zeros(1, C, S, S)


def adapter(**options):
    torch.manual_seed(0)
    return Adapter(embed_dim=D, width=C, num_tie_breakers=options.pop("num_tie_breakers", K), **options).eval()


@pytest.fixture
def batch():
    """Embeddings of five prompts about three images, the middle one without any."""
    torch.manual_seed(1)
    return torch.randn(5, D), torch.randn(B, C, S, S), torch.tensor([0, 0, 2, 2, 2])


def test_equation_1(batch):
    embeddings, embed, index = batch
    module = adapter(num_layers=0)
    tokens = module(embeddings, embed, index, POSITIONS)
    for p in range(5):
        for k in range(K):
            expected = module.projector(embeddings[p]) + module.tie_breakers[k]
            torch.testing.assert_close(tokens.own[p * K + k], expected)
    assert tokens.shared is None
    assert tokens.image_index.tolist() == [0] * 2 * K + [2] * 3 * K


def test_without_tie_breakers_a_prompt_has_one_query(batch):
    embeddings, embed, index = batch
    tokens = adapter(num_tie_breakers=0)(embeddings, embed, index, POSITIONS)
    assert tokens.own.shape == (5, C)


def reference_transformer(module, queries, memory, interaction):
    """One image at a time, written out with the layers' own weights: queries [P, K, C], memory [S*S, C]."""
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
def test_the_padded_table_equals_a_loop_over_images(batch, interaction):
    embeddings, embed, index = batch
    module = adapter(interaction=interaction, fusion="replace")
    tokens = module(embeddings, embed, index, POSITIONS).own.view(5, K, C)
    queries = module.projector(embeddings)[:, None] + module.tie_breakers
    for image in (0, 2):
        expected = reference_transformer(module, queries[index == image], embed[image].flatten(1).T, interaction)
        torch.testing.assert_close(tokens[index == image], expected, rtol=1e-4, atol=1e-5)


def test_fusions_are_what_they_say(batch):
    tokens = {f: adapter(fusion=f, interaction="image")(*batch, POSITIONS) for f in ("replace", "add", "broadcast")}
    queries, refined = tokens["broadcast"].own, tokens["replace"].own
    torch.testing.assert_close(tokens["add"].own, queries + refined)
    torch.testing.assert_close(tokens["broadcast"].shared, refined)
    rows = torch.tensor([8, 9])  # of image 2, whose rows are 8 to 19
    gathered = tokens["broadcast"].gather(rows)
    assert gathered.shape == (2, 12, C)
    for i, row in enumerate(rows):
        for j in range(12):
            torch.testing.assert_close(gathered[i, j], queries[row] + refined[8 + j])


def test_broadcast_under_interaction_prompt_stays_within_the_prompt(batch):
    tokens = adapter(fusion="broadcast", interaction="prompt")(*batch, POSITIONS)
    gathered = tokens.gather(torch.tensor([5]))  # row 1 of prompt 1
    torch.testing.assert_close(gathered[0], tokens.own[5] + tokens.shared[4:8])


def test_without_the_transformer_every_fusion_gives_the_query(batch):
    results = [adapter(fusion=f, num_layers=0)(*batch, POSITIONS) for f in ("replace", "add", "broadcast")]
    assert all(r.shared is None and torch.equal(r.own, results[0].own) for r in results)


def test_chunks_cover_every_row_once_and_keep_groups_apart():
    group = torch.tensor([0] * 5 + [1] * 2 + [3] * 4)
    own = torch.zeros(11, C)
    rows = torch.tensor([0, 1, 2, 3, 4, 6, 7, 10])
    for shared in (None, own):
        chunks = DecoderTokens(own, group, group, shared=shared).chunks(rows, 3)
        assert [c.tolist() for c in chunks] == [[0, 1, 2], [3, 4], [6], [7, 10]]
    assert DecoderTokens(own, group, group).chunks(rows[:0], 3) == []


def test_many_tokens_make_shorter_chunks():
    group = torch.zeros(4000, dtype=torch.long)
    own = torch.zeros(4000, 1)
    sizes = {len(c) for c in DecoderTokens(own, group, group, shared=own).chunks(torch.arange(4000), 32)}
    assert sizes == {32 * 512 // 4000}


def test_key_positions_reach_the_keys_alone(batch):
    positions = torch.randn(1, C, S, S)
    plain = adapter(key_positions=False)(*batch, positions).own
    with_positions = adapter(key_positions=True)(*batch, positions).own
    assert not torch.allclose(plain, with_positions)
    torch.testing.assert_close(adapter(key_positions=True)(*batch, POSITIONS).own, plain)


def test_tie_breaker_std():
    assert 0.8 < adapter(num_tie_breakers=200).tie_breakers.std() < 1.2
    assert 0.08 < adapter(num_tie_breakers=200, tie_breaker_std=0.1).tie_breakers.std() < 0.12
