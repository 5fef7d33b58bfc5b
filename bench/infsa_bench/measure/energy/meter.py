"""The protocol of an energy measurement: which meter, how many trials, and what is to be doubted of the result."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Protocol

from infsa_bench.energy_plan import (
    UNKNOWN_PERIOD_SECONDS,
    EnergyPreset,
    TrialShare,
    WindowPlan,
    energy_seconds,
    number_of_trials,
    plan_trial,
    settle_seconds,
)
from infsa_bench.errors import MeterUnavailableError
from infsa_bench.measure.energy.clock import Clock
from infsa_bench.measure.energy.counter import SLOW_COUNTER_SECONDS, NvmlCounter
from infsa_bench.measure.energy.doubts import DETAILS, is_settled, trial_doubts
from infsa_bench.measure.energy.load import Idle, Load
from infsa_bench.measure.energy.observer import NEVER_NS, Observer, Sample
from infsa_bench.measure.energy.trace import WatchedTrial, record_trial, trace_points
from infsa_bench.measure.nvml import Gpu
from infsa_bench.measure.stopping import Beat, silence
from infsa_bench.measure.stopwatch import Stopwatch
from infsa_bench.record import EnergyCalibration, EnergyReading, EnergyTrial, EnergyWindow, TracePoint

SMOOTH_PERIOD_SECONDS = 0.005
LEAST_TRIALS_TO_EXTEND = 2
"""Of one alone nobody can tell; where replicates share the trials among them, they are what shows the scatter."""

LIMIT_SLACK = 1.25
MAX_THROTTLED_REPEATS = 2
EMPTY_GPU_BYTES = 2**30
"""What a context of our own may take beside the allocator's memory, with the libraries that it loads; a second one
would pass it."""

IDLE_POWER_SPREAD = 0.2
STATE_SECONDS = 0.1
REST_SECONDS = 5.0
SHARING_SECONDS = 2.0
SHARING_SAMPLE_SECONDS = 0.1


class Meter(Protocol):
    """One way to measure energy; see :mod:`counter`, :mod:`power` and :mod:`rapl`. All raise MeterUnavailableError."""

    def calibrate_idle(self) -> EnergyCalibration:
        """Watch the device without load."""

    def calibrate_under_load(self, load: Load, calibration: EnergyCalibration) -> EnergyCalibration:
        """Find out what only a load shows."""

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is to be doubted of what was watched since :meth:`settle`."""

    def settle(self, load: Load, seconds: float, calibration: EnergyCalibration) -> float | None:
        """Run the load until the device is warm; return how long an iteration takes then, None if that is unknown."""

    def watch(self, load: Load, plans: tuple[WindowPlan, ...], calibration: EnergyCalibration) -> WatchedTrial:
        """Return one trial."""

    def relative_bias(self, windows: tuple[EnergyWindow, ...]) -> float:
        """Return the bound of the errors that repeating does not average out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterResult:
    """A reading, the power trace behind it, and what the time went into, in seconds by name."""

    reading: EnergyReading
    trace: tuple[TracePoint, ...]
    stage_seconds: dict[str, float]


class EnergyMeter:
    """Measures one device with the first of several meters that works.

    ``calibration`` may be set to what an earlier worker of the same run found out; None is to find out by itself. On a
    GPU ``observer`` and ``own_bytes`` (memory that this process holds) tell whether somebody else uses it.
    """

    def __init__(
        self,
        meters: Sequence[tuple[str, Meter]],
        clock: Clock,
        *,
        gpu: Gpu | None = None,
        observer: Observer | None = None,
        own_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        self._meters = dict(meters)
        self._clock = clock
        self._gpu = gpu
        self._observer = observer
        self._own_bytes = own_bytes
        self.calibration: EnergyCalibration | None = None

    def calibrate(self) -> EnergyCalibration:
        """Watch the idle device with the first meter that can, and remember what was found.

        Raises:
            MeterUnavailableError: none can; the reason is that of the first.
        """
        # What ran just now must not count as somebody else's work, nor as idle power.
        self._clock.sleep_until(self._clock.now_ns() + round(REST_SECONDS * 1e9))
        sharing = self._sharing()
        failures: list[MeterUnavailableError] = []
        for meter in self._meters.values():
            try:
                found = meter.calibrate_idle()
            except MeterUnavailableError as error:
                failures.append(error)
                continue
            reasons = (*(failure.reason for failure in failures), *found.doubts, *sharing)
            known = self.calibration
            if known is not None and known.source == found.source:
                # What only a load shows is known already.
                found = replace(
                    known,
                    idle_watts=found.idle_watts,
                    idle_seconds=found.idle_seconds,
                    temperature_celsius=found.temperature_celsius,
                )
            self.calibration = replace(found, doubts=tuple(dict.fromkeys(reasons)))
            return self.calibration
        raise failures[0]

    def read(
        self,
        load: Load,
        iteration_seconds: float,
        preset: EnergyPreset,
        share: TrialShare,
        *,
        is_limited: bool = False,
        beat: Beat = silence,
    ) -> MeterResult:
        """Return the energy of ``load``, whatever happens: a meter that fails is a reading with a reason.

        Under a time budget (``is_limited``) there are no extra trials, and none after much more than the planned time.
        ``beat`` is called before each trial.
        """
        stopwatch = Stopwatch(self._clock.now_ns)
        samples: list[Sample] = []
        try:
            reading = self._read(load, iteration_seconds, preset, share, is_limited, beat, stopwatch, samples)
        except MeterUnavailableError as error:
            reading = not_measured(error)
        return MeterResult(reading=reading, trace=trace_points(samples), stage_seconds=stopwatch.seconds)

    def _read(
        self,
        load: Load,
        iteration_seconds: float,
        preset: EnergyPreset,
        share: TrialShare,
        is_limited: bool,
        beat: Beat,
        stopwatch: Stopwatch,
        samples: list[Sample],
    ) -> EnergyReading:
        if self.calibration is None:
            with stopwatch.stage("idle"):
                self.calibrate()
        assert self.calibration is not None
        meter = self._meters[self.calibration.source]
        if self.calibration.source == "nvml_counter" and self.calibration.period_seconds is None:
            with stopwatch.stage("probe"):
                self.calibration = meter.calibrate_under_load(load, self.calibration)
        calibration = self.calibration
        period_seconds = sensor_period_seconds(calibration)
        if calibration.source == "nvml_counter":
            calibration = replace(calibration, period_seconds=period_seconds)
        begin_seconds = stopwatch.elapsed_seconds()
        with stopwatch.stage("settle"):
            settled = meter.settle(load, settle_seconds(period_seconds), calibration)
        # Under sustained load iterations may be longer than they were when they were timed; the plan must fit them.
        iteration_seconds = settled or iteration_seconds
        planned_seconds = energy_seconds(
            preset,
            share,
            iteration_seconds,
            period_seconds=period_seconds,
            rise_seconds=calibration.rise_seconds,
        )
        count = number_of_trials(preset, share.count, iteration_seconds)
        target, repeats = count, 0
        done: list[EnergyTrial] = []
        doubts = list(calibration.doubts)
        if period_seconds > SLOW_COUNTER_SECONDS:
            doubts.append("slow_counter")
        first_ns = self._clock.now_ns()
        while len(done) < target:
            if done and is_limited and stopwatch.elapsed_seconds() - begin_seconds > LIMIT_SLACK * planned_seconds:
                doubts.append("time_limited")
                break
            plans = plan_trial(
                preset,
                iteration_seconds=iteration_seconds,
                period_seconds=period_seconds,
                trial=share.first + len(done),
                total=share.total,
            )
            trial_seconds = (self._clock.now_ns() - first_ns) / 1e9
            beat()
            with stopwatch.stage("window"):
                watched = meter.watch(load, plans, calibration)
            done.append(record_trial(watched, trial_seconds))
            samples.extend(watched.samples)
            if is_limited:
                continue
            if done[-1].throttle_reasons and repeats < MAX_THROTTLED_REPEATS:
                repeats += 1
                target += 1
            can_extend = count >= LEAST_TRIALS_TO_EXTEND and target == count + repeats
            if len(done) == target and can_extend and not is_settled(done, count):
                target += count
        windows = tuple(window for trial in done for window in trial.windows)
        doubts += trial_doubts(done, count, samples, meter.doubts)
        doubts = list(dict.fromkeys(doubts))
        return EnergyReading(
            status="measured_low_confidence" if doubts else "measured",
            reason=doubts[0] if doubts else None,
            detail=DETAILS.get(doubts[0], doubts[0]) if doubts else None,
            doubts=tuple(doubts),
            preset=preset.name,
            relative_bias=meter.relative_bias(windows),
            calibration=self.calibration,
            trials=tuple(done),
        )

    def watch_unaligned(self, load: Load, seconds: float) -> EnergyWindow | None:
        """Return a window between two plain readings of an NVML counter, for comparison; None for other meters.

        Raises:
            MeterUnavailableError: too short a window (``window_too_short``), or as :meth:`calibrate`.
        """
        calibration = self.calibration or self.calibrate()
        meter = self._meters[calibration.source]
        return meter.watch_unaligned(load, seconds, calibration) if isinstance(meter, NvmlCounter) else None

    @contextmanager
    def sampling(self) -> Iterator[list[Sample]]:
        """Sample a GPU's clock, temperature and what throttles while something runs inside; the list is filled at the
        end, and stays empty where nothing can be sampled. Its energy counter is left alone.
        """
        samples: list[Sample] = []
        observer = self._observer
        # What only accompanies a case must not end it; a meter that lost its observer says so when it is read.
        if observer is not None:
            with suppress(MeterUnavailableError):
                observer.start_trace(STATE_SECONDS)
        try:
            yield samples
        finally:
            if observer is not None:
                with suppress(MeterUnavailableError):
                    samples += observer.stop_trace()

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Sample a GPU's power as during a trial, and read its counter all the time, whatever runs inside."""
        if self._observer is None:
            yield
            return
        period_seconds = sensor_period_seconds(self.calibration) if self.calibration else UNKNOWN_PERIOD_SECONDS
        self._observer.start_trace(period_seconds / 2)
        self._observer.arm(self._clock.now_ns(), every=True)
        try:
            yield
        finally:
            self._observer.arm(NEVER_NS)
            self._observer.stop_trace()

    def close(self) -> None:
        """End the observer."""
        if self._observer is not None:
            self._observer.close()

    def _sharing(self) -> tuple[str, ...]:
        """Return what makes the idle GPU doubtful: somebody else on it, or power that comes and goes without us."""
        if self._gpu is None or self._observer is None:
            return ()
        self._observer.start_trace(SHARING_SAMPLE_SECONDS)
        idle = Idle(self._clock)
        end_ns = self._clock.now_ns() + round(SHARING_SECONDS * 1e9)
        while self._clock.now_ns() < end_ns:
            idle.keep_busy(min(end_ns, self._observer.due_ns))
            self._observer.edge()
        samples = self._observer.stop_trace()
        watts = [sample.power_watts for sample in samples if sample.power_watts is not None]
        is_restless = bool(watts) and max(watts) - min(watts) > IDLE_POWER_SPREAD * statistics.median(watts)
        state = self._gpu.state()
        if state.foreign_processes is not None:
            is_shared = state.foreign_processes > 0
        else:
            # The driver does not list even ourselves: who else is there can only be inferred.
            foreign_bytes = (state.memory_used_bytes or 0) - self._own_bytes()
            is_shared = foreign_bytes > EMPTY_GPU_BYTES or (state.utilization_percent or 0) > 0
        return tuple(name for name, holds in {"shared": is_shared, "restless_idle": is_restless}.items() if holds)


def sensor_period_seconds(calibration: EnergyCalibration) -> float:
    """Return the period in which a GPU's sensor is taken to look.

    That of the counter, unless it seems to be computed when it is read: its updates then tell nothing of the sensor
    behind it, whose looks are still to be spread over.
    """
    period_seconds = calibration.period_seconds or UNKNOWN_PERIOD_SECONDS
    is_computed = calibration.source == "nvml_counter" and period_seconds < SMOOTH_PERIOD_SECONDS
    return UNKNOWN_PERIOD_SECONDS if is_computed else period_seconds


def not_measured(error: MeterUnavailableError) -> EnergyReading:
    """Return the reading that says that there is none, and why."""
    return EnergyReading(status="not_measured", reason=error.reason, detail=error.detail)
