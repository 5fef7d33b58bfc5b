"""The counter's meter where its parts matter; whole readings are in test_energy_meter."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise
from pathlib import Path

import pytest
from fake_nvml import CounterMode, FakeNvml
from virtual_board import OWN_PID, SquareWave, VirtualClock

from infsa_bench.errors import MeterUnavailableError
from infsa_bench.measure.energy.clock import MonotonicClock
from infsa_bench.measure.energy.counter import NvmlCounter
from infsa_bench.measure.energy.load import HostLoad, Idle
from infsa_bench.measure.energy.observer import DirectObserver
from infsa_bench.measure.energy.observing_process import ProcessObserver
from infsa_bench.measure.nvml import Gpu


def counter_of(fake: FakeNvml) -> tuple[NvmlCounter, VirtualClock]:
    clock = VirtualClock(fake)
    gpu = Gpu.find(fake.device(0).uuid, None)
    return NvmlCounter(gpu, clock, DirectObserver(gpu, clock, OWN_PID)), clock


def test_updates_are_a_period_apart_and_two_at_least(fake_nvml: FakeNvml) -> None:
    counter, clock = counter_of(fake_nvml)
    edges = counter.updates(Idle(clock), 1.0)
    assert len(edges) in (11, 12)
    assert all(last.ns - first.ns == pytest.approx(1e8, abs=1e6) for first, last in pairwise(edges))
    assert len(counter.updates(Idle(clock), 0.0)) == 2


def test_a_counter_that_stands_still_is_not_waited_for_long(fake_nvml: FakeNvml) -> None:
    counter, clock = counter_of(fake_nvml)
    fake_nvml.device(0).counter_mode = CounterMode.FROZEN
    begin_ns = clock.now_ns()
    with pytest.raises(MeterUnavailableError) as failure:
        counter.updates(Idle(clock), 3.0)
    assert failure.value.reason == "counter_frozen"
    assert clock.now_ns() - begin_ns < 2e9


def test_the_load_is_over_whatever_happens(fake_nvml: FakeNvml) -> None:
    """A counter that freezes under load: the board is back at idle, no iteration goes on."""
    counter, _ = counter_of(fake_nvml)
    calibration = counter.calibrate_idle()
    fake_nvml.device(0).counter_mode = CounterMode.FROZEN
    load = SquareWave(fake_nvml, 0.01)
    with pytest.raises(MeterUnavailableError):
        counter.calibrate_under_load(load, calibration)
    before_ns = fake_nvml.now_ns
    fake_nvml.advance_ns(1_000_000_000)
    assert fake_nvml.energy_joules(before_ns, fake_nvml.now_ns) == pytest.approx(fake_nvml.device(0).idle_watts)


def test_calls_that_block_do_not_blur_the_period(
    fake_nvml: FakeNvml, fake_nvml_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In real time: each call keeps the host for three periods; the observing process sees every update."""
    fake_nvml.reset(virtual=False)
    fake_nvml.device(0).period_ns = fake_nvml.device(0).window_ns = 20_000_000
    for name, value in fake_nvml.environment(fake_nvml_library).items():
        monkeypatch.setenv(name, value)
    clock = MonotonicClock()
    gpu = Gpu.find(fake_nvml.device(0).uuid, None)
    observer = ProcessObserver(gpu, clock)
    try:
        load = HostLoad(lambda: time.sleep(0.06), clock)
        load.begin()
        edges = NvmlCounter(gpu, clock, observer).updates(load, 0.6)
    finally:
        observer.close()
    period_seconds = statistics.median((last.ns - first.ns) / 1e9 for first, last in pairwise(edges))
    assert period_seconds == pytest.approx(0.02, rel=0.1)
