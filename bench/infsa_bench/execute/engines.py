"""Where workers run: an engine hands cases to places and tells what came of each, as it comes. Imports no torch.

A place is a device on a machine that takes one case at a time. Whoever runs a plan asks an engine whether it has room,
starts a task, and waits for one of those that are under way to end. An engine never writes: what it returns is stored
by the one process that may add to the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol as Interface

from infsa_bench.energy_plan import EnergyPreset
from infsa_bench.execute.launcher import CaseRun, Patience
from infsa_bench.execute.messages import Hello
from infsa_bench.machine import Environment
from infsa_bench.peaks import MeasuredPeaks
from infsa_bench.protocol import Protocol
from infsa_bench.record import EnergyCalibration
from infsa_bench.spec import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A case to be run, and how; the fields are those of :meth:`~infsa_bench.execute.launcher.Launcher.run`.

    ``avoided`` are places that it should not go to while there is another.
    """

    case: Case
    protocol: Protocol
    patience: Patience
    limit_seconds: float | None
    energy: EnergyPreset | None
    avoided: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What came of a task at a place.

    Attributes:
        place: name of the place.
        environment: where it ran or, if it was lost before that could be known, where it should have.
        seconds: from its start there to its end.
        run: how the case ended; None where the place or the process in it was lost first.
        lost: why, and also where a place was lost once the case had ended; None if all is well.
        is_shared: whether others used the device before or after.
    """

    task: Task
    place: str
    environment: Environment
    seconds: float
    run: CaseRun | None
    lost: str | None = None
    is_shared: bool = False


class Engine(Interface):
    """Runs tasks at its places, which are alike.

    Attributes:
        hello: what a worker at the first place says of it.
        hellos: the same of all places that were asked.
        devices: their names, with commas between them, as a run's settings have them.
        available_bytes: host memory that a case could still take; None where nobody knows.
    """

    @property
    def hello(self) -> Hello: ...  # noqa: D102

    @property
    def hellos(self) -> tuple[Hello, ...]: ...  # noqa: D102

    @property
    def devices(self) -> str: ...  # noqa: D102

    @property
    def available_bytes(self) -> int | None: ...  # noqa: D102

    def describe_places(self) -> str:
        """Return one line for people."""

    def check(self, mechanisms: tuple[str, ...]) -> None:
        """Try out ``package.module:Class`` mechanisms; raises as :meth:`Launcher.check`."""

    def limit_memory(self, limit_bytes: int) -> None:
        """Limit the memory of every place; raises as :meth:`Launcher.limit_memory`."""

    def measure_peaks(self) -> MeasuredPeaks:
        """Measure what one of the places can do; raises as :meth:`Launcher.measure_peaks`."""

    def is_shared(self) -> bool:
        """Tell whether somebody else is known to use one of the places just now."""

    @property
    def places(self) -> int:
        """How many places there still are, busy or not."""

    def has_room(self, avoided: frozenset[str] = frozenset()) -> bool:
        """Tell whether a place is free that is not ``avoided``; where there are none but those, whether one of them is.

        Without ``avoided`` the answer is whether any place is free.
        """

    def start(self, task: Task) -> None:
        """Begin a task at a free place; there has to be room for it."""

    def wait(self) -> Ended:
        """Wait for a task that was started to end; one has to be under way.

        A place that can no longer be used raises nothing: it is lost.

        Raises:
            SweepStoppedError: what holds the places together is gone.
        """

    def calibrate(self) -> list[EnergyCalibration]:
        """Watch each idle device whose energy was measured once more."""
