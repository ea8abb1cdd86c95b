"""Common parts of all preparations: their plan, counts, and work on many images in several processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from openworldsam.utils.launch import say
from openworldsam.utils.workers import for_each

EXAMPLES = 3  # shown of each kind of problem


class Plan(NamedTuple):
    """Folder of all datasets; number of processes; whether other counts than the published ones are an error."""

    root: Path
    workers: int = 1
    check_counts: bool = True


def require_count(found: int, expected: int, plan: Plan, what: str) -> None:
    """Raise ValueError if a count is not the published one; only warn if the plan does not check counts."""
    if found == expected:
        return
    message = f"{found} {what} under {plan.root}, published are {expected}"
    if not found:
        plan = plan._replace(check_counts=True)
    refuse_or_warn(message, "; get them again (datasets/README.md)", plan)


def refuse_or_warn(message: str, advice: str, plan: Plan) -> None:
    """Raise ValueError about counts that are not the published ones; only warn if the plan does not check counts."""
    if plan.check_counts:
        raise ValueError(f"{message}{advice}, or give --no-check to go on without")
    say(f"warning: {message}", file=sys.stderr)


def work_through(work: Callable[[Any], Any], jobs: Sequence[Any], plan: Plan, title: str) -> list[Any]:
    """Apply the work to all jobs in several processes.

    Args:
        work: returns a result, or a text that describes a problem with the job.
        jobs: one per image.
        plan: has the number of processes.
        title: of the progress bar and in messages, such as "images of ADE20K-847".

    Returns:
        the results, in order.

    Raises:
        OSError: a file cannot be written, or a process was killed.
        ValueError: some jobs have problems; names the first few.
    """
    results = list(for_each(work, jobs, plan.workers, title))
    if problems := [result for result in results if isinstance(result, str)]:
        raise ValueError(f"{len(problems)} of {len(jobs)} {title} cannot be made: " + "; ".join(problems[:EXAMPLES]))
    return results
