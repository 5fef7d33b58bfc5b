"""What runs on a node of a Ray cluster: an actor that has a device to itself, and a station there as anywhere.

What it is told and what it answers is JSON text in the form of records: nothing of them is ever pickled. Imports
neither torch nor Ray, which has reserved the device and made it the only one that the process sees.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from dataclasses import dataclass, replace

from infsa_bench.codec import decode, encode
from infsa_bench.energy_plan import EnergyPreset
from infsa_bench.errors import PeaksUnavailableError, SpecError, SweepStoppedError
from infsa_bench.execute.cores import divided_cores, limited_threads, own_cores
from infsa_bench.execute.engines import Task
from infsa_bench.execute.launcher import CaseRun, Launcher, Patience
from infsa_bench.execute.messages import Hello, PeaksMeasured
from infsa_bench.execute.station import Station
from infsa_bench.machine import Environment
from infsa_bench.protocol import Protocol
from infsa_bench.record import Attempt, EnergyCalibration, Outcome, TracePoint
from infsa_bench.spec import Case

_UNUSABLE = (SpecError, SweepStoppedError, OSError)
"""What says that this node cannot be used; the others can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What an actor is: its ``device``, ``cpu`` or ``cuda`` (the one that Ray gave it), and the cluster's names.

    It is one of ``parts`` on its node, the one with the number ``part``, and is lent so many ``cores``.
    """

    device: str
    node: str
    accelerator: str | None
    allow_shared: bool
    part: int
    parts: int
    cores: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What an actor says when it is ready, or why it cannot be used."""

    hello: Hello | None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A task in the form of text.

    ``left_seconds`` is what is left of the sweep's time when the actor begins, for clocks of nodes differ. None is no
    limit.
    """

    case: Case
    protocol: Protocol
    limit_seconds: float | None
    energy: EnergyPreset | None
    timeout_seconds: float | None
    silence_seconds: float | None
    left_seconds: float | None
    memory_limit_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of an order, and where; without ``outcome`` where the device was lost first.

    ``environment`` is None where it was lost before anything was known of it.
    """

    environment: Environment | None
    seconds: float
    outcome: Outcome | None
    attempts: tuple[Attempt, ...] = ()
    trace: tuple[TracePoint, ...] = ()
    calibration: EnergyCalibration | None = None
    lost: str | None = None
    is_shared: bool = False

    @property
    def run(self) -> CaseRun | None:
        """How the case ended, as a launcher has it."""
        if self.outcome is None:
            return None
        return CaseRun(outcome=self.outcome, attempts=self.attempts, trace=self.trace, calibration=self.calibration)


def order_of(task: Task, memory_limit_bytes: int | None) -> Order:
    """Return a task in the form of text."""
    patience = task.patience
    return Order(
        case=task.case,
        protocol=task.protocol,
        limit_seconds=task.limit_seconds,
        energy=task.energy,
        timeout_seconds=None if math.isinf(patience.timeout_seconds) else patience.timeout_seconds,
        silence_seconds=None if math.isinf(patience.silence_seconds) else patience.silence_seconds,
        left_seconds=None if patience.until is None else patience.until - time.monotonic(),
        memory_limit_bytes=memory_limit_bytes,
    )


def task_of(order: Order) -> Task:
    """Return the task that an order was made of."""
    until = None if order.left_seconds is None else time.monotonic() + order.left_seconds
    patience = Patience(
        timeout_seconds=math.inf if order.timeout_seconds is None else order.timeout_seconds,
        silence_seconds=math.inf if order.silence_seconds is None else order.silence_seconds,
        until=until,
    )
    return Task(
        case=order.case,
        protocol=order.protocol,
        patience=patience,
        limit_seconds=order.limit_seconds,
        energy=order.energy,
    )


class RayStation:
    """The actor. It dies with its node, and its worker with it."""

    def __init__(self, place: str) -> None:
        """Take note of a :class:`Place`; the device is made ready by :meth:`open`, which can say why it cannot."""
        self._place = decode(Place, place)
        share = divided_cores(own_cores(), self._place.parts)[self._place.part]
        if share is not None:
            # Its workers inherit both. Ray counts cores and keeps nobody to them.
            os.sched_setaffinity(0, share)
            os.environ.update(limited_threads(os.environ, min(len(share), max(1, self._place.cores))))
        self._station: Station | None = None
        self._memory_limit_bytes: int | None = None

    def open(self) -> str:
        """Start the first worker; return an :class:`Opened`."""
        try:
            hello = self._ready_station().launcher.hello
        except _UNUSABLE as error:
            return encode(Opened(hello=None, problem=str(error)))
        return encode(Opened(hello=replace(hello, environment=self._named(hello.environment))))

    def check(self, mechanisms: list[str]) -> str | None:
        """Try out ``package.module:Class`` mechanisms; return what is wrong."""
        try:
            self._ready_station().launcher.check(tuple(mechanisms))
        except _UNUSABLE as error:
            return str(error)
        return None

    def limit_memory(self, limit_bytes: int) -> str | None:
        """Limit the memory of every worker from now on and try that out; return what is wrong with it."""
        try:
            self._ready_station().launcher.limit_memory(limit_bytes)
        except _UNUSABLE as error:
            return str(error)
        self._memory_limit_bytes = limit_bytes
        return None

    def measure_peaks(self) -> str:
        """Measure what the device can do; return a PeaksMeasured."""
        try:
            peaks = self._ready_station().launcher.measure_peaks()
        except (PeaksUnavailableError, *_UNUSABLE) as error:
            return encode(PeaksMeasured(peaks=None, problem=str(error)))
        return encode(PeaksMeasured(peaks=peaks, problem=None))

    def run(self, order: str) -> str:
        """Run an :class:`Order`; return an :class:`Answer`. One that follows a lost actor's has to be made ready."""
        asked = decode(Order, order)
        try:
            station = self._ready_station()
            if asked.memory_limit_bytes != self._memory_limit_bytes and asked.memory_limit_bytes is not None:
                station.launcher.limit_memory(asked.memory_limit_bytes, is_tried_out=False)
                self._memory_limit_bytes = asked.memory_limit_bytes
        except _UNUSABLE as error:
            return encode(Answer(environment=None, seconds=0.0, outcome=None, lost=str(error)))
        ended = station.run(task_of(asked))
        answer = Answer(
            environment=self._named(ended.environment),
            seconds=ended.seconds,
            outcome=None,
            lost=ended.lost,
            is_shared=ended.is_shared,
        )
        if ended.run is not None:
            answer = replace(
                answer,
                outcome=ended.run.outcome,
                attempts=ended.run.attempts,
                trace=ended.run.trace,
                calibration=ended.run.calibration,
            )
        return encode(answer)

    def calibrate(self) -> str | None:
        """Watch the idle device once more; return an EnergyCalibration, or None."""
        calibration = None if self._station is None else self._station.launcher.calibrate()
        return None if calibration is None else encode(calibration)

    def is_shared(self) -> bool:
        """Tell whether another sweep runs on the device just now."""
        return self._station is not None and self._station.lock.is_shared()

    def close(self) -> None:
        """End the worker."""
        if self._station is not None:
            with contextlib.suppress(SweepStoppedError):
                self._station.__exit__(None, None, None)

    def _named(self, environment: Environment) -> Environment:
        """The environment with the cluster's names for it."""
        return replace(environment, node=self._place.node, accelerator=self._place.accelerator)

    def _ready_station(self) -> Station:
        if self._station is None:
            self._station = Station(self._place.device, Launcher, allow_shared=self._place.allow_shared)
        return self._station
