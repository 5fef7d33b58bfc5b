"""Continuous load: iterations counted between any two moments, and how the queue of a GPU is kept short and full.

The GPU here is a stand-in in virtual time: a stream that works through what is launched, and events on it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infsa_bench.measure.energy.clock import MonotonicClock
from infsa_bench.measure.energy.load import (
    MAX_PENDING,
    NAP_NS,
    QUEUE_AHEAD_NS,
    CudaLoad,
    HostLoad,
    Idle,
    Load,
    count_iterations,
)

MS = 1_000_000
SECOND_NS = 1_000_000_000


class SteppedClock:
    """Time passes where somebody spends it."""

    def __init__(self) -> None:
        self.ns = 5 * SECOND_NS

    def now_ns(self) -> int:
        return self.ns

    def sleep_until(self, ns: int) -> None:
        self.ns = max(self.ns, ns)

    def spend(self, ns: int) -> None:
        self.ns += ns


# Counting.


def test_iterations_by_hand() -> None:
    ends = [100, 200, 300, 500]
    assert count_iterations(ends, 100, 500) == 3
    assert count_iterations(ends, 150, 400) == 2.0
    assert count_iterations(ends, 125, 150) == 0.25
    assert count_iterations(ends, 0, 100) == 0
    assert count_iterations(ends, 0, 1000) == 3
    assert count_iterations(ends, 500, 1000) == 0
    assert count_iterations(ends, 450, 460) == pytest.approx(0.05)
    assert count_iterations([100], 0, 1000) == 0
    assert count_iterations([], 0, 1000) == 0


def test_ends_at_the_same_moment_are_all_counted() -> None:
    ends = [0, 10, 10, 10, 20]
    assert count_iterations(ends, 0, 20) == 4
    assert count_iterations(ends, 5, 15) == pytest.approx(0.5 + 2 + 0.5)
    assert count_iterations(ends, 9, 10) == pytest.approx(2.1)


ends_of_iterations = st.lists(st.integers(0, 10**12), min_size=1, max_size=50).map(sorted)
moments = st.integers(-(10**9), 2 * 10**12)


@given(ends=ends_of_iterations, first=moments, second=moments, third=moments)
def test_counting_adds_up_and_never_falls(ends: list[int], first: int, second: int, third: int) -> None:
    first, second, third = sorted((first, second, third))
    left, right = count_iterations(ends, first, second), count_iterations(ends, second, third)
    whole = count_iterations(ends, first, third)
    assert left >= 0
    assert right >= 0
    assert left + right == pytest.approx(whole, abs=1e-9)
    assert whole <= len(ends) - 1
    if first < ends[0] and third >= ends[-1]:
        assert whole == len(ends) - 1


@given(ends=ends_of_iterations, data=st.data())
def test_an_iteration_counts_as_one_wherever_it_lies(ends: list[int], data: st.DataObject) -> None:
    distinct = sorted(set(ends))
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(distinct) - 1)] * 2)))
    assert count_iterations(distinct, distinct[first], distinct[last]) == last - first


# No load, and a load on the host.


def test_idle_waits() -> None:
    clock = SteppedClock()
    idle: Load = Idle(clock)
    idle.begin()
    idle.keep_busy(clock.now_ns() + 100)
    assert clock.now_ns() == 5 * SECOND_NS + 100
    idle.drain()
    assert idle.iterations_between(0, 10**18) == 0


def test_a_host_load_runs_until_the_time_is_over() -> None:
    clock = SteppedClock()
    calls = []

    def call() -> None:
        calls.append(clock.now_ns())
        clock.spend(30 * MS)

    load: Load = HostLoad(call, clock)
    begin_ns = clock.now_ns()
    load.begin()
    load.keep_busy(begin_ns + 100 * MS)
    assert len(calls) == 4
    load.keep_busy(begin_ns + 100 * MS)
    assert len(calls) == 4
    load.keep_busy(begin_ns + 121 * MS)
    load.drain()
    assert len(calls) == 5
    assert load.iterations_between(begin_ns, clock.now_ns()) == 5
    assert load.iterations_between(begin_ns + 15 * MS, begin_ns + 75 * MS) == 2
    # What was before counts no more.
    load.begin()
    assert load.iterations_between(begin_ns, clock.now_ns()) == 0


def test_a_host_load_in_real_time() -> None:
    clock = MonotonicClock()
    load = HostLoad(lambda: clock.sleep_until(clock.now_ns() + 2 * MS), clock)
    load.begin()
    begin_ns = clock.now_ns()
    load.keep_busy(begin_ns + 50 * MS)
    end_ns = clock.now_ns()
    assert end_ns - begin_ns >= 50 * MS
    assert load.iterations_between(begin_ns, end_ns) == pytest.approx((end_ns - begin_ns) / (2 * MS), rel=0.2)


def test_the_clock_wakes_on_time() -> None:
    clock = MonotonicClock()
    for ahead_ns in (-SECOND_NS, 0, 50_000, 3 * MS):
        wanted_ns = clock.now_ns() + ahead_ns
        clock.sleep_until(wanted_ns)
        assert clock.now_ns() >= wanted_ns


# A load on a GPU.


class Gpu:
    """A stream that works through launches one after the other; a launch takes the host ``launch_ns``."""

    def __init__(self, clock: SteppedClock, *, launch_ns: int = 20_000) -> None:
        self.clock = clock
        self.launch_ns = launch_ns
        self.done_ns = 0
        self.starts_ns: list[int] = []
        self.ends_ns: list[int] = []
        self.events = 0
        self.deepest_ns = 0
        self.most_launched = 0
        self.queue: deque[int] = deque()

    def launch(self, duration_ns: int) -> None:
        self.clock.spend(self.launch_ns)
        now_ns = self.clock.now_ns()
        self.starts_ns.append(max(self.done_ns, now_ns))
        self.done_ns = self.starts_ns[-1] + duration_ns
        self.ends_ns.append(self.done_ns)
        self.deepest_ns = max(self.deepest_ns, self.done_ns - now_ns)
        self.queue.append(self.done_ns)
        while self.queue[0] <= now_ns:
            self.queue.popleft()
        self.most_launched = max(self.most_launched, len(self.queue))

    def synchronize(self, device: object = None) -> None:
        self.clock.sleep_until(self.done_ns)

    def idle_ns(self, begin_ns: int = 0) -> int:
        """Time without work between the first launch and the last one, from ``begin_ns`` on."""
        gaps = zip(self.ends_ns, self.starts_ns[1:], strict=False)
        return sum(start - end for end, start in gaps if start > begin_ns)

    def true_iterations(self, begin_ns: int, end_ns: int) -> float:
        return sum(
            max(0, min(end, end_ns) - max(start, begin_ns)) / (end - start)
            for start, end in zip(self.starts_ns, self.ends_ns, strict=True)
        )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    board = Gpu(SteppedClock())

    class Event:
        """Complete when the stream has done what was launched before it; times are float32 milliseconds."""

        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing
            board.events += 1

        def record(self) -> None:
            self.ns = max(board.done_ns, board.clock.now_ns())

        def query(self) -> bool:
            board.clock.spend(500)
            return board.clock.now_ns() >= self.ns

        def synchronize(self) -> None:
            board.clock.sleep_until(self.ns)

        def elapsed_time(self, later: Event) -> float:
            return float(np.float32((later.ns - self.ns) / 1e6))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", board.synchronize)
    return board


def cuda_load(gpu: Gpu, duration_ns: int, *, estimate_ns: float | None = None) -> CudaLoad:
    seconds = (estimate_ns or duration_ns) / 1e9
    return CudaLoad(lambda: gpu.launch(duration_ns), torch.device("cuda"), seconds, gpu.clock)


def run(load: Load, gpu: Gpu, seconds: float, *, step_ns: int = 1 * MS) -> tuple[int, int]:
    """Keep it busy as an observer does, a step at a time; return the moments of a window in the middle."""
    load.begin()
    begin_ns = gpu.clock.now_ns()
    end_ns = begin_ns + round(seconds * 1e9)
    while gpu.clock.now_ns() < end_ns:
        load.keep_busy(gpu.clock.now_ns() + step_ns)
    return begin_ns + (end_ns - begin_ns) // 4, end_ns


@pytest.mark.parametrize("duration_ns", [60_000, 1 * MS, 12 * MS, 49 * MS, 51 * MS, 130 * MS, 1700 * MS])
def test_the_queue_is_never_empty_and_never_long(gpu: Gpu, duration_ns: int) -> None:
    load = cuda_load(gpu, duration_ns)
    begin_ns, end_ns = run(load, gpu, max(1.0, 5 * duration_ns / 1e9))
    assert gpu.idle_ns() == 0
    assert gpu.deepest_ns <= QUEUE_AHEAD_NS + 2 * duration_ns
    if duration_ns > QUEUE_AHEAD_NS:
        assert gpu.most_launched == 2
    stopped_ns = gpu.clock.now_ns()
    load.drain()
    assert gpu.clock.now_ns() - stopped_ns <= QUEUE_AHEAD_NS + 2 * duration_ns
    assert gpu.clock.now_ns() >= gpu.done_ns
    counted = load.iterations_between(begin_ns, end_ns)
    assert counted == pytest.approx(gpu.true_iterations(begin_ns, end_ns), abs=0.01)


@pytest.mark.parametrize("factor", [0.2, 0.5, 0.9, 1.1, 2.0, 5.0])
@pytest.mark.parametrize("duration_ns", [1 * MS, 20 * MS, 60 * MS])
def test_a_wrong_guess_of_the_length_does_little_harm(gpu: Gpu, duration_ns: int, factor: float) -> None:
    """Too long a guess: a short queue, a nap's gap at most each time; too short a guess: a queue that is longer."""
    load = cuda_load(gpu, duration_ns, estimate_ns=factor * duration_ns)
    begin_ns, end_ns = run(load, gpu, 2.0)
    gaps = gpu.idle_ns(begin_ns) / (end_ns - begin_ns)
    assert gaps <= (NAP_NS + 100_000) / duration_ns if factor > 1 else gaps == 0
    assert gpu.deepest_ns <= (QUEUE_AHEAD_NS + 2 * duration_ns) / min(1.0, factor) + 2 * duration_ns
    load.drain()
    assert load.iterations_between(begin_ns, end_ns) == pytest.approx(
        gpu.true_iterations(begin_ns, end_ns), rel=gaps + 1e-3
    )


