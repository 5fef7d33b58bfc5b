"""What can be measured on this machine and what cannot, one line each, with the reason."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal

from infsa_bench.errors import MeterUnavailableError
from infsa_bench.execute.instruments import Instruments
from infsa_bench.execute.messages import Finding
from infsa_bench.execute.selfcheck import check_instruments
from infsa_bench.machine import Environment, GpuFacts, GpuState
from infsa_bench.measure.energy.clock import Clock, MonotonicClock
from infsa_bench.measure.energy.counter import SLOW_COUNTER_SECONDS, NvmlCounter
from infsa_bench.measure.energy.load import Idle
from infsa_bench.measure.energy.observer import DirectObserver
from infsa_bench.measure.energy.rapl import ROOT, Rapl
from infsa_bench.measure.memory import available_host_bytes
from infsa_bench.measure.nvml import THROTTLE_REASONS, Gpu, loaded_library, visible_gpus
from infsa_bench.measure.processors import SHARED_CORES, STAT, OtherLoad

Verdict = Literal["yes", "limited", "no"]

WATCH_SECONDS = 1.0


def diagnose(
    environment: Environment,
    instruments: Instruments,
    *,
    selfcheck: bool,
    clock: Clock | None = None,
    powercap: Path = ROOT,
    stat: Path = STAT,
) -> tuple[Finding, ...]:
    """Return what can be measured; with ``selfcheck`` also whether the instruments agree with themselves.

    ``clock`` is the machine's own if not given; ``powercap`` and ``stat`` are where it shows its processors'
    energy and load.
    """
    clock = clock or MonotonicClock()
    findings = [*_device(environment, instruments), *_energy(instruments, clock, powercap)]
    if instruments.gpu is not None:
        findings += _gpu(instruments.gpu)
    if environment.device_type == "cuda":
        findings.append(_processor_energy(clock, powercap))
    else:
        findings += [_processor_sharing(clock, stat), _nvidia()]
    if selfcheck:
        findings += check_instruments(instruments)
    return tuple(findings)


def _device(environment: Environment, instruments: Instruments) -> Iterator[Finding]:
    gibibytes = environment.device_memory_bytes / 2**30
    yield _finding("device", "yes", f"{environment.device}: {environment.device_name}, {gibibytes:.1f} GiB")
    if environment.device_type == "cuda":
        yield _finding("time", "yes", "host clock (latency) and CUDA events (device time, throughput)")
        yield _finding("memory", "yes", "peak of the caching allocator, reserved memory, NVML's view of the process")
        return
    yield _finding("time", "yes", f"host clock; {environment.torch_threads} threads on {environment.cpu_count} cores")
    free = available_host_bytes()
    instruments.peak_memory.reset()
    if instruments.peak_memory.read().allocated_bytes is None:
        detail = "/proc/self/clear_refs cannot be written: a peak could be that of an earlier case"
        yield _finding("memory", "no", detail)
    else:
        left = "" if free is None else f"; {free / 2**30:.1f} GiB free"
        yield _finding("memory", "yes", f"peak resident memory above the worker's own, reset for each case{left}")


def _energy(instruments: Instruments, clock: Clock, powercap: Path) -> Iterator[Finding]:
    error = instruments.no_energy
    if error is not None:
        yield _finding("energy", "no", f"{error.reason}: {error.detail}")
        return
    match instruments.energy_source:
        case "nvml_counter":
            assert instruments.gpu is not None
            yield _finding("energy", "yes", f"NVML's energy counter, scope {instruments.gpu.power_scope or 'gpu'}")
            yield _counter_period(instruments.gpu, clock)
        case "nvml_power":
            yield _finding("energy", "limited", "no energy counter: sampled power, always of low confidence")
        case source:
            yield _finding("energy", "yes", f"{source}: {Rapl(clock, powercap).scope}")


def _counter_period(gpu: Gpu, clock: Clock) -> Finding:
    counter = NvmlCounter(gpu, clock, DirectObserver(gpu, clock, 0))
    try:
        edges = counter.updates(Idle(clock), WATCH_SECONDS)
    except MeterUnavailableError as error:
        return _finding("counter period", "no", f"{error.reason}: {error.detail}")
    period_seconds = statistics.median((last.ns - first.ns) / 1e9 for first, last in pairwise(edges))
    detail = f"{period_seconds * 1e3:.0f} ms (median of {len(edges) - 1} updates without load)"
    return _finding("counter period", "limited" if period_seconds > SLOW_COUNTER_SECONDS else "yes", detail)


def _gpu(gpu: Gpu) -> Iterator[Finding]:
    facts, state = gpu.facts, gpu.state()
    library = facts.nvml_library or "unknown file"
    yield _finding("NVML", "yes", f"driver {facts.driver_version}, NVML {facts.nvml_version}, {library}")
    yield _finding("identity", "yes", f"{facts.uuid} at {facts.pci_bus_id}, number {facts.nvml_index} of NVML")
    if facts.mig_enabled or facts.virtualization not in (None, "none", "passthrough"):
        kind = "cut into instances (MIG)" if facts.mig_enabled else f"virtualised ({facts.virtualization})"
        yield _finding("whole GPU", "no", f"{kind}: its counters cover others as well")
    else:
        yield _finding("whole GPU", "yes", f"no MIG; virtualization: {facts.virtualization or 'unknown'}")
    match state.foreign_processes:
        case None:
            yield _finding("sharing", "limited", "the driver does not list this process: others are inferred only")
        case 0:
            yield _finding("sharing", "yes", "no other process on this GPU")
        case count:
            others = "1 other process" if count == 1 else f"{count} other processes"
            yield _finding("sharing", "limited", f"{others} on this GPU: readings will be doubted")
    yield _clocks(facts, state)
    yield _power_limit(facts)
    settings = (
        f"persistence {_word(facts.persistence_mode)}, ECC {_word(facts.ecc_enabled)}, "
        f"VBIOS {facts.vbios_version or 'unknown'}"
    )
    yield _finding("settings", "yes", f"{settings}; infsa-bench changes none of them")


def _clocks(facts: GpuFacts, state: GpuState) -> Finding:
    clock, fastest = _known(state.sm_clock_mhz, "MHz"), _known(facts.max_sm_clock_mhz, "MHz")
    clocks = f"SM {clock} of {fastest}, {_known(state.temperature_celsius, 'C')}"
    if state.event_reasons is None:
        return _finding("clocks", "limited", f"{clocks}; the driver does not tell what holds them back")
    is_throttled = not THROTTLE_REASONS.isdisjoint(state.event_reasons)
    reasons = ", ".join(state.event_reasons) or "none"
    return _finding("clocks", "limited" if is_throttled else "yes", f"{clocks}, held back by: {reasons}")


def _power_limit(facts: GpuFacts) -> Finding:
    limit, default = facts.power_limit_watts, facts.default_power_limit_watts
    if limit is None:
        return _finding("power limit", "limited", "unknown")
    if default is not None and limit < default:
        return _finding("power limit", "limited", f"{limit:.0f} W, below its default {default:.0f} W")
    return _finding("power limit", "yes", f"{limit:.0f} W")


def _processor_energy(clock: Clock, powercap: Path) -> Finding:
    try:
        return _finding("processor", "yes", f"RAPL: {Rapl(clock, powercap).scope} (not part of a GPU's energy)")
    except MeterUnavailableError as error:
        return _finding("processor", "no", f"{error.reason}: {error.detail} (not needed for a GPU's energy)")


def _processor_sharing(clock: Clock, stat: Path) -> Finding:
    others = OtherLoad(stat)
    clock.sleep_until(clock.now_ns() + round(WATCH_SECONDS * 1e9))
    share = others.share()
    if share is None:
        return _finding("sharing", "limited", "the system does not tell what other processes use")
    detail = f"other processes use {share:.0%} of all cores"
    if share > SHARED_CORES:
        return _finding("sharing", "limited", f"{detail}: readings taken now would be doubted")
    return _finding("sharing", "yes", detail)


def _nvidia() -> Finding:
    """What NVML says where the device is a processor: a GPU that torch cannot use is worth a line."""
    try:
        found = visible_gpus()
    except MeterUnavailableError as error:
        return _finding("NVIDIA GPU", "no", f"{error.reason}: {error.detail}")
    if not found:
        return _finding("NVIDIA GPU", "no", "NVML knows none")
    names = ", ".join(facts.name for facts in found)
    return _finding("NVIDIA GPU", "limited", f"NVML ({loaded_library()}) knows {names}, but this device is a processor")


def _known(value: int | None, unit: str) -> str:
    return "unknown" if value is None else f"{value} {unit}"


def _word(is_on: bool | None) -> str:
    return {True: "on", False: "off", None: "unknown"}[is_on]


def _finding(name: str, verdict: Verdict, detail: str) -> Finding:
    return Finding(name=name, verdict=verdict, detail=detail)
