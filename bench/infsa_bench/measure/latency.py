"""Timing of a callable: every sample kept, nothing but the call between two readings.

Three quantities, never one name: the latency of a call from an empty queue, the time the device spends on it, and the
time per call while the queue is full. On a CPU, where a call returns when it is done, they are one, but for the loop.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from infsa_bench.measure.queues import Clock, Queue, open_queue
from infsa_bench.measure.stopping import BATCH_SECONDS, Beat, Series, StopRule, collect, silence
from infsa_bench.protocol import (
    LEAST_TIMED_ITERATIONS,
    SLOW_ITERATION_SECONDS,
    SLOW_MAX_WARMUP_ITERATIONS,
    STEADY_ITERATIONS,
    Protocol,
)

GRAPH_TWIN_BELOW_SECONDS = 0.020
"""Iterations that keep a GPU busy for longer are not worth a CUDA graph: launches cannot bound them."""

LAUNCH_BOUND_RATIO = 1.10
"""Eager time over that of its CUDA graph above which the launches, not the GPU, set the pace."""

SAMPLE_SECONDS = 1e-3
"""Least length of a sample with the queue kept full: events resolve half a microsecond."""

NEGLIGIBLE_LAUNCH = 0.02
"""Share of an iteration below which its launch delays no event."""

LAUNCHES_AHEAD = 1.5
MAX_HOLD_SECONDS = 0.05
"""A device is held for so many launch times before a sample, but no longer than this."""

LATE_SHARE = 0.1
"""Share of samples in which the device may be done with the hold before the call has been launched.

