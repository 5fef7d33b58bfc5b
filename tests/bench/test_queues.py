from __future__ import annotations

import time

import pytest
import torch

from infsa_bench.measure import queues
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


class IdleDevice:
    """A CUDA device on a clock of its own: 1.98 GHz, but a third of it in its first 0.15 s after rest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds, self.slept = 0.0, []
        device = self

        class Event:
            def __init__(self, **_options: bool) -> None:
                self.at = 0.0

            def record(self) -> None:
                self.at = device.seconds

            def elapsed_time(self, other: Event) -> float:
                return 1e3 * (other.at - self.at)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
        monkeypatch.setattr(torch.cuda, "_sleep", self.sleep)
        monkeypatch.setattr(queues.time, "monotonic", lambda: self.seconds)

    def sleep(self, cycles: int) -> None:
        self.slept.append(cycles)
        self.seconds += cycles / (1.98e9 if self.seconds > 0.15 else 0.66e9)


def test_a_device_that_was_idle_is_held_as_long_as_one_that_was_not(monkeypatch: pytest.MonkeyPatch) -> None:
    device = IdleDevice(monkeypatch)
    queue = CudaQueue(torch.device("cuda:0"))
    for seconds in (0.02, 0.1):
        queue.hold(0.001)
        begin = device.seconds
        queue.hold(seconds)
        assert device.seconds - begin == pytest.approx(seconds, rel=1e-6)
    # It is calibrated once.
    assert device.seconds < 0.4


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
