"""Where a GPU has no energy counter: its power, sampled over a long window. Always of low confidence."""

from __future__ import annotations

import math

from infsa_bench.energy_plan import (
    AVERAGED_RISE_SECONDS,
    CONTINUOUS_BELOW_SECONDS,
    UNKNOWN_PERIOD_SECONDS,
    WindowPlan,
)
from infsa_bench.errors import MeterUnavailableError
from infsa_bench.measure.energy.clock import Clock
from infsa_bench.measure.energy.counter import IDLE_SECONDS
from infsa_bench.measure.energy.load import Idle, Load, running
from infsa_bench.measure.energy.observer import Observer
from infsa_bench.measure.energy.trace import WatchedTrial, power_joules
from infsa_bench.measure.nvml import Gpu
from infsa_bench.record import EnergyCalibration, EnergyWindow

SAMPLE_SECONDS = 0.02
WINDOW_SECONDS = 10.0
SAMPLING_BIAS = 0.05
"""Bound of what sampling leaves of a window this long, where iterations are short."""

BEATING_BIAS = 0.7
"""The same for iterations long enough to beat with a sensor that looks part of the time (simulated in the tests).

Its period is not known here, so that nothing can be spread over it: why these readings are always doubted.
"""


class NvmlPower:
    """Meter on sampled power: instant where NVML has it, else NVML's average over a second."""

    def __init__(self, gpu: Gpu, clock: Clock, observer: Observer) -> None:
        self._gpu = gpu
        self._clock = clock
        self._observer = observer

    def calibrate_idle(self, seconds: float = IDLE_SECONDS) -> EnergyCalibration:
        """Watch the idle GPU.

        Raises:
            MeterUnavailableError: NVML tells no power either (``power_unsupported``).
        """
        if self._gpu.power_watts() is None:
            raise MeterUnavailableError("power_unsupported", "NVML has neither an energy counter nor power here")
        window, _ = self._watch(Idle(self._clock), seconds)
        return EnergyCalibration(
            source="nvml_power",
            scope=self._gpu.power_scope or "gpu",
            idle_watts=window.joules / window.seconds,
            idle_seconds=window.seconds,
            temperature_celsius=self._gpu.temperature_celsius(),
            doubts=("sampled_power",),
        )

    def calibrate_under_load(self, load: Load, calibration: EnergyCalibration) -> EnergyCalibration:
        """Return what is known already: there is no counter whose period could be found."""
        return calibration

    @property
    def doubts(self) -> tuple[str, ...]:
        """Nothing beside what the calibration says of all of them."""
        return ()

    def settle(self, load: Load, seconds: float, calibration: EnergyCalibration) -> float | None:
        """Run the load until the device is warm."""
        with running(load):
            load.keep_busy(self._clock.now_ns() + round(seconds * 1e9))
        return load.seconds_per_iteration()

    def watch(self, load: Load, plans: tuple[WindowPlan, ...], calibration: EnergyCalibration) -> WatchedTrial:
        """Return one long window, of whole iterations as the longest plan is.

        Raises:
            MeterUnavailableError: the samples have gaps.
        """
        planned_seconds = max(plan.ticks for plan in plans) * UNKNOWN_PERIOD_SECONDS
        window, watched = self._watch(load, math.ceil(WINDOW_SECONDS / planned_seconds) * planned_seconds)
        return WatchedTrial(windows=(window,), samples=watched.samples)

    def relative_bias(self, windows: tuple[EnergyWindow, ...]) -> float:
        """Return the bound of what repeating does not average out."""
        iteration_seconds = sum(window.seconds for window in windows) / sum(window.iterations for window in windows)
        return SAMPLING_BIAS if iteration_seconds < CONTINUOUS_BELOW_SECONDS else BEATING_BIAS

    def _watch(self, load: Load, seconds: float) -> tuple[EnergyWindow, WatchedTrial]:
        self._observer.start_trace(SAMPLE_SECONDS)
        with running(load):
            begin_ns = self._run(load, self._clock.now_ns(), AVERAGED_RISE_SECONDS)
            end_ns = self._run(load, begin_ns, seconds)
            # One more sample behind the window's end.
            self._run(load, end_ns, 5 * SAMPLE_SECONDS)
        samples = self._observer.stop_trace()
        joules = power_joules(samples, begin_ns, end_ns)
        if joules is None or joules <= 0:
            raise MeterUnavailableError("power_unsupported", "NVML stopped telling the power, or told it too rarely")
        window = EnergyWindow(
            joules=joules,
            iterations=load.iterations_between(begin_ns, end_ns),
            seconds=(end_ns - begin_ns) / 1e9,
            edge_seconds=2 * SAMPLE_SECONDS,
            power_joules=joules,
        )
        return window, WatchedTrial(windows=(window,), samples=samples)

    def _run(self, load: Load, begin_ns: int, seconds: float) -> int:
        """Keep the load running for so long after ``begin_ns``, the observer served; return the moment it ended."""
        end_ns = begin_ns + round(seconds * 1e9)
        while self._clock.now_ns() < end_ns:
            load.keep_busy(min(end_ns, self._observer.due_ns))
            self._observer.edge()
        return self._clock.now_ns()
