"""Exports against the schemas that their tools publish, with cells in them that failed."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from sample_records import make_energy, make_failure, make_measurement, make_record
from sample_sides import cell_records, failed_records, noisy, stored, write_run
from test_cli import CommandLine, run

from infsa_bench.analyze.run import summarized
from infsa_bench.cli import main
from infsa_bench.report.export import render_github_action_benchmark

__all__ = ["main", "run"]

BENCHER_SCHEMA: dict[str, Any] = {
    "$id": "https://bencher.dev/bmf.json",
    "type": "object",
    "patternProperties": {
        ".+": {
            "type": "object",
            "patternProperties": {
                ".+": {
                    "type": "object",
                    "properties": {
                        "value": {"type": "number"},
                        "lower_value": {"type": "number"},
                        "upper_value": {"type": "number"},
                    },
                    "required": ["value"],
                }
            },
        }
    },
}
"""services/console/public/bmf.json of Bencher."""

GITHUB_ACTION_SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "unit": {"type": "string"},
            "value": {"type": "number"},
            "range": {"type": "string"},
            "extra": {"type": "string"},
        },
        "required": ["name", "unit", "value"],
    },
}
"""BenchmarkResult in src/extract.ts of github-action-benchmark."""

TYPES = {"object": dict, "array": list, "string": str, "number": (int, float)}


def validate(content: Any, schema: dict[str, Any]) -> None:
    """As much of JSON Schema as the two need; properties beyond those named are refused."""
    assert isinstance(content, TYPES[schema["type"]])  # type: ignore[arg-type]
    assert not isinstance(content, bool)
    for item in content if schema["type"] == "array" else ():
        validate(item, schema["items"])
    if schema["type"] == "object":
        assert set(schema.get("required", ())) <= set(content)
        for name, value in content.items():
            kinds = [kind for pattern, kind in schema.get("patternProperties", {}).items() if re.search(pattern, name)]
            kinds += [schema["properties"][name]] if name in schema.get("properties", {}) else []
            assert kinds, name
            for kind in kinds:
                validate(value, kind)


def assert_nothing_is_empty(content: Any) -> None:
    """No null, NaN, Infinity, 0 or "" anywhere."""
    assert content is not None
    assert content != ""
    if isinstance(content, dict | list):
        for item in content.values() if isinstance(content, dict) else content:
            assert_nothing_is_empty(item)
    elif isinstance(content, int | float):
        assert math.isfinite(content)
        assert content > 0


@pytest.fixture
def exported(run: CommandLine) -> CommandLine:
    """A run with energy, without energy, without memory, of one iteration, and with every kind of failure."""
    records = noisy(seed=1)
    records += cell_records([0.5], mechanism="soft", changes={"energy": make_energy(), "peak_memory_bytes": None})
    records += [make_record(make_measurement([1e-7]), mechanism="flatten")]
    records += failed_records("oom", mechanism="performer", resolution=512)
    records += cell_records([0.1] * 3, mechanism="performer", resolution=224)
    for kind in ("host_oom", "timeout", "crash", "killed", "unsupported", "skipped", "error"):
        records += [make_record(make_failure(kind), mechanism=f"x.y:{kind}")]
    write_run(run.folder / "results/mine", records)
    return run


def test_github_action_benchmark(exported: CommandLine) -> None:
    result = exported("export", "results/mine", "--format", "github-action-benchmark", "-o", "bench")
    assert result.code == 0, result.err
    found = {name: json.loads((exported.folder / "bench" / f"{name}.json").read_text()) for name in FILES}
    for entries in found.values():
        validate(entries, GITHUB_ACTION_SCHEMA)
        assert_nothing_is_empty(entries)
        names = [entry["name"] for entry in entries]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"± [0-9.]+", entry["range"]) for entry in entries if "range" in entry)
    smaller, bigger = ({entry["name"]: entry for entry in found[name]} for name in FILES)
    assert smaller["infsa/oom_cells"]["value"] == 2
    assert smaller["infsa/failed_cells"]["value"] >= 2
    kinds = {"latency", "energy", "peak_memory", "oom_cells", "failed_cells"}
    assert {name.rpartition("/")[2] for name in smaller} == kinds
    assert {name.rpartition("/")[2] for name in bigger} == {"throughput", "max_resolution"}
    energy = smaller["infsa/soft.reference/4L-64H/r224/b1/fp32/infer/eager/energy"]
    assert (energy["unit"], energy["value"]) == ("J/image", pytest.approx(3.0))
    latency = smaller["infsa/softmax.reference/4L-64H/r224/b1/fp32/infer/eager/latency"]
    assert (latency["unit"], latency["value"]) == ("ms", pytest.approx(22.4, rel=0.02))
    assert "range" in latency
    assert bigger["infsa/softmax.reference/4L-64H/b1/fp32/infer/eager/max_resolution"]["value"] == 512
    assert bigger["infsa/performer.reference/4L-64H/b1/fp32/infer/eager/max_resolution"]["value"] == 224
    assert not [name for name in smaller if "performer" in name and "r512" in name]


FILES = ("smaller", "bigger")


def test_the_count_of_failures_is_there_before_there_is_one(run: CommandLine) -> None:
    """A name that was not there before raises no alarm."""
    write_run(run.folder / "results/fine", noisy())
    assert run("export", "results/fine", "--format", "github-action-benchmark", "-o", "bench").code == 0
    entries = json.loads((run.folder / "bench/smaller.json").read_text())
    assert [entry["value"] for entry in entries if entry["name"] == "infsa/oom_cells"] == [0]


def test_bencher(exported: CommandLine) -> None:
    found = json.loads(exported("export", "results/mine", "--format", "bencher").out)
    validate(found, BENCHER_SCHEMA)
    assert_nothing_is_empty(found)
    softmax = found["infsa/softmax.reference/4L-64H/r224/b1/fp32/infer/eager"]
    assert softmax["latency"]["value"] == pytest.approx(22.4e6, rel=0.02)
    assert softmax["latency"]["lower_value"] < softmax["latency"]["value"] < softmax["latency"]["upper_value"]
    assert softmax["throughput"]["value"] == pytest.approx(1 / 0.0224, rel=0.02)
    assert softmax["peak-memory-bytes"] == {"value": 224 * 2**20}
    soft = found["infsa/soft.reference/4L-64H/r224/b1/fp32/infer/eager"]
    assert soft["energy-j-per-img"]["value"] == pytest.approx(3.0)
    assert "peak-memory-bytes" not in soft
    assert "infsa/performer.reference/4L-64H/r512/b1/fp32/infer/eager" not in found
    assert found["infsa/performer.reference/4L-64H/b1/fp32/infer/eager"] == {"max-resolution-px": {"value": 224.0}}
    assert all(len(name) <= 1024 and all(len(slug) <= 64 for slug in measures) for name, measures in found.items())


def test_csv_is_the_reports(exported: CommandLine) -> None:
    rows = list(csv.DictReader(io.StringIO(exported("export", "results/mine", "--format", "csv").out)))
    failed = next(row for row in rows if row["status"] == "oom")
    assert failed["latency_seconds"] == ""
    assert len(rows) == 23


def test_the_summary_of_a_step(exported: CommandLine) -> None:
    result = exported("export", "results/mine", "--format", "step-summary", "-o", "summary.md")
    assert result.out == "exported: summary.md\n"
    assert (exported.folder / "summary.md").read_text().startswith("# mine\n")


def test_annotations_are_one_line_each_and_escaped(exported: CommandLine) -> None:
    records = [record for record in noisy(seed=2, slower=1.3) if record.case.mechanism != "agent"]
    records += cell_records([0.1] * 2, mechanism="soft")
    write_run(exported.folder / "results/new", records)
    result = exported("export", "results/new", "--format", "annotations", "--base", "results/mine")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert all(re.fullmatch(r"::(error|warning) title=[^:,]*::.+", line) for line in lines)
    errors = [line for line in lines if line.startswith("::error")]
    assert any("title=REGRESSED latency::infsa/softmax.reference/4L-64H/r224" in line for line in errors)
    assert any("title=STATUS_CHANGED status::infsa/agent.reference" in line for line in errors)
    assert any("95 %25 interval" in line for line in errors)
    assert any(line.startswith("::warning title=AMBIGUOUS") for line in lines)
    summary = exported("export", "results/new", "--format", "step-summary", "--base", "results/mine")
    assert "| STATUS\\_CHANGED (worse) | status |" in summary.out


def test_nothing_to_annotate(exported: CommandLine) -> None:
    result = exported("export", "results/mine", "--format", "annotations", "--base", "results/mine")
    assert (result.code, result.out) == (0, "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--format", "xml"], "unknown format 'xml'"),
        (["--format", "annotations"], "--base"),
        (["--format", "csv", "--base", "results/mine"], "--base is for"),
        (["--format", "github-action-benchmark"], "-o"),
        (["--format", "csv", "-o", "results/mine/manifest.json/x"], "cannot write"),
    ],
)
def test_bad_options_are_one_line(exported: CommandLine, words: list[str], expected: str) -> None:
    result = exported("export", "results/mine", *words)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert expected in result.err


def test_the_committed_run_exports(run: CommandLine) -> None:
    """A real one, most of its larger cells skipped."""
    (folder,) = (Path(__file__).parents[2] / "results").glob("cpu-*/")
    validate(json.loads(run("export", str(folder), "--format", "bencher").out), BENCHER_SCHEMA)
    assert run("export", str(folder), "--format", "github-action-benchmark", "-o", "bench").code == 0
    for name in FILES:
        validate(json.loads((run.folder / f"bench/{name}.json").read_text()), GITHUB_ACTION_SCHEMA)


def test_a_failure_in_one_of_many_processes_is_counted() -> None:
    """As compare does; a cell that was left out for want of time is none."""
    records = [*cell_records([1.0] * 4), *failed_records(count=5)[4:]]
    records += failed_records("crash", mechanism="mlla") + failed_records("skipped", mechanism="soft")
    entries = json.loads(render_github_action_benchmark(summarized(stored(records)))["smaller.json"])
    counted = {entry["name"]: entry["value"] for entry in entries if entry["unit"] == "cells"}
    assert counted == {"infsa/oom_cells": 1, "infsa/failed_cells": 2}


def test_a_range_is_half_the_interval() -> None:
    """Three processes of 1.0, 1.1 and 1.2 s: their Student interval in milliseconds, halved."""
    run = summarized(stored(cell_records([1.0, 1.1, 1.2])))
    entries = json.loads(render_github_action_benchmark(run)["smaller.json"])
    (latency,) = (entry for entry in entries if entry["name"].endswith("/latency"))
    (row,) = run.rows
    assert row.latency_low_seconds is not None
    assert row.latency_high_seconds is not None
    half = 1e3 * (row.latency_high_seconds - row.latency_low_seconds) / 2
    assert float(latency["range"].removeprefix("± ")) == pytest.approx(half, rel=0.01)
