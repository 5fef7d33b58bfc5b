"""What is recorded when places are lost together, or at the end of the time: an engine that does as it is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import sample_records
from fake_worker import ENVIRONMENT, MEASUREMENT
from test_launcher import make_case
from test_ray_places import HELLO
from test_sweep import Listener, make_plan

from infsa_bench.analyze.predict import Predictor
from infsa_bench.errors import SweepStoppedError
from infsa_bench.execute.engines import Ended, Engine, Task
from infsa_bench.execute.launcher import CaseRun
from infsa_bench.protocol import PROTOCOLS
from infsa_bench.record import EnergyCalibration, Measurement, Record
from infsa_bench.schedule import Plan
from infsa_bench.store import RunWriter, load
from infsa_bench.sweep import run_plan

End = Callable[["ToldEngine"], Ended]


class ToldEngine:
    """Ends tasks in the order in which they were started, each as it is told to."""

    hello = HELLO

    def __init__(self, places: int, ends: Sequence[End]) -> None:
        self.places = places
        self.tasks: list[Task] = []
        self._ends = list(ends)

    def has_room(self, avoided: frozenset[str] = frozenset()) -> bool:
        return len(self.tasks) < self.places

    def start(self, task: Task) -> None:
        self.tasks.append(task)

    def wait(self) -> Ended:
        return self._ends.pop(0)(self)

    def calibrate(self) -> list[EnergyCalibration]:
        return []


def ended(engine: ToldEngine, *, is_measured: bool, lost: str | None) -> Ended:
    run = CaseRun(outcome=MEASUREMENT, attempts=()) if is_measured else None
    task = engine.tasks.pop(0)
    return Ended(task=task, place="a", environment=ENVIRONMENT, seconds=1.0, run=run, lost=lost)


def measured(engine: ToldEngine) -> Ended:
    return ended(engine, is_measured=True, lost=None)


def measured_and_lost(engine: ToldEngine) -> Ended:
    return ended(engine, is_measured=True, lost="its place is gone")


def all_lost(engine: ToldEngine) -> Ended:
    engine.places = 0
    return ended(engine, is_measured=False, lost="the power is gone")


def lost_too_late(engine: ToldEngine) -> Ended:
    time.sleep(1.6)
    return ended(engine, is_measured=False, lost="its node is gone")


def run_told(folder: Path, plan: Plan, engine: ToldEngine) -> None:
    with RunWriter(folder, sample_records.make_manifest()) as writer:
        run_plan(plan, cast(Engine, engine), writer, Predictor({"fp32": 1e15}), Listener())


def of(folder: Path, plan: Plan) -> list[Record]:
    return [record for record in load(folder).records if record.case in plan.cases]


@pytest.mark.parametrize("last", [measured, measured_and_lost])
def test_what_was_measured_when_the_last_places_went_together_is_kept(tmp_path: Path, last: End) -> None:
    plan = make_plan([make_case(n=str(number)) for number in range(3)])
    engine = ToldEngine(2, [all_lost, last])
    with pytest.raises(SweepStoppedError, match="the power is gone"):
        run_told(tmp_path / "run", plan, engine)
    (record,) = of(tmp_path / "run", plan)
    assert isinstance(record.outcome, Measurement)
    assert record.case == plan.cases[1]


def test_places_that_all_go_at_the_very_end_stop_the_sweep_too(tmp_path: Path) -> None:
    plan = make_plan([make_case()])
    with pytest.raises(SweepStoppedError, match="the power is gone"):
        run_told(tmp_path / "run", plan, ToldEngine(1, [all_lost]))
    assert of(tmp_path / "run", plan) == []


def test_a_case_that_is_lost_when_the_time_is_up_is_left_to_be_resumed(tmp_path: Path) -> None:
    short = PROTOCOLS["quick"].customized(warmup=1, iterations=1, replicates=None)
    plan = replace(make_plan([make_case()], seconds=1.5), protocol=short)
    run_told(tmp_path / "run", plan, ToldEngine(2, [lost_too_late]))
    assert of(tmp_path / "run", plan) == []
    plan = make_plan(plan.cases)
    run_told(tmp_path / "run", plan, ToldEngine(2, [measured]))
    (record,) = of(tmp_path / "run", plan)
    assert isinstance(record.outcome, Measurement)
