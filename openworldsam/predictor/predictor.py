"""Masks from an image and texts: encode the image once, ask as often as you like.

Questions about one image share what they can; see `ImageSession`. Threads may share a predictor: they take turns at
the model, and each has its own current image.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from threading import RLock, local
from typing import Any, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from numpy.typing import ArrayLike

from openworldsam.checkpoint import load_weights, photograph_warning
from openworldsam.config import load_config, merge_options
from openworldsam.data.preprocessing import ImageLike, read_image
from openworldsam.inference import Question, infer, prompt_chunk
from openworldsam.modeling import ImageFeatures, OpenWorldSAM
from openworldsam.predictor.boxes import BoxPrompts
from openworldsam.predictor.clicks import Clicks
from openworldsam.predictor.image_session import ImageSession
from openworldsam.predictor.prediction import Prediction
from openworldsam.predictor.pretrained import fetch_missing, save_folder
from openworldsam.predictor.request import Request
from openworldsam.preflight import check_weights
from openworldsam.utils.device import checked_device, usable_device
from openworldsam.utils.files import named
from openworldsam.utils.stopwatch import Stopwatch, Timed, untimed

logger = logging.getLogger(__name__)


class OpenWorldSAMPredictor:
    """Segments what texts name.

        predictor = OpenWorldSAMPredictor("released")
        result = predictor("street.jpg", ["car", "road"], task="panoptic")
        results = predictor(["a.jpg", "b.jpg"], "car")  # predict_batch: one by one, for any number of images
        predictor.set_image("zebra.jpg")  # several questions about one image: encoded once
        result = predictor.predict(["zebra", "grass"])

    Args:
        cfg: a config, or the name, file or saved model that `load_config` takes.
        device: "cpu", "cuda", "mps"; by default MODEL.DEVICE, or the CPU where that does not exist.
        opts: KEY VALUE pairs that override the config.

    Attributes:
        photograph_warning: logged with the first image, as weights of the Shapes world know nothing of photographs;
            empty for other weights, and after that. Set it to "" if all images are of that world.

    Raises:
        FileNotFoundError: a config, weight or tokenizer file is missing.
        KeyError: a config key that does not exist.
        ValueError: the weights do not fit the config, or there is no such device.
    """

    def __init__(self, cfg: CfgNode | str | Path, *, device: str | None = None, opts: Sequence[str] = ()) -> None:
        if isinstance(cfg, (str, Path)):
            name, cfg = cfg, load_config(cfg, opts)
            check_weights(name, opts)  # before the seconds that building the model takes
        else:
            cfg = cfg.clone()
            merge_options(cfg, opts)
        self.cfg = cfg
        target = checked_device(device) if device else usable_device(cfg.MODEL.DEVICE)
        self.model = OpenWorldSAM(cfg)
        self.model.prompt_encoder.prepare()
        self.sources = load_weights(self.model, cfg)
        self.photograph_warning = photograph_warning(self.sources)
        self.model.to(target).eval()
        self._lock = RLock()  # guards the model and all its sessions
        self._current = local()

    def __getstate__(self) -> dict[str, Any]:
        """Leave lock and current images out of copies, which have their own."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_current")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=RLock(), _current=local())

    def set_image(self, image: ImageLike) -> None:
        """Encode an image for the predictions of this thread that follow; arguments and errors as in `encode`."""
        self._current.session = self.encode(image)

    def encode(self, image: ImageLike) -> ImageSession:
        """Encode an image once for `predict` and `click` with `image=`, in whatever thread.

        Args:
            image: path, PIL image, array or tensor as in `read_image`. EXIF rotation is applied to files and PIL
                images.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file, array or tensor is no image.
        """
        return self._encode(image, untimed)

    def _encode(self, image: ImageLike, timed: Timed) -> ImageSession:
        with timed("reading"):
            pixels = self._read(image)
        with self._lock:
            return ImageSession(self.model, pixels, _path_of(image), timed)

    def _read(self, image: ImageLike) -> np.ndarray:
        pixels = read_image(image)
        warning, self.photograph_warning = self.photograph_warning, ""
        if warning:
            logger.warning(warning)
        return pixels

    @property
    def session(self) -> ImageSession:
        """The current image of this thread.

        Raises:
            ValueError: no image set.
        """
        if not hasattr(self._current, "session"):
            raise ValueError("no image: call set_image first, in the thread that asks, or give image=")
        return self._current.session  # type: ignore[no-any-return]

    def _session_of(self, image: ImageLike | ImageSession | None, timed: Timed = untimed) -> ImageSession:
        """Encode an image unless it is encoded; None stands for the current one."""
        if image is None:
            return self.session
        session = image if isinstance(image, ImageSession) else self._encode(image, timed)
        if session.model is not self.model:
            raise ValueError("image was encoded by another predictor: encode it with this one")
        return session

    @property
    def features(self) -> ImageFeatures:
        """SAM2's features of the current image of this thread, B = 1."""
        return self.session.features

    @overload
    def __call__(
        self,
        image: list[Any] | tuple[ImageLike, ...],
        prompts: str | Sequence[str],
        task: str = "instance",
        **options: Any,
    ) -> list[Prediction]: ...

    @overload
    def __call__(
        self, image: ImageLike, prompts: str | Sequence[str], task: str = "instance", **options: Any
    ) -> Prediction: ...

    def __call__(
        self,
        image: ImageLike | list[Any] | tuple[ImageLike, ...],
        prompts: str | Sequence[str],
        task: str = "instance",
        **options: Any,
    ) -> Prediction | list[Prediction]:
        """Segment what the prompts name in an image: its `predict`. A list of images gives a list: `predict_batch`."""
        if isinstance(image, (list, tuple)):
            return list(self.predict_batch(image, prompts, task, **options))
        return self.predict(prompts, task, image=image, **options)

    @torch.no_grad()
    def predict(
        self,
        prompts: str | Sequence[str],
        task: str = "instance",
        *,
        boxes: ArrayLike | None = None,
        box_labels: Sequence[int | str] | None = None,
        image: ImageLike | ImageSession | None = None,
        stuff: str | Sequence[str] | None = None,
        times: bool = False,
        **options: Any,
    ) -> Prediction:
        """Segment what the prompts name.

        Args:
            prompts: one text or several; trimmed, and equal ones are one. Under `INTERACTION: image` they change
                each other's masks.
            task: "semantic" gives every pixel to a prompt; "instance" finds each occurrence; "panoptic" does both
                without overlap; "referring" gives the one best mask of each prompt.
            boxes: [n, 4], x0 y0 x1 y1 in pixels, which say more than the texts do.
            box_labels: for each box "this" or 1 (the default): the thing in it is found for certain, with score 1, for
                a single prompt; "not" or 0: removes masks that lie at least half in it; "within": removes masks that
                lie less than half in every such box.
            image: as in `encode`, or what that returned; by default the current image of this thread.
            stuff: the prompts that name regions rather than objects (case does not matter); by default those that
                are COCO stuff classes, such as "grass" or "sky". Only panoptic segmentation distinguishes them.
            times: measure `Prediction.times`, waiting for the device after each stage.
            **options: fields of `InferenceOptions` that differ from the config, such as score_threshold=0.5; another
                score comes with the threshold that belongs to it, unless one is given.
                "referring" has no threshold unless it is given here; "semantic" has none.

        Returns:
            at most K masks per prompt, K = 20 tie-breakers in the public weights; MODEL.ADAPTER.NUM_TIE_BREAKERS
            raises it.

        Raises:
            ValueError: no image set, an unknown task or option, an empty prompt or one that is not a text, a bad box.
        """
        timed = Stopwatch(self.model.device) if times else untimed
        request = Request.checked(self.model, self.cfg, prompts, task, stuff, options)
        session = self._session_of(image, timed)
        hints = None
        if boxes is not None or box_labels is not None:
            given = () if boxes is None else boxes
            hints = BoxPrompts.checked(given, box_labels, session.size, len(request.prompts))
        about = {"image": session.image, "path": session.path, "times": getattr(timed, "times", None)}
        with self._lock:
            queries = session.queries(request.prompts, request.options.for_task(task), timed)
            if hints:
                with timed("boxes"):
                    queries = hints.apply(session, queries)
            with timed("post-processing"):
                answer = infer([queries], (task,), request.question(session.size), request.options)
                return request.prediction(answer, **about)

    def predict_batch(
        self,
        images: Iterable[ImageLike],
        prompts: str | Sequence[str],
        task: str = "instance",
        *,
        batch_size: int = 4,
        stuff: str | Sequence[str] | None = None,
        **options: Any,
    ) -> Iterator[Prediction]:
        """Segment what the prompts name in each of many images; `list()` of it is a list.

        Each result equals that of `predict`, up to rounding. An image is read when its turn comes, and results are not
        kept, so memory does not grow with the number of images.

        Args:
            images: each as in `encode`, or an array or tensor [N, ...] of them.
            batch_size: images that pass the encoders together.
            prompts, task, stuff, options: asked of every image; see `predict`. Boxes belong to one image.

        Yields:
            the result of each image, in their order.

        Raises:
            FileNotFoundError, ValueError: as for `encode` and `predict`; names the image by its index from 0.
        """
        if isinstance(images, (str, Path)) or not isinstance(images, Iterable) or getattr(images, "ndim", 4) != 4:
            raise ValueError(f"images are several, got one {type(images).__name__}: predict(prompts, image=...)")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size is a whole number from 1, got {batch_size!r}")
        request = Request.checked(self.model, self.cfg, prompts, task, stuff, options)
        return self._in_batches(iter(images), request, batch_size)

    def _in_batches(self, images: Iterator[ImageLike], request: Request, size: int) -> Iterator[Prediction]:
        # two-stage inference may ask whether an image has any confident query
        chunk = 0 if request.options.two_stage else prompt_chunk(self.cfg)
        first = 0
        while batch := list(islice(images, size)):
            pixels = []
            for index, image in enumerate(batch, start=first):
                with named(f"image {index}"):
                    pixels.append(self._read(image))
            with self._lock:
                results = list(request.batch(self.model, pixels, chunk))
            for image, result in zip(batch, results, strict=True):
                yield replace(result, path=_path_of(image))
            first += len(batch)

    @torch.no_grad()
    def click(
        self,
        points: ArrayLike = (),
        labels: Sequence[int] | None = None,
        *,
        box: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        among: Prediction | None = None,
        image: ImageLike | ImageSession | None = None,
    ) -> Prediction:
        """Segment what clicks or a box point at, or correct a mask (paper Table 3, "Inter Seg").

        Without a mask or result the answer is that of SAM2's image predictor: for a single click the best of its three
        masks. It depends on the arguments alone, so leaving out the last click undoes it.

        Args:
            points: [t, 2], clicks, x y in pixels.
            labels: for each click 1 (positive: on the object) or 0 (negative: beside it); all 1 by default.
            box: x0 y0 x1 y1 in pixels, around the object.
            mask: the mask to correct: one of the logits [4S, 4S] of an earlier result, or any bool [H, W].
            among: a result of `predict` for this image. The mask that the positive clicks and the box hit best is
                corrected; if they hit none, it plays no part.
            image: see `predict`.

        Returns:
            at most one mask, of task "interactive"; its prompt is that of the corrected mask, else "object".

        Raises:
            ValueError: no image set; no clicks, box or mask; a click outside the image; more or fewer labels than
                clicks; a mask or result of another image.
        """
        if mask is not None and among is not None:
            raise ValueError("give mask or among, not both")
        session = self._session_of(image)
        clicks = Clicks.checked(points, labels, box, session.size)
        name, is_thing = "object", True
        if among is not None and (picked := clicks.pick(among)):
            mask, name, is_thing = picked
        question = Question.of(session.size, 1)
        with self._lock:
            queries = clicks.decode(self.model, session.features, mask)
            options = replace(self.model.inference, score="iou")  # clicks have no prompt that a mask could match
            result = infer([queries], ("referring",), question, options)["referring"]
            found, best = result.found(), queries.predicted_iou
        about = {"rule": options.score, "threshold": 0.0, "best_scores": best}
        about |= {"image": session.image, "path": session.path}
        return Prediction.of(found, "interactive", [name], is_thing=[is_thing], **about)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained` loads on any machine: config, weights, tokenizer.

        Each component becomes a .safetensors file, copied from the configured weight files. An earlier save in the
        folder is replaced; an interrupted one leaves a folder that does not load.

        Raises:
            FileNotFoundError: a weight or tokenizer file is gone since it was loaded.
            ValueError: a weight file is damaged or has changed since it was loaded.
            OSError: it cannot be written.
        """
        save_folder(self.cfg, self.sources, Path(folder))

    @classmethod
    def from_pretrained(
        cls, config: str | Path, device: str | None = None, *, download: bool = False
    ) -> OpenWorldSAMPredictor:
        """Load a model by name, such as "released" or "shapes", or a folder that `save_pretrained` wrote.

        Args:
            config: as in `load_config`.
            device: by default MODEL.DEVICE of the config, or the CPU where that does not exist.
            download: fetch the public weights that are missing into the weights folder; says first which and how large.

        Raises:
            FileNotFoundError: the config or a weight file is missing, as after an interrupted save.
            ValueError: the folder is damaged or something else, there is no such device, or a download failed.
        """
        if download:
            fetch_missing(config)
        return cls(config, device=device)


def _path_of(image: ImageLike) -> str | None:
    """Path of an image that is a file."""
    return str(image) if isinstance(image, (str, Path)) else None
