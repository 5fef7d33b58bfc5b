"""``infsa-bench gate`` and ``aa``: real sweeps by real command lines, over a worker that measures nothing.

The long versions at the end measure: this machine against itself, and against a mechanism with more work.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cli import CommandLine, fake_launcher, run
from test_measuring import FAKE_BUILD, fake_build

from infsa_bench.analyze.noise import NOISE, load_noise
from infsa_bench.cli import main
from infsa_bench.commands.repository import worktree
from infsa_bench.errors import SpecError
from infsa_bench.store import load

__all__ = ["main", "run"]

ROOT = Path(__file__).parents[2]
SWEEP = ["sweep", "--res", "224,384", "--mechanisms", "softmax,mlla", "--impl", "reference", "--device", "cpu"]
SWEEP += ["--replicates", "5", "--energy", "none", "--no-peaks", "--time-budget", "none"]
QUICK = ["--screening", "3", "--confirming", "3"]
BUILD_COMMAND = shlex.join([sys.executable, str(FAKE_BUILD)])


def run_build(folder: Path, words: list[str], **environment: str) -> None:
    command = [sys.executable, str(FAKE_BUILD), *words]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def base_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gate")
    run_build(folder, [*SWEEP, "--out", "results/base"])
    return folder / "results/base"


@pytest.fixture
def gate(run: CommandLine, base_run: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Runs ``infsa-bench gate`` on the run above; keywords are the environment of the new build."""
    monkeypatch.setattr("infsa_bench.commands.gate.Launcher", fake_launcher())

    def gate(*words: str, **environment: str) -> object:
        monkeypatch.setattr("infsa_bench.commands.gate.this_build", lambda: fake_build(**environment))
        return run("gate", "--baseline", str(base_run), *QUICK, "--out", "results/gate", *words)

    gate.folder = run.folder / "results/gate"  # type: ignore[attr-defined]
    return gate


def test_an_unchanged_build_passes(gate) -> None:
    result = gate()
    assert result.code == 0, result.err + result.out
    assert "stage 1: nothing suspected" in result.out
    assert "no regression" in result.out
    manifest = json.loads((gate.folder / "gate.json").read_text())
    assert (manifest["exit_code"], manifest["suspects"], manifest["base_command"]) == (0, [], None)
    assert len(load(gate.folder / "new-1").records) == 12
    assert (gate.folder / "comparison.md").read_text().startswith("## base -> new")


def test_a_slower_mechanism_is_measured_again_and_convicted(gate) -> None:
    result = gate(FAKE_TIMES="1.1", FAKE_MECHANISM="mlla")
    assert result.code == 1, result.err + result.out
    assert "stage 1: 2 cells suspected; measuring again in 3 fresh processes of the new build only" in result.out
    assert "REGRESSED latency infsa/mlla.reference/4L-64H/r224" in result.out
    assert {record.case.mechanism for record in load(gate.folder / "new-2").records} == {"mlla"}
    manifest = json.loads((gate.folder / "gate.json").read_text())
    assert {suspect["metric"] for suspect in manifest["suspects"]} == {"latency", "throughput"}


def test_both_builds_are_measured_in_turns(gate) -> None:
    result = gate("--base-cmd", BUILD_COMMAND, FAKE_TIMES="1.2", FAKE_MECHANISM="softmax")
    assert result.code == 1, result.err + result.out
    passes = [
        line.split(":")[0] for line in result.out.splitlines() if " in 1 processes" in line or " processes" in line
    ]
    passes = [name for name in passes if name.startswith(("new-", "base-"))]
    assert passes[:6] == ["new-1", "base-1", "base-1", "new-1", "new-1", "base-1"]
    assert passes[6:] == ["new-2", "base-2", "base-2", "new-2", "new-2", "base-2"]
    assert "of either build" in result.out
    times = sorted(
        (record.started_utc, record.case.replicate, side)
        for side in ("new", "base")
        for record in load(gate.folder / f"{side}-1").records
    )
    assert [replicate for _, replicate, _ in times] == sorted(replicate for _, replicate, _ in times)


def test_a_mechanism_that_the_other_build_does_not_know_is_new(gate) -> None:
    """As in the change that adds it: the others are compared all the same."""
    result = gate("--base-cmd", shlex.join(["env", "FAKE_UNKNOWN=mlla", *shlex.split(BUILD_COMMAND)]))
    assert result.code == 0, result.err + result.out
    assert "base-1: infsa/mlla.reference/4L-64H/r224/b1/fp32/infer/eager is not known to this build" in result.out
    assert "only in new-1: infsa/mlla.reference/4L-64H/r224" in result.out
    assert "base-1: 2 cells in 3 processes" in result.out


def test_what_this_build_does_not_know_is_refused(gate) -> None:
    result = gate(FAKE_UNKNOWN="mlla")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "does not know all that base holds" in result.err


def test_a_new_failure_fails_the_gate_at_once(gate) -> None:
    result = gate("--strict", "--format", "json", FAKE_OOM="softmax")
    assert result.code == 1, result.err
    found = json.loads(result.out)
    assert {item["cell"].split("/")[1] for item in found["judged"] if item["direction"] == "worse"} == {
        "softmax.reference"
    }
    assert "stage 1: nothing suspected" in result.err
    assert not (gate.folder / "new-2").exists()


def test_a_gate_can_be_resumed(gate) -> None:
    assert gate().code == 0
    refused = gate()
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--resume" in refused.err
    before = (gate.folder / "new-1" / "records.jsonl").read_bytes()
    assert gate("--resume").code == 0
    assert (gate.folder / "new-1" / "records.jsonl").read_bytes() == before


