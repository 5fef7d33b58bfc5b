from __future__ import annotations

import pytest

from infsa_bench.measure.stopwatch import Stopwatch


def test_stages_add_up_and_failures_count() -> None:
    times = iter([0, 1_000_000_000, 3_000_000_000, 4_000_000_000, 4_500_000_000, 9_000_000_000])
    stopwatch = Stopwatch(lambda: next(times))
    with stopwatch.stage("window"):
        pass
    with pytest.raises(ZeroDivisionError), stopwatch.stage("window"):
        raise ZeroDivisionError
    assert stopwatch.seconds == {"window": 2.5}
    assert stopwatch.elapsed_seconds() == 9.0
