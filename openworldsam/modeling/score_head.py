"""Score head: how well a query's mask fits what its prompt names (not in the paper; docs/score.md).

SAM2's predicted IoU rates a mask as a mask of something. This head compares look and form of the masked region with the
prompt. It reads what is computed anyway, so all K queries of every prompt train it at no extra decoding, and no
gradient passes the frozen decoder.

Shapes: P prompts, K queries per prompt, R = P x K queries, C width of the queries, D width of a prompt embedding,
B images, S side of the image features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from openworldsam.inference.nms import mask_boxes
from openworldsam.modeling.adapter import DecoderTokens
from openworldsam.modeling.image_encoder import ImageFeatures

CHUNK = 64
"""Masks of an image whose probabilities exist at a time."""
WORDS = FORM = 64
"""Widths to which the word embeddings and the form are reduced."""
CROP = 16
"""Side of the picture of a mask's form."""


class MaskedRegion(NamedTuple):
    """Description of R masks.

    appearance: [R, C + C/8 + C/4], mean of SAM2's features, of three levels, over the mask.
    form: [R, 1, CROP, CROP], the mask's probabilities in the square around it.
    size: [R, 2], area of the mask and side of that square, as shares of the image's.
    """

    appearance: Tensor
    form: Tensor
    size: Tensor


class ScoreHead(nn.Module):
    """MLP over prompt and mask of a query.

    Its inputs are the projected prompt, which has seen the image; the mean word embedding of the text, which says what
    was asked for; appearance, form and size of the masked region (`MaskedRegion`); and the predicted IoU.

    Args:
        embed_dim: D, width of a prompt's word embedding.
        width: C, width of SAM2's features.
        hidden: width of the two hidden layers; the head has 0.36 M parameters where it and C are 256.
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
        self.form = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(32 * (CROP // 4) ** 2, FORM),
        )
        self.mlp = nn.Sequential(
            nn.Linear(WORDS + width + appearance + FORM + 3, hidden),
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
            region = masked_region(features, tokens.image_index, logits)
            shown = [self.appearance_norm(region.appearance), self.form(region.form), region.size]
            return self.mlp(torch.cat([prompts, *shown, predicted_iou.float()[:, None]], dim=1))[:, 0]


@torch.no_grad()
def masked_region(features: ImageFeatures, image_index: Tensor, logits: Tensor) -> MaskedRegion:
    """Describe R masks by the features and pixels that they cover.

    Args:
        features: of B images.
        image_index: [R] on the CPU, ascending, the image of each mask.
        logits: [R, 4S, 4S].
    """
    width = appearance_width(features.embed.shape[1])
    parts = [MaskedRegion(logits.new_zeros(0, width), logits.new_zeros(0, 1, CROP, CROP), logits.new_zeros(0, 2))]
    images, counts = torch.unique_consecutive(image_index, return_counts=True)
    for image, of_image in zip(images.tolist(), logits.split(counts.tolist()), strict=True):
        levels = [level[image].float() for level in (features.embed, *features.high_res)]
        for part in of_image.split(CHUNK):
            probability = part.float().sigmoid()
            means = torch.cat([_masked_mean(probability, level) for level in levels], dim=1)
            boxes = mask_boxes(part > 0)
            centre, side = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True)
            index = torch.arange(len(part), device=part.device, dtype=boxes.dtype)[:, None]
            squares = torch.cat([index, centre - side / 2, centre + side / 2], dim=1)
            form = roi_align(probability[:, None], squares, CROP, aligned=True)
            size = torch.cat([probability.mean(dim=(1, 2))[:, None], side / part.shape[-1]], dim=1)
            parts.append(MaskedRegion(means, form, size))
    return MaskedRegion(*map(torch.cat, zip(*parts, strict=True)))


def _masked_mean(probability: Tensor, level: Tensor) -> Tensor:
    """Mean of features [c, s, s] weighted by each of the probabilities [r, h, w], of a size that s divides: [r, c]."""
    size = (level.shape[1], level.shape[2])
    # pooling to the same size would take longer than all the rest
    pooled = probability if size == probability.shape[1:] else F.adaptive_avg_pool2d(probability, size)
    weights = pooled.flatten(1)
    return weights @ level.flatten(1).T / weights.sum(dim=1, keepdim=True).clamp(min=1e-4)


def appearance_width(width: int) -> int:
    """Width of `MaskedRegion.appearance` for features of width C."""
    return width + width // 8 + width // 4
