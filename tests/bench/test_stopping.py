from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence

import numpy as np
import pytest

from infsa_bench.intervals import is_precise
from infsa_bench.measure import stopping
from infsa_bench.measure.stopping import BATCH_SAMPLES, LOOK_EVERY, LOOK_GROWTH, Series, StopRule, collect
from infsa_bench.protocol import PROTOCOLS

QUICK = PROTOCOLS["quick"]


class Source:
    """Samples in virtual time, by chance half or one and a half of ``seconds``: never precise."""

    def __init__(self, seconds: float) -> None:
        self._values = np.random.default_rng(1).choice([0.5 * seconds, 1.5 * seconds], 2**20)
        self._now = 0
        self._taken = 0
        self.batches: list[int] = []

    def clock(self) -> int:
        return self._now

    def take(self, count: int) -> list[float]:
        taken: list[float] = self._values[self._taken : self._taken + count].tolist()
        self._taken += count
        self.batches.append(count)
        self._now += round(sum(taken) * 1e9)
        return taken


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many samples there were whenever the precision was looked at."""
    counts: list[int] = []

    def look(samples: Sequence[float], target: float) -> bool:
        counts.append(len(samples))
        return is_precise(samples, target)

    monkeypatch.setattr(stopping, "is_precise", look)
    return counts


def collected(source: Source, limit_seconds: float | None = None) -> Series:
    return collect(source.take, StopRule(QUICK, limit_seconds), source.clock)


def test_precision_is_looked_at_every_sixteen_samples(looks: list[int]) -> None:
    series = collected(Source(0.02))
    # From one second on; the last look is at the end.
    assert looks[0] == pytest.approx(50, rel=0.2)
    assert {after - before for before, after in itertools.pairwise(looks[:-1])} == {LOOK_EVERY}
    assert looks[-1] == len(series.seconds)


def test_many_samples_are_looked_at_more_rarely(looks: list[int]) -> None:
    series = collected(Source(0.0001))
    assert len(series.seconds) == pytest.approx(100_000, rel=0.01)
    assert looks[0] == pytest.approx(10_000, rel=0.05)
    for before, after in itertools.pairwise(looks[:-1]):
        assert after - before >= LOOK_GROWTH * before
        assert after - before <= LOOK_GROWTH * before + 1
    # 1.03 to the 78th is 10.
    assert len(looks) == pytest.approx(78, abs=3)


def test_slow_samples_are_looked_at_about_once_a_second(looks: list[int]) -> None:
    collected(Source(0.3))
    assert looks[0] == 30
    assert looks[1] - looks[0] == 3
    looks.clear()
    collected(Source(4.0))
    # The median of few samples is now that of a slow iteration, now not: at least one in a second, all the same.
    assert len(looks) >= 5
    assert {after - before for before, after in itertools.pairwise(looks)} <= {0, 1}


def test_looking_costs_less_than_what_is_looked_at() -> None:
    """10 seconds of virtual time; what passes in real time is looking at 50 000 samples, again and again."""
    begin = time.process_time()
    assert len(collected(Source(0.0002)).seconds) > 49_000
    assert time.process_time() - begin < 3


def test_batches_hold_so_many_samples_or_so_much_time() -> None:
    fast, medium, slow = Source(0.001), Source(0.05), Source(3.0)
    for source in (fast, medium, slow):
        collected(source)
        assert source.batches[0] == 1
    assert max(fast.batches) == BATCH_SAMPLES
    assert max(medium.batches) <= 1 / (0.5 * 0.05)
    assert medium.batches[:5] == [1, 1, 2, 4, 8]
    assert set(slow.batches) == {1}


def test_a_limit_is_shared_with_the_passes_to_come() -> None:
    source = Source(0.01)
    rule = StopRule(QUICK, 3.0, lambda iteration_seconds: 3 if iteration_seconds < 1 else 1)
    series = collect(source.take, rule, source.clock)
    assert series.time_limited
    assert sum(series.seconds) == pytest.approx(1.0, abs=0.1)
    slow = Source(5.0)
    rule = StopRule(QUICK, 30.0, lambda iteration_seconds: 3 if iteration_seconds < 1 else 1)
    assert sum(collect(slow.take, rule, slow.clock).seconds) == pytest.approx(30.0, abs=7.5)


def test_a_cap_of_the_protocol_is_no_limit() -> None:
    series = collected(Source(0.01), limit_seconds=11.0)
    assert not series.time_limited
    assert series.converged is False
    assert sum(series.seconds) == pytest.approx(10.0, abs=0.02)


def test_what_a_sample_should_take_is_no_more_than_a_hint() -> None:
    """Too short a time promised makes one batch too long, not more."""
    source = Source(0.5)
    series = collect(source.take, StopRule(QUICK, None), source.clock, sample_seconds=1e-6)
    assert source.batches[0] == BATCH_SAMPLES
    assert len(series.seconds) == BATCH_SAMPLES
    patient = Source(0.01)
    collect(patient.take, StopRule(QUICK, None), patient.clock, sample_seconds=100.0)
    assert patient.batches[0] == 1


def test_exact_counts_look_at_no_precision(looks: list[int]) -> None:
    protocol = dataclasses.replace(QUICK, timed_iterations=5000, max_timed_seconds=None)
    source = Source(0.0001)
    series = collect(source.take, StopRule(protocol, None), source.clock)
    assert len(series.seconds) == 5000
    assert series.converged is None
    assert looks == []


def test_times_that_no_clock_can_tell_apart_do_not_run_for_ever() -> None:
    rule = StopRule(dataclasses.replace(QUICK, timed_iterations=1000, max_timed_seconds=None), None)
    assert len(collect(lambda count: [0.0] * count, rule, lambda: 0).seconds) == 1000
