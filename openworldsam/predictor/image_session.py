"""What the predictor keeps of its image: the frozen encoders' output, and what was made of the prompts so far.

Shapes: P prompts, K queries per prompt, D width of a prompt embedding, H, W size of the image.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from openworldsam.checkpoint.layouts import Source
from openworldsam.inference import InferenceOptions, MaskRows
from openworldsam.modeling import ImageFeatures, OpenWorldSAM
from openworldsam.utils.files import save_atomically

ROW_BYTES = 512 * 2**20
"""Mask logits of earlier prompts that are kept, at most: 102 prompts of the full-size model."""
TENSORS = ("image_embed", "high_res_0", "high_res_1", "prompt_inputs")
SETTINGS = (
    "INPUT.ANTIALIAS",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.PRECISION",
    "MODEL.PROMPT_ENCODER.IMAGE_SIZE",
    "MODEL.PROMPT_ENCODER.NAME",
    "MODEL.SAM2.IMAGE_SIZE",
)
"""Config keys that change an encoded image and that the image encoder's weights do not show."""


class EncodedImage(NamedTuple):
    """An image as the model sees it.

    features: of SAM2, B = 1; prompt_inputs: [1, 3, s, s], the prompt encoder's view; size: (H, W).
    """

    features: ImageFeatures
    prompt_inputs: Tensor
    size: tuple[int, int]

    def save(self, path: Path, made_by: Mapping[str, Any]) -> None:
        """Write a .safetensors file (17 MB for the full-size model in fp32), complete or not at all.

        Args:
            path: of the file; one that is there is replaced.
            made_by: from `encoder_identity`.

        Raises:
            OSError: it cannot be written.
        """
        values = (self.features.embed, *self.features.high_res, self.prompt_inputs)
        tensors = {name: value.cpu().contiguous() for name, value in zip(TENSORS, values, strict=True)}
        content = {"made_by": made_by, "size": self.size, "crc32": _checksum(tensors)}
        save_atomically(path, lambda partial: save_file(tensors, partial, {"encoded_image": json.dumps(content)}))

    @classmethod
    def load(cls, path: Path, made_by: Mapping[str, Any], device: torch.device) -> EncodedImage:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, no encoded image, or of an encoder or settings other than `made_by`.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there; save_image writes such a file")
        try:
            with safe_open(path, framework="pt") as file:
                content = json.loads((file.metadata() or {})["encoded_image"])
                tensors = {name: file.get_tensor(name) for name in TENSORS}
            theirs, (height, width), crc32 = dict(content["made_by"]), content["size"], content["crc32"]
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged, or no image that save_image wrote ({error})") from None
        if different := sorted(key for key in made_by if theirs.get(key) != made_by[key]):
            key = different[0]
            raise ValueError(f"{path} was made by another model: its {key} is {theirs.get(key)}, not {made_by[key]}")
        if crc32 != _checksum(tensors):
            raise ValueError(f"{path} is damaged: another checksum than it says; save it again")
        embed, high_res0, high_res1, prompt_inputs = (tensors[name].to(device) for name in TENSORS)
        return cls(ImageFeatures(embed, (high_res0, high_res1)), prompt_inputs, (height, width))


def encoder_identity(cfg: CfgNode, sources: Mapping[str, Source]) -> dict[str, Any]:
    """What an encoded image depends on: the fingerprint of SAM2's weights, and settings."""
    values = {key: reduce(getattr, key.split("."), cfg) for key in SETTINGS}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return {"SAM2 fingerprint": sources["sam2"].fingerprint, **plain}


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of all values."""
    crc32 = 0
    for name in TENSORS:
        crc32 = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy().data, crc32)
    return crc32


class AskedImage:
    """Query rows of prompts about one image; nothing is computed twice that can be kept.

    Kept are the embedding of every prompt (4 KB each at full size), the last question's rows and, where prompts do not
    interact, those of the latest prompts before the second pass, up to `ROW_BYTES`. Kept rows are those that one
    question with all prompts would give, but for rounding.

    Args:
        model: in eval mode.
        encoded: the image.
    """

    def __init__(self, model: OpenWorldSAM, encoded: EncodedImage) -> None:
        self.model, self.encoded = model, encoded
        self._embeddings: dict[str, Tensor] = {}
        self._logits_and_scores: dict[str, tuple[Tensor, Tensor]] = {}
        self._last: tuple[tuple[tuple[str, ...], InferenceOptions | None], MaskRows] | None = None

    def rows(self, prompts: Sequence[str], options: InferenceOptions) -> MaskRows:
        """The query rows of P prompts, labelled by index of prompt.

        Args:
            prompts: may repeat; at least one.
            options: two-stage inference or not, and its rule.
        """
        question = (tuple(prompts), options if options.two_stage else None)
        if self._last and self._last[0] == question:
            return self._last[1]
        self._encode(prompts)
        rows = self._decode(prompts) if self.model.adapter.prompts_interact else self._known_and_new(prompts)
        if options.two_stage:
            rows = self.model.second_pass(self.encoded.features, 0, rows, options)
        self._last = (question, rows)
        return rows

    def _encode(self, prompts: Sequence[str]) -> None:
        """Embed the prompts that are new."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._embeddings]
        if new:
            index = torch.zeros(len(new), dtype=torch.long)
            embeddings = self.model.encode_prompts(self.encoded.prompt_inputs, new, index)
            self._embeddings.update(zip(new, embeddings, strict=True))

    def _decode(self, prompts: Sequence[str]) -> MaskRows:
        """First-pass rows of P embedded prompts."""
        embeddings = torch.stack([self._embeddings[prompt] for prompt in prompts])
        index = torch.zeros(len(prompts), dtype=torch.long)
        one_pass = replace(self.model.inference, two_stage=False)
        (rows,) = self.model.query_rows(self.encoded.features, embeddings, index, one_pass)
        return rows

    def _known_and_new(self, prompts: Sequence[str]) -> MaskRows:
        """First-pass rows of prompts that do not interact: only those of new ones are decoded."""
        k = self.model.adapter.num_queries
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._logits_and_scores]
        parts = dict(self._logits_and_scores)
        if new:
            rows = self._decode(new)
            parts.update(zip(new, zip(rows.logits.split(k), rows.scores.split(k), strict=True), strict=True))
        if len(new) < len(prompts):
            logits, scores = (torch.cat(column) for column in zip(*(parts[p] for p in prompts), strict=True))
            rows = MaskRows(logits, scores, torch.arange(len(scores), device=scores.device) // k)
        most = ROW_BYTES // (rows.logits[:k].nbytes)
        for prompt in dict.fromkeys(prompts[-most:] if most else ()):
            logits, scores = parts[prompt]
            known = self._logits_and_scores.pop(prompt, None)  # goes to the end: the oldest are forgotten first
            self._logits_and_scores[prompt] = known or (logits.clone(), scores.clone())
        for prompt in list(self._logits_and_scores)[: max(0, len(self._logits_and_scores) - most)]:
            del self._logits_and_scores[prompt]
        return rows
