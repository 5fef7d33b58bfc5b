"""``reference-run`` as a user meets it, with real sweeps on a CPU and real kills."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import typer
from test_cli import CommandLine

# The fixture of the command line is that of its own tests.
from test_cli import run as run
from test_step_process import is_alive, wait_for

from infsa_bench.cli import app
from infsa_bench.commands.reference_run import parse_deadline
from infsa_bench.errors import SpecError
from infsa_bench.reference.facts import load_facts
from infsa_bench.reference.sizes import ALL, FULL, LINEAR, QUADRATIC, REHEARSAL, Sizes
from infsa_bench.reference.stages import MAX_STAGE_SECONDS, all_stages, chosen_stages, in_order
from infsa_bench.reference.state import load_reference_run
from infsa_bench.spec import parse_resolutions
from infsa_bench.store import RECORDS, load
from infsa_models.registry import MECHANISMS

ROOT = Path(__file__).parent.parent.parent
ORDER = ["probe", "table1-4l", "table1-24l", "ladder", "stress", "train-1024", "ladder-24l", "ladder-reference"]
ORDER += ["maxres-40gib", "ablation", "energy-full", "train-ladder", "maxres-card", "noise", "kernels"]


def test_the_stages_are_those_that_are_documented() -> None:
    stages = all_stages("OUT", "cuda:0")
    assert list(stages) == ORDER
    assert chosen_stages(None) == tuple(ORDER[:4])
    assert [stages[name].seconds for name in ORDER[:4]] == [180, 360, 360, 480]
    assert all(stage.seconds <= MAX_STAGE_SECONDS < 600 for stage in stages.values())
    keys = [stage.key_of(step) for stage, step in in_order(tuple(stages.values()))]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("sizes", [FULL, REHEARSAL], ids=["full", "rehearsal"])
def test_every_step_is_a_command_line_that_is_understood(sizes: Sizes) -> None:
    group = typer.main.get_command(app)
    for stage, step in in_order(tuple(all_stages("OUT", "cuda:0", sizes).values())):
        if step.program == "pytest":
            continue
        context = typer.Context(group)
        name, command, rest = group.resolve_command(context, list(step.words))  # type: ignore[attr-defined]
        with command.make_context(name, rest):
            pass
        if step.words[0] == "sweep":
            assert ("--resume" in step.words, "--no-report" in step.words) == (True, True), stage.key_of(step)
            resolutions = parse_resolutions(step.words[step.words.index("--res") + 1])
            assert resolutions
            assert step.run is not None
            assert f"OUT/{step.run}" in step.words


def test_the_steps_of_a_ladder_leave_nothing_out() -> None:
    stages = all_stages("OUT", "cuda:0")
    for name in ("ladder", "ladder-24l", "ladder-reference"):
        cells = Counter(
            (mechanism, resolution)
            for step in stages[name].steps
            for mechanism in step.words[step.words.index("--mechanisms") + 1].split(",")
            for resolution in set(parse_resolutions(step.words[step.words.index("--res") + 1]))
        )
        expected = {(mechanism, size) for mechanism in MECHANISMS for size in parse_resolutions("224..9216")}
        assert set(cells) == expected


def test_the_fast_implementations_come_before_the_published_ones() -> None:
    for stage in all_stages("OUT", "cuda:0").values():
        order = [step.words[step.words.index("--impl") + 1] for step in stage.steps if "--impl" in step.words]
        assert order[:1] != ["reference"] or "fast" not in order, stage.name
        if stage.name == "maxres-40gib":
            assert order == ["fast", "reference"]


def test_every_mechanism_is_measured_the_proposed_one_first() -> None:
    for text in (ALL, f"{LINEAR},{QUADRATIC}"):
        names = text.split(",")
        assert (sorted(names), names[0]) == (sorted(MECHANISMS), "infsa-linear")


def test_what_runs_in_one_folder_has_one_setting() -> None:
    """A run with another choice of energy, protocol or memory is refused."""
    settings: dict[str, set[tuple[str, ...]]] = {}
    for _, step in in_order(tuple(all_stages("OUT", "cuda:0").values())):
        if step.words[0] == "sweep" and step.run is not None:
            found = [(step.words[i : i + 2]) for i, word in enumerate(step.words) if word in ("--energy", "--protocol")]
            settings.setdefault(step.run, set()).add(tuple(word for pair in found for word in pair))
    assert all(len(found) == 1 for found in settings.values()), settings


@pytest.mark.parametrize(
    ("text", "seconds"), [("24", 1440.0), ("9", 540.0), ("9m", 540.0), ("540s", 540.0), ("1.5h", 5400.0)]
)
def test_a_deadline_is_in_minutes_or_says_in_what(text: str, seconds: float) -> None:
    assert parse_deadline(text) == seconds


@pytest.mark.parametrize(
    "words",
    [
        ["--deadline", "soon"],
        ["--deadline", "30s"],
        ["--stage", "tabel1-4l"],
        ["--device", "tpu"],
        ["--device", "cpu", "--out", "taken"],
        ["--device", "cpu", "--out", "file"],
        ["--device", "cuda:0"],
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(run: CommandLine, words: list[str]) -> None:
    (run.folder / "taken").mkdir()
    (run.folder / "taken" / "mine.txt").write_text("mine")
    (run.folder / "file").write_text("mine")
    before = sorted(run.folder.rglob("*"))
    if words[-1] == "cuda:0":
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
    result = run("reference-run", *words)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert sorted(run.folder.rglob("*")) == before
    with pytest.raises(SpecError):
        parse_deadline("soon")


def test_a_dry_run_prints_what_one_could_type(run: CommandLine) -> None:
    result = run("reference-run", "--dry-run", "--stage", "ladder,probe")
    lines = result.out.splitlines()
    assert result.code == 0
    assert lines[:2] == ["# probe/doctor: at most 1 min 00 s", "infsa-bench doctor --device cuda:0"]
    assert lines[3] == "infsa-bench instruments --device cuda:0 --out OUT/instruments.json"
    last = [line.partition(":")[0] for line in lines if line.startswith("# probe/")][-3:]
    assert last == ["# probe/gpu-tests", "# probe/selfcheck", "# probe/peaks"]
    assert any(shlex.split(line)[:2] == ["infsa-bench", "sweep"] for line in lines)
    assert list(run.folder.iterdir()) == []


def children_of(pid: int) -> set[int]:
    """All processes that come from one, by following parents."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


