"""The forward pass as the released code does it, on the same weights: what our own is held against.

It computes what preset `released` computes and saves nothing: every prompt and every query at once, in fp32, by
torchscale's `BEiT3.forward` and SAM2's `MaskDecoder.forward`, with the image's tokens repeated for each query and the
image encoded again for each call. Post-processing is ours under the released rules.

Shapes: P prompts, K queries per prompt, R = P * K queries, C width, S side of the image features.
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
from openworldsam.modeling.prompt_encoders.beit3_tokenizer import PAD_ID
from openworldsam.speed.machine import available_memory
from openworldsam.speed.pipeline import Pipeline, State

MAPS, TRAINING_MAPS = 8, 24
"""Memory of a query in maps [C, S, S], as measured at full size: 7.6 while it is upscaled, 21.5 with its graph; and a
little more, as a process that the system ends for its memory reports nothing."""


class PlainPipeline(Pipeline):
    """The released forward pass, in fp32; arguments as for `Pipeline`.

    What configs/presets/released.yaml says of the model overrides `cfg`; the adapter is copied, other modules shared.

    Raises:
        ValueError: the prompt encoder is not BEiT-3.
    """

    def __init__(self, cfg: CfgNode, model: OpenWorldSAM, image: bytes, *, random: bool) -> None:
        if not isinstance(model.prompt_encoder, BEiT3PromptEncoder):
            raise ValueError(f"--against plain needs BEiT-3, not {cfg.MODEL.PROMPT_ENCODER.NAME}")
        cfg = cfg.clone()
        cfg.MODEL.ADAPTER.FUSION, cfg.MODEL.ADAPTER.INTERACTION = "broadcast", "image"
        cfg.MODEL.INFERENCE.INSTANCE_NMS, cfg.MODEL.INFERENCE.SEMANTIC_WEIGHT = "box", "softmax"
        cfg.MODEL.INFERENCE.SCORE = "iou"
        cfg.MODEL.CRITERION.DIVISOR = "targets"
        adapter = Adapter(cfg, embed_dim=model.prompt_encoder.embed_dim)
        adapter.load_state_dict(model.adapter.state_dict())
        shared = ("image_encoder", "prompt_encoder", "mask_decoder", "antialias", "tasks")
        released = OpenWorldSAM(
            **{name: getattr(model, name) for name in shared},
            adapter=adapter,
            criterion=Criterion(cfg),
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
            inference=InferenceOptions.from_config(cfg),
        )
        super().__init__("plain", cfg, released.to(model.device).eval(), image, random=random)

    def use(self, precision: str, compiled: bool) -> None:
        """Nothing: the released code runs in fp32, not compiled."""

    def ask(self, count: int) -> None:
        super().ask(count)
        self._check_memory(1, MAPS)

    def _check_memory(self, images: int, maps: int) -> None:
        """Raise MemoryError if the queries of some images, with their tokens, alone and joined, do not fit."""
        count = len(self.prompts) * self.model.adapter.num_queries
        width, side = self.model.image_encoder.width, self.model.image_encoder.feature_side
        needed, free = 4 * images * count * width * (2 * count + maps * side**2), available_memory(self.model.device)
        if needed > free:
            raise MemoryError(f"needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free")

    @torch.no_grad()
    def encode_prompts(self, s: State) -> None:
        s.embeddings = self._embed(s.prompt_input, self.prompts)

    @torch.no_grad()
    def decode(self, s: State) -> None:
        s.logits, s.predicted_iou = self._decode(s.features, s.tokens, dynamic_multimask=True)
        self.set_queries(s)

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
        """Decode one image's R queries at once: logits [R, 4S, 4S] and predicted IoU [R]."""
        decoder, prompts = self.model.mask_decoder.decoder, self.model.mask_decoder.prompt_encoder
        sparse, side = tokens.queries[:, None], features.embed.shape[-1]
        decoder.dynamic_multimask_via_stability = dynamic_multimask
        logits, iou, _, _ = decoder(
            image_embeddings=features.embed,
            image_pe=prompts.get_dense_pe(),
            sparse_prompt_embeddings=sparse if tokens.shared is None else sparse + tokens.shared,
            dense_prompt_embeddings=prompts.no_mask_embed.weight[:, :, None, None].expand(len(sparse), -1, side, side),
            multimask_output=False,
            repeat_image=True,
            high_res_features=list(features.high_res),
        )
        return logits[:, 0], iou[:, 0]

    def loss(self, batch: Sequence[dict[str, Any]]) -> Tensor:
        """Image by image, every query decoded with gradient, each prompt matched and scored by itself.

        In fp32, where the released training has fp16; its losses of weight 0 are left out.
        """
        self._check_memory(len(batch), TRAINING_MAPS)
        losses = []
        for x in batch:
            image, prompts = [x["image"].to(self.model.device)], x["prompts"]
            index = torch.zeros(len(prompts), dtype=torch.long)
            features = self.model.encode_images(image)
            with torch.no_grad():
                embeddings = self._embed(self.model.prompt_inputs(image), prompts)
            tokens = self.model.adapter(embeddings, features.embed, index, self.model.mask_decoder.positions())
            logits, _ = self._decode(features, tokens, dynamic_multimask=False)
            for queries, target in zip(logits.unflatten(0, (len(prompts), -1)), x["targets"], strict=True):
                one = [target.to(self.model.device)]
                matches = self.model.criterion.match(queries[None].detach(), one)
                matched = queries[matches.query.to(queries.device)]
                losses.append(sum(self.model.criterion(matched, one, matches).values()))
        return torch.stack(losses).mean()
