"""A reference run under way: real processes, small steps made up for the test."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from sample_reference import COMMIT, SOURCE, reference_run, step_state

from infsa_bench.commands import reference_course
from infsa_bench.commands.reference_course import Course
from infsa_bench.reference.parts import parts_in
from infsa_bench.reference.stages import Stage, Step
from infsa_bench.reference.state import ReferenceRun, StepStatus, load_reference_run


def step(name: str, *words: str, seconds: float = 60.0, **more: object) -> Step:
    return Step(name=name, words=words or ("list",), seconds=seconds, **more)  # type: ignore[arg-type]


def pytest_step(folder: Path, name: str, body: str, **more: object) -> Step:
    """A step that runs a test: of a length, or with a fate, of one's choice."""
    file = folder / f"test_{name.replace('-', '_')}.py"
    file.write_text(f"import os, pathlib, signal, tarfile, time\n\ndef test_it():\n    {body}\n")
    words = ("-q", "-p", "no:cacheprovider", "--rootdir", str(folder), "-c", "/dev/null", str(file))
    return step(name, *words, program="pytest", **more)


def stage(*steps: Step, name: str = "one", seconds: float = 120.0) -> Stage:
    return Stage(name=name, title=name, seconds=seconds, steps=steps)


class Ran:
    """A course in a folder, run to its end; ``lines`` is what it said."""

    def __init__(self, folder: Path, *stages: Stage, left: float = 300.0, stops: list[int] | None = None) -> None:
        shown = io.StringIO()
        state = folder / "stages.json"
        journal: ReferenceRun = load_reference_run(folder) if state.is_file() else reference_run()
        folder.mkdir(exist_ok=True)
        self.course = Course(
            out=folder,
            parts=folder / "parts",
            journal=journal,
            console=Console(file=shown, width=200),
            end=time.monotonic() + left,
            stops=[] if stops is None else stops,
        )
        self.course.run(stages)
        self.lines = shown.getvalue().splitlines()
        self.steps = load_reference_run(folder).steps if state.is_file() else {}
        self.order = [line.partition(":")[0] for line in self.lines if ": at most" in line]

    def fates(self) -> dict[str, str]:
        return {key: state.status for key, state in self.steps.items()}


@pytest.fixture(autouse=True)
def _in_a_folder_with_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)


def test_a_step_that_fails_takes_no_other_along(tmp_path: Path) -> None:
    bad = step("bad", "sweep", "--res", "7", "--device", "cpu")
    killed = pytest_step(tmp_path, "killed", "os.kill(os.getpid(), signal.SIGKILL)")
    found = pytest_step(tmp_path, "found", "assert False", findings=(1,))
    ran = Ran(tmp_path / "run", stage(bad, killed, found, step("good")))
    assert ran.fates() == {"one/bad": "failed", "one/killed": "failed", "one/found": "findings", "one/good": "done"}
    assert "resolution 7" in (ran.steps["one/bad"].reason or "")
    assert ran.steps["one/killed"].reason == "killed by SIGKILL"
    assert ran.steps["one/good"].command == ("infsa-bench", "list")
    assert ran.steps["one/good"].source == SOURCE
    assert sorted(file.name for file in (tmp_path / "run" / "logs").iterdir()) == [
        f"one.{name}.log" for name in ("bad", "found", "good", "killed")
    ]
    assert parts_in(tmp_path / "run" / "parts")


def test_what_is_done_is_not_done_again_and_what_failed_comes_last(tmp_path: Path) -> None:
    bad = step("bad", "sweep", "--res", "7", "--device", "cpu")
    Ran(tmp_path / "run", stage(bad, step("good")))
    ran = Ran(tmp_path / "run", stage(bad, step("good"), step("new")))
    assert ran.order == ["one/new", "one/bad"]
    assert (ran.steps["one/bad"].starts, ran.steps["one/good"].starts) == (2, 1)


def test_what_was_deleted_is_done_again(tmp_path: Path) -> None:
    with_run = step("good", run="table1")
    Ran(tmp_path / "run", stage(with_run))
    assert Ran(tmp_path / "run", stage(with_run)).order == ["one/good"]
    (tmp_path / "run" / "table1").mkdir()
    (tmp_path / "run" / "table1" / "manifest.json").write_text("{}")
    assert Ran(tmp_path / "run", stage(with_run)).order == []


def test_a_step_that_was_under_way_when_all_was_killed_is_started_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    journal = reference_run({"one/good": step_state("running"), "one/part": step_state("interrupted")})
    reference_course.write_reference_run(folder, journal)
    ran = Ran(folder, stage(step("good"), step("part")))
    assert ran.fates() == {"one/good": "done", "one/part": "done"}
    assert ran.steps["one/good"].starts == 2


@pytest.mark.parametrize("status", ["running", "interrupted"])
def test_what_was_cut_off_comes_last_where_it_begins_anew(tmp_path: Path, status: StepStatus) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    journal = reference_run({f"one/{name}": step_state(status) for name in ("hung", "sweep", "kernels-check")})
    reference_course.write_reference_run(folder, journal)
    steps = (step("hung"), step("sweep", run="table1"), step("new"), step("kernels-check"))
    order = ["one/sweep", "one/new", "one/kernels-check", "one/hung"]
    assert Ran(folder, stage(*steps)).order == order
    again = replace(step_state(status), starts=2)
    reference_course.write_reference_run(folder, reference_run({"one/kernels-check": again}))
    assert Ran(folder, stage(step("kernels-check"), step("new"))).order == ["one/new", "one/kernels-check"]


