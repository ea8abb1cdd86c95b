"""The trained part: projector, tie-breakers and soft-prompt transformer (paper Sec. 3, Fig. 4b and 4c, Eq. 1).

Shapes: B images, P prompts of the whole batch (sorted by image), K tie-breakers, R = P * K query rows
(row = prompt * K + tie-breaker), D width of the prompt embedding, C width of the queries, S feature side,
M most prompts of any image, T decoder tokens of a row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

FUSIONS = ("replace", "add", "broadcast")
INTERACTIONS = ("prompt", "image")


class DecoderTokens(NamedTuple):
    """The mask decoder's tokens of R query rows.

    Row i has the one token own[i], or, when `shared` is given, the T tokens own[i] + shared[j] of all rows j of its
    group. The latter are made chunk by chunk (`gather`): all at once they take T times the memory.

    own: [R, C].
    image_index: [R] on the CPU, whose image each row looks at.
    shared: [R, C] or None.
    group: [R] on the CPU, ascending; rows of one group are of one image, and interact if there is `shared`.
    """

    own: Tensor
    image_index: Tensor
    group: Tensor
    shared: Tensor | None = None

    def chunks(self, rows: Tensor, size: int) -> list[Tensor]:
        """Split row numbers [r] into runs of at most `size` of one image whose rows have the same number of tokens.

        Beyond 512 tokens the runs get shorter, so that memory stays bounded.
        """
        groups, counts = torch.unique_consecutive(self.group[rows], return_counts=True)
        tokens = (
            torch.ones_like(groups).tolist() if self.shared is None else torch.bincount(self.group)[groups].tolist()
        )
        runs = zip(rows.split(counts.tolist()), tokens, strict=True)
        return [part for run, t in runs for part in run.split(max(1, size * 512 // max(512, t)))]

    def gather(self, rows: Tensor) -> Tensor:
        """The tokens [r, T, C] of the rows of one chunk."""
        own = self.own[rows.to(self.own.device, non_blocking=True), None]
        if self.shared is None:
            return own
        members = torch.nonzero(self.group == self.group[rows[0]])[:, 0]
        return own + self.shared[members.to(self.own.device, non_blocking=True)]


class SoftPromptLayer(nn.Module):
    """Pre-norm layer: queries attend to each other, then to the image, then an MLP (Fig. 4c)."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn_norm = nn.LayerNorm(width)
        self.self_attn = nn.MultiheadAttention(width, num_heads, dropout=dropout, batch_first=True)
        self.cross_attn_norm = nn.LayerNorm(width)
        self.cross_attn = nn.MultiheadAttention(width, num_heads, dropout=dropout, batch_first=True)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )
        self.dropout = nn.Dropout(dropout)

    def self_attention(self, queries: Tensor, padding: Tensor | None) -> Tensor:
        """Queries [N, Q, C] attend within each of N sequences; padding [N, Q] is True where there is no query."""
        x = self.self_attn_norm(queries)
        attended, _ = self.self_attn(x, x, x, key_padding_mask=padding, need_weights=False)
        return queries + self.dropout(attended)

    def cross_attention(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Queries [B, Q, C] attend to their image, keys and values [B, S*S, C]; then the MLP."""
        x = self.cross_attn_norm(queries)
        attended, _ = self.cross_attn(x, keys, values, need_weights=False)
        queries = queries + self.dropout(attended)
        return queries + self.mlp(self.mlp_norm(queries))


class SoftPromptTransformer(nn.Module):
    """Grounds the queries in SAM2's image features (paper Sec. 3 "Soft-prompting via cross-attention").

    Args:
        width: C.
        num_layers, num_heads, dropout: of the transformer.
        interaction: which queries attend to each other: those of one "prompt" or of all prompts of an "image".
    """

    def __init__(self, width: int, num_layers: int, num_heads: int, dropout: float, interaction: str) -> None:
        super().__init__()
        self.interaction = interaction
        self.layers = nn.ModuleList(SoftPromptLayer(width, num_heads, dropout) for _ in range(num_layers))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, image_index: Tensor) -> Tensor:
        """Refine queries.

        Args:
            queries: [P, K, C].
            keys, values: [B, S*S, C].
            image_index: [P] on the CPU, ascending.

        Returns:
            [P, K, C].
        """
        # Cross-attention treats every query alone, so all queries of an image share its projected keys and values:
        # the prompts lie in a padded table [B * M], each at its `place`.
        counts = torch.bincount(image_index, minlength=len(keys))
        most = int(counts.max())
        nth = torch.arange(len(image_index)) - (counts.cumsum(0) - counts)[image_index]
        place = (image_index * most + nth).to(queries.device, non_blocking=True)
        empty = torch.arange(most) >= counts[:, None]
        empty[:, 0] = False  # an image without prompts attends to zeros, which nobody reads, rather than to nothing
        padding = None
        if empty.any():
            padding = empty.to(queries.device, non_blocking=True).repeat_interleave(queries.shape[1], dim=1)

        def to_table(flat: Tensor) -> Tensor:
            table = flat.new_zeros(len(keys) * most, *flat.shape[1:]).index_copy(0, place, flat)
            return table.view(len(keys), -1, flat.shape[-1])

        def to_flat(table: Tensor) -> Tensor:
            return table.reshape(len(keys) * most, *queries.shape[1:])[place]

        for layer in self.layers:
            assert isinstance(layer, SoftPromptLayer)
            if self.interaction == "image":
                table = layer.self_attention(to_table(queries), padding)
            else:
                table = to_table(layer.self_attention(queries, None))
            queries = to_flat(layer.cross_attention(table, keys, values))
        return queries


class Adapter(nn.Module):
    """Prompt embeddings to decoder tokens: K queries per prompt, each meant for another instance.

    Args:
        embed_dim: D, width of the prompt embedding.
        width: C, width of SAM2's features.
        num_tie_breakers: K of Eq. 1; 0 gives one query a prompt and no tie-breaker (Table 5, E1).
        tie_breaker_std: of their normal initialisation.
        num_layers: of the soft-prompt transformer; 0 leaves it out (Table 5, E1 to E4).
        num_heads, dropout: of the soft-prompt transformer.
        fusion: "replace" (token q'_i, the paper), "add" (q_i + q'_i) or "broadcast" (every q_i + q'_j, the
            released code); without the transformer the token is q_i.
        interaction: "prompt" or "image", which queries attend to each other.
        key_positions: add the image positions to the keys of the cross-attention.

    Raises:
        ValueError: an unknown fusion or interaction, or a number that cannot be.
    """

    @configurable
    def __init__(
        self,
        *,
        embed_dim: int = 1024,
        width: int = 256,
        num_tie_breakers: int = 20,
        tie_breaker_std: float = 1.0,
        num_layers: int = 3,
        num_heads: int = 8,
        dropout: float = 0.1,
        fusion: str = "replace",
        interaction: str = "prompt",
        key_positions: bool = False,
    ) -> None:
        super().__init__()
        if fusion not in FUSIONS:
            raise ValueError(f"MODEL.ADAPTER.FUSION is one of {FUSIONS}, got {fusion!r}")
        if interaction not in INTERACTIONS:
            raise ValueError(f"MODEL.ADAPTER.INTERACTION is one of {INTERACTIONS}, got {interaction!r}")
        if num_tie_breakers < 0 or num_layers < 0:
            raise ValueError(
                f"MODEL.ADAPTER.NUM_TIE_BREAKERS and NUM_LAYERS are 0 or more, got {num_tie_breakers} and {num_layers}"
            )
        if num_layers and width % num_heads:
            raise ValueError(f"MODEL.ADAPTER.NUM_HEADS must divide the width {width}, got {num_heads}")
        self.fusion = fusion
        self.key_positions = key_positions
        self.projector = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, width))
        self.tie_breakers = (
            nn.Parameter(tie_breaker_std * torch.randn(num_tie_breakers, width)) if num_tie_breakers else None
        )
        self.soft_prompt = (
            SoftPromptTransformer(width, num_layers, num_heads, dropout, interaction) if num_layers else None
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, embed_dim: int) -> dict[str, Any]:
        adapter = cfg.MODEL.ADAPTER
        return {
            "embed_dim": embed_dim,
            "width": cfg.MODEL.SAM2.WIDTH,
            "num_tie_breakers": adapter.NUM_TIE_BREAKERS,
            "tie_breaker_std": adapter.TIE_BREAKER_STD,
            "num_layers": adapter.NUM_LAYERS,
            "num_heads": adapter.NUM_HEADS,
            "dropout": adapter.DROPOUT,
            "fusion": adapter.FUSION,
            "interaction": adapter.INTERACTION,
            "key_positions": adapter.KEY_POSITIONS,
        }

    @property
    def num_queries(self) -> int:
        """K, queries of a prompt."""
        return 1 if self.tie_breakers is None else len(self.tie_breakers)

    @property
    def prompts_interact(self) -> bool:
        """Whether a prompt's tokens depend on the other prompts of its image."""
        return self.soft_prompt is not None and self.soft_prompt.interaction == "image"

    def forward(
        self, prompt_embeddings: Tensor, embed: Tensor, image_index: Tensor, positions: Tensor
    ) -> DecoderTokens:
        """Make the decoder tokens of all prompts.

        Args:
            prompt_embeddings: [P, D].
            embed: [B, C, S, S], SAM2's features.
            image_index: [P] on the CPU, ascending.
            positions: [1, C, S, S], SAM2's positional encoding.

        Returns:
            the tokens of R = P * K rows.
        """
        queries = self.projector(prompt_embeddings)[:, None]
        if self.tie_breakers is not None:
            queries = queries + self.tie_breakers  # Eq. 1
        row_image = image_index.repeat_interleave(self.num_queries)
        if self.soft_prompt is None:
            return DecoderTokens(queries.flatten(0, 1), row_image, row_image)
        values = embed.flatten(2).transpose(1, 2)
        keys = values + positions.flatten(2).transpose(1, 2) if self.key_positions else values
        refined = self.soft_prompt(queries, keys, values, image_index).flatten(0, 1)
        queries = queries.flatten(0, 1)
        if self.fusion == "replace":
            return DecoderTokens(refined, row_image, row_image)
        if self.fusion == "add":
            return DecoderTokens(queries + refined, row_image, row_image)
        prompt_of_row = torch.arange(len(image_index)).repeat_interleave(self.num_queries)
        group = row_image if self.soft_prompt.interaction == "image" else prompt_of_row
        return DecoderTokens(queries, row_image, group, shared=refined)
