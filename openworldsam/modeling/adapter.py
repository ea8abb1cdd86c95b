"""Adapter, the trained part: projector, tie-breakers and soft-prompt transformer (paper Sec. 3, Fig. 4b and c, Eq. 1).

Shapes: B images, P prompts of the whole batch (sorted by image), K tie-breakers, R = P x K queries
(query = prompt * K + tie-breaker), r queries of a chunk, T decoder tokens of a query, D width of the prompt embedding,
C width of the queries, S feature side, M most prompts of an image.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from openworldsam.config import arguments
from openworldsam.utils.device import upload

FUSIONS = ("replace", "add", "broadcast")
INTERACTIONS = ("prompt", "image")
BUDGET = 5_000_000
"""Most parameters of an adapter for another encoder (paper E.1)."""


class DecoderTokens(NamedTuple):
    """Mask-decoder tokens of R queries.

    Query i has one token, queries[i]. With `shared` it has T tokens, queries[i] + shared[j] for all queries j of its
    group; `gather` makes these chunk by chunk, because all at once they would take T times the memory.

    prompts: [P, C], projected prompts.
    queries: [R, C].
    image_index: [R] on the CPU, image of each query.
    group: [R] on the CPU, ascending; the queries of a group belong to one image, and interact if `shared` is given.
    shared: [R, C] or None.
    """

    prompts: Tensor
    queries: Tensor
    image_index: Tensor
    group: Tensor
    shared: Tensor | None = None

    def chunks(self, selected: Tensor, size: int) -> list[Tensor]:
        """Split query indices [n] into chunks of at most `size` from one group; smaller ones beyond 512 tokens."""
        groups, counts = torch.unique_consecutive(self.group[selected], return_counts=True)
        tokens = torch.ones_like(groups) if self.shared is None else torch.bincount(self.group)[groups]
        by_group = zip(selected.split(counts.tolist()), tokens.tolist(), strict=True)
        return [chunk for part, t in by_group for chunk in part.split(max(1, size * 512 // max(512, t)))]

    def gather(self, chunk: Tensor) -> Tensor:
        """Return the tokens [r, T, C] of a chunk of query indices [r]."""
        queries = self.queries[upload(chunk, self.queries.device), None]
        if self.shared is None:
            return queries
        members = torch.nonzero(self.group == self.group[chunk[0]])[:, 0]
        return queries + self.shared[upload(members, self.queries.device)]


class PromptTable:
    """Prompts laid out by image, in a padded table, so that all of an image share what is computed of its keys.

    Args:
        image_index: [P] on the CPU, ascending.
        images: B.
        device: of the tensors that are laid out.

    Attributes:
        empty: bool [B, M] on the CPU, True for a place without a prompt; every image has at least one that is not, as
            attending to nothing would give NaN.
    """

    def __init__(self, image_index: Tensor, images: int, device: torch.device) -> None:
        counts = torch.bincount(image_index, minlength=images)
        self.images, self.most = images, int(counts.max())
        nth = torch.arange(len(image_index)) - (counts.cumsum(0) - counts)[image_index]
        self.place = upload(image_index * self.most + nth, device)
        self.empty = torch.arange(self.most) >= counts[:, None]
        self.empty[:, 0] = False

    def lay_out(self, flat: Tensor) -> Tensor:
        """[P, K, C] -> [B, M * K, C]."""
        table = flat.new_zeros(self.images * self.most, *flat.shape[1:]).index_copy(0, self.place, flat)
        return table.view(self.images, -1, flat.shape[-1])

    def collect(self, table: Tensor) -> Tensor:
        """[B, M * K, C] -> [P, K, C]."""
        return table.reshape(self.images * self.most, -1, table.shape[-1])[self.place]


class ImageInjection(nn.Module):
    """Cross-attention from prompt embeddings to SAM2's image tokens, for encoders that do not see the image (E.1).

    It attends in C channels, which keeps the adapter of an encoder of width 768 below 5 M parameters, and begins as the
    identity.
    """

    def __init__(self, embed_dim: int, width: int, num_layers: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(num_layers))
        self.layers = nn.ModuleList(
            nn.MultiheadAttention(width, num_heads, dropout=dropout, batch_first=True) for _ in range(num_layers)
        )
        self.up = nn.Linear(width, embed_dim)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, embeddings: Tensor, keys: Tensor, values: Tensor, image_index: Tensor) -> Tensor:
        """Add to each embedding [P, D] what it finds in its image; keys and values [B, S*S, C]."""
        table = PromptTable(image_index, len(keys), embeddings.device)
        x = table.lay_out(self.down(embeddings)[:, None])
        for norm, attention in zip(self.norms, self.layers, strict=True):
            attended, _ = attention(norm(x), keys, values, need_weights=False)
            x = x + self.dropout(attended)
        return embeddings + self.up(table.collect(x)[:, 0])


class SoftPromptLayer(nn.Module):
    """Pre-norm layer: self-attention among queries, cross-attention to the image, MLP (Fig. 4c)."""

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
        """Let queries attend within N sequences of Q queries [N, Q, C]; padding [N, Q] is True without a query."""
        x = self.self_attn_norm(queries)
        attended, _ = self.self_attn(x, x, x, key_padding_mask=padding, need_weights=False)
        return queries + self.dropout(attended)

    def cross_attention(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Let the Q queries of each image [B, Q, C] attend to keys and values [B, S*S, C], and apply the MLP."""
        x = self.cross_attn_norm(queries)
        attended, _ = self.cross_attn(x, keys, values, need_weights=False)
        queries = queries + self.dropout(attended)
        return queries + self.mlp(self.mlp_norm(queries))