def test_launches_slower_than_the_device_never_wait(gpu: Gpu) -> None:
    gpu.launch_ns = 2 * MS
    load = cuda_load(gpu, 500_000, estimate_ns=2 * MS)
    begin_ns, end_ns = run(load, gpu, 1.0)
    # One launch after the other, nothing slept away.
    assert all(later - earlier < 2.01 * MS for earlier, later in pairwise(gpu.starts_ns))
    load.drain()
    assert load.iterations_between(begin_ns, end_ns) == pytest.approx((end_ns - begin_ns) / (2 * MS), rel=0.01)


def test_tiny_iterations_fill_no_endless_queue(gpu: Gpu) -> None:
    gpu.launch_ns = 1_000
    load = cuda_load(gpu, 10_000)
    run(load, gpu, 0.1)
    assert gpu.most_launched <= MAX_PENDING
    assert gpu.idle_ns() == 0


def test_a_device_that_hangs_is_not_launched_at_for_ever(gpu: Gpu) -> None:
    load = cuda_load(gpu, 1 * MS)
    load.begin()
    gpu.done_ns = gpu.clock.now_ns() + 3600 * SECOND_NS
    load.keep_busy(gpu.clock.now_ns() + 20 * SECOND_NS)
    assert len(gpu.ends_ns) == MAX_PENDING


