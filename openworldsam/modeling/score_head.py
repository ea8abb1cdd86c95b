"""Score head: how well a query's mask fits what its prompt names (not in the paper; docs/score.md).

SAM2's predicted IoU rates a mask as a mask of something. This head compares the look of the masked region with the
prompt. It reads what is computed anyway, so all K queries of every prompt train it at no extra decoding, and no
gradient passes the frozen decoder.

Shapes: P prompts, K queries per prompt, R = P x K queries, C width of the queries, D width of a prompt embedding,
B images, S side of the image features.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F

from openworldsam.modeling.adapter import DecoderTokens
from openworldsam.modeling.image_encoder import ImageFeatures

CHUNK = 64
"""Masks of an image whose probabilities exist at a time."""
WORDS = 64
"""Width to which the word embeddings are reduced."""


class ScoreHead(nn.Module):
    """MLP over prompt and mask of a query.

    Its inputs are the projected prompt, which has seen the image; the mean word embedding of the text, which says what
    was asked for; the mean of SAM2's features over the mask; the mask's area; and the predicted IoU.

    Args:
        embed_dim: D, width of a prompt's word embedding.
        width: C, width of SAM2's features.
        hidden: width of the two hidden layers; the head has 0.3 M parameters where it and C are 256.
        dropout: after each hidden layer.

    Raises:
        ValueError: a number is out of range.
    """

    @configurable
    def __init__(self, *, embed_dim: int = 1024, width: int = 256, hidden: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        if hidden < 1 or not 0 <= dropout <= 1:
            raise ValueError(
                f"MODEL.SCORE_HEAD.HIDDEN is 0 (no head) or more, DROPOUT from 0 to 1, got {hidden} and {dropout}"
            )
        appearance = appearance_width(width)
        self.words = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, WORDS))
        self.prompt_norm, self.appearance_norm = nn.LayerNorm(width), nn.LayerNorm(appearance)
        self.mlp = nn.Sequential(
            nn.Linear(WORDS + width + appearance + 2, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, 1),
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        head = cfg.MODEL.SCORE_HEAD
        widths = {"embed_dim": cfg.MODEL.PROMPT_ENCODER.EMBED_DIM, "width": cfg.MODEL.SAM2.WIDTH}
        return {**widths, "hidden": head.HIDDEN, "dropout": head.DROPOUT}

    def forward(
        self, features: ImageFeatures, words: Tensor, tokens: DecoderTokens, logits: Tensor, predicted_iou: Tensor
    ) -> Tensor:
        """Return the logit [R] of each query's match score; its sigmoid estimates the IoU with an instance.

        Args:
            features: of B images.
            words: [P, D], from `PromptEncoder.word_embeddings`.
            tokens: of R queries.
            logits, predicted_iou: the decoder's output for them, [R, 4S, 4S] and [R].
        """
        with torch.autocast(words.device.type, enabled=False):
            prompts = torch.cat([self.words(words.float()), self.prompt_norm(tokens.prompts.float())], dim=1)
            prompts = prompts.repeat_interleave(len(logits) // max(1, len(prompts)), dim=0)
            appearance, area = masked_means(features, tokens.image_index, logits)
            numbers = torch.stack([area, predicted_iou.float()], dim=1)
            return self.mlp(torch.cat([prompts, self.appearance_norm(appearance), numbers], dim=1))[:, 0]


@torch.no_grad()
def masked_means(features: ImageFeatures, image_index: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of SAM2's features over each mask, weighted by its probabilities, and the mask's area.

    Args:
        features: of B images.
        image_index: [R] on the CPU, ascending, the image of each mask.
        logits: [R, 4S, 4S].

    Returns:
        [R, C + C/8 + C/4], of the three levels of features; [R], the share of the image in 0..1.
    """
    means, areas = [logits.new_zeros(0, appearance_width(features.embed.shape[1]))], [logits.new_zeros(0)]
    images, counts = torch.unique_consecutive(image_index, return_counts=True)
    for image, of_image in zip(images.tolist(), logits.split(counts.tolist()), strict=True):
        levels = [level[image].float() for level in (features.embed, *features.high_res)]
        for part in of_image.split(CHUNK):
            probability = part.sigmoid()
            columns = []
            for level in levels:
                size = (level.shape[1], level.shape[2])
                same = size == part.shape[1:]  # pooling to the same size would take longer than all the rest
                weights = (probability if same else F.adaptive_avg_pool2d(probability, size)).flatten(1)
                total = weights.sum(dim=1, keepdim=True).clamp(min=1e-4)
                columns.append(weights @ level.flatten(1).T / total)
            means.append(torch.cat(columns, dim=1))
            areas.append(probability.mean(dim=(1, 2)))
    return torch.cat(means), torch.cat(areas)


def appearance_width(width: int) -> int:
    """Width of `masked_means` for features of width C."""
    return width + width // 8 + width // 4
