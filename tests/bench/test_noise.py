"""A machine's own noise: what is stored of it, and what follows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from sample_records import ENVIRONMENT, values_of
from sample_sides import cell_records, make_side, noisy

from infsa_bench.analyze.noise import (
    Noise,
    confirming_replicates,
    load_noise,
    noise_of,
    usable_noise,
    write_noise,
)
from infsa_bench.codec import decode, encode
from infsa_bench.errors import SchemaError, SpecError

NOW = "2026-01-02T03:04:05+00:00"


def test_deviations_are_of_logarithms_of_processes() -> None:
    noise = noise_of(make_side(cell_records([1.0, 1.1, 1.2])), NOW)
    latency = next(cell for cell in noise.cells if cell.metric == "latency")
    assert latency.degrees == 2
    assert latency.deviation == pytest.approx(np.std(np.log([1.0, 1.1, 1.2]), ddof=1))


def test_the_pool_of_many_cells_is_near_the_truth() -> None:
    noise = noise_of(make_side(noisy(10, deviation=0.01)), NOW)
    pooled = {found.metric: found for found in noise.pooled}
    assert pooled["latency"].deviation == pytest.approx(0.01, rel=0.2)
    variance, degrees = noise.spread("latency", "a cell that nobody measured") or (0.0, 0.0)
    assert variance == pytest.approx(pooled["latency"].deviation ** 2)
    own = noise.cells[0]
    mixed, more = noise.spread("latency", own.cell) or (0.0, 0.0)
    assert more > degrees or more == 1e6
    assert min(own.deviation**2, variance) <= mixed <= max(own.deviation**2, variance)
    assert noise.spread("energy", own.cell) is None


@pytest.mark.parametrize(("deviation", "count"), [(0.005, 10), (0.02, 10), (0.03, 13), (0.04, 22), (0.06, 30)])
def test_confirming_replicates(deviation: float, count: int) -> None:
    assert confirming_replicates([deviation]) == pytest.approx(count, abs=1)


def test_noise_needs_processes_and_one_machine() -> None:
    with pytest.raises(SpecError, match="3 processes or more"):
        noise_of(make_side(cell_records([1.0, 1.1])), NOW)
    side = make_side(noisy())
    two = dataclasses.replace(side, environments={"a": ENVIRONMENT, "b": ENVIRONMENT})
    with pytest.raises(SpecError, match="2 machines"):
        noise_of(two, NOW)


def test_noise_is_of_one_kind_of_machine() -> None:
    noise = noise_of(make_side(noisy()), NOW)
    assert usable_noise(noise, {"here": make_side(noisy())}) is None
    for change in ({"device_name": "another"}, {"torch_threads": 3}):
        elsewhere = make_side(noisy(), environment=dataclasses.replace(ENVIRONMENT, **change))  # type: ignore[arg-type]
        assert "there is not" in str(usable_noise(noise, {"there": elsewhere}))


def test_noise_is_written_and_read(tmp_path: Path) -> None:
    noise = noise_of(make_side(noisy()), NOW)
    write_noise(tmp_path / "noise.json", noise)
    assert load_noise(tmp_path / "noise.json") == noise
    (tmp_path / "noise.json").write_text("{}")
    with pytest.raises(SchemaError, match=r"noise.json"):
        load_noise(tmp_path / "noise.json")
    with pytest.raises(SpecError, match="infsa-bench aa"):
        load_noise(tmp_path / "none.json")


@settings(max_examples=30, deadline=None)
@given(values_of(Noise))
def test_reading_gives_back_what_was_written(noise: Noise) -> None:
    assert decode(Noise, encode(noise)) == noise


def test_a_cell_among_few_is_as_sure_as_itself() -> None:
    """Of one cell in five processes four degrees of freedom, not eight: its own mean knows nothing more."""
    noise = noise_of(make_side(cell_records([1.0, 1.01, 1.02, 0.99, 1.005])), "2026-01-01T00:00:00+00:00")
    (cell,) = (found for found in noise.cells if found.metric == "latency")
    assert noise.spread("latency", cell.cell) == (cell.deviation**2, 4.0)
    assert noise.detectable_effect > 0.03
