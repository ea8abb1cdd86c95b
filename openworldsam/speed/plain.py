"""The forward pass as the released code does it, on the same weights: what our own is held against.

It computes what preset `released` computes and saves nothing: every prompt and every row at once, in fp32, by
torchscale's `BEiT3.forward` and SAM2's `MaskDecoder.forward`, with the image's tokens repeated for each row and the
image encoded again for each call. Post-processing is ours under the released rules.

Shapes: P prompts, K queries per prompt, R = P * K rows, C width, S side of the image features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor

from openworldsam.inference import InferenceOptions
from openworldsam.modeling import ImageFeatures, OpenWorldSAM
from openworldsam.modeling.adapter import Adapter, DecoderTokens
from openworldsam.modeling.criterion import Criterion
from openworldsam.modeling.prompt_encoders import BEiT3PromptEncoder
from openworldsam.modeling.prompt_encoders.tokenizer import PAD_ID
from openworldsam.speed.machine import available_memory
from openworldsam.speed.pipeline import Pipeline, State

MAPS = 6
"""Maps [R, C, S, S] that live at once while masks are upscaled: the image's tokens and positions, the first upscaling
(1), the second before and after its activation (2 + 2)."""


RELEASED = [
    "MODEL.ADAPTER.FUSION",
    "broadcast",
    "MODEL.ADAPTER.INTERACTION",
    "image",
    "MODEL.CRITERION.DIVISOR",
    "targets",
]
RELEASED += ["MODEL.INFERENCE.INSTANCE_NMS", "box", "MODEL.INFERENCE.SEMANTIC_WEIGHT", "softmax"]
"""What configs/presets/released.yaml says of the model."""


class PlainPipeline(Pipeline):
    """The released forward pass, in fp32.

    Args:
        cfg: of the model; `RELEASED` overrides it.
        model: whose other modules are shared and whose adapter is copied.
        image, random: as for `Pipeline`.

    Raises:
        ValueError: the prompt encoder is not BEiT-3.
    """

    def __init__(self, cfg: CfgNode, model: OpenWorldSAM, image: bytes, *, random: bool) -> None:
        if not isinstance(model.prompt_encoder, BEiT3PromptEncoder):
            raise ValueError(f"--against plain needs BEiT-3, not {cfg.MODEL.PROMPT_ENCODER.NAME}")
        cfg = cfg.clone()
        cfg.merge_from_list(RELEASED)
        adapter = Adapter(cfg, embed_dim=model.prompt_encoder.embed_dim)
        adapter.load_state_dict(model.adapter.state_dict())
        released = OpenWorldSAM(
            image_encoder=model.image_encoder,
            prompt_encoder=model.prompt_encoder,
            adapter=adapter,
            mask_decoder=model.mask_decoder,
            criterion=Criterion(cfg),
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
            antialias=cfg.INPUT.ANTIALIAS,
            tasks=cfg.MODEL.INFERENCE.TASKS,
            inference=InferenceOptions.from_config(cfg),
        )
        super().__init__("plain", released.to(model.device).eval(), image, random=random)

    def use(self, precision: str, compiled: bool) -> None:
        """Nothing: the released code runs in fp32, not compiled."""

    def ask(self, count: int) -> None:
        super().ask(count)
        rows = count * self.model.adapter.num_queries
        width, side = self.model.image_encoder.width, self.model.image_encoder.feature_side
        # the tokens [R, R, C], and again joined to the decoder's own; and MAPS
        needed = 4 * rows * width * (2 * rows + MAPS * side**2)
        if needed > available_memory(self.model.device):
            raise MemoryError(f"needs more than {needed / 2**30:.1f} GiB")

    def encode_prompts(self, s: State) -> None:
        with self.arithmetic():
            s.embeddings = self._embed(s.prompt_input, self.prompts)

    def decode(self, s: State) -> None:
        with self.arithmetic():
            self.set_rows(s, *self._decode(s.features, s.tokens, dynamic_multimask=True))

    def _embed(self, image: Tensor, prompts: Sequence[str]) -> Tensor:
        """[1, 3, s, s] and P texts -> [P, D]: the image once for each text, all padded to the longest."""
        encoder = self.model.prompt_encoder
        assert isinstance(encoder, BEiT3PromptEncoder)
        ids = encoder.tokenizer(prompts).to(image.device)
        output = encoder.beit3(
            textual_tokens=ids,
            visual_tokens=image.repeat(len(ids), 1, 1, 1),
            text_padding_position=ids == PAD_ID,
        )
        return output["encoder_out"][:, 0]

    def _decode(
        self, features: ImageFeatures, tokens: DecoderTokens, *, dynamic_multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """One image's R rows at once -> logits [R, 4S, 4S] and predicted IoU [R]."""
        decoder, prompts = self.model.mask_decoder.decoder, self.model.mask_decoder.prompt_encoder
        own, side = tokens.own[:, None], features.embed.shape[-1]
        decoder.dynamic_multimask_via_stability = dynamic_multimask
        logits, iou, _, _ = decoder(
            image_embeddings=features.embed,
            image_pe=prompts.get_dense_pe(),
            sparse_prompt_embeddings=own if tokens.shared is None else own + tokens.shared,
            dense_prompt_embeddings=prompts.no_mask_embed.weight[:, :, None, None].expand(len(own), -1, side, side),
            multimask_output=False,
            repeat_image=True,
            high_res_features=list(features.high_res),
        )
        return logits[:, 0], iou[:, 0]

    def loss(self, batch: Sequence[dict[str, Any]]) -> Tensor:
        """Image by image, every row decoded with gradient, each prompt matched and scored by itself.

        In fp32, where the released training has fp16; its losses of weight 0 are left out.
        """
        losses = []
        for x in batch:
            image, prompts = [x["image"].to(self.model.device)], x["prompts"]
            index = torch.zeros(len(prompts), dtype=torch.long)
            features = self.model.encode_images(image)
            with torch.no_grad():
                embeddings = self._embed(self.model.prompt_inputs(image), prompts)
            tokens = self.model.adapter(embeddings, features.embed, index, self.model.mask_decoder.positions())
            logits, _ = self._decode(features, tokens, dynamic_multimask=False)
            for rows, target in zip(logits.unflatten(0, (len(prompts), -1)), x["targets"], strict=True):
                one = [target.to(self.model.device)]
                matches = self.model.criterion.match(rows[None].detach(), one)
                losses.append(sum(self.model.criterion(rows[matches.query], one, matches).values()))
        return torch.stack(losses).mean()
