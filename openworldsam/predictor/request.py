"""A question to the predictor: what is asked of an image or of many, and its answer as a `Prediction`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode

from openworldsam.data.datasets.coco import COCO_STUFF
from openworldsam.data.preprocessing import to_tensor
from openworldsam.inference import TASKS, InferenceOptions, Question
from openworldsam.modeling import OpenWorldSAM
from openworldsam.modeling.prompt_encoders import clean_prompts
from openworldsam.predictor.prediction import Prediction


class Request(NamedTuple):
    """P prompts and how to answer them.

    prompts: texts, each once.
    is_thing: whether each names things rather than stuff.
    task: of `TASKS`.
    options: of inference.
    threshold: smallest score of a mask.
    """

    prompts: Sequence[str]
    is_thing: Sequence[bool]
    task: str
    options: InferenceOptions
    threshold: float

    @classmethod
    def checked(
        cls,
        model: OpenWorldSAM,
        cfg: CfgNode,
        prompts: str | Sequence[str],
        task: str,
        stuff: str | Sequence[str] | None,
        options: Mapping[str, Any],
    ) -> Request:
        """Validate the arguments of `OpenWorldSAMPredictor.predict` for a model and its config.

        Raises:
            ValueError: an unknown task or option, an empty prompt or one that is not a text.
        """
        if task not in tuple(TASKS):
            raise ValueError(f"task is one of {', '.join(TASKS)}; got {task!r}")
        if unknown := options.keys() - InferenceOptions.__dataclass_fields__.keys():
            names = ", ".join(InferenceOptions.__dataclass_fields__)
            raise ValueError(f"unknown option {', '.join(sorted(unknown))}; there are {names}")
        prompts, inference = _as_list(prompts), model.inference
        if options.get("score", inference.score) != inference.score:
            other = InferenceOptions.from_config(cfg, options["score"], model.match_thresholds)
            inference = replace(inference, score_threshold=other.score_threshold)
        inference = replace(inference, **options)
        stuff_names = COCO_STUFF if stuff is None else {name.lower() for name in _as_list(stuff, "stuff")}
        is_thing = [prompt.lower() not in stuff_names for prompt in prompts]
        asked = options.get("score_threshold", 0.0)
        return cls(prompts, is_thing, task, inference, asked if task == "referring" else inference.threshold_of(task))

    @property
    def things(self) -> list[bool]:
        """Whether each prompt may have instances: in panoptic segmentation things, elsewhere all."""
        return list(self.is_thing) if self.task == "panoptic" else [True] * len(self.prompts)

    def question(self, size: tuple[int, int]) -> Question:
        """Return the question about an image of size (H, W)."""
        return Question.of(size, len(self.prompts), is_thing=self.things)

    def prediction(self, answer: Mapping[str, Any], **about: Any) -> Prediction:
        """Convert what `inference.infer` gave; `about` are arguments of `Prediction.of`."""
        found = answer[self.task].found()
        if self.task == "referring":
            found = found.at_least(self.threshold)
        about |= {"rule": self.options.score, "threshold": self.threshold, "best_scores": answer["best_scores"]}
        return Prediction.of(found, self.task, self.prompts, is_thing=self.is_thing, **about)

    def batch(self, model: OpenWorldSAM, images: Sequence[np.ndarray], chunk: int) -> Iterator[Prediction]:
        """Answer about images, uint8 [H, W, 3], which pass the encoders together.

        `chunk` prompts are decoded together, see `inference.prompt_chunk`; the model is in eval mode.
        """
        pixels = [to_tensor(image) for image in images]
        batch = [{"image": image, "prompts": list(self.prompts), "is_thing": self.things} for image in pixels]
        answers = model.answer(batch, (self.task,), prompt_chunk=chunk, options=self.options)
        for image, answer in zip(pixels, answers, strict=True):
            yield self.prediction(answer, image=image.permute(1, 2, 0).numpy())


def _as_list(texts: str | Sequence[str], name: str = "prompts") -> list[str]:
    """One text or several as a list of different ones."""
    try:
        listed = [texts] if isinstance(texts, str) else list(texts)
    except TypeError:
        raise ValueError(f"{name} are a text or a list of texts, got {type(texts).__name__}") from None
    return clean_prompts(listed)
