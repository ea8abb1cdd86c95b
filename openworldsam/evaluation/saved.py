"""Predictions of an evaluation and their ground truth as files that openworldsam score reads.

A benchmark's folder has `prediction` and `truth`, each with what its tasks need:
    panoptic.json, panoptic/*.png: COCO panoptic.
    instances.json: COCO results, or COCO annotations of the things. As in LVIS, neg_category_ids are things that an
        image does not have; an image without this entry does not have any that is not annotated. Of things in
        not_exhaustive_category_ids some objects may have no annotation.
    semantic/*.png: contiguous class ids, 255 for none (65535 from 256 classes on).
    referring.json: the mask of each expression.
classes.txt has the class names in the order of semantic labels. The jsons have the category ids of the dataset's own
files, so that predictions can also be scored against those.

images/*.json have the non-image part of each image's answers. An image with such a file is done; an interrupted
evaluation continues with the others. images/*.png are images that are not files, such as those of Shapes. run.json
identifies model and config.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openworldsam.data.preprocessing import read_image
from openworldsam.data.records.coco_json import ImageId, expect
from openworldsam.data.records.instances import LVIS_KEYS
from openworldsam.data.records.labels import read_labels, void_label
from openworldsam.data.records.rle import decode_mask, encode_mask
from openworldsam.evaluation.answer import NO_CLASS, Answer
from openworldsam.utils.files import read_json, regular_file, save_json, save_png, save_text
from openworldsam.utils.panoptic_png import id2rgb, rgb2id

KINDS = ("prediction", "truth")
FILES = {"panoptic": "panoptic.json", "instance": "instances.json", "referring": "referring.json"}


class Saving(NamedTuple):
    """Parent of the benchmarks' folders, and everything that predictions depend on, ready for json."""

    folder: Path
    identity: Mapping[str, Any]


class SavedImage(NamedTuple):
    """An image of a finished evaluation: its path, pixels uint8 [H, W, 3], and prompts."""

    file_name: str
    pixels: np.ndarray
    prompts: list[str]


