"""Makes and checks what COCO does not offer for download: the filtered list of training images and semantic PNGs.

Everything can be interrupted and started again: a file under its final name is whole, and is not made twice.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from panopticapi.utils import rgb2id
from PIL import Image
from tqdm import tqdm

from openworldsam.data.datasets.coco import DATASETS, VOID, PanopticRecord, Segment, lack, load_panoptic
from openworldsam.data.datasets.refcocog import DATASETS as REFERRING
from openworldsam.data.prepare.refcocog import read_refs
from openworldsam.data.preprocessing import read_image
from openworldsam.utils.files import find_missing, read_json, save_atomically

EXPECTED_IMAGES = {"train": 118_287, "val": 5_000}
SPLITS = {"train": DATASETS["coco_2017_train_panoptic_full"], "val": DATASETS["coco_2017_val_panoptic_openworldsam"]}
FILTERED = DATASETS["coco_2017_train_panoptic_openworldsam"].json

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")

_STALE_SECONDS = 60.0  # writing one PNG takes milliseconds, so an older part belongs to a run that was killed
_SHOWN = 3  # examples per kind of problem


def referring_images(refs_file: str | Path, split: str = "val") -> set[int]:
    """The ids of RefCOCOg's images of a UMD split, from `refs(umd).p`. Raises as `read_refs` does."""
    return {ref["image_id"] for ref in read_refs(refs_file) if ref["split"] == split}


def karpathy_images(json_file: str | Path, splits: Collection[str] = ("test",)) -> set[int]:
    """The COCO ids of the images of Karpathy's caption splits, from his `dataset_coco.json`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is of another format.
    """
    try:
        return {image["cocoid"] for image in read_json(json_file)["images"] if image["split"] in splits}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{json_file} is not Karpathy's dataset_coco.json: {lack(error)}") from error


def filter_panoptic(content: dict[str, Any], removed: Collection[int], note: str) -> dict[str, Any]:
    """A COCO-panoptic json without some images; the note goes into its "info".

    Raises:
        ValueError: it is of another format, or has none of these images, so that they must be of another dataset.
    """
    try:
        images = [image for image in content["images"] if image["id"] not in removed]
        annotations = [a for a in content["annotations"] if a["image_id"] not in removed]
        if len(annotations) == len(content["annotations"]):
            raise ValueError(f"none of the {len(removed)} images to leave out is in the list; are they of COCO?")
    except (KeyError, TypeError) as error:
        raise ValueError(f"the list is no COCO panoptic json: {lack(error)}") from error
    info = {**content.get("info", {}), "openworldsam": note}
    return {**content, "info": info, "images": images, "annotations": annotations}


def semantic_map(panoptic: np.ndarray, segments: Sequence[Segment]) -> np.ndarray:
    """Contiguous class ids from segment ids; crowds keep their class.

    Args:
        panoptic: int32 [H, W], segment ids, 0 where void.
        segments: of this image.

    Returns:
        uint8 [H, W], 255 where void.

    Raises:
        ValueError: there are ids in the map that no segment has.
    """
    labels = {0: VOID} | {segment["id"]: segment["category_id"] for segment in segments}
    ids, inverse = np.unique(panoptic, return_inverse=True)
    _check_known(ids.tolist(), segments)
    table = np.array([labels[i] for i in ids.tolist()], dtype=np.uint8)
    return table[inverse].reshape(panoptic.shape)


def write_semantic(record: PanopticRecord) -> str | None:
    """Make the semantic PNG of a panoptic record.

    Returns:
        what is wrong with the panoptic PNG; None if all is well.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        labels = semantic_map(_panoptic_ids(record), record["segments_info"])
    except (FileNotFoundError, ValueError) as error:
        return f"{record['pan_seg_file_name']}: {error}"
    image = Image.fromarray(labels)
    save_atomically(Path(record["sem_seg_file_name"]), lambda partial: image.save(partial, format="PNG"))
    return None


def check_panoptic(record: PanopticRecord) -> str | None:
    """Compare a panoptic PNG with its json: size, ids, areas. Returns what differs, None if nothing does."""
    name = record["pan_seg_file_name"]
    try:
        ids, counts = np.unique(_panoptic_ids(record), return_counts=True)
        _check_known(ids.tolist(), record["segments_info"])
    except (FileNotFoundError, ValueError) as error:
        return f"{name}: {error}"
    areas = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    for segment in record["segments_info"]:
        if (found := areas.get(segment["id"], 0)) != segment["area"]:
            return f"{name}: segment {segment['id']} has {found} pixels, its json says {segment['area']}"
    return None


def _check_known(ids: Sequence[int], segments: Sequence[Segment]) -> None:
    known = {0} | {segment["id"] for segment in segments}
    if unknown := [i for i in ids if i not in known]:
        raise ValueError(f"it has the ids {unknown[:_SHOWN]}, which are not in the json")


def _panoptic_ids(record: PanopticRecord) -> np.ndarray:
    """int32 [H, W]; raises ValueError if the size is not the image's."""
    ids = rgb2id(read_image(record["pan_seg_file_name"]))
    if ids.shape != (record["height"], record["width"]):
        raise ValueError(
            f"it is {ids.shape[1]} x {ids.shape[0]} pixels, its image {record['width']} x {record['height']}"
        )
    return ids


