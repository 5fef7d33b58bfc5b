"""For each case not yet stored: predict, launch, append, show progress. Every planned case ends as one record."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol as Interface

from infsa_bench.analyze.predict import Prediction, Predictor
from infsa_bench.errors import SweepStoppedError
from infsa_bench.execute.launcher import CaseRun, Launcher
from infsa_bench.record import Failure, Measurement, Record
from infsa_bench.report.units import format_bytes, format_duration
from infsa_bench.spec import Case, Protocol
from infsa_bench.store import RunWriter

MEMORY_SHARE = 0.6
"""Share of free host memory above which a case on a CPU is skipped: there, running out takes the machine along."""

MIN_TIMEOUT_SECONDS = {"eager": 60.0, "compile": 900.0, "cuda-graph": 120.0}
"""By mode of execution: compiling a deep model takes minutes, whatever its FLOPs."""

TIMEOUT_OVER_PREDICTED = 20.0

GRACE_SECONDS = 5.0
"""Time after the deadline for a case to end by itself, before its worker is killed."""


class Progress(Interface):
    """Who is told how the sweep goes on."""

    def started(self, case: Case, prediction: Prediction, remaining_seconds: float) -> None:
        """A case begins; ``remaining_seconds`` are predicted for it and all that follow."""

    def finished(self, record: Record) -> None:
        """A record is on disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The cases to run, in order, and how.

    ``deadline`` is on the monotonic clock, None for no limit; ``host_memory_bytes`` is what cases on a CPU may
    share, None for no check.
    """

    cases: Sequence[Case]
    protocol: Protocol
    deadline: float | None
    host_memory_bytes: int | None


def run_plan(plan: Plan, launcher: Launcher, writer: RunWriter, predictor: Predictor, progress: Progress) -> None:
    """Run what the run has no record of yet.

    Raises:
        SweepStoppedError: the device or the disk gave up; the records so far are intact.
    """
    todo = [case for case in plan.cases if case.id not in writer.finished]
    while todo:
        predictions = {case: predictor.predict(case, plan.protocol) for case in todo}
        case = _next(plan, predictions)
        todo.remove(case)
        prediction = predictions[case]
        progress.started(case, prediction, predicted_seconds(plan, list(predictions.values())))
        started_utc, started = utc_now(), time.monotonic()
        skipped = _skip(plan, prediction)
        run = CaseRun(outcome=skipped, attempts=()) if skipped else _launch(plan, launcher, case, prediction)
        if isinstance(run.outcome, Measurement):
            predictor.observe(case, run.outcome)
        record = Record(
            case=case,
            environment=launcher.hello.environment.key,
            started_utc=started_utc,
            seconds=time.monotonic() - started,
            attempts=run.attempts,
            outcome=run.outcome,
        )
        try:
            writer.append(record)
        except OSError as error:
            raise SweepStoppedError(f"cannot write to {writer.path}: {error}") from error
        progress.finished(record)


def _next(plan: Plan, predictions: Mapping[Case, Prediction]) -> Case:
    """Return the case to run next: the plan's own order, but under a time budget the cheapest of a resolution first.

    Otherwise one quadratic mechanism eats what would have measured all the others.
    """
    if plan.deadline is None:
        return next(iter(predictions))
    return min(predictions, key=lambda case: (case.resolution, predictions[case].seconds))


def predicted_seconds(plan: Plan, predictions: Sequence[Prediction]) -> float:
    """Return how long cases with these predictions will take, those that will be skipped left out."""
    left = None if plan.deadline is None else plan.deadline - time.monotonic()
    total = 0.0
    for prediction in predictions:
        if _exceeds_memory(plan, prediction) or (left is not None and total + prediction.seconds > left):
            continue
        total += prediction.seconds
    return total


def _launch(plan: Plan, launcher: Launcher, case: Case, prediction: Prediction) -> CaseRun:
    timeout_seconds = max(MIN_TIMEOUT_SECONDS[case.execution], TIMEOUT_OVER_PREDICTED * prediction.seconds)
    limit_seconds = None
    if plan.deadline is not None:
        limit_seconds = max(0.0, plan.deadline - time.monotonic())
        timeout_seconds = min(timeout_seconds, limit_seconds + GRACE_SECONDS)
    return launcher.run(case, plan.protocol, timeout_seconds=timeout_seconds, limit_seconds=limit_seconds)


def _exceeds_memory(plan: Plan, prediction: Prediction) -> bool:
    if plan.host_memory_bytes is None or prediction.peak_bytes is None:
        return False
    return prediction.peak_bytes > MEMORY_SHARE * plan.host_memory_bytes


def _skip(plan: Plan, prediction: Prediction) -> Failure | None:
    """Return why a case is not even tried, or None."""
    message = None
    if _exceeds_memory(plan, prediction):
        assert prediction.peak_bytes is not None
        assert plan.host_memory_bytes is not None
        message = (
            f"predicted to need {format_bytes(prediction.peak_bytes)}, more than {MEMORY_SHARE:.0%} "
            f"of the {format_bytes(plan.host_memory_bytes)} that are free"
        )
    elif plan.deadline is not None:
        left = max(0.0, plan.deadline - time.monotonic())
        if prediction.seconds > left:
            message = (
                f"predicted to take {format_duration(prediction.seconds)}, "
                f"more than the {format_duration(left)} left of the time budget"
            )
    if message is None:
        return None
    return Failure(
        kind="skipped",
        stage="plan",
        message=message,
        predicted_seconds=prediction.seconds,
        predicted_bytes=prediction.peak_bytes,
    )


def utc_now() -> str:
    """Return the time in UTC, to the second, in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
