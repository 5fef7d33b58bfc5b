"""A run of many cells in which nothing is measured: the real plan, schedule and store, and a launcher that answers at
once. ``python tests/bench/simulated_run.py CELLS FOLDER`` prints what it took, as JSON.

Time is the process's own, not the clock's, so that what else the machine does matters little. Every so often a small
run is made beside the large one: what a cell takes is compared within the same minutes. FOLDER decides what a synced
write costs; in one that is held in memory that is nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import resource
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from sample_records import ENVIRONMENT, make_failure, make_manifest, make_measurement

from infsa_bench.analyze.predict import Predictor
from infsa_bench.execute.launcher import CaseRun, Launcher
from infsa_bench.protocol import PROTOCOLS
from infsa_bench.record import Record
from infsa_bench.schedule import Plan
from infsa_bench.spec import EXECUTIONS, LADDER, PHASES, PRECISIONS, Case, Sweep
from infsa_bench.store import RECORDS, RunWriter
from infsa_bench.sweep import run_plan
from infsa_models.registry import CONFIGS, MECHANISMS

SAMPLES = 100
SMALL_CELLS = 996
SMALL_RUNS = 6
BUDGET_SECONDS = 1e9


class InstantLauncher:
    """Stands in for the launcher: a time that grows with the tokens, and no memory for the largest quadratic ones."""

    hello = types.SimpleNamespace(environment=ENVIRONMENT)

    def renew(self) -> None:
        """There is no worker."""

    def calibrate(self) -> None:
        """There is no energy counter."""

    def run(self, case: Case, *_: object, **__: object) -> CaseRun:
        if case.mechanism in ("softmax", "infsa-pure") and case.resolution >= 6144:
            return CaseRun(outcome=make_failure("oom"), attempts=())
        seconds = 1e-4 * case.tokens
        return CaseRun(outcome=make_measurement([seconds * (1 + i % 7 / 100) for i in range(SAMPLES)]), attempts=())


class Listener:
    """Calls ``every`` after each ``interval`` cells."""

    def __init__(self, interval: int, every: Callable[[], None]) -> None:
        self._interval, self._every, self._count = interval, every, 0

    def started(self, case: Case, seconds: float, remaining_seconds: float) -> None:
        """Nobody looks."""

    def finished(self, record: Record) -> None:
        self._count += 1
        if self._count % self._interval == 0:
            self._every()


def cells_of(count: int) -> list[Case]:
    """As many cells as a sweep over every axis has: each model at every resolution, small resolutions first."""
    models = Sweep(
        mechanisms=tuple(MECHANISMS),
        implementations=("reference", "fast"),
        configs=tuple(CONFIGS),
        resolutions=(LADDER[0],),
        phases=PHASES,
        precisions=PRECISIONS,
        executions=EXECUTIONS,
        batch_sizes=tuple(range(1, 9)),
    )
    found = list(models.cases("cuda"))[: math.ceil(count / len(LADDER))]
    cells = [dataclasses.replace(model, resolution=side) for side, model in itertools.product(LADDER, found)]
    assert len(cells) >= count
    return cells[:count]


def plan_of(cells: Sequence[Case], *, has_budget: bool) -> Plan:
    deadline = time.monotonic() + BUDGET_SECONDS if has_budget else None
    return Plan(cases=cells, protocol=PROTOCOLS["quick"], deadline=deadline, host_memory_bytes=None)


def run(plan: Plan, folder: Path, interval: int = sys.maxsize, every: Callable[[], None] = lambda: None) -> float:
    """Run a plan into ``folder``; return the process time of it all."""
    started = time.process_time()
    manifest = make_manifest([case.id for case in plan.cases])
    predictor = Predictor({"fp32": 1e14})
    with RunWriter(folder, manifest) as writer:
        run_plan(plan, cast(Launcher, InstantLauncher()), writer, predictor, Listener(interval, every))
    return time.process_time() - started


def resume(plan: Plan, folder: Path) -> tuple[int, float]:
    """Open a run again; return how many cells are left and what finding that out took."""
    started = time.process_time()
    with RunWriter(folder, make_manifest([case.id for case in plan.cases])) as writer:
        plan.dominance(writer.recorded)
        left = len(plan.todo(writer.recorded))
    return left, time.process_time() - started


def grow(count: int, folder: Path, *, has_budget: bool) -> dict[str, Any]:
    """Make a large run and small ones beside it; return the figures of both."""
    small: list[float] = []

    def run_small() -> None:
        # With a seed of its own: what formulas say of a case is remembered.
        cells = [dataclasses.replace(cell, seed=1 + len(small)) for cell in cells_of(SMALL_CELLS)]
        small.append(run(plan_of(cells, has_budget=has_budget), folder / f"small-{time.monotonic_ns()}"))

    run_small()
    small.clear()  # Types that are looked at for the first time take longer.
    plan = plan_of(cells_of(count), has_budget=has_budget)
    seconds = run(plan, folder / "large", count // SMALL_RUNS, run_small) - sum(small)
    peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    left, resume_seconds = resume(plan, folder / "large")
    return {
        "cells": count,
        "seconds_per_cell": seconds / count,
        "small_seconds_per_cell": sum(small) / len(small) / SMALL_CELLS,
        "peak_bytes": peak_bytes,
        "record_bytes": (folder / "large" / RECORDS).stat().st_size / count,
        "left": left,
        "resume_seconds": resume_seconds,
    }


if __name__ == "__main__":
    print(json.dumps(grow(int(sys.argv[1]), Path(sys.argv[2]), has_budget="--budget" in sys.argv)))
