"""One GPU as NVML sees it: found by identity, asked for energy, power, clocks, temperature. Nothing is ever set.

NVML's order of GPUs is not CUDA's, and ``CUDA_VISIBLE_DEVICES`` changes the latter: a GPU is found by its UUID, or by
its PCI address. What a GPU or a driver does not support is None, never a number in its place. Imports no torch.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

try:
    import pynvml
except ImportError:
    # Like the library: without it a GPU works, and less is known of it.
    pynvml = None

from infsa_bench.errors import MeterUnavailableError
from infsa_bench.machine import GpuFacts, GpuState
from infsa_bench.record import EnergyScope

EVENT_REASONS = {
    0x1: "gpu_idle",
    0x2: "application_clocks",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake",
    0x100: "display_clocks",
}
"""NVML's reasons why clocks are below their maximum, by bit."""

THROTTLE_REASONS = frozenset({"hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake"})
"""The reasons that say that a number was not taken under normal conditions; a power cap at full load is normal."""

SCOPES: dict[int, EnergyScope] = {0: "gpu", 1: "module"}
"""NVML's scopes of a power reading. A module is more than its GPU (Grace-Hopper: the CPU too)."""


class Gpu:
    """One GPU; NVML stays open as long as the process lives."""

    def __init__(self, handle: Any) -> None:
        """Ask who it is.

        Raises:
            MeterUnavailableError: it does not even tell its name, e.g. because it fell off the bus.
        """
        self._handle = handle
        try:
            self.facts = self._describe()
        except pynvml.NVMLError as error:
            raise MeterUnavailableError("nvml_unavailable", f"this GPU does not answer NVML: {error}") from None
        self._power_scope = self._find_power_scope()

    @classmethod
    def find(cls, uuid: str | None, pci_bus_id: str | None) -> Self:
        """Return the GPU with this UUID (``GPU-...``), or at this PCI address (``00000000:01:00.0``).

        A UUID that NVML does not know is not held against the address: on a GPU that is cut up (MIG), CUDA tells the
        UUID of its part, and the address leads to the whole.

        Raises:
            MeterUnavailableError: NVML is not there, knows no such GPU, or knows two different ones (``identity``).
        """
        open_nvml()
        by_uuid = None if uuid is None else _ask(pynvml.nvmlDeviceGetHandleByUUID, uuid)
        by_pci = None if pci_bus_id is None else _ask(pynvml.nvmlDeviceGetHandleByPciBusId, pci_bus_id)
        found = [_ask(pynvml.nvmlDeviceGetUUID, handle) for handle in (by_uuid, by_pci) if handle is not None]
        if not found:
            raise MeterUnavailableError("identity", f"NVML knows no GPU {uuid or pci_bus_id}")
        if len(set(found)) > 1:
            detail = f"NVML finds {found[0]} by UUID but {found[1]} by PCI address {pci_bus_id}"
            raise MeterUnavailableError("identity", detail)
        return cls(by_pci if by_uuid is None else by_uuid)

    @property
    def power_scope(self) -> EnergyScope | None:
        """What a power reading covers; None where there is none."""
        return None if self._power_scope is None else SCOPES[self._power_scope]

    def energy_joules(self) -> float:
        """Return the energy counter: joules since the driver was loaded.

        Raises:
            MeterUnavailableError: there is no counter (``counter_unsupported``).
        """
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except pynvml.NVMLError as error:
            raise MeterUnavailableError("counter_unsupported", f"NVML has no energy counter here: {error}") from None

    def power_watts(self) -> float | None:
        """Return the board's power: the instant one where there is such a field, else NVML's average."""
        if self._power_scope is not None:
            return self._power_field(pynvml.NVML_FI_DEV_POWER_INSTANT, self._power_scope)
        return _scaled(_ask(pynvml.nvmlDeviceGetPowerUsage, self._handle), 1e-3)

    def sm_clock_mhz(self) -> int | None:
        """Return the clock of the multiprocessors just now."""
        return _whole(_ask(pynvml.nvmlDeviceGetClockInfo, self._handle, pynvml.NVML_CLOCK_SM))

    def temperature_celsius(self) -> int | None:
        """Return the temperature of the GPU's die."""
        return _whole(_ask(pynvml.nvmlDeviceGetTemperature, self._handle, pynvml.NVML_TEMPERATURE_GPU))

    def event_reasons(self) -> tuple[str, ...] | None:
        """Return what holds the clocks back just now, as names of :data:`EVENT_REASONS`."""
        mask = _ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons, self._handle)
        if mask is None:
            # The name that drivers before R535 know.
            mask = _ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, self._handle)
        return None if mask is None else tuple(name for bit, name in EVENT_REASONS.items() if mask & bit)

    def processes(self) -> dict[int, int | None]:
        """Return the bytes of every process that the driver lists on this GPU, by process id."""
        lists = (
            pynvml.nvmlDeviceGetComputeRunningProcesses,
            pynvml.nvmlDeviceGetGraphicsRunningProcesses,
            pynvml.nvmlDeviceGetMPSComputeRunningProcesses,
        )
        return {process.pid: process.usedGpuMemory for ask in lists for process in _ask(ask, self._handle) or ()}

    def foreign_processes(self, own_pid: int) -> int | None:
        """Return how many processes other than ``own_pid`` the driver lists here; None where that cannot be told.

        In a container the driver may list nobody, or ourselves under the number that the host gave us: a lone
        stranger can be us, two cannot.
        """
        return _count_foreign(self.processes(), own_pid)

    def process_bytes(self) -> int | None:
        """Return what the driver says this process holds, its context included."""
        return self.processes().get(os.getpid())

    def state(self) -> GpuState:
        """Return clocks, temperature, power, what throttles it and who shares it, at this moment."""
        own_pid = os.getpid()
        processes = self.processes()
        utilization = _ask(pynvml.nvmlDeviceGetUtilizationRates, self._handle)
        # The second version leaves out what the driver keeps for itself, which can be half a gigabyte.
        memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, self._handle, pynvml.nvmlMemory_v2)
        if memory is None:
            memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, self._handle)
        limit = _ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, self._handle)
        return GpuState(
            sm_clock_mhz=self.sm_clock_mhz(),
            memory_clock_mhz=_whole(_ask(pynvml.nvmlDeviceGetClockInfo, self._handle, pynvml.NVML_CLOCK_MEM)),
            temperature_celsius=self.temperature_celsius(),
            performance_state=_whole(_ask(pynvml.nvmlDeviceGetPerformanceState, self._handle)),
            power_watts=self.power_watts(),
            power_limit_watts=_scaled(limit, 1e-3),
            event_reasons=self.event_reasons(),
            power_violation_seconds=self._violation_seconds(pynvml.NVML_PERF_POLICY_POWER),
            thermal_violation_seconds=self._violation_seconds(pynvml.NVML_PERF_POLICY_THERMAL),
            utilization_percent=None if utilization is None else int(utilization.gpu),
            memory_used_bytes=None if memory is None else int(memory.used),
            own_process_visible=own_pid in processes,
            foreign_processes=_count_foreign(processes, own_pid),
        )

    def _describe(self) -> GpuFacts:
        handle = self._handle
        limits = _ask(pynvml.nvmlDeviceGetPowerManagementLimitConstraints, handle) or (None, None)
        ecc = _ask(pynvml.nvmlDeviceGetEccMode, handle)
        persistence = _ask(pynvml.nvmlDeviceGetPersistenceMode, handle)
        # Where there is no such feature there is no MIG either; None would say that nobody knows.
        mig = _ask(pynvml.nvmlDeviceGetMigMode, handle)
        modes = {
            pynvml.NVML_GPU_VIRTUALIZATION_MODE_NONE: "none",
            pynvml.NVML_GPU_VIRTUALIZATION_MODE_PASSTHROUGH: "passthrough",
            pynvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU: "vgpu",
        }
        mode = _ask(pynvml.nvmlDeviceGetVirtualizationMode, handle)
        name = str(pynvml.nvmlDeviceGetName(handle))
        clock = pynvml.nvmlDeviceGetMaxClockInfo
        return GpuFacts(
            name=name,
            nvml_index=int(pynvml.nvmlDeviceGetIndex(handle)),
            uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
            pci_bus_id=str(pynvml.nvmlDeviceGetPciInfo(handle).busId),
            vbios_version=_ask(pynvml.nvmlDeviceGetVbiosVersion, handle),
            driver_version=str(pynvml.nvmlSystemGetDriverVersion()),
            nvml_version=str(pynvml.nvmlSystemGetNVMLVersion()),
            nvml_library=loaded_library(),
            max_sm_clock_mhz=_whole(_ask(clock, handle, pynvml.NVML_CLOCK_SM)),
            max_memory_clock_mhz=_whole(_ask(clock, handle, pynvml.NVML_CLOCK_MEM)),
            power_limit_watts=_scaled(_ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle), 1e-3),
            default_power_limit_watts=_scaled(_ask(pynvml.nvmlDeviceGetPowerManagementDefaultLimit, handle), 1e-3),
            min_power_limit_watts=_scaled(limits[0], 1e-3),
            max_power_limit_watts=_scaled(limits[1], 1e-3),
            persistence_mode=None if persistence is None else bool(persistence),
            compute_mode=_whole(_ask(pynvml.nvmlDeviceGetComputeMode, handle)),
            ecc_enabled=None if ecc is None else bool(ecc[0]),
            mig_enabled=(mig is not None and bool(mig[0])) or "MIG" in name.split(),
            virtualization=None if mode is None else modes.get(mode, f"mode {mode}"),
        )

    def _find_power_scope(self) -> int | None:
        for scope in SCOPES:
            if self._power_field(pynvml.NVML_FI_DEV_POWER_INSTANT, scope) is not None:
                return scope
        return None

    def _power_field(self, field: int, scope: int) -> float | None:
        values = _ask(pynvml.nvmlDeviceGetFieldValues, self._handle, [(field, scope)])
        if values is None or values[0].nvmlReturn != pynvml.NVML_SUCCESS:
            return None
        return float(values[0].value.uiVal) / 1e3

    def _violation_seconds(self, policy: int) -> float | None:
        violation = _ask(pynvml.nvmlDeviceGetViolationStatus, self._handle, policy)
        return None if violation is None else float(violation.violationTime) / 1e9


