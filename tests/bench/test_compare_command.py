"""``infsa-bench compare`` and ``baseline`` as a user meets them: what is printed, and the exit code."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from sample_records import ENVIRONMENT, make_record
from sample_sides import cell_records, failed_records, make_side, noisy, write_run
from test_cli import CommandLine, run

from infsa_bench.analyze.noise import NOISE, noise_of, write_noise
from infsa_bench.record import Fit

__all__ = ["run"]


@pytest.fixture
def runs(run: CommandLine) -> CommandLine:
    """Two runs without a difference but noise, one slower in softmax, and a noisy one, in results/."""
    write_run(run.folder / "results/base", noisy(seed=1))
    write_run(run.folder / "results/same", noisy(seed=2))
    write_run(run.folder / "results/slower", noisy(seed=3, slower=1.2))
    write_run(run.folder / "results/loud", noisy(seed=4, deviation=0.1))
    return run


def test_exit_codes(runs: CommandLine) -> None:
    assert runs("compare", "results/base", "results/base", "--strict").code == 0
    assert runs("compare", "results/base", "results/same").code == 0
    assert runs("compare", "results/base", "results/slower").code == 1
    assert runs("compare", "results/slower", "results/base").code == 0
    assert runs("compare", "results/base", "results/loud").code == 0
    assert runs("compare", "results/base", "results/loud", "--strict").code == 4
    missing = runs("compare", "results/base", "results/none")
    assert (missing.code, missing.err.count("\n")) == (2, 1)
    write_run(runs.folder / "results/other", cell_records([1.0], mechanism="soft"))
    disjoint = runs("compare", "results/base", "results/other")
    assert (disjoint.code, disjoint.err) == (2, "infsa-bench: error: base and other have no cell in common\n")
    assert runs("compare", "results/base", "results/same", "--format", "xml").code == 2


def test_another_machine_exits_3_unless_allowed(runs: CommandLine) -> None:
    other = dataclasses.replace(ENVIRONMENT, device_name="another [bold]machine")
    write_run(runs.folder / "results/elsewhere", noisy(seed=2), environment=other)
    refused = runs("compare", "results/base", "results/elsewhere")
    assert refused.code == 3
    assert "not comparable: device: cpu Xeon 8481C -> cpu another [bold]machine" in refused.out
    assert runs("compare", "results/base", "results/elsewhere", "--allow-mismatch").code == 0


def test_the_worst_ten_come_with_their_numbers(runs: CommandLine) -> None:
    result = runs("compare", "results/base", "results/slower")
    assert "REGRESSED latency infsa/softmax.reference/4L-64H/r224/b1/fp32/infer/eager" in result.out
    assert "verdicts on cells and metrics: 6 REGRESSED" in result.out
    assert "latency: these data show a worsening of" in result.out
    assert "geometric mean over the cells of softmax.reference: latency x1." in result.out
    assert "6 regressions" in result.out
    assert "q < 0.0001" in result.out
    assert " .. " in result.out
    assert result.out.count("\n    ") == 6


def test_a_failure_leads_the_list(runs: CommandLine) -> None:
    records = [record for record in noisy(seed=5) if record.case.mechanism != "mlla"]
    records += [record for side in (224, 384, 512) for record in failed_records(mechanism="mlla", resolution=side)]
    write_run(runs.folder / "results/failing", records)
    result = runs("compare", "results/base", "results/failing")
    assert result.code == 1
    assert "STATUS_CHANGED (worse) status infsa/mlla.reference/4L-64H/r224/b1/fp32/infer/eager" in result.out
    assert "[ok -> oom]" in result.out


def test_markdown_and_json(runs: CommandLine) -> None:
    markdown = runs("compare", "results/base", "results/slower", "--format", "md")
    assert markdown.code == 1
    assert "| REGRESSED | latency | infsa/softmax.reference/4L-64H/r224" in markdown.out
    annotated = runs("compare", "results/base", "results/slower", "--format", "annotations")
    assert annotated.out.startswith("::error title=REGRESSED latency::infsa/softmax.reference/4L-64H/r224")
    assert annotated.out.endswith("6 regressions\n")
    found = json.loads(runs("compare", "results/base", "results/slower", "--format", "json").out)
    assert (found["exit_code"], found["counts"]["REGRESSED"], found["is_comparable"]) == (1, 6, True)
    assert {item["cell"].split("/")[1] for item in found["judged"] if item["verdict"] == "REGRESSED"} == {
        "softmax.reference"
    }


def test_noise_decides_where_there_are_too_few_replicates(runs: CommandLine) -> None:
    write_run(runs.folder / "results/once", noisy(1, seed=6))
    write_run(runs.folder / "results/slow-once", noisy(1, seed=7, slower=1.2))
    assert runs("compare", "results/once", "results/slow-once", "--strict").code == 4
    noise = noise_of(make_side(noisy(10, seed=8)), "2026-01-02T03:04:05+00:00")
    write_noise(runs.folder / "mine.json", noise)
    assert runs("compare", "results/once", "results/slow-once", "--noise", "mine.json").code == 1
    write_noise(runs.folder / "results/once" / NOISE, noise)
    assert runs("compare", "results/once", "results/slow-once").code == 1
    write_noise(runs.folder / "other.json", dataclasses.replace(noise, device_name="another"))
    refused = runs("compare", "results/once", "results/slow-once", "--noise", "other.json")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "the noise is of another" in refused.err


def test_a_baseline_stands_for_its_run(runs: CommandLine) -> None:
    saved = runs("baseline", "save", "results/base", "-o", "perf/base.json")
    assert (saved.code, saved.out) == (0, "baseline: perf/base.json\n")
    with_run = runs("compare", "results/base", "results/slower")
    with_file = runs("compare", "perf/base.json", "results/slower")
    assert (with_file.code, with_file.out) == (with_run.code, with_run.out)
    shown = runs("baseline", "show", "perf/base.json")
    assert "12 cells (12 ok), 5 replicates each" in shown.out
    assert "Xeon 8481C" in shown.out
    (runs.folder / "perf/base.json").write_text("{}")
    refused = runs("compare", "perf/base.json", "results/slower")
    assert (refused.code, refused.err.count("\n")) == (2, 1)


def test_a_run_that_only_probed_has_nothing_to_time(run: CommandLine) -> None:
    fit = Fit(
        model_bytes=1,
        peak_memory_bytes=2,
        peak_reserved_bytes=None,
        nvml_process_bytes=None,
        memory_source="process_rss",
        first_call_seconds=1.0,
    )
    write_run(run.folder / "results/fits", [make_record(fit)])
    result = run("compare", "results/fits", "results/fits")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "nothing to compare" in result.err


def test_help_says_what_the_sides_are(run: CommandLine) -> None:
    text = " ".join(run("compare", "--help").out.split())
    assert "exits 1 where NEW is worse than BASE" in text
    assert all(option in text for option in ("--allow-mismatch", "--strict", "--noise", "--format"))


def test_reports_of_searches_compare_their_limits(run: CommandLine, tmp_path: Path) -> None:
    """Two real searches, over the worker that has room for so many pixels."""
    from test_cli import fake_launcher

    words = ["maxres", "--mechanism", "softmax", "--max-res", "1024", "--device", "cpu", "--memory-limit", "4GiB"]
    for name, pixels in (("base", 512), ("lower", 384)):
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr("infsa_bench.commands.maxres.Launcher", fake_launcher(f"fits={pixels}"))
            assert run(*words, "--out", f"results/{name}").code == 0
    result = run("compare", "results/base", "results/lower")
    assert result.code == 1, result.err
    assert "REGRESSED max_resolution infsa/softmax.reference/4L-64H/r*/b1/fp32/infer/eager" in result.out
    assert "512 px -> 384 px" in result.out
    assert run("compare", "results/lower", "results/base").code == 0
    assert run("compare", "results/base", "results/base", "--strict").code == 0


@pytest.mark.parametrize(
    "axis", [{"implementation": "fast"}, {"precision": "bf16"}, {"batch_size": 8}, {"phase": "train"}]
)
def test_sides_of_another_precision_or_kind_are_not_comparable(run: CommandLine, axis: dict[str, Any]) -> None:
    write_run(Path("results/base"), cell_records([1.0] * 3))
    write_run(Path("results/other"), cell_records([1.0] * 3, **axis))
    result = run("compare", "results/base", "results/other")
    (name,) = axis
    assert result.code == 3
    assert f"{name.replace('_', ' ')}" in result.out
    assert run("compare", "results/base", "results/other", "--allow-mismatch").code == 2
