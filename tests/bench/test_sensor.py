"""What a sensor sees, on fake boards whose sensor is known, in virtual time."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from fake_nvml import CounterMode, FakeNvml
from sample_reference import reference_run
from virtual_board import OWN_PID, VirtualClock

from infsa_bench.errors import MeterUnavailableError
from infsa_bench.execute.instrument_facts import (
    event_costs_of,
    seconds_since_start,
    used_bytes_by_uuid,
    with_processes,
    with_sensor,
)
from infsa_bench.measure.energy.observer import DirectObserver
from infsa_bench.measure.energy.sensor import window_seconds
from infsa_bench.measure.nvml import Gpu
from infsa_bench.reference.facts import InstrumentFacts, WaveResponse
from infsa_bench.report.instruments import describe_instruments

MILLISECOND = 1_000_000


def make_facts() -> InstrumentFacts:
    (environment,) = reference_run().environments.values()
    return InstrumentFacts(
        environment=environment,
        measured_utc="2026-11-26T12:00:00+00:00",
        seconds=1.0,
        import_seconds=2.0,
        context_seconds=0.5,
        context_bytes=None,
        own_process_visible=None,
        listed_processes=None,
        events=None,
        calibration=None,
        no_energy="needs CUDA",
    )


class Board:
    """A fake board of 60 W at rest that draws 360 W for as long as it works, a millisecond at a time."""

    def __init__(self, fake: FakeNvml, *, period_ms: float, window_ms: float, average_ms: float = 0.0) -> None:
        self.fake, self.clock = fake, VirtualClock(fake)
        board = fake.device(0)
        board.period_ns, board.window_ns = round(period_ms * MILLISECOND), round(window_ms * MILLISECOND)
        board.average_ns = round(average_ms * MILLISECOND)
        board.compute_processes = [(OWN_PID, 2**30)]
        self.gpu = Gpu.find(board.uuid, board.pci_bus_id)
        self.observer = DirectObserver(self.gpu, self.clock, OWN_PID)

    def work(self) -> None:
        self.fake.set_power(360.0, at_ns=self.fake.now_ns)
        self.fake.now_ns += MILLISECOND
        self.fake.set_power(60.0, at_ns=self.fake.now_ns)

    def facts(self) -> InstrumentFacts:
        facts = with_processes(make_facts(), self.gpu, 2**29)
        return with_sensor(facts, self.gpu, self.clock, self.observer, self.work)


@pytest.mark.parametrize(("period_ms", "window_ms"), [(100.0, 25.0), (100.0, 50.0), (100.0, 100.0), (20.0, 10.5)])
def test_a_known_sensor_is_found(fake_nvml: FakeNvml, period_ms: float, window_ms: float) -> None:
    facts = Board(fake_nvml, period_ms=period_ms, window_ms=window_ms).facts()
    assert facts.calibration is not None
    assert facts.calibration.period_seconds == pytest.approx(period_ms / 1e3, rel=0.02)
    assert facts.power_period_seconds == pytest.approx(period_ms / 1e3, abs=0.006)
    assert facts.sensor_window_seconds == pytest.approx(window_ms / 1e3, rel=0.15)
    # A load needs one update to begin and one to be seen.
    assert facts.counter_rise_seconds is not None
    assert facts.counter_rise_seconds < 3 * period_ms / 1e3
    assert (facts.own_process_visible, facts.listed_processes, facts.context_bytes) == (True, 1, 2**29)


def test_counter_and_power_are_compared_at_several_loads(fake_nvml: FakeNvml) -> None:
    facts = Board(fake_nvml, period_ms=100.0, window_ms=100.0).facts()
    assert [load.duty for load in facts.loads] == [0.0, 0.25, 0.5, 0.75, 1.0]
    for load in facts.loads:
        # A millisecond more or less of work in every wave of 9.7.
        assert load.counter_watts == pytest.approx(60.0 + 300.0 * load.duty, abs=32.0)
        assert load.power_watts == pytest.approx(load.counter_watts, rel=0.1)
    lines = dict(describe_instruments(facts))
    assert lines["counter against power, load 100%"].startswith("360 W against 360 W")
    assert lines["energy counter"].startswith("moves every 100 ms")


def test_a_counter_that_stands_still_is_a_reason(fake_nvml: FakeNvml) -> None:
    board = Board(fake_nvml, period_ms=100.0, window_ms=100.0)
    fake_nvml.device(0).counter_mode = CounterMode.FROZEN
    with pytest.raises(MeterUnavailableError) as error:
        board.facts()
    assert error.value.reason == "counter_frozen"


def wave(milliseconds: float, response: float) -> WaveResponse:
    return WaveResponse(wave_seconds=milliseconds / 1e3, response=response)


@pytest.mark.parametrize(
    ("waves", "expected"),
    [
        ([wave(300, 1.0), wave(80, 0.6), wave(40, 0.05)], 0.05),
        # All of each is seen, or nothing of any.
        ([wave(300, 1.0), wave(80, 0.97)], None),
        ([wave(300, 0.02), wave(80, 0.3)], None),
        ([], None),
    ],
)
def test_the_longest_wave_that_is_seen_in_part_tells_the_window(
    waves: list[WaveResponse], expected: float | None
) -> None:
    assert window_seconds(waves) == (None if expected is None else pytest.approx(expected))
    assert window_seconds(list(reversed(waves))) == window_seconds(waves)


def test_the_costs_of_events() -> None:
    costs = event_costs_of(1e-6, [2.0e-6, 2.5e-6, 2.0e-6, 3.5e-6])
    assert (costs.record_seconds, costs.empty_span_seconds) == (1e-6, 2.25e-6)
    assert costs.step_seconds == pytest.approx(0.5e-6)
    assert event_costs_of(1e-6, [2.0e-6, 2.0e-6]).step_seconds is None


def test_a_process_knows_its_age() -> None:
    age = seconds_since_start()
    assert age is None or 0 < age < os.times().elapsed


def test_processes_that_the_driver_does_not_list() -> None:
    gpu: Callable[[], object] = lambda: {}  # noqa: E731
    facts = with_processes(make_facts(), SimpleNamespace(processes=gpu), 0)  # type: ignore[arg-type]
    assert (facts.own_process_visible, facts.listed_processes, facts.context_bytes) == (False, 0, None)
    assert dict(describe_instruments(facts))["own process"] == "not listed by the driver; 0 processes listed"


@pytest.mark.parametrize("listed", [[], [(OWN_PID + 1, 2**30)], [(OWN_PID, None)]])
def test_a_context_whose_process_is_not_listed_is_what_the_device_lost(
    fake_nvml: FakeNvml, listed: list[tuple[int, int | None]]
) -> None:
    """In a container, or where the driver lists us but not what we hold."""
    board = Board(fake_nvml, period_ms=100.0, window_ms=25.0)
    fake_nvml.device(0).compute_processes = listed
    fake_nvml.device(0).memory_used_bytes = 2**30
    before = used_bytes_by_uuid()[board.gpu.facts.uuid]
    fake_nvml.device(0).memory_used_bytes = 2**30 + 700 * 2**20
    facts = with_processes(make_facts(), board.gpu, 200 * 2**20, before)
    assert (facts.context_bytes, facts.is_context_by_growth) == (500 * 2**20, True)
    assert "others may have a part in it" in dict(describe_instruments(facts))["device memory of a context"]
    unknown = with_processes(make_facts(), board.gpu, 200 * 2**20, None)
    assert (unknown.context_bytes, unknown.is_context_by_growth) == (None, False)


def test_a_process_that_is_listed_is_asked_for_its_own_bytes(fake_nvml: FakeNvml) -> None:
    board = Board(fake_nvml, period_ms=100.0, window_ms=25.0)
    fake_nvml.device(0).memory_used_bytes = 8 * 2**30
    facts = with_processes(make_facts(), board.gpu, 2**29, 2**30)
    assert (facts.context_bytes, facts.is_context_by_growth) == (2**29, False)
    assert "others" not in dict(describe_instruments(facts))["device memory of a context"]
