"""Do the instruments agree with themselves? Checks that need no second instrument, on the device itself.

Each ``judge_`` function says from numbers alone whether a check is passed; the rest takes these numbers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from infsa_bench.energy_plan import EnergyPreset, TrialShare
from infsa_bench.errors import MeterUnavailableError
from infsa_bench.execute.instruments import Instruments
from infsa_bench.execute.messages import Finding
from infsa_bench.measure.energy.counter import LEAST_UNALIGNED_PERIODS
from infsa_bench.measure.energy.meter import EnergyMeter
from infsa_bench.measure.latency import synchronize, time_case, time_saturated, warm_up
from infsa_bench.measure.nvml import THROTTLE_REASONS
from infsa_bench.protocol import PROTOCOLS
from infsa_bench.record import EnergyCalibration, EnergyReading, EnergyWindow

PROTOCOL = replace(PROTOCOLS["quick"], name="selfcheck")
CLOCK_TOLERANCE = 0.01
BUSY_SECONDS = 0.005
BUSY_CALLS = 100
ALLOCATED_BYTES = 256 * 2**20
MEMORY_TOLERANCE = 0.05
REPEAT_TOLERANCE = 0.02
SAMPLER_TOLERANCE = 0.01
LINEARITY_TOLERANCE = 0.02
UNALIGNED_SECONDS = 10.0
UNALIGNED_TOLERANCE = 0.01
"""Beside what the counter's steps explain: the two are taken one after the other, while the board warms."""

WARMING_SECONDS = 20.0
"""A GPU at its power limit changes its clocks by a percent or two until it is warm."""

ALTERNATIONS = 3
SHORT_SECONDS, LONG_SECONDS = 2.0, 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Something to run again and again; ``seconds`` times anew what one call takes with the queue full."""

    call: Callable[[], Tensor]
    seconds: Callable[[], float]


def check_instruments(
    instruments: Instruments,
    work: Work | None = None,
    *,
    clock: Callable[[], int] = time.perf_counter_ns,
    other_clock: Callable[[], int] = time.monotonic_ns,
) -> Iterator[Finding]:
    """Yield one finding a check, each ``pass`` or ``fail``; energy's only where there is a meter.

    ``work`` is a large matrix product if not given; both clocks are in nanoseconds.
    """
    yield _check_clock(clock, other_clock)
    yield _check_memory(instruments)
    if work is None:
        work = _matrix_product(instruments.device)
    yield judge_repeat(_change(work, nullcontext))
    if instruments.meter is None:
        return
    try:
        yield from _check_energy(instruments, instruments.meter, work)
    except MeterUnavailableError as error:
        yield _finding("energy meter", False, f"{error.reason}: {error.detail}")


def judge_clock(seconds: float) -> Finding:
    """Judge what a call was timed at that takes BUSY_SECONDS by another clock."""
    is_passed = abs(seconds / BUSY_SECONDS - 1) <= CLOCK_TOLERANCE
    return _finding("clock", is_passed, f"a call of {BUSY_SECONDS * 1e3:.0f} ms takes {seconds * 1e3:.3f} ms")


def judge_memory(before_bytes: int | None, after_bytes: int | None) -> Finding:
    """Judge by how much a block of ALLOCATED_BYTES raised the peak."""
    if before_bytes is None or after_bytes is None:
        return _finding("memory", False, "the peak cannot be read")
    added_bytes = after_bytes - before_bytes
    is_passed = abs(added_bytes / ALLOCATED_BYTES - 1) <= MEMORY_TOLERANCE
    block, added = (f"{size / 2**20:.1f} MiB" for size in (ALLOCATED_BYTES, added_bytes))
    return _finding("memory", is_passed, f"a block of {block} adds {added}")


def judge_repeat(change: float) -> Finding:
    """Judge A against A: the same work twice is the same time twice."""
    return _finding("repeat", abs(change) <= REPEAT_TOLERANCE, f"the same work again: {change:+.2%}")


def judge_idle(calibration: EnergyCalibration) -> Finding:
    """Judge whether the device without load drew a known and steady power, and nobody else's."""
    idle = "unknown" if calibration.idle_watts is None else f"{calibration.idle_watts:.1f} W"
    doubts = ", ".join(calibration.doubts) or "none"
    is_steady = calibration.idle_watts is not None and not {"shared", "restless_idle"}.intersection(calibration.doubts)
    return _finding("idle power", is_steady, f"{idle} over {calibration.idle_seconds:.0f} s; doubts: {doubts}")


def judge_linearity(short_joules: float, long_joules: float) -> Finding:
    """Judge joules per iteration of short windows and of windows with twice the iterations."""
    ratio = long_joules / short_joules
    detail = f"twice the iterations take {2 * ratio:.3f} times the energy"
    return _finding("linearity", abs(ratio - 1) <= LINEARITY_TOLERANCE, detail)


def judge_edges(aligned_joules: float, unaligned: EnergyWindow) -> Finding:
    """Judge joules per iteration between updates of the counter against those between two plain readings."""
    gap = unaligned.joules / unaligned.iterations / aligned_joules - 1
    allowed = unaligned.edge_seconds / unaligned.seconds + UNALIGNED_TOLERANCE
    detail = f"two plain readings {unaligned.seconds:.0f} s apart differ by {gap:+.2%}, allowed {allowed:.2%}"
    return _finding("edges", abs(gap) <= allowed, detail)


