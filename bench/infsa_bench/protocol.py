"""How often one case is run. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from infsa_bench.errors import SpecError

SLOW_ITERATION_SECONDS = 1.0
"""Iterations longer than this are timed fewer times, for longer in all."""

STEADY_ITERATIONS = 8
"""Length of the two last blocks of a warm-up whose medians are compared."""

SLOW_TIMED_ITERATIONS = 7
SLOW_MAX_TIMED_SECONDS = 60.0
SLOW_MAX_WARMUP_ITERATIONS = 20
LEAST_TIMED_ITERATIONS = 3
"""What is timed of an iteration that is too long for every limit."""

PRECISION_TARGET = 0.01
"""Half-width of the median's interval, relative to the median, at which timing may stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How often one case is run.

    Warm-up ends when at least ``warmup_iterations`` are done, ``warmup_seconds`` have passed and the times no longer
    change, or after ``max_warmup_seconds``; its seconds count from the end of the first call, which may compile.
    Timing ends when at least ``timed_iterations`` are in, ``timed_seconds`` have passed and the median's 95 %
    interval is within :data:`PRECISION_TARGET`, or with the last iteration that fits into ``max_timed_seconds``.
    A maximum of ``None`` makes the count exact. ``replicates`` is the number of processes that run the whole plan,
    ``energy`` the preset that ``--energy auto`` stands for.
    """

    name: str
    replicates: int = 1
    warmup_iterations: int = 3
    warmup_seconds: float = 1.0
    max_warmup_seconds: float | None = 30.0
    timed_iterations: int = 30
    timed_seconds: float = 1.0
    max_timed_seconds: float | None = 10.0
    energy: Literal["quick", "full"] = "quick"

    def __post_init__(self) -> None:
        """Refuse a plan that nobody runs."""
        if self.replicates < 1:
            raise ValueError("a protocol has at least one replicate")

    def customized(self, *, warmup: int | None, iterations: int | None, replicates: int | None) -> Protocol:
        """Return this protocol with exact counts, or another number of replicates, where they are given.

        Raises:
            SpecError: a negative warm-up, less than one timed iteration or replicate.
        """
        changed = self
        if warmup is not None:
            if warmup < 0:
                raise SpecError(f"--warmup must be 0 or more, not {warmup}")
            changed = replace(changed, warmup_iterations=warmup, warmup_seconds=0.0, max_warmup_seconds=None)
        if iterations is not None:
            if iterations < 1:
                raise SpecError(f"--iterations must be 1 or more, not {iterations}")
            changed = replace(changed, timed_iterations=iterations, timed_seconds=0.0, max_timed_seconds=None)
        if replicates is not None:
            if not 1 <= replicates <= 100:
                raise SpecError(f"--replicates must be between 1 and 100, not {replicates}")
            changed = replace(changed, replicates=replicates)
        return changed if changed == self else replace(changed, name=f"{self.name}*")

    def timed_limits(self, iteration_seconds: float) -> tuple[int, float | None]:
        """Return the least number of timed iterations and the longest they may take, for an iteration that long."""
        if self.max_timed_seconds is None:
            return self.timed_iterations, None
        if iteration_seconds > SLOW_ITERATION_SECONDS:
            return min(self.timed_iterations, SLOW_TIMED_ITERATIONS), SLOW_MAX_TIMED_SECONDS
        return self.timed_iterations, self.max_timed_seconds

    def expected_seconds(self, iteration_seconds: float) -> float:
        """Return how long warm-up and timing take where the times are as steady as one hopes."""
        count, limit = self.timed_limits(iteration_seconds)
        timed = max(count * iteration_seconds, self.timed_seconds)
        if limit is not None:
            timed = max(min(timed, limit), min(count, LEAST_TIMED_ITERATIONS) * iteration_seconds)
        return self.expected_warmup_seconds(iteration_seconds) + timed

    def expected_warmup_seconds(self, iteration_seconds: float) -> float:
        """Return the part of :meth:`expected_seconds` that is warm-up."""
        if self.max_warmup_seconds is None:
            return self.warmup_iterations * iteration_seconds
        # Steadiness is looked at after whole blocks, two at least.
        wanted = max(self.warmup_iterations, 1 + math.ceil(self.warmup_seconds / iteration_seconds))
        calls = STEADY_ITERATIONS * max(2, math.ceil(wanted / STEADY_ITERATIONS))
        calls = min(calls, 1 + math.ceil(self.max_warmup_seconds / iteration_seconds))
        if iteration_seconds > SLOW_ITERATION_SECONDS:
            calls = min(calls, SLOW_MAX_WARMUP_ITERATIONS)
        return calls * iteration_seconds

    def least_seconds(self, iteration_seconds: float) -> float:
        """Return how long the shortest acceptable measurement takes, under a time budget."""
        if self.max_timed_seconds is None or self.max_warmup_seconds is None:
            return self.expected_seconds(iteration_seconds)
        # One call to warm up: it loads code and fills caches; the rest of the time is better spent on samples.
        return (1 + LEAST_TIMED_ITERATIONS) * iteration_seconds


PROTOCOLS: Mapping[str, Protocol] = {
    "quick": Protocol(name="quick"),
    "full": Protocol(name="full", replicates=3, energy="full"),
    "gate": Protocol(name="gate", replicates=5),
    # Paper, section 14: 50 warm-up runs, then 300 timed CUDA runs, AMP/FP16, batch 1.
    "paper": Protocol(
        name="paper",
        warmup_iterations=50,
        warmup_seconds=0.0,
        max_warmup_seconds=None,
        timed_iterations=300,
        timed_seconds=0.0,
        max_timed_seconds=None,
        energy="full",
    ),
}
