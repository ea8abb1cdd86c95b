"""Score head: how well a query's mask fits what its prompt names (not in the paper; docs/score.md).

SAM2's predicted IoU rates a mask as a mask of something. This head reads the prompt too. Its inputs are computed
anyway, so all K queries of every prompt train it at no extra decoding, and no gradient passes the frozen decoder.

Shapes: P prompts, K queries per prompt, R = P x K queries, C width of the queries.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from openworldsam.modeling.adapter import DecoderTokens
from openworldsam.modeling.mask_decoder import NUM_TOKENS, Decoded


class ScoreHead(nn.Module):
    """MLP over the projected prompt, the decoder token, and the decoder's output tokens of a query.

    Args:
        width: C, width of SAM2's features.
        hidden: width of the two hidden layers; at most 0.5 M parameters where both widths are 256.
        dropout: after each hidden layer.

    Raises:
        ValueError: a number is out of range.
    """

    @configurable
    def __init__(self, *, width: int = 256, hidden: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        if hidden < 1 or not 0 <= dropout <= 1:
            raise ValueError(
                f"MODEL.SCORE_HEAD.HIDDEN is 0 (no head) or more, DROPOUT from 0 to 1, got {hidden} and {dropout}"
            )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 + NUM_TOKENS))
        self.mlp = nn.Sequential(
            nn.Linear((2 + NUM_TOKENS) * width + 1, hidden),
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
        return {"width": cfg.MODEL.SAM2.WIDTH, "hidden": head.HIDDEN, "dropout": head.DROPOUT}

    def forward(self, tokens: DecoderTokens, decoded: Decoded) -> Tensor:
        """Return the logit [R] of each query's match score; its sigmoid estimates the IoU with an instance.

        Args:
            tokens: of R queries.
            decoded: the decoder's output for them.
        """
        per_prompt = len(tokens.queries) // max(1, len(tokens.prompts))
        prompts = tokens.prompts.repeat_interleave(per_prompt, dim=0)
        inputs = [prompts, tokens.queries, *decoded.tokens.unbind(1)]
        with torch.autocast(prompts.device.type, enabled=False):
            normed = [norm(x.float()) for norm, x in zip(self.norms, inputs, strict=True)]
            return self.mlp(torch.cat([*normed, decoded.predicted_iou.float()[:, None]], dim=1))[:, 0]