def test_a_call_that_waits_for_the_device_is_a_load_all_the_same(gpu: Gpu) -> None:
    """A loss scaler asks the device a question each iteration: the queue is empty after every call."""

    def call() -> None:
        gpu.launch(80 * MS)
        gpu.synchronize()

    load = CudaLoad(call, torch.device("cuda"), 0.080, gpu.clock)
    begin_ns, end_ns = run(load, gpu, 2.0)
    # Only the host's own time lies between two iterations; a call overshoots by itself.
    assert gpu.idle_ns() <= len(gpu.ends_ns) * (gpu.launch_ns + 100_000)
    load.drain()
    assert load.iterations_between(begin_ns, end_ns) == pytest.approx(gpu.true_iterations(begin_ns, end_ns), rel=0.002)


def test_asked_late_it_launches_once_and_returns(gpu: Gpu) -> None:
    load = cuda_load(gpu, 1 * MS)
    load.begin()
    before_ns = gpu.clock.now_ns()
    load.keep_busy(before_ns - SECOND_NS)
    assert len(gpu.ends_ns) == 1
    assert gpu.clock.now_ns() - before_ns < 100_000


def test_it_never_sleeps_past_the_time_it_was_given(gpu: Gpu) -> None:
    load = cuda_load(gpu, 400 * MS)
    load.begin()
    for step_ns in (1 * MS, 300_000, 50_000):
        for _ in range(20):
            until_ns = gpu.clock.now_ns() + step_ns
            load.keep_busy(until_ns)
            assert until_ns <= gpu.clock.now_ns() <= until_ns + gpu.launch_ns + 100_000


