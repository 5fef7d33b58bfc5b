"""The energy counter of a GPU, read at its own updates under continuous load."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from itertools import pairwise

from infsa_bench.energy_plan import CONTINUOUS_BELOW_SECONDS, WindowPlan, discarded_seconds
from infsa_bench.errors import MeterUnavailableError
from infsa_bench.measure.energy.clock import Clock
from infsa_bench.measure.energy.load import Idle, Load, running
from infsa_bench.measure.energy.observer import NEVER_NS, POLL_NS, Edge, Observer
from infsa_bench.measure.energy.trace import WatchedTrial, power_joules, rise_seconds
from infsa_bench.measure.nvml import Gpu
from infsa_bench.record import EnergyCalibration, EnergyWindow

IDLE_SECONDS = 10.0
PROBE_SECONDS = 3.0
PROBE_CALLS = 20
TRACE_SECONDS = 0.05
"""Sampling period of power before the counter's own period is known."""

EDGE_TIMEOUT_SECONDS = 1.0
EDGE_TIMEOUT_PERIODS = 5
EARLY_PERIODS = 0.4
"""How long before a predicted update the counter is watched."""

SLOW_COUNTER_SECONDS = 0.25
PART_TIME_BIAS = 0.005
"""What stratified segments leave of the error of a sensor that looks part of the time (simulated in the tests)."""

LEAST_UNALIGNED_PERIODS = 20


