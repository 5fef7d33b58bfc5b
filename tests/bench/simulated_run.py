"""A run of many cells in which nothing is measured: the real plan, schedule and store, and an engine that answers at
once. ``python tests/bench/simulated_run.py CELLS FOLDER`` prints what it took, as JSON; ``--budget`` plans within a
time budget, ``--places 8`` hands the cells to as many devices.

Time is the process's own, not the clock's, so that what else the machine does matters little. Every so often a small
run is made beside the large one: what a cell takes is compared within the same minutes. FOLDER decides what a synced
write costs; in one that is held in memory that is nothing.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sample_records import ENVIRONMENT, make_failure, make_manifest, make_measurement

from infsa_bench.analyze.predict import Predictor
from infsa_bench.execute.engines import Ended, Engine, Task
from infsa_bench.execute.launcher import CaseRun
from infsa_bench.execute.messages import Hello
from infsa_bench.machine import Environment
from infsa_bench.measure.memory import status_bytes
from infsa_bench.peaks import MeasuredPeaks
from infsa_bench.protocol import PROTOCOLS
from infsa_bench.record import EnergyCalibration, Outcome, Record
from infsa_bench.schedule import Plan
from infsa_bench.spec import EXECUTIONS, LADDER, PHASES, PRECISIONS, Case, Sweep
from infsa_bench.store import RECORDS, RunWriter, load_manifest
from infsa_bench.sweep import run_plan
from infsa_models.registry import CONFIGS, MECHANISMS

SAMPLES = 100
SMALL_CELLS = 996
SMALL_RUNS = 6
BUDGET_SECONDS = 1e9


class InstantEngine(Engine):
    """Stands in for devices: a time that grows with the tokens, and no memory for the largest quadratic cells."""

    available_bytes = None

    def __init__(self, places: int) -> None:
        self._environments = {f"cuda:{place}": environment_of(place) for place in range(places)}
        self._free = collections.deque(self._environments)
        self._under_way: collections.deque[tuple[str, Task]] = collections.deque()

    @property
    def hello(self) -> Hello:
        return self.hellos[0]

    @property
    def hellos(self) -> tuple[Hello, ...]:
        return tuple(map(hello_of, self._environments.values()))

    @property
    def devices(self) -> str:
        return ",".join(self._environments)

    @property
    def places(self) -> int:
        return len(self._environments)

    def describe_places(self) -> str:
        return self.devices

    def check(self, mechanisms: tuple[str, ...]) -> None:
        """All is well."""

    def limit_memory(self, limit_bytes: int) -> None:
        """There is none."""

    def measure_peaks(self) -> MeasuredPeaks:
        raise AssertionError("a simulated run asks for no peaks")

    def is_shared(self) -> bool:
        return False

    def has_room(self, avoided: frozenset[str] = frozenset()) -> bool:
        assert not avoided, "no place is ever lost"
        return bool(self._free)

    def start(self, task: Task) -> None:
        self._under_way.append((self._free.popleft(), task))

    def wait(self) -> Ended:
        place, task = self._under_way.popleft()
        self._free.append(place)
        run = CaseRun(outcome=outcome_of(task.case), attempts=())
        return Ended(task=task, place=place, environment=self._environments[place], seconds=1.0, run=run)

    def calibrate(self) -> list[EnergyCalibration]:
        return []


def environment_of(place: int) -> Environment:
    return dataclasses.replace(ENVIRONMENT, device=f"cuda:{place}", device_uuid=f"GPU-{place}")


def hello_of(environment: Environment) -> Hello:
    return Hello(
        environment=environment,
        gpus=(environment.device,),
        matmul_flops_per_second={"fp32": 1e14},
        available_bytes=None,
        energy_source=None,
        no_energy_reason="nothing is measured",
    )


def outcome_of(case: Case) -> Outcome:
    if case.mechanism in ("softmax", "infsa-pure") and case.resolution >= 6144:
        return make_failure("oom")
    seconds = 1e-4 * case.tokens
    return make_measurement([seconds * (1 + i % 7 / 100) for i in range(SAMPLES)])


class Listener:
    """Calls ``every`` after each ``interval`` cells."""

    def __init__(self, interval: int, every: Callable[[], None]) -> None:
        self._interval, self._every, self._count = interval, every, 0

    def started(self, case: Case, seconds: float, remaining_seconds: float) -> None:
        """Nobody looks."""

    def finished(self, record: Record, remaining_seconds: float) -> None:
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


def run(
    plan: Plan, folder: Path, places: int, interval: int = sys.maxsize, every: Callable[[], None] = lambda: None
) -> float:
    """Run a plan into ``folder``; return the process time of it all."""
    started = time.process_time()
    engine = InstantEngine(places)
    predictor = Predictor(engine.hello.matmul_flops_per_second)
    with RunWriter(folder, make_manifest([case.id for case in plan.cases])) as writer:
        writer.add_environments(hello.environment for hello in engine.hellos)
        run_plan(plan, engine, writer, predictor, Listener(interval, every))
    return time.process_time() - started


def resume(plan: Plan, folder: Path) -> tuple[int, float]:
    """Open a run again; return how many cells are left and what finding that out took."""
    started = time.process_time()
    with RunWriter(folder, load_manifest(folder)) as writer:
        plan.dominance(writer.recorded)
        left = len(plan.todo(writer.recorded))
    return left, time.process_time() - started


def grow(count: int, folder: Path, *, places: int, has_budget: bool) -> dict[str, Any]:
    """Make a large run and small ones beside it, and open the large one again; return the figures of it all."""
    small: list[float] = []

    def run_small() -> None:
        # With a seed of its own: what formulas say of a case is remembered.
        cells = [dataclasses.replace(cell, seed=1 + len(small)) for cell in cells_of(SMALL_CELLS)]
        small.append(run(plan_of(cells, has_budget=has_budget), folder / f"small-{time.monotonic_ns()}", places))

    run_small()
    small.clear()  # Types that are looked at for the first time take longer.
    plan = plan_of(cells_of(count), has_budget=has_budget)
    seconds = run(plan, folder / "large", places, count // SMALL_RUNS, run_small) - sum(small)
    left, resume_seconds = resume(plan, folder / "large")
    return {
        "cells": count,
        "places": places,
        "seconds_per_cell": seconds / count,
        "small_seconds_per_cell": sum(small) / len(small) / SMALL_CELLS,
        "record_bytes": (folder / "large" / RECORDS).stat().st_size / count,
        "left": left,
        "resume_seconds": resume_seconds,
        # Not getrusage's: that one begins with what the process held that started this one.
        "peak_bytes": status_bytes("VmHWM"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate a run; print what it took, as JSON.")
    parser.add_argument("cells", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--places", type=int, default=1)
    parser.add_argument("--budget", action="store_true")
    given = parser.parse_args()
    if given.cells < SMALL_RUNS or given.places < 1:
        parser.error(f"a simulated run has {SMALL_RUNS} cells and a place at the least")
    print(json.dumps(grow(given.cells, given.folder, places=given.places, has_budget=given.budget)))


if __name__ == "__main__":
    main()
