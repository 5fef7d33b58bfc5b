"""Watching a GPU's energy counter and power beside the load: when the counter moves, and what the board draws.

The counter is read only near the updates that are asked for: reading it all the time could change what it says.
Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from infsa_bench.measure.energy.clock import Clock
from infsa_bench.measure.nvml import Gpu

POLL_NS = 1_000_000
PROCESS_CHECK_NS = 1_000_000_000
NEVER_NS = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """An update of the counter: it happened between two readings, after which the counter stood at ``joules``."""

    before_ns: int
    after_ns: int
    joules: float

    @property
    def ns(self) -> int:
        """The middle of the two readings."""
        return (self.before_ns + self.after_ns) // 2

    @property
    def uncertainty_ns(self) -> float:
        """How far the update can be from the middle."""
        return (self.after_ns - self.before_ns) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The GPU at one moment, while its energy is watched."""

    ns: int
    power_watts: float | None
    sm_clock_mhz: int | None
    temperature_celsius: int | None
    event_reasons: tuple[str, ...]
    foreign_processes: int | None


class Observer(Protocol):
    """Finds updates of the counter; samples power meanwhile."""

    @property
    def due_ns(self) -> int:
        """When :meth:`edge` should be called next."""

    def arm(self, from_ns: int, *, every: bool = False) -> None:
        """Look for the first update after that moment, or for every one until this is called again.

        Nothing is looked for after ``arm(NEVER_NS)``.
        """

    def edge(self) -> Edge | None:
        """Return an update that was found, each once; does what is due. Raises MeterUnavailableError."""

    def start_trace(self, period_seconds: float) -> None:
        """Sample power, clock, temperature and what throttles, once a period."""

    def stop_trace(self) -> tuple[Sample, ...]:
        """Return the samples since :meth:`start_trace`, the last one taken now."""

    def close(self) -> None:
        """End it."""


class DirectObserver:
    """Reads within the calls to :meth:`edge`."""

    def __init__(self, gpu: Gpu, clock: Clock, worker_pid: int) -> None:
        self._gpu = gpu
        self._clock = clock
        self._worker_pid = worker_pid
        self._poll_ns = NEVER_NS
        self._every = False
        self._last: tuple[int, float] | None = None
        self._sample_ns = NEVER_NS
        self._sample_period_ns = 0
        self._process_ns = 0
        self._samples: list[Sample] = []

    @property
    def due_ns(self) -> int:
        """When :meth:`edge` should be called next."""
        return min(self._poll_ns, self._sample_ns)

    def arm(self, from_ns: int, *, every: bool = False) -> None:
        """Look for the first update after that moment, or for every one."""
        self._poll_ns = max(from_ns, self._clock.now_ns())
        self._every = every
        self._last = None

    def edge(self) -> Edge | None:
        """Return the update that was found just now.

        Raises:
            MeterUnavailableError: there is no counter.
        """
        now_ns = self._clock.now_ns()
        if now_ns >= self._sample_ns:
            self._samples.append(self._sample(now_ns))
            self._sample_ns += self._sample_period_ns
            if self._sample_ns <= now_ns:
                # Called late: what was missed is not made up for.
                self._sample_ns = now_ns + self._sample_period_ns
        if now_ns < self._poll_ns:
            return None
        before_ns = self._clock.now_ns()
        joules = self._gpu.energy_joules()
        after_ns = self._clock.now_ns()
        last, self._last = self._last, (before_ns, joules)
        is_update = last is not None and last[1] != joules
        self._poll_ns = NEVER_NS if is_update and not self._every else before_ns + POLL_NS
        if last is None or not is_update:
            return None
        return Edge(before_ns=last[0], after_ns=after_ns, joules=joules)

    def start_trace(self, period_seconds: float) -> None:
        """Sample power, clock, temperature and what throttles, once a period."""
        self._samples = []
        self._sample_period_ns = round(period_seconds * 1e9)
        self._sample_ns = self._clock.now_ns()
        self._process_ns = 0

    def stop_trace(self) -> tuple[Sample, ...]:
        """Return the samples since :meth:`start_trace`, the last one from now: an integral reaches to here."""
        self._samples.append(self._sample(self._clock.now_ns()))
        self._sample_ns = NEVER_NS
        return self.take_samples()

    def take_samples(self) -> tuple[Sample, ...]:
        """Return the samples that nobody has taken yet."""
        samples, self._samples = tuple(self._samples), []
        return samples

    def close(self) -> None:
        """End it."""

    def _sample(self, now_ns: int) -> Sample:
        foreign = None
        is_polling = self._last is not None and self._poll_ns < NEVER_NS
        if now_ns >= self._process_ns and not is_polling:
            # The list of processes is expensive: once a second, and not where it would blur an update.
            foreign = self._gpu.foreign_processes(self._worker_pid)
            self._process_ns = now_ns + PROCESS_CHECK_NS
        return Sample(
            ns=now_ns,
            power_watts=self._gpu.power_watts(),
            sm_clock_mhz=self._gpu.sm_clock_mhz(),
            temperature_celsius=self._gpu.temperature_celsius(),
            event_reasons=self._gpu.event_reasons() or (),
            foreign_processes=foreign,
        )
