"""SAM2's mask decoder, fed with token embeddings instead of points and boxes (paper Sec. 3 "Mask decoding").

Shapes: B images, R query rows, r rows of a chunk, T tokens of a row, C width, S feature side; masks are
[4S, 4S] logits.
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

from openworldsam.modeling.adapter import DecoderTokens
from openworldsam.modeling.image_encoder import STRIDE, ImageFeatures
from openworldsam.modeling.two_way import SharedImage, decode_masks, shared_image

STABILITY_DELTA = 0.05
STABILITY_THRESHOLD = 0.98


def select_mask(logits: Tensor, iou: Tensor, dynamic_multimask: bool) -> tuple[Tensor, Tensor]:
    """One mask a row out of SAM2's four: the single-mask output, or a fallback where it is unstable.

    A mask is stable when its area hardly changes with the threshold: area(logit > 0.05) / area(logit > -0.05)
    >= 0.98. An unstable one gives way to the best of the three multimask outputs, by predicted IoU.

    Args:
        logits: [r, 4, 4S, 4S]; output 0 is the single mask.
        iou: [r, 4].
        dynamic_multimask: False always takes output 0.

    Returns:
        logits [r, 4S, 4S] and predicted IoU [r].
    """
    choice = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    if dynamic_multimask:
        inner = (logits[:, 0] > STABILITY_DELTA).sum(dim=(1, 2))
        outer = (logits[:, 0] > -STABILITY_DELTA).sum(dim=(1, 2))
        unstable = (outer > 0) & (inner.float() / outer.clamp(min=1) < STABILITY_THRESHOLD)
        choice = torch.where(unstable, iou[:, 1:].argmax(dim=1) + 1, choice)
    row = torch.arange(len(logits), device=logits.device)
    return logits[row, choice], iou[row, choice]


class SAM2MaskDecoder(nn.Module):
    """Decodes query rows to mask logits and predicted IoU, in chunks that bound memory.

    Args:
        image_size: side of SAM2's square input in pixels.
        width: C.
        dynamic_multimask: fall back from unstable masks (`select_mask`).
        chunk: rows decoded at a time.
        compiled: run the decoding of a chunk through torch.compile.
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
        # numbers of rows and tokens differ from call to call: one dynamic graph, rather than one for each
        self._decode_masks = torch.compile(decode_masks, dynamic=True) if compiled else decode_masks
        side = image_size // STRIDE
        self.prompt_encoder = PromptEncoder(
            embed_dim=width,
            image_embedding_size=(side, side),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        )
        # Depths, heads and hidden widths are those of every SAM2 model.
        self.decoder = MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=2048, num_heads=8),
            use_high_res_features=True,
            iou_prediction_use_sigmoid=True,
            pred_obj_scores=True,
            pred_obj_scores_mlp=True,
        )
        # they belong to the image, not to the rows, and live in the image encoder
        del self.decoder.conv_s0, self.decoder.conv_s1

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            "image_size": cfg.MODEL.SAM2.IMAGE_SIZE,
            "width": cfg.MODEL.SAM2.WIDTH,
            "dynamic_multimask": cfg.MODEL.MASK_DECODER.DYNAMIC_MULTIMASK,
            "chunk": cfg.MODEL.MASK_DECODER.CHUNK,
            "compiled": cfg.MODEL.COMPILE,
        }

    def positions(self) -> Tensor:
        """SAM2's positional encoding of the feature map, [1, C, S, S]; in half precision it would be off by 0.1."""
        with torch.autocast(self.prompt_encoder.no_mask_embed.weight.device.type, enabled=False):
            return self.prompt_encoder.get_dense_pe()

    def forward(
        self,
        features: ImageFeatures,
        tokens: DecoderTokens,
        rows: Tensor | None = None,
        *,
        single_mask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Decode query rows.

        Args:
            features: of B images.
            tokens: of R rows.
            rows: [n] on the CPU, the rows to decode, ascending; None for all R.
            single_mask: never fall back from an unstable mask; training does not.

        Returns:
            mask logits [n, 4S, 4S] and predicted IoU [n] in 0..1.
        """
        if rows is None:
            rows = torch.arange(len(tokens.own))
        no_mask = self.prompt_encoder.no_mask_embed.weight[:, :, None, None]
        dynamic = self.dynamic_multimask and not single_mask

        def chunks() -> Iterator[tuple[Tensor, Tensor]]:
            image, shared = -1, None
            for part in tokens.chunks(rows, self.chunk):
                own = int(tokens.image_index[part[0]])
                if own != image or shared is None:
                    image, shared = own, self._shared(features, own, no_mask)
                yield self._decode(shared, tokens.gather(part), None, dynamic)

        return self._join(len(rows), chunks())

    def refine(self, features: ImageFeatures, image_index: Tensor, mask_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Decode once more with masks as the only prompt (paper Sec. 3, two-stage inference).

        Args:
            features: of B images.
            image_index: [n] on the CPU, whose image each mask belongs to.
            mask_logits: [n, 4S, 4S] from `forward`, as they are.

        Returns:
            mask logits [n, 4S, 4S] and predicted IoU [n].
        """
        no_tokens = mask_logits.new_zeros(1, 0, features.embed.shape[1])

        def chunks() -> Iterator[tuple[Tensor, Tensor]]:
            images, counts = torch.unique_consecutive(image_index, return_counts=True)
            for image, own in zip(images.tolist(), mask_logits.split(counts.tolist()), strict=True):
                shared = self._shared(features, image, None)
                for logits in own.split(self.chunk):
                    dense = self.prompt_encoder.mask_downscaling(logits[:, None])
                    yield self._decode(shared, no_tokens.expand(len(logits), -1, -1), dense, self.dynamic_multimask)

        return self._join(len(mask_logits), chunks())

    def decode_clicks(
        self, features: ImageFeatures, points: Tensor, labels: Tensor, mask_logits: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Decode SAM2's own prompts to one mask, as its image predictor does.

        Args:
            features: of one image.
            points: [t, 2], x y in pixels of SAM2's input; t may be 0.
            labels: [t], 1 for a positive click, 0 for a negative one, 2 and 3 for the corners of a box.
            mask_logits: [4S, 4S], a mask as prompt.

        Returns:
            mask logits [1, 4S, 4S] and predicted IoU [1]. A single click alone may mean a thing or a part of it: it
            gets the best of the three multimask outputs, anything else what `select_mask` chooses.
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
        """What the rows of one image share; see `shared_image`."""
        return shared_image(self.decoder, features.of_image(image), self.positions(), dense)

    def _decode(
        self, image: SharedImage, tokens: Tensor, dense: Tensor | None, dynamic_multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """r rows of one image, tokens [r, T, C], dense prompt [r, C, S, S] -> logits [r, 4S, 4S], IoU [r]."""
        logits, iou = self._decode_masks(self.decoder, image, tokens, 4 if dynamic_multimask else 1, dense)
        return select_mask(logits, iou, dynamic_multimask)

    def _join(self, num_rows: int, chunks: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Write the chunks into one fp32 result, so that no row exists twice."""
        side = 4 * self.prompt_encoder.image_embedding_size[0]
        device = self.prompt_encoder.no_mask_embed.weight.device
        logits, iou = torch.empty(num_rows, side, side, device=device), torch.empty(num_rows, device=device)
        start = 0
        for chunk_logits, chunk_iou in chunks:
            stop = start + len(chunk_iou)
            logits[start:stop], iou[start:stop] = chunk_logits, chunk_iou
            start = stop
        return logits, iou
