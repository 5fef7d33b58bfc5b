"""For each case not yet stored: predict, launch, append, show progress. Every planned case ends as one record."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator
from typing import Protocol as Interface

from infsa_bench.analyze.predict import Predictor
from infsa_bench.errors import SweepStoppedError
from infsa_bench.execute.launcher import CaseRun, Launcher, Patience
from infsa_bench.record import Failure, Measurement, Record, with_flag
from infsa_bench.report.units import format_bytes, format_duration
from infsa_bench.schedule import MEMORY_SHARE, Agenda, Plan, Share, Step, exceeds_memory
from infsa_bench.spec import Case
from infsa_bench.store import RunWriter

MIN_TIMEOUT_SECONDS = {"eager": 60.0, "compile": 900.0, "cuda-graph": 120.0}
"""By mode of execution: compiling a deep model takes minutes, whatever its FLOPs."""

TIMEOUT_OVER_PREDICTED = 20.0
"""A case has so many times its predicted time; without a sign of life, so many times its longest step's."""


class Progress(Interface):
    """Who is told how the sweep goes on."""

    def started(self, case: Case, seconds: float, remaining_seconds: float) -> None:
        """A case begins that should take ``seconds``; ``remaining_seconds`` are for it and all that follow."""

    def finished(self, record: Record) -> None:
        """A record is on disk."""


def run_plan(
    plan: Plan,
    launcher: Launcher,
    writer: RunWriter,
    predictor: Predictor,
    progress: Progress,
    is_shared: Callable[[], bool] = bool,
) -> None:
    """Run what the run has no record of yet, each replicate in a fresh worker.

    ``is_shared`` tells whether another sweep runs on the same device just now.

    Raises:
        SweepStoppedError: the device or the disk gave up; the records so far are intact.
    """
    dominance = plan.dominance(writer.recorded)
    agenda = Agenda(plan, predictor, plan.todo(writer.recorded), dominance)
    replicate: int | None = None
    is_calibrated = False
    while (step := agenda.next()) is not None:
        if step.case.replicate != replicate:
            launcher.renew()
            replicate = step.case.replicate
        progress.started(step.case, step.share.seconds if step.share else 0.0, agenda.remaining_seconds())
        started_utc, started = utc_now(), time.monotonic()
        was_shared = is_shared()
        run = _launch(plan, launcher, step, step.share) if step.share else _skip(plan, step)
        outcome = run.outcome
        if isinstance(outcome, Measurement):
            predictor.observe(step.case, outcome)
        if step.share and (was_shared or is_shared()):
            outcome = with_flag(outcome, "shared")
        record = Record(
            case=step.case,
            environment=launcher.hello.environment.key,
            started_utc=started_utc,
            seconds=time.monotonic() - started,
            attempts=run.attempts,
            outcome=outcome,
        )
        dominance.observe(record)
        with writing_to(writer):
            if run.calibration is not None and not is_calibrated:
                writer.add_calibration(run.calibration)
                is_calibrated = True
            writer.append(record, run.trace)
        progress.finished(record)
        if run.stopped is not None:
            raise run.stopped
    # What idle power and counter have become in the meantime.
    calibration = launcher.calibrate()
    if calibration is not None:
        with writing_to(writer):
            writer.add_calibration(calibration)


@contextlib.contextmanager
def writing_to(writer: RunWriter) -> Iterator[None]:
    """Turn what goes wrong while a run is written into the end of the sweep."""
    try:
        yield
    except OSError as error:
        raise SweepStoppedError(f"cannot write to {writer.path}: {error}") from error


def _launch(plan: Plan, launcher: Launcher, step: Step, share: Share) -> CaseRun:
    least_seconds, prediction = MIN_TIMEOUT_SECONDS[step.case.execution], step.prediction
    timeout_seconds = plan.case_timeout_seconds
    if timeout_seconds is None:
        timeout_seconds = max(least_seconds, TIMEOUT_OVER_PREDICTED * prediction.seconds)
    patience = Patience(
        timeout_seconds=timeout_seconds,
        silence_seconds=max(least_seconds, TIMEOUT_OVER_PREDICTED * prediction.step_seconds),
        until=plan.deadline,
    )
    return launcher.run(step.case, plan.protocol, patience, limit_seconds=share.limit_seconds, energy=plan.energy)


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
