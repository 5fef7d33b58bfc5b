"""Continuous load for a meter: the timed callable again and again, its queue short, every end known."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch

from infsa_bench.measure.energy.clock import Clock

QUEUE_AHEAD_NS = 50_000_000
"""Work that may wait for the device: enough to hide a pause of the host, little to wait for in the end."""

MAX_PENDING = 1024
NAP_NS = 1_000_000
"""How long the host sleeps between looks at a full queue."""


class Load(Protocol):
    """Iterations that follow each other without a pause."""

    def begin(self) -> None:
        """Start the first iteration; nothing may be running."""

    def keep_busy(self, until_ns: int) -> None:
        """Keep iterations coming until about then; may overshoot by one call of the host."""

    def drain(self) -> None:
        """Let the running iterations end, start no more."""

    def iterations_between(self, begin_ns: int, end_ns: int) -> float:
        """Return how many iterations ran between two moments since the last :meth:`begin`, fractions at both ends."""

    def seconds_per_iteration(self) -> float | None:
        """Return how long an iteration took since the last :meth:`begin`; None if none did. After :meth:`drain`."""


@contextmanager
def running(load: Load) -> Iterator[None]:
    """Have ``load`` running inside, and nothing of it afterwards, however that ends."""
    load.begin()
    try:
        yield
    finally:
        load.drain()


class Idle:
    """No load at all."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def begin(self) -> None:
        """Start nothing."""

    def keep_busy(self, until_ns: int) -> None:
        """Sleep."""
        self._clock.sleep_until(until_ns)

    def drain(self) -> None:
        """Wait for nothing."""

    def iterations_between(self, begin_ns: int, end_ns: int) -> float:
        """Return 0."""
        return 0.0

    def seconds_per_iteration(self) -> float | None:
        """Return None."""
        return None


class HostLoad:
    """Load on a device that is done when the call returns (a CPU)."""

    def __init__(self, call: Callable[[], object], clock: Clock) -> None:
        self._call = call
        self._clock = clock
        self._ends_ns: list[int] = []

    def begin(self) -> None:
        """Start counting."""
        self._ends_ns = [self._clock.now_ns()]

    def keep_busy(self, until_ns: int) -> None:
        """Run one iteration after the other until then."""
        while self._clock.now_ns() < until_ns:
            self._call()
            self._ends_ns.append(self._clock.now_ns())

    def drain(self) -> None:
        """Wait for nothing: every call has ended."""

    def iterations_between(self, begin_ns: int, end_ns: int) -> float:
        """Return how many iterations ran between two moments."""
        return count_iterations(self._ends_ns, begin_ns, end_ns)

    def seconds_per_iteration(self) -> float | None:
        """Return how long an iteration took since :meth:`begin`."""
        return mean_seconds(self._ends_ns)


class CudaLoad:
    """Load on a GPU. An event follows each iteration; its time is put on the host's clock through a first event.

    The queue holds at most about 50 ms of work, so that little is wasted when a window ends.
    """

    def __init__(
        self, call: Callable[[], object], device: torch.device, iteration_seconds: float, clock: Clock
    ) -> None:
        self._call = call
        self._device = device
        self._iteration_ns = iteration_seconds * 1e9
        self._clock = clock
        self._pending: deque[torch.cuda.Event] = deque()
        self._spare: list[torch.cuda.Event] = []
        self._origin = torch.cuda.Event(enable_timing=True)
        self._ends_ns: list[int] = []

    def begin(self) -> None:
        """Put the first event on the host's clock; the queue is empty."""
        torch.cuda.synchronize(self._device)
        # Left by a meter that gave up: from before the origin.
        self._spare.extend(self._pending)
        self._pending.clear()
        self._origin.record()
        self._origin.synchronize()
        self._ends_ns = [self._clock.now_ns()]

    def keep_busy(self, until_ns: int) -> None:
        """Queue iterations whenever less than 50 ms of work is left."""
        while True:
            self._collect_ends()
            queue_end_ns = self._ends_ns[-1] + len(self._pending) * self._iteration_ns
            now_ns = self._clock.now_ns()
            has_room = not self._pending or queue_end_ns - now_ns < QUEUE_AHEAD_NS
            if has_room and len(self._pending) < MAX_PENDING:
                self._launch()
            else:
                self._clock.sleep_until(min(until_ns, now_ns + NAP_NS))
            if self._clock.now_ns() >= until_ns:
                return

    def drain(self) -> None:
        """Wait for all that is queued."""
        torch.cuda.synchronize(self._device)
        self._collect_ends()

    def iterations_between(self, begin_ns: int, end_ns: int) -> float:
        """Return how many iterations ran between two moments; after :meth:`drain`."""
        return count_iterations(self._ends_ns, begin_ns, end_ns)

    def seconds_per_iteration(self) -> float | None:
        """Return how long an iteration took since :meth:`begin`."""
        return mean_seconds(self._ends_ns)

    def _launch(self) -> None:
        self._call()
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record()
        self._pending.append(event)

    def _collect_ends(self) -> None:
        while self._pending and self._pending[0].query():
            event = self._pending.popleft()
            # A float32 of milliseconds: exact to 0.5 us after 10 s, to 4 us after two minutes. In a window that
            # long this is nothing, and since rounding keeps the order no end comes before the one ahead of it.
            self._ends_ns.append(self._ends_ns[0] + round(self._origin.elapsed_time(event) * 1e6))
            self._spare.append(event)


def count_iterations(ends_ns: Sequence[int], begin_ns: int, end_ns: int) -> float:
    """Return how many iterations lie between two moments, fractions at both ends.

    ``ends_ns`` holds the start of the first iteration and then the end of each one.
    """

    def count_until(ns: int) -> float:
        index = bisect_right(ends_ns, ns)
        if index == 0:
            return 0.0
        if index == len(ends_ns):
            return float(index - 1)
        return index - 1 + (ns - ends_ns[index - 1]) / (ends_ns[index] - ends_ns[index - 1])

    return count_until(end_ns) - count_until(begin_ns)


def mean_seconds(ends_ns: Sequence[int]) -> float | None:
    """Return the mean duration of iterations; ``ends_ns`` as in :func:`count_iterations`."""
    return (ends_ns[-1] - ends_ns[0]) / (len(ends_ns) - 1) / 1e9 if len(ends_ns) > 1 else None
