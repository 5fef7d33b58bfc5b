"""Hands out the cases of a plan, one by one, while it becomes known what they take."""

from __future__ import annotations

import contextlib
import gc
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from infsa_bench.analyze.dominance import Dominance
from infsa_bench.analyze.predict import Predictor
from infsa_bench.schedule import (
    Crew,
    Plan,
    Share,
    Step,
    cut,
    reserve,
    schedule,
    share_out,
    wanted_seconds,
    within_budget,
)
from infsa_bench.spec import Case

FEW_CASES = 100
"""While no more than these are left, all of them are planned once more for each that is handed out."""

PLANS_A_CASE = 10
"""How often, about, an agenda plans a case before it hands it out if there are more: everything that is left is planned
once more when a tenth of it has been handed out. To do so for each case would be quadratic.
"""

OUTDATED = 2.0
"""A plan is outdated once a case needs so many times what was set aside for it, or so many times less."""

MOST_PLANS_A_CASE = 50
"""As :data:`PLANS_A_CASE`, of plans that are outdated."""


class Agenda:
    """Hands out the cases that are left, each once, in the order of :func:`schedule`, in constant time a case.

    What a case is predicted to need, whether a smaller one ran out of memory and how much time is left is always as
    known when the case is handed out. Order and reservations of those behind it are as they were last planned, see
    :data:`PLANS_A_CASE`; no case takes what is set aside for those behind it.

    Attributes:
        devices: how many there are to hand cases to.
    """

    def __init__(self, plan: Plan, predictor: Predictor, todo: Sequence[Case], dominance: Dominance) -> None:
        """Hand out ``todo``; whoever runs the cases goes on teaching ``predictor`` and ``dominance``."""
        self.devices = 1
        self._busy_until: dict[Case, float] = {}
        self._plan = plan
        self._predictor = predictor
        self._dominance = dominance
        # In the order of the plan, which schedule() falls back on.
        self._left = dict.fromkeys(todo)
        self._planned = _Ahead([])

    def next(self) -> Step | None:
        """Take off the case that comes next, to be run or to be skipped, and return it; None when nothing is left."""
        step: Step | None = None
        while self._left and step is None:
            if self._is_to_be_planned():
                (step,) = self._replan()
            else:
                step = self._renewed()
            self._planned.passed += 1
        if step is not None:
            del self._left[step.case]
            self._begin(step)
        return step

    def again(self, step: Step) -> Step:
        """Return a step that was handed out already as it looks by now: with what is left of its time, if it was lost.

        It has no share where that is not enough.
        """
        prediction = self._predictor.predict(step.case, self._plan.protocol)
        share = step.share
        if self._plan.deadline is not None and share is not None:
            # As much as it was allowed, not what it was expected to take, which was before anything was known of it.
            allowed_seconds = step.prediction.fixed_seconds + (share.limit_seconds or 0.0)
            seconds = min(self._plan.deadline - time.monotonic(), max(allowed_seconds, prediction.least_seconds))
            fits = seconds >= prediction.least_seconds
            share = within_budget(self._plan, prediction, cut(prediction, seconds)) if fits else None
        step = replace(step, prediction=prediction, share=share)
        self._begin(step)
        return step

    def ended(self, case: Case) -> None:
        """Take note that a device has done with a case."""
        self._busy_until.pop(case, None)

    @property
    def is_done(self) -> bool:
        """Whether every case was handed out."""
        return not self._left

    def remaining_seconds(self) -> float:
        """Return how long it should take until all cases have ended: those under way, and those still to be handed out.

        The time is the clock's: devices work side by side.
        """
        if not self._planned:
            self._replan()
        now = time.monotonic()
        busy_seconds = [max(0.0, until - now) for until in self._busy_until.values()]
        return max((sum(busy_seconds) + self._planned.seconds_left) / self.devices, max(busy_seconds, default=0.0))

    def _begin(self, step: Step) -> None:
        if step.share is not None:
            self._busy_until[step.case] = time.monotonic() + step.share.seconds

    def _is_to_be_planned(self) -> bool:
        planned, passed = len(self._planned), self._planned.passed
        if len(self._left) <= FEW_CASES or passed * PLANS_A_CASE >= planned:
            return True
        return self._planned.is_outdated and passed * MOST_PLANS_A_CASE >= planned

    def _replan(self) -> list[Step]:
        """Plan everything that is left, and return the first step, if there is any."""
        # A dict keeps room for what was deleted from it, and going through it would take longer and longer.
        self._left = dict.fromkeys(list(self._left))
        with _uncollected():
            steps = schedule(self._plan, self._predictor, list(self._left), self._dominance, self._crew())
            self._planned, first = _Ahead(steps), steps[:1]
            del steps
        return first

    def _crew(self) -> Crew:
        return Crew(devices=self.devices, busy_until=tuple(self._busy_until.values()))

    def _renewed(self) -> Step | None:
        """Return the next step as it looks by now, if those behind it get what was set aside for them.

        None, and the case is put back, where it no longer fits beside them: the next plan says who does.
        """
        plan, ahead, index = self._plan, self._planned, self._planned.passed
        case = ahead.cases[index]
        prediction = self._predictor.predict(case, plan.protocol)
        dominated_by = self._dominance.dominating(case) if plan.is_pruned else None
        share: Share | None = None
        if dominated_by is None and plan.deadline is None:
            (share,) = share_out(plan, [prediction], None)
        elif dominated_by is None and plan.deadline is not None:
            most_seconds = plan.deadline - time.monotonic()
            left_seconds = self._crew().device_seconds(most_seconds)
            unreserved_seconds = left_seconds - ahead.reserved_seconds[index + 1]
            (reservation,) = reserve(plan, [prediction], unreserved_seconds, most_seconds)
            reserved_seconds = ahead.reserved_seconds[index] - ahead.reserved_seconds[index + 1]
            had_room = ahead.tried[index] > ahead.tried[index + 1]
            needed_seconds = wanted_seconds(prediction)
            if had_room and not reserved_seconds / OUTDATED <= needed_seconds <= reserved_seconds * OUTDATED:
                ahead.is_outdated = True
            if had_room and reservation is None:
                ahead.is_outdated = True
                ahead.put_back_seconds += ahead.seconds[index] - ahead.seconds[index + 1]
                return None
            if reservation is not None:
                extra_seconds = max(0.0, unreserved_seconds - reservation) / (1 + ahead.tried[index + 1])
                share = cut(prediction, min(most_seconds, reservation + extra_seconds))
        share = within_budget(plan, prediction, share)
        return Step(case=case, prediction=prediction, share=share, dominated_by=dominated_by)


