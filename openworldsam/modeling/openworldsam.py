"""The meta-architecture: from images and texts to masks (paper Fig. 4b).

Shapes: B images, P prompts of the whole batch (sorted by image), K queries per prompt, R = P * K queries,
D width of a prompt embedding, S side of the image features, H, W size of an image.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from openworldsam.inference import TASKS, InferenceOptions, Queries, Question, infer, refine
from openworldsam.modeling.adapter import Adapter, DecoderTokens
from openworldsam.modeling.components import Component, components_with
from openworldsam.modeling.criterion import Criterion
from openworldsam.modeling.image_encoder import ImageFeatures, SAM2ImageEncoder, resize_for_sam2
from openworldsam.modeling.mask_decoder import SAM2MaskDecoder
from openworldsam.modeling.prompt_encoders import PromptEncoder, build_prompt_encoder
from openworldsam.modeling.score_head import ScoreHead
from openworldsam.utils.device import DTYPES, upload


@META_ARCH_REGISTRY.register()
class OpenWorldSAM(nn.Module):
    """Segments what texts name: frozen SAM2 and prompt encoder around a small trained adapter.

    Args:
        image_encoder, prompt_encoder, adapter, mask_decoder: the four components that an image passes through.
        criterion: the training loss.
        score_head: gives queries a match score; None for none.
        others: config keys, which `config.py` explains.

    Attributes:
        match_thresholds: of the score head by rule, if its file stores them.
        best_scores: [P] on the device, the best match score of each prompt of the last training batch.

    Raises:
        ValueError: an unknown task or precision.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        image_encoder: SAM2ImageEncoder,
        prompt_encoder: PromptEncoder,
        adapter: Adapter,
        mask_decoder: SAM2MaskDecoder,
        criterion: Criterion,
        score_head: ScoreHead | None = None,
        pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53),
        pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375),
        antialias: bool = False,
        precision: str = "fp32",
        train_prompt_encoder: bool = False,
        train_adapter: bool = True,
        tasks: tuple[str, ...] = ("semantic", "instance", "panoptic"),
        inference: InferenceOptions | None = None,
    ) -> None:
        super().__init__()
        if unknown := set(tasks) - set(TASKS):
            raise ValueError(f"MODEL.INFERENCE.TASKS has {sorted(unknown)}; the tasks are {tuple(TASKS)}")
        if precision not in DTYPES:
            raise ValueError(f"MODEL.PRECISION is one of {tuple(DTYPES)}, got {precision!r}")
        if (len(pixel_mean), len(pixel_std)) != (3, 3) or not min(pixel_std) > 0:
            raise ValueError(
                "MODEL.PIXEL_MEAN and MODEL.PIXEL_STD have three numbers, the latter above 0, "
                f"got {list(pixel_mean)} and {list(pixel_std)}"
            )
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.adapter = adapter
        self.mask_decoder = mask_decoder
        self.criterion = criterion
        self.score_head = score_head
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean)[:, None, None], persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std)[:, None, None], persistent=False)
        self.antialias = antialias
        self.precision = precision
        self.tasks = tuple(tasks)
        self.inference = inference or InferenceOptions()
        self.match_thresholds: dict[str, float] = {}
        self.train_prompt_encoder, self.train_adapter = train_prompt_encoder, train_adapter
        self.best_scores = torch.zeros(0)
        self.no_queries().by_rule(self.inference.score)  # refuses a score that this model does not have
        for module in self.frozen_modules:
            module.requires_grad_(False)
        self.train(self.training)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        image_encoder = SAM2ImageEncoder(cfg)
        # before the prompt encoder: their random start is then the same with any, or with a cache in its place
        adapter = Adapter(cfg, embed_dim=cfg.MODEL.PROMPT_ENCODER.EMBED_DIM)
        score_head = ScoreHead(cfg) if cfg.MODEL.SCORE_HEAD.HIDDEN else None
        return {
            "image_encoder": image_encoder,
            "prompt_encoder": build_prompt_encoder(cfg),
            "adapter": adapter,
            "mask_decoder": SAM2MaskDecoder(cfg),
            "criterion": Criterion(cfg),
            "score_head": score_head,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "antialias": cfg.INPUT.ANTIALIAS,
            "precision": cfg.MODEL.PRECISION,
            "train_prompt_encoder": cfg.MODEL.PROMPT_ENCODER.TRAINABLE,
            "train_adapter": cfg.MODEL.ADAPTER.TRAINABLE,
            "tasks": cfg.MODEL.INFERENCE.TASKS,
            "inference": InferenceOptions.from_config(cfg),
        }

    def train(self, mode: bool = True) -> OpenWorldSAM:
        """Switch the trained modules to training mode; frozen ones stay in eval mode."""
        super().train(mode)
        for module in self.frozen_modules:
            module.eval()
        return self

    @property
    def frozen_modules(self) -> list[nn.Module]:
        """The modules without gradient, always in eval mode."""
        trained = {self.prompt_encoder: self.train_prompt_encoder, self.adapter: self.train_adapter}
        return [self.image_encoder, self.mask_decoder, *(module for module, yes in trained.items() if not yes)]

    def store_frozen_weights(self) -> None:
        """Keep the matrices of the frozen networks in the number format of MODEL.PRECISION.

        Autocast would round them so at every call; results are the same to the bit, in half the memory.
        """
        for network in self.frozen_modules:
            for layer in network.modules():
                if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
                    layer.to(DTYPES[self.precision])

    @property
    def components(self) -> dict[str, Component]:
        """The components that weight files fill, by name."""
        return components_with(self.prompt_encoder, score_head=self.score_head is not None)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(
        self, batched_inputs: list[dict[str, Any]], tasks: Sequence[str] | None = None, *, prompt_chunk: int = 0
    ) -> Any:
        """Return losses in training mode, results in eval mode.

        Args:
            batched_inputs: one dict per image:
                image: uint8 [3, H, W], RGB.
                prompts: texts; in eval mode there may be none.
                targets: (training) a bool [N_p, H, W] tensor for each prompt.
                height, width: (optional) size of the result; H, W by default.
                class_ids: (optional) the class of each prompt; 0, 1, ... by default.
                is_thing: (optional) whether each prompt is a thing; all are by default.
                num_classes: (optional) size of the vocabulary; the number of prompts by default.
                generalized: (optional) whether a referring expression may have several targets, or none.
                prompt_embeddings: (optional, for all images or none) float [P, D or 2D], see `encode_prompts`, in place
                    of encoding the prompts.
                image_embed, high_res: (optional, likewise) its `ImageFeatures`, without the batch dimension.
            tasks: (eval mode) what to answer; MODEL.INFERENCE.TASKS by default.
            prompt_chunk: (eval mode) see `answer`.

        Returns:
            In training mode a dict of scalar losses. In eval mode one dict per image with a key per task:
                semantic: int64 [H, W], class ids, -1 where there was no prompt.
                instances: Detectron2 `Instances` with pred_masks, pred_boxes, scores, pred_classes (things only).
                panoptic_seg: (int32 [H, W] map, segments_info), as Detectron2's evaluators expect.
                referring: masks bool [P, H, W] and scores [P] in the order of the prompts; an empty mask and 0 for one
                    without a target, or without a query after two-stage inference.
                best_scores: (whatever the tasks) [P], the highest score of each prompt's queries.
        """
        if not self.training:
            return [_as_detectron2(answer) for answer in self.answer(batched_inputs, tasks, prompt_chunk=prompt_chunk)]
        _check_inputs(batched_inputs, need_targets=True)
        if not any(x["prompts"] for x in batched_inputs):
            raise ValueError("a training batch without any prompt; leave such images out of the data")
        features, embeddings, image_index = self._encode(batched_inputs)
        targets = [upload(t, self.device) for x in batched_inputs for t in x["targets"]]
        return self.losses(features, embeddings, image_index, targets)

    @torch.no_grad()
    def answer(
        self,
        batched_inputs: list[dict[str, Any]],
        tasks: Sequence[str] | None = None,
        *,
        prompt_chunk: int = 0,
        options: InferenceOptions | None = None,
    ) -> list[dict[str, Any]]:
        """Return what `inference.infer` gives for each image of a batch.

        Args:
            batched_inputs, tasks: as for `forward`.
            prompt_chunk: most prompts of an image to decode together, see `inference.prompt_chunk`; 0 for all. It
                bounds memory, and changes no result where prompts are independent.
            options: in place of MODEL.INFERENCE.
        """
        if not batched_inputs:
            return []
        _check_inputs(batched_inputs, need_targets=False)
        counts = [len(x["prompts"]) for x in batched_inputs]
        features, embeddings = None, self.pixel_mean.new_zeros(0)
        if any(counts):
            features, embeddings, _ = self._encode(batched_inputs)
        rules: dict[InferenceOptions, list[str]] = {}
        for task in tasks or self.tasks:
            rules.setdefault((options or self.inference).for_task(task), []).append(task)
        answers = []
        for image, (x, of_image) in enumerate(zip(batched_inputs, embeddings.split(counts), strict=True)):
            size = (x.get("height", x["image"].shape[-2]), x.get("width", x["image"].shape[-1]))
            described = {key: x[key] for key in ("class_ids", "is_thing", "num_classes", "generalized") if key in x}
            question = Question.of(size, len(of_image), **described)
            of_features = features.of_image(image) if features else None
            found: dict[str, Any] = {}
            for options, same in rules.items():
                found |= infer(
                    self._query_chunks(of_features, of_image, prompt_chunk, options), same, question, options
                )
            answers.append(found)
        return answers

    def _encode(self, batched_inputs: list[dict[str, Any]]) -> tuple[ImageFeatures, Tensor, Tensor]:
        """Features of B images, embeddings [P, D] and image_index [P] on the CPU, unless they come with the batch."""
        image_index = torch.arange(len(batched_inputs)).repeat_interleave(
            torch.tensor([len(x["prompts"]) for x in batched_inputs])
        )
        features, embeddings = None, None
        if "image_embed" in batched_inputs[0]:
            levels = zip(*((x["image_embed"], *x["high_res"]) for x in batched_inputs), strict=True)
            embed, high_res0, high_res1 = (upload(torch.stack(level), self.device).float() for level in levels)
            features = ImageFeatures(embed, (high_res0, high_res1))
        if "prompt_embeddings" in batched_inputs[0]:
            embeddings = upload(torch.cat([x["prompt_embeddings"] for x in batched_inputs]), self.device)
        if features is None or embeddings is None:
            images = [upload(x["image"], self.device) for x in batched_inputs]
            features = features or self.encode_images(images)
            if embeddings is None:
                prompts = [prompt for x in batched_inputs for prompt in x["prompts"]]
                embeddings = self.encode_prompts(self.prompt_inputs(images), prompts, image_index)
        return features, embeddings, image_index

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The arithmetic of MODEL.PRECISION for the networks, whatever autocast surrounds the call."""
        enabled = self.precision != "fp32"
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision] if enabled else None, enabled=enabled)

    def encode_images(self, images: list[Tensor]) -> ImageFeatures:
        """SAM2 features of B images, each uint8 [3, H, W] on the model's device."""
        size = self.image_encoder.image_size
        resized = torch.stack([resize_for_sam2(image, size, self.antialias) for image in images])
        with torch.no_grad(), self.autocast():
            return self.image_encoder((resized - self.pixel_mean) / self.pixel_std)

    def prompt_inputs(self, images: list[Tensor]) -> Tensor:
        """Prepare B images, each uint8 [3, H, W], for prompts: [B, ...], which all prompts of an image share."""
        return self.encode_for_prompts(torch.stack([self.prompt_encoder.preprocess(image) for image in images]))

    def encode_for_prompts(self, pixels: Tensor) -> Tensor:
        """Prepare B images as `prompt_inputs` does, from [B, 3, s, s] of the prompt encoder's `preprocess`."""
        with torch.set_grad_enabled(self.training and self.train_prompt_encoder), self.autocast():
            return self.prompt_encoder.encode_images(pixels)

    def encode_prompts(self, inputs: Tensor, prompts: list[str], image_index: Tensor) -> Tensor:
        """Embed P texts about B images, given as `prompt_inputs`; image_index [P] on the CPU.

        Returns [P, D]; with a score head [P, 2D], the prompt encoder's output and the text's word embeddings.
        """
        with torch.set_grad_enabled(self.training and self.train_prompt_encoder), self.autocast():
            embeddings = self.prompt_encoder(inputs, prompts, image_index)
            if self.score_head is None:
                return embeddings
            return torch.cat([embeddings.float(), self.prompt_encoder.word_embeddings(prompts)], dim=1)

    def decoder_tokens(self, features: ImageFeatures, embeddings: Tensor, image_index: Tensor) -> DecoderTokens:
        """Turn P prompt embeddings [P, D or 2D] into the adapter's tokens; image_index [P] on the CPU, ascending."""
        with self.autocast():
            fused = embeddings[:, : self.prompt_encoder.embed_dim]
            return self.adapter(fused, features.embed, image_index, self.mask_decoder.positions())

    def match_logits(
        self, features: ImageFeatures, embeddings: Tensor, tokens: DecoderTokens, logits: Tensor, predicted_iou: Tensor
    ) -> Tensor | None:
        """Return logits [R] of the match scores of decoded queries, see `ScoreHead`; None without a head."""
        if self.score_head is None:
            return None
        words = embeddings[:, self.prompt_encoder.embed_dim :]
        return self.score_head(features, words, tokens, logits, predicted_iou)

    def losses(
        self, features: ImageFeatures, embeddings: Tensor, image_index: Tensor, targets: list[Tensor]
    ) -> dict[str, Tensor]:
        """Match all queries to the ground truth without gradient, then decode the matched ones with it.

        This is exact, as the decoder treats every query alone, and only matched queries keep a graph. A prompt's only
        query is matched anyway, so it is decoded once. The score head learns from all queries; through its inputs from
        the adapter, its gradient reaches that too.

        Args:
            features: of B images.
            embeddings: [P, D or 2D].
            image_index: [P] on the CPU, ascending.
            targets: P times bool [N_p, H, W].

        Returns:
            scalar losses by name.
        """
        tokens = self.decoder_tokens(features, embeddings, image_index)
        once = self.adapter.num_queries == 1 and bool(self.criterion.losses)
        with torch.set_grad_enabled(once), self.autocast():
            decoded, predicted_iou = self.mask_decoder(features, tokens, single_mask=True)
        all_logits = decoded.detach()
        logits = all_logits.unflatten(0, (len(embeddings), -1))
        losses: dict[str, Tensor] = {}
        if self.criterion.losses:
            with torch.autocast(self.device.type, enabled=False):
                matches = self.criterion.match(logits, targets)
            selected = matches.prompt * self.adapter.num_queries + matches.query
            if not len(selected):  # nothing to learn, but every trained tensor must get its (zero) gradient
                selected = selected.new_zeros(1)
            if once:
                matched = decoded[upload(selected, self.device)]
            else:
                with self.autocast():
                    matched, _ = self.mask_decoder(features, tokens, selected, single_mask=True)
            with torch.autocast(self.device.type, enabled=False):
                losses = self.criterion(matched, targets, matches)
        if self.criterion.score_weight:
            match = self.match_logits(features, embeddings, tokens, all_logits, predicted_iou.detach())
            assert match is not None  # `check_training`
            scores = match.unflatten(0, logits.shape[:2])
            self.best_scores = scores.detach().amax(dim=1).sigmoid()
            with torch.autocast(self.device.type, enabled=False):
                losses |= self.criterion.score_loss(scores, logits, targets)
        return losses

    @torch.no_grad()
    def queries(self, features: ImageFeatures, embeddings: Tensor) -> Queries:
        """Decode P prompts [P, D or 2D] about one image, B = 1, in one pass: R queries, labelled by prompt from 0."""
        tokens = self.decoder_tokens(features, embeddings, torch.zeros(len(embeddings), dtype=torch.long))
        with self.autocast():
            logits, predicted_iou = self.mask_decoder(features, tokens)
        match = self.match_logits(features, embeddings, tokens, logits, predicted_iou)
        labels = torch.arange(len(embeddings)).repeat_interleave(self.adapter.num_queries)
        return Queries.decoded(logits, predicted_iou, labels, None if match is None else match.sigmoid())

    @torch.no_grad()
    def refine(self, features: ImageFeatures, queries: Queries, options: InferenceOptions) -> Queries:
        """Decode the queries of one image (B = 1) a second time, for two-stage inference; see `inference.refine`."""
        with self.autocast():
            return refine(queries, options, partial(self.mask_decoder.refine, features))

    def no_queries(self) -> Queries:
        """Zero queries, for an image without prompts."""
        side = 4 * self.image_encoder.feature_side
        match = torch.zeros(0) if self.score_head else None
        logits = self.pixel_mean.new_zeros(0, side, side)
        return Queries(logits, torch.zeros(0), torch.zeros(0, dtype=torch.long), match)

    def _query_chunks(
        self, features: ImageFeatures | None, embeddings: Tensor, chunk: int, options: InferenceOptions
    ) -> Iterator[Queries]:
        """Yield the queries of P prompts [P, D or 2D] about an image, `chunk` prompts at a time; at least one chunk."""
        if features is None or not len(embeddings):
            yield self.no_queries()
            return
        start = 0
        for part in embeddings.split(chunk or len(embeddings)):
            queries = self.queries(features, part)
            if options.two_stage:
                queries = self.refine(features, queries, options)
            yield queries._replace(labels=queries.labels + start)
            start += len(part)


