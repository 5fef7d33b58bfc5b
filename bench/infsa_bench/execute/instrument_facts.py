"""What the instruments see and cost, found out in a fresh process.

Run as ``python -m infsa_bench.execute.instrument_facts DEVICE``; started by ``infsa-bench instruments`` only. It writes
one line of JSON to standard output.
"""

from __future__ import annotations

import datetime
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from infsa_bench.codec import encode
from infsa_bench.errors import MeterUnavailableError
from infsa_bench.execute.instruments import gpu_energy_source, refuse_shared_counters
from infsa_bench.execute.worker import resolve_device
from infsa_bench.measure.energy.clock import Clock, MonotonicClock
from infsa_bench.measure.energy.counter import NvmlCounter
from infsa_bench.measure.energy.observer import Observer
from infsa_bench.measure.energy.observing_process import ProcessObserver
from infsa_bench.measure.energy.sensor import SensorBench, window_seconds
from infsa_bench.measure.environment import describe_environment, find_gpu
from infsa_bench.measure.latency import synchronize
from infsa_bench.measure.nvml import Gpu, all_gpus
from infsa_bench.reference.facts import EventCosts, InstrumentFacts, WaveResponse

IDLE_SECONDS = 3.0
LOAD_SECONDS = 1.5
RISE_SECONDS = 2.0
EVENTS = 256
WORK_SIDE = 4096
"""Of the matrix products that load a GPU: a fraction of a millisecond each."""


def main() -> None:
    """Find out what the device on the command line allows."""
    import_seconds = seconds_since_start()
    used_bytes = used_bytes_by_uuid()
    begin = time.monotonic()
    device = resolve_device(sys.argv[1])
    torch.zeros(1, device=device)
    synchronize(device)
    context_seconds = time.monotonic() - begin
    facts = find_facts(device, used_bytes, import_seconds=import_seconds, context_seconds=context_seconds)
    print(encode(facts), flush=True)


def find_facts(
    device: torch.device,
    used_bytes: Mapping[str, int | None],
    *,
    import_seconds: float | None,
    context_seconds: float,
) -> InstrumentFacts:
    """Return everything; what a device lacks, or fails over, is None, with the reason.

    ``used_bytes`` is what was taken on every GPU, by UUID, before this process used one.
    """
    begin = time.monotonic()
    clock = MonotonicClock()
    environment = describe_environment(device)
    gpu: Gpu | None = None
    facts = InstrumentFacts(
        environment=environment,
        measured_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=0.0,
        import_seconds=import_seconds,
        context_seconds=context_seconds,
        context_bytes=None,
        own_process_visible=None,
        listed_processes=None,
        events=event_costs() if device.type == "cuda" else None,
        calibration=None,
        no_energy="needs CUDA",
    )
    if device.type == "cuda":
        try:
            gpu = find_gpu(device)
            facts = with_processes(facts, gpu, torch.cuda.memory_reserved(device), used_bytes.get(gpu.facts.uuid))
            refuse_shared_counters(gpu)
            gpu_energy_source(gpu)
            observer = ProcessObserver(gpu, clock)
            try:
                facts = with_sensor(facts, gpu, clock, observer, product(device))
            finally:
                observer.close()
        except MeterUnavailableError as error:
            facts = replace(facts, no_energy=f"{error.reason}: {error.detail}")
    return replace(facts, seconds=time.monotonic() - begin)


def used_bytes_by_uuid() -> dict[str, int | None]:
    """Return what is taken on every GPU, by UUID; nothing where there is no NVML."""
    try:
        return {gpu.facts.uuid: gpu.memory_used_bytes() for gpu in all_gpus()}
    except MeterUnavailableError:
        return {}


def seconds_since_start() -> float | None:
    """Return how long ago this process was started, to a clock tick; None where the system does not tell."""
    try:
        # What stands in parentheses may hold anything, spaces too.
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return max(0.0, uptime - started / os.sysconf("SC_CLK_TCK"))