class SoftPromptTransformer(nn.Module):
    """Grounds the queries in SAM2's image features (paper Sec. 3 "Soft-prompting via cross-attention")."""

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
        # cross-attention treats every query alone, so all queries of an image share its projected keys and values
        table = PromptTable(image_index, len(keys), queries.device)
        padding = None
        if table.empty.any():
            padding = upload(table.empty, queries.device).repeat_interleave(queries.shape[1], dim=1)
        for layer in self.layers:
            assert isinstance(layer, SoftPromptLayer)
            if self.interaction == "image":
                laid_out = layer.self_attention(table.lay_out(queries), padding)
            else:
                laid_out = table.lay_out(layer.self_attention(queries, None))
            queries = table.collect(layer.cross_attention(laid_out, keys, values))
        return queries


class Adapter(nn.Module):
    """Turns each prompt embedding into the decoder tokens of K queries, one per potential instance.

    Args:
        embed_dim: D, width of the prompt embedding.
        width: C, width of SAM2's features.
        others: the keys of MODEL.ADAPTER, which `config.py` explains.

    Raises:
        ValueError: unknown fusion or interaction, or a number out of range.
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
        image_layers: int = 0,
    ) -> None:
        super().__init__()
        if fusion not in FUSIONS:
            raise ValueError(f"MODEL.ADAPTER.FUSION must be one of {FUSIONS}, got {fusion!r}")
        if interaction not in INTERACTIONS:
            raise ValueError(f"MODEL.ADAPTER.INTERACTION must be one of {INTERACTIONS}, got {interaction!r}")
        counts = {"NUM_TIE_BREAKERS": num_tie_breakers, "NUM_LAYERS": num_layers, "IMAGE_LAYERS": image_layers}
        for key, count in counts.items():
            if count < 0:
                raise ValueError(f"MODEL.ADAPTER.{key} must be at least 0, got {count}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"MODEL.ADAPTER.DROPOUT must be from 0 to 1, got {dropout}")
        if (num_layers or image_layers) and (num_heads < 1 or width % num_heads):
            raise ValueError(f"MODEL.ADAPTER.NUM_HEADS must divide the width {width}, got {num_heads}")
        self.fusion = fusion
        self.key_positions = key_positions
        self.image_injection = (
            ImageInjection(embed_dim, width, image_layers, num_heads, dropout) if image_layers else None
        )
        self.projector = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, width))
        self.tie_breakers = (
            nn.Parameter(tie_breaker_std * torch.randn(num_tie_breakers, width)) if num_tie_breakers else None
        )
        self.soft_prompt = (
            SoftPromptTransformer(width, num_layers, num_heads, dropout, interaction) if num_layers else None
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, embed_dim: int) -> dict[str, Any]:
        return {"embed_dim": embed_dim, "width": cfg.MODEL.SAM2.WIDTH, **arguments(cfg.MODEL.ADAPTER, "TRAINABLE")}

    @property
    def num_queries(self) -> int:
        """K, queries per prompt."""
        return 1 if self.tie_breakers is None else len(self.tie_breakers)

    def size(self) -> str:
        """Number of parameters, and by how much it exceeds the 5 M that the paper allows for other encoders."""
        total = sum(p.numel() for p in self.parameters())
        parts = []
        if self.image_injection is not None:
            parts.append(f"{sum(p.numel() for p in self.image_injection.parameters()):,} of them re-inject the image")
        if total > BUDGET:
            parts.append(f"{total - BUDGET:,} above the {BUDGET:,} of the paper's Table 10")
        return "; ".join([f"{total:,} parameters", *parts])

    @property
    def prompts_interact(self) -> bool:
        """True if the tokens of a prompt depend on the other prompts of its image."""
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
            the tokens of R queries.
        """
        values = embed.flatten(2).transpose(1, 2)
        keys = values + positions.flatten(2).transpose(1, 2) if self.key_positions else values
        if self.image_injection is not None:
            prompt_embeddings = self.image_injection(prompt_embeddings, keys, values, image_index)
        prompts = self.projector(prompt_embeddings)
        queries = prompts[:, None]
        if self.tie_breakers is not None:
            queries = queries + self.tie_breakers  # Eq. 1
        query_image = image_index.repeat_interleave(self.num_queries)
        if self.soft_prompt is None:
            return DecoderTokens(prompts, queries.flatten(0, 1), query_image, query_image)
        refined = self.soft_prompt(queries, keys, values, image_index).flatten(0, 1)
        queries = queries.flatten(0, 1)
        if self.fusion != "broadcast":
            tokens = refined if self.fusion == "replace" else queries + refined
            return DecoderTokens(prompts, tokens, query_image, query_image)
        query_prompt = torch.arange(len(image_index)).repeat_interleave(self.num_queries)
        group = query_image if self.soft_prompt.interaction == "image" else query_prompt
        return DecoderTokens(prompts, queries, query_image, group, shared=refined)


def grow_tie_breakers(learned: Tensor, number: int) -> Tensor:
    """Draw further tie-breakers from the distribution of the learned ones, which come first (paper Sec. 3).

    The distribution is normal, with the learned ones' mean per channel and one standard deviation for all channels, as
    at their initialisation: a channel has too few values to estimate its own. Of a single tie-breaker it is the
    deviation over its channels. The draws are the same in every process, and a larger number only appends to them.

    Args:
        learned: [k, C], k from 1.
        number: K, at least k.

    Returns:
        [K, C].
    """
    k, width = learned.shape
    mean = learned.mean(dim=0)
    deviation = ((learned - mean).square().sum() / ((k - 1) * width)).sqrt() if k > 1 else learned.std()
    noise = np.random.default_rng(0).standard_normal((number - k, width), dtype=np.float32)
    return torch.cat([learned, mean + deviation * torch.from_numpy(noise)])
