"""A benchmark run: kinds of work on each configuration, and their records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from openworldsam.engine.checks import check_evaluation
from openworldsam.evaluation.benchmark import evaluate
from openworldsam.speed.measure import OUT_OF_MEMORY, Call, Cost, first_sentence, measure, operations_and_waits
from openworldsam.speed.pipeline import PER_IMAGE, STAGES, Pipeline, State
from openworldsam.speed.plain import PlainPipeline
from openworldsam.speed.training import CACHES, training_step
from openworldsam.speed.waits import WaitCounter

EVALUATED = "shapes_val"
"""A dataset without files: its images are drawn when read."""


@dataclass(frozen=True)
class Measurement:
    """One kind of work on one configuration.

    work: a stage, "whole", a training step or the evaluation.
    images: of a call.
    prompts: of an image; 0 if the time does not depend on it, or it is unknown.
    precision, compiled: of the run; "plain" is always fp32 and not compiled.
    median_s, p90_s: of the repetitions, in seconds.
    operations: of matrix products and convolutions.
    bytes: of weights, inputs and outputs.
    floor_s: least seconds at this machine's peak rates.
    peak_bytes: most memory beyond that in use before.
    waits: of the host for the device; see `WaitCounter`.
    error: why there are no figures.
    """

    configuration: str
    work: str
    images: int
    prompts: int
    precision: str
    compiled: bool
    median_s: float | None = None
    p90_s: float | None = None
    operations: int | None = None
    bytes: int | None = None
    floor_s: float | None = None
    peak_bytes: int | None = None
    waits: int | None = None
    images_per_s: float | None = None
    prompts_per_s: float | None = None
    error: str = ""


class Run:
    """Measures one or two pipelines of different names, on one device, side by side.

    `peaks` are rates of the machine, from `machine.peaks`; `warmup` and `repeats` are those of `measure`.
    """

    def __init__(self, pipelines: Sequence[Pipeline], peaks: Mapping[str, float], *, warmup: int, repeats: int) -> None:
        self.pipelines, self.peaks = {p.name: p for p in pipelines}, peaks
        self.device = pipelines[0].model.device
        self.warmup, self.repeats = warmup, repeats
        self.records: list[Measurement] = []
        self.counts: dict[tuple[str, str, int], tuple[int, int]] = {}
        """Operations and waits by configuration, work and prompts."""

    def use(self, precision: str, compiled: bool) -> None:
        """Set precision and compilation of later measurements."""
        self.precision, self.compiled = precision, compiled
        self.counters = {}
        for name, pipeline in self.pipelines.items():
            pipeline.use(precision, compiled)
            self.counters[name] = WaitCounter([*pipeline.model.parameters(), *pipeline.model.buffers()])

    def stages(self, counts: Sequence[int]) -> None:
        """Measure every stage and the whole for each number of prompts."""
        states = {name: State() for name in self.pipelines}
        asked = dict(self.pipelines)
        for count in sorted(set(counts)):
            asked = self._asked(asked, count, "whole")
            for work, stage in STAGES.items():
                having = {name: p for name, p in asked.items() if work in p.stages}
                if not having or (work in PER_IMAGE and count != min(counts)):
                    continue
                calls = {name: partial(getattr(p, stage.method), states[name]) for name, p in having.items()}
                prompts = 0 if work in PER_IMAGE else count
                costs = self._costs(work, calls, prompts)
                for name, cost in costs.items():
                    moved = None if cost.error else asked[name].bytes_moved(stage, states[name])
                    self._record(name, work, cost, prompts=prompts, moved=moved)
                asked = {name: p for name, p in asked.items() if name not in costs or not costs[name].error}
            for name, cost in self._measured({name: p.whole for name, p in asked.items()}).items():
                self._record(name, "whole", cost, prompts=count)

    def training(self, count: int) -> None:
        """Measure a step of SOLVER.IMS_PER_BATCH images with each cache; "plain" has no caches."""
        for cache in CACHES:
            work = f"training step, {cache}"
            caching = {n: p for n, p in self.pipelines.items() if not isinstance(p, PlainPipeline)}
            asked = self._asked(self.pipelines if cache == CACHES[0] else caching, count, work)
            images = {name: p.cfg.SOLVER.IMS_PER_BATCH for name, p in asked.items()}
            calls = {name: training_step(p, images[name], cache) for name, p in asked.items()}
            for name, cost in self._costs(work, calls, count).items():
                self._record(name, work, cost, images=images[name], prompts=count)

    def evaluation(self, images: int) -> None:
        """Measure `evaluate` on images of Shapes: drawing, prediction and scoring in one process; not for "plain"."""
        calls: dict[str, Call] = {}
        for name, pipeline in self.pipelines.items():
            if isinstance(pipeline, PlainPipeline):
                continue
            cfg = pipeline.cfg.clone()
            cfg.DATASETS.TEST, cfg.TEST.MAX_IMAGES, cfg.DATALOADER.NUM_WORKERS = [EVALUATED], images, 0
            check_evaluation(cfg)
            calls[name] = partial(evaluate, cfg, pipeline.model)
        for name, cost in self._measured(calls).items():
            self._record(name, f"evaluation on {EVALUATED}", cost, images=images)

    def _asked(self, pipelines: Mapping[str, Pipeline], count: int, work: str) -> dict[str, Pipeline]:
        """Pipelines that can hold so many prompts; the others get a record with the reason."""
        asked = {}
        for name, pipeline in pipelines.items():
            try:
                pipeline.ask(count)
                asked[name] = pipeline
            except MemoryError as error:
                self._record(name, work, Cost([], error=str(error)), prompts=count)
        return asked

    def _costs(self, work: str, calls: Mapping[str, Call], prompts: int) -> dict[str, Cost]:
        """Measure; then count operations and waits, once, since precision and compilation do not change them."""
        costs = self._measured(calls)
        for name, call in calls.items():
            if not costs[name].error and (name, work, prompts) not in self.counts:
                try:
                    self.counts[name, work, prompts] = operations_and_waits(call, self.counters[name])
                except OUT_OF_MEMORY as error:
                    costs[name].error = first_sentence(error)
        return costs

    def _measured(self, calls: Mapping[str, Call]) -> dict[str, Cost]:
        return measure(calls, self.device, warmup=self.warmup, repeats=self.repeats)

    def _record(
        self, name: str, work: str, cost: Cost, *, images: int = 1, prompts: int = 0, moved: int | None = None
    ) -> None:
        record = Measurement(name, work, images, prompts, self.precision, self.compiled, error=cost.error)
        if not cost.error:
            median = float(np.median(cost.seconds))
            record = replace(
                record,
                **self._floor(name, work, prompts, moved),
                median_s=median,
                p90_s=float(np.quantile(cost.seconds, 0.9)),
                peak_bytes=cost.peak_bytes,
                images_per_s=images / median,
                prompts_per_s=images * prompts / median if prompts else None,
            )
        self.records.append(record)

    def _floor(self, name: str, work: str, prompts: int, moved: int | None) -> dict[str, Any]:
        """operations, waits, bytes and floor_s of a record; of the whole, sums over its stages."""
        if work == "whole":
            run = (name, self.precision, self.compiled)
            parts = [
                r
                for r in self.records
                if (r.configuration, r.precision, r.compiled) == run and r.work in STAGES and r.prompts in (0, prompts)
            ]
            return {key: sum(getattr(r, key) for r in parts) for key in ("operations", "waits", "bytes", "floor_s")}
        operations, waits = self.counts.get((name, work, prompts), (None, None))
        rate = self.peaks[self.pipelines[name].model.precision]
        times = [operations / rate] if operations is not None else []
        times += [moved / self.peaks["copy"]] if moved is not None else []
        return {"operations": operations, "waits": waits, "bytes": moved, "floor_s": max(times, default=None)}