def test_an_interrupted_gate_says_how_to_go_on(gate, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("infsa_bench.commands.gate.measure", interrupted)
    result = gate("--format", "json")
    assert result.code == 130
    assert "with --resume --out results/gate" in result.out
    gate.folder.parent.mkdir(exist_ok=True)
    gate.folder.write_text("mine")
    assert gate("--resume").code == 2


def test_another_machine_is_told_before_anything_is_measured(gate, monkeypatch: pytest.MonkeyPatch) -> None:
    result = gate("--device", "cuda:0")
    assert result.code == 3
    assert "not comparable: device: cpu fake processor -> cuda fake processor" in result.out
    assert not gate.folder.exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--base-cmd", "a", "--base-ref", "b"], "not by both"),
        (["--base-cmd", ""], "--base-cmd is empty"),
        (["--screening", "2"], "--screening must be between 3"),
        (["--confirming", "1000"], "--confirming must be between 3"),
        (["--format", "xml"], "unknown format"),
        (["--device", "tpu"], "unknown device"),
        (["--noise", "none.json"], "does not exist"),
        (["--base-ref", "no-such-ref"], "git rev-parse failed"),
        (["--base-ref", "--output=x"], "git rev-parse failed"),
        (["--base-cmd", "/does/not/exist"], "cannot be run"),
    ],
)
def test_bad_options_are_one_line(gate, words: list[str], expected: str) -> None:
    result = gate(*words)
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert expected in result.err


def test_a_worktree_leaves_the_checkout_alone(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    package = tmp_path / "bench" / "infsa_bench"
    package.mkdir(parents=True)
    (package / "version").write_text("old")
    git("init", "--quiet")
    git("add", "-A")
    git("commit", "--quiet", "-m", "old")
    old = git("rev-parse", "HEAD")
    (package / "version").write_text("new")
    git("commit", "--quiet", "-am", "new")
    (package / "version").write_text("being edited")
    before = (git("status", "--porcelain"), git("rev-parse", "HEAD"), git("branch", "--all"))
    with worktree(old, tmp_path) as folder:
        assert (folder / "bench/infsa_bench/version").read_text() == "old"
        assert folder.parent.parent != tmp_path
    assert not folder.exists()
    assert (package / "version").read_text() == "being edited"
    assert (git("status", "--porcelain"), git("rev-parse", "HEAD"), git("branch", "--all")) == before
    assert git("worktree", "list").count("\n") == 0
    with pytest.raises(SpecError), worktree("none", tmp_path):
        pass


def test_aa_of_a_run_that_is_there(run: CommandLine, base_run: Path) -> None:
    result = run("aa", "--from", str(base_run))
    assert result.code == 0, result.err
    assert "latency: between processes" in result.out
    assert "confirms suspects in 10 processes a side" in result.out
    noise = load_noise(base_run / NOISE)
    assert 10 <= noise.confirming_replicates <= 30
    assert len({cell.cell for cell in noise.cells}) == 4
    (base_run / NOISE).unlink()
    assert run("aa", "--from", str(base_run), "--res", "224").code == 2


def test_aa_measures_by_a_sweep(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infsa_bench.commands.aa.this_build", fake_build)
    words = ["--res", "224", "--mechanisms", "softmax", "--impl", "reference", "--device", "cpu", "--energy", "none"]
    result = run("aa", "--replicates", "6", "--out", "results/aa", *words)
    assert result.code == 0, result.err
    assert "even against odd processes: no difference found, as it should be" in result.out
    assert load(run.folder / "results/aa").manifest.settings.protocol.name == "gate*"
    assert load_noise(run.folder / "results/aa" / NOISE).source == "aa"
    assert run("aa", "--out", "results/aa", *words).code == 2
    assert "refused its options" in run("aa", "--out", "results/bb", "--res", "225").err
    assert run("aa", "--replicates", "2", *words).code == 2
    assert "--resume is no option of aa" in run("aa", "--resume", *words).err


SLOWED = '''
import os

from torch import nn


class Slowed(nn.Module):
    """As many products as the environment says."""

    def __init__(self, embed_dim, num_heads, *, grid, class_token=True, device=None, dtype=None):
        super().__init__()
        self.proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.products = int(os.environ.get("PRODUCTS", "60"))

    def forward(self, x):
        y = x
        for _ in range(self.products):
            y = self.proj(x)
        return y
'''


@pytest.mark.soak
@pytest.mark.parametrize("attempt", range(5))
@pytest.mark.parametrize(("products", "code"), [("60", 0), ("96", 1)])
def test_this_machine_against_itself_and_against_more_work(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch, products: str, code: int, attempt: int
) -> None:
    """Real measurements: 96 products in place of 60 are more than 30 % more work for the whole model."""
    (run.folder / "slowed.py").write_text(SLOWED)
    paths = [str(run.folder), *(str(ROOT / folder) for folder in ("bench", "models"))]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    # Threads that wait for each other take ten times as long as soon as anything else wants a core.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["sweep", "--mechanisms", "softmax,slowed:Slowed", "--impl", "reference", "--res", "64", "--device", "cpu"]
    words += ["--replicates", "3", "--energy", "none", "--no-peaks", "--time-budget", "none"]
    base_command = [sys.executable, "-m", "infsa_bench"]
    subprocess.run([*base_command, *words, "--out", "results/base"], check=True, capture_output=True)
    monkeypatch.setenv("PRODUCTS", products)
    other = shlex.join(["env", "PRODUCTS=60", *base_command])
    result = run("gate", "--baseline", "results/base", "--base-cmd", other, "--out", "results/gate")
    assert result.code == code, result.out + result.err
    if code:
        assert "REGRESSED latency infsa/slowed:Slowed.reference" in result.out
        assert "REGRESSED latency infsa/softmax" not in result.out
