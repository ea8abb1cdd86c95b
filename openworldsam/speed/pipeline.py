"""One image and its prompts through a model, stage by stage.

Shapes: P prompts, K queries per prompt, R = P * K queries, D width of an embedding, H, W size of the image; the batch
is one image.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_leaves

from openworldsam.data.datasets.coco import CATEGORIES
from openworldsam.data.preprocessing import read_image, to_tensor
from openworldsam.inference import Queries, Question, infer
from openworldsam.modeling import ImageFeatures, OpenWorldSAM
from openworldsam.modeling.adapter import DecoderTokens
from openworldsam.modeling.image_encoder import resize_for_sam2


class State:
    """Values that stages pass on to later ones.

    sam2_input, prompt_input: [1, 3, s, s]; embeddings: [P, D]; results: by task.
    """

    sam2_input: Tensor
    prompt_input: Tensor
    features: ImageFeatures
    embeddings: Tensor
    tokens: DecoderTokens
    logits: Tensor
    predicted_iou: Tensor
    queries: Queries
    results: dict[str, Any]


class Stage(NamedTuple):
    """A stage: its `Pipeline` method, the module with its weights, and the state that it reads and writes."""

    method: str
    module: str | None
    reads: tuple[str, ...]
    writes: tuple[str, ...]


STAGES = {
    "decode and resize": Stage("read", None, (), ("sam2_input", "prompt_input")),
    "image encoder": Stage("encode_image", "image_encoder", ("sam2_input",), ("features",)),
    "prompt encoder": Stage("encode_prompts", "prompt_encoder", ("prompt_input",), ("embeddings",)),
    "adapter": Stage("adapt", "adapter", ("features", "embeddings"), ("tokens",)),
    "decoder": Stage("decode", "mask_decoder", ("features", "tokens"), ("logits", "predicted_iou")),
    "score head": Stage("rate", "score_head", ("features", "embeddings", "tokens", "logits", "predicted_iou"), ()),
    "post-processing": Stage("post_process", None, ("queries",), ()),
}
"""The score head is a stage only of models that have one."""
PER_IMAGE = ("decode and resize", "image encoder")
"""Stages that do not depend on the prompts."""


def encoded_image(path: str | None) -> bytes:
    """Bytes of an image file; without a path, of a random JPEG of 640 x 480 pixels, as smooth as a photograph.

    Raises:
        FileNotFoundError, ValueError: the image cannot be read.
    """
    buffer = io.BytesIO()
    if path:
        read_image(path)
        with open(path, "rb") as file:
            return file.read()
    noise = torch.randint(0, 256, (15, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def coco_prompts(count: int) -> tuple[list[str], list[bool]]:
    """COCO's class names, things and stuff in turn, repeated as needed; and which of them are things."""
    things, stuff = ([c for c in CATEGORIES if c.is_thing is kind] for kind in (True, False))
    mixed = [c for pair in zip(things, stuff, strict=False) for c in pair] + things[len(stuff) :]
    chosen = [mixed[i % len(mixed)] for i in range(count)]
    return [c.name for c in chosen], [c.is_thing for c in chosen]


