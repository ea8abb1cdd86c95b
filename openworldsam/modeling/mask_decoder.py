"""SAM2's mask decoder, with token embeddings in place of points and boxes (paper Sec. 3 "Mask decoding").

Shapes: B images, R queries, n of them to decode, r queries of a chunk, T tokens of a query, C width, S feature side;
mask logits have the size 4S x 4S.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.prompt_encoder import PromptEncoder
from sam2.modeling.sam.transformer import TwoWayTransformer
from torch import Tensor, nn

from openworldsam.config import arguments
from openworldsam.modeling.adapter import DecoderTokens
from openworldsam.modeling.image_encoder import STRIDE, ImageFeatures
from openworldsam.modeling.two_way import SharedImage, decode_masks, shared_image
from openworldsam.utils.progress import chunks

STABILITY_DELTA = 0.05
STABILITY_THRESHOLD = 0.98


def select_mask(logits: Tensor, iou: Tensor, dynamic_multimask: bool) -> tuple[Tensor, Tensor]:
    """Select one of SAM2's four masks per query: the single mask, or a fallback where it is unstable.

    A mask is stable if its area hardly depends on the threshold: area(logit > 0.05) / area(logit > -0.05) >= 0.98.
    An unstable single mask is replaced by the one of the three multimask outputs with the highest predicted IoU.

    Args:
        logits: [r, m, 4S, 4S]; output 0 is the single mask.
        iou: predicted IoU [r, 4].
        dynamic_multimask: False to always select the single mask; otherwise m = 4.

    Returns:
        mask logits [r, 4S, 4S] and predicted IoU [r].
    """
    choice = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    if dynamic_multimask:
        inner = (logits[:, 0] > STABILITY_DELTA).sum(dim=(1, 2))
        outer = (logits[:, 0] > -STABILITY_DELTA).sum(dim=(1, 2))
        unstable = (outer > 0) & (inner.float() / outer.clamp(min=1) < STABILITY_THRESHOLD)
        choice = torch.where(unstable, iou[:, 1:].argmax(dim=1) + 1, choice)
    query = torch.arange(len(logits), device=logits.device)
    return logits[query, choice], iou[query, choice]


class SAM2MaskDecoder(nn.Module):
    """Decodes queries to mask logits and predicted IoU, in chunks that bound memory.

    The arguments are the keys of MODEL.MASK_DECODER and two of MODEL.SAM2, which `config.py` explains, and whether to
    use torch.compile for the decoding of a chunk.

    Raises:
        ValueError: chunk is less than 1.
    """

    @configurable
    def __init__(
        self,
        *,
        image_size: int = 1024,
        width: int = 256,
        dynamic_multimask: bool = True,
        chunk: int = 16,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if chunk < 1:
            raise ValueError(f"MODEL.MASK_DECODER.CHUNK must be at least 1, got {chunk}")
        self.dynamic_multimask = dynamic_multimask
        self.chunk = chunk
        # the numbers of queries and tokens vary between calls: compile one dynamic graph rather than one per shape
        self._decode_masks = torch.compile(decode_masks, dynamic=True) if compiled else decode_masks
        side = image_size // STRIDE
        self.prompt_encoder = PromptEncoder(
            embed_dim=width,
            image_embedding_size=(side, side),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        )
        # depth, heads and hidden width are the same in every SAM2 model
        self.decoder = MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=2048, num_heads=8),
            use_high_res_features=True,
            iou_prediction_use_sigmoid=True,
            pred_obj_scores=True,
            pred_obj_scores_mlp=True,
        )
        # these act on the image, not on queries; the image encoder has them
        del self.decoder.conv_s0, self.decoder.conv_s1

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        sizes = {"image_size": cfg.MODEL.SAM2.IMAGE_SIZE, "width": cfg.MODEL.SAM2.WIDTH}
        return {**sizes, **arguments(cfg.MODEL.MASK_DECODER), "compiled": cfg.MODEL.COMPILE}

    def positions(self) -> Tensor:
        """Return SAM2's positional encoding [1, C, S, S], in fp32: in half precision it would be off by 0.1."""
        with torch.autocast(self.prompt_encoder.no_mask_embed.weight.device.type, enabled=False):
            return self.prompt_encoder.get_dense_pe()

    def forward(
        self,
        features: ImageFeatures,
        tokens: DecoderTokens,
        selected: Tensor | None = None,
        *,
        single_mask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Decode queries.

        Args:
            features: features of B images.
            tokens: tokens of R queries.
            selected: [n] on the CPU, indices of the queries to decode, ascending; None for all R.
            single_mask: keep unstable single masks, as in training.

        Returns:
            mask logits [n, 4S, 4S] and predicted IoU [n] in 0..1.
        """
        if selected is None:
            selected = torch.arange(len(tokens.queries))
        no_mask = self.prompt_encoder.no_mask_embed.weight[:, :, None, None]
        dynamic = self.dynamic_multimask and not single_mask

        def decoded() -> Iterator[tuple[Tensor, Tensor]]:
            image, shared = -1, None
            for chunk in tokens.chunks(selected, self.chunk):
                if shared is None or tokens.image_index[chunk[0]] != image:
                    image = int(tokens.image_index[chunk[0]])
                    shared = self._shared(features, image, no_mask)
                yield self._decode(shared, tokens.gather(chunk), None, dynamic)

        return self._join(len(selected), decoded())

    def refine(self, features: ImageFeatures, mask_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Decode again with masks as the only prompt (paper Sec. 3, two-stage inference).

        Args:
            features: features of one image.
            mask_logits: [n, 4S, 4S], as returned by `forward`.

        Returns:
            mask logits [n, 4S, 4S] and predicted IoU [n].
        """
        shared = self._shared(features, 0, None)

        def decoded() -> Iterator[tuple[Tensor, Tensor]]:
            for logits in mask_logits.split(self.chunk) if len(mask_logits) else ():
                dense = self.prompt_encoder.mask_downscaling(logits[:, None])
                no_tokens = logits.new_zeros(len(logits), 0, features.embed.shape[1])
                yield self._decode(shared, no_tokens, dense, self.dynamic_multimask)

        return self._join(len(mask_logits), decoded())

    def decode_clicks(
        self, features: ImageFeatures, points: Tensor, labels: Tensor, mask_logits: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Decode clicks, a box or a mask to one mask, as SAM2's image predictor does.

        Args:
            features: features of one image.
            points: [t, 2], (x, y) in pixels of SAM2's input; t may be 0.
            labels: [t], 1 for a positive click, 0 for a negative one, 2 and 3 for the corners of a box.
            mask_logits: mask prompt [4S, 4S] or None.

        Returns:
            mask logits [1, 4S, 4S] and predicted IoU [1]: for a single click, which may mean a thing or a part of it,
            the best of the three multimask outputs, otherwise the choice of `select_mask`.
        """
        clicks = (points[None], labels[None]) if len(points) else None
        with torch.autocast(points.device.type, enabled=False):  # as in `positions`
            tokens, dense = self.prompt_encoder(points=clicks, boxes=None, masks=None)
        if mask_logits is not None:
            dense = self.prompt_encoder.mask_downscaling(mask_logits[None, None])
        logits, iou = self._decode_masks(self.decoder, self._shared(features, 0, dense), tokens, 4)
        if len(points) == 1 and mask_logits is None:
            best = iou[0, 1:].argmax() + 1
            return logits[:, best].float(), iou[:, best].float()
        chosen, score = select_mask(logits, iou, self.dynamic_multimask)
        return chosen.float(), score.float()

    def _shared(self, features: ImageFeatures, image: int, dense: Tensor | None) -> SharedImage:
        """Prepare one image for its queries; see `shared_image`."""
        return shared_image(self.decoder, features.of_image(image), self.positions(), dense)

    def _decode(
        self, image: SharedImage, tokens: Tensor, dense: Tensor | None, dynamic_multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Decode tokens [r, T, C] and dense prompts [r, C, S, S] of one image to logits [r, 4S, 4S] and IoU [r]."""
        logits, iou = self._decode_masks(self.decoder, image, tokens, 4 if dynamic_multimask else 1, dense)
        return select_mask(logits, iou, dynamic_multimask)

    def _join(self, num_queries: int, decoded: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Copy chunks into one fp32 result as they are decoded, so that memory holds no mask twice."""
        side = 4 * self.prompt_encoder.image_embedding_size[0]
        device = self.prompt_encoder.no_mask_embed.weight.device
        logits, iou = torch.empty(num_queries, side, side, device=device), torch.empty(num_queries, device=device)
        start = 0
        for chunk_logits, chunk_iou in chunks(decoded, num_queries, "mask", self.chunk):
            stop = start + len(chunk_iou)
            logits[start:stop], iou[start:stop] = chunk_logits, chunk_iou
            start = stop
        return logits, iou
