from __future__ import annotations

import time

import pytest
import torch

from infsa_bench.measure.queues import MARKS, CudaQueue, HostQueue, open_queue

CPU = torch.device("cpu")


def test_the_queue_of_a_cpu_is_its_clock() -> None:
    readings = iter([1_000_000_000, 1_002_500_000, 9_000_000_000])
    queue = open_queue(CPU, lambda: next(readings))
    assert isinstance(queue, HostQueue)
    assert not queue.is_asynchronous
    queue.mark(0)
    queue.mark(MARKS - 1)
    assert queue.seconds_between(0, MARKS - 1) == 0.0025
    queue.mark(0)
    assert queue.seconds_between(MARKS - 1, 0) == pytest.approx(7.9975)


def test_a_cpu_is_never_held() -> None:
    begin = time.perf_counter()
    queue = open_queue(CPU, time.perf_counter_ns)
    queue.hold(10.0)
    queue.synchronize()
    assert time.perf_counter() - begin < 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use")
@pytest.mark.parametrize("seconds", [0.001, 0.02, 0.1])
def test_a_gpu_is_held_for_about_so_long_and_the_host_is_not(seconds: float) -> None:
    queue = open_queue(torch.device("cuda:0"), time.perf_counter_ns)
    assert isinstance(queue, CudaQueue)
    queue.hold(seconds)
    queue.synchronize()
    begin = time.perf_counter()
    queue.mark(0)
    queue.hold(seconds)
    queue.mark(1)
    returned = time.perf_counter() - begin
    queue.synchronize()
    # The spinning counts clock cycles, and clocks change.
    assert queue.seconds_between(0, 1) == pytest.approx(seconds, rel=0.3)
    assert returned < max(0.5 * seconds, 0.0005)
