"""Timing on a real GPU, against other ways to tell the same time."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from infsa_bench.execute.modes import CudaGraph
from infsa_bench.execute.workload import build_workload
from infsa_bench.measure.latency import (
    SAMPLE_SECONDS,
    is_launch_bound,
    time_case,
    time_gpu,
    time_saturated,
    warm_up,
)
from infsa_bench.protocol import PROTOCOLS
from infsa_bench.spec import Case, Execution

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use"),
]

CUDA = torch.device("cuda:0")
QUICK = PROTOCOLS["quick"]


def softmax_case(execution: Execution = "eager") -> Case:
    return Case(
        mechanism="softmax",
        implementation="reference",
        config="4L-64H",
        resolution=224,
        batch_size=1,
        precision="bf16",
        phase="infer",
        execution=execution,
    )


def matmul_of(seconds: float) -> Callable[[], Tensor]:
    """Return a product of two square matrices that takes about so long here."""
    size, found = 1024, 0.0
    while found < seconds:
        left, right = (torch.randn(size, size, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
        call = multiplication(left, right)
        warm_up(call, dataclasses.replace(QUICK, warmup_seconds=0.2, max_warmup_seconds=1.0), CUDA)
        found = statistics.median(
            time_gpu(call, QUICK.customized(warmup=0, iterations=5, replicates=None), CUDA).seconds
        )
        # The time grows with the cube of the size; multiples of 128 keep the kernels alike.
        size = max(size + 128, round(size * (seconds / found) ** (1 / 3) / 128) * 128)
    return call


def multiplication(left: Tensor, right: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        return left @ right

    return call


def many_small_kernels(count: int = 300) -> Callable[[], Tensor]:
    values = torch.randn(1024, device=CUDA)

    def call() -> Tensor:
        found = values
        for _ in range(count):
            found = found + 1.0
        return found

    return call


def graph_of(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    replay = CudaGraph().prepare(lambda batch: call(), [torch.zeros(1, device=CUDA)])
    return lambda: replay(0)


@pytest.mark.parametrize("seconds", [0.001, pytest.param(0.1, marks=pytest.mark.soak)])
def test_gpu_seconds_are_those_of_triton(seconds: float) -> None:
    testing = pytest.importorskip("triton.testing")
    call = matmul_of(seconds)
    cache = torch.empty(256 * 2**20 // 4, dtype=torch.int32, device=CUDA)

    def flush() -> None:
        cache.zero_()

    ratios: dict[str, list[float]] = {"flushed": [], "as a case is timed": []}
    # In turn: clocks drift with temperature.
    for _ in range(3):
        theirs = testing.do_bench(call, warmup=200, rep=2000, return_mode="median") / 1e3
        flushed = statistics.median(time_gpu(call, QUICK, CUDA, flush=flush).seconds)
        ratios["flushed"].append(flushed / theirs)
        if seconds == 0.1:
            # Nothing is flushed there, which matters no more in calls this long.
            as_timed = statistics.median(time_case(call, QUICK, CUDA).gpu_seconds)
            ratios["as a case is timed"].append(as_timed / theirs)
    for name, found in ratios.items():
        if found:
            assert statistics.median(found) == pytest.approx(1.0, abs=0.02), name


@pytest.mark.soak
@pytest.mark.parametrize("kernels", [30, 300])
def test_latency_is_that_of_a_plain_loop(kernels: int) -> None:
    """Launch-bound, so that whatever timing adds to the host's work would be seen."""
    call = many_small_kernels(kernels)
    warm_up(call, QUICK, CUDA)
    ratios = []
    for _ in range(3):
        plain = []
        for _ in range(1000):
            begin = time.perf_counter_ns()
            call()
            torch.cuda.synchronize()
            plain.append((time.perf_counter_ns() - begin) / 1e9)
        ours = time_case(call, QUICK.customized(warmup=0, iterations=1000, replicates=None), CUDA).latencies_seconds
        ratios.append(statistics.median(ours) / statistics.median(plain))
    assert statistics.median(ratios) == pytest.approx(1.0, abs=0.03)


