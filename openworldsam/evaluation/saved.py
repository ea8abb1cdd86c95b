"""Predictions of an evaluation and their ground truth as files that tools/score_predictions.py reads.

Below a benchmark's folder `prediction` and `truth` have alike, as far as its tasks need them:
    panoptic.json, panoptic/*.png: COCO panoptic.
    instances.json: COCO results, and COCO annotations of the things.
    semantic/*.png: contiguous class ids, 255 (from 256 classes on 65535) where there is none.
    referring.json: the mask of each expression.
classes.txt has the class names in the order of semantic labels. The jsons have the category ids of the dataset's own
files, so that predictions can also be scored against those.

images/*.json hold what is no picture of each image's answers. An image that has one is done; an evaluation that was
interrupted goes on with the others. images/*.png are the images that are no files, such as those of Shapes. run.json
says of what model and config they are.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from panopticapi.utils import id2rgb, rgb2id
from pycocotools import mask as mask_util

from openworldsam.data.preprocessing import read_image
from openworldsam.data.records.coco_json import lack
from openworldsam.data.records.labels import read_labels
from openworldsam.data.records.rle import encode_mask
from openworldsam.evaluation.answer import NO_CLASS, Answer
from openworldsam.utils.files import named, save_json, save_png, save_text

KINDS = ("prediction", "truth")
FILES = {"panoptic": "panoptic.json", "instance": "instances.json", "referring": "referring.json"}
EXPRESSIONS = 10_000
"""More than an image has: an expression's id is its image's times this, plus its place."""


class Saving(NamedTuple):
    """Where predictions go, a folder per benchmark below this one; and what they depend on, as json can hold it."""

    folder: Path
    identity: Mapping[str, Any]


class SavedImage(NamedTuple):
    """An image of a finished evaluation: its file's name, uint8 [H, W, 3], and what it was asked."""

    file_name: str
    picture: np.ndarray
    prompts: list[str]


