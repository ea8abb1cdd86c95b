"""COCO: makes the filtered list of training images, that of the others and the semantic PNGs; checks everything."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openworldsam.data.datasets.catalog import VOID
from openworldsam.data.datasets.coco import CATEGORIES, DATASETS
from openworldsam.data.datasets.referring import REFERRING
from openworldsam.data.prepare.plan import EXAMPLES, Plan
from openworldsam.data.prepare.referring import read_refs
from openworldsam.data.records.coco_json import lack
from openworldsam.data.records.panoptic import PanopticRecord, load_panoptic
from openworldsam.data.records.record import semantic_map
from openworldsam.utils.files import find_missing, read_json, save_json, save_png
from openworldsam.utils.launch import say
from openworldsam.utils.workers import for_each

EXPECTED_IMAGES = {"train": 118_287, "val": 5_000}
SPLITS = {"train": DATASETS["coco_2017_train_panoptic_full"], "val": DATASETS["coco_2017_val_panoptic_openworldsam"]}
FILTERED = DATASETS["coco_2017_train_panoptic_openworldsam"].json
HELD_OUT = DATASETS["coco_2017_train_panoptic_held_out"].json

_README = "datasets/README.md says how to get COCO"


def make_coco(
    plan: Plan,
    *,
    splits: Sequence[str],
    refs: Path | None,
    karpathy: Path | None,
    karpathy_splits: Sequence[str],
    check: bool,
) -> list[str]:
    """Make or check COCO's filtered list and semantic PNGs, and list the images that the former leaves out.

    Args:
        plan: has the folder of all datasets and the number of processes.
        splits: "train", "val" or both.
        refs: RefCOCOg's `refs(umd).p`, if it is not under the root.
        karpathy: Karpathy's `dataset_coco.json`, to remove the images of `karpathy_splits` too.
        karpathy_splits: "val", "test" or both.
        check: check everything instead of making it.

    Returns:
        problems with the data.

    Raises:
        OSError, ValueError: a file is missing, damaged, in another format or cannot be written.
    """
    if check:
        return check_coco(plan, splits)
    if "train" in splits:
        _make_filtered_list(plan.root, refs, karpathy, karpathy_splits)
        _make_held_out_list(plan.root)
    problems = []
    for split in splits:
        records = load_split(plan.root, split)
        found = make_semantic_pngs(records, plan.workers, f"semantic PNGs of {split}")
        say(f"{plan.root / str(SPLITS[split].semseg_root)}: {len(records) - len(found)} of {len(records)}")
        problems += found
    return problems


def _make_filtered_list(root: Path, refs: Path | None, karpathy: Path | None, karpathy_splits: Sequence[str]) -> None:
    """Write the list of training images, unless there is one."""
    if (target := root / FILTERED).exists():
        say(f"{target}: already there, left as it is; remove it to make it again")
        return
    references = read_refs(refs or root / REFERRING["refcocog"].references)
    removed = {ref["image_id"] for ref in references if ref["split"] == "val"}
    note = f"made by prepare.py coco: without {len(removed)} images of RefCOCOg-UMD val"
    if karpathy:
        captioned = karpathy_images(karpathy, karpathy_splits)
        note += f", without {len(captioned)} images of COCO-Karpathy {' and '.join(karpathy_splits)}"
        removed |= captioned
    content = read_json(root / SPLITS["train"].json, _README)
    filtered = filter_panoptic(content, removed, note)
    save_json(target, filtered)
    say(f"{target}: {len(filtered['annotations'])} of {len(content['annotations'])} images; {note}")


def _make_held_out_list(root: Path) -> None:
    """Write the list of the images that are not in the filtered list, in place of one for another list."""
    content = read_json(root / SPLITS["train"].json, _README)
    used = {image["id"] for image in read_json(root / FILTERED)["images"]}
    held_out = filter_panoptic(content, used, f"made by prepare.py coco: the images that are not in {FILTERED}")
    save_json(root / HELD_OUT, held_out)
    say(f"{root / HELD_OUT}: {len(held_out['annotations'])} images, to calibrate on")


def karpathy_images(json_file: str | Path, splits: Collection[str]) -> set[int]:
    """Read the COCO ids of the images in Karpathy's caption splits from `dataset_coco.json`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is in another format.
    """
    try:
        return {image["cocoid"] for image in read_json(json_file)["images"] if image["split"] in splits}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{json_file} is not Karpathy's dataset_coco.json: {lack(error)}") from error


def filter_panoptic(content: dict[str, Any], removed: Collection[int], note: str) -> dict[str, Any]:
    """Remove images from a COCO panoptic json and put the note into its "info".

    Raises:
        ValueError: it is in another format, or has none of these images, which then belong to another dataset.
    """
    try:
        images = [image for image in content["images"] if image["id"] not in removed]
        annotations = [a for a in content["annotations"] if a["image_id"] not in removed]
        if len(annotations) == len(content["annotations"]):
            raise ValueError(f"none of the {len(removed)} images to remove is in the list; are they from COCO?")
    except (KeyError, TypeError) as error:
        raise ValueError(f"the list is not a COCO panoptic json: {lack(error)}") from error
    info = {**content.get("info", {}), "openworldsam": note}
    return {**content, "info": info, "images": images, "annotations": annotations}


def make_semantic_pngs(records: Sequence[PanopticRecord], workers: int, title: str) -> list[str]:
    """Make the semantic PNGs that are not there yet.

    Args:
        records: with sem_seg_file_name, all in one folder.
        workers: processes.
        title: of the progress bar.

    Returns:
        problems with panoptic PNGs; those have no semantic one.

    Raises:
        OSError: a file cannot be written, such as on a full disk.
    """
    if not records:
        return []
    missing = set(find_missing(record["sem_seg_file_name"] for record in records))
    todo = [record for record in records if record["sem_seg_file_name"] in missing]
    return [problem for problem in for_each(write_semantic, todo, workers, title) if problem]


def write_semantic(record: PanopticRecord) -> str | None:
    """Make the semantic PNG of a record from its panoptic PNG: contiguous class ids, also of crowds, and 255 for void.

    Returns:
        the problem with the panoptic PNG, None if there is none.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        ids, segments = record.read_panoptic()
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    save_png(Path(record["sem_seg_file_name"]), semantic_map(ids, segments, VOID).astype(np.uint8))
    return None


