"""The page of all results says what its folders hold, and so does the one that is committed."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from sample_records import make_case, make_failure, make_measurement, make_record
from sample_reference import COMMIT, SOURCE, reference_run, step_state
from sample_sides import write_run
from test_cli import CommandLine

# The fixture of the command line is that of its own tests.
from test_cli import run as run

from infsa_bench.reference.stages import all_stages
from infsa_bench.reference.state import StepState, StepStatus, write_reference_run
from infsa_bench.report.reference_cells import is_of
from infsa_bench.report.reference_runs import NOT_MEASURED, render_results, stage_lines
from infsa_bench.spec import parse_resolutions
from infsa_bench.store import load

ROOT = Path(__file__).parent.parent.parent
TABLE = {"table1-4l/fast": step_state(), "table1-4l/reference": step_state()}


def test_the_committed_page_is_that_of_the_committed_folders(tmp_path: Path) -> None:
    """If this fails: infsa-bench results."""
    results = ROOT / "results"
    # What lies there beside what is committed is nobody's business.

    listed = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("no repository to ask for what is committed")
    for name in listed.stdout.splitlines():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    assert (results / "README.md").read_text(encoding="utf-8") == render_results(tmp_path / "results")


def fates(steps: dict[str, StepState]) -> dict[str, str]:
    return {line.name: line.fate for line in stage_lines(reference_run(steps))}


@pytest.mark.parametrize(
    ("steps", "fate"),
    [
        ({}, NOT_MEASURED),
        (TABLE, "measured"),
        ({"table1-4l/fast": step_state()}, "measured in part; reference not started"),
        ({**TABLE, "table1-4l/reference": step_state("interrupted")}, "measured in part; reference in part"),
        ({**TABLE, "table1-4l/reference": step_state("running")}, "measured in part; reference in part"),
        (
            {**TABLE, "table1-4l/fast": step_state("failed", reason="no space left")},
            "measured in part; fast failed: no space left",
        ),
        (
            {"table1-4l/fast": step_state("failed", reason="it")},
            "not measured; fast failed: it; reference not started",
        ),
    ],
)
def test_what_became_of_a_stage(steps: dict[str, StepState], fate: str) -> None:
    assert fates(steps)["table1-4l"] == fate
    assert fates(steps)["ladder"] == NOT_MEASURED


def outcomes(folder: Path, run: str, config: str, implementation: str, kinds: dict[str, str | None]) -> None:
    """Add records to a run of a reference run; None is a measurement."""
    records = [
        make_record(
            make_measurement() if kind is None else make_failure(kind),  # type: ignore[arg-type]
            mechanism=mechanism,
            config=config,
            implementation=implementation,
            resolution=1024,
        )
        for mechanism, kind in kinds.items()
    ]
    earlier = load(folder / run).records if (folder / run).exists() else ()
    shutil.rmtree(folder / run, ignore_errors=True)
    write_run(folder / run, [*earlier, *records])


def fate_of(stage: str, steps: dict[str, StepState], folder: Path) -> str:
    return {line.name: line.fate for line in stage_lines(reference_run(steps), folder)}[stage]


def test_cells_are_counted_from_the_records(tmp_path: Path) -> None:
    """A sweep ends well where cells failed; and two stages may write to one folder."""
    outcomes(tmp_path, "table1", "4L-64H", "fast", {"softmax": None, "agent": None})
    assert fate_of("table1-4l", TABLE, tmp_path) == "measured"
    outcomes(tmp_path, "table1", "4L-64H", "reference", {"softmax": None, "linformer": "unsupported", "mlla": "oom"})
    outcomes(tmp_path, "table1", "24L-16H", "fast", {"softmax": "crash"})
    outcomes(tmp_path, "table1", "4L-64H", "fast", {"flatten": "unsupported"})
    counted = "3 of 6 cells; 1 oom; 2 unsupported"
    assert fate_of("table1-4l", TABLE, tmp_path) == f"measured: {counted}"
    part = {"table1-4l/fast": step_state(), "table1-4l/reference": step_state("interrupted")}
    assert fate_of("table1-4l", part, tmp_path) == f"measured in part: {counted}; reference in part"
    other = {"table1-24l/fast": step_state(), "table1-24l/reference": step_state()}
    assert fate_of("table1-24l", other, tmp_path) == "not measured: 0 of 1 cell; 1 crash"


@pytest.mark.parametrize("status", ["interrupted", "running"])
def test_a_stage_without_a_record_is_not_measured(tmp_path: Path, status: StepStatus) -> None:
    steps = {"table1-4l/fast": step_state(status)}
    nothing = "not measured; fast ended before it recorded anything; reference not started"
    assert fate_of("table1-4l", steps, tmp_path) == nothing
    outcomes(tmp_path, "table1", "4L-64H", "fast", {"softmax": None})
    some = "measured in part; fast in part; reference not started"
    assert fate_of("table1-4l", steps, tmp_path) == some


def test_a_search_has_no_gaps(tmp_path: Path) -> None:
    outcomes(tmp_path, "maxres-card", "4L-64H", "fast", {"softmax": "oom", "agent": None})
    assert fate_of("maxres-card", {"maxres-card/fast": step_state()}, tmp_path) == "measured"


def test_every_step_knows_its_own_cases() -> None:
    for stage in all_stages("OUT", "cuda:0").values():
        for step in stage.steps:
            if step.words[0] != "sweep":
                continue
            asked = dict(zip(step.words, step.words[1:], strict=False))
            case = make_case(
                mechanism=asked["--mechanisms"].split(",")[-1],
                implementation=asked["--impl"].split(",")[-1],
                config=asked["--config"].split(",")[-1],
                resolution=parse_resolutions(asked["--res"])[-1],
                phase=asked.get("--phase", "infer"),
                execution=asked.get("--execution", "eager"),
            )
            assert is_of(step, case), stage.key_of(step)
            assert not is_of(step, replace(case, resolution=240))
            assert not is_of(step, replace(case, phase="train" if case.phase == "infer" else "infer"))
            assert not is_of(step, replace(case, implementation="other"))


def test_a_check_that_failed_is_named() -> None:
    probe = {f"probe/{step.name}": step_state() for step in all_stages("OUT", "cpu")["probe"].steps}
    probe["probe/doctor"] = step_state("findings", reason="check: edges  fail")
    probe["probe/gpu-tests"] = step_state("not_run", reason="needs CUDA")
    assert fates(probe)["probe"] == (
        "measured in part; doctor found a fault: check: edges  fail; gpu-tests not run: needs CUDA"
    )


def test_every_stage_of_a_run_has_a_line_with_date_and_commit(run: CommandLine) -> None:
    folder = run.folder / "results" / "gpu-h100-20261126"
    folder.mkdir(parents=True)
    write_reference_run(folder, reference_run(TABLE))
    (run.folder / "results" / "elsewhere").mkdir()
    result = run("results")
    assert (result.code, result.out) == (0, "results: results/README.md\n")
    page = (run.folder / "results" / "README.md").read_text()
    assert page.count("\n| ") == 1 + len(all_stages("OUT", "cpu"))
    (line,) = (line for line in page.splitlines() if line.startswith("| table1-4l"))
    assert line.endswith(f"| measured | 2026-11-26 | {COMMIT[:14]} |")
    assert "There is none yet" not in page
    assert "- [elsewhere](elsewhere)" in page


@pytest.mark.parametrize(
    ("commit", "shown"),
    [
        (COMMIT, COMMIT[:14]),
        (f"{COMMIT}+", f"{COMMIT[:14]}+"),
        ("c0ffee0", "c0ffee0"),
        ("c0ffee0+", "c0ffee0+"),
        (None, "source 5555555"),
    ],
)
def test_a_commit_that_was_changed_since_says_so(commit: str | None, shown: str) -> None:
    run = replace(reference_run(TABLE), commits={SOURCE: commit})
    assert {line.commit for line in stage_lines(run)} == {"", shown}


def test_a_rehearsal_is_no_reference_run(run: CommandLine) -> None:
    folder = run.folder / "results" / "rehearsal"
    folder.mkdir(parents=True)
    write_reference_run(folder, reference_run(TABLE, rehearsal=True))
    assert run("results").code == 0
    page = (run.folder / "results" / "README.md").read_text()
    assert "A rehearsal, which measures nothing worth knowing" in page
    assert "There is none yet" in page


@pytest.mark.parametrize("words", [["results", "nowhere"], ["unpack", "nowhere", "--out", "x"], ["results", "broken"]])
def test_bad_input_is_one_line(run: CommandLine, words: list[str]) -> None:
    broken = run.folder / "broken" / "gpu"
    broken.mkdir(parents=True)
    (broken / "stages.json").write_text("{")
    result = run(*words)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert not (run.folder / "x").exists()
