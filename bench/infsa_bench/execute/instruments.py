"""What one worker measures its device with, opened once and used for every case."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch

from infsa_bench.errors import MeterUnavailableError
from infsa_bench.measure.energy.clock import Clock, MonotonicClock
from infsa_bench.measure.energy.counter import NvmlCounter
from infsa_bench.measure.energy.load import CudaLoad, HostLoad, Load
from infsa_bench.measure.energy.meter import EnergyMeter
from infsa_bench.measure.energy.observer import Sample
from infsa_bench.measure.energy.observing_process import ProcessObserver
from infsa_bench.measure.energy.power import NvmlPower
from infsa_bench.measure.energy.rapl import Rapl
from infsa_bench.measure.environment import find_gpu
from infsa_bench.measure.memory import PeakMemory, available_host_bytes, release_freed_memory
from infsa_bench.measure.memory_limit import MemoryLimit
from infsa_bench.measure.nvml import Gpu
from infsa_bench.record import EnergySource

LEFTOVER_BYTES = 64 * 2**20
"""Memory that a finished case may leave taken; with more, something was kept and the worker is replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruments:
    """Everything to measure ``device`` with.

    ``gpu`` is NVML's view of it, None on a CPU or where NVML does not know it. ``meter`` is None where no energy can
    be measured; ``no_energy`` then says why. ``energy_source`` is what the meter will read, as far as one reading
    tells: a counter that stands still shows only later. ``memory_limit`` emulates a smaller device.
    """

    device: torch.device
    peak_memory: PeakMemory
    gpu: Gpu | None
    meter: EnergyMeter | None
    energy_source: EnergySource | None
    no_energy: MeterUnavailableError | None
    memory_limit: MemoryLimit | None = None

    def load(self, call: Callable[[], object], iteration_seconds: float) -> Load:
        """Return ``call`` as a continuous load."""
        clock = MonotonicClock()
        if self.device.type == "cuda":
            return CudaLoad(call, self.device, iteration_seconds, clock)
        return HostLoad(call, clock)

    def sampling(self) -> AbstractContextManager[list[Sample]]:
        """Sample the GPU's state while something runs inside; where there is none, the list stays empty."""
        return nullcontext([]) if self.meter is None else self.meter.sampling()

    def limited(self, limit_bytes: int) -> Instruments:
        """Limit the memory that this process may take; raises as :class:`MemoryLimit`."""
        gpu = self.gpu
        limit = MemoryLimit(self.device, limit_bytes, lambda: gpu.process_bytes() if gpu else None)
        return replace(self, memory_limit=limit)

    def available_bytes(self) -> int | None:
        """Return the memory that a case could still take on the device; None where nobody knows."""
        if self.device.type == "cuda":
            free: int | None = torch.cuda.mem_get_info(self.device)[0]
        else:
            free = available_host_bytes()
        if self.memory_limit is None:
            return free
        left = self.memory_limit.left_bytes()
        return left if free is None else min(left, free)

    def is_clean(self) -> bool:
        """Tell whether a finished case left nothing behind on the device, once freed memory was given back."""
        release_freed_memory(self.device)
        is_whole = self.memory_limit is None or self.memory_limit.is_whole()
        return is_whole and (self.peak_memory.held_bytes() or 0) <= LEFTOVER_BYTES

    def close(self) -> None:
        """End what was started for it."""
        if self.meter is not None:
            self.meter.close()


def open_instruments(device: torch.device) -> Instruments:
    """Find out what ``device`` can be measured with."""
    clock = MonotonicClock()
    gpu: Gpu | None = None
    meter: EnergyMeter | None = None
    source: EnergySource | None = None
    no_energy: MeterUnavailableError | None = None
    try:
        if device.type == "cuda":
            gpu = find_gpu(device)
            refuse_shared_counters(gpu)
            source = gpu_energy_source(gpu)
            meter = _gpu_meter(gpu, device, clock)
        else:
            meter, source = EnergyMeter([("rapl", Rapl(clock))], clock), "rapl"
    except MeterUnavailableError as error:
        source, no_energy = None, error
    return Instruments(
        device=device,
        peak_memory=PeakMemory(device),
        gpu=gpu,
        meter=meter,
        energy_source=source,
        no_energy=no_energy,
    )


def refuse_shared_counters(gpu: Gpu) -> None:
    """Refuse a GPU whose counter includes what others do.

    Raises:
        MeterUnavailableError: it is cut into instances (``mig``) or a share of a virtualised one (``vgpu``).
    """
    if gpu.facts.mig_enabled:
        detail = "the GPU is cut into instances (MIG); its energy counter covers all of them"
        raise MeterUnavailableError("mig", detail)
    if gpu.facts.virtualization == "vgpu":
        raise MeterUnavailableError("vgpu", "this is a share of a virtualised GPU; its energy is not told apart")


def gpu_energy_source(gpu: Gpu) -> EnergySource:
    """Return what can be read of a GPU's energy.

    Raises:
        MeterUnavailableError: neither the counter nor power (``counter_unsupported``).
    """
    try:
        gpu.energy_joules()
    except MeterUnavailableError:
        if gpu.power_watts() is None:
            raise
        return "nvml_power"
    return "nvml_counter"


def _gpu_meter(gpu: Gpu, device: torch.device, clock: Clock) -> EnergyMeter:
    observer = ProcessObserver(gpu, clock)
    return EnergyMeter(
        [("nvml_counter", NvmlCounter(gpu, clock, observer)), ("nvml_power", NvmlPower(gpu, clock, observer))],
        clock,
        gpu=gpu,
        observer=observer,
        own_bytes=lambda: torch.cuda.memory_reserved(device),
    )
