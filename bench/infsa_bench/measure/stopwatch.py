"""What a case's time goes into, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the seconds spent on each stage, a failed one's too."""

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        """Take a monotonic clock in nanoseconds."""
        self._clock = clock
        self._begin_ns = clock()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what runs inside as ``name``."""
        begin_ns = self._clock()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + (self._clock() - begin_ns) / 1e9

    def elapsed_seconds(self) -> float:
        """Return the time since this was made."""
        return (self._clock() - self._begin_ns) / 1e9
