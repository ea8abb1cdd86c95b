"""ViLT as prompt encoder: text and image patches in one transformer from its first layer (Table 10, in place of VLMo).

Images keep their aspect ratio, so each fills a part of its canvas: pixels and tokens without image are NaN.

Shapes: B images, S side of the canvas, N prompts of a chunk, L text tokens, V most tokens of an image, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openworldsam.modeling.components import Component
from openworldsam.modeling.prompt_encoders.base import PROMPT_ENCODER_REGISTRY
from openworldsam.modeling.prompt_encoders.library import LibraryEncoder


@PROMPT_ENCODER_REGISTRY.register()
class ViltEncoder(LibraryEncoder):
    """The text's [CLS] token after the last layer, pooled: `ViltModel`'s pooler_output."""

    component = Component(
        name="vilt",
        prefixes=(("vilt.", "prompt_encoder."),),
        recognised_by="vilt.",
        layout="ViLT",
        not_read=r"mlm_score\.|rank_output\.|itm_score\.|classifier\.|.*\.position_ids",
        hint="(openworldsam download vilt)",
    )
    config_class = "ViltConfig"
    tokenizer_class = "BertTokenizer"
    image_processor = "ViltImageProcessor"

    def build(self, library: Any, config: Any) -> None:
        model = library.ViltModel(config)
        self.embeddings, self.encoder = model.embeddings, model.encoder
        self.layernorm, self.pooler = model.layernorm, model.pooler
        self.embed_dim, self.max_tokens = config.hidden_size, config.max_position_embeddings
        self.patch_size, self.position_side = config.patch_size, config.image_size // config.patch_size

    @property
    def table(self) -> nn.Embedding:
        table: nn.Embedding = self.embeddings.text_embeddings.word_embeddings
        return table

    @property
    def longest(self) -> int:
        """Longest side that an image is resized to, in pixels."""
        return int(1333 / 800 * self.image_size[0])

    def resized_size(self, height: int, width: int) -> list[int]:
        """The shorter side of `image_size`, a longer one up to `longest`, both multiples of the patch size."""
        scale, step = min(self.image_size[0] / min(height, width), self.longest / max(height, width)), self.patch_size
        return [max(step, int(side * scale + 0.5) // step * step) for side in (height, width)]

    def preprocess(self, image: Tensor) -> Tensor:
        pixels, side = super().preprocess(image), self.longest // self.patch_size * self.patch_size
        height, width = pixels.shape[1:]
        return F.pad(pixels, (0, side - width, 0, side - height), value=torch.nan)

    def encode_images(self, images: Tensor) -> Tensor:
        """Embed images [B, 3, S, S] as the [CLS] token and patches with their positions, [B, V, D]."""
        valid = ~images[:, 0, :: self.patch_size, :: self.patch_size].isnan()
        patches = self.embeddings.patch_embeddings(images.nan_to_num()) + self._positions(valid)
        patches = patches.masked_fill(~valid[:, None], torch.nan).flatten(2).transpose(1, 2)
        # the shorter side of an image is at most that of a square one
        most = min(valid[0].numel(), valid.shape[2] * (self.image_size[0] // self.patch_size))
        first = (~valid).flatten(1).byte().argsort(dim=1, stable=True)[:, :most, None]
        patches = patches.gather(1, first.expand(-1, -1, self.embed_dim))
        start = self.embeddings.cls_token + self.embeddings.position_embeddings[:, :1]
        kinds = self.embeddings.token_type_embeddings.weight
        return torch.cat([start.expand(len(images), -1, -1), patches], dim=1) + kinds[1]

    def _positions(self, valid: Tensor) -> Tensor:
        """Stretch the position table over the valid patches of each image, bool [B, S/p, S/p]; [B, D, S/p, S/p].

        This is `F.interpolate` with aligned corners, to sizes that the host need not know.
        """
        axes = []
        for axis in (1, 2):
            number = valid.any(dim=3 - axis).sum(dim=1, keepdim=True)
            axes.append(2 * torch.arange(valid.shape[axis], device=valid.device) / (number - 1).clamp(min=1) - 1)
        y, x = axes[0][:, :, None].expand(valid.shape), axes[1][:, None].expand(valid.shape)
        side, table = self.position_side, self.embeddings.position_embeddings[:, 1:]
        grid = table.transpose(1, 2).unflatten(2, (side, side)).expand(len(valid), -1, -1, -1)
        return F.grid_sample(grid, torch.stack([x, y], dim=3).to(grid.dtype), align_corners=True)

    def encode_texts(self, images: Tensor | None, ids: Tensor, padding: Tensor | None) -> Tensor:
        assert images is not None
        text = self.embeddings.text_embeddings(input_ids=ids) + self.embeddings.token_type_embeddings.weight[0]
        nothing = torch.zeros_like(ids, dtype=torch.bool) if padding is None else padding
        empty = torch.cat([nothing, images[..., 0].isnan()], dim=1)
        tokens = torch.cat([text, images.nan_to_num()], dim=1)
        mask = torch.zeros_like(empty, dtype=tokens.dtype).masked_fill(empty, -torch.inf)[:, None, None]
        last = self.encoder(tokens, mask).last_hidden_state
        vector: Tensor = self.pooler(self.layernorm(last[:, :1]))
        return vector