class Pipeline:
    """The forward pass in eval mode, split into `STAGES`; the calls are those of `OpenWorldSAM.forward`.

    Args:
        name: of the configuration in the results.
        cfg, model: config and the model built from it, on its device, in eval mode.
        image: bytes of an image file.
        random: whether the weights are random. Scores then mean nothing, and one query per prompt gets score 1.

    Raises:
        ValueError: two-stage inference, which has no stage here.
    """

    def __init__(self, name: str, cfg: CfgNode, model: OpenWorldSAM, image: bytes, *, random: bool) -> None:
        if model.inference.two_stage:
            raise ValueError("MODEL.INFERENCE.TWO_STAGE is not measured; the benchmark needs it False")
        self.name, self.cfg, self.model, self.image, self.random = name, cfg, model, image, random
        self._weights = model.state_dict()

    def use(self, precision: str, compiled: bool) -> None:
        """Rebuild the model with this MODEL.PRECISION and MODEL.COMPILE."""
        cfg, device, inference = self.cfg.clone(), self.model.device, self.model.inference
        cfg.MODEL.PRECISION, cfg.MODEL.COMPILE = precision, compiled
        if self.model.score_head is None:  # the weights may have none, whatever the config says
            cfg.MODEL.SCORE_HEAD.HIDDEN = 0
        self.model = OpenWorldSAM(cfg)
        self.model.load_state_dict(self._weights, assign=True)
        self.model.store_frozen_weights()
        self.model.to(device).eval()
        self.model.inference = inference  # the threshold may come with the weights

    @property
    def stages(self) -> dict[str, Stage]:
        """The `STAGES` of this model."""
        return {name: stage for name, stage in STAGES.items() if stage.method != "rate" or self.model.score_head}

    def ask(self, count: int) -> None:
        """Set the prompts of later calls.

        Raises:
            MemoryError: this machine cannot hold so many.
        """
        self.prompts, self.is_thing = coco_prompts(count)

    def pixels(self) -> Tensor:
        """The image, uint8 [3, H, W]."""
        return to_tensor(read_image(Image.open(io.BytesIO(self.image)))).to(self.model.device)

    @property
    def image_index(self) -> Tensor:
        return torch.zeros(len(self.prompts), dtype=torch.long)

    def read(self, s: State) -> None:
        pixels, model = self.pixels(), self.model
        self.size = (pixels.shape[1], pixels.shape[2])
        resized = resize_for_sam2(pixels, model.image_encoder.image_size, model.antialias)
        s.sam2_input = ((resized - model.pixel_mean) / model.pixel_std)[None]
        s.prompt_input = model.prompt_encoder.preprocess(pixels)[None]

    def encode_image(self, s: State) -> None:
        with torch.no_grad(), self.model.autocast():
            s.features = self.model.image_encoder(s.sam2_input)

    @torch.no_grad()
    def encode_prompts(self, s: State) -> None:
        inputs = self.model.encode_for_prompts(s.prompt_input)
        s.embeddings = self.model.encode_prompts(inputs, self.prompts, self.image_index)

    @torch.no_grad()
    def adapt(self, s: State) -> None:
        s.tokens = self.model.decoder_tokens(s.features, s.embeddings, self.image_index)

    def decode(self, s: State) -> None:
        with torch.no_grad(), self.model.autocast():
            s.logits, s.predicted_iou = self.model.mask_decoder(s.features, s.tokens)
        if not self.model.score_head:
            self.set_queries(s)

    @torch.no_grad()
    def rate(self, s: State) -> None:
        match = self.model.match_logits(s.features, s.embeddings, s.tokens, s.logits, s.predicted_iou)
        assert match is not None
        self.set_queries(s, match.sigmoid())

    def set_queries(self, s: State, *match: Tensor) -> None:
        """Label the decoded queries by prompt; with the match scores [R], if there are any."""
        per_prompt = len(s.logits) // len(self.prompts)
        predicted_iou, *scores = torch.stack([s.predicted_iou, *match]).cpu()
        if self.random:
            predicted_iou = (torch.arange(len(predicted_iou)) % per_prompt == 0).float()
            scores = [predicted_iou for _ in match]
        labels = torch.arange(len(self.prompts)).repeat_interleave(per_prompt)
        s.queries = Queries(s.logits, predicted_iou, labels, scores[0] if scores else None)

    @torch.no_grad()
    def post_process(self, s: State) -> None:
        question = Question.of(self.size, len(self.prompts), is_thing=self.is_thing)
        s.results = infer([s.queries], self.model.tasks, question, self.model.inference)

    def whole(self) -> State:
        """All stages, from the bytes of the image to the results."""
        state = State()
        for stage in self.stages.values():
            getattr(self, stage.method)(state)
        return state

    def loss(self, batch: Sequence[dict[str, Any]]) -> Tensor:
        """The training loss of a batch, as for `OpenWorldSAM.forward`."""
        return torch.stack(list(self.model(batch).values())).sum()

    def bytes_moved(self, stage: Stage, s: State) -> int:
        """Bytes of a stage's weights (without embedding tables), inputs and outputs."""
        modules = list(getattr(self.model, stage.module).modules()) if stage.module else []
        weights = [p for m in modules if not isinstance(m, torch.nn.Embedding) for p in m.parameters(recurse=False)]
        leaves = tree_leaves([weights, *(getattr(s, name) for name in (*stage.reads, *stage.writes))])
        return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
