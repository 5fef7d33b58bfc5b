"""The work that a device still has to do, and when it has done it: a CUDA stream, or a CPU that is always done."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol as Interface

import torch

MARKS = 512
"""How many moments a queue notes before they are read."""

CALIBRATION_CYCLES = 10_000_000
CALIBRATION_SECONDS = 0.2
"""A device that was idle takes about so long to raise its clock."""

Clock = Callable[[], int]


class Queue(Interface):
    """What timing needs of a device: marks in its work, read once it has passed them."""

    is_asynchronous: bool

    def synchronize(self) -> None:
        """Wait until all work is done."""

    def hold(self, seconds: float) -> None:
        """Keep the device from the work that follows for about so long, without waiting for it."""

    def mark(self, index: int) -> None:
        """Let the device note the time when it has done all work so far; there are MARKS of them."""

    def has_passed(self, index: int) -> bool:
        """Tell whether an asynchronous device has passed a mark; does not wait for it."""

    def seconds_between(self, first: int, second: int) -> float:
        """Return the time between two marks that the device has passed."""


class HostQueue:
    """A CPU: whatever was called is done."""

    is_asynchronous = False

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._marks = [0] * (MARKS)

    def synchronize(self) -> None:
        """Return."""

    def hold(self, seconds: float) -> None:
        """Return."""

    def mark(self, index: int) -> None:
        """Read the clock."""
        self._marks[index] = self._clock()

    def has_passed(self, index: int) -> bool:
        """Return False: nothing is ever under way."""
        return False

    def seconds_between(self, first: int, second: int) -> float:
        """Return the time between two readings."""
        return (self._marks[second] - self._marks[first]) / 1e9


class CudaQueue:
    """The current stream of a CUDA device; nothing else may be queued on it."""

    is_asynchronous = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cycles_per_second: float | None = None
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(MARKS)]
        # Made by the driver when first recorded: not while something is timed.
        for event in self._events:
            event.record()
        self.synchronize()

    def synchronize(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize(self._device)

    def hold(self, seconds: float) -> None:
        """Queue a kernel that spins."""
        if self._cycles_per_second is None:
            self._cycles_per_second = self._calibrate()
        torch.cuda._sleep(max(1, round(seconds * self._cycles_per_second)))

    def _calibrate(self) -> float:
        """Return the cycles per second of the last of several spins: the first one loads the kernel, too."""
        begin = time.monotonic()
        while True:
            self.mark(0)
            torch.cuda._sleep(CALIBRATION_CYCLES)
            self.mark(1)
            self.synchronize()
            if time.monotonic() - begin >= CALIBRATION_SECONDS:
                return CALIBRATION_CYCLES / self.seconds_between(0, 1)

    def mark(self, index: int) -> None:
        """Record an event."""
        self._events[index].record()

    def has_passed(self, index: int) -> bool:
        """Ask the driver for the event."""
        return bool(self._events[index].query())

    def seconds_between(self, first: int, second: int) -> float:
        """Return the time between two events."""
        return float(self._events[first].elapsed_time(self._events[second])) / 1e3


def open_queue(device: torch.device, clock: Clock) -> Queue:
    """Return the queue of ``device``; ``clock`` tells the time of a CPU."""
    return CudaQueue(device) if device.type == "cuda" else HostQueue(clock)
