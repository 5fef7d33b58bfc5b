"""One GPU as NVML sees it, asked through the real pynvml and the fake library."""

from __future__ import annotations

import ast
import ctypes
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import fake_nvml as fake
import pynvml
import pytest
from fake_nvml import CounterMode, FakeNvml, PowerMode

import infsa_bench
from infsa_bench.errors import MeterUnavailableError
from infsa_bench.measure.nvml import EVENT_REASONS, SCOPES, THROTTLE_REASONS, Gpu, loaded_library, visible_gpus

PACKAGE = Path(infsa_bench.__file__).parent
OWN = os.getpid()
NOT_SUPPORTED, FUNCTION_NOT_FOUND, GPU_IS_LOST = 3, 13, 15


def first_gpu(board: FakeNvml) -> Gpu:
    return Gpu.find(board.device(0).uuid, board.device(0).pci_bus_id)


def refused(uuid: str | None, pci_bus_id: str | None) -> MeterUnavailableError:
    with pytest.raises(MeterUnavailableError) as caught:
        Gpu.find(uuid, pci_bus_id)
    return caught.value


# Identity.


def test_a_gpu_is_found_by_what_it_is_not_by_its_number(fake_nvml: FakeNvml) -> None:
    """CUDA's first GPU is NVML's second: number 0 would be the wrong board."""
    fake_nvml.reset(devices=2)
    cuda_first = fake_nvml.device(1)
    fake_nvml.device(1).idle_watts = 90.0
    for uuid, address in (
        (cuda_first.uuid, cuda_first.pci_bus_id),
        (cuda_first.uuid, None),
        (None, cuda_first.pci_bus_id),
        (None, cuda_first.pci_bus_id.lower()),
        (cuda_first.uuid, "00000000:77:00.0"),
    ):
        gpu = Gpu.find(uuid, address)
        assert (gpu.facts.nvml_index, gpu.facts.uuid) == (1, cuda_first.uuid)
        assert gpu.power_watts() == 90.0


def test_an_unknown_uuid_leaves_the_address(fake_nvml: FakeNvml) -> None:
    """A part of a GPU has a UUID of its own, and the address of the whole."""
    fake_nvml.device(0).mig_mode = 1
    gpu = Gpu.find("GPU-00000000-1111-2222-3333-444444444444", fake_nvml.device(0).pci_bus_id)
    assert gpu.facts.nvml_index == 0
    assert gpu.facts.mig_enabled


def test_contradictory_identities_are_refused(fake_nvml: FakeNvml) -> None:
    fake_nvml.reset(devices=2)
    error = refused(fake_nvml.device(0).uuid, fake_nvml.device(1).pci_bus_id)
    assert error.reason == "identity"
    assert fake_nvml.device(0).uuid in error.detail
    assert fake_nvml.device(1).uuid in error.detail


@pytest.mark.parametrize(
    ("uuid", "address"), [("GPU-nobody", None), (None, "0000:77:00.0"), ("GPU-nobody", "0000:77:00.0"), (None, None)]
)
def test_a_gpu_that_nobody_knows_is_refused(fake_nvml: FakeNvml, uuid: str | None, address: str | None) -> None:
    assert refused(uuid, address).reason == "identity"


def test_a_gpu_that_is_lost_is_a_reason_not_a_crash(fake_nvml: FakeNvml) -> None:
    fake_nvml.fail("nvmlDeviceGetName", GPU_IS_LOST)
    assert refused(fake_nvml.device(0).uuid, None).reason == "nvml_unavailable"
    with pytest.raises(MeterUnavailableError, match="GPU is lost"):
        visible_gpus()


def test_all_gpus_are_listed_in_order(fake_nvml: FakeNvml) -> None:
    fake_nvml.reset(devices=2)
    assert [(gpu.nvml_index, gpu.uuid) for gpu in visible_gpus()] == [
        (index, fake_nvml.device(index).uuid) for index in range(2)
    ]
    fake_nvml.reset(devices=0)
    assert visible_gpus() == []


