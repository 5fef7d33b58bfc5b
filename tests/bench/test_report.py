from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console
from sample_records import (
    ENVIRONMENT,
    GPU,
    make_energy,
    make_failure,
    make_manifest,
    make_measurement,
    make_no_energy,
    make_record,
)

from infsa_bench.commands.report import report_run, report_runs
from infsa_bench.errors import SpecError
from infsa_bench.machine import Environment
from infsa_bench.record import Record
from infsa_bench.store import RunWriter


def store(folder: Path, records: Sequence[Record], environment: Environment = ENVIRONMENT) -> Path:
    manifest = dataclasses.replace(
        make_manifest([record.case.id for record in records]), environments={environment.key: environment}
    )
    with RunWriter(folder, manifest) as writer:
        for record in records:
            writer.append(dataclasses.replace(record, environment=environment.key))
    return folder


def reported(run: Path, width: int = 80) -> tuple[tuple[Path, ...], str]:
    output = io.StringIO()
    files = report_run(run, Console(file=output, width=width, color_system=None))
    return files, output.getvalue()


MEASURED = make_record(make_measurement(energy=make_energy()))
NOT_MEASURED = make_record(make_measurement(energy=make_no_energy("rapl_absent", "no counter")), resolution=512)


def test_the_parts_of_a_report_lie_beside_the_results(tmp_path: Path) -> None:
    files, output = reported(store(tmp_path / "results/x", [MEASURED, NOT_MEASURED]), width=200)
    folder = tmp_path / "reports/x"
    figures = ("latency_vs_resolution", "energy_vs_resolution", "throughput_vs_energy", "dashboard")
    figures += ("memory_vs_tokens", "oom_frontier")
    names = ["table.md", "table.csv", *(f"{stem}.{kind}" for stem in figures for kind in ("png", "svg"))]
    names += ["index.html", "report.md"]
    assert files == tuple(folder / name for name in names)
    for file in files:
        assert file.stat().st_size > 500
        assert str(file) in output
    assert "energy: not measured in 1 of 2 cells: rapl_absent: no counter" in output


def test_without_energy_there_is_no_figure_of_it(tmp_path: Path) -> None:
    """Not even that of an earlier run of the same name."""
    stale = tmp_path / "reports/x/energy_vs_resolution.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of another run")
    files, output = reported(store(tmp_path / "results/x", [NOT_MEASURED]))
    assert stale not in files
    assert not stale.exists()
    assert "J/image" not in output
    assert "Energy: not measured: rapl_absent: no counter\n" in output


def test_replicates_are_one_line_and_their_flags_stand_below(tmp_path: Path) -> None:
    records = [make_record(make_failure(), replicate=0)]
    records += [make_record(make_measurement(launch_bound=True), replicate=i) for i in (1, 2)]
    _, output = reported(store(tmp_path / "results/x", records), width=160)
    (row,) = (line for line in output.splitlines() if line.startswith("softmax"))
    assert row.split() == ["softmax", "224", "11.0", "ms", "2", "processes", "90.9", "300", "MiB", "ok*"]
    assert "* launch_bound: softmax 224\n* oom_in_1_of_3: softmax 224\n" in output


@pytest.mark.parametrize("change", [{"name": "FAKE H200"}, {"driver_version": "999.fake"}], ids=str)
def test_what_the_library_of_the_tests_measured_is_not_published(tmp_path: Path, change: dict[str, str]) -> None:
    fake = dataclasses.replace(ENVIRONMENT, gpu=dataclasses.replace(GPU, **change))
    run = store(tmp_path / "results/x", [MEASURED], fake)
    with pytest.raises(SpecError, match="made with the fake NVML library of the tests: not published"):
        reported(run)
    assert not (tmp_path / "reports").exists()
    real = dataclasses.replace(ENVIRONMENT, gpu=GPU)
    reported(store(tmp_path / "results/y", [MEASURED], real))


def test_a_run_without_records_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no records yet"):
        reported(store(tmp_path / "results/x", []))


def test_several_runs_have_one_page_and_files_of_their_own(tmp_path: Path) -> None:
    """Also where they have the same name."""
    paths = [store(tmp_path / place / "results/x", [MEASURED, NOT_MEASURED]) for place in ("here", "there")]
    folder = tmp_path / "reports/here-vs-there"
    output = io.StringIO()
    files = report_runs(paths, folder, Console(file=output, width=200))
    names = {file.name for file in files}
    assert {"index.html", "report.md", "table.A.x.csv", "table.B.x.csv", "table.A.x.md", "table.B.x.md"} < names
    assert len(names) == len(files)
    assert {file.name for file in folder.iterdir()} == names
    assert all(str(file) in output.getvalue() for file in files)


def test_several_runs_need_a_folder(tmp_path: Path) -> None:
    run = store(tmp_path / "results/x", [MEASURED])
    with pytest.raises(SpecError, match="several runs have one report: name its folder"):
        report_runs([run, run], None, Console(file=io.StringIO()))
    with pytest.raises(SpecError, match="no records yet"):
        report_runs([run, store(tmp_path / "results/y", [])], tmp_path / "out", Console(file=io.StringIO()))
    assert not (tmp_path / "out").exists()


def test_one_run_can_be_reported_elsewhere(tmp_path: Path) -> None:
    run = store(tmp_path / "results/x", [NOT_MEASURED])
    files = report_runs([run], tmp_path / "elsewhere", Console(file=io.StringIO()))
    assert {file.parent for file in files} == {tmp_path / "elsewhere"}
    assert not (tmp_path / "reports").exists()
