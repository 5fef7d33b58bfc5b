"""Timing of a callable: every sample kept, nothing but the call between the two readings of the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from infsa_bench.spec import Protocol

Clock = Callable[[], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Timed iterations in order, and what the last one returned.

    ``gpu_seconds`` is empty on a CPU. ``time_limited``: a limit ended the timing before the protocol would have.
    """

    latencies_seconds: tuple[float, ...]
    gpu_seconds: tuple[float, ...]
    time_limited: bool
    last_output: Tensor


def warm_up(
    call: Callable[[], object], protocol: Protocol, device: torch.device, *, clock: Clock = time.perf_counter_ns
) -> tuple[float, ...]:
    """Call until the protocol's warm-up is over; return the seconds of each call."""
    seconds: list[float] = []
    for _ in range(protocol.warmup_iterations):
        begin = clock()
        call()
        synchronize(device)
        seconds.append((clock() - begin) / 1e9)
        if protocol.warmup_seconds is not None and sum(seconds) >= protocol.warmup_seconds:
            break
    return tuple(seconds)


def time_calls(
    call: Callable[[], Tensor],
    protocol: Protocol,
    device: torch.device,
    *,
    limit_seconds: float | None = None,
    clock: Clock = time.perf_counter_ns,
) -> Samples:
    """Time single calls, each from an empty queue until the device is done.

    On CUDA two events around the same call give its ``gpu_seconds``. Ends as the protocol says, or before
    ``limit_seconds`` are over; at least one call is timed.
    """
    latencies: list[float] = []
    gpu_seconds: list[float] = []
    # Created before timing: making an event costs host time.
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
    synchronize(device)
    start = clock()
    while True:
        begin = clock()
        if events:
            events[0].record()
            output = call()
            events[1].record()
            torch.cuda.synchronize(device)
        else:
            output = call()
        end = clock()
        latencies.append((end - begin) / 1e9)
        if events:
            gpu_seconds.append(events[0].elapsed_time(events[1]) / 1e3)
        elapsed_seconds = (end - start) / 1e9
        finished = _is_finished(protocol, len(latencies), elapsed_seconds)
        # The next call will take as long as this one did: it must fit as well.
        if finished or (limit_seconds is not None and elapsed_seconds + latencies[-1] > limit_seconds):
            break
    return Samples(
        latencies_seconds=tuple(latencies),
        gpu_seconds=tuple(gpu_seconds),
        time_limited=not finished,
        last_output=output,
    )


def _is_finished(protocol: Protocol, iterations: int, elapsed_seconds: float) -> bool:
    if iterations >= protocol.timed_iterations:
        return True
    enough = iterations >= protocol.min_timed_iterations
    return enough and protocol.timed_seconds is not None and elapsed_seconds >= protocol.timed_seconds


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has finished its work; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