@pytest.mark.skipif(sys.platform != "linux", reason="follows processes through /proc")
def test_a_termination_and_a_kill_leave_everything_once(tmp_path: Path) -> None:
    """Both sweeps of a table, each run into by another end of the world; then the way back."""
    out, sent = tmp_path / "run", tmp_path / "sent"
    command = [sys.executable, "-m", "infsa_bench", "reference-run", "--device", "cpu", "--stage", "table1-4l"]
    command += ["--out", str(out), "--parts", str(sent)]

    def lines() -> int:
        file = out / "table1" / RECORDS
        return file.read_bytes().count(b"\n") if file.is_file() else 0

    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: lines() == 1, 240)
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 130, said
    assert "table1-4l/fast: interrupted" in said
    assert "left for the next time" in said
    assert list(sent.glob("run.tar.gz.*"))

    second = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for(lambda: lines() == 3, 240)
    started = children_of(second.pid)
    assert started
    second.kill()
    second.wait()
    wait_for(lambda: not any(map(is_alive, started)), 60)
    running = json.loads((out / "stages.json").read_text())["steps"]["table1-4l/reference"]
    assert running["status"] == "running"

    third = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert third.returncode == 0, third.stdout + third.stderr
    assert "all of it is done" in third.stdout
    stored = load(out / "table1")
    # Two mechanisms, two implementations: each once, and never a second line.
    assert (len(stored.records), stored.superseded, lines()) == (4, 0, 4)
    steps = load_reference_run(out).steps
    assert {key: (state.status, state.starts) for key, state in steps.items()} == {
        "table1-4l/fast": ("done", 2),
        "table1-4l/reference": ("done", 2),
    }

    home = tmp_path / "home" / "results" / "gpu-x"
    unpacked = [sys.executable, "-m", "infsa_bench", "unpack", str(sent), "--out", str(home)]
    done = subprocess.run(unpacked, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(load(home / "table1").records) == 4
    reports = tmp_path / "home" / "reports" / "gpu-x"
    assert (reports / "table1" / "index.html").is_file()
    page = (reports / "README.md").read_text()
    assert (
        "| table1-4l | Table 1, 4L-64H: inference at 1024 x 1024, fast and reference, with energy | measured |" in page
    )
    assert "| table1-24l | Table 1, 24L-16H" in page
    assert "(table1/report.md)" in page


def test_make_rehearses_the_probe_without_an_install(tmp_path: Path) -> None:
    """What happens on a machine with a GPU, as far as a CPU can: no virtual environment, parts in a folder apart."""
    out, sent = tmp_path / "run", tmp_path / "sent"
    words = ["make", "gpu", "DEVICE=cpu", "STAGE=probe", "DEADLINE=240s", f"RUN={out}", f"GPU_PYTHON={sys.executable}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        words, cwd=ROOT, env={**environment, "OUT": str(sent)}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = load_reference_run(out)
    assert run.is_rehearsal
    assert {key: state.status for key, state in run.steps.items()} == {
        "probe/kernels-check": "not_run",
        "probe/instruments": "done",
        "probe/doctor": "done",
        "probe/peaks": "done",
        "probe/selfcheck": "not_run",
        "probe/gpu-tests": "not_run",
    }
    assert run.steps["probe/gpu-tests"].reason == "needs CUDA"
    facts = load_facts(out / "instruments.json")
    assert facts is not None
    assert facts.ready_seconds is not None
    assert 0 < facts.context_seconds < facts.ready_seconds
    assert (facts.calibration, facts.no_energy) == (None, "needs CUDA")
    assert [file.name for file in sent.iterdir()] == ["run.tar.gz.0"]


def test_two_reference_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "infsa_bench", "reference-run", "--device", "cpu", "--stage", "kernels"]
    command += ["--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, "not run: needs CUDA" in done.stdout) == (0, True), done.stderr
    holder = "import fcntl, sys, time\nlock = open(sys.argv[1], 'wb')\nfcntl.flock(lock, fcntl.LOCK_EX)\n"
    holder += "print('held', flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", holder, str(out / ".lock")], stdout=subprocess.PIPE) as held:
        assert held.stdout is not None
        held.stdout.readline()
        refused = subprocess.run(command, capture_output=True, text=True, timeout=120)
        held.kill()
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "being written by another process" in refused.stderr