def claim_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Have a folder for predictions of one model and config; several processes may do so at a time.

    Args:
        folder: gets run.json.
        identity: what predictions depend on, as json can hold it.

    Raises:
        ValueError: it has predictions that depend on something else.
    """
    path, own = folder / "run.json", json.loads(json.dumps(identity))
    if not path.exists():
        save_json(path, own)
    elif (there := _read(path)) != own:
        other = ", ".join(key for key in own if own[key] != there.get(key)) or "keys"
        raise ValueError(f"{folder} has predictions made with other {other}; use another --output")


def void_label(num_classes: int) -> int:
    """The label of pixels without a class in a PNG of contiguous class ids: 255, or 65535 from 256 classes on."""
    return 255 if num_classes < 256 else 65_535


class SavedPredictions:
    """The files of one benchmark.

    Args:
        folder: of the benchmark.
        class_names, is_thing: of the contiguous class ids.
        category_ids: their ids in the dataset's own files; the contiguous ones by default.
    """

    def __init__(
        self,
        folder: Path,
        class_names: Sequence[str],
        is_thing: Sequence[bool],
        category_ids: Sequence[int] | None = None,
    ) -> None:
        self.folder, self.class_names, self.is_thing = folder, class_names, is_thing
        self.category_ids = list(category_ids or range(len(class_names)))
        self.void = void_label(len(class_names))

    @classmethod
    def written(cls, folder: Path) -> SavedPredictions:
        """Those of a finished evaluation, for reading.

        Raises:
            FileNotFoundError: there is none.
        """
        try:
            names = (folder / "classes.txt").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            raise FileNotFoundError(f"{folder} has no predictions; tools/eval_net.py --save-predictions") from None
        return cls(folder, names, ())

    def image_ids(self) -> list[int]:
        """The images that are done, ascending."""
        return sorted(int(path.stem) for path in (self.folder / "images").glob("*.json"))

    def image(self, image_id: int) -> SavedImage:
        """An image that is done.

        Raises:
            FileNotFoundError: it is not where it was.
            ValueError: it is another picture than then, or a file is damaged.
        """
        own = self._picture(image_id)
        with _marked(self._marker(image_id)) as content:
            file = own if own.exists() else content["file_name"]
            picture = read_image(file)
            if content.get("picture", found := _checksum(picture)) != found:
                raise ValueError(f"{file} is another picture than when it was evaluated")
            return SavedImage(Path(content["file_name"]).name, picture, content["prompts"])

    def answers(self, image_id: int) -> tuple[Answer, Answer]:
        """The prediction and the ground truth of an image that is done.

        Raises:
            FileNotFoundError: a PNG was removed.
            ValueError: a file is damaged.
        """
        with _marked(self._marker(image_id)) as content:
            prediction, truth = (self._load_answer(kind, image_id, content[kind]) for kind in KINDS)
        return prediction, truth

    def load(self, inputs: Mapping[str, Any]) -> Answer | None:
        """The saved prediction of an image; None if it is not done.

        Args:
            inputs: its image, image_id and prompts.

        Raises:
            ValueError: it was another picture or asked otherwise, or a file is damaged or was removed.
        """
        image_id = inputs["image_id"]
        path = self._marker(image_id)
        if not path.exists():
            return None
        try:
            content = _read(path)
            if content.get("picture") != _checksum(_picture_of(inputs)):
                raise ValueError("it was another picture")
            if content["prompts"] != list(inputs["prompts"]):
                raise ValueError("it was asked for other classes or expressions")
            return self._load_answer(KINDS[0], image_id, content[KINDS[0]])
        except (KeyError, TypeError, AttributeError, OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be taken over: {error}; remove it, or use another --output") from error

    def _load_answer(self, kind: str, image_id: int, saved: Mapping[str, Any]) -> Answer:
        panoptic = semantic = referring = None
        if "panoptic" in saved:
            panoptic = (rgb2id(read_image(self._png(kind, "panoptic", image_id))), saved["panoptic"])
        if "semantic" in saved:
            semantic = read_labels(self._png(kind, "semantic", image_id)).astype(np.int64)
            semantic[semantic == self.void] = NO_CLASS
        if "referring" in saved:
            referring = [mask_util.decode(code).astype(bool) for code in saved["referring"]]
        return Answer(panoptic, saved.get("instance"), semantic, referring)

    def save(self, inputs: Mapping[str, Any], prediction: Answer, truth: Answer, *, loaded: bool = False) -> None:
        """Write an image.

        Args:
            inputs: its image, image_id, file_name, height and width, and its prompts.
            prediction, truth: answers to the same tasks.
            loaded: the prediction is that of `load`; its pictures stay, and the truth is written as it is now.

        Raises:
            OSError: a file cannot be written.
        """
        content = {key: inputs[key] for key in ("image_id", "file_name", "height", "width", "prompts")}
        picture = _picture_of(inputs)
        content["picture"] = _checksum(picture)
        for kind, answer in zip(KINDS, (prediction, truth), strict=True):
            there = loaded and kind == KINDS[0]
            content[kind] = self._save_answer(kind, inputs["image_id"], answer, pictures=not there)
        if not Path(inputs["file_name"]).exists():
            save_png(self._picture(inputs["image_id"]), picture)
        # the last file: it says that the others are complete
        save_json(self._marker(inputs["image_id"]), content)

    def _save_answer(self, kind: str, image_id: int, answer: Answer, *, pictures: bool) -> dict[str, Any]:
        """Write the pictures of an answer, if so asked; returns the rest of it by task."""
        content: dict[str, Any] = {}
        if answer.panoptic is not None:
            if pictures:
                save_png(self._png(kind, "panoptic", image_id), id2rgb(answer.panoptic[0]))
            content["panoptic"] = answer.panoptic[1]
        if answer.instance is not None:
            content["instance"] = [{k: v for k, v in each.items() if k != "image_id"} for each in answer.instance]
        if answer.semantic is not None:
            classless = (answer.semantic < 0) | (answer.semantic >= len(self.class_names))
            labels = np.where(classless, self.void, answer.semantic).astype(np.min_scalar_type(self.void))
            if pictures:
                save_png(self._png(kind, "semantic", image_id), labels)
            content["semantic"] = True
        if answer.referring is not None:
            content["referring"] = [encode_mask(mask) for mask in answer.referring]
        return content

    def finish(self, image_ids: Iterable[int]) -> None:
        """Write the jsons of all the images together, those that are done; one process is to do it."""
        markers = [path for path in map(self._marker, image_ids) if path.exists()]
        images = [_read(path) for path in markers]
        names = "".join(f"{name}\n" for name in self.class_names)
        save_text(self.folder / "classes.txt", names)
        makers = {"panoptic": self._panoptic, "instance": self._instances, "referring": self._referring}
        for kind in KINDS:
            for task, make in makers.items():
                if images and task in images[0][kind]:
                    save_json(self.folder / kind / FILES[task], make(kind, images))

    def _panoptic(self, kind: str, images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        annotations = [
            {
                "image_id": image["image_id"],
                "file_name": self._png(kind, "panoptic", image["image_id"]).name,
                "segments_info": [self._with_own_id(segment) for segment in image[kind]["panoptic"]],
            }
            for image in images
        ]
        return {**self._listing(images), "annotations": annotations}

    def _instances(self, kind: str, images: Sequence[Mapping[str, Any]]) -> Any:
        found = [
            {"image_id": image["image_id"], **self._with_own_id(instance)}
            for image in images
            for instance in image[kind]["instance"]
        ]
        if kind == "prediction":
            return found
        listing = self._listing(images)
        things = [category for category in listing["categories"] if category["isthing"]]
        annotations = [{"id": index, **instance} for index, instance in enumerate(found, start=1)]
        return {**listing, "categories": things, "annotations": annotations}

    def _referring(self, kind: str, images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        annotations = [
            {"id": image["image_id"] * EXPRESSIONS + place, "image_id": image["image_id"], "sentences": [text]}
            | {"segmentation": code}
            for image in images
            for place, (text, code) in enumerate(zip(image["prompts"], image[kind]["referring"], strict=True))
        ]
        return {**self._listing(images), "annotations": annotations}

    def _listing(self, images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The images and categories of a json."""
        named = zip(self.category_ids, self.class_names, self.is_thing, strict=True)
        return {
            "images": [{"id": i["image_id"], **{k: i[k] for k in ("file_name", "height", "width")}} for i in images],
            "categories": [{"id": id_, "name": name, "isthing": int(thing)} for id_, name, thing in named],
        }

    def _with_own_id(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        return {**entry, "category_id": self.category_ids[entry["category_id"]]}

    def _marker(self, image_id: int) -> Path:
        return self.folder / "images" / f"{image_id:012d}.json"

    def _picture(self, image_id: int) -> Path:
        return self._marker(image_id).with_suffix(".png")

    def _png(self, kind: str, task: str, image_id: int) -> Path:
        return self.folder / kind / task / f"{image_id:012d}.png"


@contextmanager
def _marked(path: Path) -> Iterator[dict[str, Any]]:
    """The json of an image; what it lacks becomes a ValueError that names it."""
    try:
        yield _read(path)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not what tools/eval_net.py writes: {lack(error)}") from error


def _read(path: Path) -> dict[str, Any]:
    with named(path):
        content: dict[str, Any] = json.loads(path.read_bytes())
    return content


def _picture_of(inputs: Mapping[str, Any]) -> np.ndarray:
    """uint8 [H, W, 3]."""
    return inputs["image"].permute(1, 2, 0).cpu().numpy()


def _checksum(picture: np.ndarray) -> int:
    """Of the pixels: an id or a name may come to be another picture's, as when files are added."""
    return zlib.crc32(np.ascontiguousarray(picture).data)
