"""For each case not yet stored: predict, launch, append, show progress. Every planned case ends as one record.

Only those that were lost with the last place are left to be resumed.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol as Interface

from infsa_bench.agenda import Agenda
from infsa_bench.analyze.predict import Predictor
from infsa_bench.errors import SweepStoppedError
from infsa_bench.execute.engines import Ended, Engine, Task
from infsa_bench.execute.launcher import CaseRun, Patience
from infsa_bench.machine import Environment
from infsa_bench.record import Attempt, Failure, Measurement, Record, with_flag
from infsa_bench.report.units import format_bytes, format_duration
from infsa_bench.schedule import MEMORY_SHARE, Plan, Share, Step, exceeds_memory
from infsa_bench.spec import Case
from infsa_bench.store import RunWriter

MIN_TIMEOUT_SECONDS = {"eager": 60.0, "compile": 900.0, "cuda-graph": 120.0}
"""By mode of execution: compiling a deep model takes minutes, whatever its FLOPs."""

TIMEOUT_OVER_PREDICTED = 20.0
"""A case has so many times its predicted time; without a sign of life, so many times its longest step's."""


class Progress(Interface):
    """Who is told how the sweep goes on."""

    def started(self, case: Case, seconds: float, remaining_seconds: float) -> None:
        """A case begins that should take ``seconds``; in ``remaining_seconds`` it and all others should have ended."""

    def finished(self, record: Record, remaining_seconds: float) -> None:
        """A record is on disk; in ``remaining_seconds`` all others should be."""


def run_plan(plan: Plan, engine: Engine, writer: RunWriter, predictor: Predictor, progress: Progress) -> None:
    """Run what the run has no record of yet, each replicate in a fresh worker.

    A case whose device is lost meanwhile is tried once more on another one, where there is one; then it has failed.

    Raises:
        SweepStoppedError: the last device or the disk gave up; the records so far are intact.
    """
    dominance = plan.dominance(writer.recorded)
    agenda = Agenda(plan, predictor, plan.todo(writer.recorded), dominance)
    under_way: dict[Case, _Try] = {}
    again: list[_Try] = []
    calibrated: set[str] = set()
    stopped: str | None = None

    def store(record: Record, run: CaseRun) -> None:
        dominance.observe(record)
        with writing_to(writer):
            if run.calibration is not None and record.environment not in calibrated:
                writer.add_calibration(run.calibration)
                calibrated.add(record.environment)
            writer.append(record, run.trace)
        progress.finished(record, agenda.remaining_seconds())

    def store_ended(ended_try: _Try, ended: Ended) -> None:
        run = ended.run or _lost(ended)
        if isinstance(run.outcome, Measurement):
            predictor.observe(ended.task.case, run.outcome)
        with writing_to(writer):
            writer.add_environment(ended.environment)
        store(ended_try.record(ended.environment, run, seconds=ended.seconds, is_shared=ended.is_shared), run)

    while True:
        agenda.devices = max(1, engine.places)
        while (next_try := _next_try(engine, agenda, again)) is not None:
            step, share = next_try.step, next_try.step.share
            if share is None and next_try.lost is not None:
                # There is no time for another try.
                store_ended(replace(next_try, lost=None), next_try.lost)
                continue
            if next_try.lost is None:
                seconds = share.seconds if share else 0.0
                progress.started(step.case, seconds, max(seconds, agenda.remaining_seconds()))
            if share is None:
                skipped = _skip(plan, step)
                store(next_try.record(engine.hello.environment, skipped, seconds=0.0), skipped)
                continue
            engine.start(_task(plan, next_try, share))
            under_way[step.case] = next_try
        if not under_way:
            if stopped is not None or again or not agenda.is_done:
                reasons = [stopped, *(each.lost.lost for each in again if each.lost is not None)]
                raise SweepStoppedError(next(filter(None, reasons), "every device is lost"))
            break
        ended = engine.wait()
        ended_try = under_way.pop(ended.task.case)
        agenda.ended(ended.task.case)
        if ended.lost is not None and engine.places == 0:
            # Others that are under way may have a result all the same.
            stopped = stopped or ended.lost
        if ended.lost is not None and engine.places > 0 and ended_try.is_to_be_repeated(ended):
            again.append(replace(ended_try, lost=ended))
        elif ended.run is not None or ended_try.lost is not None or engine.places > 0:
            store_ended(ended_try, ended)
    # What idle power and counter have become in the meantime.
    for calibration in engine.calibrate():
        with writing_to(writer):
            writer.add_calibration(calibration)
    with writing_to(writer):
        writer.sync_manifest()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Try:
    """A case that was handed out, and how an earlier try ended whose place was lost."""

    step: Step
    started_utc: str
    lost: Ended | None = None

    def is_to_be_repeated(self, ended: Ended) -> bool:
        """Tell whether a case that was lost with its place should have another: once, if it was not measured."""
        return self.lost is None and (ended.run is None or not isinstance(ended.run.outcome, Measurement))

    @property
    def avoided(self) -> frozenset[str]:
        """The place that was lost."""
        return frozenset() if self.lost is None else frozenset({self.lost.place})

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """What came of the earlier try."""
        lost = self.lost
        if lost is None:
            return ()
        if lost.run is None or not isinstance(lost.run.outcome, Failure):
            return (Attempt(stage="start", message=f"lost on {lost.place}: {lost.lost}"),)
        outcome = lost.run.outcome
        message = f"{outcome.message}; then {lost.place} was lost: {lost.lost}"
        return (*lost.run.attempts, Attempt(stage=outcome.stage, message=message))

    def record(self, environment: Environment, run: CaseRun, *, seconds: float, is_shared: bool = False) -> Record:
        """Return the record of how the case ended."""
        return Record(
            case=self.step.case,
            environment=environment.key,
            started_utc=self.started_utc,
            seconds=seconds if self.lost is None else self.lost.seconds + seconds,
            attempts=(*self.attempts, *run.attempts),
            outcome=with_flag(run.outcome, "shared") if is_shared else run.outcome,
        )


