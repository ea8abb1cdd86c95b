"""SUN RGB-D's test images and label images, from the official archives, whose labels are in one HDF5 file.

Shapes: H, W image size.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.io

from openworldsam.data.datasets.benchmarks import LABELS, matching, read_classes
from openworldsam.data.prepare.labels import save_labels
from openworldsam.data.prepare.plan import Plan, require_count, work_through
from openworldsam.utils.files import find_missing, save_atomically
from openworldsam.utils.launch import say


class _TestImage(NamedTuple):
    """A test image: its source folder, its cell in the metadata, and the two files to make."""

    folder: Path
    cell: int
    image: Path
    labels: Path


def make_sun_rgbd(plan: Plan) -> None:
    """Make SUN RGB-D's test images and 37-class label images from SUNRGBD.zip and SUNRGBDtoolbox.zip, unpacked.

    Raises:
        OSError, ValueError: a file is missing, damaged or has an unknown value, or there are too few.
    """
    try:
        import h5py  # noqa: F401 (checked before anything is made)
    except ImportError:
        raise ValueError("SUNRGBD2Dseg.mat is HDF5 and needs h5py: `pip install h5py`") from None
    benchmark, toolbox = LABELS["sun_rgbd_37_val"], plan.root / "sun_rgbd/SUNRGBDtoolbox"
    numbers = _sun_test_numbers(toolbox)
    require_count(len(numbers), benchmark.expected, plan, "test images of SUN RGB-D")
    jobs = []
    for number, (folder, cell) in enumerate(numbers, start=1):
        patterns = (benchmark.images, benchmark.labels)
        image, labels = (plan.root / pattern.replace("*", f"{number:06d}") for pattern in patterns)
        jobs.append(_TestImage(plan.root / "sun_rgbd" / folder, cell, image, labels))
    convert = partial(_convert_sun, metadata=toolbox / "Metadata/SUNRGBD2Dseg.mat")
    work_through(convert, jobs, plan, "images of SUN RGB-D")
    say(f"{len(jobs)} images of SUN RGB-D")


def _sun_test_numbers(toolbox: Path) -> list[tuple[str, int]]:
    """Folder (below sun_rgbd) and cell in the metadata of each test image, in the order of the official split."""
    names = ("traintestSUNRGBD/allsplit.mat", "Metadata/SUNRGBDMeta.mat", "Metadata/SUNRGBD2Dseg.mat")
    if missing := find_missing(toolbox / name for name in names):
        raise FileNotFoundError(f"{missing[0]} not found. It is in SUNRGBDtoolbox.zip (datasets/README.md)")
    try:
        split = scipy.io.loadmat(toolbox / names[0], squeeze_me=True)["alltest"]
        meta = scipy.io.loadmat(toolbox / names[1], squeeze_me=True)["SUNRGBDMeta"]
        cells = {_below(path): i for i, path in enumerate(meta["sequenceName"].tolist())}
        return [(folder, cells[folder]) for folder in map(_below, split.tolist())]
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{toolbox} is not the official toolbox: {error}") from error


def _below(path: str) -> str:
    """Strip the publisher's own path in front of SUNRGBD/..."""
    return path[path.index("SUNRGBD/") :].rstrip("/")


def _convert_sun(job: _TestImage, metadata: Path) -> str | None:
    if job.labels.exists() and job.image.exists():
        return None
    import h5py

    images = matching(job.folder, "image/*.jpg")
    if len(images) != 1:
        return f"{job.folder / 'image'} has {len(images)} images, one is expected"
    with h5py.File(metadata, "r") as file:  # one cell at a time: all are 64 GB. MATLAB is column-major, hence .T
        values = np.asarray(file[file["SUNRGBD2Dseg"]["seglabel"][job.cell][0]]).T
    most = len(read_classes("sun_rgbd_37"))
    if values.min() < 0 or values.max() > most:
        return f"the labels of {job.folder} are {values.min()} to {values.max()}, known are 0 to {most}"
    save_atomically(job.image, lambda partial: shutil.copyfile(images[0], partial))
    save_labels(values.astype(np.uint8), job.labels)
    return None
