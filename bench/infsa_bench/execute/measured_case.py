"""One case from its model to its measurement, in the worker, step by step."""

from __future__ import annotations

import statistics
from dataclasses import replace

import torch

from infsa_bench.energy_plan import TrialShare
from infsa_bench.errors import MeterUnavailableError
from infsa_bench.execute.counted_calls import CountedCalls
from infsa_bench.execute.instruments import Instruments
from infsa_bench.execute.messages import RunCommand
from infsa_bench.execute.modes import compiled_graphs
from infsa_bench.execute.stages import StageReporter
from infsa_bench.execute.workload import build_workload
from infsa_bench.machine import GpuState, SampledState
from infsa_bench.measure.energy.meter import not_measured
from infsa_bench.measure.energy.trace import sampled_state
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
from infsa_bench.measure.processors import OtherLoad, own_cores
from infsa_bench.measure.stopwatch import Stopwatch
from infsa_bench.record import Measurement, TracePoint

WARMUP_SHARE = 0.25
"""Share of a limited time that warming up may take."""


class MeasuredCase:
    """A case on its way: timed first, then its energy watched, then compared with its CUDA graph.

    Each step may raise anything. The later ones add to a measurement that stands without them.
    """

    def __init__(self, command: RunCommand, instruments: Instruments, reporter: StageReporter) -> None:
        self._command, self._instruments, self._reporter = command, instruments, reporter
        self._stopwatch = Stopwatch()
        self._meter = instruments.meter if command.energy is not None else None
        self._no_energy = instruments.no_energy
        if command.energy is None:
            self._no_energy = MeterUnavailableError("not_requested", "energy was switched off")

    def time(self) -> Measurement:
        """Build, warm up and time; the energy is not measured yet."""
        case, protocol, device = self._command.case, self._command.protocol, self._instruments.device
        stopwatch, limit, beat = self._stopwatch, self._command.limit_seconds, self._reporter.beat
        self._calibrate()
        self._reporter.reach("build")
        with stopwatch.stage("build"):
            self._workload = workload = build_workload(case, device)
            synchronize(device)
        self._reporter.ask(workload.is_in_backward)
        self._reporter.reach("warm-up")
        warmup_limit = None if limit is None else limit * WARMUP_SHARE
        calls = CountedCalls(workload, device)
        with stopwatch.stage("warm-up"):
            calls.count_apart()
            beat()
            warmup_seconds = warm_up(calls, protocol, device, limit_seconds=warmup_limit, beat=beat)
        self._reporter.reach("timing")
        gpu, peak_memory = self._instruments.gpu, self._instruments.peak_memory
        state_before = gpu.state() if gpu else None
        others = OtherLoad(cores=own_cores()) if device.type == "cpu" else None
        compiled_before = compiled_graphs()
        peak_memory.reset()
        left = None if limit is None else max(0.0, limit - sum(warmup_seconds))
        with stopwatch.stage("latency"), self._instruments.sampling() as samples:
            self._timings = timings = time_case(workload.call, protocol, device, limit_seconds=left, beat=beat)
        is_shared = others is not None and others.is_shared()
        peak = peak_memory.read()
        process_bytes = gpu.process_bytes() if gpu else None
        state_after = gpu.state() if gpu else None
        state_during = sampled_state(samples)
        states = (state_before, state_during, state_after)
        is_shared |= any((state.foreign_processes or 0) > 0 for state in states if state)
        flags = {
            "time_limited": timings.time_limited,
            "not_converged": timings.converged is False,
            "launches_in_gpu_seconds": timings.launches_in_gpu_seconds,
            "recompiled": compiled_graphs() != compiled_before,
            "throttled": _is_throttled(state_before, state_during, state_after),
            "shared": is_shared,
            "operations_not_counted": calls.operations is None,
            "non_finite_output": not bool(torch.isfinite(timings.last_output).all()),
        }
        return Measurement(
            latencies_seconds=timings.latencies_seconds,
            gpu_seconds=timings.gpu_seconds,
            seconds_per_iteration=timings.seconds_per_iteration,
            iterations_per_sample=timings.iterations_per_sample,
            graph_seconds_per_iteration=(),
            launch_bound=_launch_bound(case.execution, timings, ()),
            warmup_seconds=warmup_seconds,
            build_seconds=workload.build_seconds,
            parameters=workload.parameters,
            choices=workload.choices(),
            model_bytes=workload.model_bytes,
            peak_memory_bytes=peak.allocated_bytes,
            peak_reserved_bytes=peak.reserved_bytes,
            nvml_process_bytes=process_bytes,
            memory_source=peak.source,
            operations=calls.operations,
            energy=not_measured(self._no_energy or MeterUnavailableError("not_reached", "the case ended before")),
            state_before=state_before,
            state_during=state_during,
            state_after=state_after,
            stage_seconds=dict(stopwatch.seconds),
            flags=tuple(name for name, is_raised in flags.items() if is_raised),
        )

    def watch_energy(self, measurement: Measurement) -> tuple[Measurement, tuple[TracePoint, ...]]:
        """Return ``measurement`` with its energy, and the power meanwhile."""
        if self._meter is None:
            return measurement, ()
        command = self._command
        assert command.energy is not None
        self._reporter.reach("energy")
        iteration_seconds = statistics.median(self._timings.seconds_per_iteration)
        load = self._instruments.load(self._workload.call, iteration_seconds)
        share = command.share or TrialShare.all_of(command.energy.trials)
        metered = self._meter.read(
            load,
            iteration_seconds,
            command.energy,
            share,
            is_limited=command.limit_seconds is not None,
            beat=self._reporter.beat,
        )
        stage_seconds = measurement.stage_seconds | metered.stage_seconds
        return replace(measurement, energy=metered.reading, stage_seconds=stage_seconds), metered.trace

    def time_graph(self, measurement: Measurement) -> Measurement:
        """Return ``measurement`` with the times of its CUDA-graph twin, where it is short enough to have one.

        The last step: a capture that fails may leave the device in a state that no number should come from.
        """
        twin, protocol, device = self._workload.graph_twin, self._command.protocol, self._instruments.device
        if twin is None or statistics.median(self._timings.gpu_seconds) >= GRAPH_TWIN_BELOW_SECONDS:
            return measurement
        begin, beat = Stopwatch(), self._reporter.beat
        replay = twin()
        warm_up(replay, protocol, device, beat=beat)
        graph_seconds = time_saturated(replay, protocol, device, beat=beat).seconds
        return replace(
            measurement,
            graph_seconds_per_iteration=graph_seconds,
            launch_bound=_launch_bound(self._command.case.execution, self._timings, graph_seconds),
            stage_seconds=measurement.stage_seconds | {"graph": begin.elapsed_seconds()},
        )

    def _calibrate(self) -> None:
        """Watch the idle device, if nobody has yet: now, because nothing is built."""
        if self._meter is None or self._meter.calibration is not None:
            return
        self._reporter.reach("energy")
        try:
            with self._stopwatch.stage("idle"):
                self._meter.calibrate()
        except MeterUnavailableError as error:
            self._meter, self._no_energy = None, error


def _launch_bound(execution: str, timings: Timings, graph_seconds: tuple[float, ...]) -> bool | None:
    if graph_seconds:
        return is_launch_bound(timings.seconds_per_iteration, graph_seconds)
    if execution != "eager" or not timings.gpu_seconds:
        return None
    # Too long for a twin: launches that set the pace would show between the device's own time and the full queue's.
    gpu_seconds = statistics.median(timings.gpu_seconds)
    is_paced_by_device = statistics.median(timings.seconds_per_iteration) <= LAUNCH_BOUND_RATIO * gpu_seconds
    return False if gpu_seconds >= GRAPH_TWIN_BELOW_SECONDS and is_paced_by_device else None


def _is_throttled(before: GpuState | None, during: SampledState | None, after: GpuState | None) -> bool:
    """Tell whether heat or hardware protection held the clocks back while the case was timed."""
    if before is None or after is None:
        return False
    seen = {*(before.event_reasons or ()), *(during.event_reasons if during else ()), *(after.event_reasons or ())}
    if seen & THROTTLE_REASONS:
        return True
    heat = (before.thermal_violation_seconds, after.thermal_violation_seconds)
    return heat[0] is not None and heat[1] is not None and heat[1] > heat[0]
