"""Which cases are still to be run, in which order, what each gets of the time left, and which need not be tried.

All of it at one moment; :mod:`~infsa_bench.agenda` hands the cases out while it changes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from infsa_bench.analyze.dominance import Dominance
from infsa_bench.analyze.predict import Prediction, Predictor
from infsa_bench.energy_plan import EnergyPreset
from infsa_bench.protocol import Protocol
from infsa_bench.record import Failure, FailureKind, Record
from infsa_bench.recorded import Recorded
from infsa_bench.spec import Case

MEMORY_SHARE = 0.6
"""Share of free host memory above which a case on a CPU is skipped: there, running out takes the machine along."""

FIRST_SHARE_SECONDS = 3.0
"""Under a time budget, warm-up and timing that a case should get before slower ones get their least. A few samples of
the largest cell more or less are worth less than an interval for each of the small ones.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The cases to run, in order, and how.

    ``deadline`` is on the monotonic clock, None for no limit; ``host_memory_bytes`` is what cases on a CPU may
    share, None for no check; ``energy`` is how energy is watched where it can be, None for not at all.
    ``device_memory_bytes`` is that of the device, None where nobody needs to know. ``case_timeout_seconds`` is what
    each case has, None for what its prediction gives it; ``case_budget_seconds`` is what its warm-up and timing should
    take at most, None for as long as they need. With ``is_pruned``, cases larger than one that ran out of memory are
    skipped. Records of the kinds in ``retried`` are measured again.
    """

    cases: Sequence[Case]
    protocol: Protocol
    deadline: float | None
    host_memory_bytes: int | None
    energy: EnergyPreset | None = None
    device_memory_bytes: int | None = None
    case_timeout_seconds: float | None = None
    case_budget_seconds: float | None = None
    is_pruned: bool = True
    retried: frozenset[FailureKind] = frozenset()

    def todo(self, recorded: Recorded) -> list[Case]:
        """Return the cases that are still to be run."""
        unmeasured = recorded.unmeasured
        return [case for case in self.cases if case.id not in recorded or self._is_retried(unmeasured.get(case.id))]

    def dominance(self, recorded: Recorded) -> Dominance:
        """Return what the records that stand say about larger cases."""
        dominance = Dominance()
        for record in recorded.unmeasured.values():
            if not self._is_retried(record):
                dominance.observe(record)
        return dominance

    def _is_retried(self, record: Record | None) -> bool:
        return record is not None and isinstance(record.outcome, Failure) and record.outcome.kind in self.retried


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """How many devices there are, and when those that are at work should have done with it, on the monotonic clock."""

    devices: int = 1
    busy_until: Sequence[float] = ()

    def device_seconds(self, seconds: float) -> float:
        """Return the time of all devices together in the next ``seconds``, without what they are at work on."""
        now = time.monotonic()
        busy_seconds = sum(min(max(0.0, until - now), max(0.0, seconds)) for until in self.busy_until)
        return seconds * self.devices - busy_seconds


ALONE = Crew()
"""One device, which begins its next case when it has done with the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a case gets of the time that is left.

    ``seconds`` is how long it should take, ``limit_seconds`` how long its warm-up and timing may, None for no limit.
    """

    seconds: float
    limit_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A case to come: what it is predicted to need and what it gets, None for a case that will be skipped.

    ``dominated_by`` is the smaller case that ran out of memory, which is then why.
    """

    case: Case
    prediction: Prediction
    share: Share | None
    dominated_by: Record | None = None


def schedule(
    plan: Plan,
    predictor: Predictor,
    cases: Sequence[Case],
    dominance: Dominance | None = None,
    crew: Crew = ALONE,
) -> list[Step]:
    """Return the cases in the order in which they would run, and what each would get; ``dominance`` is what is known.

    Without a time budget that is the plan's own order or, where ``crew`` has several devices, the longest of a pass
    first, so that all of them end at about the same time; those that should not fit into the device come last, so that
    the smallest of them spares the others. With a time budget, the cheapest of a resolution come first when time is
    shared out: otherwise one quadratic mechanism eats what would have measured all the others.
    """
    predictions = [(case, predictor.predict(case, plan.protocol)) for case in cases]
    left_seconds = None
    if plan.deadline is not None:
        left_seconds = plan.deadline - time.monotonic()
        predictions.sort(key=lambda pair: (pair[0].replicate, pair[0].resolution, pair[1].least_seconds))
    elif crew.devices > 1:
        predictions.sort(key=lambda pair: _longest_first(plan, *pair))
    dominating = [dominance.dominating(case) if dominance and plan.is_pruned else None for case, _ in predictions]
    tried = [prediction for (_, prediction), by in zip(predictions, dominating, strict=True) if by is None]
    shares = iter(
        within_budget(plan, prediction, share)
        for prediction, share in zip(tried, share_out(plan, tried, left_seconds, crew), strict=True)
    )
    steps = [
        Step(case=case, prediction=prediction, share=next(shares) if by is None else None, dominated_by=by)
        for (case, prediction), by in zip(predictions, dominating, strict=True)
    ]
    return steps if plan.deadline is None else _rotated(steps)


