"""Devices in virtual time: a clock that moves with the work alone, so that every time is known exactly."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

MILLISECOND = 1_000_000
"""Virtual clocks count nanoseconds."""


class VirtualCpu:
    """A clock that stands still but for the calls, which take the given times in turn, the last one for ever."""

    def __init__(self, *durations_ms: float, seconds: Iterable[float] = ()) -> None:
        self.log: list[str] = []
        self.now = 123_456_789
        lasting = [round(duration * MILLISECOND) for duration in durations_ms]
        self._durations: Iterator[int] = itertools.chain(
            lasting, itertools.repeat(lasting[-1]) if lasting else (round(value * 1e9) for value in seconds)
        )
        self.calls = 0

    def clock(self) -> int:
        self.log.append("clock")
        return self.now

    def call(self) -> Tensor:
        self.log.append("call")
        self.now += next(self._durations)
        self.calls += 1
        return torch.tensor(self.calls)


class VirtualGpu:
    """A host that launches kernels and a device that works them off in order; the queue of both.

    A call launches ``kernels`` kernels, which takes the host ``launch_ms`` and the device ``work_ms`` in all.
    """

    is_asynchronous = True

    def __init__(self, *, launch_ms: float, work_ms: float | Callable[[int], float], kernels: int = 10) -> None:
        self.now = 123_456_789
        self.log: list[str] = []
        self._free_at = 0
        self._launch = round(launch_ms * MILLISECOND / kernels)
        self._work_ms = work_ms
        self._kernels = kernels
        self._marks = [0] * 512
        self.calls = 0

    def clock(self) -> int:
        return self.now

    def call(self) -> Tensor:
        self.log.append("call")
        work_ms = self._work_ms if isinstance(self._work_ms, float | int) else self._work_ms(self.calls)
        for _ in range(self._kernels):
            self.now += self._launch
            self.run(work_ms / self._kernels)
        self.calls += 1
        return torch.tensor(self.calls)

    def run(self, work_ms: float) -> None:
        """Queue work without any time to launch it."""
        self._free_at = max(self._free_at, self.now) + round(work_ms * MILLISECOND)

    def synchronize(self) -> None:
        self.log.append("synchronize")
        self.now = max(self.now, self._free_at)

    def hold(self, seconds: float) -> None:
        self.log.append("hold")
        self.run(seconds * 1e3)

    def mark(self, index: int) -> None:
        self.log.append("mark")
        self._marks[index] = max(self._free_at, self.now)

    def has_passed(self, index: int) -> bool:
        return self.now >= self._marks[index]

    def seconds_between(self, first: int, second: int) -> float:
        assert self.now >= self._marks[second], "read before the device has passed it"
        return (self._marks[second] - self._marks[first]) / 1e9