A CUDA stream takes about a thousand launches; then the host waits for the device, and the hold is over before the
rest of a call with more kernels is launched.
"""

LAUNCHES_SET_THE_PACE = 1.2
"""Late launches are in a sample that is no longer than so many launch times; a longer one covers them."""

LEAD_BELOW_SECONDS = 0.05
"""Shorter iterations are run once before a batch, so that its first sample finds the device busy."""

STEADY_CHANGE = 0.01

Call = Callable[[], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """The three quantities as in Measurement, and what the last timed call returned.

    ``converged`` holds if it does for each of them, ``time_limited`` if it does for one, as in Series.
    ``launches_in_gpu_seconds``: the host did not get ahead of the device, so that ``gpu_seconds`` waits for launches.
    """

    latencies_seconds: tuple[float, ...]
    gpu_seconds: tuple[float, ...]
    seconds_per_iteration: tuple[float, ...]
    iterations_per_sample: int
    converged: bool | None
    time_limited: bool
    launches_in_gpu_seconds: bool
    last_output: Tensor


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has finished its work; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def warm_up(
    call: Callable[[], object],
    protocol: Protocol,
    device: torch.device,
    *,
    limit_seconds: float | None = None,
    clock: Clock = time.perf_counter_ns,
    beat: Beat = silence,
) -> tuple[float, ...]:
    """Call until the protocol's warm-up is over; return the seconds of each call.

    Ends before ``limit_seconds`` are over, going by the last call, but for one call.
    """
    seconds: list[float] = []
    total_ns, first_ns = 0, 0
    while not _is_warm(seconds, (total_ns - first_ns) / 1e9, protocol):
        if seconds and limit_seconds is not None and total_ns / 1e9 + seconds[-1] > limit_seconds:
            break
        begin = clock()
        call()
        synchronize(device)
        call_ns = clock() - begin
        seconds.append(call_ns / 1e9)
        total_ns += call_ns
        first_ns = first_ns or call_ns
        beat()
    return tuple(seconds)


def _is_warm(seconds: Sequence[float], elapsed_seconds: float, protocol: Protocol) -> bool:
    """Tell whether it is enough, ``elapsed_seconds`` after the end of the first call."""
    count = len(seconds)
    if protocol.max_warmup_seconds is None:
        return count >= protocol.warmup_iterations
    if count == 0:
        return False
    if elapsed_seconds >= protocol.max_warmup_seconds:
        return True
    last = statistics.median(seconds[-STEADY_ITERATIONS:])
    if count >= SLOW_MAX_WARMUP_ITERATIONS and last > SLOW_ITERATION_SECONDS:
        return True
    if count < protocol.warmup_iterations or elapsed_seconds < protocol.warmup_seconds:
        return False
    # After whole blocks only: looked at after every call, some two blocks would agree by chance.
    if count % STEADY_ITERATIONS or count < 2 * STEADY_ITERATIONS:
        return False
    before = statistics.median(seconds[-2 * STEADY_ITERATIONS : -STEADY_ITERATIONS])
    return abs(last - before) <= STEADY_CHANGE * before


def time_case(
    call: Call,
    protocol: Protocol,
    device: torch.device,
    *,
    limit_seconds: float | None = None,
    clock: Clock = time.perf_counter_ns,
    beat: Beat = silence,
) -> Timings:
    """Time ``call`` in one pass for each quantity that the passes before have not given.

    ``limit_seconds`` is for all passes together; each takes LEAST_TIMED_ITERATIONS at least, or the protocol's count.
    """
    queue = open_queue(device, clock)
    begin = clock()

    def left_seconds() -> float | None:
        return None if limit_seconds is None else limit_seconds - (clock() - begin) / 1e9

    def passes(iteration_seconds: float) -> int:
        if queue.is_asynchronous:
            return 1 if iteration_seconds > SLOW_ITERATION_SECONDS else 3
        return 2 if iteration_seconds < SAMPLE_SECONDS else 1

    single = _SingleCalls(call, queue, clock)
    latency = collect(single.take, StopRule(protocol, limit_seconds, passes), clock, beat=beat)
    iteration_seconds = statistics.median(latency.seconds)
    launch_seconds = statistics.median(single.launches)
    is_slow = iteration_seconds > SLOW_ITERATION_SECONDS
    gpu: Series | None = None
    late_share = 0.0
    saturated: Series | None = None
    if not queue.is_asynchronous:
        if iteration_seconds >= SAMPLE_SECONDS:
            saturated = replace(latency, seconds=tuple(single.periods))
    elif len(single.spans) == len(latency.seconds) and (
        is_slow or launch_seconds < NEGLIGIBLE_LAUNCH * iteration_seconds
    ):
        gpu = replace(latency, seconds=tuple(single.spans))
        saturated = gpu if is_slow else None
    else:
        left = left_seconds()
        rule = StopRule(protocol, None if left is None else left / 2)
        gpu, late_share = _time_gpu(call, queue, rule, clock, launch_seconds, iteration_seconds, beat=beat)
    if saturated is None:
        hint = statistics.median(gpu.seconds) if gpu else iteration_seconds
        saturated = _time_saturated(call, queue, StopRule(protocol, left_seconds()), clock, hint, beat)
    series = [latency, saturated, *([gpu] if gpu else [])]
    return Timings(
        latencies_seconds=latency.seconds,
        gpu_seconds=gpu.seconds if gpu else (),
        seconds_per_iteration=saturated.seconds,
        iterations_per_sample=saturated.iterations_per_sample,
        converged=None if latency.converged is None else all(item.converged for item in series),
        time_limited=any(item.time_limited for item in series),
        launches_in_gpu_seconds=late_share > LATE_SHARE
        and gpu is not None
        and statistics.median(gpu.seconds) < LAUNCHES_SET_THE_PACE * launch_seconds,
        last_output=single.last_output,
    )


def time_saturated(
    call: Call,
    protocol: Protocol,
    device: torch.device,
    *,
    limit_seconds: float | None = None,
    clock: Clock = time.perf_counter_ns,
    beat: Beat = silence,
) -> Series:
    """Time ``call`` with the queue kept full, in samples of at least SAMPLE_SECONDS; it must be warm."""
    return _time_saturated(call, open_queue(device, clock), StopRule(protocol, limit_seconds), clock, 0.0, beat)


def time_gpu(
    call: Call,
    protocol: Protocol,
    device: torch.device,
    *,
    flush: Callable[[], None] | None = None,
    limit_seconds: float | None = None,
    clock: Clock = time.perf_counter_ns,
) -> Series:
    """Time what the device spends on ``call``, launches left out; it must be warm.

    ``flush`` is run before each sample, outside of it: for calls whose inputs an earlier one may have left in cache.
    """
    queue = open_queue(device, clock)
    single = _SingleCalls(call, queue, clock)
    seconds = statistics.median(single.take(LEAST_TIMED_ITERATIONS))
    rule = StopRule(protocol, limit_seconds)
    series, _ = _time_gpu(call, queue, rule, clock, statistics.median(single.launches), seconds, flush=flush)
    return series


def is_launch_bound(eager_seconds_per_iteration: Sequence[float], graph_seconds_per_iteration: Sequence[float]) -> bool:
    """Tell whether the launches set the pace: replayed as a CUDA graph, the same work is much faster."""
    eager, graph = statistics.median(eager_seconds_per_iteration), statistics.median(graph_seconds_per_iteration)
    return eager > LAUNCH_BOUND_RATIO * graph


class _SingleCalls:
    """Calls from an empty queue, each waited for.

    Attributes:
        launches: seconds until each call returned.
        periods: seconds from each call's begin to the begin of the next.
        spans: seconds between two marks around each call, left out where marking would cost latency.
    """

    def __init__(self, call: Call, queue: Queue, clock: Clock) -> None:
        self._call, self._queue, self._clock = call, queue, clock
        self._is_marked = queue.is_asynchronous
        self.launches: list[float] = []
        self.periods: list[float] = []
        self.spans: list[float] = []
        self.last_output = torch.empty(0)

    def take(self, count: int) -> list[float]:
        """Return the latencies of the next ``count`` calls; of fewer where they take longer than a batch should."""
        call, queue, clock = self._call, self._queue, self._clock
        latencies: list[float] = []
        begins: list[int] = []
        queue.synchronize()
        over_at = clock() + round(BATCH_SECONDS * 1e9)
        for _ in range(count):
            if self._is_marked:
                queue.mark(0)
            begin = clock()
            self.last_output = call()
            launched = clock()
            if self._is_marked:
                queue.mark(1)
            queue.synchronize()
            end = clock()
            begins.append(begin)
            latencies.append((end - begin) / 1e9)
            self.launches.append((launched - begin) / 1e9)
            if self._is_marked:
                self.spans.append(queue.seconds_between(0, 1))
            if len(self.launches) == 1:
                # The second mark costs the host a microsecond or two. Where the device does not cover that, the first
                # sample is the only one to pay.
                is_covered = self.launches[0] < NEGLIGIBLE_LAUNCH * latencies[0]
                self._is_marked &= is_covered or latencies[0] > SLOW_ITERATION_SECONDS
            if end >= over_at:
                break
        begins.append(clock())
        self.periods += [(second - first) / 1e9 for first, second in itertools.pairwise(begins)]
        return latencies


def _time_gpu(
    call: Call,
    queue: Queue,
    rule: StopRule,
    clock: Clock,
    launch_seconds: float,
    iteration_seconds: float,
    *,
    flush: Callable[[], None] | None = None,
    beat: Beat = silence,
) -> tuple[Series, float]:
    """Return the samples, and the share of them whose call was not launched when the device was through its hold."""
    hold_seconds = min(LAUNCHES_AHEAD * launch_seconds, MAX_HOLD_SECONDS)

    is_late: list[bool] = []

    def take(count: int) -> list[float]:
        for index in range(count):
            if flush is not None:
                flush()
            # The host is ahead when the device reaches the first mark: it waits for no launch after it.
            queue.hold(hold_seconds)
            queue.mark(2 * index)
            call()
            is_late.append(queue.has_passed(2 * index))
            queue.mark(2 * index + 1)
        queue.synchronize()
        return [queue.seconds_between(2 * index, 2 * index + 1) for index in range(count)]

    series = collect(take, rule, clock, sample_seconds=hold_seconds + iteration_seconds, beat=beat)
    return series, sum(is_late) / len(is_late)


def _time_saturated(
    call: Call, queue: Queue, rule: StopRule, clock: Clock, iteration_seconds: float, beat: Beat
) -> Series:
    """Time blocks of iterations; ``iteration_seconds`` is about how long one takes, 0 if nobody knows."""
    inner = 1

    def take(count: int) -> list[float]:
        if iteration_seconds < LEAD_BELOW_SECONDS:
            call()
        queue.mark(0)
        for index in range(count):
            for _ in range(inner):
                call()
            queue.mark(index + 1)
        queue.synchronize()
        return [queue.seconds_between(index, index + 1) / inner for index in range(count)]

    # A hint may hold launches that a full queue hides: near the limit it is tried out, three times against chance.
    while iteration_seconds < 2 * SAMPLE_SECONDS:
        iteration_seconds = statistics.median(take(3))
        needed = math.ceil(SAMPLE_SECONDS / max(iteration_seconds, 1e-7))
        if needed <= inner:
            break
        inner = needed
    return collect(take, rule, clock, sample_seconds=inner * iteration_seconds, inner=inner, beat=beat)