def claim_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Reserve a folder for predictions of one model and config; several processes may call this at once.

    Args:
        folder: gets run.json.
        identity: what predictions depend on, ready for json.

    Raises:
        ValueError: it has predictions that depend on something else.
    """
    path, wanted = folder / "run.json", json.loads(json.dumps(identity))
    if not path.exists():
        save_json(path, wanted)
    elif (found := read_json(path)) != wanted:
        other = ", ".join(key for key in wanted if wanted[key] != found.get(key)) or "keys"
        raise ValueError(f"{folder} has predictions made with other {other}; use another --output")


class SavedPredictions:
    """The files of one benchmark.

    Args:
        folder: the benchmark's.
        class_names, is_thing: of the contiguous class ids.
        category_ids: class ids in the dataset's own files; the contiguous ones by default.
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
        """Open the files of a finished evaluation for reading.

        Raises:
            FileNotFoundError: there are none.
        """
        try:
            names = regular_file(folder / "classes.txt").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{folder} has no predictions; openworldsam evaluate --save-predictions makes them"
            ) from None
        return cls(folder, names, ())

    def image_ids(self) -> list[ImageId]:
        """List the ids of images that are done, in the order of their files."""
        paths = sorted((self.folder / "images").glob("*.json"))
        return [int(path.stem) if path.stem.isdigit() else read_json(path)["image_id"] for path in paths]

    def image(self, image_id: ImageId) -> SavedImage:
        """Read an image that is done.

        Raises:
            FileNotFoundError: its file was moved or removed.
            ValueError: its pixels have changed since, or a file is damaged.
        """
        copy = self._image_copy(image_id)
        with _marked(self._marker(image_id)) as content:
            file = copy if copy.exists() else content["file_name"]
            pixels = read_image(file)
            if content.get("picture", found := _checksum(pixels)) != found:
                raise ValueError(f"{file} has changed since it was evaluated")
            return SavedImage(str(content["file_name"]), pixels, list(content["prompts"]))

    def answers(self, image_id: ImageId) -> tuple[Answer, Answer]:
        """Read the prediction and the ground truth of an image that is done.

        Raises:
            FileNotFoundError: a PNG was removed.
            ValueError: a file is damaged.
        """
        with _marked(self._marker(image_id)) as content:
            prediction, truth = (self._load_answer(kind, image_id, content[kind]) for kind in KINDS)
        return prediction, truth

    def load(self, inputs: Mapping[str, Any]) -> Answer | None:
        """Read the saved prediction of an image; None if it is not done.

        Args:
            inputs: its image, image_id and prompts.

        Raises:
            ValueError: its pixels or prompts have changed since, or a file is damaged or was removed.
        """
        image_id = inputs["image_id"]
        path = self._marker(image_id)
        if not path.exists():
            return None
        try:
            content = read_json(path)
            if content.get("picture") != _checksum(_pixels(inputs)):
                raise ValueError("its image has changed")
            if content["prompts"] != list(inputs["prompts"]):
                raise ValueError("it has other prompts")
            return self._load_answer(KINDS[0], image_id, content[KINDS[0]])
        except (KeyError, TypeError, AttributeError, OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be reused: {error}; remove it, or use another --output") from error

    def _load_answer(self, kind: str, image_id: ImageId, saved: Mapping[str, Any]) -> Answer:
        panoptic = semantic = referring = None
        for entry in (*saved.get("panoptic", ()), *saved.get("instance", ())):
            if entry["category_id"] not in range(len(self.class_names)):
                raise ValueError(f"{self._marker(image_id)} has the class {entry['category_id']!r}, which there is not")
        if "panoptic" in saved:
            panoptic = (rgb2id(read_image(self._png(kind, "panoptic", image_id))), saved["panoptic"])
        if "semantic" in saved:
            semantic = read_labels(self._png(kind, "semantic", image_id)).astype(np.int64)
            semantic[semantic == self.void] = NO_CLASS
        if "referring" in saved:
            referring = [decode_mask(code, code["size"]) for code in saved["referring"]]
        return Answer(panoptic, saved.get("instance"), semantic, referring)

    def save(
        self,
        inputs: Mapping[str, Any],
        prediction: Answer,
        truth: Answer,
        *,
        asked: Mapping[str, Sequence[int]] | None = None,
        loaded: bool = False,
    ) -> None:
        """Write an image.

        Args:
            inputs: its image, image_id, file_name, height and width, and its prompts.
            prediction, truth: answers to the same tasks.
            asked: absent and not_exhaustive classes, see `Truth`.
            loaded: the prediction is from `load`, so its PNGs exist; the ground truth is written anew.

        Raises:
            OSError: a file cannot be written.
        """
        content = {key: inputs[key] for key in ("image_id", "file_name", "height", "width", "prompts")}
        content["asked"] = dict(asked or {})
        pixels = _pixels(inputs)
        content["picture"] = _checksum(pixels)
        for kind, answer in zip(KINDS, (prediction, truth), strict=True):
            exists = loaded and kind == KINDS[0]
            content[kind] = self._save_answer(kind, inputs["image_id"], answer, pngs=not exists)
        if not Path(inputs["file_name"]).exists():
            save_png(self._image_copy(inputs["image_id"]), pixels)
        # last, as it marks the others as complete
        save_json(self._marker(inputs["image_id"]), content)

    def _save_answer(self, kind: str, image_id: ImageId, answer: Answer, *, pngs: bool) -> dict[str, Any]:
        """Write the PNGs of an answer, if `pngs`; return the rest of it by task."""
        content: dict[str, Any] = {}
        if answer.panoptic is not None:
            if pngs:
                save_png(self._png(kind, "panoptic", image_id), id2rgb(answer.panoptic[0]))
            content["panoptic"] = answer.panoptic[1]
        if answer.instance is not None:
            content["instance"] = [{k: v for k, v in each.items() if k != "image_id"} for each in answer.instance]
        if answer.semantic is not None:
            classless = (answer.semantic < 0) | (answer.semantic >= len(self.class_names))
            labels = np.where(classless, self.void, answer.semantic).astype(np.min_scalar_type(self.void))
            if pngs:
                save_png(self._png(kind, "semantic", image_id), labels)
            content["semantic"] = True
        if answer.referring is not None:
            content["referring"] = [encode_mask(mask) for mask in answer.referring]
        return content

    def finish(self, image_ids: Iterable[ImageId]) -> None:
        """Write the jsons of all images that are done; to be called on one process."""
        markers = [path for path in map(self._marker, image_ids) if path.exists()]
        images = [read_json(path) for path in markers]
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
                "segments_info": [self._with_category_id(segment) for segment in image[kind]["panoptic"]],
            }
            for image in images
        ]
        return {**self._listing(images), "annotations": annotations}

    def _instances(self, kind: str, images: Sequence[Mapping[str, Any]]) -> Any:
        found = [
            {"image_id": image["image_id"], **self._with_category_id(instance)}
            for image in images
            for instance in image[kind]["instance"]
        ]
        if kind == "prediction":
            return found
        listing = self._listing(images)
        things = [category for category in listing["categories"] if category["isthing"]]
        annotations = [{"id": index, **instance} for index, instance in enumerate(found, start=1)]
        for image, entry in zip(images, listing["images"], strict=True):
            asked = {key: [c for c in image.get("asked", {}).get(key, ()) if self.is_thing[c]] for key in LVIS_KEYS}
            there = {instance["category_id"] for instance in image[kind]["instance"]}
            if asked["not_exhaustive"] or len(there | set(asked["absent"])) < len(things):
                entry |= {LVIS_KEYS[key]: [self.category_ids[c] for c in classes] for key, classes in asked.items()}
        return {**listing, "categories": things, "annotations": annotations}

    def _referring(self, kind: str, images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        annotations = [
            {"id": f"{image['image_id']}_{place}", "image_id": image["image_id"], "sentences": [text]}
            | {"segmentation": code}
            for image in images
            for place, (text, code) in enumerate(zip(image["prompts"], image[kind]["referring"], strict=True))
        ]
        return {**self._listing(images), "annotations": annotations}

    def _listing(self, images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the images and categories of a json."""
        classes = zip(self.category_ids, self.class_names, self.is_thing, strict=True)
        return {
            "images": [{"id": i["image_id"], **{k: i[k] for k in ("file_name", "height", "width")}} for i in images],
            "categories": [{"id": id_, "name": name, "isthing": int(thing)} for id_, name, thing in classes],
        }

    def _with_category_id(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Replace a contiguous class id by the id in the dataset's own files."""
        return {**entry, "category_id": self.category_ids[entry["category_id"]]}

    def _marker(self, image_id: ImageId) -> Path:
        return self.folder / "images" / f"{_stem(image_id)}.json"

    def _image_copy(self, image_id: ImageId) -> Path:
        return self._marker(image_id).with_suffix(".png")

    def _png(self, kind: str, task: str, image_id: ImageId) -> Path:
        return self.folder / kind / task / f"{_stem(image_id)}.png"


def _stem(image_id: ImageId) -> str:
    """The name of an image's files: 12 digits, or a text; its checksum if it cannot be a name on every system."""
    if isinstance(image_id, int):
        return f"{image_id:012d}"
    plain = re.fullmatch(r"\w[\w-]{,99}", image_id, re.ASCII) and not image_id.isdigit()
    return image_id if plain else hashlib.sha256(image_id.encode()).hexdigest()


@contextmanager
def _marked(path: Path) -> Iterator[dict[str, Any]]:
    """Read the json of an image; a missing entry becomes a ValueError that names the file."""
    with expect(path, "file of openworldsam evaluate"):
        yield read_json(path)


def _pixels(inputs: Mapping[str, Any]) -> np.ndarray:
    """Return the image, uint8 [H, W, 3]."""
    return inputs["image"].permute(1, 2, 0).cpu().numpy()


def _checksum(pixels: np.ndarray) -> int:
    """Return a checksum of an image; its id or name may be given to another one when files are added."""
    return zlib.crc32(np.ascontiguousarray(pixels).data)
