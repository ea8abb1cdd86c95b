"""Remaining runs of an experiment and the time they take, from the times that its runs have measured."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Mapping, Sequence

from openworldsam.ablation.runs import VARIANTS, Experiment
from openworldsam.engine.evaluate import RESULTS
from openworldsam.engine.training_state import METRICS, read_metrics
from openworldsam.utils.files import read_json

Times = dict[str, list[float]]
"""Seconds by variant, one number for each run that has measured them."""


def remaining(experiment: Experiment, work: Sequence[tuple[str, int]], workers: int) -> str:
    """Say in a line which of the runs (name, seed) remain, and how long they take if runs in the same folder tell.

    An iteration takes as long as it took the other seeds of the variant, or else on average all that also train from a
    cache, or also without; a benchmark as long as it took the variant's other seeds, or else all runs; with as many
    workers as there were then. A cache that no run has trained from is not counted, which "more than" says.
    """
    left = {run: state for run in work if not (state := experiment.state(*run)).finished}
    if not left:
        return f"all {len(work)} runs are finished"
    begun = [f"{n} seed {seed} at {s.done:,} of {s.iterations:,} iterations" for (n, seed), s in left.items() if s.done]
    words = f"{len(left)} of {len(work)} runs remain" + (f" ({', '.join(begun)})" if begun else "")
    iteration, benchmark = _measured(experiment)
    costs, measured = [], True
    for (name, _), state in left.items():
        cache, to_train = experiment.cache(name), state.iterations - state.done
        alike = {other: times for other, times in iteration.items() if bool(experiment.cache(other)) == bool(cache)}
        amounts = (to_train, alike), (len(state.benchmarks), benchmark)
        costs.append(sum(amount * (_mean(times, name) or 0) for amount, times in amounts))
        measured &= all(times for amount, times in amounts if amount)
        measured &= not to_train or any(experiment.cache(other) == cache for other in alike)
    if not any(costs):
        return f"{words}; no run has measured yet how long they take"
    free = [0.0] * workers  # when each worker has time for the next run
    for cost in costs:
        heapq.heapreplace(free, free[0] + cost)
    number = f"{workers} worker{'s' if workers > 1 else ''}"
    return f"{words}, {'about' if measured else 'more than'} {duration(max(free))} with {number}"


def _measured(experiment: Experiment) -> tuple[Times, Times]:
    """Collect the seconds of an iteration and those of a benchmark's evaluation from all runs in the folder."""
    iteration: Times = {}
    benchmark: Times = {}
    for name in VARIANTS:
        for folder in (experiment.folder / name).glob("seed*"):
            if times := [values["time"] for _, values in read_metrics(folder / METRICS) if "time" in values]:
                iteration.setdefault(name, []).append(statistics.fmean(times))
            if (folder / RESULTS).exists():
                results = read_json(folder / RESULTS)
                benchmark.setdefault(name, []).append(results["seconds"] / len(results["benchmarks"]))
    return iteration, benchmark


def _mean(times: Mapping[str, list[float]], name: str) -> float | None:
    """Average the seconds of a variant, or of all variants if it has measured none; None if none has."""
    found = times.get(name) or [seconds for of_variant in times.values() for seconds in of_variant]
    return statistics.fmean(found) if found else None


def duration(seconds: float) -> str:
    """Write a duration in hours and minutes, at least one minute."""
    hours, minutes = divmod(max(1, round(seconds / 60)), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