def judge_polling(plain: EnergyWindow, polled: EnergyWindow) -> Finding:
    """Judge a window while the counter was read all the time against one while it was left alone."""
    energy_gap = polled.joules / polled.iterations / (plain.joules / plain.iterations) - 1
    time_gap = polled.seconds / polled.iterations / (plain.seconds / plain.iterations) - 1
    steps = sum(window.edge_seconds / window.seconds for window in (plain, polled))
    allowed = steps + UNALIGNED_TOLERANCE
    is_passed = abs(energy_gap) <= allowed and abs(time_gap) <= SAMPLER_TOLERANCE
    gaps = f"an iteration's energy by {energy_gap:+.2%}, allowed {allowed:.2%}, and its time by {time_gap:+.2%}"
    return _finding("polling", is_passed, f"reading the counter all the time changes {gaps}")


def judge_sampler(change: float) -> Finding:
    """Judge how much longer the work takes while it is watched."""
    detail = f"watching changes the work's time by {change:+.2%}"
    return _finding("sampler", abs(change) <= SAMPLER_TOLERANCE, detail)


def judge_throttling(reasons: Collection[str]) -> Finding:
    """Judge what held the clocks back; a power cap at full load is normal."""
    seen = sorted(THROTTLE_REASONS.intersection(reasons))
    return _finding("throttling", not seen, ", ".join(seen) or "none seen under load")


def _check_clock(clock: Callable[[], int], other_clock: Callable[[], int]) -> Finding:
    """Time a call that takes a known time: it spins on another clock until that has passed."""

    def spin() -> Tensor:
        end_ns = other_clock() + round(BUSY_SECONDS * 1e9)
        while other_clock() < end_ns:
            pass
        return torch.zeros(1)

    protocol = replace(PROTOCOL, timed_iterations=BUSY_CALLS, max_timed_seconds=None)
    timings = time_case(spin, protocol, torch.device("cpu"), clock=clock)
    return judge_clock(statistics.median(timings.latencies_seconds))


def _check_memory(instruments: Instruments) -> Finding:
    instruments.peak_memory.reset()
    before = instruments.peak_memory.read().allocated_bytes
    block = torch.ones(ALLOCATED_BYTES, dtype=torch.uint8, device=instruments.device)
    after = instruments.peak_memory.read().allocated_bytes
    del block
    return judge_memory(before, after)


def _matrix_product(device: torch.device) -> Work:
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def multiply() -> Tensor:
        return left @ right

    end = time.monotonic() + (WARMING_SECONDS if device.type == "cuda" else 0.0)
    warm_up(multiply, PROTOCOL, device)
    while time.monotonic() < end:
        multiply()
        synchronize(device)
    return Work(call=multiply, seconds=lambda: statistics.median(time_saturated(multiply, PROTOCOL, device).seconds))


def _change(work: Work, inside: Callable[[], AbstractContextManager[None]]) -> float:
    """Return how much longer the work takes inside of something, by alternating medians."""
    plain, changed = [], []
    for _ in range(ALTERNATIONS):
        plain.append(work.seconds())
        with inside():
            changed.append(work.seconds())
    return statistics.median(changed) / statistics.median(plain) - 1


def _check_energy(instruments: Instruments, meter: EnergyMeter, work: Work) -> Iterator[Finding]:
    yield judge_idle(meter.calibrate())
    iteration_seconds = work.seconds()
    load = instruments.load(work.call, iteration_seconds)

    def read(seconds: float) -> EnergyReading:
        preset = EnergyPreset(name="selfcheck", trials=3, window_seconds=seconds, segments=8)
        reading = meter.read(load, iteration_seconds, preset, TrialShare.all_of(preset.trials)).reading
        if reading.status == "not_measured":
            raise MeterUnavailableError(reading.reason or "unknown", reading.detail or "no detail")
        return reading

    short, long = read(SHORT_SECONDS), read(LONG_SECONDS)
    short_joules, long_joules = _joules(short), _joules(long)
    yield judge_linearity(short_joules, long_joules)
    period_seconds = (meter.calibration.period_seconds if meter.calibration else None) or 0.0
    # A slow counter needs more time until its steps count for little.
    apart_seconds = max(UNALIGNED_SECONDS, LEAST_UNALIGNED_PERIODS * period_seconds)
    plain = meter.watch_unaligned(load, apart_seconds)
    if plain is not None:
        yield judge_edges(long_joules, plain)
        with meter.observing():
            polled = meter.watch_unaligned(load, apart_seconds)
        assert polled is not None
        yield judge_polling(plain, polled)
    yield judge_sampler(_change(work, meter.observing))
    state = instruments.gpu.state() if instruments.gpu else None
    reasons = set(state.event_reasons or ()) if state else set()
    yield judge_throttling(reasons.union(*(trial.throttle_reasons for trial in short.trials + long.trials)))


def _joules(reading: EnergyReading) -> float:
    return statistics.mean(trial.joules_per_iteration for trial in reading.trials)


def _finding(name: str, is_passed: bool, detail: str) -> Finding:
    return Finding(name=f"check: {name}", verdict="pass" if is_passed else "fail", detail=detail)