def _longest_first(plan: Plan, case: Case, prediction: Prediction) -> tuple[float, ...]:
    """Return what cases are sorted by where several devices share them."""
    most_bytes, bytes_ = plan.device_memory_bytes, prediction.peak_bytes
    if most_bytes is not None and bytes_ is not None and bytes_ > most_bytes:
        return (case.replicate, 1, case.resolution)
    return (case.replicate, 0, -prediction.seconds)


def _rotated(steps: Sequence[Step]) -> list[Step]:
    """Begin each resolution one cell later than the pass before, as the plan without a budget does."""
    rotated: list[Step] = []
    for (replicate, _), group in itertools.groupby(steps, lambda step: (step.case.replicate, step.case.resolution)):
        cells = list(group)
        first = replicate % len(cells)
        rotated += cells[first:] + cells[:first]
    return rotated


def share_out(
    plan: Plan, predictions: Sequence[Prediction], left_seconds: float | None, crew: Crew = ALONE
) -> list[Share | None]:
    """Return what each case gets of the time left, in the order of their running; None for one that does not fit.

    Everyone who fits gets the least that makes a measurement, or :data:`FIRST_SHARE_SECONDS` while that lasts, and the
    same share of what is then still left. Who needs less than that leaves it to those who follow. Each of ``crew`` has
    ``left_seconds``, and so no case has more.
    """
    if left_seconds is None:
        return [
            None if exceeds_memory(plan, prediction) else Share(seconds=prediction.seconds, limit_seconds=None)
            for prediction in predictions
        ]
    most_seconds, left_seconds = left_seconds, crew.device_seconds(left_seconds)
    reservations = reserve(plan, predictions, left_seconds, most_seconds)
    reserved_seconds = sum(reservation for reservation in reservations if reservation is not None)
    count = sum(reservation is not None for reservation in reservations)
    shares: list[Share | None] = []
    for prediction, reservation in zip(predictions, reservations, strict=True):
        if reservation is None:
            shares.append(None)
            continue
        extra_seconds = max(0.0, left_seconds - reserved_seconds) / count
        share = cut(prediction, min(most_seconds, reservation + extra_seconds))
        shares.append(share)
        left_seconds -= share.seconds
        reserved_seconds -= reservation
        count -= 1
    return shares


def within_budget(plan: Plan, prediction: Prediction, share: Share | None) -> Share | None:
    """Return a share of which no more than the budget of a case is for its warm-up and timing."""
    budget_seconds = plan.case_budget_seconds
    if share is None or budget_seconds is None:
        return share
    limit_seconds = budget_seconds if share.limit_seconds is None else min(share.limit_seconds, budget_seconds)
    # The shortest measurement there is may take longer.
    seconds = max(prediction.least_seconds, prediction.fixed_seconds + budget_seconds)
    return Share(seconds=min(share.seconds, seconds), limit_seconds=limit_seconds)


def reserve(
    plan: Plan, predictions: Sequence[Prediction], left_seconds: float, most_seconds: float
) -> list[float | None]:
    """Return the seconds that are set aside for each case, ``most_seconds`` at most; None for one that does not fit."""
    reservations: list[float | None] = []
    for prediction in predictions:
        seconds, room_seconds = wanted_seconds(prediction), min(left_seconds, most_seconds)
        if seconds > room_seconds:
            seconds = prediction.least_seconds
        if seconds > room_seconds or exceeds_memory(plan, prediction):
            reservations.append(None)
            continue
        reservations.append(seconds)
        left_seconds -= seconds
    return reservations


def wanted_seconds(prediction: Prediction) -> float:
    """Return what a case should get before slower ones get their least."""
    first_share = min(prediction.seconds, prediction.fixed_seconds + FIRST_SHARE_SECONDS)
    return max(prediction.least_seconds, first_share)


def cut(prediction: Prediction, most_seconds: float) -> Share:
    """Return the share of a case that has so many seconds in all."""
    return Share(seconds=min(prediction.seconds, most_seconds), limit_seconds=most_seconds - prediction.fixed_seconds)


def scheduled_seconds(steps: Iterable[Step], devices: int = 1) -> float:
    """Return how long the steps should take if devices share them, those that will be skipped left out."""
    seconds = [step.share.seconds for step in steps if step.share]
    return sum(seconds) if devices == 1 else max(sum(seconds) / devices, max(seconds, default=0.0))


def exceeds_memory(plan: Plan, prediction: Prediction) -> bool:
    """Tell whether a case on a CPU would take more of the memory than it should."""
    if plan.host_memory_bytes is None or prediction.peak_bytes is None:
        return False
    return prediction.peak_bytes > MEMORY_SHARE * plan.host_memory_bytes
