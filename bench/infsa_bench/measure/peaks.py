"""The best that a device does in the two things that bound every model: matrix products and moving data.

On random numbers: a GPU needs less power for zeros, and then clocks higher than any model will see.
"""

from __future__ import annotations

import datetime
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from infsa_bench.machine import Environment
from infsa_bench.measure.latency import SAMPLE_SECONDS
from infsa_bench.measure.memory import release_freed_memory
from infsa_bench.measure.processors import OtherLoad, own_cores
from infsa_bench.measure.queues import MARKS, Clock, Queue, open_queue
from infsa_bench.peaks import MeasuredPeaks, MeasuredRate

PRODUCTS = ((4096, 1024, 4096), (4096, 1024, 1024))
"""Rows, inner and columns of the products of this benchmark's model on 4096 tokens: its MLP's and its projections'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is put into one rate: the best of ``rounds`` medians, each of ``repetitions`` samples.

    ``copied_bytes`` is the size of the buffer that is copied, far above every cache.
    """

    rounds: int
    repetitions: int
    warmup_seconds: float
    copied_bytes: int


CPU_EFFORT = Effort(rounds=3, repetitions=3, warmup_seconds=0.0, copied_bytes=2**28)
CUDA_EFFORT = Effort(rounds=5, repetitions=20, warmup_seconds=0.5, copied_bytes=2**30)
"""A GPU needs half a second to raise its clocks."""


def measure_peaks(
    device: torch.device,
    environment: Environment,
    *,
    clock: Clock = time.perf_counter_ns,
    effort: Effort | None = None,
    products: Iterable[tuple[int, int, int]] = PRODUCTS,
) -> MeasuredPeaks:
    """Measure ``device``, under the settings that cases run under: torch's defaults, so that fp32 is no TF32.

    Raises:
        torch.OutOfMemoryError, RuntimeError: as torch raises them.
    """
    effort = effort or (CUDA_EFFORT if device.type == "cuda" else CPU_EFFORT)
    begin = clock()
    others = OtherLoad(cores=own_cores()) if device.type == "cpu" else None
    queue = open_queue(device, clock)
    dtypes = {"fp32": torch.float32}
    if device.type == "cuda":
        dtypes |= {"bf16": torch.bfloat16, "fp16": torch.float16}
    shapes = tuple(products)
    flops_per_second: dict[str, MeasuredRate] = {}
    with torch.inference_mode():
        for name, dtype in dtypes.items():
            rates = [_product_rate(shape, dtype, device, queue, effort, clock) for shape in shapes]
            flops_per_second[name] = max(rates, key=lambda rate: rate.per_second)
        copied = _copy_rate(device, queue, effort, clock)
    release_freed_memory(device)
    return MeasuredPeaks(
        device=environment.device,
        device_name=environment.device_name,
        device_uuid=environment.device_uuid,
        torch_threads=environment.torch_threads,
        measured_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=(clock() - begin) / 1e9,
        is_shared=others is not None and others.is_shared(),
        flops_per_second=flops_per_second,
        copied_bytes_per_second=copied,
    )


def _product_rate(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, queue: Queue, effort: Effort, clock: Clock
) -> MeasuredRate:
    rows, inner, columns = shape
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(inner, columns, device=device).to(dtype)
    result = torch.empty(rows, columns, device=device, dtype=dtype)
    what = f"{rows} x {inner} x {columns}"
    return best_rate(2 * rows * inner * columns, what, lambda: torch.mm(left, right, out=result), queue, effort, clock)


def _copy_rate(device: torch.device, queue: Queue, effort: Effort, clock: Clock) -> MeasuredRate:
    source = torch.randn(effort.copied_bytes // 4, device=device)
    target = torch.empty_like(source)
    what = f"copy of {source.nbytes // 2**20} MiB"
    return best_rate(2 * source.nbytes, what, lambda: target.copy_(source), queue, effort, clock)


def best_rate(
    amount: int, what: str, call: Callable[[], object], queue: Queue, effort: Effort, clock: Clock
) -> MeasuredRate:
    """Return how much a second ``call`` gets done, which each time is ``amount``: the queue full, the best median."""
    seconds = _warm_up(call, queue, effort.warmup_seconds, clock)
    # A GPU's events resolve half a microsecond.
    inner = max(1, math.ceil(SAMPLE_SECONDS / max(seconds, 1e-9)))
    repetitions = min(effort.repetitions, MARKS - 1)
    medians = [_median_seconds(call, queue, repetitions, inner) for _ in range(effort.rounds)]
    best, worst = min(medians), max(medians)
    return MeasuredRate(
        per_second=amount / best, what=what, rounds=effort.rounds, repetitions=repetitions, spread=1 - best / worst
    )


def _warm_up(call: Callable[[], object], queue: Queue, least_seconds: float, clock: Clock) -> float:
    """Call until the device is warm; return about how long a call takes."""
    call()
    queue.synchronize()
    begin, calls = clock(), 0
    while True:
        call()
        queue.synchronize()
        calls += 1
        elapsed_seconds = (clock() - begin) / 1e9
        if elapsed_seconds >= least_seconds:
            return elapsed_seconds / calls


def _median_seconds(call: Callable[[], object], queue: Queue, repetitions: int, inner: int) -> float:
    queue.mark(0)
    for index in range(repetitions):
        for _ in range(inner):
            call()
        queue.mark(index + 1)
    queue.synchronize()
    return statistics.median(queue.seconds_between(index, index + 1) / inner for index in range(repetitions))
