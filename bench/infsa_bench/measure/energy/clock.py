"""The clock that meters live by. Tests put a virtual one in its place, and a minute passes in no time."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock, the same for all processes of the machine."""

    def now_ns(self) -> int:
        """Return the time."""

    def sleep_until(self, ns: int) -> None:
        """Return at that time, at once if it has passed."""


class MonotonicClock:
    """The machine's own clock."""

    def now_ns(self) -> int:
        """Return the time."""
        return time.perf_counter_ns()

    def sleep_until(self, ns: int) -> None:
        """Return at that time, at once if it has passed; the last stretch is spun, because sleeping overshoots."""
        # Linux wakes sleepers about 60 microseconds late. Spinning holds the interpreter's lock: no longer than needed.
        spin_ns = 100_000
        while (left := ns - time.perf_counter_ns()) > 0:
            if left > spin_ns:
                time.sleep((left - spin_ns) / 1e9)
