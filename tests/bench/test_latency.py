from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from infsa_bench.measure.latency import Samples, time_calls, warm_up
from infsa_bench.spec import PROTOCOLS, Protocol

CPU = torch.device("cpu")
MILLISECOND = 1_000_000


class FakeDevice:
    """A clock that stands still but for the calls, which take the given times in turn; it logs what happens."""

    def __init__(self, *durations_ms: int) -> None:
        self.log: list[str] = []
        self._now = 123_456_789
        self._durations: Iterator[int] = iter(durations_ms)
        self._calls = 0

    def clock(self) -> int:
        self.log.append("clock")
        return self._now

    def call(self) -> Tensor:
        self.log.append("call")
        self._now += next(self._durations) * MILLISECOND
        self._calls += 1
        return torch.tensor(self._calls)

    @property
    def calls(self) -> int:
        return self.log.count("call")


def make_protocol(
    *,
    warmup: int = 0,
    timed: int = 1,
    at_least: int | None = None,
    warmup_seconds: float | None = None,
    timed_seconds: float | None = None,
) -> Protocol:
    return Protocol(
        name="test",
        warmup_iterations=warmup,
        warmup_seconds=warmup_seconds,
        timed_iterations=timed,
        min_timed_iterations=timed if at_least is None else at_least,
        timed_seconds=timed_seconds,
    )


def timed(device: FakeDevice, protocol: Protocol, limit_seconds: float | None = None) -> Samples:
    return time_calls(device.call, protocol, CPU, limit_seconds=limit_seconds, clock=device.clock)


def warmed(device: FakeDevice, protocol: Protocol) -> tuple[float, ...]:
    return warm_up(device.call, protocol, CPU, clock=device.clock)


def test_every_sample_is_kept_exactly_and_in_order() -> None:
    samples = timed(FakeDevice(7, 1, 30), make_protocol(timed=3))
    assert samples.latencies_seconds == (0.007, 0.001, 0.030)
    assert samples.gpu_seconds == ()
    assert not samples.time_limited


def test_the_last_output_is_kept() -> None:
    assert timed(FakeDevice(1, 1, 1), make_protocol(timed=3)).last_output.item() == 3


def test_nothing_but_the_call_stands_between_two_readings() -> None:
    device = FakeDevice(1, 1, 1)
    timed(device, make_protocol(timed=3))
    assert device.log == ["clock"] + ["clock", "call", "clock"] * 3


def test_nothing_but_the_call_stands_between_two_readings_of_the_warm_up() -> None:
    device = FakeDevice(1, 1)
    warmed(device, make_protocol(warmup=2))
    assert device.log == ["clock", "call", "clock"] * 2


def test_reading_the_clock_costs_no_sample_anything() -> None:
    """A clock that moves 1 ms at each reading: one reading lies between begin and end."""
    readings = iter(range(0, 10**9, MILLISECOND))
    samples = time_calls(lambda: torch.tensor(0), make_protocol(timed=4), CPU, clock=lambda: next(readings))
    assert samples.latencies_seconds == (0.001,) * 4


@pytest.mark.parametrize(
    ("protocol", "durations_ms", "expected"),
    [
        (make_protocol(warmup=0), (), ()),
        (make_protocol(warmup=3), (900, 20, 10), (0.9, 0.02, 0.01)),
        (make_protocol(warmup=3, warmup_seconds=1.0), (900, 20, 10), (0.9, 0.02, 0.01)),
        (make_protocol(warmup=3, warmup_seconds=1.0), (900, 100), (0.9, 0.1)),
        (make_protocol(warmup=3, warmup_seconds=1.0), (999, 2), (0.999, 0.002)),
        (make_protocol(warmup=3, warmup_seconds=1.0), (60_000,), (60.0,)),
        (make_protocol(warmup=2), (60_000, 60_000), (60.0, 60.0)),
    ],
)
def test_warm_up_ends_by_count_or_time(
    protocol: Protocol, durations_ms: tuple[int, ...], expected: tuple[float, ...]
) -> None:
    device = FakeDevice(*durations_ms)
    assert warmed(device, protocol) == expected
    assert device.calls == len(expected)


@pytest.mark.parametrize(
    ("protocol", "limit_seconds", "call_ms", "calls", "time_limited"),
    [
        # Counts alone.
        (make_protocol(timed=5), None, 1000, 5, False),
        # Enough time and enough samples.
        (make_protocol(timed=30, at_least=3, timed_seconds=3.0), None, 1000, 3, False),
        (make_protocol(timed=30, at_least=3, timed_seconds=3.0), None, 500, 6, False),
        (make_protocol(timed=30, at_least=3, timed_seconds=3.0), None, 700, 5, False),
        # The minimum counts for more than the time.
        (make_protocol(timed=30, at_least=3, timed_seconds=3.0), None, 10_000, 3, False),
        # The count ends it before the time.
        (make_protocol(timed=30, at_least=3, timed_seconds=3.0), None, 1, 30, False),
        # A limit from outside counts for more than both.
        (make_protocol(timed=30, at_least=3, timed_seconds=3.0), 2.0, 1000, 2, True),
        # A call that would end after the limit is not begun.
        (make_protocol(timed=5), 2.5, 1000, 2, True),
        (make_protocol(timed=5), 0.0, 1000, 1, True),
        (make_protocol(timed=5), -1.0, 1000, 1, True),
        # Reached together with the protocol's own end, it has cut nothing.
        (make_protocol(timed=2), 2.0, 1000, 2, False),
        (make_protocol(timed=1), 0.0, 1000, 1, False),
        (make_protocol(timed=5), 1e9, 1000, 5, False),
    ],
)
def test_timing_ends(
    protocol: Protocol, limit_seconds: float | None, call_ms: int, calls: int, time_limited: bool
) -> None:
    device = FakeDevice(*[call_ms] * 100)
    samples = timed(device, protocol, limit_seconds)
    assert device.calls == len(samples.latencies_seconds) == calls
    assert samples.time_limited == time_limited


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS.keys())
@pytest.mark.parametrize("call_ms", [1, 40, 250, 2000, 90_000])
def test_a_plan_expects_as_many_calls_as_are_made(protocol: Protocol, call_ms: int) -> None:
    """``expected_iterations`` may round up by one call a limit, never down."""
    device = FakeDevice(*[call_ms] * 1000)
    warmed(device, protocol)
    timed(device, protocol)
    assert 0 <= protocol.expected_iterations(call_ms / 1000) - device.calls <= 2


def test_an_error_of_the_call_is_passed_on() -> None:
    def fail() -> Tensor:
        raise RuntimeError("no")

    for measure in (time_calls, warm_up):
        with pytest.raises(RuntimeError, match="no"):
            measure(fail, make_protocol(warmup=1), CPU)


def busy_wait(seconds: float) -> Callable[[], Tensor]:
    output = torch.zeros(1)

    def call() -> Tensor:
        end = time.perf_counter_ns() + round(seconds * 1e9)
        while time.perf_counter_ns() < end:
            pass
        return output

    return call


def test_a_call_of_known_duration() -> None:
    samples = time_calls(busy_wait(0.005), make_protocol(timed=41), CPU)
    assert min(samples.latencies_seconds) >= 0.005
    assert statistics.median(samples.latencies_seconds) == pytest.approx(0.005, rel=0.01)