def check_coco(plan: Plan, splits: Collection[str]) -> list[str]:
    """Check everything of COCO that training and evaluation read; prints what is there and returns the problems."""
    problems: list[str] = []
    for split in splits:
        try:
            records = load_split(plan.root, split)
            problems.extend(_check_split(records, split, plan.workers))
            if split == "train":
                problems.extend(_check_filtered_list(plan.root, {record["image_id"] for record in records}))
        except (FileNotFoundError, ValueError) as error:
            problems.append(f"{split}: {error}")
    return problems


def _check_split(records: Sequence[PanopticRecord], split: str, workers: int) -> Iterator[str]:
    """Yield the problems with a split's number of images, its files, and its panoptic PNGs."""
    say(f"{split}: {len(records)} images, {sum(len(r['segments_info']) for r in records)} segments")
    if len(records) != (expected := EXPECTED_IMAGES[split]):
        yield f"{split}: {len(records)} images are listed, COCO has {expected}"
    kinds = {
        "images": find_missing(record["file_name"] for record in records),
        "panoptic PNGs": find_missing(record["pan_seg_file_name"] for record in records),
        "semantic PNGs": find_missing(record["sem_seg_file_name"] for record in records),
    }
    for kind, missing in kinds.items():
        say(f"{split}: {len(records) - len(missing)} of {len(records)} {kind}")
        if missing:
            yield f"{split}: {len(missing)} {kind} missing, such as {', '.join(missing[:EXAMPLES])}"
    absent = set(kinds["panoptic PNGs"])
    there = [record for record in records if record["pan_seg_file_name"] not in absent]
    wrong = [problem for problem in for_each(check_panoptic, there, workers, f"checking {split}") if problem]
    say(f"{split}: {len(there) - len(wrong)} of {len(there)} panoptic PNGs agree with their json")
    yield from (f"{split}: {problem}" for problem in wrong)


def check_panoptic(record: PanopticRecord) -> str | None:
    """Compare a panoptic PNG with its json: size, ids, areas. Returns what differs, None if nothing does."""
    try:
        segment_map, segments = record.read_panoptic()
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    ids, counts = np.unique(segment_map, return_counts=True)
    areas = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    for segment in segments:
        if (found := areas.get(segment["id"], 0)) != segment["area"]:
            said = f"segment {segment['id']} has {found} pixels, its json says {segment['area']}"
            return f"{record['pan_seg_file_name']}: {said}"
    return None


def _check_filtered_list(root: Path, full: Collection[int]) -> Iterator[str]:
    """Yield the problems with the filtered list, given the image ids of the full one."""
    path, files = root / FILTERED, SPLITS["train"]
    hint = "`openworldsam prepare coco` makes it"
    records = load_panoptic(path, root / files.image_root, root / files.panoptic_root, categories=CATEGORIES, hint=hint)
    listed = {record["image_id"] for record in records}
    origin = read_json(path).get("info", {}).get("openworldsam", "the public list, or of unknown origin")
    say(f"filtered list: {len(listed)} of {len(full)} images; {origin}")
    if strangers := listed.difference(full):
        yield f"filtered list: {len(strangers)} images are not in train2017, such as {min(strangers)}"
    if len(listed) == len(full):
        yield "filtered list: nothing is removed; RefCOCOg's validation images should be"
    referring = root / REFERRING["refcocog"].json_file("val")
    if not referring.exists():
        say("filtered list: not compared with RefCOCOg; `openworldsam prepare refcocog` has not been run")
    elif leaked := listed & {image["id"] for image in read_json(referring)["images"]}:
        yield f"filtered list: {len(leaked)} images are in RefCOCOg val, such as {min(leaked)}"


def load_split(root: Path, split: str) -> list[PanopticRecord]:
    """The records of COCO's full training or validation list. Raises as `load_panoptic` does."""
    files = SPLITS[split]
    assert files.semseg_root
    folders = (root / files.image_root, root / files.panoptic_root, root / files.semseg_root)
    return load_panoptic(root / files.json, *folders, categories=CATEGORIES, hint=_README)
