"""The page of all results says what its folders hold, and so does the one that is committed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from sample_reference import COMMIT, reference_run, step_state
from test_cli import CommandLine

# The fixture of the command line is that of its own tests.
from test_cli import run as run

from infsa_bench.reference.stages import all_stages
from infsa_bench.reference.state import StepState, write_reference_run
from infsa_bench.report.reference_runs import NOT_MEASURED, render_results, stage_lines

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
