"""An image of a predictor: features, embeddings and queries that later questions reuse.

Shapes: P prompts, K queries per prompt, D width of a prompt embedding, H, W size of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from openworldsam.data.preprocessing import to_tensor
from openworldsam.inference import InferenceOptions, Queries
from openworldsam.inference.queries import join
from openworldsam.modeling import OpenWorldSAM
from openworldsam.utils.device import upload
from openworldsam.utils.stopwatch import Timed, untimed

LOGIT_BYTES = 512 * 2**20
"""Most bytes of mask logits of earlier prompts that are kept: 102 prompts of the full-size model."""


class ImageSession:
    """Answers prompts about one image without computing anything twice.

    It keeps the embedding of every prompt (4 KB each at full size), the last question's queries and, where prompts do
    not interact, the first-pass queries of the latest prompts, up to `LOGIT_BYTES`. Cached queries equal those of one
    question with all prompts, up to rounding. The predictor lets in one thread at a time.

    Args:
        image: uint8 [H, W, 3]; a copy is kept.
        path: of its file, if it has one.
        timed: times the stages.
    """

    def __init__(self, model: OpenWorldSAM, image: np.ndarray, path: str | None = None, timed: Timed = untimed) -> None:
        self.model, self.path = model, path
        pixels = to_tensor(image)
        self.image = pixels.permute(1, 2, 0).numpy()
        self.size = (image.shape[0], image.shape[1])
        with timed("image encoder"):
            on_device = upload(pixels, model.device)
            self.features = model.encode_images([on_device])
        with timed("prompt encoder"):
            self._pixels = model.prompt_encoder.preprocess(on_device)[None]
        self._embeddings: dict[str, Tensor] = {}
        self._kept: dict[str, Queries] = {}
        """K queries by prompt, the oldest first."""
        self._last: tuple[tuple[tuple[str, ...], InferenceOptions | None], Queries] | None = None

    @cached_property
    def _prompt_inputs(self) -> Tensor:
        """The image as all prompts share it, made for the first one: clicks need none."""
        return self.model.encode_for_prompts(self._pixels)

    def queries(self, prompts: Sequence[str], options: InferenceOptions, timed: Timed = untimed) -> Queries:
        """The queries of P prompts, which may repeat and be none, labelled by index of prompt."""
        if not prompts:
            return self.model.no_queries()
        question = (tuple(prompts), options if options.two_stage else None)
        if self._last and self._last[0] == question:
            return self._last[1]
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._embeddings]:
            index = torch.zeros(len(new), dtype=torch.long)
            with timed("prompt encoder"):
                embeddings = self.model.encode_prompts(self._prompt_inputs, new, index)
            self._embeddings.update(zip(new, embeddings, strict=True))
        with timed("decoder"):
            queries = self._decode(prompts) if self.model.adapter.prompts_interact else self._known_and_new(prompts)
            if options.two_stage:
                queries = self.model.refine(self.features, queries, options)
        self._last = (question, queries)
        return queries

    def _decode(self, prompts: Sequence[str]) -> Queries:
        """First-pass queries of P embedded prompts."""
        return self.model.queries(self.features, torch.stack([self._embeddings[prompt] for prompt in prompts]))

    def _known_and_new(self, prompts: Sequence[str]) -> Queries:
        """First-pass queries of prompts that do not interact: only those of new ones are decoded."""
        k = self.model.adapter.num_queries
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._kept]
        parts = dict(self._kept)
        if new:
            queries = self._decode(new)
            parts |= zip(new, queries.split(k), strict=True)
        if len(new) < len(prompts):
            queries = join([parts[prompt] for prompt in prompts])
            queries = queries._replace(labels=torch.arange(len(queries.labels)) // k)
        most = LOGIT_BYTES // queries.logits[:k].nbytes
        for prompt in dict.fromkeys(prompts[-most:] if most else ()):
            known = self._kept.pop(prompt, None)  # goes to the end: the oldest are forgotten first
            self._kept[prompt] = known or parts[prompt]._replace(logits=parts[prompt].logits.clone())
        for prompt in list(self._kept)[: max(0, len(self._kept) - most)]:
            del self._kept[prompt]
        return queries
