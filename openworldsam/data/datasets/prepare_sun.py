"""Makes SUN RGB-D's test images and label images from the official archives, whose labels are one HDF5 file.

Shapes: H, W image size.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import scipy.io
from tqdm import tqdm

from openworldsam.checkpoint.writing import save_atomically
from openworldsam.data.datasets.benchmarks import LABELS, read_classes
from openworldsam.data.datasets.prepare_command import Plan, require
from openworldsam.data.datasets.prepare_labels import save_labels


def make_sun_rgbd(plan: Plan) -> list[str]:
    """SUN RGB-D's test images and 37-class label images from SUNRGBD.zip and SUNRGBDtoolbox.zip, unpacked.

    Raises:
        OSError, ValueError: a file is missing, damaged or has an unknown value, or there are too few.
    """
    try:
        import h5py
    except ImportError:
        raise ValueError("SUNRGBD2Dseg.mat is HDF5; `pip install h5py` reads it") from None
    benchmark, toolbox = LABELS["sun_rgbd_37_val"], plan.root / "sun_rgbd/SUNRGBDtoolbox"
    numbers = _sun_test_numbers(toolbox)
    require(len(numbers), benchmark.expected, plan, "test images of SUN RGB-D")
    with h5py.File(toolbox / "Metadata/SUNRGBD2Dseg.mat", "r") as file:
        cells = file["SUNRGBD2Dseg"]["seglabel"]
        for number, (folder, place) in enumerate(tqdm(numbers, "SUN RGB-D", unit="image", disable=None), start=1):
            image, labels = (
                plan.root / pattern.replace("*", f"{number:06d}") for pattern in (benchmark.images, benchmark.labels)
            )
            if not (labels.exists() and image.exists()):
                # one cell at a time: all of them are 64 GB; MATLAB's columns come first
                _write_sun(plan.root / "sun_rgbd" / folder, np.asarray(file[cells[place][0]]).T, image, labels)
    return [f"{len(numbers)} images of SUN RGB-D"]


def _sun_test_numbers(toolbox: Path) -> list[tuple[str, int]]:
    """Folder of each test image below sun_rgbd, in the order of the official split, and its place in the metadata."""
    try:
        # as texts: of a missing Path, scipy says no name
        split = scipy.io.loadmat(str(toolbox / "traintestSUNRGBD/allsplit.mat"), squeeze_me=True)["alltest"]
        meta = scipy.io.loadmat(str(toolbox / "Metadata/SUNRGBDMeta.mat"), squeeze_me=True)["SUNRGBDMeta"]
        places = {_below(path): i for i, path in enumerate(meta["sequenceName"].tolist())}
        return [(folder, places[folder]) for folder in map(_below, split.tolist())]
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{toolbox} is not the official toolbox: {error}") from error


def _below(path: str) -> str:
    """A folder of the split, SUNRGBD/..., without the publisher's own path in front of it."""
    return path[path.index("SUNRGBD/") :].rstrip("/")


def _write_sun(folder: Path, values: np.ndarray, image: Path, labels: Path) -> None:
    pictures = sorted((folder / "image").glob("*.jpg"))
    if len(pictures) != 1:
        raise FileNotFoundError(f"{folder / 'image'} has {len(pictures)} images, one is expected")
    most = len(read_classes("sun_rgbd_37"))
    if values.min() < 0 or values.max() > most:
        raise ValueError(f"the labels of {folder} are {values.min()} to {values.max()}, known are 0 to {most}")
    save_atomically(image, lambda partial: shutil.copyfile(pictures[0], partial))
    save_labels(values.astype(np.uint8), labels)
