"""The devices of this machine: each has a worker process, a lock, and a thread that waits for its worker.

With several devices the cores are divided among the workers, so that none of them starves another.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from infsa_bench.errors import SpecError
from infsa_bench.execute.cores import divided_cores, own_cores
from infsa_bench.execute.engines import Ended, Task
from infsa_bench.execute.launcher import Launcher
from infsa_bench.execute.messages import Hello
from infsa_bench.execute.process import Abandonment
from infsa_bench.execute.station import StartLauncher, Station
from infsa_bench.machine import differing_facts
from infsa_bench.peaks import MeasuredPeaks
from infsa_bench.record import EnergyCalibration

T = TypeVar("T")

ALL = "all"


class LocalEngine:
    """Runs tasks on devices of this machine, one at a time on each; they are all alike.

    Attributes:
        hello: what the worker of the first device said.
    """

    def __init__(
        self, devices: Sequence[str], start_launcher: StartLauncher = Launcher, *, allow_shared: bool = False
    ) -> None:
        """Start a worker on each of ``devices``; ``all`` stands for every GPU that there is.

        Raises:
            SpecError: one of them cannot be used, is in use already, or is not like the others.
            SweepStoppedError: a worker did not start.
        """
        with contextlib.ExitStack() as opened:
            if tuple(devices) == (ALL,):
                devices = _all_gpus(start_launcher)
            shares = divided_cores(own_cores(), len(devices))
            self._places = [
                opened.enter_context(_Place(device, cores)) for device, cores in zip(devices, shares, strict=True)
            ]
            if len(self._places) == 1:
                # Without a thread in between, an interrupt ends the start of the worker at once.
                self._places[0].open(start_launcher, allow_shared)
            else:
                _all_results(place.call(place.open, start_launcher, allow_shared) for place in self._places)
            first, *others = self._places
            self.hello = first.launcher.hello
            for place in others:
                _refuse_unlike(self.hello, place.launcher.hello)
            self._running: dict[Future[Ended], _Place] = {}
            self._opened = opened.pop_all()

    @property
    def hellos(self) -> tuple[Hello, ...]:
        """What the first worker of each device said."""
        return tuple(place.launcher.hello for place in self._places)

    @property
    def devices(self) -> str:
        """Names of the devices, with commas between them."""
        return ",".join(place.name for place in self._places)

    @property
    def available_bytes(self) -> int | None:
        """The host memory that a case could still take, beside one on each of the other devices."""
        available_bytes = self.hello.available_bytes
        return None if available_bytes is None else available_bytes // len(self._places)

    def describe_places(self) -> str:
        """Return one line: the devices, and what each worker has of the machine."""
        facts = self.hello.environment
        threads = f"{facts.torch_threads} thread{'' if facts.torch_threads == 1 else 's'}"
        cores = f"{facts.cpu_count} core{'' if facts.cpu_count == 1 else 's'}"
        return f"{self.devices.replace(',', ', ')}; each worker has {cores} and {threads}"

    def check(self, mechanisms: tuple[str, ...]) -> None:
        """Try out ``package.module:Class`` mechanisms on the first device; raises as :meth:`Launcher.check`."""
        first = self._places[0]
        first.call(first.launcher.check, mechanisms).result()

    def limit_memory(self, limit_bytes: int) -> None:
        """Limit the memory of every device; raises as :meth:`Launcher.limit_memory`."""
        _all_results(place.call(place.launcher.limit_memory, limit_bytes) for place in self._places)

    def measure_peaks(self) -> MeasuredPeaks:
        """Measure what the first device can do, while the others do nothing; raises as Launcher.measure_peaks."""
        first = self._places[0]
        return first.call(first.launcher.measure_peaks).result()

    def is_shared(self) -> bool:
        """Tell whether another sweep runs on one of the devices just now."""
        return any(place.station.lock.is_shared() for place in self._places)

    @property
    def places(self) -> int:
        """How many devices are not lost."""
        return sum(not place.is_lost for place in self._places)

    def has_room(self, avoided: frozenset[str] = frozenset()) -> bool:
        """Tell whether a device is free; as :meth:`Engine.has_room`."""
        return self._free() is not None

    def start(self, task: Task) -> None:
        """Begin a task on a free device."""
        place = self._free()
        assert place is not None
        self._running[place.call(place.run, task)] = place

    def wait(self) -> Ended:
        """Wait for a task to end."""
        done, _ = concurrent.futures.wait(self._running, return_when=concurrent.futures.FIRST_COMPLETED)
        # Of several that have ended, the one that was started first.
        future = next(future for future in self._running if future in done)
        del self._running[future]
        return future.result()

    def calibrate(self) -> list[EnergyCalibration]:
        """Watch each idle device whose energy was measured once more."""
        usable = [place for place in self._places if not place.is_lost]
        found = _all_results(place.call(place.launcher.calibrate) for place in usable)
        return [calibration for calibration in found if calibration is not None]

    def _free(self) -> _Place | None:
        # What a task should avoid was lost, and a device of this machine is never used again once it is.
        busy = list(self._running.values())
        return next((place for place in self._places if not place.is_lost and place not in busy), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for place in self._places:
            # All at once: each may take seconds to end.
            place.begin_closing()
        self._opened.close()


class _Place:
    """A device, and the thread in which everything with it is done."""

    station: Station

    def __init__(self, device: str, cores: frozenset[int] | None) -> None:
        self.name = device
        self.is_lost = False
        # Declared while the first worker starts in our thread, it ends that, too.
        self._abandonment = Abandonment()
        self._exits = contextlib.ExitStack()
        self._closing: Future[None] | None = None
        # Workers inherit the cores of the thread that starts them and have as many threads; they die when it ends.
        pin = functools.partial(os.sched_setaffinity, 0, cores) if cores is not None else None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=device, initializer=pin)

    @property
    def launcher(self) -> Launcher:
        """Of the device, once it is open."""
        return self.station.launcher

    def open(self, start_launcher: StartLauncher, allow_shared: bool) -> None:
        """Make the device ready; raises as :class:`Station`."""
        station = Station(self.name, start_launcher, allow_shared=allow_shared, abandonment=self._abandonment)
        self.station = self._exits.enter_context(station)
        # "auto" and "cuda" are names of no device.
        self.name = self.launcher.hello.environment.device

    def call(self, function: Callable[..., T], *arguments: object) -> Future[T]:
        """Have the thread call ``function`` after what it was asked for before."""
        return self._thread.submit(function, *arguments)

    def run(self, task: Task) -> Ended:
        """Run a task, after which the device may be lost."""
        ended = self.station.run(task)
        self.is_lost = ended.lost is not None
        return ended

    def begin_closing(self) -> None:
        """Give up what the worker is doing and have it ended."""
        if self._closing is None:
            self._abandonment.declare()
            self._closing = self.call(self._exits.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.begin_closing()
        self._thread.shutdown()
        self._abandonment.close()
        assert self._closing is not None
        self._closing.result()


def _all_gpus(start_launcher: StartLauncher) -> tuple[str, ...]:
    with start_launcher("cuda") as launcher:
        return launcher.hello.gpus


def _all_results(futures: Iterable[Future[T]]) -> list[T]:
    """Wait for all, and then for none if one of them failed."""
    futures = list(futures)
    concurrent.futures.wait(futures)
    return [future.result() for future in futures]


def _refuse_unlike(first: Hello, other: Hello) -> None:
    facts = differing_facts(first.environment, other.environment)
    if facts:
        raise SpecError(
            f"{first.environment.device} and {other.environment.device} are not alike (they differ in "
            f"{', '.join(facts)}): what they measure cannot stand in one table; give each kind a run of its own"
        )