class _Ahead:
    """The steps of a plan, in numbers: of each, and one behind the last, what it and all those behind it need.

    Kept as numbers, not as steps: what Python's garbage collector would go through again and again for each of many
    cases takes longer than to plan them.

    Attributes:
        cases: those of the steps, in order.
        tried: how many of the steps are not to be skipped.
        seconds: what these should take.
        reserved_seconds: what is set aside for these.
        passed: how many steps are no longer ahead.
        put_back_seconds: what those of them should take that were put back.
        is_outdated: whether cases were found to need something else than planned.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        """Keep what ``steps`` need."""
        self.cases = [step.case for step in steps]
        self.passed = 0
        self.put_back_seconds = 0.0
        self.is_outdated = False
        self.tried = _sums_behind(step.share is not None for step in reversed(steps))
        self.seconds = _sums_behind(step.share.seconds if step.share else 0.0 for step in reversed(steps))
        self.reserved_seconds = _sums_behind(
            min(step.share.seconds, wanted_seconds(step.prediction)) if step.share else 0.0 for step in reversed(steps)
        )

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def seconds_left(self) -> float:
        """What is still to be handed out should take."""
        return self.put_back_seconds + self.seconds[self.passed]


def _sums_behind(backwards: Iterable[float]) -> list[float]:
    """Return the sum of each number and all those behind it, and 0 at the end, of numbers that come last one first."""
    return list(itertools.accumulate(backwards, initial=0))[::-1]


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python's garbage collector from looking for cycles: where thousands of objects are made, and dropped again
    without one, it would go through all that the process holds.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