def test_many_small_kernels_are_launch_bound() -> None:
    call = many_small_kernels()
    warm_up(call, QUICK, CUDA)
    eager = time_case(call, QUICK, CUDA)
    graph = graph_of(call)
    warm_up(graph, QUICK, CUDA)
    assert is_launch_bound(eager.seconds_per_iteration, time_saturated(graph, QUICK, CUDA).seconds)
    # What the GPU has to do is less than what the host takes to say so.
    assert statistics.median(eager.gpu_seconds) < statistics.median(eager.seconds_per_iteration)


@pytest.mark.soak
def test_one_big_product_is_not_launch_bound() -> None:
    call = matmul_of(0.01)
    warm_up(call, QUICK, CUDA)
    eager = time_case(call, QUICK, CUDA)
    graph = graph_of(call)
    warm_up(graph, QUICK, CUDA)
    assert not is_launch_bound(eager.seconds_per_iteration, time_saturated(graph, QUICK, CUDA).seconds)


@pytest.mark.parametrize("seconds", [None, *(pytest.param(one, marks=pytest.mark.soak) for one in (0.001, 0.02, 0.3))])
def test_the_three_quantities_agree_with_each_other(seconds: float | None) -> None:
    call = many_small_kernels() if seconds is None else matmul_of(seconds)
    warm_up(call, QUICK, CUDA)
    timings = time_case(call, QUICK, CUDA)
    latency = statistics.median(timings.latencies_seconds)
    pace = statistics.median(timings.seconds_per_iteration)
    busy = statistics.median(timings.gpu_seconds)
    # 3 % for clocks that change from pass to pass.
    assert pace <= 1.03 * latency
    assert busy <= 1.03 * latency
    assert busy <= 1.03 * pace
    assert min(timings.seconds_per_iteration) * timings.iterations_per_sample >= 0.9 * SAMPLE_SECONDS
    if seconds is not None:
        assert busy == pytest.approx(pace, rel=0.03)


@pytest.mark.soak
def test_iterations_above_a_second_are_run_once_for_all() -> None:
    calls = 0
    product = matmul_of(0.1)

    def call() -> Tensor:
        nonlocal calls
        calls += 1
        for _ in range(11):
            output = product()
        return output

    warm_up(call, QUICK.customized(warmup=1, iterations=None, replicates=None), CUDA)
    calls = 0
    timings = time_case(call, QUICK, CUDA)
    assert calls == len(timings.latencies_seconds) == len(timings.gpu_seconds) == len(timings.seconds_per_iteration)
    for host, device in zip(timings.latencies_seconds, timings.gpu_seconds, strict=True):
        assert device == pytest.approx(host, rel=0.01)


def test_the_graph_twin_of_a_model() -> None:
    built = build_workload(softmax_case(), CUDA)
    assert built.graph_twin is not None
    warm_up(built.call, QUICK, CUDA)
    expected = [built.call().clone() for _ in range(2)]
    replay = built.graph_twin()
    # Inputs rotate in the same order, from the first one.
    found = [replay().clone() for _ in range(2)]
    distances = [min(float((one - other).abs().max()) for other in expected) / float(one.abs().max()) for one in found]
    assert max(distances) < 0.05
    assert not torch.equal(found[0], found[1])
    eager = statistics.median(time_case(built.call, QUICK, CUDA).seconds_per_iteration)
    graph = statistics.median(time_saturated(replay, QUICK, CUDA).seconds)
    assert graph <= 1.02 * eager
    executions: tuple[Execution, ...] = ("compile", "cuda-graph")
    for execution in executions:
        assert build_workload(softmax_case(execution), CUDA).graph_twin is None


@pytest.mark.parametrize("limit_seconds", [0.2, pytest.param(1.0, marks=pytest.mark.soak)])
def test_a_limit_holds_for_all_passes_together(limit_seconds: float) -> None:
    call = many_small_kernels()
    warm_up(call, QUICK, CUDA)
    begin = time.perf_counter()
    timings = time_case(call, QUICK, CUDA, limit_seconds=limit_seconds)
    assert time.perf_counter() - begin < limit_seconds + 0.5
    assert timings.time_limited
    assert timings.gpu_seconds
    assert timings.seconds_per_iteration