def test_events_are_used_again(gpu: Gpu) -> None:
    load = cuda_load(gpu, 1 * MS)
    run(load, gpu, 3.0)
    load.drain()
    assert len(gpu.ends_ns) > 2900
    assert gpu.events <= 60
    run(load, gpu, 1.0)
    assert gpu.events <= 60


@pytest.mark.parametrize(("duration_ns", "seconds"), [(1 * MS, 15.0), (40 * MS, 240.0)])
def test_minutes_after_the_origin_ends_are_still_exact_enough(gpu: Gpu, duration_ns: int, seconds: float) -> None:
    """CUDA tells a float32 of milliseconds: 0.5 us after 10 s, 8 us after four minutes."""
    load = cuda_load(gpu, duration_ns)
    begin_ns, end_ns = run(load, gpu, seconds, step_ns=100 * MS)
    load.drain()
    middle_ns = end_ns - SECOND_NS // 3
    for first, last in ((begin_ns, end_ns), (middle_ns, end_ns)):
        truth = gpu.true_iterations(first, last)
        # 10 us on either end, at most.
        assert abs(load.iterations_between(first, last) - truth) <= 2 * 10_000 / duration_ns + 1e-6 * truth


def test_ends_never_fall_back_even_after_an_hour(gpu: Gpu) -> None:
    """Rounding makes neighbours equal at worst: each is counted once."""
    load = cuda_load(gpu, 60_000)
    load.begin()
    gpu.done_ns = gpu.clock.ns = gpu.clock.ns + 3600 * SECOND_NS
    begin_ns = gpu.clock.now_ns()
    while gpu.clock.now_ns() < begin_ns + 50 * MS:
        load.keep_busy(gpu.clock.now_ns() + 1 * MS)
    load.drain()
    assert load.iterations_between(0, gpu.clock.now_ns() + SECOND_NS) == len(gpu.ends_ns)


def test_what_a_meter_that_gave_up_left_behind_is_forgotten(gpu: Gpu) -> None:
    load = cuda_load(gpu, 5 * MS)
    run(load, gpu, 0.5)
    assert gpu.done_ns > gpu.clock.now_ns()
    launched = len(gpu.ends_ns)
    begin_ns, end_ns = run(load, gpu, 0.5)
    load.drain()
    del gpu.starts_ns[:launched], gpu.ends_ns[:launched]
    assert load.iterations_between(begin_ns, end_ns) == pytest.approx(gpu.true_iterations(begin_ns, end_ns), abs=0.01)
    assert load.iterations_between(0, 10**18) == len(gpu.ends_ns)


def test_draining_nothing_and_beginning_again(gpu: Gpu) -> None:
    load = cuda_load(gpu, 5 * MS)
    load.begin()
    load.drain()
    assert load.iterations_between(0, 10**18) == 0
    before_ns = gpu.clock.now_ns()
    load.begin()
    assert gpu.clock.now_ns() - before_ns < MS


def loads() -> list[tuple[str, Callable[[Gpu], Load]]]:
    return [
        ("host", lambda gpu: HostLoad(lambda: gpu.clock.spend(3 * MS), gpu.clock)),
        ("cuda", lambda gpu: cuda_load(gpu, 3 * MS)),
    ]


@pytest.mark.parametrize(("name", "make"), loads(), ids=["host", "cuda"])
def test_host_and_gpu_count_alike(gpu: Gpu, name: str, make: Callable[[Gpu], Load]) -> None:
    load = make(gpu)
    begin_ns, end_ns = run(load, gpu, 1.0)
    load.drain()
    assert load.iterations_between(begin_ns, end_ns) == pytest.approx((end_ns - begin_ns) / (3 * MS), rel=0.001)
