"""Processor energy through RAPL: a powercap tree on virtual time, and the machine that the tests run on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infsa_bench.energy_plan import ENERGY_PRESETS, TrialShare, WindowPlan
from infsa_bench.errors import MeterUnavailableError
from infsa_bench.measure.energy.clock import MonotonicClock
from infsa_bench.measure.energy.load import HostLoad
from infsa_bench.measure.energy.meter import EnergyMeter
from infsa_bench.measure.energy.rapl import (
    HIGHEST_WATTS,
    UPDATE_SECONDS,
    Rapl,
    find_zones,
)
from infsa_bench.measure.processors import SHARED_CORES, own_seconds
from infsa_bench.record import EnergyCalibration

QUICK = ENERGY_PRESETS["quick"]
SECOND_NS = 1_000_000_000
RANGE = 262_143_328_850
TWO_SECONDS = (WindowPlan(offset_seconds=0.0, ticks=2000),)

SERVER = {
    # Folder: name, watts idle, watts under load.
    "intel-rapl:0": ("package-0", 40.0, 180.0),
    "intel-rapl:0:0": ("dram", 5.0, 20.0),
    "intel-rapl:0:1": ("core", 20.0, 150.0),
    "intel-rapl:1": ("package-1", 30.0, 90.0),
    "intel-rapl:1:0": ("dram", 4.0, 10.0),
    "intel-rapl:1:1": ("uncore", 3.0, 7.0),
    "intel-rapl:2": ("psys", 110.0, 400.0),
    "intel-rapl-mmio:0": ("package-0", 40.0, 180.0),
}
COUNTED = ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1", "intel-rapl:1:0")
IDLE_WATTS = sum(SERVER[folder][1] for folder in COUNTED)
LOAD_WATTS = sum(SERVER[folder][2] for folder in COUNTED)


class Machine:
    """Files of a powercap tree and of /proc/stat that follow a virtual clock, which is this object."""

    def __init__(self, root: Path, zones: dict[str, tuple[str, float, float]], *, wraps_after: int = RANGE) -> None:
        self.root = root / "powercap"
        self.stat = root / "stat"
        self.zones = zones
        self.wraps_after = wraps_after
        self.is_busy = False
        self.is_frozen = False
        self.cores = 16
        self.other_cores = 0.0
        self._ns = 7 * SECOND_NS
        self._busy_seconds = 0.0
        # Close to the end, so that long windows wrap.
        self._counts = {folder: wraps_after - 50e6 * (index + 1) for index, folder in enumerate(zones)}
        for folder, (name, _, _) in zones.items():
            (self.root / folder).mkdir(parents=True)
            (self.root / folder / "name").write_text(f"{name}\n")
            (self.root / folder / "max_energy_range_uj").write_text(f"{wraps_after}\n")
        (self.root / "intel-rapl").mkdir(parents=True, exist_ok=True)
        self.spend(0.0)

    def now_ns(self) -> int:
        return self._ns

    def sleep_until(self, ns: int) -> None:
        self.spend(max(0, ns - self._ns) / 1e9)

    def spend(self, seconds: float) -> None:
        """Let time pass, and write what the kernel would show then."""
        self._ns += round(seconds * 1e9)
        self._busy_seconds += self.other_cores * seconds
        hertz = os.sysconf("SC_CLK_TCK")
        busy, every = round(self._busy_seconds * hertz), round(self._ns / 1e9 * self.cores * hertz)
        self.stat.write_text(f"cpu  {busy} 0 0 {every - busy} 0 0 0 0 0 0\ncpu0 1 2 3 4 5 6 7 8 9 0\nintr 1\n")
        for folder, (_, idle_watts, load_watts) in self.zones.items():
            if not self.is_frozen:
                self._counts[folder] += (load_watts if self.is_busy else idle_watts) * seconds * 1e6
                self._counts[folder] %= self.wraps_after + 1
            (self.root / folder / "energy_uj").write_text(f"{int(self._counts[folder])}\n")

    def load(self, iteration_seconds: float) -> HostLoad:
        def call() -> None:
            self.is_busy = True
            self.spend(iteration_seconds)
            self.is_busy = False

        return HostLoad(call, self)

    def meter(self) -> Rapl:
        return Rapl(self, root=self.root, stat=self.stat)


@pytest.fixture
def server(tmp_path: Path) -> Machine:
    return Machine(tmp_path, SERVER)


def names_of(machine: Machine) -> list[str]:
    return [zone.file.parent.name for zone in find_zones(machine.root)[0]]


def idle_calibration(machine: Machine) -> EnergyCalibration:
    return machine.meter().calibrate_idle(0.5)


# Which counters.


def test_packages_and_their_memory_are_counted_and_nothing_twice(server: Machine) -> None:
    """Cores and uncore lie inside a package, psys around all of them, mmio shows the package again."""
    assert sorted(names_of(server)) == sorted(COUNTED)
    assert server.meter().scope == "package+dram"


@pytest.mark.parametrize(
    ("zones", "counted", "scope"),
    [
        (["package-0"], 1, "package"),
        (["package-0", "core"], 1, "package"),
        (["package-0", "core", "uncore", "psys"], 1, "package"),
        (["package-0-die-0", "package-0-die-1", "package-1-die-0", "package-1-die-1"], 4, "package"),
        (["package-10", "dram"], 2, "package+dram"),
    ],
)
def test_zones_by_name(tmp_path: Path, zones: list[str], counted: int, scope: str) -> None:
    tree = {f"intel-rapl:{index}": (name, 10.0, 10.0) for index, name in enumerate(zones)}
    machine = Machine(tmp_path, tree)
    assert len(names_of(machine)) == counted
    assert find_zones(machine.root)[1] == scope
    assert machine.meter().calibrate_idle(1.0).idle_watts == pytest.approx(10.0 * counted, rel=1e-3)


@pytest.mark.parametrize("zones", [[], ["psys"], ["core", "uncore"], ["dram"], ["package"], ["xpackage-0"]])
def test_no_package_is_a_reason(tmp_path: Path, zones: list[str]) -> None:
    machine = Machine(tmp_path, {f"intel-rapl:{index}": (name, 1.0, 1.0) for index, name in enumerate(zones)})
    with pytest.raises(MeterUnavailableError) as caught:
        machine.meter()
    assert caught.value.reason == "rapl_absent"


def test_no_powercap_at_all_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(MeterUnavailableError) as caught:
        Rapl(MonotonicClock(), root=tmp_path / "powercap")
    assert caught.value.reason == "rapl_absent"


@pytest.mark.parametrize("text", ["", "0\n", "many\n", None])
def test_a_package_without_a_range_is_not_left_out(server: Machine, text: str | None) -> None:
    """Half of a machine would pass for all of it."""
    file = server.root / "intel-rapl:1" / "max_energy_range_uj"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(MeterUnavailableError, match=r"intel-rapl:1.max_energy_range_uj") as caught:
        server.meter()
    assert caught.value.reason == "rapl_absent"


@pytest.mark.parametrize("text", ["", "none\n", None])
def test_a_counter_that_cannot_be_read_is_a_reason(server: Machine, text: str | None) -> None:
    file = server.root / "intel-rapl:0:0" / "energy_uj"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(MeterUnavailableError, match=r"intel-rapl:0:0.energy_uj") as caught:
        server.meter()
    assert caught.value.reason == "rapl_absent"


@contextmanager
def unprivileged() -> Iterator[None]:
    """As somebody whom file modes stop."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_counters_for_root_only_say_how_to_allow_it() -> None:
    """As the kernel shows them since 5.10: everything but the energy is for all."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        machine = Machine(Path(folder), SERVER)
        for file in machine.root.glob("*/energy_uj"):
            file.chmod(0o400 if os.geteuid() == 0 else 0)
        with (
            unprivileged(),
            pytest.raises(MeterUnavailableError, match=r"sudo chmod a\+r \S+/intel-rapl:\*/energy_uj") as caught,
        ):
            machine.meter()
        assert caught.value.reason == "rapl_permission"
        for file in machine.root.glob("*/energy_uj"):
            file.chmod(0o444)
        with unprivileged():
            machine.meter()


# What they say.


def test_idle_watts(server: Machine) -> None:
    calibration = server.meter().calibrate_idle()
    assert calibration.source == "rapl"
    assert calibration.scope == "package+dram"
    assert calibration.idle_watts == pytest.approx(IDLE_WATTS, rel=1e-6)
    assert calibration.idle_seconds == pytest.approx(10.0)
    assert calibration.period_seconds == UPDATE_SECONDS
    assert calibration.doubts == ()


@pytest.mark.parametrize("iteration_seconds", [0.02, 0.13, 1.7, 30.0])
def test_joules_per_iteration(server: Machine, iteration_seconds: float) -> None:
    meter = server.meter()
    calibration = meter.calibrate_idle(0.5)
    load = server.load(iteration_seconds)
    assert meter.calibrate_under_load(load, calibration) == calibration
    meter.settle(load, 10.0, calibration)
    watched = meter.watch(load, TWO_SECONDS, calibration)
    (window,) = watched.windows
    assert watched.samples == ()
    assert window.iterations == pytest.approx(-(-2.0 // iteration_seconds))
    assert window.joules / window.iterations == pytest.approx(LOAD_WATTS * iteration_seconds, rel=1e-6)
    assert window.seconds >= 2.0
    assert window.power_joules is None
    assert meter.relative_bias((window,)) == pytest.approx(2 * UPDATE_SECONDS / window.seconds)


@pytest.mark.parametrize("seconds", [40.0, 600.0])
def test_wraps_are_added_up(tmp_path: Path, seconds: float) -> None:
    """A small range, 60 s of the most a socket draws: ten minutes under load wrap it more than once."""
    machine = Machine(tmp_path, SERVER, wraps_after=round(60 * HIGHEST_WATTS * 1e6))
    meter = machine.meter()
    calibration = meter.calibrate_idle(0.5)
    plans = (WindowPlan(offset_seconds=0.0, ticks=round(seconds / UPDATE_SECONDS)),)
    (window,) = meter.watch(machine.load(2.0), plans, calibration).windows
    assert window.joules == pytest.approx(LOAD_WATTS * seconds, rel=1e-6)
    if seconds == 600:
        assert SERVER["intel-rapl:0"][2] * seconds * 1e6 > 1.5 * machine.wraps_after


def test_from_the_highest_count_to_zero_is_one_step(server: Machine) -> None:
    calibration = idle_calibration(server)
    server.is_frozen = True
    files = [server.root / folder / "energy_uj" for folder in COUNTED]

    def call() -> None:
        server.spend(1.0)
        for file in files:
            file.write_text("0\n")

    for file in files:
        file.write_text(f"{RANGE}\n")
    (window,) = server.meter().watch(HostLoad(call, server), TWO_SECONDS, calibration).windows
    assert window.joules == pytest.approx(len(COUNTED) * 1e-6)


def test_an_idle_machine_is_looked_at_often_enough(tmp_path: Path) -> None:
    machine = Machine(tmp_path, SERVER, wraps_after=round(2 * HIGHEST_WATTS * 1e6))
    assert machine.meter().calibrate_idle(60.0).idle_watts == pytest.approx(IDLE_WATTS, rel=1e-6)


def test_an_iteration_in_which_a_counter_could_wrap_unseen_is_refused(tmp_path: Path) -> None:
    machine = Machine(tmp_path, SERVER, wraps_after=round(60 * HIGHEST_WATTS * 1e6))
    meter = machine.meter()
    calibration = meter.calibrate_idle(0.5)
    meter.watch(machine.load(59.0), TWO_SECONDS, calibration)
    with pytest.raises(MeterUnavailableError, match="could wrap unseen") as caught:
        meter.watch(machine.load(61.0), TWO_SECONDS, calibration)
    assert caught.value.reason == "counter_wraps"


def test_counters_that_stand_still_are_a_reason(server: Machine) -> None:
    calibration = idle_calibration(server)
    meter = server.meter()
    server.is_frozen = True
    with pytest.raises(MeterUnavailableError) as caught:
        meter.calibrate_idle(0.5)
    assert caught.value.reason == "counter_frozen"
    with pytest.raises(MeterUnavailableError) as caught:
        meter.watch(server.load(0.1), TWO_SECONDS, calibration)
    assert caught.value.reason == "counter_frozen"


# Who else is there.


@pytest.mark.parametrize(("other_cores", "doubts"), [(0.0, ()), (0.5, ()), (1.0, ("shared",)), (16.0, ("shared",))])
def test_other_processes_are_seen(server: Machine, other_cores: float, doubts: tuple[str, ...]) -> None:
    """Of 16 cores, one is more than a twentieth, half a one is not."""
    assert (other_cores / server.cores > SHARED_CORES) == bool(doubts)
    meter = server.meter()
    server.other_cores = other_cores
    calibration = meter.calibrate_idle(2.0)
    assert calibration.doubts == doubts
    server.other_cores = 0.0
    meter.settle(server.load(0.1), 1.0, calibration)
    assert meter.doubts == ()
    server.other_cores = other_cores
    meter.watch(server.load(0.1), TWO_SECONDS, calibration)
    assert meter.doubts == doubts


def test_a_neighbour_during_one_trial_is_not_forgotten_in_the_next(server: Machine) -> None:
    meter = server.meter()
    calibration = meter.calibrate_idle(0.5)
    meter.settle(server.load(0.1), 1.0, calibration)
    server.other_cores = 8.0
    meter.watch(server.load(0.1), TWO_SECONDS, calibration)
    server.other_cores = 0.0
    meter.watch(server.load(0.1), TWO_SECONDS, calibration)
    assert meter.doubts == ("shared",)
    meter.settle(server.load(0.1), 1.0, calibration)
    assert meter.doubts == ()


def test_what_we_use_ourselves_is_nobody_else_s(server: Machine) -> None:
    """All cores of this virtual machine, but the time is this process's own."""
    server.cores = 1
    meter = server.meter()
    calibration = meter.calibrate_idle(0.5)

    def call() -> None:
        begin = own_seconds()
        while (spent := own_seconds() - begin) < 0.03:
            pass
        # What the process really spent is what the machine shows as busy.
        server.other_cores = spent / 0.03
        server.spend(0.03)

    meter.watch(HostLoad(call, server), (WindowPlan(offset_seconds=0.0, ticks=300),), calibration)
    assert meter.doubts == ()


