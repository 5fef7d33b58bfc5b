"""When a series of samples is long enough: by the protocol, by its precision, or by the time it may take."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from infsa_bench.intervals import block_length, is_precise, lag1_autocorrelation
from infsa_bench.measure.queues import MARKS, Clock
from infsa_bench.protocol import LEAST_TIMED_ITERATIONS, PRECISION_TARGET, Protocol

BATCH_SAMPLES = MARKS // 2
BATCH_SECONDS = 1.0
"""A device is waited for, and the precision looked at, once in so many samples, or so much time."""

CORRELATED_LOOKS = 5
LOOK_EVERY = 16
LOOK_GROWTH = 0.03
"""The precision is looked at after so many more samples, or such a share of all, so that looking stays cheap."""

Beat = Callable[[], object]
"""A sign of life, asked for where nothing is being timed."""


def silence() -> None:
    """Give no sign of life."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Samples of one quantity, in seconds per iteration.

    ``converged``: whether the interval of the median was within the target at the end; None where counts are exact.
    ``time_limited``: the limit ended it, before the protocol would have.
    """

    seconds: tuple[float, ...]
    iterations_per_sample: int
    converged: bool | None
    time_limited: bool


class StopRule:
    """Says how many samples to take before it is asked again, and in the end why it was enough.

    ``limit_seconds`` is shared with the ``passes`` that are still to come for an iteration of so many seconds.
    """

    def __init__(
        self,
        protocol: Protocol,
        limit_seconds: float | None,
        passes: Callable[[float], int] | None = None,
    ) -> None:
        self._protocol, self._limit_seconds, self._passes = protocol, limit_seconds, passes
        self._is_exact = protocol.max_timed_seconds is None
        self._look_at = 0
        self._precise_looks = 0
        self.converged: bool | None = None if self._is_exact else False
        self.time_limited = False

    def more(self, samples: Sequence[float], elapsed_seconds: float, sample_seconds: float, inner: int) -> int:
        """Return how many samples to take next, 0 for no more; ``sample_seconds`` is what one takes, all included."""
        sample_seconds = max(sample_seconds, 1e-9)
        iteration_seconds = statistics.median(samples[-BATCH_SAMPLES:]) if samples else sample_seconds / inner
        least, cap_seconds = self._protocol.timed_limits(iteration_seconds)
        wanted = self._wanted(samples, elapsed_seconds, sample_seconds, least)
        if wanted == 0:
            return 0

        def room(seconds: float | None, at_least: int) -> float:
            """How many more fit, going by those so far; tolerant of rounding."""
            fitting = math.inf if seconds is None else math.floor((seconds - elapsed_seconds) / sample_seconds + 1e-6)
            return max(fitting, at_least - len(samples))

        limit_seconds = self._limit_seconds
        if limit_seconds is not None and self._passes is not None:
            limit_seconds /= self._passes(iteration_seconds)
        # Neither leaves fewer than these: one sample that a stall hit would be all that is known of the case.
        fewest = min(least, LEAST_TIMED_ITERATIONS)
        capped, limited = room(cap_seconds, fewest), room(limit_seconds, fewest)
        if min(capped, limited) <= 0:
            self.time_limited = capped > 0
            if not self._is_exact:
                self.converged = is_precise(samples, PRECISION_TARGET)
            return 0
        # A few samples do not tell how long very many will take.
        known = len(samples) or math.inf
        return int(max(1, min(wanted, capped, limited, known, BATCH_SAMPLES, BATCH_SECONDS / sample_seconds)))

    def _wanted(self, samples: Sequence[float], elapsed_seconds: float, sample_seconds: float, least: int) -> int:
        count = len(samples)
        if self._is_exact:
            return max(0, self._protocol.timed_iterations - count)
        missing_seconds = self._protocol.timed_seconds - elapsed_seconds
        missing = max(least - count, math.ceil(missing_seconds / sample_seconds - 1e-6))
        if missing > 0:
            return missing
        if count >= self._look_at:
            self._precise_looks = self._precise_looks + 1 if is_precise(samples, PRECISION_TARGET) else 0
            self.converged = self._precise_looks >= looks_needed(samples)
            if self.converged:
                return 0
            # More often where so many samples take long.
            every = max(1, min(LOOK_EVERY, int(BATCH_SECONDS / sample_seconds)))
            self._look_at = count + max(every, math.ceil(LOOK_GROWTH * count))
        return self._look_at - count


def looks_needed(samples: Sequence[float]) -> int:
    """Return how many looks in a row must find the interval narrow before it is believed.

    Looked at again and again, samples that resemble their predecessors seem precise too early now and then.
    """
    return 1 if block_length(lag1_autocorrelation(samples)) == 1 else CORRELATED_LOOKS


def collect(
    take: Callable[[int], list[float]],
    rule: StopRule,
    clock: Clock,
    *,
    sample_seconds: float | None = None,
    inner: int = 1,
    beat: Beat = silence,
) -> Series:
    """Take samples until the rule has enough; the first one alone where nobody knows what it takes.

    ``take`` is asked for so many samples and returns one or more; ``beat`` is called after each of its calls.
    """
    samples: list[float] = []
    begin = clock()
    count = 1 if sample_seconds is None else rule.more((), 0.0, sample_seconds, inner)
    while count > 0:
        samples += take(count)
        beat()
        elapsed_seconds = (clock() - begin) / 1e9
        count = rule.more(samples, elapsed_seconds, elapsed_seconds / len(samples), inner)
    return Series(
        seconds=tuple(samples),
        iterations_per_sample=inner,
        converged=rule.converged,
        time_limited=rule.time_limited,
    )
