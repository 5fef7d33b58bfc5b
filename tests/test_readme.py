"""What the README says can be done is done here."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infsa_bench.cli import main
from infsa_bench.execute.launcher import Launcher
from infsa_bench.execute.process import Abandonment
from infsa_bench.reference.parts import pack
from infsa_bench.reference.state import ReferenceRun, write_reference_run
from infsa_bench.store import load_manifest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FAKE_WORKER = Path(__file__).parent / "bench" / "fake_worker.py"


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[str]:
    lines = "".join(code_blocks("bash")).splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.startswith(f"{program} ")]


def reference_run() -> ReferenceRun:
    """One in which nothing was measured yet."""
    environment = load_manifest(ROOT / re.findall(r"<!-- run: (results/\S+) -->", README)[0]).environments
    (key,) = environment
    now = "2026-11-26T12:00:00+00:00"
    return ReferenceRun(
        created_utc=now, updated_utc=now, is_rehearsal=False, environments={key: environment[key]}, commits={}, steps={}
    )


SWEEPS = [line for line in commands("infsa-bench") if line.startswith("infsa-bench sweep")]


def fake_launcher(device: str, *, abandonment: Abandonment | None = None) -> Launcher:
    def command(device: str, message_fd: int, parent_pid: int) -> list[str]:
        return [sys.executable, str(FAKE_WORKER), device, str(message_fd), str(parent_pid)]

    return Launcher(device, command, abandonment)


# Commands for a cluster are tried on one in bench/test_ray_engine.py.
@pytest.mark.parametrize("line", [line for line in SWEEPS if "my_package" not in line and "--engine ray" not in line])
def test_every_sweep_of_the_readme_plans(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With the worker that measures nothing, so that commands for a GPU can be tried anywhere."""
    monkeypatch.setattr("infsa_bench.commands.sweep.Launcher", fake_launcher)
    monkeypatch.setattr(sys, "argv", [*shlex.split(line), "--dry-run"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "cells planned" in capsys.readouterr().out


def test_make_has_the_targets_that_are_named() -> None:
    makefile = (ROOT / "Makefile").read_text()
    contributing = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"^make (\w+)", README + contributing, re.MULTILINE))
    assert {"sweep", "test", "check", "soak"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_mechanism_from_outside_is_measured(tmp_path: Path) -> None:
    (source,) = (block for block in code_blocks("python") if "MeanAttention" in block)
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "attention.py").write_text(source)
    (line,) = (line for line in SWEEPS if "my_package" in line)
    words = [*shlex.split(line)[1:], "--res", "32", "--device", "cpu", "--iterations", "2", "--no-peaks"]
    words += ["--out", "results/mean"]
    done = subprocess.run([sys.executable, "-m", "infsa_bench", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "reports/mean/table.md").read_text()
    # On a busy machine with a flag.
    assert re.search(r"my\\_package\.attention:MeanAttention \| reference \| 32 .* ok( \([^|]*\))? \|", table)


OTHERS = [line for line in commands("infsa-bench") if line not in SWEEPS and "--engine ray" not in line]


@pytest.mark.parametrize("line", OTHERS)
def test_the_other_commands_of_the_readme_run(
    line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the committed run in place of the user's own; what would probe does so with the worker that runs nothing."""
    for command in ("maxres", "peaks", "sweep", "reference_run"):
        monkeypatch.setattr(f"infsa_bench.commands.{command}.Launcher", fake_launcher)
    (run,) = re.findall(r"<!-- run: (results/\S+) -->", README)
    for name in ("mine", "yours", "before", "after"):
        shutil.copytree(ROOT / run, tmp_path / "results" / name)
    if "--measure" in line:
        # Into a folder of its own: those two hold runs already.
        line = line.replace("results/mine", "results/table1")
    if line.startswith("infsa-bench unpack"):
        # What came home from a machine with a GPU.
        (tmp_path / "there").mkdir()
        write_reference_run(tmp_path / "there", reference_run())
        pack(tmp_path / "there", tmp_path / shlex.split(line)[2])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    # Two runs that are the same have nothing to annotate.
    assert capsys.readouterr().out or "annotations" in line


def test_the_notebook_example_runs(tmp_path: Path) -> None:
    (source,) = (block for block in code_blocks("python") if "load_run" in block)
    (run,) = re.findall(r"<!-- run: (results/\S+) -->", README)
    shutil.copytree(ROOT / run, tmp_path / "results" / "mine")
    code = source + "\nfigure.savefig('figure.png')"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert "infsa-linear" in done.stdout
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_timm_example_runs() -> None:
    (source,) = (block for block in code_blocks("python") if "timm.create_model" in block)
    subprocess.run([sys.executable, "-c", source + "\nprint(model)"], check=True, capture_output=True)


def test_table_and_picture_are_those_of_the_committed_run() -> None:
    (run,) = re.findall(r"<!-- run: (results/\S+) -->", README)
    report = ROOT / run.replace("results/", "reports/", 1)
    assert (ROOT / run / "records.jsonl").is_file()
    shown = re.search(r"<!-- table -->\n(.*?)<!-- /table -->", README, re.DOTALL)
    assert shown is not None
    lines = shown[1].strip().splitlines()
    rendered = (report / "table.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 11
    assert [line for line in lines if line not in rendered] == []
    assert f"]({report.relative_to(ROOT)}/latency_vs_resolution.png)" in README
    assert (report / "latency_vs_resolution.png").is_file()


def test_links_into_the_repository_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_table_of_real_gates_says_what_they_decided() -> None:
    folder = ROOT / "results" / "gates-cpu-20261126"
    rows = re.findall(r"^\| \[(.+)\]\(.+/comparison.md\) \|(.*)\|$", (folder / "README.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == {path.parent.name for path in folder.glob("*/gate.json")}
    for name, cells in rows:
        comparison = json.loads((folder / name / "comparison.json").read_text())
        code = json.loads((folder / name / "gate.json").read_text())["exit_code"]
        (found,) = (item for item in comparison["judged"] if item["metric"] == "latency" and "slowed" in item["cell"])
        effect = f"{100 * comparison['detectable']['latency']:.1f} %"
        expected = [
            str(code),
            found["verdict"],
            f"{found['ratio']:.3f}",
            f"{found['low']:.3f} .. {found['high']:.3f}",
            effect,
        ]
        assert [cell.strip() for cell in cells.split("|")][1:] == expected


SHIM = """#!/bin/sh
# The command of the README with cells that take a moment; the last of an option counts.
command="$1"
shift
case "$command" in
    sweep)
        set -- "$@" --mechanisms softmax,soft,agent --res 32 --impl fast --device cpu
        set -- "$@" --warmup 1 --iterations 2 --no-peaks ;;
esac
exec {python} -m infsa_bench "$command" "$@"
"""


def test_the_array_job_of_the_readme_says_how_many_tasks_and_cores_it_has() -> None:
    """Slurm refuses ``--gpus-per-task`` without a number of tasks or GPUs, and gives a task one core if not asked."""
    script, _ = code_blocks("sh")
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", script, re.MULTILINE))
    assert options["ntasks"] == options["gpus-per-task"] == "1"
    assert int(options["cpus-per-task"]) > 1


def test_the_array_job_of_the_readme_runs_as_a_loop(tmp_path: Path) -> None:
    """Each task as Slurm would start it, with real workers; one of them twice, as after it was stopped."""
    script, afterwards = code_blocks("sh")
    (tasks,) = re.findall(r"^#SBATCH --array=0-(\d+)$", script, re.MULTILINE)
    assert f"\nSHARDS={int(tasks) + 1}\n" in script
    # As many tasks as a test has time for.
    script = script.replace(f"SHARDS={int(tasks) + 1}", "SHARDS=2")
    shim = tmp_path / "bin" / "infsa-bench"
    shim.parent.mkdir()
    shim.write_text(SHIM.format(python=shlex.quote(sys.executable)))
    shim.chmod(0o755)
    (tmp_path / "job.sh").write_text(script)
    path = f"{shim.parent}{os.pathsep}{os.environ['PATH']}"
    for index in ("0", "1", "1"):
        environment = {**os.environ, "PATH": path, "SLURM_ARRAY_TASK_ID": index}
        subprocess.run(["sh", "job.sh"], check=True, cwd=tmp_path, env=environment)
    done = subprocess.run(
        ["sh", "-e", "-c", afterwards], check=True, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True
    )
    assert b"2 runs merged: 3 of 3 cases are recorded\n" in done.stdout
    assert (tmp_path / "reports" / "fleet" / "index.html").is_file()