@pytest.mark.parametrize("text", [None, "", "cpu a b c\n"])
def test_without_such_a_count_nothing_is_claimed(server: Machine, text: str | None) -> None:
    meter = server.meter()
    calibration = meter.calibrate_idle(0.5)
    gone = Machine(server.root.parent / "other", {})
    gone.stat.unlink() if text is None else gone.stat.write_text(text)
    silent = Rapl(server, root=server.root, stat=gone.stat)
    (window,) = silent.watch(server.load(0.1), TWO_SECONDS, calibration).windows
    assert window.joules > 0
    assert silent.doubts == ()


# Whole readings.


def test_a_whole_reading(server: Machine) -> None:
    meter = EnergyMeter([("rapl", server.meter())], server)
    reading = meter.read(server.load(0.25), 0.25, QUICK, TrialShare.all_of(3)).reading
    assert reading.status == "measured"
    assert reading.calibration is not None
    assert reading.calibration.scope == "package+dram"
    assert [trial.joules_per_iteration for trial in reading.trials] == pytest.approx([LOAD_WATTS * 0.25] * 3)


def test_a_reading_beside_others_is_doubted(server: Machine) -> None:
    meter = EnergyMeter([("rapl", server.meter())], server)
    meter.calibrate()
    server.other_cores = 4.0
    reading = meter.read(server.load(0.25), 0.25, QUICK, TrialShare.all_of(3)).reading
    assert (reading.status, reading.reason) == ("measured_low_confidence", "shared")


def test_on_this_machine_it_works_or_says_why_not() -> None:
    try:
        meter = Rapl(MonotonicClock())
    except MeterUnavailableError as error:
        assert error.reason in ("rapl_absent", "rapl_permission")
        return
    assert meter.scope in ("package", "package+dram")
    assert meter.calibrate_idle(0.2).idle_watts is not None