def open_nvml() -> None:
    """Open NVML, for as long as this process lives.

    Opening it again does no harm: NVML counts, and nothing here ever takes one back. Closing would only invalidate
    the handles of others in this process; the driver cleans up when a process ends, however it ends.

    Raises:
        MeterUnavailableError: there is no NVIDIA driver, or it does not answer, or the package that asks it is missing
            (``nvml_unavailable``).
    """
    if pynvml is None:
        raise MeterUnavailableError("nvml_unavailable", "NVML cannot be asked: there is no package nvidia-ml-py")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise MeterUnavailableError("nvml_unavailable", f"NVML does not answer: {error}") from None


def visible_gpus() -> list[GpuFacts]:
    """Return every GPU that NVML knows, in NVML's order.

    Raises:
        MeterUnavailableError: as :func:`open_nvml`.
    """
    open_nvml()
    count = _ask(pynvml.nvmlDeviceGetCount) or 0
    handles = [_ask(pynvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)]
    return [Gpu(handle).facts for handle in handles if handle is not None]


def loaded_library() -> str | None:
    """Return the file that NVML was loaded from, as far as the system tells it."""
    if pynvml is None or pynvml.nvmlLib is None:
        return None
    # By address: another library of the same name may be loaded as well.
    address = ctypes.cast(pynvml.nvmlLib.nvmlShutdown, ctypes.c_void_p).value or 0
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    for fields in (line.split(maxsplit=5) for line in maps):
        first, last = (int(end, 16) for end in fields[0].split("-"))
        if first <= address < last and len(fields) == 6:
            return fields[5]
    return None


def _count_foreign(processes: dict[int, int | None], own_pid: int) -> int | None:
    others = len(processes) - 1
    return others if own_pid in processes or others > 0 else None


def _ask(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return NVML's answer, None where it has none: what is not supported here is not an error."""
    try:
        return function(*arguments)
    # The second is pynvml's word, and no NVMLError, for a driver that knows only older versions of a function.
    except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
        return None


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _scaled(value: Any, factor: float) -> float | None:
    return None if value is None else float(value) * factor