def _check_inputs(batched_inputs: list[dict[str, Any]], need_targets: bool) -> None:
    """Raise ValueError for inputs that would silently give wrong results."""
    if not batched_inputs:
        raise ValueError("an empty batch")
    for i, x in enumerate(batched_inputs):
        image, prompts = x["image"], x["prompts"]
        if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
            raise ValueError(f"image {i} is {image.dtype} {tuple(image.shape)}; it must be uint8 [3, H, W]")
        if isinstance(prompts, str):
            raise ValueError(f"prompts of image {i} are the text {prompts!r}; they must be a list of texts")
        for key in ("targets", "class_ids", "is_thing"):
            got = len(x[key]) if key in x else "none"
            if got != len(prompts) and (key in x or (key == "targets" and need_targets)):
                raise ValueError(f"image {i} has {len(prompts)} prompts and {got} {key}; there must be one for each")


def _as_detectron2(answer: dict[str, Any]) -> dict[str, Any]:
    """Convert the results of an image to the form of Detectron2's evaluators; see `OpenWorldSAM.forward`."""
    results: dict[str, Any] = {"best_scores": answer["best_scores"]}
    if "semantic" in answer:
        results["semantic"] = answer["semantic"].map
    if "instance" in answer:
        masks, scores, labels, boxes, *_ = answer["instance"]
        found = {"pred_masks": masks, "pred_boxes": Boxes(boxes), "scores": upload(scores, masks.device)}
        results["instances"] = Instances(masks.shape[1:], **found, pred_classes=upload(labels, masks.device))
    if "panoptic" in answer:
        panoptic_map, segments = answer["panoptic"]
        keys = ("id", "category_id", "isthing", "score")
        results["panoptic_seg"] = (panoptic_map, [dict(zip(keys, s[:4], strict=True)) for s in segments])
    if "referring" in answer:
        results["referring"] = answer["referring"][:2]
    return results
