"""A baseline is what a comparison needs of a run, and nothing it reads is trusted."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from sample_records import ENVIRONMENT, GPU, make_energy, make_failure, make_measurement, make_record, values_of
from sample_sides import cell_records, make_side, measured, noisy, write_run

from infsa_bench.analyze.baseline import Baseline, load_baseline, load_side, write_baseline
from infsa_bench.analyze.compare import compare
from infsa_bench.codec import decode, encode
from infsa_bench.errors import SchemaError, SpecError


def test_a_baseline_compares_exactly_as_its_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "base", noisy(seed=1))
    other = load_side(write_run(tmp_path / "new", noisy(seed=2, slower=1.1)))
    file = tmp_path / "baselines" / "main.json"
    write_baseline(file, load_side(run))
    assert load_side(file) == load_side(run)
    assert compare(load_side(file), other) == compare(load_side(run), other)
    assert compare(load_side(file), load_side(run)).exit_code(is_strict=True) == 0


def test_it_holds_medians_and_no_samples(tmp_path: Path) -> None:
    outcome = make_measurement([1.0 + 1e-6 * index for index in range(1001)])
    run = write_run(tmp_path / "base", [make_record(outcome)])
    side = load_side(run)
    assert side.cells[0].replicates[0].latency_seconds == pytest.approx(1.0005)
    write_baseline(tmp_path / "b.json", side)
    assert (tmp_path / "b.json").stat().st_size < 4000


def test_energy_is_kept_by_trial_and_image() -> None:
    record = make_record(measured(1.0, energy=make_energy([600.0, 604.0])), batch_size=2)
    (replicate,) = make_side([record]).cells[0].replicates
    assert replicate.joules_per_image == (1.5, 1.51)
    assert (replicate.energy_source, replicate.energy_scope) == ("nvml_counter", "gpu")


def test_what_was_left_out_is_told_from_what_a_smaller_case_foretold() -> None:
    left_out = make_record(make_failure("skipped"))
    foretold = make_record(make_failure("skipped", dominated_by="x"), replicate=1)
    assert [one.is_unplanned for one in make_side([left_out, foretold]).cells[0].replicates] == [True, False]


@settings(max_examples=30, deadline=None)
@given(values_of(Baseline))
def test_reading_gives_back_what_was_written(baseline: Baseline) -> None:
    assert decode(Baseline, encode(baseline)) == baseline


def spoil(file: Path, change: Any) -> Path:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda content: content.update(schema_version=99), "schema version 99"),
        (lambda content: content.update(more=1), "unknown fields"),
        (lambda content: content.pop("cells"), "missing fields"),
        (lambda content: content["cells"].append(content["cells"][0]), "stands twice"),
        (lambda content: content["cells"][0]["replicates"].append(content["cells"][0]["replicates"][0]), "twice"),
        (lambda content: content["cells"][0]["replicates"][0].update(environment="x"), "environment"),
        (lambda content: content["cells"][0]["replicates"][0].update(latency_seconds=float("nan")), "NaN"),
        (lambda content: content["cells"][0]["replicates"][0].update(latency_seconds="1"), "not of type"),
    ],
)
def test_a_file_that_is_not_ours_is_refused(tmp_path: Path, change: Any, expected: str) -> None:
    file = tmp_path / "b.json"
    write_baseline(file, make_side(cell_records([1.0, 1.1])))
    with pytest.raises(SchemaError, match=expected):
        load_baseline(spoil(file, change))


def test_nothing_there_and_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="neither a run nor a baseline"):
        load_side(tmp_path / "none")
    (tmp_path / "link.json").symlink_to(tmp_path / "none")
    with pytest.raises(SchemaError, match="symbolic link"):
        load_side(tmp_path / "link.json")
    with pytest.raises(SpecError, match="nothing to compare"):
        load_side(write_run(tmp_path / "empty", []))


def test_a_made_up_board_is_refused(tmp_path: Path) -> None:
    board = dataclasses.replace(ENVIRONMENT, gpu=dataclasses.replace(GPU, name="FAKE H200"))
    write_baseline(tmp_path / "b.json", make_side(cell_records([1.0]), environment=board))
    with pytest.raises(SpecError, match="fake NVML"):
        load_side(tmp_path / "b.json")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="cannot write"):
        write_baseline(tmp_path / "file" / "b.json", make_side(cell_records([1.0])))


@pytest.mark.parametrize(
    ("found", "replaced"),
    [
        (r'"latency_seconds": ?[0-9.e-]+', '"latency_seconds": -1.0'),
        (r'"latency_seconds": ?[0-9.e-]+', '"latency_seconds": null'),
        (r'"peak_memory_bytes": ?[0-9]+', '"peak_memory_bytes": -5'),
    ],
)
def test_what_nobody_can_have_measured_is_refused(tmp_path: Path, found: str, replaced: str) -> None:
    file = tmp_path / "baseline.json"
    write_baseline(file, make_side(cell_records([1.0, 1.1, 1.2])))
    text = file.read_text()
    changed = re.sub(found, replaced, text, count=1)
    assert changed != text
    file.write_text(changed)
    with pytest.raises(SchemaError, match="nobody can have measured"):
        load_baseline(file)
