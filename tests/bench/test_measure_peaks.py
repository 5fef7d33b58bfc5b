"""Peaks measured: exact on a clock that the work itself moves, plausible on this processor."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from sample_records import ENVIRONMENT

from infsa_bench.execute.instruments import open_instruments
from infsa_bench.execute.worker import find_peaks
from infsa_bench.measure import peaks as measure_peaks_module
from infsa_bench.measure.peaks import Effort, best_rate, measure_peaks
from infsa_bench.measure.queues import HostQueue

CPU = torch.device("cpu")
SMALL = Effort(rounds=2, repetitions=3, warmup_seconds=0.0, copied_bytes=2**20)


class Work:
    """Takes as long as it is told, call by call; the last length holds on."""

    def __init__(self, nanoseconds: Iterator[int]) -> None:
        self.now, self.calls, self._nanoseconds = 0, 0, nanoseconds

    def __call__(self) -> None:
        self.calls += 1
        self.now += next(self._nanoseconds)

    def clock(self) -> int:
        return self.now


def lengths(*nanoseconds: int) -> Iterator[int]:
    yield from nanoseconds
    while True:
        yield nanoseconds[-1]


def test_the_best_of_the_rounds_medians() -> None:
    # Two to warm up; rounds of three with medians of 4, 2 and 8 ms.
    work = Work(lengths(*(1_000_000 * each for each in (9, 9, 4, 90, 4, 2, 1, 2, 8, 8, 8))))
    effort = dataclasses.replace(SMALL, rounds=3)
    rate = best_rate(1000, "work", work, HostQueue(work.clock), effort, work.clock)
    assert rate.per_second == pytest.approx(1000 / 0.002)
    assert (rate.what, rate.rounds, rate.repetitions, rate.spread) == ("work", 3, 3, 0.75)
    assert work.calls == 11


def test_short_calls_are_timed_together() -> None:
    work = Work(lengths(100_000))
    rate = best_rate(1000, "work", work, HostQueue(work.clock), SMALL, work.clock)
    assert rate.per_second == pytest.approx(1e7)
    # Ten of them make a sample.
    assert work.calls == 2 + 2 * 3 * 10
    assert rate.spread == 0


def test_a_device_is_warmed_up_for_as_long_as_it_needs() -> None:
    work = Work(lengths(10_000_000))
    best_rate(1, "work", work, HostQueue(work.clock), dataclasses.replace(SMALL, warmup_seconds=0.5), work.clock)
    assert work.calls == 1 + 50 + 6


def test_this_processor() -> None:
    found = measure_peaks(CPU, ENVIRONMENT, effort=SMALL, products=((64, 32, 64), (64, 32, 32)))
    assert found.flops_per_second.keys() == {"fp32"}
    product = found.flops_per_second["fp32"]
    assert product.what in ("64 x 32 x 64", "64 x 32 x 32")
    assert 1e7 < product.per_second < 1e13
    assert found.copied_bytes_per_second.what == "copy of 1 MiB"
    assert 1e7 < found.copied_bytes_per_second.per_second < 1e13
    assert (found.device, found.device_name) == (ENVIRONMENT.device, ENVIRONMENT.device_name)
    assert found.are_of(ENVIRONMENT)
    assert 0 < found.seconds < 60


def test_an_error_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(measure_peaks_module.torch, "mm", fail)
    answer = find_peaks(ENVIRONMENT, open_instruments(CPU))
    assert answer.peaks is None
    assert answer.problem == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
