"""What a machine is said to measure: every line with every verdict, on a fake board and on this processor."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pynvml
import pytest
import torch
from fake_nvml import CounterMode, FakeNvml, PowerMode
from sample_records import ENVIRONMENT
from virtual_board import VirtualClock

from infsa_bench.errors import MeterUnavailableError
from infsa_bench.execute import diagnosis
from infsa_bench.execute.diagnosis import diagnose
from infsa_bench.execute.instruments import Instruments, gpu_energy_source, open_instruments, refuse_shared_counters
from infsa_bench.execute.messages import Finding
from infsa_bench.measure import processors
from infsa_bench.measure.memory import Peak, PeakMemory
from infsa_bench.measure.nvml import Gpu
from infsa_bench.record import EnergySource

CPU = torch.device("cpu")
CUDA = dataclasses.replace(
    ENVIRONMENT, device="cuda:0", device_name="FAKE GPU 0", device_memory_bytes=80 * 2**30, cpu_count=8
)
PROCESSOR = dataclasses.replace(ENVIRONMENT, cpu_count=8, torch_threads=4)
RAPL_ABSENT = MeterUnavailableError("rapl_absent", "no package")
WATTS = 1_000
ALL_OF_A_GPU = [
    "device",
    "time",
    "memory",
    "energy",
    "counter period",
    "NVML",
    "identity",
    "whole GPU",
    "sharing",
    "clocks",
    "power limit",
    "settings",
    "processor",
]


@functools.cache
def peak_memory() -> PeakMemory:
    """One for all tests: to make one is to collect garbage."""
    return PeakMemory(CPU)


def without_meter(
    *,
    gpu: Gpu | None = None,
    source: EnergySource | None = None,
    no_energy: MeterUnavailableError | None = None,
) -> Instruments:
    """What a diagnosis looks at; it never asks the meter."""
    return Instruments(
        device=CPU, peak_memory=peak_memory(), gpu=gpu, meter=None, energy_source=source, no_energy=no_energy
    )


def on_board(fake: FakeNvml, uuid: str | None = None) -> Instruments:
    """The first fake board, as open_instruments() would find it were it there for torch as well."""
    gpu: Gpu | None = None
    try:
        gpu = Gpu.find(uuid or fake.device(0).uuid, None)
        refuse_shared_counters(gpu)
        return without_meter(gpu=gpu, source=gpu_energy_source(gpu))
    except MeterUnavailableError as error:
        return without_meter(gpu=gpu, no_energy=error)


@pytest.fixture
def board(fake_nvml: FakeNvml) -> FakeNvml:
    """A fake board that lists this process alone."""
    fake_nvml.device(0).compute_processes = [(os.getpid(), 2**30)]
    return fake_nvml


def lines(fake: FakeNvml, powercap: Path = Path("/nonexistent"), **options: Any) -> dict[str, Finding]:
    instruments = options.get("instruments") or on_board(fake)
    findings = diagnose(CUDA, instruments, selfcheck=False, clock=VirtualClock(fake), powercap=powercap)
    assert len({finding.name for finding in findings}) == len(findings)
    return {finding.name: finding for finding in findings}


def line(fake: FakeNvml, name: str) -> tuple[str, str]:
    finding = lines(fake)[name]
    return finding.verdict, finding.detail


class Cores:
    """A clock, and the load of 8 cores in ``stat``: as much of theirs as time passes, ``busy`` a part of it."""

    def __init__(self, stat: Path, busy: float = 0.0) -> None:
        self.stat = stat
        self._busy = busy
        self._seconds = 0.0
        self.sleep_until(0)

    def now_ns(self) -> int:
        return round(self._seconds * 1e9)

    def sleep_until(self, ns: int) -> None:
        self._seconds = ns / 1e9
        ticks = 8 * self._seconds * os.sysconf("SC_CLK_TCK")
        self.stat.write_text(f"cpu  {round(ticks * self._busy)} 0 0 {round(ticks * (1 - self._busy))} 0 0 0 0 0 0\n")


@pytest.fixture
def cores(tmp_path: Path) -> Cores:
    """Cores that nobody uses."""
    return Cores(tmp_path / "stat")


def on_processor(
    cores: Cores, instruments: Instruments | None = None, powercap: Path = Path("/nonexistent")
) -> dict[str, tuple[str, str]]:
    instruments = instruments or without_meter(no_energy=RAPL_ABSENT)
    findings = diagnose(PROCESSOR, instruments, selfcheck=False, clock=cores, powercap=powercap, stat=cores.stat)
    return {finding.name: (finding.verdict, finding.detail) for finding in findings}


def make_zones(root: Path, names: Sequence[str]) -> Path:
    for index, name in enumerate(names):
        zone = root / f"intel-rapl:{index}"
        zone.mkdir(parents=True)
        (zone / "name").write_text(f"{name}\n")
        (zone / "max_energy_range_uj").write_text("262143328850\n")
        (zone / "energy_uj").write_text("0\n")
    return root


def test_a_gpu_that_can_all(board: FakeNvml, tmp_path: Path) -> None:
    found = lines(board, make_zones(tmp_path, ["package-0"]))
    assert list(found) == ALL_OF_A_GPU
    assert {finding.verdict for finding in found.values()} == {"yes"}
    assert found["device"].detail == "cuda:0: FAKE GPU 0, 80.0 GiB"
    assert "CUDA events" in found["time"].detail
    assert "caching allocator" in found["memory"].detail


def test_which_nvml_and_which_gpu(board: FakeNvml) -> None:
    board.reset(devices=2)
    gpu = Gpu.find(board.device(1).uuid, None)
    found = lines(board, instruments=without_meter(gpu=gpu, source="nvml_counter"))
    facts = gpu.facts
    assert found["NVML"].detail == f"driver {facts.driver_version}, NVML {facts.nvml_version}, {facts.nvml_library}"
    assert str(facts.nvml_library).endswith("libnvidia-ml.so.1")
    assert found["identity"].detail == f"{board.device(1).uuid} at {board.device(1).pci_bus_id}, number 1 of NVML"


def test_energy_of_the_counter(board: FakeNvml) -> None:
    assert line(board, "energy") == ("yes", "NVML's energy counter, scope gpu")
    board.device(0).module_scope_only = 1
    assert line(board, "energy") == ("yes", "NVML's energy counter, scope module")
    board.device(0).power_mode = PowerMode.NOT_SUPPORTED
    assert line(board, "energy") == ("yes", "NVML's energy counter, scope gpu")


def test_energy_of_sampled_power(board: FakeNvml) -> None:
    board.device(0).counter_mode = CounterMode.NOT_SUPPORTED
    assert line(board, "energy") == ("limited", "no energy counter: sampled power, always of low confidence")
    assert "counter period" not in lines(board)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"counter_mode": CounterMode.NOT_SUPPORTED, "power_mode": PowerMode.NOT_SUPPORTED}, "counter_unsupported"),
        ({"mig_mode": 1}, "mig"),
        ({"virtualization_mode": 2}, "vgpu"),
    ],
)
def test_no_energy_says_why(board: FakeNvml, settings: dict[str, object], reason: str) -> None:
    for name, value in settings.items():
        setattr(board.device(0), name, value)
    verdict, detail = line(board, "energy")
    assert verdict == "no"
    assert detail.startswith(f"{reason}: ")
    # The rest of the GPU is told all the same, but for a counter that is not read.
    assert list(lines(board)) == [name for name in ALL_OF_A_GPU if name != "counter period"]


def test_a_gpu_that_nvml_does_not_know(board: FakeNvml) -> None:
    found = lines(board, instruments=on_board(board, uuid="GPU-elsewhere"))
    assert list(found) == ["device", "time", "memory", "energy", "processor"]
    assert (found["energy"].verdict, found["energy"].detail) == ("no", "identity: NVML knows no GPU GPU-elsewhere")


@pytest.mark.parametrize(
    ("period_ms", "verdict", "detail"),
    [
        (20, "yes", "20 ms (median of 50 updates without load)"),
        (100, "yes", "100 ms (median of 10 updates without load)"),
        (240, "yes", "240 ms (median of 4 updates without load)"),
        (260, "limited", "260 ms (median of 3 updates without load)"),
        (400, "limited", "400 ms (median of 2 updates without load)"),
    ],
)
def test_the_period_of_the_counter(board: FakeNvml, period_ms: int, verdict: str, detail: str) -> None:
    board.device(0).period_ns = board.device(0).window_ns = period_ms * 1_000_000
    assert line(board, "counter period") == (verdict, detail)


def test_the_period_of_a_counter_that_is_not_punctual(board: FakeNvml) -> None:
    """A late update now and then is not its period."""
    board.device(0).jitter_sd = 0.2
    verdict, detail = line(board, "counter period")
    assert verdict == "yes"
    assert 90 <= float(detail.split()[0]) <= 110


def test_a_counter_that_stands_still(board: FakeNvml) -> None:
    board.device(0).counter_mode = CounterMode.FROZEN
    verdict, detail = line(board, "counter period")
    assert verdict == "no"
    assert detail.startswith("counter_frozen: ")


@pytest.mark.parametrize(
    ("settings", "verdict", "detail"),
    [
        ({}, "yes", "no MIG; virtualization: none"),
        ({"virtualization_mode": 1}, "yes", "no MIG; virtualization: passthrough"),
        ({"virtualization_mode": -1}, "yes", "no MIG; virtualization: unknown"),
        ({"virtualization_mode": 2}, "no", "virtualised (vgpu): its counters cover others as well"),
        ({"virtualization_mode": 3}, "no", "virtualised (mode 3): its counters cover others as well"),
        ({"mig_mode": 1}, "no", "cut into instances (MIG): its counters cover others as well"),
    ],
)
def test_whole_gpu(board: FakeNvml, settings: dict[str, int], verdict: str, detail: str) -> None:
    for name, value in settings.items():
        setattr(board.device(0), name, value)
    assert line(board, "whole GPU") == (verdict, detail)


@pytest.mark.parametrize(
    ("others", "verdict", "detail"),
    [
        (0, "yes", "no other process on this GPU"),
        (1, "limited", "1 other process on this GPU: readings will be doubted"),
        (3, "limited", "3 other processes on this GPU: readings will be doubted"),
    ],
)
def test_sharing(board: FakeNvml, others: int, verdict: str, detail: str) -> None:
    own = (os.getpid(), 2**30)
    board.device(0).compute_processes = [own, *((pid, None) for pid in range(1, others + 1))]
    assert line(board, "sharing") == (verdict, detail)


def test_sharing_where_the_driver_lists_nobody(board: FakeNvml) -> None:
    board.device(0).hide_processes = 1
    board.device(0).compute_processes = []
    expected = ("limited", "the driver does not list this process: others are inferred only")
    assert line(board, "sharing") == expected


@pytest.mark.parametrize(
    ("event_reasons", "verdict", "reasons"),
    [
        (0x0, "yes", "none"),
        (0x1, "yes", "gpu_idle"),
        (0x4, "yes", "sw_power_cap"),
        (0x8, "limited", "hw_slowdown"),
        (0x20, "limited", "sw_thermal_slowdown"),
        (0x44, "limited", "sw_power_cap, hw_thermal_slowdown"),
        (0x80, "limited", "hw_power_brake"),
    ],
)
def test_clocks(board: FakeNvml, event_reasons: int, verdict: str, reasons: str) -> None:
    board.device(0).event_reasons = event_reasons
    board.device(0).sm_clock_mhz = 1500
    assert line(board, "clocks") == (verdict, f"SM 1500 MHz of 1980 MHz, 40 C, held back by: {reasons}")


def test_clocks_that_nobody_knows(board: FakeNvml) -> None:
    for name in ("ClockInfo", "MaxClockInfo", "Temperature"):
        board.fail(f"nvmlDeviceGet{name}", pynvml.NVML_ERROR_NOT_SUPPORTED)
    for name in ("Event", "Throttle"):
        board.fail(f"nvmlDeviceGetCurrentClocks{name}Reasons", pynvml.NVML_ERROR_NOT_SUPPORTED)
    verdict, detail = line(board, "clocks")
    assert verdict == "limited"
    assert detail == "SM unknown of unknown, unknown; the driver does not tell what holds them back"


@pytest.mark.parametrize(
    ("limit", "default", "verdict", "detail"),
    [
        (700, 700, "yes", "700 W"),
        (650, 600, "yes", "650 W"),
        (700, None, "yes", "700 W"),
        (699, 700, "limited", "699 W, below its default 700 W"),
        (None, 700, "limited", "unknown"),
        (None, None, "limited", "unknown"),
    ],
)
def test_power_limit(board: FakeNvml, limit: int | None, default: int | None, verdict: str, detail: str) -> None:
    board.device(0).power_limit_enforced_mw = -1 if limit is None else limit * WATTS
    board.device(0).power_limit_default_mw = -1 if default is None else default * WATTS
    assert line(board, "power limit") == (verdict, detail)


@pytest.mark.parametrize(
    ("persistence", "ecc", "words"), [(1, 0, ("on", "off")), (0, 1, ("off", "on")), (-1, -1, ("unknown", "unknown"))]
)
def test_settings(board: FakeNvml, persistence: int, ecc: int, words: tuple[str, str]) -> None:
    board.device(0).persistence_mode, board.device(0).ecc_mode = persistence, ecc
    told = f"persistence {words[0]}, ECC {words[1]}, VBIOS FA.4E.00.00.00; infsa-bench changes none of them"
    assert line(board, "settings") == ("yes", told)
    board.fail("nvmlDeviceGetVbiosVersion", pynvml.NVML_ERROR_NOT_SUPPORTED)
    assert "VBIOS unknown" in line(board, "settings")[1]


def test_the_processor_beside_a_gpu(board: FakeNvml, tmp_path: Path) -> None:
    found = lines(board, make_zones(tmp_path, ["package-0", "dram"]))["processor"]
    assert (found.verdict, found.detail) == ("yes", "RAPL: package+dram (not part of a GPU's energy)")
    found = lines(board, tmp_path / "nothing")["processor"]
    assert found.verdict == "no"
    assert found.detail.startswith("rapl_absent: ")
    assert found.detail.endswith("(not needed for a GPU's energy)")


def test_a_processor_without_energy(cores: Cores, board: FakeNvml) -> None:
    found = on_processor(cores)
    assert list(found) == ["device", "time", "memory", "energy", "sharing", "NVIDIA GPU"]
    assert found["device"] == ("yes", "cpu: Xeon 8481C, 16.0 GiB")
    assert found["time"] == ("yes", "host clock; 4 threads on 8 cores")
    assert found["energy"] == ("no", "rapl_absent: no package")


def test_a_processor_with_energy(cores: Cores, board: FakeNvml, tmp_path: Path) -> None:
    found = on_processor(cores, without_meter(source="rapl"), make_zones(tmp_path, ["package-0"]))
    assert found["energy"] == ("yes", "rapl: package")


@pytest.mark.parametrize(
    ("busy", "verdict", "detail"),
    [
        (0.0, "yes", "other processes use 0% of all cores"),
        (0.045, "yes", "other processes use 4% of all cores"),
        (0.06, "limited", "other processes use 6% of all cores: readings taken now would be doubted"),
        (0.9, "limited", "other processes use 90% of all cores: readings taken now would be doubted"),
    ],
)
def test_sharing_of_a_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: float, verdict: str, detail: str
) -> None:
    # What the tests themselves use meanwhile is not in the made-up load.
    monkeypatch.setattr(processors, "own_seconds", lambda: 0.0)
    assert on_processor(Cores(tmp_path / "stat", busy))["sharing"] == (verdict, detail)


def test_sharing_of_a_processor_that_nobody_tells(cores: Cores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "WATCH_SECONDS", 0.01)
    assert on_processor(cores)["sharing"] == ("limited", "the system does not tell what other processes use")


def test_a_gpu_that_torch_cannot_use(cores: Cores, board: FakeNvml) -> None:
    board.reset(devices=2)
    verdict, detail = on_processor(cores)["NVIDIA GPU"]
    assert verdict == "limited"
    assert "libnvidia-ml.so.1) knows FAKE GPU 0, FAKE GPU 1, but this device is a processor" in detail


def test_a_driver_without_a_gpu(cores: Cores, board: FakeNvml) -> None:
    board.reset(devices=0)
    assert on_processor(cores)["NVIDIA GPU"] == ("no", "NVML knows none")


def test_no_driver(cores: Cores, board: FakeNvml) -> None:
    board.fail("nvmlInit", pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    verdict, detail = on_processor(cores)["NVIDIA GPU"]
    assert verdict == "no"
    assert detail.startswith("nvml_unavailable: ")


def test_memory_of_a_processor(cores: Cores, monkeypatch: pytest.MonkeyPatch) -> None:
    told = "peak resident memory above the worker's own, reset for each case"
    monkeypatch.setattr(diagnosis, "available_host_bytes", lambda: 3 * 2**30)
    assert on_processor(cores)["memory"] == ("yes", f"{told}; 3.0 GiB free")
    monkeypatch.setattr(diagnosis, "available_host_bytes", lambda: None)
    assert on_processor(cores)["memory"] == ("yes", told)


def test_memory_of_a_processor_whose_peak_cannot_be_reset(cores: Cores, monkeypatch: pytest.MonkeyPatch) -> None:
    instruments = without_meter(no_energy=RAPL_ABSENT)
    unknown = Peak(allocated_bytes=None, reserved_bytes=None, source="process_rss")
    monkeypatch.setattr(instruments.peak_memory, "read", lambda: unknown)
    verdict, detail = on_processor(cores, instruments)["memory"]
    assert verdict == "no"
    assert "a peak could be that of an earlier case" in detail


@pytest.mark.parametrize("selfcheck", [False, True])
def test_checks_follow_where_they_are_asked_for(cores: Cores, selfcheck: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which checks, and what they find, is the matter of their own tests."""
    check = Finding(name="check: clock", verdict="pass", detail="")
    monkeypatch.setattr(diagnosis, "check_instruments", lambda instruments: iter([check]))
    instruments = without_meter(no_energy=RAPL_ABSENT)
    findings = diagnose(PROCESSOR, instruments, selfcheck=selfcheck, clock=cores, stat=cores.stat)
    assert [finding for finding in findings if finding.name.startswith("check")] == ([check] if selfcheck else [])
    assert findings[-1] is check or not selfcheck


def test_this_machine() -> None:
    """On the real clock, and the real /sys, whatever they are."""
    instruments = open_instruments(CPU)
    instruments.close()
    findings = diagnose(PROCESSOR, instruments, selfcheck=False)
    assert [finding.name for finding in findings] == ["device", "time", "memory", "energy", "sharing", "NVIDIA GPU"]
    assert findings[3].verdict == ("no" if instruments.energy_source is None else "yes")


def test_the_period_in_real_time(fake_nvml: FakeNvml) -> None:
    """The default clock is one that the counter moves on."""
    fake_nvml.reset(virtual=False)
    fake_nvml.device(0).period_ns = fake_nvml.device(0).window_ns = 20_000_000
    instruments = on_board(fake_nvml)
    (found,) = (finding for finding in diagnose(CUDA, instruments, selfcheck=False) if finding.name == "counter period")
    # A busy machine sees updates late or not at all, never too many.
    assert found.verdict == "yes"
    assert float(found.detail.split()[0]) > 10
