"""One case from its model to its measurement, in the worker. Whatever goes wrong is raised."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from infsa_bench.errors import MeterUnavailableError
from infsa_bench.execute.instruments import Instruments
from infsa_bench.execute.messages import RunCommand
from infsa_bench.execute.modes import UnsupportedError, compiled_graphs
from infsa_bench.execute.workload import build_workload
from infsa_bench.measure.energy.meter import MeterResult, not_measured
from infsa_bench.measure.latency import (
    GRAPH_TWIN_BELOW_SECONDS,
    LAUNCH_BOUND_RATIO,
    Timings,
    is_launch_bound,
    synchronize,
    time_case,
    time_saturated,
    warm_up,
)
from infsa_bench.measure.nvml import THROTTLE_REASONS
from infsa_bench.measure.stopwatch import Stopwatch
from infsa_bench.protocol import Protocol, energy_seconds
from infsa_bench.record import GpuState, Measurement, Stage, TracePoint

WARMUP_SHARE = 0.25
"""Share of a limited time that warming up may take."""

GRAPH_FAILED = "graph_capture_failed"


def measure_case(
    command: RunCommand, instruments: Instruments, reach: Callable[[Stage], None]
) -> tuple[Measurement, tuple[TracePoint, ...]]:
    """Build, warm up, time, watch the energy of one case; return it with its power trace."""
    case, protocol, device = command.case, command.protocol, instruments.device
    stopwatch = Stopwatch()
    no_energy = instruments.no_energy
    meter = instruments.meter if command.energy is not None else None
    if command.energy is None:
        no_energy = MeterUnavailableError("not_requested", "energy was switched off")
    elif meter is not None and meter.calibration is None:
        # Before anything is built: the device is idle now.
        reach("energy")
        try:
            with stopwatch.stage("idle"):
                meter.calibrate()
        except MeterUnavailableError as error:
            meter, no_energy = None, error
    reach("build")
    with stopwatch.stage("build"):
        workload = build_workload(case, device)
        synchronize(device)
    reach("warm-up")
    limit = command.limit_seconds
    warmup_limit = None if limit is None else limit * WARMUP_SHARE
    with stopwatch.stage("warm-up"):
        warmup_seconds = warm_up(workload.call, protocol, device, limit_seconds=warmup_limit)
    reach("timing")
    state_before = instruments.gpu.state() if instruments.gpu else None
    compiled_before = compiled_graphs()
    instruments.peak_memory.reset()
    left = None if limit is None else max(0.0, limit - sum(warmup_seconds))
    with stopwatch.stage("latency"):
        timings = time_case(workload.call, protocol, device, limit_seconds=left)
    peak = instruments.peak_memory.read()
    is_recompiled = compiled_graphs() != compiled_before
    process_bytes = instruments.gpu.process_bytes() if instruments.gpu else None
    state_after = instruments.gpu.state() if instruments.gpu else None
    reach("energy")
    if meter is None:
        assert no_energy is not None
        metered = MeterResult(reading=not_measured(no_energy), trace=(), stage_seconds={})
    else:
        assert command.energy is not None
        iteration_seconds = statistics.median(timings.seconds_per_iteration)
        load = instruments.load(workload.call, iteration_seconds)
        # Under a time budget: as long as was planned for it, no extra trials.
        planned_seconds = None if limit is None else energy_seconds(command.energy, command.trials, iteration_seconds)
        metered = meter.read(load, iteration_seconds, command.energy, command.trials, limit_seconds=planned_seconds)
    # Last: a capture that fails may leave the device in a state that no number should come from.
    graph_seconds: tuple[float, ...] = ()
    is_graph_failed = False
    if workload.graph_twin is not None and statistics.median(timings.gpu_seconds) < GRAPH_TWIN_BELOW_SECONDS:
        with stopwatch.stage("graph"):
            graph_seconds, is_graph_failed = _time_graph(workload.graph_twin, protocol, device)
    flags = {
        "time_limited": timings.time_limited,
        "not_converged": timings.converged is False,
        "recompiled": is_recompiled,
        "throttled": _is_throttled(state_before, state_after),
        GRAPH_FAILED: is_graph_failed,
        "non_finite_output": not bool(torch.isfinite(timings.last_output).all()),
    }
    measurement = Measurement(
        latencies_seconds=timings.latencies_seconds,
        gpu_seconds=timings.gpu_seconds,
        seconds_per_iteration=timings.seconds_per_iteration,
        iterations_per_sample=timings.iterations_per_sample,
        graph_seconds_per_iteration=graph_seconds,
        launch_bound=_launch_bound(case.execution, timings, graph_seconds),
        warmup_seconds=warmup_seconds,
        build_seconds=workload.build_seconds,
        parameters=workload.parameters,
        model_bytes=workload.model_bytes,
        peak_memory_bytes=peak.allocated_bytes,
        peak_reserved_bytes=peak.reserved_bytes,
        nvml_process_bytes=process_bytes,
        memory_source=peak.source,
        energy=metered.reading,
        state_before=state_before,
        state_after=state_after,
        stage_seconds=stopwatch.seconds | metered.stage_seconds,
        flags=tuple(name for name, is_raised in flags.items() if is_raised),
    )
    return measurement, metered.trace


def _time_graph(
    twin: Callable[[], Callable[[], Tensor]], protocol: Protocol, device: torch.device
) -> tuple[tuple[float, ...], bool]:
    """Return the times of the case's CUDA-graph twin, and whether capturing it failed."""
    try:
        replay = twin()
        warm_up(replay, protocol, device)
        return time_saturated(replay, protocol, device).seconds, False
    except (UnsupportedError, torch.OutOfMemoryError, RuntimeError):
        # The case itself has been measured; only whether it is launch-bound stays unknown.
        return (), True


def _launch_bound(execution: str, timings: Timings, graph_seconds: tuple[float, ...]) -> bool | None:
    if graph_seconds:
        return is_launch_bound(timings.seconds_per_iteration, graph_seconds)
    if execution != "eager" or not timings.gpu_seconds:
        return None
    # Too long for a twin: launches that set the pace would show between the device's own time and the full queue's.
    gpu_seconds = statistics.median(timings.gpu_seconds)
    is_paced_by_device = statistics.median(timings.seconds_per_iteration) <= LAUNCH_BOUND_RATIO * gpu_seconds
    return False if gpu_seconds >= GRAPH_TWIN_BELOW_SECONDS and is_paced_by_device else None


def _is_throttled(before: GpuState | None, after: GpuState | None) -> bool:
    """Tell whether heat or hardware protection held the clocks back while the case was timed."""
    if before is None or after is None:
        return False
    seen = {*(before.event_reasons or ()), *(after.event_reasons or ())}
    if seen & THROTTLE_REASONS:
        return True
    heat = (before.thermal_violation_seconds, after.thermal_violation_seconds)
    return heat[0] is not None and heat[1] is not None and heat[1] > heat[0]