def event_costs() -> EventCosts:
    """Return what CUDA events cost, on an idle stream."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(EVENTS)]
    for event in events:
        event.record()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for event in events:
        event.record()
    recorded = time.perf_counter()
    torch.cuda.synchronize()
    spans = [first.elapsed_time(last) / 1e3 for first, last in pairwise(events)]
    return event_costs_of((recorded - begin) / EVENTS, spans)


def event_costs_of(record_seconds: float, spans: list[float]) -> EventCosts:
    """Return the same from the spans between events in a row, in seconds."""
    # Floats of milliseconds: below a nanosecond two are the same.
    different = sorted({round(span, 9) for span in spans})
    steps = [second - first for first, second in pairwise(different)]
    return EventCosts(
        record_seconds=record_seconds,
        empty_span_seconds=statistics.median(spans),
        step_seconds=min(steps, default=None),
    )


def product(device: torch.device) -> Callable[[], Tensor]:
    """Return a matrix product that is done when it returns, so that a load can be switched off at once."""
    left, right = (torch.randn(WORK_SIDE, WORK_SIDE, device=device).to(torch.bfloat16) for _ in range(2))

    def work() -> Tensor:
        for _ in range(4):
            result = left @ right
        synchronize(device)
        return result

    work()
    return work


def with_processes(
    facts: InstrumentFacts, gpu: Gpu, reserved_bytes: int, used_before_bytes: int | None = None
) -> InstrumentFacts:
    """Add what the driver tells of the processes on the GPU, on which so much was taken before this one used it."""
    listed = gpu.processes()
    own_bytes = listed.get(os.getpid())
    is_by_growth = False
    if own_bytes is None and used_before_bytes is not None:
        used_bytes = gpu.memory_used_bytes()
        own_bytes = None if used_bytes is None else used_bytes - used_before_bytes
        is_by_growth = own_bytes is not None
    return replace(
        facts,
        own_process_visible=os.getpid() in listed,
        listed_processes=len(listed),
        context_bytes=None if own_bytes is None else max(0, own_bytes - reserved_bytes),
        is_context_by_growth=is_by_growth,
    )


def with_sensor(
    facts: InstrumentFacts, gpu: Gpu, clock: Clock, observer: Observer, work: Callable[[], object]
) -> InstrumentFacts:
    """Add what the energy counter and the power sensor do under loads that ``work`` makes.

    Raises:
        MeterUnavailableError: there is no counter, or it stands still; or the observer is lost.
    """
    bench = SensorBench(work, clock, observer)
    counter = NvmlCounter(gpu, clock, observer)
    idle = counter.calibrate_idle(IDLE_SECONDS)
    rise_seconds = bench.counter_rise_seconds(RISE_SECONDS)
    calibration = counter.calibrate_under_load(_AsLoad(work, clock), idle)
    loads = bench.loads(LOAD_SECONDS)
    watts = {load.duty: load.power_watts or load.counter_watts for load in loads}
    full, none = watts.get(1.0), watts.get(0.0)
    waves: tuple[WaveResponse, ...] = ()
    power_period = None
    if full and none and full > none and calibration.period_seconds:
        waves, power_period = bench.waves(full - none, calibration.period_seconds, LOAD_SECONDS)
    return replace(
        facts,
        no_energy=None,
        calibration=calibration,
        counter_rise_seconds=rise_seconds,
        power_period_seconds=power_period,
        sensor_window_seconds=window_seconds(waves),
        waves=waves,
        loads=loads,
    )


class _AsLoad:
    """The work as a continuous load for the counter's calibration, which asks for no iterations."""

    def __init__(self, work: Callable[[], object], clock: Clock) -> None:
        self._work, self._clock = work, clock

    def begin(self) -> None:
        """Start nothing: the work begins with the first wait."""

    def keep_busy(self, until_ns: int) -> None:
        """Work until then."""
        while self._clock.now_ns() < until_ns:
            self._work()

    def drain(self) -> None:
        """Wait for nothing: the work is done when it returns."""

    def iterations_between(self, begin_ns: int, end_ns: int) -> float:
        """Return 0: nobody counts."""
        return 0.0

    def seconds_per_iteration(self) -> float | None:
        """Return None."""
        return None


if __name__ == "__main__":
    main()
