"""What a worker opens to measure with, on the fake NVML where a GPU is asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_nvml import CounterMode, FakeNvml, PowerMode

from infsa_bench.execute.instruments import LEFTOVER_BYTES, Instruments, open_instruments
from infsa_bench.measure.energy.load import HostLoad
from infsa_bench.measure.memory import PeakMemory

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")


@pytest.fixture
def board(fake_nvml: FakeNvml, fake_nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """A fake board that torch believes to have as well, for this process and the observer that it starts."""
    for name, value in fake_nvml.environment(fake_nvml_library).items():
        monkeypatch.setenv(name, value)
    uuid = fake_nvml.device(0).uuid.removeprefix("GPU-")
    found = SimpleNamespace(uuid=uuid, pci_domain_id=0, pci_bus_id=1, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return fake_nvml


def opened(device: torch.device = GPU) -> Instruments:
    instruments = open_instruments(device)
    instruments.close()
    return instruments


def test_a_gpu_with_a_counter(board: FakeNvml) -> None:
    instruments = opened()
    assert (instruments.energy_source, instruments.no_energy) == ("nvml_counter", None)
    assert instruments.gpu is not None
    assert instruments.meter is not None


def test_a_gpu_with_power_only(board: FakeNvml) -> None:
    board.device(0).counter_mode = CounterMode.NOT_SUPPORTED
    assert opened().energy_source == "nvml_power"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"counter_mode": CounterMode.NOT_SUPPORTED, "power_mode": PowerMode.NOT_SUPPORTED}, "counter_unsupported"),
        ({"mig_mode": 1}, "mig"),
        ({"virtualization_mode": 2}, "vgpu"),
        ({"uuid": "GPU-elsewhere", "pci_bus_id": "00000000:77:00.0"}, "identity"),
    ],
)
def test_what_cannot_be_measured_says_why(board: FakeNvml, settings: dict[str, object], reason: str) -> None:
    for name, value in settings.items():
        setattr(board.device(0), name, value)
    instruments = opened()
    assert (instruments.energy_source, instruments.meter) == (None, None)
    assert instruments.no_energy is not None
    assert instruments.no_energy.reason == reason


def test_passthrough_is_a_whole_gpu(board: FakeNvml) -> None:
    board.device(0).virtualization_mode = 1
    assert opened().energy_source == "nvml_counter"


def test_a_processor_has_rapl_or_a_reason() -> None:
    """On this very machine, whatever it is."""
    instruments = opened(CPU)
    assert instruments.gpu is None
    if instruments.meter is None:
        assert instruments.no_energy is not None
        assert instruments.no_energy.reason in ("rapl_absent", "rapl_permission")
    else:
        assert instruments.energy_source == "rapl"
    assert isinstance(instruments.load(lambda: None, 0.001), HostLoad)


def test_a_process_that_holds_more_than_at_first_is_not_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    instruments = opened(CPU)
    for left_bytes, is_clean in ((None, True), (0, True), (LEFTOVER_BYTES, True), (LEFTOVER_BYTES + 1, False)):
        monkeypatch.setattr(PeakMemory, "held_bytes", lambda self, held=left_bytes: held)
        assert instruments.is_clean() == is_clean


def test_what_is_held_on_a_processor_is_above_what_was_at_first() -> None:
    memory = PeakMemory(CPU)
    before = memory.held_bytes()
    assert before is not None
    held = torch.ones(200 * 2**20, dtype=torch.uint8)
    after = memory.held_bytes()
    assert after is not None
    assert after - before == pytest.approx(held.nbytes, rel=0.1)


@pytest.mark.parametrize(("left_bytes", "is_whole"), [(2**20, True), (2**50, False)])
def test_a_limit_bounds_what_is_available_and_must_be_whole_again(
    monkeypatch: pytest.MonkeyPatch, left_bytes: int, is_whole: bool
) -> None:
    limit = SimpleNamespace(left_bytes=lambda: left_bytes, is_whole=lambda: is_whole)
    instruments = dataclasses.replace(opened(CPU), memory_limit=limit)
    monkeypatch.setattr(PeakMemory, "held_bytes", lambda self: 0)
    free = opened(CPU).available_bytes()
    assert free is not None
    assert instruments.available_bytes() == (left_bytes if left_bytes < free else pytest.approx(free, rel=0.1))
    assert instruments.is_clean() == is_whole
