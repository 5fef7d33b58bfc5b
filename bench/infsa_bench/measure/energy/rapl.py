"""Energy of processors through RAPL, the counters that Linux shows under ``/sys/class/powercap``.

They count a whole package (and its memory, where there is such a zone), whoever uses it, and move about every
millisecond.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from infsa_bench.energy_plan import WindowPlan
from infsa_bench.errors import MeterUnavailableError
from infsa_bench.measure.energy.clock import Clock
from infsa_bench.measure.energy.counter import IDLE_SECONDS
from infsa_bench.measure.energy.load import Idle, Load
from infsa_bench.measure.energy.trace import WatchedTrial
from infsa_bench.measure.processors import STAT, OtherLoad
from infsa_bench.record import EnergyCalibration, EnergyScope, EnergyWindow

ROOT = Path("/sys/class/powercap")
UPDATE_SECONDS = 0.001
HIGHEST_WATTS = 1000.0
"""No socket draws more: a counter that could wrap twice between two readings at this power is of no use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """One counter: its file, and the count in microjoules at which it starts again from 0."""

    file: Path
    wraps_after: int

    @property
    def least_wrap_seconds(self) -> float:
        """The time in which it could wrap."""
        return self.wraps_after / 1e6 / HIGHEST_WATTS

    def read(self) -> int:
        """Return the count.

        Raises:
            MeterUnavailableError: only root may read it (``rapl_permission``), or it is gone (``rapl_absent``).
        """
        try:
            return int(self.file.read_text())
        except PermissionError:
            hint = f"allow it with: sudo chmod a+r {self.file.parent.parent}/intel-rapl:*/{self.file.name}"
            raise MeterUnavailableError("rapl_permission", f"only root may read {self.file}; {hint}") from None
        except (OSError, ValueError) as error:
            raise MeterUnavailableError("rapl_absent", f"{self.file} cannot be read: {error}") from None


class Rapl:
    """Meter on all packages of the machine and their memory."""

    def __init__(self, clock: Clock, root: Path = ROOT, stat: Path = STAT) -> None:
        """Find the counters.

        Raises:
            MeterUnavailableError: there are none (``rapl_absent``), or they cannot be read (``rapl_permission``).
        """
        self._clock = clock
        self._stat = stat
        self._zones, self.scope = find_zones(root)
        self._counts = [zone.read() for zone in self._zones]
        self._joules = 0.0
        self._is_shared = False

    def calibrate_idle(self, seconds: float = IDLE_SECONDS) -> EnergyCalibration:
        """Watch the idle machine; raises as :meth:`Zone.read` does."""
        self._is_shared = False
        window = self._watch(Idle(self._clock), seconds)
        if window.joules <= 0:
            raise MeterUnavailableError("counter_frozen", f"the RAPL counters have not moved for {seconds:.0f} s")
        return EnergyCalibration(
            source="rapl",
            scope=self.scope,
            period_seconds=UPDATE_SECONDS,
            idle_watts=window.joules / window.seconds,
            idle_seconds=window.seconds,
            doubts=("shared",) if self._is_shared else (),
        )

    def calibrate_under_load(self, load: Load, calibration: EnergyCalibration) -> EnergyCalibration:
        """Return what is known already: these counters move faster than anything that is watched."""
        return calibration

    def settle(self, load: Load, seconds: float, calibration: EnergyCalibration) -> float | None:
        """Begin to look for other processes anew; timing has just warmed the processor up."""
        self._is_shared = False
        return None

    def watch(self, load: Load, plans: tuple[WindowPlan, ...], calibration: EnergyCalibration) -> WatchedTrial:
        """Return one window of whole iterations, as long as all planned ones; raises as :meth:`Zone.read` does."""
        window = self._watch(load, sum(plan.ticks for plan in plans) * UPDATE_SECONDS)
        if window.joules <= 0:
            raise MeterUnavailableError("counter_frozen", "the RAPL counters have stopped moving")
        return WatchedTrial(windows=(window,), samples=())

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is to be doubted of what was watched since :meth:`settle`."""
        return ("shared",) if self._is_shared else ()

    def relative_bias(self, windows: tuple[EnergyWindow, ...]) -> float:
        """Return the bound of what repeating does not average out: the counters' own steps."""
        return sum(window.edge_seconds for window in windows) / sum(window.seconds for window in windows)

    def _watch(self, load: Load, seconds: float) -> EnergyWindow:
        wrap_ns = min(zone.least_wrap_seconds for zone in self._zones) * 1e9
        load.begin()
        begin_ns, begin_joules, others = self._clock.now_ns(), self._read_joules(), OtherLoad(self._stat)
        end_ns = begin_ns + round(seconds * 1e9)
        while (now_ns := self._clock.now_ns()) < end_ns:
            # Short enough that no counter can pass half its range unseen, if no iteration is longer than that.
            load.keep_busy(min(end_ns, now_ns + round(wrap_ns / 2)))
            self._read_joules()
            if self._clock.now_ns() - now_ns > wrap_ns:
                detail = f"an iteration is so long that a counter could wrap unseen, after {wrap_ns / 1e9:.0f} s"
                raise MeterUnavailableError("counter_wraps", detail)
        last_ns, joules = self._clock.now_ns(), self._read_joules() - begin_joules
        self._is_shared |= others.is_shared()
        load.drain()
        return EnergyWindow(
            joules=joules,
            iterations=load.iterations_between(begin_ns, last_ns),
            seconds=(last_ns - begin_ns) / 1e9,
            edge_seconds=2 * UPDATE_SECONDS,
            power_joules=None,
        )

    def _read_joules(self) -> float:
        """Return joules since this meter was made, all zones together; wraps are added up from reading to reading."""
        for index, zone in enumerate(self._zones):
            count = zone.read()
            self._joules += ((count - self._counts[index]) % (zone.wraps_after + 1)) / 1e6
            self._counts[index] = count
        return self._joules


def find_zones(root: Path) -> tuple[list[Zone], EnergyScope]:
    """Return a counter for each package and for each memory zone.

    Cores and graphics lie inside a package, and ``psys`` is another boundary: none of them is added.

    Raises:
        MeterUnavailableError: there are none, or one of them does not tell when it wraps: without it, the sum would
            be too small unnoticed.
    """
    packages: list[Zone] = []
    memories: list[Zone] = []
    for folder in sorted(root.glob("intel-rapl:*")) if root.is_dir() else []:
        try:
            name = (folder / "name").read_text().strip()
        except OSError:
            continue
        is_package = re.fullmatch(r"package-\d+(-die-\d+)?", name) is not None
        if is_package or name == "dram":
            (packages if is_package else memories).append(_open_zone(folder))
    if not packages:
        raise MeterUnavailableError("rapl_absent", f"this machine shows no processor energy: no package in {root}")
    return packages + memories, "package+dram" if memories else "package"


def _open_zone(folder: Path) -> Zone:
    file = folder / "max_energy_range_uj"
    try:
        wraps_after = int(file.read_text())
    except (OSError, ValueError) as error:
        raise MeterUnavailableError("rapl_absent", f"{file} cannot be read: {error}") from None
    if wraps_after <= 0:
        raise MeterUnavailableError("rapl_absent", f"{file} says {wraps_after}")
    return Zone(file=folder / "energy_uj", wraps_after=wraps_after)
