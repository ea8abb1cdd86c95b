"""Score saved predictions, of this or any other model, against ground truth.

`openworldsam score --help` has the formats.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from openworldsam.data.datasets.benchmarks import read_classes
from openworldsam.data.preprocessing import read_image
from openworldsam.data.records.coco_json import (
    ImageId,
    Images,
    by_id,
    contiguous_ids,
    expect,
    flag,
    is_crowd,
    listed_categories,
    read_categories,
    segment_area,
    whole,
)
from openworldsam.data.records.labels import LABEL_SUFFIXES, read_labels, void_label
from openworldsam.data.records.rle import Segmentation, decode_mask, empty_mask
from openworldsam.evaluation.cityscapes_files import find_truths, read_predictions, read_truth
from openworldsam.evaluation.metrics.accumulator import Scores
from openworldsam.evaluation.metrics.cityscapes import CityscapesAP
from openworldsam.evaluation.metrics.concept import ConceptScores
from openworldsam.evaluation.metrics.instance import InstanceAP
from openworldsam.evaluation.metrics.panoptic import PanopticQuality
from openworldsam.evaluation.metrics.referring import GeneralizedReferringScores, ReferringScores
from openworldsam.evaluation.metrics.semantic import SemanticScores
from openworldsam.utils.files import by_stem, named, output_file, read_any_json, read_json, regular_file, save_json
from openworldsam.utils.launch import say, user_errors
from openworldsam.utils.panoptic_png import rgb2id

TASKS = ("panoptic", "instance", "cityscapes", "concept", "semantic", "referring", "generalized_referring")
_PANOPTIC = "COCO panoptic json"


class Report(NamedTuple):
    """Scores, the name of every class id, and the ids (of images, or expressions) that have no prediction."""

    scores: Scores
    names: Mapping[int, str]
    without_prediction: Sequence[ImageId] = ()

    def content(self) -> dict[str, Any]:
        """Return the content of the file: the metrics by name, per_class by class name, without_prediction."""
        per_class = {self.names[category]: metrics for category, metrics in self.scores.per_class.items()}
        return {**self.scores.overall, "per_class": per_class, "without_prediction": list(self.without_prediction)}


def score_panoptic(truth: Path, truth_dir: Path, predicted: Path, predicted_dir: Path) -> Report:
    """Score a json and a folder of PNGs against another such pair.

    Predictions of images that the ground truth does not annotate are ignored, as in panopticapi.

    Raises:
        FileNotFoundError: a json or PNG is missing.
        ValueError: an image has no prediction, a file is damaged, or `PanopticQuality` refuses an image.
    """
    categories = read_categories(truth)
    quality = PanopticQuality({category.id: category.is_thing for category in categories})
    annotations, predictions = _panoptic_annotations(truth), _panoptic_annotations(predicted)
    with expect(predicted, _PANOPTIC):
        meant = {id_: categories[index].id for id_, index in contiguous_ids(read_json(predicted), categories).items()}
    if missing := [image_id for image_id in annotations if image_id not in predictions]:
        raise ValueError(f"{predicted} has no prediction for {len(missing)} images, such as {missing[0]}")
    for image_id, annotation in _progress(annotations.items()):
        with expect(truth, _PANOPTIC), named(truth):
            truth_map = rgb2id(read_image(truth_dir / annotation["file_name"]))
            segments = annotation["segments_info"]
            truth_segments = [(*_ids(s), is_crowd(s)) for s in segments]
            areas = {s["id"]: segment_area(s) for s in segments}
        with expect(predicted, _PANOPTIC), named(predicted):
            predicted_map = rgb2id(read_image(predicted_dir / predictions[image_id]["file_name"]))
            segments = predictions[image_id]["segments_info"]
            predicted_segments = [(id_, meant.get(category, category)) for id_, category in map(_ids, segments)]
        with named(f"{predicted} against {truth}: image {image_id}"):
            quality.update(predicted_map, predicted_segments, truth_map, truth_segments, areas)
    return Report(quality.compute(), {category.id: category.name for category in categories})


def score_instance(truth: Path, predicted: Path, iou_type: str = "segm") -> Report:
    """Score a list of COCO results against COCO annotations.

    Raises:
        FileNotFoundError: a json is missing.
        ValueError: a json is damaged, the results name an image that the ground truth does not have, or `InstanceAP`
            refuses an image.
    """
    needed = ("category_id", "area", "bbox" if iou_type == "bbox" else "segmentation")
    names, images, annotations = _read_instances(truth, needed)
    with expect(predicted, "list of COCO results"):
        results = _by_image(predicted, _read_results(predicted), images, ("category_id", "score"))
        precision = InstanceAP(names, iou_type)
        for image_id, image in _progress(images.items()):
            with named(f"{predicted} against {truth}: image {image_id}"):
                precision.update(image_id, _size(image), results[image_id], annotations[image_id])
    return Report(precision.compute(), names, [image_id for image_id in images if not results[image_id]])


def score_cityscapes(truth_dir: Path, predicted: Path, listing: Path | None = None) -> Report:
    """Score instances by Cityscapes' AP.

    Args:
        truth_dir: see `find_truths`.
        predicted: a json of COCO results, or a folder, see `read_predictions`.
        listing: a json of the images whose ids the results have; by default these are the images' names.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: one is damaged, or results name an image without ground truth.
    """
    truths = find_truths(truth_dir)
    things = {c.id: c.name for c in read_classes("cityscapes_19") if c.is_thing}
    scores = CityscapesAP(things)
    if predicted.is_dir():
        found = read_predictions(predicted, truths)
    else:
        grouped = _cityscapes_results(truths, predicted, listing)
        found = (grouped[name] for name in truths)
    without = []
    for (name, path), instances in _progress(zip(truths.items(), found, strict=True)):
        with named(path):
            scores.update(instances, *read_truth(path))
        without += [] if instances else [name]
    return Report(scores.compute(), things, without)


def _cityscapes_results(
    truths: Mapping[str, Path], predicted: Path, listing: Path | None
) -> dict[ImageId, list[Mapping[str, Any]]]:
    """Group COCO results by the name of their image."""
    names: dict[ImageId, str] = {name: name for name in truths}
    if listing:
        with expect(listing, "COCO json with images"), named(listing):
            images = by_id(read_json(listing)["images"])
            names = {id_: re.sub("(_gtFine)?_leftImg8bit$", "", Path(x["file_name"]).stem) for id_, x in images.items()}
            if strangers := set(names.values()) - truths.keys():
                raise ValueError(f"it has {len(strangers)} images without ground truth, such as {min(strangers)}")
    with expect(predicted, "list of COCO results"):
        results = _by_image(predicted, _read_results(predicted), names, ("category_id", "score", "segmentation"))
    return defaultdict(list, {names[id_]: instances for id_, instances in results.items()})


def score_concept(truths: Sequence[Path], predicted: Path) -> Report:
    """Score a list of COCO results as the answers to phrases that may be absent.

    Raises:
        FileNotFoundError: a json is missing.
        ValueError: a json is damaged, two list other images, an unknown image or category is named, or `ConceptScores`
            refuses an image.
    """
    files = [_read_instances(truth, ("category_id", "segmentation")) for truth in truths]
    names, images, _ = files[0]
    for truth, (_, others, _) in zip(truths, files, strict=True):
        if others.keys() != images.keys():
            raise ValueError(f"{truth} and {truths[0].name} list other images; annotators need the same ones")
    with expect(predicted, "list of COCO results"):
        results = _by_image(predicted, _read_results(predicted), images, ("category_id", "score", "segmentation"))
        if unknown := {r["category_id"] for found in results.values() for r in found} - names.keys():
            raise ValueError(f"{predicted} has the category {min(unknown)}, not among those of {truths[0].name}")
    scores = ConceptScores()
    for image_id, image in _progress(images.items()):
        annotations = [by_image[image_id] for _, _, by_image in files]
        if not all(listed[image_id].get("is_instance_exhaustive", True) for _, listed, _ in files):
            continue
        with expect(truths[0], "COCO json of instances"), named(f"{predicted} against {truths[0]}: image {image_id}"):
            phrases = {a["category_id"] for annotated in annotations for a in annotated}
            phrases |= set(names if (absent := image.get("neg_category_ids")) is None else absent)
            if strangers := phrases - names.keys():
                raise ValueError(f"it has the category {min(strangers)!r}, not among those of {truths[0].name}")
            phrases -= set(image.get("not_exhaustive_category_ids") or ())
            scores.update(_size(image), phrases, results[image_id], *annotations)
    return Report(scores.compute(), names)


def score_semantic(truth_dir: Path, predicted_dir: Path, classes: Path, ignore: int | None = None) -> Report:
    """Score a folder of label images against another, subfolders included; files belong together by their stems.

    Predictions of images without ground truth are ignored.

    Args:
        truth_dir, predicted_dir: the folders.
        classes: see `read_class_names`.
        ignore: label of pixels that do not count, by default `void_label`. A predicted label that is no class counts
            as no prediction.

    Raises:
        FileNotFoundError: there is no ground truth, or an image without a prediction.
        ValueError: an image is unreadable or has several channels, or `SemanticScores` refuses it.
    """
    names = read_class_names(classes)
    scores = SemanticScores(len(names), void_label(len(names)) if ignore is None else ignore)
    files, predicted = by_stem(truth_dir, LABEL_SUFFIXES), by_stem(predicted_dir, LABEL_SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{truth_dir} has no PNG or TIFF; it must be the folder of the ground truth")
    if missing := sorted(files.keys() - predicted.keys()):
        lacking = predicted_dir / files[missing[0]].relative_to(truth_dir)
        raise FileNotFoundError(f"{len(missing)} of {len(files)} predictions are missing, such as {lacking}")
    for stem, file in _progress(files.items()):
        labels, truth = read_labels(predicted[stem]), read_labels(file)
        with named(file):
            scores.update(labels, truth)
    return Report(scores.compute(), dict(enumerate(names)))


def score_referring(truth: Path, predicted: Path, *, generalized: bool = False) -> Report:
    """Score the masks of expressions.

    An annotation with an empty list of sentences is no expression. To score each sentence of an object separately, give
    it an annotation in both files.

    Raises:
        FileNotFoundError: a json is missing.
        ValueError: a json is damaged, or a prediction has an unknown id, an id twice, or another size.
    """
    content = read_json(truth)
    with expect(truth, "COCO json of expressions"), named(truth):
        images = by_id(content["images"])
        objects = _by_key("id", [a for a in content["annotations"] if a.get("sentences", True)])
        truths = {i: (_code(a), _size(images[a["image_id"]])) for i, a in objects.items()}
    with expect(predicted, "COCO json of predicted expressions"):
        results = _read_results(predicted)
        with named(predicted):
            predictions = {i: _code(result) for i, result in _by_key("id", results).items()}
    if unknown := sorted(predictions.keys() - truths.keys(), key=str):
        raise ValueError(f"{predicted} has predictions for {len(unknown)} unknown ids, such as {unknown[0]!r}")
    scores = GeneralizedReferringScores() if generalized else ReferringScores()
    for expression, (code, size) in _progress(truths.items()):
        with named(f"{truth}: annotation {expression}"):
            truth_mask = decode_mask(empty_mask(size) if code is None else code, size)
        with named(f"{predicted}: prediction {expression}"):
            scores.update(decode_mask(predictions.get(expression) or empty_mask(size), size), truth_mask)
    return Report(scores.compute(), {}, [expression for expression in truths if expression not in predictions])


def _code(expression: Mapping[str, Any]) -> Segmentation | None:
    """Return the mask of an expression, None if it has no target; an empty list if the mask is empty or null."""
    return None if flag(expression, "no_target") else expression["segmentation"] or []


def read_class_names(path: Path) -> list[str]:
    """Read class names in the order of their labels, from 0.

    Args:
        path: a text file with a name per line; or a .json with a list of names, or of objects with a "name", or names
            by label, maybe under "classes" or "categories".

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged or empty, has a name twice, or ids other than 0, 1, 2, ...
    """
    if path.suffix.lower() != ".json":
        with named(path):
            lines = regular_file(path).read_text(encoding="utf-8-sig").rstrip().splitlines()
            names = [line.strip() for line in lines]
    else:
        with expect(path, "list of classes"), named(path):
            content = read_any_json(path)
            listed = content if isinstance(content, list) else content.get("classes") or content["categories"]
            if isinstance(listed, dict):  # as a description of custom data may have it
                listed = sorted(({"id": int(id_), "name": name} for id_, name in listed.items()), key=itemgetter("id"))
            entries = [{"name": entry} if isinstance(entry, str) else entry for entry in listed]
            names = [entry["name"] for entry in entries]
        if any(entry.get("id", index) != index for index, entry in enumerate(entries)):
            raise ValueError(f"{path} must have the ids 0, 1, 2, ... in this order; they are the labels")
    _check_names(path, names)
    return names


def _read_instances(
    path: Path, needed: Sequence[str]
) -> tuple[dict[int, str], Images, dict[ImageId, list[Mapping[str, Any]]]]:
    """Read the category names, the images, and the annotations by image of a COCO json."""
    with expect(path, "COCO json of instances"):
        content = read_json(path)
        listed = listed_categories(content)
        names = {category["id"]: category["name"] for category in listed}
        with named(path):
            images = by_id(content["images"])
        annotations = _by_image(path, content["annotations"], images, needed)
    _check_names(path, [category["name"] for category in listed])
    if len(names) < len(listed):
        raise ValueError(f"{path} has {len(listed)} categories with only {len(names)} ids")
    return names, images, annotations


def _check_names(path: Path, names: Sequence[str]) -> None:
    if not all(isinstance(name, str) and name for name in names) or not names or len(set(names)) < len(names):
        raise ValueError(f"{path} must name all its classes, each differently")


def _by_image(
    path: Path, annotations: Sequence[Mapping[str, Any]], images: Mapping[ImageId, Any], needed: Sequence[str]
) -> dict[ImageId, list[Mapping[str, Any]]]:
    """Group annotations by image; KeyError if one lacks an entry, ValueError if its image is unknown."""
    grouped = defaultdict(list)
    for annotation in annotations:
        if absent := [key for key in needed if key not in annotation]:
            raise KeyError(absent[0])
        grouped[annotation["image_id"]].append(annotation)
    if unknown := sorted(grouped.keys() - images.keys(), key=str):
        raise ValueError(f"{path} has {len(unknown)} images that the ground truth does not list: {unknown[0]}, ...")
    return grouped


def _panoptic_annotations(path: Path) -> dict[ImageId, Mapping[str, Any]]:
    content = read_json(path)
    with expect(path, _PANOPTIC), named(path):
        return _by_key("image_id", content["annotations"])


def _by_key(key: str, annotations: Sequence[Mapping[str, Any]]) -> dict[ImageId, Mapping[str, Any]]:
    """Index annotations by an id; ValueError if one is there twice."""
    found = {annotation[key]: annotation for annotation in annotations}
    if len(found) < len(annotations):
        raise ValueError(f"{len(annotations)} annotations with only {len(found)} ids")
    return found


def _ids(segment: Mapping[str, Any]) -> tuple[int, int]:
    """Return the id and the category id of a segment."""
    return whole(segment["id"], "the id of a segment"), whole(segment["category_id"], "the category id of a segment")


def _size(image: Mapping[str, Any]) -> tuple[int, int]:
    return image["height"], image["width"]


def _read_results(path: Path) -> list[dict[str, Any]]:
    """Read COCO results: a list, or the annotations of an object."""
    content = read_any_json(path)
    return content if isinstance(content, list) else content["annotations"]


def _progress(items: Any) -> Any:
    return tqdm(items, unit="image", disable=None)  # None: only on a terminal


def run(args: argparse.Namespace) -> None:
    """Run the command; exit with status 2 after a user error."""
    with user_errors():
        output_file(args.output)  # an error before the work
        report = _score(args)
        save_json(args.output, report.content(), indent=1)
    for name, value in report.scores.overall.items():
        print(f"{name:<20}{'not available' if value is None else f'{value:.2f}':>14}")
    if missing := report.without_prediction:
        say(f"without prediction: {len(missing)}, such as {missing[0]}; counted as nothing found")


def _score(args: argparse.Namespace) -> Report:
    if len(args.gt) > 1 and args.task != "concept":
        raise ValueError(f"--gt takes one file for --task {args.task}, got {len(args.gt)}")
    truth, predicted = next(iter(args.gt), None), args.pred
    if args.task == "cityscapes":
        if not args.gt_dir or not (predicted or args.pred_dir):
            raise ValueError("--task cityscapes needs --gt-dir, and --pred or --pred-dir")
        return score_cityscapes(args.gt_dir, predicted or args.pred_dir, truth)
    if args.task == "semantic":
        truth, predicted = args.gt_dir or truth, args.pred_dir or predicted
    if truth is None or predicted is None:
        raise ValueError(f"--task {args.task} needs --gt and --pred; semantic takes --gt-dir and --pred-dir as well")
    if args.task == "panoptic":
        folders = [args.gt_dir or truth.with_suffix(""), args.pred_dir or predicted.with_suffix("")]
        return score_panoptic(truth, folders[0], predicted, folders[1])
    if args.task == "instance":
        return score_instance(truth, predicted, args.iou_type)
    if args.task == "concept":
        return score_concept(args.gt, predicted)
    if args.task.endswith("referring"):
        return score_referring(truth, predicted, generalized=args.task == "generalized_referring")
    if args.classes is None:
        raise ValueError("--task semantic needs --classes, a file with a class name per line")
    return score_semantic(truth, predicted, args.classes, args.ignore)