def test_without_a_driver_there_is_a_reason(fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    uuid = fake_nvml.device(0).uuid
    monkeypatch.delenv("FAKENVML_STATE")
    error = refused(uuid, None)
    assert error.reason == "nvml_unavailable"
    assert "Driver Not Loaded" in error.detail


def test_on_this_machine_nvml_answers_or_says_why_not() -> None:
    program = (
        "from infsa_bench.errors import MeterUnavailableError\n"
        "from infsa_bench.measure.nvml import loaded_library, visible_gpus\n"
        "try:\n    gpus = visible_gpus()\n"
        "except MeterUnavailableError as error:\n    print(error.reason)\n"
        "else:\n    print(all(gpu.nvml_library == loaded_library() for gpu in gpus))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout in ("nvml_unavailable\n", "True\n")


def test_opening_again_and_again_does_no_harm(fake_nvml: FakeNvml) -> None:
    """NVML counts openings. Who opened it before us, torch for one, may close it: ours stays good."""
    gpu = first_gpu(fake_nvml)
    for _ in range(3):
        assert first_gpu(fake_nvml).facts == gpu.facts
    pynvml.nvmlShutdown()
    assert gpu.energy_joules() == 0


# What is told, and what is not.


def test_facts_are_what_the_board_says(fake_nvml: FakeNvml, fake_nvml_library: Path) -> None:
    board = fake_nvml.device(0)
    board.compute_mode, board.power_limit_enforced_mw, board.power_limit_default_mw = 2, 500_000, 650_000
    board.persistence_mode, board.max_sm_clock_mhz, board.ecc_mode = 0, 2000, 0
    facts = first_gpu(fake_nvml).facts
    assert asdict(facts) == {
        "name": board.name,
        "nvml_index": 0,
        "uuid": board.uuid,
        "pci_bus_id": board.pci_bus_id,
        "vbios_version": board.vbios,
        "driver_version": "999.fake",
        "nvml_version": "13.fake",
        "nvml_library": str(fake_nvml_library),
        "max_sm_clock_mhz": 2000,
        "max_memory_clock_mhz": 2619,
        "power_limit_watts": 500.0,
        "default_power_limit_watts": 650.0,
        "min_power_limit_watts": 200.0,
        "max_power_limit_watts": 700.0,
        "persistence_mode": False,
        "compute_mode": 2,
        "ecc_enabled": False,
        "mig_enabled": False,
        "virtualization": "none",
    }
    assert facts.is_fake
    assert not replace(facts, name="NVIDIA H200", driver_version="570.86.10").is_fake
    assert replace(facts, name="NVIDIA H200").is_fake


def test_state_is_what_the_board_says(fake_nvml: FakeNvml) -> None:
    board = fake_nvml.device(0)
    board.sm_clock_mhz, board.memory_clock_mhz, board.temperature, board.pstate = 1200, 2500, 71, 2
    board.utilization_gpu, board.memory_used_bytes, board.event_reasons = 97, 3 * 2**30, 0x4 | 0x40
    board.violation_power_ns, board.violation_thermal_ns = 1_500_000_000, 250_000_000
    board.compute_processes = [(OWN, 2**30), (OWN + 1, None)]
    assert asdict(first_gpu(fake_nvml).state()) == {
        "sm_clock_mhz": 1200,
        "memory_clock_mhz": 2500,
        "temperature_celsius": 71,
        "performance_state": 2,
        "power_watts": 60.0,
        "power_limit_watts": 700.0,
        "event_reasons": ("sw_power_cap", "hw_thermal_slowdown"),
        "power_violation_seconds": 1.5,
        "thermal_violation_seconds": 0.25,
        "utilization_percent": 97,
        "memory_used_bytes": 3 * 2**30,
        "own_process_visible": True,
        "foreign_processes": 1,
    }


PROCESS_LISTS = [f"nvmlDeviceGet{kind}RunningProcesses" for kind in ("Compute", "Graphics", "MPSCompute")]
STATE_WITHOUT = {
    ("nvmlDeviceGetClockInfo",): {"sm_clock_mhz": None, "memory_clock_mhz": None},
    ("nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV"): {"temperature_celsius": None},
    ("nvmlDeviceGetPerformanceState",): {"performance_state": None},
    ("nvmlDeviceGetFieldValues", "nvmlDeviceGetPowerUsage"): {"power_watts": None},
    ("nvmlDeviceGetEnforcedPowerLimit",): {"power_limit_watts": None},
    ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"): {"event_reasons": None},
    ("nvmlDeviceGetViolationStatus",): {"power_violation_seconds": None, "thermal_violation_seconds": None},
    ("nvmlDeviceGetUtilizationRates",): {"utilization_percent": None},
    ("nvmlDeviceGetMemoryInfo",): {"memory_used_bytes": None},
    tuple(PROCESS_LISTS): {"own_process_visible": False, "foreign_processes": None},
}
FACTS_WITHOUT = {
    ("nvmlDeviceGetVbiosVersion",): {"vbios_version": None},
    ("nvmlDeviceGetMaxClockInfo",): {"max_sm_clock_mhz": None, "max_memory_clock_mhz": None},
    ("nvmlDeviceGetEnforcedPowerLimit",): {"power_limit_watts": None},
    ("nvmlDeviceGetPowerManagementDefaultLimit",): {"default_power_limit_watts": None},
    ("nvmlDeviceGetPowerManagementLimitConstraints",): {"min_power_limit_watts": None, "max_power_limit_watts": None},
    ("nvmlDeviceGetPersistenceMode",): {"persistence_mode": None},
    ("nvmlDeviceGetComputeMode",): {"compute_mode": None},
    ("nvmlDeviceGetEccMode",): {"ecc_enabled": None},
    ("nvmlDeviceGetMigMode",): {},
    ("nvmlDeviceGetVirtualizationMode",): {"virtualization": None},
}


@pytest.mark.parametrize("code", [NOT_SUPPORTED, FUNCTION_NOT_FOUND, GPU_IS_LOST])
@pytest.mark.parametrize("functions", STATE_WITHOUT, ids=lambda functions: functions[0].removeprefix("nvmlDeviceGet"))
def test_a_state_that_is_not_told_is_none_and_the_others_stay(
    fake_nvml: FakeNvml, functions: tuple[str, ...], code: int
) -> None:
    fake_nvml.device(0).compute_processes = [(OWN, 2**30)]
    whole = first_gpu(fake_nvml).state()
    for function in functions:
        fake_nvml.fail(function, code)
    assert first_gpu(fake_nvml).state() == replace(whole, **STATE_WITHOUT[functions])  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [NOT_SUPPORTED, FUNCTION_NOT_FOUND])
@pytest.mark.parametrize("functions", FACTS_WITHOUT, ids=lambda functions: functions[0].removeprefix("nvmlDeviceGet"))
def test_a_fact_that_is_not_told_is_none_and_the_others_stay(
    fake_nvml: FakeNvml, functions: tuple[str, ...], code: int
) -> None:
    whole = first_gpu(fake_nvml).facts
    for function in functions:
        fake_nvml.fail(function, code)
    assert first_gpu(fake_nvml).facts == replace(whole, **FACTS_WITHOUT[functions])  # type: ignore[arg-type]


def test_every_optional_field_of_the_schema_has_its_case(fake_nvml: FakeNvml) -> None:
    gpu = first_gpu(fake_nvml)
    for told, cases in ((gpu.state(), STATE_WITHOUT), (gpu.facts, FACTS_WITHOUT)):
        covered = {field for without in cases.values() for field in without}
        required = {"name", "nvml_index", "uuid", "pci_bus_id", "driver_version", "nvml_version"}
        assert set(asdict(told)) - covered - required <= {"nvml_library", "mig_enabled"}


@pytest.mark.parametrize(("mode", "told"), [(0, "none"), (1, "passthrough"), (2, "vgpu"), (3, "mode 3")])
def test_virtualization(fake_nvml: FakeNvml, mode: int, told: str) -> None:
    fake_nvml.device(0).virtualization_mode = mode
    assert first_gpu(fake_nvml).facts.virtualization == told


def test_mig(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).mig_mode = 1
    assert first_gpu(fake_nvml).facts.mig_enabled
    fake_nvml.device(0).mig_mode = -1
    assert first_gpu(fake_nvml).facts.mig_enabled is False
    fake_nvml.device(0).name = "FAKE H200 MIG 1g.18gb"
    assert first_gpu(fake_nvml).facts.mig_enabled


# Energy and power.


def test_the_counter_in_joules(fake_nvml: FakeNvml) -> None:
    gpu = first_gpu(fake_nvml)
    begin = gpu.energy_joules()
    fake_nvml.advance_ns(10_000_000_000)
    assert gpu.energy_joules() - begin == pytest.approx(600.0)


def test_a_counter_that_is_not_there(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).counter_mode = CounterMode.NOT_SUPPORTED
    with pytest.raises(MeterUnavailableError, match="Not Supported") as caught:
        first_gpu(fake_nvml).energy_joules()
    assert caught.value.reason == "counter_unsupported"


def test_instant_power_is_preferred_to_the_average(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).average_ns = 1_000_000_000
    gpu = first_gpu(fake_nvml)
    fake_nvml.advance_ns(2_000_000_000)
    fake_nvml.set_power(400.0)
    fake_nvml.advance_ns(200_000_000)
    assert gpu.power_scope == "gpu"
    assert gpu.power_watts() == 400.0
    fake_nvml.device(0).power_mode = PowerMode.USAGE_ONLY
    old = first_gpu(fake_nvml)
    assert old.power_scope is None
    averaged = old.power_watts()
    assert averaged is not None
    assert 60.0 < averaged < 200.0


@pytest.mark.parametrize("module_only", [False, True])
def test_the_scope_is_the_gpu_where_there_is_such_a_reading(fake_nvml: FakeNvml, module_only: bool) -> None:
    fake_nvml.device(0).module_scope_only = module_only
    gpu = first_gpu(fake_nvml)
    assert gpu.power_scope == ("module" if module_only else "gpu")
    assert gpu.power_watts() == 60.0
    assert set(SCOPES.values()) == {"gpu", "module"}


def test_no_power_at_all(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).power_mode = PowerMode.NOT_SUPPORTED
    gpu = first_gpu(fake_nvml)
    assert gpu.power_scope is None
    assert gpu.power_watts() is None


# What holds the clocks back.


@pytest.mark.parametrize("bit", EVENT_REASONS)
@pytest.mark.parametrize("is_old_driver", [False, True])
def test_each_reason_has_its_name(fake_nvml: FakeNvml, bit: int, is_old_driver: bool) -> None:
    if is_old_driver:
        fake_nvml.fail("nvmlDeviceGetCurrentClocksEventReasons", FUNCTION_NOT_FOUND)
    gpu = first_gpu(fake_nvml)
    assert gpu.event_reasons() == ()
    fake_nvml.device(0).event_reasons = bit
    assert gpu.event_reasons() == (EVENT_REASONS[bit],)
    fake_nvml.device(0).event_reasons = bit | 1 << 40
    assert gpu.event_reasons() == (EVENT_REASONS[bit],)


def test_reasons_are_those_of_nvml() -> None:
    """By pynvml's own constants; a power cap at full load is no fault."""
    assert {
        pynvml.nvmlClocksEventReasonGpuIdle: "gpu_idle",
        pynvml.nvmlClocksEventReasonApplicationsClocksSetting: "application_clocks",
        pynvml.nvmlClocksEventReasonSwPowerCap: "sw_power_cap",
        pynvml.nvmlClocksThrottleReasonHwSlowdown: "hw_slowdown",
        pynvml.nvmlClocksEventReasonSyncBoost: "sync_boost",
        pynvml.nvmlClocksEventReasonSwThermalSlowdown: "sw_thermal_slowdown",
        pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "hw_thermal_slowdown",
        pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "hw_power_brake",
        pynvml.nvmlClocksEventReasonDisplayClockSetting: "display_clocks",
    } == EVENT_REASONS
    assert set(EVENT_REASONS.values()) > THROTTLE_REASONS
    assert "sw_power_cap" not in THROTTLE_REASONS


# Who else is there.


@pytest.mark.parametrize("kind", ["compute_processes", "graphics_processes", "mps_processes"])
@pytest.mark.parametrize(
    ("pids", "foreign"),
    [
        ([], None),  # hidden, as in many containers
        ([OWN], 0),
        ([OWN, OWN + 1], 1),
        ([OWN + 1, OWN + 2, OWN], 2),
        ([OWN + 1], None),  # we ourselves, under the host's number?
        ([OWN + 1, OWN + 2], 1),  # one of them at least is not us
    ],
)
def test_others_are_counted_where_they_can_be(
    fake_nvml: FakeNvml, kind: str, pids: list[int], foreign: int | None
) -> None:
    setattr(fake_nvml.device(0), kind, [(pid, 2**20) for pid in pids])
    gpu = first_gpu(fake_nvml)
    assert gpu.foreign_processes(OWN) == foreign
    state = gpu.state()
    assert state.foreign_processes == foreign
    assert state.own_process_visible == (OWN in pids)


def test_a_process_on_several_lists_is_one(fake_nvml: FakeNvml) -> None:
    board = fake_nvml.device(0)
    board.compute_processes = [(OWN, 2**30), (7, 2**20)]
    board.graphics_processes = [(7, 2**20), (8, None)]
    board.mps_processes = [(7, 2**20)]
    gpu = first_gpu(fake_nvml)
    assert gpu.processes() == {OWN: 2**30, 7: 2**20, 8: None}
    assert gpu.foreign_processes(OWN) == 2
    assert gpu.process_bytes() == 2**30
    board.hide_processes = 1
    assert gpu.processes() == {}
    assert gpu.process_bytes() is None


def test_one_list_that_is_refused_leaves_the_others(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).compute_processes = [(OWN, 2**30)]
    fake_nvml.device(0).mps_processes = [(7, None)]
    fake_nvml.fail("nvmlDeviceGetMPSComputeRunningProcesses", FUNCTION_NOT_FOUND)
    assert first_gpu(fake_nvml).processes() == {OWN: 2**30}


# Which library, and what is asked of it.


def test_the_library_that_answers_is_named_even_beside_another_one(
    fake_nvml: FakeNvml, fake_nvml_library: Path, tmp_path: Path
) -> None:
    other = tmp_path / "with a space" / fake.LIBRARY_NAME
    other.parent.mkdir()
    shutil.copy(fake_nvml_library, other)
    loaded = ctypes.CDLL(str(other))
    assert loaded_library() == str(fake_nvml_library)
    saved, pynvml.nvmlLib = pynvml.nvmlLib, loaded
    try:
        assert loaded_library() == str(other)
    finally:
        pynvml.nvmlLib = saved


def test_before_nvml_is_opened_there_is_no_library() -> None:
    program = "from infsa_bench.measure.nvml import loaded_library; print(loaded_library())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


def test_nothing_is_ever_set() -> None:
    forbidden = re.compile(r"nvml(Device|Unit|System|GpuInstance|Vgpu\w*)(Set|Reset|Clear|Create|Modify|Remove)")
    sources = sorted(PACKAGE.rglob("*.py"))
    assert len(sources) > 30
    for source in sources:
        text = source.read_text()
        assert not forbidden.search(text), source
        assert "nvidia-smi" not in text, source


def test_only_queries_are_used() -> None:
    """Every function of pynvml that the package names."""
    used = {
        node.attr
        for source in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pynvml"
    }
    assert {name for name in used if not hasattr(pynvml, name)} == set()
    functions = {name for name in used if name.startswith("nvml") and callable(getattr(pynvml, name))}
    assert "nvmlDeviceGetTotalEnergyConsumption" in functions
    assert {name for name in functions if not re.match(r"nvml(Device|System)Get[A-Z]", name)} == {"nvmlInit"}
