"""Do the instruments agree with themselves? Checks that need no second instrument, on the device itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from infsa_bench.errors import MeterUnavailableError
from infsa_bench.execute.instruments import Instruments
from infsa_bench.execute.messages import Finding
from infsa_bench.measure.energy.meter import EnergyMeter
from infsa_bench.measure.latency import synchronize, time_case, time_saturated, warm_up
from infsa_bench.measure.nvml import THROTTLE_REASONS
from infsa_bench.protocol import PROTOCOLS, EnergyPreset
from infsa_bench.record import EnergyReading

PROTOCOL = replace(PROTOCOLS["quick"], name="selfcheck")
CLOCK_TOLERANCE = 0.01
BUSY_SECONDS = 0.005
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
class _Work:
    """A matrix product, and how long one takes with the queue full."""

    call: Callable[[], Tensor]
    seconds: float


def check_instruments(instruments: Instruments) -> Iterator[Finding]:
    """Yield one finding a check, each ``pass`` or ``fail``; energy's only where there is a meter."""
    yield _check_clock()
    yield _check_memory(instruments)
    work = _matrix_product(instruments.device)
    yield _check_repeat(instruments, work)
    if instruments.meter is None:
        return
    try:
        yield from _check_energy(instruments, instruments.meter, work)
    except MeterUnavailableError as error:
        yield _finding("energy meter", False, f"{error.reason}: {error.detail}")


def _check_clock() -> Finding:
    """Time a call that takes a known time: it spins on another clock until that has passed."""

    def spin() -> Tensor:
        end = time.monotonic() + BUSY_SECONDS
        while time.monotonic() < end:
            pass
        return torch.zeros(1)

    timings = time_case(spin, replace(PROTOCOL, timed_iterations=100, max_timed_seconds=None), torch.device("cpu"))
    median = statistics.median(timings.latencies_seconds)
    error = median / BUSY_SECONDS - 1
    return _finding("clock", abs(error) <= CLOCK_TOLERANCE, f"a call of 5 ms takes {median * 1e3:.3f} ms")


def _check_memory(instruments: Instruments) -> Finding:
    instruments.peak_memory.reset()
    before = instruments.peak_memory.read().allocated_bytes
    block = torch.ones(ALLOCATED_BYTES, dtype=torch.uint8, device=instruments.device)
    after = instruments.peak_memory.read().allocated_bytes
    del block
    if before is None or after is None:
        return _finding("memory", False, "the peak cannot be read")
    error = (after - before) / ALLOCATED_BYTES - 1
    return _finding("memory", abs(error) <= MEMORY_TOLERANCE, f"a block of 256 MiB adds {(after - before) / 2**20:.1f}")


def _matrix_product(device: torch.device) -> _Work:
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def multiply() -> Tensor:
        return left @ right

    end = time.monotonic() + (WARMING_SECONDS if device.type == "cuda" else 0.0)
    warm_up(multiply, PROTOCOL, device)
    while time.monotonic() < end:
        multiply()
        synchronize(device)
    return _Work(call=multiply, seconds=_saturated(multiply, device))


def _saturated(call: Callable[[], Tensor], device: torch.device) -> float:
    return statistics.median(time_saturated(call, PROTOCOL, device).seconds)


def _change(work: _Work, device: torch.device, inside: Callable[[], AbstractContextManager[None]]) -> float:
    """Return how much longer the work takes inside of something, by alternating medians."""
    plain, changed = [], []
    for _ in range(ALTERNATIONS):
        plain.append(_saturated(work.call, device))
        with inside():
            changed.append(_saturated(work.call, device))
    return statistics.median(changed) / statistics.median(plain) - 1


def _check_repeat(instruments: Instruments, work: _Work) -> Finding:
    """A against A: the same work twice is the same time twice."""
    change = _change(work, instruments.device, nullcontext)
    return _finding("repeat", abs(change) <= REPEAT_TOLERANCE, f"the same work again: {change:+.2%}")


def _check_energy(instruments: Instruments, meter: EnergyMeter, work: _Work) -> Iterator[Finding]:
    calibration = meter.calibrate()
    load = instruments.load(work.call, work.seconds)
    idle = "unknown" if calibration.idle_watts is None else f"{calibration.idle_watts:.1f} W"
    is_steady = calibration.idle_watts is not None and "shared" not in calibration.doubts
    yield _finding(
        "idle power", is_steady, f"{idle} over {calibration.idle_seconds:.0f} s; doubts: {calibration.doubts}"
    )

    def read(seconds: float) -> EnergyReading:
        preset = EnergyPreset(name="selfcheck", trials=3, window_seconds=seconds, segments=8)
        return meter.read(load, work.seconds, preset, preset.trials, limit_seconds=None).reading

    short, long = read(SHORT_SECONDS), read(LONG_SECONDS)
    for reading in (short, long):
        if reading.status == "not_measured":
            yield _finding("energy meter", False, f"{reading.reason}: {reading.detail}")
            return
    once, twice = _joules(short), _joules(long)
    ratio = 2 * twice / once
    is_linear = abs(ratio / 2 - 1) <= LINEARITY_TOLERANCE
    yield _finding("linearity", is_linear, f"twice the iterations take {ratio:.3f} times the energy")
    unaligned = meter.watch_unaligned(load, UNALIGNED_SECONDS)
    if unaligned is not None:
        gap = unaligned.joules / unaligned.iterations / twice - 1
        allowed = unaligned.edge_seconds / unaligned.seconds + UNALIGNED_TOLERANCE
        detail = f"two plain readings {UNALIGNED_SECONDS:.0f} s apart differ by {gap:+.2%}, allowed {allowed:.2%}"
        yield _finding("edges", abs(gap) <= allowed, detail)
    slowdown = _change(work, instruments.device, meter.observing)
    yield _finding(
        "sampler", abs(slowdown) <= SAMPLER_TOLERANCE, f"watching changes the work's time by {slowdown:+.2%}"
    )
    state = instruments.gpu.state() if instruments.gpu else None
    reasons = set(state.event_reasons or ()) & THROTTLE_REASONS if state else set()
    seen = sorted(reasons | {reason for trial in long.trials for reason in trial.throttle_reasons})
    yield _finding("throttling", not seen, ", ".join(seen) or "none seen under load")


def _joules(reading: EnergyReading) -> float:
    return statistics.mean(trial.joules_per_iteration for trial in reading.trials)


def _finding(name: str, is_passed: bool, detail: str) -> Finding:
    return Finding(name=f"check: {name}", verdict="pass" if is_passed else "fail", detail=detail)
