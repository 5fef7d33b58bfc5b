"""The fake NVML itself: what its sensor shows of a power trace, its modes and errors, one state for many processes."""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_nvml as fake
import pynvml
import pytest
from fake_nvml import CounterMode, FakeNvml, PowerMode

MS = 1_000_000
SECOND = 1_000_000_000
ENERGY, AVERAGE, INSTANT = (
    pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION,
    pynvml.NVML_FI_DEV_POWER_AVERAGE,
    pynvml.NVML_FI_DEV_POWER_INSTANT,
)


def board(index: int = 0) -> Any:
    return pynvml.nvmlDeviceGetHandleByIndex(index)


def counter_mj(index: int = 0) -> int:
    return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(board(index)))


def field(identifier: int, scope: int = 0) -> tuple[int, int | None]:
    """The NVML return code and the value of a field."""
    (value,) = pynvml.nvmlDeviceGetFieldValues(board(), [(identifier, scope)])
    if value.nvmlReturn != pynvml.NVML_SUCCESS:
        return value.nvmlReturn, None
    if value.valueType == pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG:
        return value.nvmlReturn, value.value.ullVal
    assert value.valueType == pynvml.NVML_VALUE_TYPE_UNSIGNED_INT
    return value.nvmlReturn, value.value.uiVal


def square_wave(control: FakeNvml, high: float, low: float, period_ns: int, duty_ns: int, until_ns: int) -> None:
    for begin in range(0, until_ns, period_ns):
        control.set_power(high, at_ns=begin)
        control.set_power(low, at_ns=begin + duty_ns)


# ---- the sensor ----


