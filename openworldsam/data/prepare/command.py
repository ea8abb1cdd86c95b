"""What all datasets/prepare_*.py of the benchmarks share: their command line, counts, and work in several processes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from openworldsam.data.datasets.coco import dataset_root
from openworldsam.data.prepare.coco import for_each

_SHOWN = 3  # examples of what is wrong


class Plan(NamedTuple):
    """Folder of all datasets; number of processes; whether other counts than the published ones are an error."""

    root: Path
    workers: int
    check: bool = True


def require(found: int, expected: int, plan: Plan, what: str) -> None:
    """Raise ValueError if a count is not the published one; only say so if the plan does not check."""
    if found == expected:
        return
    message = f"{found} {what} under {plan.root}, published are {expected}"
    if plan.check or not found:
        raise ValueError(f"{message}; get them again (datasets/README.md), or give --no-check to go on without")
    print(f"warning: {message}", file=sys.stderr)


def run(
    doc: str | None,
    make: Callable[..., list[str]],
    argv: Sequence[str] | None = None,
    add_arguments: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
) -> int:
    """The command line of datasets/prepare_*.py.

    Args:
        doc: of the script.
        make: takes a Plan and the script's own arguments by name; returns lines that say what was made.
        argv: without the program's name.
        add_arguments: adds the script's own.

    Returns:
        the exit status: 0, 2 if it cannot be done, 130 for Ctrl-C.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=dataset_root(), help="default: $DETECTRON2_DATASETS or datasets")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--no-check", action="store_true", help="other counts than the published ones are a warning")
    add_arguments(parser)
    own = vars(parser.parse_args(argv))
    plan = Plan(own.pop("root"), own.pop("workers"), not own.pop("no_check"))
    try:
        print("\n".join(make(plan, **own)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command again goes on from here", file=sys.stderr)
        return 130
    return 0


def work_through(work: Callable[[Any], Any], jobs: Sequence[Any], plan: Plan, title: str) -> list[Any]:
    """Apply the work to all jobs in several processes, and give the results, which are whatever is no text.

    Raises:
        OSError: a file cannot be written, or a process was killed.
        ValueError: the work says, by a text, what is wrong with some jobs; the first few of these.
    """
    results = list(for_each(work, jobs, plan.workers, title))
    if problems := [result for result in results if isinstance(result, str)]:
        raise ValueError(f"{len(problems)} of {len(jobs)} {title} cannot be made: " + "; ".join(problems[:_SHOWN]))
    return results
