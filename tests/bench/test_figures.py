"""All figures of a report together: what each is called, what it says, which files there are."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
from drawn import HOSTILE_NAMES, run_of
from fake_worker import PEAKS
from sample_records import GPU_STATE, make_energy, make_failure, make_measurement, make_record

from infsa_bench.analyze.run import Run, load_run
from infsa_bench.record import Record, TracePoint
from infsa_bench.report import figures
from infsa_bench.report.figures import FIGURES, draw_figures, write_figures
from infsa_bench.report.table import blocks
from infsa_bench.spec import Case
from infsa_bench.traces import trace_path, write_trace

ROOT = Path(__file__).parents[2]
CPU_RUN = ROOT / "results" / "cpu-20261125-234605"


def complete_run(folder: Path, mechanisms: Sequence[str] = ("softmax", "infsa-linear")) -> Run:
    """A run that has something to show in every figure but the roofline."""
    measured = make_measurement(energy=make_energy(), state_before=GPU_STATE)
    records = [
        make_record(measured, mechanism=name, implementation=implementation, config=config, resolution=side)
        for name in mechanisms
        for implementation in ("reference", "fast")
        for config in ("4L-64H", "24L-16H")
        for side in (224, 1024)
    ]
    records += [make_record(make_failure(), mechanism=name, resolution=2048) for name in mechanisms]
    folder.mkdir(exist_ok=True)
    trace = [
        TracePoint(seconds=step / 4, power_watts=300.0, sm_clock_mhz=1980, temperature_celsius=40, event_reasons=())
        for step in range(100)
    ]
    write_trace(trace_path(folder, records[0].case.id), trace)
    return run_of(records, folder)


def test_the_names_of_files_are_those_that_reports_link_to() -> None:
    assert list(FIGURES) == [
        "latency_vs_resolution",
        "energy_vs_resolution",
        "throughput_vs_energy",
        "dashboard",
        "depth_comparison",
        "memory_vs_tokens",
        "oom_frontier",
        "roofline",
        "power_trace",
    ]
    for stem, kind in FIGURES.items():
        assert getattr(figures, f"render_{stem}") is kind.render
        assert kind.render.__doc__
        assert kind.title
        assert kind.lacking.startswith("needs ")
    named = {"FIGURES", "Drawing", "FigureKind", "draw_figures", "write_figures"}
    assert set(figures.__all__) == named | {f"render_{stem}" for stem in FIGURES}


def test_a_run_without_records_has_no_figure(tmp_path: Path) -> None:
    run = run_of([], tmp_path)
    assert write_figures(draw_figures(run), tmp_path) == []
    assert all(kind.describe(run) for kind in FIGURES.values())


def test_figures_are_written_and_stale_ones_removed(tmp_path: Path) -> None:
    run = complete_run(tmp_path / "run")
    folder = tmp_path / "reports"
    folder.mkdir()
    (folder / "roofline.png").touch()
    (folder / "roofline.svg").touch()
    (folder / "table.md").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = write_figures(draw_figures(run), folder)
    expected = [folder / f"{stem}.{kind}" for stem in FIGURES if stem != "roofline" for kind in ("png", "svg")]
    assert files == expected
    assert sorted(folder.iterdir()) == sorted([*expected, folder / "table.md"])
    first = {file: file.read_bytes() for file in files}
    bare = dataclasses.replace(run, records=run.records[:1], rows=run.rows[-1:])
    assert {file.stem for file in write_figures(draw_figures(bare), folder)} < {file.stem for file in files}
    assert write_figures(draw_figures(run), folder) == files
    # Nothing depends on what was drawn before, or when.
    assert {file: file.read_bytes() for file in files} == first


@pytest.mark.parametrize("stem", FIGURES)
def test_hostile_names_are_shown_as_they_are(tmp_path: Path, stem: str) -> None:
    run = complete_run(tmp_path / "run", HOSTILE_NAMES)
    if stem == "roofline":
        environment = next(iter(run.manifest.environments.values()))
        peaks = dataclasses.replace(
            PEAKS,
            device=environment.device,
            device_name=environment.device_name,
            device_uuid=environment.device_uuid,
            torch_threads=environment.torch_threads,
        )
        run = dataclasses.replace(run, peaks=peaks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = FIGURES[stem].render(run)
        assert figure is not None
        figure.canvas.draw()
    text = FIGURES[stem].describe(run)
    assert text.isprintable()
    assert len(text) < 1000


@pytest.mark.parametrize("stem", FIGURES)
def test_hostile_blocks_are_shown_as_they_are(tmp_path: Path, stem: str) -> None:
    """Everything of a case that is text, and numbers at the ends of what a file may hold."""
    measured = make_measurement([1e-50], energy=make_energy([-600.0, 1e40]), peak_memory_bytes=2**62)
    records: list[Record] = []
    for name in HOSTILE_NAMES[:3]:
        case = Case(
            mechanism=name,
            implementation=name,
            config=name,
            resolution=2**62,
            batch_size=2**62,
            precision="fp32",
            phase="infer",
            execution="eager",
            options=((name, name),),
        )
        records.append(dataclasses.replace(make_record(measured), case=case))
        records.append(dataclasses.replace(make_record(make_failure()), case=dataclasses.replace(case, resolution=1)))
    run = run_of(records, tmp_path)
    assert len(blocks(run.rows)) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = FIGURES[stem].render(run)
        if figure is not None:
            figure.canvas.draw()
    assert FIGURES[stem].describe(run).isprintable()


def test_the_committed_run_has_the_figures_that_a_processor_gives(tmp_path: Path) -> None:
    files = write_figures(draw_figures(load_run(CPU_RUN)), tmp_path)
    stems = {"latency_vs_resolution", "dashboard", "memory_vs_tokens", "oom_frontier", "roofline"}
    assert {file.stem for file in files} == stems
    assert max(file.stat().st_size for file in files) < 300_000