def _next_try(engine: Engine, agenda: Agenda, again: list[_Try]) -> _Try | None:
    """Take off what a free place can do next; None where it has to wait, or nothing is left."""
    for repeated in again:
        if engine.has_room(repeated.avoided):
            again.remove(repeated)
            return replace(repeated, step=agenda.again(repeated.step))
    if not engine.has_room():
        return None
    step = agenda.next()
    return None if step is None else _Try(step=step, started_utc=utc_now())


@contextlib.contextmanager
def writing_to(writer: RunWriter) -> Iterator[None]:
    """Turn what goes wrong while a run is written into the end of the sweep."""
    try:
        yield
    except OSError as error:
        raise SweepStoppedError(f"cannot write to {writer.path}: {error}") from error


def _task(plan: Plan, next_try: _Try, share: Share) -> Task:
    case, prediction = next_try.step.case, next_try.step.prediction
    least_seconds = MIN_TIMEOUT_SECONDS[case.execution]
    timeout_seconds = plan.case_timeout_seconds
    if timeout_seconds is None:
        timeout_seconds = max(least_seconds, TIMEOUT_OVER_PREDICTED * prediction.seconds)
    patience = Patience(
        timeout_seconds=timeout_seconds,
        silence_seconds=max(least_seconds, TIMEOUT_OVER_PREDICTED * prediction.step_seconds),
        until=plan.deadline,
    )
    return Task(
        case=case,
        protocol=plan.protocol,
        patience=patience,
        limit_seconds=share.limit_seconds,
        energy=plan.energy,
        avoided=next_try.avoided,
    )


def _lost(ended: Ended) -> CaseRun:
    """Return the end of a case that was lost with its place, and nothing else is known of."""
    failure = Failure(kind="killed", stage="start", message=f"lost with its device: {ended.lost}")
    return CaseRun(outcome=failure, attempts=())


def _skip(plan: Plan, step: Step) -> CaseRun:
    """Return why a case is not even tried."""
    prediction, dominated_by = step.prediction, step.dominated_by
    if dominated_by is not None:
        message = f"dominated by {dominated_by.case.id}, which is smaller and ran out of memory"
    elif exceeds_memory(plan, prediction):
        assert prediction.peak_bytes is not None
        assert plan.host_memory_bytes is not None
        message = (
            f"predicted to need {format_bytes(prediction.peak_bytes)}, more than {MEMORY_SHARE:.0%} "
            f"of the {format_bytes(plan.host_memory_bytes)} that are free"
        )
    else:
        assert plan.deadline is not None
        message = (
            f"predicted to take {format_duration(prediction.least_seconds)} at the least, "
            f"more than the {format_duration(max(0.0, plan.deadline - time.monotonic()))} left of the time budget"
        )
    failure = Failure(
        kind="skipped",
        stage="plan",
        message=message,
        dominated_by=None if dominated_by is None else dominated_by.case.id,
        predicted_seconds=prediction.seconds,
        predicted_bytes=prediction.peak_bytes,
    )
    return CaseRun(outcome=failure, attempts=())


def utc_now() -> str:
    """Return the time in UTC, to the second, in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
