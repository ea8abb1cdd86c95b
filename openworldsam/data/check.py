"""Report which datasets are complete, what is missing, and which command makes it."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from openworldsam.config_files import dataset_root
from openworldsam.data.datasets import custom
from openworldsam.data.datasets.benchmarks import EXPECTED_IMAGES, hint
from openworldsam.data.datasets.catalog import check_registered, load_records, one_class_remark
from openworldsam.data.records import Record
from openworldsam.utils.files import find_missing
from openworldsam.utils.launch import say, user_errors
from openworldsam.utils.text import printable
from openworldsam.utils.workers import for_each

_EXAMPLES = 3
"""Most unreadable images to name of a dataset."""


class Finding(NamedTuple):
    """State of a dataset: its name, number of images, problems, empty if it is complete, and notes, which are none."""

    name: str
    images: int
    problems: list[str]
    notes: Sequence[str] = ()

    @property
    def state(self) -> str:
        """The state in a word."""
        if not self.problems:
            return "ok"
        return "incomplete" if self.images else "missing"


def check_dataset(name: str, *, read: bool = False, workers: int = 1) -> Finding:
    """Look for a registered dataset's files.

    Args:
        name: in the DatasetCatalog.
        read: also read every image and its ground truth.
        workers: processes for reading.
    """
    try:
        records = load_records(name)
    except (OSError, ValueError) as error:
        return Finding(name, 0, [str(error)])
    problems, expected = [], EXPECTED_IMAGES.get(name, len(records))
    if len(records) != expected:
        problems.append(f"{len(records)} images, published are {expected}")
    for files in zip(*(record.files() for record in records), strict=False):  # all images, then all label images
        if missing := find_missing(files):
            problems.append(f"{len(missing)} of {len(records)} files are missing, such as {missing[0]}")
    empty = [record.is_empty for record in records]
    if read:
        found = list(for_each(read_record, records, workers, name))
        empty = [is_empty for _, is_empty in found]
        wrong = [problem for problem, _ in found if problem]
        problems += wrong[:_EXAMPLES]
        problems += [f"and {len(wrong) - _EXAMPLES} more images"] * (len(wrong) > _EXAMPLES)
    notes = []
    if any(empty):
        notes.append(f"{sum(empty)} of {len(records)} images have no object to learn from; a training passes them over")
    if remark := one_class_remark(name):
        notes.append(remark)
    return Finding(name, len(records), problems, notes)


def read_record(record: Record) -> tuple[str | None, bool]:
    """Read a record's image and ground truth; return what is wrong, if anything is, and whether there is no object."""
    try:
        record.read_image()
        if record.is_referring:
            is_empty = not any(referent.mask.any() for referent in record.read_referring())
        else:
            ids, segments = record.read_panoptic()
            visible = set(np.unique(ids).tolist())
            is_empty = not any(segment["id"] in visible and not segment["iscrowd"] for segment in segments)
        damaged = record.damaged_objects()
    except (OSError, ValueError) as error:
        return str(error), False
    return f"{record['file_name']}: {'; '.join(damaged)}" if damaged else None, is_empty


def report(findings: Sequence[Finding]) -> str:
    """Format a table of all datasets, and below it each one's problems and what to do about them."""
    rows = [(f.name, f.images, EXPECTED_IMAGES.get(f.name, ""), f.state) for f in findings]
    lines = [tabulate(rows, ("dataset", "images", "expected", "state"))]
    for finding in findings:
        if finding.problems or finding.notes:
            lines += ["", f"{finding.name}:", *(f"  {printable(line)}" for line in (*finding.problems, *finding.notes))]
        if finding.problems and finding.name in EXPECTED_IMAGES and "datasets/README.md" not in finding.problems[-1]:
            lines.append(f"  {hint(finding.name)}")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> None:
    """Run the command; exit with status 1 if something is missing, 2 after a user error."""
    with user_errors():
        names = args.names + [custom.register(path) for path in args.own] or list(EXPECTED_IMAGES)
        check_registered(names)
    logging.disable(logging.WARNING)  # the report repeats the loaders' warnings
    try:
        findings = [check_dataset(name, read=args.read, workers=args.workers) for name in names]
    finally:
        logging.disable(logging.NOTSET)
    say(f"root of all datasets: {dataset_root()}", "", *report(findings).splitlines())
    if any(finding.problems for finding in findings):
        sys.exit(1)