def test_kernels_whose_check_was_killed_are_not_used_before_it_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    killed = replace(step_state("running"), starts=2)
    reference_course.write_reference_run(folder, reference_run({"probe/kernels-check": killed}))
    check = pytest_step(tmp_path, "kernels-check", "assert 'INFSA_KERNELS' not in os.environ")
    rest = pytest_step(tmp_path, "rest", "assert os.environ.get('INFSA_KERNELS') == 'torch'")
    ran = Ran(folder, stage(check, name="probe"), stage(rest))
    assert ran.order == ["one/rest", "probe/kernels-check"]
    assert ran.fates() == {"one/rest": "done", "probe/kernels-check": "done"}


def test_a_step_that_runs_for_long_is_packed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever kills everything takes along what came since, not what the step recorded before."""
    monkeypatch.setattr(reference_course, "PACK_AGAIN_SECONDS", 0.5)
    out = tmp_path / "run"
    body = f"""record = pathlib.Path({str(out)!r}) / "table1" / "records.jsonl"
    record.parent.mkdir(parents=True)
    record.write_text("1\\n2\\n")
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for part in (record.parent.parent / "parts").glob("*.0"):
            if "run/table1/records.jsonl" in tarfile.open(part).getnames():
                assert tarfile.open(part).extractfile("run/table1/records.jsonl").read() == b"1\\n2\\n"
                return
        time.sleep(0.1)
    assert False, "not packed while it ran"
"""
    ran = Ran(out, stage(pytest_step(tmp_path, "long", body)))
    assert ran.fates() == {"one/long": "done"}, (out / "logs" / "one.long.log").read_text()


def test_what_cannot_be_packed_meanwhile_does_not_end_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_course, "PACK_AGAIN_SECONDS", 0.5)
    out = tmp_path / "run"
    out.mkdir()
    (out / "parts").write_text("in the way")
    body = f"time.sleep(2); os.unlink({str(out / 'parts')!r})"
    ran = Ran(out, stage(pytest_step(tmp_path, "long", body)))
    assert ran.fates() == {"one/long": "done"}
    assert any(line.startswith("not packed: ") for line in ran.lines)
    assert parts_in(out / "parts")


def test_a_deadline_ends_a_step_and_starts_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_course, "LEAST_STEP_SECONDS", 3.0)
    long = pytest_step(tmp_path, "long", "time.sleep(120)")
    begin = time.monotonic()
    ran = Ran(tmp_path / "run", stage(long, step("next"), name="one"), stage(step("other"), name="two"), left=6.0)
    assert time.monotonic() - begin < 25
    assert ran.fates() == {"one/long": "interrupted"}
    assert ran.steps["one/long"].reason == "its time was over"
    assert parts_in(tmp_path / "run" / "parts")


def test_a_stage_has_its_own_time_and_the_next_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_course, "LEAST_STEP_SECONDS", 3.0)
    long = pytest_step(tmp_path, "long", "time.sleep(120)")
    ran = Ran(tmp_path / "run", stage(long, step("next"), seconds=6.0), stage(step("other"), name="two"))
    assert ran.fates() == {"one/long": "interrupted", "two/other": "done"}


def test_what_comes_last_comes_after_other_stages(tmp_path: Path) -> None:
    ran = Ran(tmp_path / "run", stage(step("late", comes_last=True), step("early")), stage(step("other"), name="two"))
    assert ran.order == ["one/early", "two/other", "one/late"]


def test_what_needs_cuda_says_so(tmp_path: Path) -> None:
    ran = Ran(tmp_path / "run", stage(step("kernels", needs_cuda=True)))
    assert (ran.fates(), ran.steps["one/kernels"].reason) == ({"one/kernels": "not_run"}, "needs CUDA")


def test_tests_that_are_not_there_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    ran = Ran(tmp_path / "run", stage(step("tests", "x", program="pytest")))
    assert ran.steps["one/tests"].status == "not_run"


def test_a_signal_ends_the_course(tmp_path: Path) -> None:
    ran = Ran(tmp_path / "run", stage(step("good")), stops=[15])
    assert (ran.order, ran.steps) == ([], {})
    assert COMMIT


@pytest.mark.parametrize("verdict", ["assert False", "os.kill(os.getpid(), signal.SIGKILL)", "pass"])
def test_kernels_that_do_not_stand_their_test_are_not_used_for_the_rest(tmp_path: Path, verdict: str) -> None:
    check = pytest_step(tmp_path, "kernels-check", verdict, findings=(1,))
    wanted = "None" if verdict == "pass" else "'torch'"
    body = f"assert os.environ.get('INFSA_KERNELS') == {wanted}"
    rest, about_them = pytest_step(tmp_path, "rest", body), pytest_step(tmp_path, "own", body.replace(wanted, "None"))
    ran = Ran(tmp_path / "run", stage(check, name="probe"), stage(rest), stage(about_them, name="kernels"))
    assert (ran.fates()["one/rest"], ran.fates()["kernels/own"]) == ("done", "done")
    again = Ran(tmp_path / "run", stage(pytest_step(tmp_path, "later", body), name="two"))
    assert again.fates()["two/later"] == "done"
