"""A GPU in virtual time: the fake NVML's clock, and a load that draws power as a square wave."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fake_nvml import FakeNvml

from infsa_bench.measure.energy.counter import NvmlCounter
from infsa_bench.measure.energy.meter import EnergyMeter
from infsa_bench.measure.energy.observer import DirectObserver
from infsa_bench.measure.energy.power import NvmlPower
from infsa_bench.measure.nvml import Gpu

OWN_PID = os.getpid()


class VirtualClock:
    """The fake's clock; sleeping takes no time."""

    def __init__(self, fake: FakeNvml) -> None:
        self._fake = fake

    def now_ns(self) -> int:
        return self._fake.now_ns

    def sleep_until(self, ns: int) -> None:
        if ns > self._fake.now_ns:
            self._fake.now_ns = ns


class SquareWave:
    """Iterations of ``high`` watts for a part of their time (``duty``) and ``low`` for the rest.

    ``factors`` scale the power from one :meth:`begin` to the next; the last one stays.
    """

    def __init__(
        self,
        fake: FakeNvml,
        iteration_seconds: float,
        *,
        high: float = 400.0,
        low: float = 150.0,
        duty: float = 0.37,
        factors: Sequence[float] = (1.0,),
    ) -> None:
        self.iteration_ns = iteration_seconds * 1e9
        self._fake = fake
        self._levels = (high, low)
        self._duty = duty
        self._factors = factors
        self._begins = 0
        self._start_ns = 0.0
        self._end_ns = 0.0
        self._steps = 0

    @property
    def joules_per_iteration(self) -> float:
        """What the board draws in one iteration at factor 1."""
        high, low = self._levels
        return (self._duty * high + (1 - self._duty) * low) * self.iteration_ns / 1e9

    def begin(self) -> None:
        self._start_ns = float(self._fake.now_ns)
        self._end_ns = float("inf")
        self._steps = 0
        self._begins += 1
        self._emit(self._start_ns)

    def keep_busy(self, until_ns: int) -> None:
        if until_ns > self._fake.now_ns:
            self._emit(until_ns)
            self._fake.now_ns = until_ns

    def drain(self) -> None:
        # The iteration that runs ends.
        now_ns = self._fake.now_ns
        count = -(-(now_ns - self._start_ns) // self.iteration_ns)
        self._end_ns = self._start_ns + count * self.iteration_ns
        self._emit(self._end_ns - 1)
        end_ns = max(now_ns, round(self._end_ns))
        self._fake.set_power(self._fake.device(0).idle_watts, at_ns=end_ns)
        self._fake.now_ns = end_ns

    def iterations_between(self, begin_ns: int, end_ns: int) -> float:
        first, last = (min(max(ns, self._start_ns), self._end_ns) for ns in (begin_ns, end_ns))
        return (last - first) / self.iteration_ns

    def seconds_per_iteration(self) -> float | None:
        return self.iteration_ns / 1e9

    def _emit(self, until_ns: float) -> None:
        factor = self._factors[min(self._begins, len(self._factors)) - 1]
        while True:
            iteration, part = divmod(self._steps, 2)
            at_ns = self._start_ns + (iteration + part * self._duty) * self.iteration_ns
            if at_ns > until_ns:
                return
            self._fake.set_power(self._levels[part] * factor, at_ns=max(round(at_ns), self._fake.now_ns))
            self._steps += 1


def make_meter(fake: FakeNvml, own_bytes: int = 0) -> EnergyMeter:
    """Return the meter of the first fake board, on virtual time."""
    clock = VirtualClock(fake)
    board = fake.device(0)
    board.compute_processes = [(OWN_PID, 2**30)]
    gpu = Gpu.find(board.uuid, board.pci_bus_id)
    observer = DirectObserver(gpu, clock, OWN_PID)
    meters = [("nvml_counter", NvmlCounter(gpu, clock, observer)), ("nvml_power", NvmlPower(gpu, clock, observer))]
    return EnergyMeter(meters, clock, gpu=gpu, observer=observer, own_bytes=lambda: own_bytes)