def test_the_counter_ticks_each_period_and_by_the_power(fake_nvml: FakeNvml) -> None:
    fake_nvml.set_power(200.0)
    seen = []
    for _ in range(7):
        seen.append((fake_nvml.now_ns // MS, counter_mj(), field(INSTANT)[1]))
        fake_nvml.advance_ns(50 * MS)
    # The tick at 0 looks back at the idle board and has no interval to add.
    assert seen == [
        (0, 0, 60_000),
        (50, 0, 60_000),
        (100, 20_000, 200_000),
        (150, 20_000, 200_000),
        (200, 40_000, 200_000),
        (250, 40_000, 200_000),
        (300, 60_000, 200_000),
    ]


def test_a_tick_comes_exactly_at_its_time(fake_nvml: FakeNvml) -> None:
    device = fake_nvml.device(0)
    device.phase_ns, device.period_ns, device.window_ns = 37 * MS, 20 * MS, 20 * MS
    fake_nvml.set_power(100.0)
    fake_nvml.now_ns = 57 * MS - 1
    assert counter_mj() == 0
    assert (device.ticks, device.last_tick_ns, device.next_tick_ns) == (1, 37 * MS, 57 * MS)
    fake_nvml.advance_ns(1)
    assert counter_mj() == 2_000


def test_before_the_first_tick_the_board_is_idle(fake_nvml: FakeNvml) -> None:
    device = fake_nvml.device(0)
    device.phase_ns, device.gain = 10 * MS, 0.5
    fake_nvml.set_power(300.0)
    assert counter_mj() == 0
    assert pynvml.nvmlDeviceGetPowerUsage(board()) == 30_000
    assert device.ticks == 0


def test_a_step_inside_the_window_counts_by_its_share(fake_nvml: FakeNvml) -> None:
    fake_nvml.set_power(100.0, at_ns=0)
    fake_nvml.set_power(300.0, at_ns=125 * MS)
    fake_nvml.now_ns = 200 * MS
    assert field(INSTANT) == (0, 250_000)  # a quarter at 100 W, three at 300 W
    assert field(ENERGY) == (0, 10_000 + 25_000)


def test_steps_at_a_tick_belong_to_what_follows(fake_nvml: FakeNvml) -> None:
    """A tick already computed must not depend on what the test writes at the same moment."""
    fake_nvml.set_power(100.0)
    fake_nvml.advance_ns(100 * MS)
    assert counter_mj() == 10_000
    fake_nvml.set_power(500.0)
    assert counter_mj() == 10_000
    fake_nvml.advance_ns(100 * MS)
    assert counter_mj() == 60_000


def test_several_steps_at_one_moment_leave_the_last(fake_nvml: FakeNvml) -> None:
    for watts in (500.0, 900.0, 100.0):
        fake_nvml.set_power(watts)
    fake_nvml.advance_ns(100 * MS)
    assert counter_mj() == 10_000


def test_future_steps_wait_for_their_time(fake_nvml: FakeNvml) -> None:
    square_wave(fake_nvml, 400.0, 100.0, 200 * MS, 100 * MS, 10 * SECOND)
    fake_nvml.advance_ns(100 * MS)
    assert counter_mj() == 40_000
    fake_nvml.advance_ns(100 * MS)
    assert counter_mj() == 50_000
    fake_nvml.now_ns = 10 * SECOND
    assert counter_mj() == 2_500_000


def test_asking_often_or_rarely_gives_the_same(fake_nvml: FakeNvml) -> None:
    def run(query_every_ns: int) -> list[int]:
        fake_nvml.reset()
        device = fake_nvml.device(0)
        device.window_ns, device.jitter_sd = 33 * MS, 0.05
        square_wave(fake_nvml, 400.0, 100.0, 70 * MS, 30 * MS, 6 * SECOND)
        seen = []
        for now in range(0, 6 * SECOND + 1, query_every_ns):
            fake_nvml.now_ns = now
            value = counter_mj()
            if now % SECOND == 0:
                seen.append(value)
        return seen

    assert run(MS) == run(SECOND)


def test_a_short_window_sees_nothing_of_a_load_that_hides_from_it(fake_nvml: FakeNvml) -> None:
    """400 W for the first 75 ms of each period, 100 W in the 25 ms that the sensor looks at."""
    device = fake_nvml.device(0)
    device.window_ns = 25 * MS
    square_wave(fake_nvml, 400.0, 100.0, 100 * MS, 75 * MS, 10 * SECOND)
    fake_nvml.now_ns = 10 * SECOND
    assert counter_mj() == 1_000_000
    assert fake_nvml.energy_joules(0, 10 * SECOND) == pytest.approx(3_250.0)


def test_a_window_as_long_as_the_period_misses_nothing(fake_nvml: FakeNvml) -> None:
    square_wave(fake_nvml, 400.0, 100.0, 100 * MS, 75 * MS, 10 * SECOND)
    fake_nvml.now_ns = 10 * SECOND
    assert counter_mj() == 3_250_000


def test_a_window_longer_than_the_period_overlaps(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).window_ns = 1 * SECOND
    fake_nvml.set_power(160.0, at_ns=0)
    fake_nvml.now_ns = 300 * MS
    assert field(INSTANT) == (0, 90_000)  # 0.7 s at 60 W before the step, 0.3 s at 160 W


def test_no_window_reads_the_power_of_the_moment(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).window_ns = 0
    square_wave(fake_nvml, 400.0, 100.0, 100 * MS, 99 * MS, SECOND)
    fake_nvml.now_ns = SECOND
    assert field(INSTANT) == (0, 100_000)


def test_the_gain_scales_power_and_energy(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).gain = 0.95
    fake_nvml.set_power(200.0)
    fake_nvml.now_ns = 10 * SECOND
    assert counter_mj() == 1_900_000
    assert pynvml.nvmlDeviceGetPowerUsage(board()) == 190_000
    assert fake_nvml.energy_joules(0, 10 * SECOND) == pytest.approx(1_900.0)


def ticks(control: FakeNvml, number: int) -> Iterator[int]:
    """The times of the next ticks, each as the virtual time comes to it."""
    device = control.device(0)
    counter_mj()
    for _ in range(number):
        control.now_ns = device.next_tick_ns
        counter_mj()
        yield device.last_tick_ns


def test_jitter_has_the_asked_spread_and_does_not_drift(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).jitter_sd = 0.02
    times = list(ticks(fake_nvml, 5_000))
    intervals = [(after - before) / (100 * MS) for before, after in itertools.pairwise(times)]
    assert statistics.mean(intervals) == pytest.approx(1.0, abs=4 * 0.02 / 5_000**0.5)
    assert statistics.stdev(intervals) == pytest.approx(0.02, rel=0.05)
    within_one_sd = sum(abs(interval - 1.0) < 0.02 for interval in intervals) / len(intervals)
    assert within_one_sd == pytest.approx(0.683, abs=0.03)
    neighbours = statistics.correlation(intervals[:-1], intervals[1:])
    assert abs(neighbours) < 0.06


def test_jitter_never_turns_time_back(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).jitter_sd = 3.0
    times = list(ticks(fake_nvml, 500))
    assert all(after - before >= 10 * MS for before, after in itertools.pairwise(times))


def test_jitter_follows_from_the_seed(fake_nvml: FakeNvml) -> None:
    def run(seed: int) -> list[int]:
        fake_nvml.reset()
        fake_nvml.device(0).jitter_sd, fake_nvml.device(0).seed = 0.02, seed
        return list(ticks(fake_nvml, 50))

    assert run(7) == run(7)
    assert run(7) != run(8)


@pytest.mark.parametrize("seed", range(5))
def test_counter_is_the_truth_of_each_window_over_each_interval(fake_nvml: FakeNvml, seed: int) -> None:
    """Any trace and sensor: the C code against the integral that Python works out on its own."""
    chance = random.Random(seed)
    device = fake_nvml.device(0)
    device.seed, device.jitter_sd, device.gain = seed, chance.choice([0.0, 0.1]), chance.uniform(0.9, 1.1)
    device.period_ns, device.phase_ns = chance.randrange(5 * MS, 150 * MS), chance.randrange(100 * MS)
    device.window_ns = chance.randrange(1, 200 * MS)
    at = 0
    while at < 20 * SECOND:
        at += int(chance.expovariate(1 / (15 * MS)))
        fake_nvml.set_power(chance.uniform(50, 700), at_ns=at)
    expected_mj, before = 0.0, None
    for tick in ticks(fake_nvml, 100):
        watts = fake_nvml.energy_joules(tick - device.window_ns, tick) / (device.window_ns * 1e-9)
        assert field(INSTANT)[1] == pytest.approx(watts * 1e3, abs=0.51)
        if before is not None:
            expected_mj += watts * (tick - before) * 1e-6
        assert device.energy_mj == pytest.approx(expected_mj)
        assert counter_mj() == int(device.energy_mj + 1e-6)
        before = tick


def test_boards_tick_and_draw_on_their_own(fake_nvml: FakeNvml) -> None:
    fake_nvml.reset(devices=2)
    fake_nvml.device(1).period_ns = fake_nvml.device(1).window_ns = 30 * MS
    fake_nvml.set_power(200.0, device=0)
    fake_nvml.set_power(100.0, device=1)
    fake_nvml.now_ns = 350 * MS
    assert (counter_mj(0), counter_mj(1)) == (60_000, 33_000)
    assert fake_nvml.energy_joules(0, SECOND, device=1) == pytest.approx(100.0)


def test_averaged_power_is_the_mean_of_recent_readings(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).average_ns = SECOND
    fake_nvml.set_power(160.0, at_ns=2 * SECOND)
    fake_nvml.now_ns = 2 * SECOND + 350 * MS
    assert field(INSTANT) == (0, 160_000)
    assert field(AVERAGE) == (0, 90_000)  # three of ten readings
    assert pynvml.nvmlDeviceGetPowerUsage(board()) == 90_000
    fake_nvml.now_ns = 3 * SECOND
    assert field(AVERAGE) == (0, 160_000)


def test_an_average_over_no_stretch_is_the_last_reading(fake_nvml: FakeNvml) -> None:
    fake_nvml.set_power(160.0)
    fake_nvml.now_ns = 100 * MS
    assert field(AVERAGE) == field(INSTANT) == (0, 160_000)


def test_an_average_longer_than_the_memory_of_readings_is_an_error(fake_nvml: FakeNvml) -> None:
    device = fake_nvml.device(0)
    device.period_ns, device.average_ns = MS, 10 * SECOND
    fake_nvml.now_ns = 5 * SECOND
    with pytest.raises(pynvml.NVMLError_Unknown):
        pynvml.nvmlDeviceGetPowerUsage(board())


def test_a_query_takes_virtual_time_and_is_answered_half_way(fake_nvml: FakeNvml) -> None:
    fake_nvml.call_ns = 2 * MS
    handle = board()
    assert fake_nvml.now_ns == 2 * MS
    fake_nvml.set_power(200.0)
    fake_nvml.now_ns = 99 * MS - 1
    before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    assert fake_nvml.now_ns == 101 * MS - 1
    assert before == 0
    fake_nvml.reset()
    fake_nvml.call_ns = 2 * MS
    fake_nvml.set_power(200.0)
    fake_nvml.now_ns = 99 * MS
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) == 20_000


def test_more_steps_than_the_ring_holds_fail_loudly(fake_nvml: FakeNvml) -> None:
    fake_nvml.advance_ns(100 * MS)
    assert counter_mj() == 6_000
    for step in range(fake.STEP_CAPACITY):
        fake_nvml.set_power(100.0, at_ns=100 * MS + step * 1_000)
    fake_nvml.now_ns = 200 * MS
    assert counter_mj() == 16_000
    for step in range(fake.STEP_CAPACITY + 1):
        fake_nvml.set_power(100.0, at_ns=200 * MS + step * 1_000)
    assert counter_mj() == 16_000  # no tick is due, nothing is missing yet
    fake_nvml.now_ns = 300 * MS
    for ask in (counter_mj, lambda: field(ENERGY), lambda: field(INSTANT)):
        with pytest.raises(pynvml.NVMLError_Unknown):
            ask()
    # The test's own copy has them all.
    assert fake_nvml.energy_joules(0, 300 * MS) == pytest.approx(26.0)


def test_a_ring_overrun_before_the_first_query_fails_loudly(fake_nvml: FakeNvml) -> None:
    for step in range(fake.STEP_CAPACITY + 1):
        fake_nvml.set_power(100.0, at_ns=0 if step == 0 else SECOND)
    with pytest.raises(pynvml.NVMLError_Unknown):
        counter_mj()


def test_a_window_that_reaches_back_past_the_ring_fails_loudly(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).window_ns = 10 * SECOND
    for part in range(3):
        for step in range(30_000):
            fake_nvml.set_power(100.0, at_ns=part * SECOND + step * 1_000)
        fake_nvml.now_ns = (part + 1) * SECOND
        if part < 2:
            counter_mj()
    with pytest.raises(pynvml.NVMLError_Unknown):
        counter_mj()


def test_a_query_is_cheap(fake_nvml: FakeNvml) -> None:
    handle = board()
    for step in range(10_000):
        fake_nvml.set_power(float(step % 300), at_ns=step * MS)
    begin = time.perf_counter()
    for now in range(10_000):
        fake_nvml.now_ns = now * MS
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    assert (time.perf_counter() - begin) / 10_000 < 20e-6


# ---- the truth ----


def test_energy_between_any_two_moments(fake_nvml: FakeNvml) -> None:
    fake_nvml.set_power(100.0, at_ns=1 * SECOND)
    fake_nvml.set_power(300.0, at_ns=2 * SECOND)
    fake_nvml.set_power(50.0, at_ns=4 * SECOND)
    for begin, end, joules in [
        (0.0, 1.0, 60.0),
        (-5.0, 0.0, 300.0),
        (0.5, 1.5, 30.0 + 50.0),
        (1.0, 2.0, 100.0),
        (1.25, 1.75, 50.0),
        (0.0, 10.0, 60.0 + 100.0 + 600.0 + 300.0),
        (9.0, 10.0, 50.0),
        (2.0, 2.0, 0.0),
    ]:
        measured = fake_nvml.energy_joules(int(begin * SECOND), int(end * SECOND))
        assert measured == pytest.approx(joules, abs=1e-9), (begin, end)
    with pytest.raises(ValueError, match="comes before"):
        fake_nvml.energy_joules(1, 0)


def test_energy_without_steps_is_idle(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).idle_watts = 80.0
    assert fake_nvml.energy_joules(0, 2 * SECOND) == pytest.approx(160.0)


def test_steps_come_in_order(fake_nvml: FakeNvml) -> None:
    fake_nvml.set_power(100.0, at_ns=50 * MS)
    with pytest.raises(ValueError, match="before the last one"):
        fake_nvml.set_power(100.0, at_ns=49 * MS)
    fake_nvml.now_ns = SECOND
    counter_mj()
    with pytest.raises(ValueError, match="before a tick"):
        fake_nvml.set_power(100.0, at_ns=999 * MS)
    fake_nvml.set_power(100.0, at_ns=SECOND)


def test_virtual_time_only_goes_forward(fake_nvml: FakeNvml) -> None:
    fake_nvml.now_ns = 5
    with pytest.raises(ValueError, match="go back"):
        fake_nvml.now_ns = 4
    fake_nvml.reset(virtual=False)
    with pytest.raises(ValueError, match="virtual"):
        fake_nvml.now_ns = 2**62


# ---- modes of counter and power ----


def test_a_counter_that_is_not_supported(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).counter_mode = CounterMode.NOT_SUPPORTED
    with pytest.raises(pynvml.NVMLError_NotSupported):
        counter_mj()
    assert field(ENERGY) == (pynvml.NVML_ERROR_NOT_SUPPORTED, None)
    assert field(INSTANT) == (0, 60_000)


def test_a_frozen_counter_keeps_its_value_and_thaws(fake_nvml: FakeNvml) -> None:
    fake_nvml.set_power(100.0)
    fake_nvml.now_ns = SECOND
    fake_nvml.device(0).counter_mode = CounterMode.FROZEN
    assert counter_mj() == 100_000
    fake_nvml.now_ns = 2 * SECOND
    assert counter_mj() == 100_000
    assert field(ENERGY) == (0, 100_000)
    assert field(INSTANT) == (0, 100_000)
    fake_nvml.device(0).counter_mode = CounterMode.NORMAL
    assert counter_mj() == 200_000


@pytest.mark.parametrize("ask_between", [True, False])
@pytest.mark.parametrize("reset_at_ms", [0, 1_000, 1_030])
def test_a_counter_that_starts_again(fake_nvml: FakeNvml, reset_at_ms: int, ask_between: bool) -> None:
    device = fake_nvml.device(0)
    device.counter_mode, device.reset_at_ns, device.energy_mj = CounterMode.RESETS, reset_at_ms * MS, 5e6
    fake_nvml.set_power(100.0)
    fake_nvml.now_ns = max(reset_at_ms * MS - 1, 0)
    if reset_at_ms > 0:
        assert counter_mj() == 5_000_000 + (90_000 if reset_at_ms == 1_000 else 100_000)
    if ask_between:
        fake_nvml.now_ns = reset_at_ms * MS
        assert counter_mj() == 0
    fake_nvml.now_ns = 2 * SECOND
    assert counter_mj() == (2_000 - reset_at_ms) * 100


def test_a_counter_may_start_anywhere(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).energy_mj = 2.0**40
    fake_nvml.set_power(100.0)
    fake_nvml.now_ns = SECOND
    assert counter_mj() == 2**40 + 100_000


def test_no_millijoule_is_lost_to_rounding(fake_nvml: FakeNvml) -> None:
    """As floats, a thousand times 0.1 mJ is a little less than 100 mJ."""
    fake_nvml.device(0).idle_watts = 0.001
    fake_nvml.now_ns = 100 * SECOND
    assert counter_mj() == 100
    assert 99.999 < fake_nvml.device(0).energy_mj < 100.0


def test_power_that_is_not_supported(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).power_mode = PowerMode.NOT_SUPPORTED
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetPowerUsage(board())
    assert field(AVERAGE) == field(INSTANT) == (pynvml.NVML_ERROR_NOT_SUPPORTED, None)
    assert field(ENERGY) == (0, 0)


def test_power_by_the_old_call_only(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).power_mode = PowerMode.USAGE_ONLY
    assert pynvml.nvmlDeviceGetPowerUsage(board()) == 60_000
    assert field(AVERAGE) == field(INSTANT) == (pynvml.NVML_ERROR_NOT_SUPPORTED, None)


def test_scopes(fake_nvml: FakeNvml) -> None:
    refused = (pynvml.NVML_ERROR_NOT_SUPPORTED, None)
    assert [field(INSTANT, scope) for scope in range(4)] == [(0, 60_000), refused, refused, refused]
    fake_nvml.device(0).module_scope_only = True
    assert [field(INSTANT, scope) for scope in range(4)] == [refused, (0, 60_000), refused, refused]
    assert [field(ENERGY, scope) for scope in range(2)] == [refused, (0, 0)]
    assert counter_mj() == 0


def test_other_fields_are_refused_one_by_one(fake_nvml: FakeNvml) -> None:
    fake_nvml.set_power(100.0)
    fake_nvml.now_ns = 100 * MS
    values = pynvml.nvmlDeviceGetFieldValues(board(), [INSTANT, 82, ENERGY])
    assert [value.nvmlReturn for value in values] == [0, pynvml.NVML_ERROR_NOT_SUPPORTED, 0]
    assert (values[0].value.uiVal, values[2].value.ullVal) == (100_000, 10_000)
    assert values[0].timestamp == 100_000
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceGetFieldValues(board(), [])


# ---- the rest of a board ----


def test_boards_are_found_by_what_they_are(fake_nvml: FakeNvml) -> None:
    fake_nvml.reset(devices=2)
    assert pynvml.nvmlDeviceGetCount() == 2
    uuids = [pynvml.nvmlDeviceGetUUID(board(index)) for index in range(2)]
    assert uuids == ["GPU-fa4e0000-0000-0000-0000-000000000000", "GPU-fa4e0000-0000-0000-0000-000000000001"]
    for index, uuid in enumerate(uuids):
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        assert pynvml.nvmlDeviceGetIndex(handle) == index
        info = pynvml.nvmlDeviceGetPciInfo(handle)
        assert info.busId == fake_nvml.device(index).pci_bus_id == f"00000000:{index + 1:02X}:00.0"
        assert (info.domain, info.bus, info.device) == (0, index + 1, 0)
        assert info.busIdLegacy == f"0000:{index + 1:02X}:00.0"
        for spelling in (info.busId, info.busIdLegacy, info.busId.lower(), f"{index + 1:02x}:00.0"):
            again = pynvml.nvmlDeviceGetHandleByPciBusId(spelling)
            assert pynvml.nvmlDeviceGetIndex(again) == index
    assert [device.uuid for device in map(fake_nvml.device, range(2))] == uuids


def test_boards_that_are_not_there(fake_nvml: FakeNvml) -> None:
    handle = board()
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetHandleByUUID("GPU-00000000-0000-0000-0000-000000000000")
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetHandleByPciBusId("00000000:7F:00.0")
    for nonsense in ("", "here", "00000000:01:00.1"):
        with pytest.raises(pynvml.NVMLError_InvalidArgument):
            pynvml.nvmlDeviceGetHandleByPciBusId(nonsense)
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        board(1)
    with pytest.raises(IndexError):
        fake_nvml.device(1)
    fake_nvml.reset(devices=0)
    assert pynvml.nvmlDeviceGetCount() == 0
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceGetName(handle)


def test_identity_can_be_changed(fake_nvml: FakeNvml) -> None:
    device = fake_nvml.device(0)
    device.uuid, device.pci_bus_id, device.vbios = "GPU-fa4e1234", "0000000A:4B:01.0", "1.2.3"
    handle = pynvml.nvmlDeviceGetHandleByUUID("GPU-fa4e1234")
    assert pynvml.nvmlDeviceGetPciInfo(handle).domain == 10
    assert pynvml.nvmlDeviceGetHandleByPciBusId("a:4b:1.0")
    assert pynvml.nvmlDeviceGetVbiosVersion(handle) == "1.2.3"


# Attributes to write, the call, and what it then answers.
Answer = tuple[dict[str, int], Callable[[Any], Any], Any]
ANSWERS: dict[str, Answer] = {
    "mig": ({"mig_mode": 1}, pynvml.nvmlDeviceGetMigMode, [1, 1]),
    "virtualization": ({"virtualization_mode": 2}, pynvml.nvmlDeviceGetVirtualizationMode, 2),
    "persistence": ({"persistence_mode": 0}, pynvml.nvmlDeviceGetPersistenceMode, 0),
    "compute mode": ({"compute_mode": 3}, pynvml.nvmlDeviceGetComputeMode, 3),
    "ecc": ({"ecc_mode": 0}, pynvml.nvmlDeviceGetEccMode, [0, 0]),
    "pstate": ({"pstate": 8}, pynvml.nvmlDeviceGetPerformanceState, 8),
    "temperature": ({"temperature": 71}, lambda board: pynvml.nvmlDeviceGetTemperature(board, 0), 71),
    "temperature v": ({"temperature": 72}, lambda board: pynvml.nvmlDeviceGetTemperatureV(board, 0), 72),
    "utilization": ({"utilization_gpu": 97}, lambda board: pynvml.nvmlDeviceGetUtilizationRates(board).gpu, 97),
    "graphics clock": ({"graphics_clock_mhz": 11}, lambda board: pynvml.nvmlDeviceGetClockInfo(board, 0), 11),
    "sm clock": ({"sm_clock_mhz": 12}, lambda board: pynvml.nvmlDeviceGetClockInfo(board, 1), 12),
    "memory clock": ({"memory_clock_mhz": 13}, lambda board: pynvml.nvmlDeviceGetClockInfo(board, 2), 13),
    "max graphics": ({"max_graphics_clock_mhz": 21}, lambda board: pynvml.nvmlDeviceGetMaxClockInfo(board, 0), 21),
    "max sm": ({"max_sm_clock_mhz": 22}, lambda board: pynvml.nvmlDeviceGetMaxClockInfo(board, 1), 22),
    "max memory": ({"max_memory_clock_mhz": 23}, lambda board: pynvml.nvmlDeviceGetMaxClockInfo(board, 2), 23),
    "enforced limit": ({"power_limit_enforced_mw": 31}, pynvml.nvmlDeviceGetEnforcedPowerLimit, 31),
    "default limit": ({"power_limit_default_mw": 32}, pynvml.nvmlDeviceGetPowerManagementDefaultLimit, 32),
    "limits": (
        {"power_limit_min_mw": 33, "power_limit_max_mw": 34},
        pynvml.nvmlDeviceGetPowerManagementLimitConstraints,
        [33, 34],
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_states_are_answered_as_written_or_refused(fake_nvml: FakeNvml, name: str) -> None:
    written, ask, answer = ANSWERS[name]
    handle = board()
    for attribute, value in written.items():
        assert getattr(fake_nvml.device(0), attribute) != value
        setattr(fake_nvml.device(0), attribute, value)
    assert ask(handle) == answer
    for attribute in written:
        setattr(fake_nvml.device(0), attribute, -1)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        ask(handle)


def test_states_that_do_not_exist(fake_nvml: FakeNvml) -> None:
    handle = board()
    for ask in (pynvml.nvmlDeviceGetClockInfo, pynvml.nvmlDeviceGetMaxClockInfo):
        with pytest.raises(pynvml.NVMLError_NotSupported):
            ask(handle, pynvml.NVML_CLOCK_VIDEO)
        with pytest.raises(pynvml.NVMLError_InvalidArgument):
            ask(handle, pynvml.NVML_CLOCK_COUNT)
    for ask in (pynvml.nvmlDeviceGetTemperature, pynvml.nvmlDeviceGetTemperatureV):
        with pytest.raises(pynvml.NVMLError_InvalidArgument):
            ask(handle, 1)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetViolationStatus(handle, pynvml.NVML_PERF_POLICY_SYNC_BOOST)
    with pytest.raises(AttributeError, match="power_draw"):
        fake_nvml.device(0).power_draw = 1


def test_reasons_and_violations(fake_nvml: FakeNvml) -> None:
    device = fake_nvml.device(0)
    device.event_reasons, device.violation_power_ns, device.violation_thermal_ns = 0x24, 5, 7
    fake_nvml.now_ns = SECOND
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(board()) == 0x24
    assert pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(board()) == 0x24
    power = pynvml.nvmlDeviceGetViolationStatus(board(), pynvml.NVML_PERF_POLICY_POWER)
    thermal = pynvml.nvmlDeviceGetViolationStatus(board(), pynvml.NVML_PERF_POLICY_THERMAL)
    assert (power.violationTime, thermal.violationTime) == (5, 7)
    assert power.referenceTime == 1_000_000


def test_memory(fake_nvml: FakeNvml) -> None:
    device = fake_nvml.device(0)
    device.memory_total_bytes, device.memory_used_bytes = 143_771 * 2**20, 2**33
    for version in (None, pynvml.nvmlMemory_v2):
        memory = pynvml.nvmlDeviceGetMemoryInfo(board(), version)
        assert (memory.total, memory.used) == (143_771 * 2**20, 2**33)
        assert memory.free == memory.total - memory.used
    with pytest.raises(pynvml.NVMLError, match="version mismatch"):
        pynvml.nvmlDeviceGetMemoryInfo(board(), 0x02000099)


@pytest.mark.parametrize("kind", ["Compute", "Graphics", "MPSCompute"])
def test_processes(fake_nvml: FakeNvml, kind: str) -> None:
    ask = getattr(pynvml, f"nvmlDeviceGet{kind}RunningProcesses")
    attribute = f"{kind.removesuffix('Compute').lower() or 'compute'}_processes"
    device = fake_nvml.device(0)
    assert ask(board()) == []
    everyone = [(100 + index, index * 2**30) for index in range(fake.MAX_PROCESSES - 1)] + [(4_000_000_000, None)]
    setattr(device, attribute, everyone)
    assert getattr(device, attribute) == everyone
    assert [(process.pid, process.usedGpuMemory) for process in ask(board())] == everyone
    others = {"compute_processes", "graphics_processes", "mps_processes"} - {attribute}
    assert [getattr(device, other) for other in others] == [[], []]
    device.hide_processes = True
    assert ask(board()) == []
    device.hide_processes = False
    setattr(device, attribute, everyone[:1])
    assert [process.pid for process in ask(board())] == [100]
    with pytest.raises(ValueError, match="at most"):
        setattr(device, attribute, [(1, 1)] * (fake.MAX_PROCESSES + 1))


def test_a_process_list_that_is_too_short_tells_the_number(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).compute_processes = [(1, 10), (2, 20), (3, 30)]
    function = pynvml.nvmlLib.nvmlDeviceGetComputeRunningProcesses_v3
    count, room = ctypes.c_uint(2), (pynvml.c_nvmlProcessInfo_v3_t * 2)()
    assert function(board(), ctypes.byref(count), room) == pynvml.NVML_ERROR_INSUFFICIENT_SIZE
    assert count.value == 3
    room = (pynvml.c_nvmlProcessInfo_v3_t * 3)()
    assert function(board(), ctypes.byref(count), room) == pynvml.NVML_SUCCESS
    assert [process.pid for process in room] == [1, 2, 3]


def test_nothing_makes_it_look_real(fake_nvml: FakeNvml) -> None:
    device = fake_nvml.device(0)
    device.name = "NVIDIA H200"
    assert pynvml.nvmlDeviceGetName(board()) == "FAKE NVIDIA H200"
    device.name = "FAKE 9000"
    assert pynvml.nvmlDeviceGetName(board()) == "FAKE 9000"
    device.name = ""
    assert pynvml.nvmlDeviceGetName(board()) == "FAKE "
    device.name = "x" * 64
    assert pynvml.nvmlDeviceGetName(board()) == "FAKE " + "x" * 64
    # All that a test could overwrite, with text of its own.
    control = fake_nvml._control
    ctypes.memset(ctypes.addressof(control.devices), ord("N"), ctypes.sizeof(control.devices))
    assert pynvml.nvmlDeviceGetName(board()).startswith("FAKE N")
    assert pynvml.nvmlSystemGetDriverVersion() == "999.fake"
    assert pynvml.nvmlSystemGetNVMLVersion() == "13.fake"


# ---- failures ----


@pytest.mark.parametrize("after_calls", [0, 3])
def test_a_failure_comes_after_so_many_calls(fake_nvml: FakeNvml, after_calls: int) -> None:
    fake_nvml.fail("nvmlDeviceGetTotalEnergyConsumption", pynvml.NVML_ERROR_GPU_IS_LOST, after_calls=after_calls)
    for _ in range(after_calls):
        counter_mj()
    for _ in range(2):
        with pytest.raises(pynvml.NVMLError_GpuIsLost):
            counter_mj()
    assert field(ENERGY) == (0, 0)
    fake_nvml.clear_failures()
    counter_mj()


def test_a_failure_may_pass(fake_nvml: FakeNvml) -> None:
    fake_nvml.fail("nvmlDeviceGetPowerUsage", pynvml.NVML_ERROR_TIMEOUT, after_calls=1, times=2)
    outcomes = []
    for _ in range(5):
        try:
            outcomes.append(pynvml.nvmlDeviceGetPowerUsage(board()))
        except pynvml.NVMLError_Timeout:
            outcomes.append(None)
    assert outcomes == [60_000, None, None, 60_000, 60_000]


def test_a_missing_function_is_injected_by_its_code(fake_nvml: FakeNvml) -> None:
    fake_nvml.fail("nvmlDeviceGetCurrentClocksEventReasons", pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        pynvml.nvmlDeviceGetCurrentClocksEventReasons(board())
    assert pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(board()) == 0


def test_a_failure_is_named_with_or_without_its_version(fake_nvml: FakeNvml) -> None:
    for name in ("nvmlDeviceGetCount", "nvmlDeviceGetCount_v2"):
        fake_nvml.fail(name, pynvml.NVML_ERROR_NO_PERMISSION)
        with pytest.raises(pynvml.NVMLError_NoPermission):
            pynvml.nvmlDeviceGetCount()
        fake_nvml.clear_failures()
    # One name at the start of another is not that other.
    fake_nvml.fail("nvmlDeviceGetTemperatureV", pynvml.NVML_ERROR_NO_PERMISSION)
    assert pynvml.nvmlDeviceGetTemperature(board(), 0) == 40
    fake_nvml.clear_failures()
    fake_nvml.fail("nvmlDeviceGetTemperature", pynvml.NVML_ERROR_NO_PERMISSION)
    assert pynvml.nvmlDeviceGetTemperatureV(board(), 0) == 40


@pytest.mark.parametrize("function", sorted(fake.FUNCTIONS - {"nvmlInitWithFlags", "nvmlShutdown"}))
def test_every_function_can_fail_and_needs_init(fake_nvml: FakeNvml, function: str) -> None:
    call = getattr(pynvml.nvmlLib, function)
    # No argument is looked at before these.
    fake_nvml.fail(function, pynvml.NVML_ERROR_IRQ_ISSUE)
    assert call(None, None, None, None) == pynvml.NVML_ERROR_IRQ_ISSUE
    pynvml.nvmlShutdown()
    assert call(None, None, None, None) == pynvml.NVML_ERROR_UNINITIALIZED


def test_no_argument_crashes(fake_nvml: FakeNvml) -> None:
    """Wrong handles and missing places for the answer, as an application's bug would pass them."""
    handle = board()
    for function in sorted(fake.FUNCTIONS - {"nvmlInitWithFlags", "nvmlShutdown"}):
        call = getattr(pynvml.nvmlLib, function)
        assert call(None, None, None, None) == pynvml.NVML_ERROR_INVALID_ARGUMENT, function
        if function.startswith("nvmlDeviceGet") and "HandleBy" not in function and "Count" not in function:
            assert call(handle, None, None, None) == pynvml.NVML_ERROR_INVALID_ARGUMENT, function


def test_failing_functions_exist_and_fit(fake_nvml: FakeNvml) -> None:
    for name in ("nvmlDeviceGetPowerUsag", "nvmlDeviceGetSerial", ""):
        with pytest.raises(ValueError, match="has no"):
            fake_nvml.fail(name, pynvml.NVML_ERROR_UNKNOWN)
    with pytest.raises(ValueError, match="never"):
        fake_nvml.fail("nvmlDeviceGetName", pynvml.NVML_ERROR_UNKNOWN, times=0)
    for _ in range(fake.MAX_FAILURES):
        fake_nvml.fail("nvmlDeviceGetName", pynvml.NVML_ERROR_UNKNOWN)
    with pytest.raises(ValueError, match="at most 16"):
        fake_nvml.fail("nvmlDeviceGetName", pynvml.NVML_ERROR_UNKNOWN)


def test_a_short_buffer_is_refused(fake_nvml: FakeNvml) -> None:
    buffer = ctypes.create_string_buffer(10)
    assert pynvml.nvmlLib.nvmlDeviceGetName(board(), buffer, 10) == pynvml.NVML_ERROR_INSUFFICIENT_SIZE
    assert pynvml.nvmlLib.nvmlDeviceGetName(board(), buffer, 11) == pynvml.NVML_SUCCESS


def test_errors_have_texts(fake_nvml: FakeNvml) -> None:
    texts = {pynvml.nvmlErrorString(code) for code in (0, 1, 2, 3, 4, 6, 7, 9, 10, 13, 15, 16, 18, 20, 21, 25, 999)}
    assert len(texts) == 17
    assert "no text" in pynvml.nvmlErrorString(12345)


def test_a_sensor_without_a_period_is_an_error(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).period_ns = 0
    with pytest.raises(pynvml.NVMLError_Unknown):
        counter_mj()


# ---- loading and sharing ----


def test_initialising(fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_nvml.fail("nvmlShutdown", pynvml.NVML_ERROR_UNKNOWN, times=1)
    with pytest.raises(pynvml.NVMLError_Unknown):
        pynvml.nvmlShutdown()
    pynvml.nvmlShutdown()
    for ask in (pynvml.nvmlDeviceGetCount, pynvml.nvmlSystemGetDriverVersion, pynvml.nvmlShutdown):
        with pytest.raises(pynvml.NVMLError_Uninitialized):
            ask()
    fake_nvml.fail("nvmlInit", pynvml.NVML_ERROR_NO_PERMISSION, times=1)
    with pytest.raises(pynvml.NVMLError_NoPermission):
        pynvml.nvmlInit()
    pynvml.nvmlInit()
    pynvml.nvmlInit()
    pynvml.nvmlShutdown()
    assert pynvml.nvmlDeviceGetCount() == 1  # initialised twice, shut down once
    pynvml.nvmlShutdown()
    monkeypatch.setenv("FAKENVML_STATE", str(tmp_path / "missing"))
    with pytest.raises(pynvml.NVMLError_DriverNotLoaded):
        pynvml.nvmlInit()
    (tmp_path / "other").write_bytes(bytes(fake.STATE_SIZE))
    (tmp_path / "short").write_bytes(fake_nvml.file.read_bytes()[:-8])
    for name in ("other", "short"):
        monkeypatch.setenv("FAKENVML_STATE", str(tmp_path / name))
        with pytest.raises(pynvml.NVMLError_LibRmVersionMismatch):
            pynvml.nvmlInit()
    monkeypatch.delenv("FAKENVML_STATE")
    with pytest.raises(pynvml.NVMLError_DriverNotLoaded):
        pynvml.nvmlInit()


@pytest.mark.parametrize("shut_down", [True, False])
def test_another_file_is_another_fake(
    fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shut_down: bool
) -> None:
    handle = board()
    second = FakeNvml(tmp_path / "second.state", devices=2)
    second.device(0).temperature = 55
    monkeypatch.setenv("FAKENVML_STATE", str(second.file))
    assert pynvml.nvmlDeviceGetTemperature(handle, 0) == 40
    if shut_down:
        pynvml.nvmlShutdown()
    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetTemperature(handle, 0) == 55
    assert pynvml.nvmlDeviceGetCount() == 2
    # The same name anew is another file.
    third = FakeNvml(second.file)
    pynvml.nvmlInit()
    third.device(0).temperature = 66
    assert pynvml.nvmlDeviceGetTemperature(handle, 0) == 66


def test_reset_leaves_nothing_behind(fake_nvml: FakeNvml) -> None:
    new = bytes(fake_nvml._control)
    device = fake_nvml.device(0)
    device.name, device.jitter_sd, device.compute_processes = "other", 0.1, [(1, 2)]
    fake_nvml.call_ns = 5
    fake_nvml.set_power(500.0)
    fake_nvml.fail("nvmlDeviceGetName", pynvml.NVML_ERROR_UNKNOWN)
    fake_nvml.now_ns = 10 * SECOND
    counter_mj()
    fake_nvml.reset()
    assert bytes(fake_nvml._control) == new
    assert fake_nvml.energy_joules(0, SECOND) == pytest.approx(60.0)
    fake_nvml.reset(now_ns=7 * SECOND)
    assert fake_nvml.device(0).phase_ns == fake_nvml.now_ns == 7 * SECOND
    with pytest.raises(ValueError, match="at most 2"):
        fake_nvml.reset(devices=3)


def test_pynvml_is_as_before_outside_the_fixture(fake_nvml_library: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Whatever pynvml had loaded, as on a machine with a GPU."""
    real = object()
    monkeypatch.setattr(pynvml, "nvmlLib", real)
    monkeypatch.setattr(pynvml, "_nvmlLib_refcount", 3)
    pynvml._nvmlGetFunctionPointer_cache["nvmlDeviceGetCount_v2"] = real
    monkeypatch.setenv("FAKENVML_STATE", str(FakeNvml(tmp_path / "state").file))
    with fake.installed(fake_nvml_library):
        pynvml.nvmlInit()
        pynvml.nvmlInit()
        assert pynvml.nvmlDeviceGetCount() == 1
        library = pynvml.nvmlLib
    assert pynvml.nvmlLib is real
    assert pynvml._nvmlLib_refcount == 3
    assert pynvml._nvmlGetFunctionPointer_cache.pop("nvmlDeviceGetCount_v2") is real
    assert library.nvmlShutdown() == pynvml.NVML_ERROR_UNINITIALIZED


def test_a_real_library_stays_what_others_find_by_name(fake_nvml_library: Path, tmp_path: Path) -> None:
    """A copy stands for the real one, which a process with a GPU loads from elsewhere."""
    real = tmp_path / fake_nvml_library.name
    shutil.copy(fake_nvml_library, real)
    program = (
        "import ctypes, sys, fake_nvml; from pathlib import Path\n"
        "fake = fake_nvml.load(Path(sys.argv[1])); found = ctypes.CDLL(fake_nvml.LIBRARY_NAME)\n"
        "assert fake._handle == ctypes.CDLL(sys.argv[1])._handle\n"
        "assert found._handle == ctypes.CDLL(sys.argv[2])._handle != fake._handle"
    )
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", program, str(fake_nvml_library), str(real)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_pynvml_can_start_it(fake_nvml_library: Path) -> None:
    """PyTorch looks for nvmlInit to count GPUs without starting CUDA: it must find none here."""
    library = ctypes.CDLL(str(fake_nvml_library))
    for name in ("nvmlInit", "nvmlInit_v2"):
        with pytest.raises(AttributeError):
            getattr(library, name)


CHILD = """
import sys, time, pynvml
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
print(pynvml.nvmlDeviceGetName(handle), flush=True)
last, end = 0, time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    asked_ns = time.monotonic_ns()
    value = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    assert value >= last, (value, last)
    last = value
print(asked_ns, last)
"""


def start_child(control: FakeNvml, library: Path, seconds: float) -> subprocess.Popen[str]:
    environment = os.environ | control.environment(library)
    command = [sys.executable, "-c", CHILD, str(seconds)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_processes_share_one_board_on_the_real_clock(fake_nvml: FakeNvml, fake_nvml_library: Path) -> None:
    fake_nvml.reset(virtual=False)
    device = fake_nvml.device(0)
    device.period_ns = device.window_ns = 1 * MS
    fake_nvml.set_power(250.0, at_ns=device.phase_ns)
    children = [start_child(fake_nvml, fake_nvml_library, 0.3) for _ in range(2)]
    seen = []
    while any(child.poll() is None for child in children):
        seen.append(counter_mj())
    assert seen == sorted(seen)
    for child in children:
        name, line = child.communicate()[0].splitlines()
        assert child.returncode == 0
        assert name == "FAKE GPU 0"
        asked_ns, last = map(int, line.split())
        # Each child saw the board's whole energy, what others ticked included, up to its last query.
        assert 250 * ((asked_ns - device.phase_ns) // MS) <= last <= counter_mj()
    # No tick was taken twice or lost.
    assert device.energy_mj == pytest.approx(250.0 * (device.ticks - 1))
    assert device.last_tick_ns == device.phase_ns + (device.ticks - 1) * MS


def test_a_lock_whose_holder_died_is_taken_over(fake_nvml: FakeNvml) -> None:
    fake_nvml._control.lock, fake_nvml._control.lock_patience_ns = 2**60, 100 * MS
    begin = time.monotonic()
    assert counter_mj() == 0
    assert time.monotonic() - begin > 0.09
    assert fake_nvml._control.lock == 0


def test_another_process_can_write_the_power(fake_nvml: FakeNvml) -> None:
    other = FakeNvml.attach(fake_nvml.file)
    other.set_power(100.0, at_ns=0)
    fake_nvml.set_power(200.0, at_ns=SECOND)
    for control in (fake_nvml, other):
        assert control.energy_joules(0, 2 * SECOND) == pytest.approx(300.0)
    fake_nvml.now_ns = 2 * SECOND
    assert other.now_ns == 2 * SECOND
    assert counter_mj() == 300_000


def test_attaching_to_something_else_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(bytes(fake.STATE_SIZE))
    with pytest.raises(ValueError, match="no state"):
        FakeNvml.attach(tmp_path / "other")


# ---- building ----


def test_the_environment_of_a_child_keeps_its_own_paths(
    fake_nvml: FakeNvml, fake_nvml_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    added = fake_nvml.environment(fake_nvml_library)
    assert added == {
        "LD_LIBRARY_PATH": f"{fake_nvml_library.parent}:/opt/lib",
        "FAKENVML_STATE": str(fake_nvml.file),
    }
    monkeypatch.delenv("LD_LIBRARY_PATH")
    assert fake_nvml.environment(fake_nvml_library)["LD_LIBRARY_PATH"] == str(fake_nvml_library.parent)


def test_no_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(fake.NoCompilerError, match="no C compiler"):
        fake.build(tmp_path)


def test_a_failed_build_shows_the_compiler_s_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'no such thing' >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", f"{compiler} -m32")
    with pytest.raises(RuntimeError, match=r"(?s)broken -m32 .* failed with 3.*no such thing"):
        fake.build(tmp_path)
