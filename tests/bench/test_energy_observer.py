"""Updates of the energy counter and samples of power, in virtual time."""

from __future__ import annotations

import pytest
from fake_nvml import CounterMode, FakeNvml, PowerMode
from virtual_board import OWN_PID, VirtualClock

from infsa_bench.errors import MeterUnavailableError
from infsa_bench.measure.energy.observer import (
    NEVER_NS,
    POLL_NS,
    DirectObserver,
    Edge,
    Observer,
    Sample,
)
from infsa_bench.measure.nvml import Gpu

SECOND_NS = 1_000_000_000


class CountingGpu(Gpu):
    """Counts the readings that a meter should be sparing with."""

    energy_readings = 0
    process_lists = 0

    def energy_joules(self) -> float:
        self.energy_readings += 1
        return super().energy_joules()

    def processes(self) -> dict[int, int | None]:
        self.process_lists += 1
        return super().processes()


def direct(board: FakeNvml) -> tuple[DirectObserver, VirtualClock, CountingGpu]:
    clock = VirtualClock(board)
    gpu = CountingGpu.find(board.device(0).uuid, None)
    return DirectObserver(gpu, clock, OWN_PID), clock, gpu


def wait(observer: Observer, clock: VirtualClock) -> Edge:
    while (edge := observer.edge()) is None:
        assert observer.due_ns < NEVER_NS
        clock.sleep_until(observer.due_ns)
    return edge


# Updates, on virtual time.


@pytest.mark.parametrize("call_ns", [0, 40_000, 3_000_000])
@pytest.mark.parametrize("period_ns", [20_000_000, 100_000_000])
def test_edges_bracket_the_true_updates(fake_nvml: FakeNvml, period_ns: int, call_ns: int) -> None:
    board = fake_nvml.device(0)
    board.period_ns, board.window_ns, board.phase_ns, board.jitter_sd = period_ns, period_ns // 4, 1_234_567, 0.02
    fake_nvml.call_ns = call_ns
    observer, clock, _ = direct(fake_nvml)
    for start in range(30):
        clock.sleep_until(clock.now_ns() + start * 7_777_777)
        observer.arm(clock.now_ns())
        edge = wait(observer, clock)
        assert edge.before_ns <= board.last_tick_ns <= edge.after_ns
        assert abs(edge.ns - board.last_tick_ns) <= edge.uncertainty_ns + 1
        # From one reading's start to the next one's end.
        assert 2 * edge.uncertainty_ns <= max(POLL_NS, call_ns) + call_ns
        assert edge.joules == pytest.approx(board.energy_mj / 1e3, abs=1e-3)


def test_the_counter_is_left_alone_where_nobody_asks(fake_nvml: FakeNvml) -> None:
    fake_nvml.device(0).phase_ns = 1
    observer, clock, gpu = direct(fake_nvml)
    for _ in range(100):
        assert observer.edge() is None
        clock.sleep_until(clock.now_ns() + POLL_NS)
    assert observer.due_ns == NEVER_NS
    assert gpu.energy_readings == 0
    # The tick at 1.0 s is asked for, 40 ms ahead of it.
    observer.arm(960_000_000)
    assert observer.due_ns == 960_000_000
    while clock.now_ns() < 960_000_000:
        assert observer.edge() is None
        clock.sleep_until(clock.now_ns() + 10_000_000)
    assert gpu.energy_readings == 0
    assert wait(observer, clock).after_ns == pytest.approx(SECOND_NS, abs=POLL_NS)
    assert gpu.energy_readings == pytest.approx(41, abs=1)
    found = gpu.energy_readings
    clock.sleep_until(3 * SECOND_NS)
    assert observer.edge() is None
    assert gpu.energy_readings == found


def test_an_update_before_the_first_reading_is_none(fake_nvml: FakeNvml) -> None:
    """Armed in the past: what happened unseen cannot be placed, the next update can."""
    observer, clock, _ = direct(fake_nvml)
    clock.sleep_until(150_000_000)
    observer.arm(10_000_000)
    assert wait(observer, clock).ns == pytest.approx(200_000_000, abs=POLL_NS)


def test_readings_that_come_late_widen_the_bracket(fake_nvml: FakeNvml) -> None:
    observer, clock, _ = direct(fake_nvml)
    observer.arm(clock.now_ns())
    assert observer.edge() is None
    clock.sleep_until(170_000_000)
    edge = observer.edge()
    assert edge is not None
    assert (edge.before_ns, edge.after_ns) == (0, 170_000_000)