class NvmlCounter:
    """Meter on NVML's energy counter."""

    def __init__(self, gpu: Gpu, clock: Clock, observer: Observer) -> None:
        self._gpu = gpu
        self._clock = clock
        self._observer = observer
        self._last_edge: Edge | None = None

    def calibrate_idle(self, seconds: float = IDLE_SECONDS) -> EnergyCalibration:
        """Watch the idle GPU.

        Raises:
            MeterUnavailableError: no counter, or one that stands still (an idle GPU draws power, too).
        """
        self._gpu.energy_joules()
        idle = Idle(self._clock)
        first = self._edge_after(idle, self._clock.now_ns(), None)
        last = self._edge_after(idle, first.ns + round(seconds * 1e9), None)
        return EnergyCalibration(
            source="nvml_counter",
            scope=self._gpu.power_scope or "gpu",
            idle_watts=_joules(first, last) / (last.ns - first.ns) * 1e9,
            idle_seconds=(last.ns - first.ns) / 1e9,
            temperature_celsius=self._gpu.temperature_celsius(),
        )

    def calibrate_under_load(self, load: Load, calibration: EnergyCalibration) -> EnergyCalibration:
        """Add the counter's period and the sensor's rise, watched under ``load``.

        Raises:
            MeterUnavailableError: the counter stands still.
        """
        self._observer.start_trace(TRACE_SECONDS)
        with running(load):
            edges = self.updates(load, PROBE_SECONDS)
        samples = self._observer.stop_trace()
        periods = sorted((last.ns - first.ns) / 1e9 for first, last in pairwise(edges))
        steps = [_joules(first, last) for first, last in pairwise(edges)]
        return replace(
            calibration,
            period_seconds=statistics.median(periods),
            period_p95_seconds=periods[math.ceil(0.95 * len(periods)) - 1],
            step_joules=min(steps),
            call_seconds=self._call_seconds(),
            rise_seconds=rise_seconds(samples, calibration.idle_watts),
        )

    def updates(self, load: Load, seconds: float) -> list[Edge]:
        """Return the counter's updates over that time, two at least, under a load that has begun.

        Raises:
            MeterUnavailableError: the counter stands still.
        """
        # One order for all of them: a call that blocks would otherwise make every update as late as its end.
        end_ns = self._clock.now_ns() + round(seconds * 1e9)
        edges = [self._edge_after(load, self._clock.now_ns(), None, every=True)]
        while len(edges) < 2 or edges[-1].ns < end_ns:
            edges.append(self._next_edge(load, self._clock.now_ns(), None))
        self._observer.arm(NEVER_NS)
        return edges

    @property
    def doubts(self) -> tuple[str, ...]:
        """Nothing beside what the trials themselves show."""
        return ()

    def settle(self, load: Load, seconds: float, calibration: EnergyCalibration) -> float | None:
        """Run the load until the device is warm, and learn where the counter's updates are.

        Raises:
            MeterUnavailableError: the counter stands still.
        """
        with running(load):
            load.keep_busy(self._clock.now_ns() + round(seconds * 1e9))
            self._last_edge = self._edge_after(load, self._clock.now_ns(), calibration.period_seconds)
        return load.seconds_per_iteration()

    def watch(self, load: Load, plans: tuple[WindowPlan, ...], calibration: EnergyCalibration) -> WatchedTrial:
        """Return the windows of one trial, and what was sampled meanwhile; after :meth:`settle`.

        Raises:
            MeterUnavailableError: the counter stands still, or was reset.
        """
        self._observer.start_trace(_period(calibration) / 2)
        spans = [self._window(load, plan, calibration) for plan in plans]
        samples = self._observer.stop_trace()
        windows = tuple(
            replace(window, power_joules=power_joules(samples, first.ns, last.ns)) for window, first, last in spans
        )
        return WatchedTrial(windows=windows, samples=samples)

    def watch_unaligned(self, load: Load, seconds: float, calibration: EnergyCalibration) -> EnergyWindow:
        """Return a window between two plain readings, wherever the counter's updates are: for cross-checks.

        Raises:
            MeterUnavailableError: the window is so short that it could be off by more than 5 % (``window_too_short``).
        """
        period_seconds = _period(calibration)
        least_seconds = LEAST_UNALIGNED_PERIODS * period_seconds
        if seconds < least_seconds:
            detail = f"{seconds} s between readings anywhere, on a counter that needs at least {least_seconds:.2f} s"
            raise MeterUnavailableError("window_too_short", detail)
        discarded_ns = round(discarded_seconds(period_seconds, calibration.rise_seconds) * 1e9)
        with running(load):
            load.keep_busy(self._clock.now_ns() + discarded_ns)
            begin_ns, begin_joules = self._clock.now_ns(), self._gpu.energy_joules()
            until_ns = begin_ns + round(seconds * 1e9)
            while self._clock.now_ns() < until_ns:
                load.keep_busy(min(until_ns, self._observer.due_ns))
                # Whoever wants the counter watched meanwhile gets it watched.
                self._observer.edge()
            end_ns, end_joules = self._clock.now_ns(), self._gpu.energy_joules()
        return EnergyWindow(
            joules=end_joules - begin_joules,
            iterations=load.iterations_between(begin_ns, end_ns),
            seconds=(end_ns - begin_ns) / 1e9,
            edge_seconds=2 * period_seconds,
            power_joules=None,
        )

    def relative_bias(self, windows: tuple[EnergyWindow, ...]) -> float:
        """Return the bound of what repeating does not average out: unsharp edges, a sensor that looks part-time, and
        the part of an iteration that is left over where no number of updates is near to whole iterations.
        """
        seconds = sum(window.seconds for window in windows)
        iterations = sum(window.iterations for window in windows)
        edges = sum(window.edge_seconds for window in windows) / seconds
        left_over = 0.0
        if seconds / iterations >= CONTINUOUS_BELOW_SECONDS:
            # The same part in every trial. Its power may differ from an iteration's mean by as much as that mean.
            left_over = sum(abs(window.iterations - round(window.iterations)) for window in windows) / iterations
        # How much of its period the sensor looks cannot be told without an instrument outside: taken as part of it.
        return edges + left_over + PART_TIME_BIAS

    def _window(self, load: Load, plan: WindowPlan, calibration: EnergyCalibration) -> tuple[EnergyWindow, Edge, Edge]:
        assert self._last_edge is not None
        period_ns = _period(calibration) * 1e9
        discarded_ns = discarded_seconds(_period(calibration), calibration.rise_seconds) * 1e9
        ahead_ns = self._clock.now_ns() + POLL_NS - self._last_edge.ns
        next_update_ns = self._last_edge.ns + math.ceil(ahead_ns / period_ns) * period_ns
        start_ns = round(next_update_ns + plan.offset_seconds * 1e9)
        Idle(self._clock).keep_busy(start_ns)
        with running(load):
            first = self._edge_after(load, round(start_ns + discarded_ns), calibration.period_seconds)
            # Where windows are planned in a longer period than the counter's own, its updates are that much closer.
            update_ns = min(period_ns, (calibration.period_p95_seconds or math.inf) * 1e9)
            almost_ns = round(first.ns + plan.ticks * period_ns - EARLY_PERIODS * update_ns)
            last = self._edge_after(load, almost_ns, calibration.period_seconds)
        self._last_edge = last
        window = EnergyWindow(
            joules=_joules(first, last),
            iterations=load.iterations_between(first.ns, last.ns),
            seconds=(last.ns - first.ns) / 1e9,
            edge_seconds=(first.uncertainty_ns + last.uncertainty_ns) / 1e9,
            power_joules=None,
        )
        return window, first, last

    def _edge_after(self, load: Load, from_ns: int, period_seconds: float | None, *, every: bool = False) -> Edge:
        """Return the counter's first update after that moment, the load kept running."""
        self._observer.arm(from_ns, every=every)
        return self._next_edge(load, from_ns, period_seconds)

    def _next_edge(self, load: Load, from_ns: int, period_seconds: float | None) -> Edge:
        timeout_seconds = max(EDGE_TIMEOUT_SECONDS, EDGE_TIMEOUT_PERIODS * (period_seconds or 0.0))
        deadline_ns = max(from_ns, self._clock.now_ns()) + round(timeout_seconds * 1e9)
        while (edge := self._observer.edge()) is None:
            if self._clock.now_ns() > deadline_ns:
                detail = f"the energy counter has not moved for {timeout_seconds:.1f} s"
                raise MeterUnavailableError("counter_frozen", detail)
            load.keep_busy(self._observer.due_ns)
        return edge

    def _call_seconds(self) -> float:
        durations = []
        for _ in range(PROBE_CALLS):
            begin_ns = self._clock.now_ns()
            self._gpu.energy_joules()
            durations.append((self._clock.now_ns() - begin_ns) / 1e9)
        return statistics.median(durations)


def _period(calibration: EnergyCalibration) -> float:
    assert calibration.period_seconds is not None
    return calibration.period_seconds


def _joules(first: Edge, last: Edge) -> float:
    joules = last.joules - first.joules
    if joules < 0:
        raise MeterUnavailableError("counter_reset", "the energy counter fell: the driver was reloaded")
    return joules