def make_semantic_pngs(records: Sequence[PanopticRecord], workers: int, title: str) -> list[str]:
    """Make the semantic PNGs that are not there yet.

    Args:
        records: with sem_seg_file_name, all in one folder.
        workers: processes; at most 1 works in this one.
        title: of the progress bar.

    Returns:
        what is wrong with panoptic PNGs; those have no semantic one.

    Raises:
        OSError: a file cannot be written, such as on a full disk.
    """
    if not records:
        return []
    for part in Path(records[0]["sem_seg_file_name"]).parent.glob(".*.part"):
        if time.time() - part.stat().st_mtime > _STALE_SECONDS:
            part.unlink(missing_ok=True)
    missing = set(find_missing(record["sem_seg_file_name"] for record in records))
    todo = [record for record in records if record["sem_seg_file_name"] in missing]
    return [problem for problem in for_each(write_semantic, todo, workers, title) if problem]


def for_each(work: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int, title: str) -> Iterator[_Result]:
    """Apply the work to all jobs under a progress bar, in this process or in several, and give the results in order.

    Raises:
        OSError: a process was killed.
    """
    bar = {"desc": title, "total": len(jobs), "unit": "image", "disable": None}  # None: only on a terminal
    if workers <= 1:
        yield from tqdm(map(work, jobs), **bar)
        return
    # Ctrl-C reaches the whole group: this process stops the others, which would end in a traceback each
    pool = ProcessPoolExecutor(workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        yield from tqdm(pool.map(work, jobs, chunksize=8), **bar)
    except BrokenProcessPool as error:
        raise OSError("a worker process was killed, perhaps for want of memory; try fewer workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


class Report(NamedTuple):
    """What a check found: lines that sum up, and lines that need somebody to act."""

    summary: list[str]
    problems: list[str]


def check_coco(root: Path, splits: Collection[str], workers: int) -> Report:
    """Check everything of COCO that training and evaluation read, with each panoptic PNG against its json.

    Args:
        root: folder of all datasets.
        splits: "train", "val" or both.
        workers: processes.
    """
    report = Report([], [])
    for split in splits:
        try:
            records = load_split(root, split)
            _check_split(records, split, workers, report)
            if split == "train":
                _check_filtered(root, {record["image_id"] for record in records}, report)
        except (FileNotFoundError, ValueError) as error:
            report.problems.append(f"{split}: {error}")
    return report


def _check_split(records: Sequence[PanopticRecord], split: str, workers: int, report: Report) -> None:
    expected = EXPECTED_IMAGES[split]
    report.summary.append(f"{split}: {len(records)} images, {sum(len(r['segments_info']) for r in records)} segments")
    if len(records) != expected:
        report.problems.append(f"{split}: {len(records)} images are listed, COCO has {expected}")
    kinds = {
        "images": find_missing(record["file_name"] for record in records),
        "panoptic PNGs": find_missing(record["pan_seg_file_name"] for record in records),
        "semantic PNGs": find_missing(record["sem_seg_file_name"] for record in records),
    }
    for kind, missing in kinds.items():
        report.summary.append(f"{split}: {len(records) - len(missing)} of {len(records)} {kind}")
        if missing:
            report.problems.append(f"{split}: {len(missing)} {kind} missing, such as {', '.join(missing[:_SHOWN])}")
    absent = set(kinds["panoptic PNGs"])
    there = [record for record in records if record["pan_seg_file_name"] not in absent]
    wrong = [problem for problem in for_each(check_panoptic, there, workers, f"checking {split}") if problem]
    report.summary.append(f"{split}: {len(there) - len(wrong)} of {len(there)} panoptic PNGs agree with their json")
    report.problems.extend(f"{split}: {problem}" for problem in wrong)


def _check_filtered(root: Path, full: Collection[int], report: Report) -> None:
    """The filtered list against the ids of the full one and against RefCOCOg's validation images."""
    path, files = root / FILTERED, SPLITS["train"]
    hint = "datasets/prepare_coco.py makes it"
    listed = {
        r["image_id"] for r in load_panoptic(path, root / files.image_root, root / files.panoptic_root, hint=hint)
    }
    origin = read_json(path).get("info", {}).get("openworldsam", "the public list, or of unknown origin")
    report.summary.append(f"filtered list: {len(listed)} of {len(full)} images; {origin}")
    if strangers := listed.difference(full):
        report.problems.append(f"filtered list: {len(strangers)} images are not in train2017, such as {min(strangers)}")
    if len(listed) == len(full):
        report.problems.append("filtered list: nothing is left out; RefCOCOg's validation images should be")
    referring = root / REFERRING["refcocog_umd_val"]
    if not referring.exists():
        report.summary.append("filtered list: not compared with RefCOCOg, prepare_refcocog.py has not been run")
    elif leaked := listed & {image["id"] for image in read_json(referring)["images"]}:
        report.problems.append(f"filtered list: {len(leaked)} images are in RefCOCOg val, such as {min(leaked)}")


def load_split(root: Path, split: str) -> list[PanopticRecord]:
    """The records of COCO's full training or validation list under a root. Raises as `load_panoptic` does."""
    files = SPLITS[split]
    assert files.semseg_root
    folders = (root / files.image_root, root / files.panoptic_root, root / files.semseg_root)
    return load_panoptic(root / files.json, *folders, hint="datasets/README.md says how to get COCO")
