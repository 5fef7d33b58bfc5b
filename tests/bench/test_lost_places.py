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
from infsa_bench.record import EnergyCalibration, Failure, Measurement, Record
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
    time.sleep(4.1)
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


SHORT = PROTOCOLS["quick"].customized(warmup=1, iterations=1, replicates=None)


def test_a_case_that_is_lost_when_the_time_is_up_is_recorded_and_can_be_retried(tmp_path: Path) -> None:
    plan = replace(make_plan([make_case()], seconds=4.0), protocol=SHORT)
    run_told(tmp_path / "run", plan, ToldEngine(2, [lost_too_late]))
    (record,) = of(tmp_path / "run", plan)
    assert isinstance(record.outcome, Failure)
    assert record.outcome.kind == "killed"
    assert "its node is gone" in record.outcome.message
    assert record.attempts == ()
    assert record.seconds == 1.0
    plan = replace(make_plan(plan.cases), retried=frozenset({"killed"}))
    run_told(tmp_path / "run", plan, ToldEngine(2, [measured]))
    (record,) = of(tmp_path / "run", plan)
    assert isinstance(record.outcome, Measurement)


class TimedEngine(ToldEngine):
    """Notes when each task was started."""

    def __init__(self, places: int, ends: Sequence[End]) -> None:
        super().__init__(places, ends)
        self.started: list[tuple[float, Task]] = []

    def start(self, task: Task) -> None:
        self.started.append((time.monotonic(), task))
        super().start(task)


def lost_after_three_seconds(engine: ToldEngine) -> Ended:
    time.sleep(3.0)
    return ended(engine, is_measured=False, lost="its node is gone")


def test_another_try_has_what_is_left_of_the_time(tmp_path: Path) -> None:
    plan = make_plan([make_case()], seconds=20.0)
    engine = TimedEngine(2, [lost_after_three_seconds, measured])
    run_told(tmp_path / "run", plan, engine)
    (_, first), (at, second) = engine.started
    assert plan.deadline is not None
    assert first.limit_seconds is not None
    assert second.limit_seconds is not None
    assert second.avoided == {"a"}
    assert 10.0 < second.limit_seconds <= plan.deadline - at < first.limit_seconds
    (record,) = of(tmp_path / "run", plan)
    assert isinstance(record.outcome, Measurement)
    assert record.seconds == 2.0
    (attempt,) = record.attempts
    assert "its node is gone" in attempt.message


class WaitingEngine(TimedEngine):
    """Has another place for a lost case only when all others have ended."""

    def has_room(self, avoided: frozenset[str] = frozenset()) -> bool:
        return super().has_room() and not (avoided and self.tasks)


def measured_late(engine: ToldEngine) -> Ended:
    time.sleep(4.1)
    return measured(engine)


def lost_at_once(engine: ToldEngine) -> Ended:
    return ended(engine, is_measured=False, lost="its node is gone")


def test_no_other_try_begins_after_the_time_is_up(tmp_path: Path) -> None:
    plan = replace(make_plan([make_case(n="0"), make_case(n="1")], seconds=4.0), protocol=SHORT)
    engine = WaitingEngine(2, [lost_at_once, measured_late])
    run_told(tmp_path / "run", plan, engine)
    assert len(engine.started) == 2
    outcomes = [record.outcome for record in of(tmp_path / "run", plan)]
    assert sorted(outcome.kind for outcome in outcomes if isinstance(outcome, Failure)) == ["killed"]
    assert sum(isinstance(outcome, Measurement) for outcome in outcomes) == 1