def test_every_update_is_found_until_told_otherwise(fake_nvml: FakeNvml) -> None:
    board = fake_nvml.device(0)
    board.jitter_sd = 0.02
    observer, clock, gpu = direct(fake_nvml)
    observer.arm(clock.now_ns(), every=True)
    edges = [wait(observer, clock)]
    first_tick = board.ticks
    while clock.now_ns() < 3 * SECOND_NS:
        edges.append(wait(observer, clock))
        assert edges[-1].before_ns <= board.last_tick_ns <= edges[-1].after_ns
    assert len(edges) == board.ticks - first_tick + 1
    observer.arm(NEVER_NS)
    assert observer.due_ns == NEVER_NS
    readings = gpu.energy_readings
    clock.sleep_until(4 * SECOND_NS)
    assert observer.edge() is None
    assert gpu.energy_readings == readings


def test_a_counter_that_goes_away_is_a_reason(fake_nvml: FakeNvml) -> None:
    observer, clock, _ = direct(fake_nvml)
    observer.arm(clock.now_ns())
    assert observer.edge() is None
    fake_nvml.device(0).counter_mode = CounterMode.NOT_SUPPORTED
    clock.sleep_until(observer.due_ns)
    with pytest.raises(MeterUnavailableError) as caught:
        observer.edge()
    assert caught.value.reason == "counter_unsupported"


# Samples, on virtual time.


def test_one_sample_a_period_and_one_at_the_end(fake_nvml: FakeNvml) -> None:
    board = fake_nvml.device(0)
    board.event_reasons = 0x4
    observer, clock, gpu = direct(fake_nvml)
    fake_nvml.set_power(300.0)
    clock.sleep_until(500_000_000)
    observer.start_trace(0.05)
    while clock.now_ns() < 1_520_000_000:
        assert observer.edge() is None
        clock.sleep_until(min(observer.due_ns, 1_520_000_000))
    samples = observer.stop_trace()
    assert [sample.ns for sample in samples] == [*range(500_000_000, 1_520_000_000, 50_000_000), 1_520_000_000]
    assert {(sample.power_watts, sample.sm_clock_mhz, sample.temperature_celsius) for sample in samples} == {
        (300.0, 1980, 40)
    }
    assert {sample.event_reasons for sample in samples} == {("sw_power_cap",)}
    assert gpu.energy_readings == 0
    assert observer.due_ns == NEVER_NS
    assert observer.edge() is None
    assert observer.take_samples() == ()


def test_samples_that_come_late_are_not_made_up_for(fake_nvml: FakeNvml) -> None:
    observer, clock, _ = direct(fake_nvml)
    observer.start_trace(0.05)
    observer.edge()
    clock.sleep_until(430_000_000)
    for _ in range(100):
        observer.edge()
        clock.sleep_until(clock.now_ns() + POLL_NS)
    assert [sample.ns // 1_000_000 for sample in observer.take_samples()] == [0, 430, 480]


def test_others_are_counted_once_a_second(fake_nvml: FakeNvml) -> None:
    board = fake_nvml.device(0)
    board.compute_processes = [(OWN_PID, 2**20)]
    observer, clock, gpu = direct(fake_nvml)
    observer.start_trace(0.05)
    while clock.now_ns() < 3_500_000_000:
        observer.edge()
        if clock.now_ns() > 1_500_000_000:
            board.compute_processes = [(OWN_PID, 2**20), (OWN_PID + 1, 2**20)]
        clock.sleep_until(observer.due_ns)
    told = {s.ns // 10**6: s.foreign_processes for s in observer.take_samples() if s.foreign_processes is not None}
    assert told == {0: 0, 1000: 0, 2000: 1, 3000: 1}
    assert gpu.process_lists == 4


def test_samples_of_a_board_that_tells_nothing(fake_nvml: FakeNvml) -> None:
    board = fake_nvml.device(0)
    board.power_mode, board.sm_clock_mhz, board.temperature = PowerMode.NOT_SUPPORTED, -1, -1
    for name in ("EventReasons", "ThrottleReasons"):
        fake_nvml.fail(f"nvmlDeviceGetCurrentClocks{name}", 3)
    observer, _, _ = direct(fake_nvml)
    observer.start_trace(0.05)
    (sample,) = observer.stop_trace()
    assert sample == Sample(
        ns=0,
        power_watts=None,
        sm_clock_mhz=None,
        temperature_celsius=None,
        event_reasons=(),
        foreign_processes=None,
    )


# A process of its own, on the real clock.
