"""For each case not yet stored: predict, launch, append, show progress. Every planned case ends as one record."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol as Interface

from infsa_bench.analyze.predict import Prediction, Predictor
from infsa_bench.energy_plan import EnergyPreset
from infsa_bench.errors import SweepStoppedError
from infsa_bench.execute.launcher import CaseRun, Launcher
from infsa_bench.protocol import Protocol
from infsa_bench.record import Failure, Measurement, Record
from infsa_bench.report.units import format_bytes, format_duration
from infsa_bench.spec import Case
from infsa_bench.store import RunWriter

MEMORY_SHARE = 0.6
"""Share of free host memory above which a case on a CPU is skipped: there, running out takes the machine along."""

MIN_TIMEOUT_SECONDS = {"eager": 60.0, "compile": 900.0, "cuda-graph": 120.0}
"""By mode of execution: compiling a deep model takes minutes, whatever its FLOPs."""

TIMEOUT_OVER_PREDICTED = 20.0

FIRST_SHARE_SECONDS = 3.0
"""Under a time budget, warm-up and timing that a case should get before slower ones get their least. A few samples of
the largest cell more or less are worth less than an interval for each of the small ones.
"""

GRACE_SECONDS = 5.0
"""Time after the deadline for a case to end by itself, before its worker is killed."""


class Progress(Interface):
    """Who is told how the sweep goes on."""

    def started(self, case: Case, seconds: float, remaining_seconds: float) -> None:
        """A case begins that should take ``seconds``; ``remaining_seconds`` are for it and all that follow."""

    def finished(self, record: Record) -> None:
        """A record is on disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The cases to run, in order, and how.

    ``deadline`` is on the monotonic clock, None for no limit; ``host_memory_bytes`` is what cases on a CPU may
    share, None for no check; ``energy`` is how energy is watched where it can be, None for not at all.
    """

    cases: Sequence[Case]
    protocol: Protocol
    deadline: float | None
    host_memory_bytes: int | None
    energy: EnergyPreset | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a case gets of the time that is left.

    ``seconds`` is how long it should take, ``limit_seconds`` how long its warm-up and timing may, None for no limit.
    """

    seconds: float
    limit_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A case to come: what it is predicted to need and what it gets, None for a case that will be skipped."""

    case: Case
    prediction: Prediction
    share: Share | None


def run_plan(plan: Plan, launcher: Launcher, writer: RunWriter, predictor: Predictor, progress: Progress) -> None:
    """Run what the run has no record of yet, each replicate in a fresh worker.

    Raises:
        SweepStoppedError: the device or the disk gave up; the records so far are intact.
    """
    todo = [case for case in plan.cases if case.id not in writer.finished]
    replicate: int | None = None
    is_calibrated = False
    while todo:
        steps = schedule(plan, predictor, todo)
        step = steps[0]
        todo.remove(step.case)
        if step.case.replicate != replicate:
            launcher.renew()
            replicate = step.case.replicate
        progress.started(step.case, step.share.seconds if step.share else 0.0, scheduled_seconds(steps))
        started_utc, started = utc_now(), time.monotonic()
        run = _launch(plan, launcher, step, step.share) if step.share else _skip(plan, step.prediction)
        if isinstance(run.outcome, Measurement):
            predictor.observe(step.case, run.outcome)
        record = Record(
            case=step.case,
            environment=launcher.hello.environment.key,
            started_utc=started_utc,
            seconds=time.monotonic() - started,
            attempts=run.attempts,
            outcome=run.outcome,
        )
        with _writing_to(writer):
            if run.calibration is not None and not is_calibrated:
                writer.add_calibration(run.calibration)
                is_calibrated = True
            writer.append(record, run.trace)
        progress.finished(record)
    # What idle power and counter have become in the meantime.
    calibration = launcher.calibrate()
    if calibration is not None:
        with _writing_to(writer):
            writer.add_calibration(calibration)


@contextlib.contextmanager
def _writing_to(writer: RunWriter) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SweepStoppedError(f"cannot write to {writer.path}: {error}") from error


def schedule(plan: Plan, predictor: Predictor, cases: Sequence[Case]) -> list[Step]:
    """Return the cases in the order in which they would run, and what each would get.

    Without a time budget that is the plan's own order. With one, the cheapest of a resolution come first: otherwise
    one quadratic mechanism eats what would have measured all the others.
    """
    predictions = [(case, predictor.predict(case, plan.protocol)) for case in cases]
    left_seconds = None
    if plan.deadline is not None:
        left_seconds = plan.deadline - time.monotonic()
        predictions.sort(key=lambda pair: (pair[0].replicate, pair[0].resolution, pair[1].least_seconds))
    shares = share_out(plan, [prediction for _, prediction in predictions], left_seconds)
    return [
        Step(case=case, prediction=prediction, share=share)
        for (case, prediction), share in zip(predictions, shares, strict=True)
    ]


def share_out(plan: Plan, predictions: Sequence[Prediction], left_seconds: float | None) -> list[Share | None]:
    """Return what each case gets of the time left, in the order of their running; None for one that does not fit.

    Everyone who fits gets the least that makes a measurement, or :data:`FIRST_SHARE_SECONDS` while that lasts, and the
    same share of what is then still left. Who needs less than that leaves it to those who follow.
    """
    if left_seconds is None:
        return [
            None if _exceeds_memory(plan, prediction) else Share(seconds=prediction.seconds, limit_seconds=None)
            for prediction in predictions
        ]
    reservations = _reserve(plan, predictions, left_seconds)
    reserved_seconds = sum(reservation for reservation in reservations if reservation is not None)
    count = sum(reservation is not None for reservation in reservations)
    shares: list[Share | None] = []
    for prediction, reservation in zip(predictions, reservations, strict=True):
        if reservation is None:
            shares.append(None)
            continue
        most_seconds = reservation + max(0.0, left_seconds - reserved_seconds) / count
        seconds = min(prediction.seconds, most_seconds)
        shares.append(Share(seconds=seconds, limit_seconds=most_seconds - prediction.fixed_seconds))
        left_seconds -= seconds
        reserved_seconds -= reservation
        count -= 1
    return shares


def _reserve(plan: Plan, predictions: Sequence[Prediction], left_seconds: float) -> list[float | None]:
    """Return the seconds that are set aside for each case, None for one that does not fit."""
    reservations: list[float | None] = []
    for prediction in predictions:
        first_share = min(prediction.seconds, prediction.fixed_seconds + FIRST_SHARE_SECONDS)
        seconds = max(prediction.least_seconds, first_share)
        if seconds > left_seconds:
            seconds = prediction.least_seconds
        if seconds > left_seconds or _exceeds_memory(plan, prediction):
            reservations.append(None)
            continue
        reservations.append(seconds)
        left_seconds -= seconds
    return reservations


def scheduled_seconds(steps: Iterable[Step]) -> float:
    """Return how long the steps should take, those that will be skipped left out."""
    return sum(step.share.seconds for step in steps if step.share)


def _launch(plan: Plan, launcher: Launcher, step: Step, share: Share) -> CaseRun:
    timeout_seconds = max(MIN_TIMEOUT_SECONDS[step.case.execution], TIMEOUT_OVER_PREDICTED * step.prediction.seconds)
    if plan.deadline is not None:
        timeout_seconds = min(timeout_seconds, max(0.0, plan.deadline - time.monotonic()) + GRACE_SECONDS)
    return launcher.run(
        step.case,
        plan.protocol,
        timeout_seconds=timeout_seconds,
        limit_seconds=share.limit_seconds,
        energy=plan.energy,
    )


def _exceeds_memory(plan: Plan, prediction: Prediction) -> bool:
    if plan.host_memory_bytes is None or prediction.peak_bytes is None:
        return False
    return prediction.peak_bytes > MEMORY_SHARE * plan.host_memory_bytes


def _skip(plan: Plan, prediction: Prediction) -> CaseRun:
    """Return why a case is not even tried."""
    if _exceeds_memory(plan, prediction):
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
        predicted_seconds=prediction.seconds,
        predicted_bytes=prediction.peak_bytes,
    )
    return CaseRun(outcome=failure, attempts=())


def utc_now() -> str:
    """Return the time in UTC, to the second, in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
