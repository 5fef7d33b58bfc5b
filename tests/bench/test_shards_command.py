"""``sweep --shard`` and ``merge`` as their users meet them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_cli import CommandLine, Result, fake_launcher, planned

import infsa_bench
from infsa_bench.analyze.run import load_run
from infsa_bench.commands import sharding
from infsa_bench.dealing import deal
from infsa_bench.errors import SpecError
from infsa_bench.record import Measurement
from infsa_bench.shard import Part
from infsa_bench.spec import Case
from infsa_bench.store import StoredRun, load, load_manifest

FEW = ("sweep", "--mechanisms", "softmax,agent,soft", "--res", "32,64", "--device", "cpu", "--no-peaks", "--no-report")
MERGE = ("merge", "results/0", "results/1", "results/2", "--out", "results/all")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> CommandLine:
    """The command line over a worker that measures nothing and has every device."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("infsa_bench.commands.sweep.Launcher", fake_launcher())
    return CommandLine(monkeypatch, capfd, tmp_path)


def shard(run: CommandLine, index: int, *words: str, count: int = 3) -> Result:
    return run(*FEW, "--shard", f"{index}/{count}", "--out", f"results/{index}", *words)


def done(result: Result) -> Result:
    assert result.code == 0, result.err
    return result


def refused(result: Result, message: str) -> None:
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert message in result.err


def test_shards_are_recorded_resumed_and_merged(run: CommandLine) -> None:
    whole = planned(run(*FEW, "--dry-run"))
    assert len(whole) == 6
    for index in range(3):
        result = done(shard(run, index))
        assert f"Shard {index}/3 of a plan of 6 cells; infsa-bench merge joins the shards" in result.out
    assert sorted(record.case.id for index in range(3) for record in load(Path(f"results/{index}")).records) == sorted(
        whole
    )
    manifest = load_manifest(Path("results/1"))
    assert manifest.shard is not None
    assert list(manifest.shard.whole) == whole
    assert 0 < len(manifest.plan) < 6
    assert "Shard 1/3 of a plan of 6 cells" in run("report", "results/1").out
    # With nothing left to do it is left as it is; more replicates are of the same cells.
    assert "[1/" not in done(shard(run, 1, "--resume")).out
    cells = {record.case.cell for record in load(Path("results/1")).records}
    for index in range(3):
        done(shard(run, index, "--resume", "--replicates", "2"))
    assert {record.case.cell for record in load(Path("results/1")).records} == cells
    assert "3 runs merged: 12 of 12 cases are recorded\n" in done(run(*MERGE)).out
    both = planned(run(*FEW, "--replicates", "2", "--dry-run"))
    assert [record.case.id for record in load(Path("results/all")).records] == both
    # The merged run is a whole one.
    assert load_manifest(Path("results/all")).shard is None
    assert "Shard" not in done(run("report", "results/all")).out


def test_what_a_merge_says_is_missing_can_be_typed(run: CommandLine) -> None:
    for index in (0, 2):
        done(shard(run, index))
    result = done(run("merge", "results/0", "results/2", "--out", "results/all"))
    assert "missing: shard 1/3\n" in result.out
    (line,) = (line for line in result.out.splitlines() if "To measure them here: " in line)
    program, *words = shlex.split(line.partition("To measure them here: ")[2])
    assert (program, words[-1]) == ("infsa-bench", "--resume")
    before = load(Path("results/all")).records
    assert "6 cells planned, 4 of them recorded already" in done(run(*words)).out
    after = load(Path("results/all")).records
    assert len(after) == 6
    assert [record for record in after if record in before] == list(before)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shard", "3/3"], "--shard 3/3: shards count from zero, the last of 3 is 2/3"),
        (["--shard", "one"], "--shard 'one' is no shard: write i/n"),
        (["--shard", "0/0"], "there may be 1 to"),
        (["--shard="], "--shard '' is no shard"),
    ],
)
def test_what_is_no_shard_is_refused_in_one_line(run: CommandLine, words: list[str], message: str) -> None:
    refused(run(*FEW, *words, "--out", "results/x"), message)
    assert not list(run.folder.iterdir())


@pytest.mark.parametrize("words", [(), ("--resume",), ("--dry-run",), ("--no-report",)])
def test_a_shard_without_cells_has_nothing_to_do_and_leaves_nothing(run: CommandLine, words: tuple[str, ...]) -> None:
    """A task of an array job must not have failed for that."""
    line = "--shard 9/20 has nothing to do: the plan has too few cells for so many shards\n"
    result = run(*FEW[:-1], "--shard", "9/20", "--out", "results/9", *words)
    assert (result.code, result.out, result.err) == (0, line, "")
    assert not list(run.folder.iterdir())


def test_shards_without_cells_are_missed_by_nobody(run: CommandLine) -> None:
    count = 8
    for index in range(count):
        done(shard(run, index, count=count))
    folders = sorted(map(str, Path("results").iterdir()))
    assert folders == [f"results/{index}" for index in range(6)]
    result = done(run("merge", *folders, "--out", "merged"))
    assert result.out == "6 runs merged: 6 of 6 cases are recorded\nrecords: merged\n"
    result = done(run("merge", *folders[1:], "--out", "some"))
    assert "missing: shard 0/8\n" in result.out
    # Of one cell one shard is all that there is.
    for index in range(2):
        one = ("--mechanisms", "softmax", "--res", "32", "--device", "cpu", "--no-peaks", "--no-report")
        done(run("sweep", *one, "--shard", f"{index}/2", "--out", f"one/{index}"))
    assert "1 run merged: 1 of 1 cases are recorded\n" in done(run("merge", "one/0", "--out", "one/all")).out


def test_a_shard_of_table_1_without_cells(run: CommandLine) -> None:
    words = ("--measure", "--device", "cpu", "--impl", "fast", "--phase", "infer", "--energy", "none")
    result = run("table1", "results/x", *words, "--shard", "98/99", "--format", "csv")
    # What is printed besides the table is not printed where that is.
    assert (result.code, result.out) == (0, "")
    assert result.err == "--shard 98/99 has nothing to do: the plan has too few cells for so many shards\n"
    assert not list(run.folder.iterdir())


def test_to_a_program_a_shard_without_cells_is_an_error(run: CommandLine) -> None:
    """There is no run that it could get."""
    with pytest.raises(SpecError, match="--shard 1/2 has nothing to do"):
        infsa_bench.run_sweep(mechanisms="softmax", impl="reference", res=32, device="cpu", shard="1/2", is_quiet=True)


def test_a_shard_that_would_be_of_other_cells_now_is_not_gone_on_with(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version deals otherwise: the shard would have cells of its own and of another one, for good."""
    done(shard(run, 0, "--replicates", "2"))
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}

    def one_further(cases: tuple[Case, ...], part: Part, *others: Any) -> tuple[Case, ...]:
        return deal(cases, replace(part, index=(part.index + 1) % part.count), *others)

    def none(cases: tuple[Case, ...], part: Part, *others: Any) -> tuple[Case, ...]:
        return ()

    def fewer(cases: tuple[Case, ...], part: Part, *others: Any) -> tuple[Case, ...]:
        return deal(cases, part, *others)[1:]

    for dealt in (one_further, none, fewer):
        monkeypatch.setattr(sharding, "deal", dealt)
        message = "results/0 holds shard 0/3 with other cells than it would have now: another version, or another order"
        refused(shard(run, 0, "--resume"), message)
        assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before
    monkeypatch.setattr(sharding, "deal", deal)
    # Neither more replicates are other cells nor fewer.
    for replicates in ("1", "3"):
        done(shard(run, 0, "--resume", "--replicates", replicates))


def test_a_run_is_gone_on_with_as_what_it_is(run: CommandLine) -> None:
    done(shard(run, 0))
    done(run(*FEW, "--out", "results/whole"))
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    go_on = "go on with the same --shard, or choose another folder"
    resume = ("--out", "results/0", "--resume")
    refused(run(*FEW, *resume, "--shard", "1/3"), f"results/0 holds a run of shard 0/3; {go_on}")
    refused(run(*FEW, *resume, "--shard", "0/2"), f"results/0 holds a run of shard 0/3; {go_on}")
    refused(run(*FEW, *resume), f"results/0 holds a run of shard 0/3; {go_on}")
    refused(run(*FEW, "--out", "results/whole", "--resume", "--shard", "0/3"), f"a run of a whole plan; {go_on}")
    refused(run(*FEW, *resume, "--shard", "0/3", "--res", "32,64,96"), "a shard of a plan of other cells")
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before


def test_tasks_that_start_at_once_have_folders_of_their_own(run: CommandLine) -> None:
    for index in range(2):
        done(run(*FEW, "--shard", f"{index}/2"))
    assert sorted(path.name.partition("-shard-")[2] for path in Path("results").iterdir()) == ["0-of-2", "1-of-2"]


def test_the_cells_of_table_1_in_shards(run: CommandLine) -> None:
    words = ("--measure", "--device", "cpu", "--impl", "fast", "--phase", "infer", "--energy", "none")
    for index in range(2):
        done(run("table1", f"results/{index}", *words, "--shard", f"{index}/2"))
    done(run("merge", "results/0", "results/1", "--out", "results/all"))
    merged = load(Path("results/all"))
    assert merged.manifest.command[:3] == ("infsa-bench", "table1", "results/all")
    assert len(merged.records) == len(merged.manifest.plan)
    done(run("table1", "results/all", "--format", "md"))
    refused(run("table1", "results/all", "--shard", "0/2"), "--shard: only together with --measure")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["merge"], "Missing argument 'RUN...'"),
        (["merge", "results/0", "results/1"], "Missing option '--out'"),
        (["merge", "results/0", "--out", "results/all"], "a merge joins two runs or more"),
        (["merge", "results/0", "results/0", "--out", "results/all"], "results/0 is given twice"),
        (["merge", "results/0", "results/none", "--out", "results/all"], "results/none is no run"),
        (["merge", "results/0", "results/1", "--out", "results/1"], "results/1 exists already"),
        (["merge", "results/0", "results/1", "--out", "results/0/all/../.."], "exists already"),
        (
            ["merge", "results/0", "results/1", "--out", "results/0/all"],
            "results/0/all lies in results/0, which is to be",
        ),
        (["merge", "results/0", "results/other", "--out", "results/all"], "are of different plans"),
        (["merge", "results/0", "results/seeded", "--out", "results/all"], "was made with another seed"),
        (["merge", "results/0", "results/again", "--out", "results/all"], "are both shard 0/3"),
        (["merge", "results/whole", "results/0", "--out", "results/all"], "has different records in"),
    ],
)
def test_a_wrong_merge_is_refused_in_one_line(run: CommandLine, words: list[str], message: str) -> None:
    for index in range(2):
        done(shard(run, index))
    done(run(*FEW, "--shard", "0/3", "--out", "results/again"))
    done(run(*FEW, "--out", "results/whole"))
    done(run(*FEW, "--res", "32,96", "--shard", "1/3", "--out", "results/other"))
    done(run(*FEW, "--seed", "7", "--shard", "1/3", "--out", "results/seeded"))
    before = sorted(run.folder.rglob("*"))
    refused(run(*words), message)
    assert sorted(run.folder.rglob("*")) == before


def real(folder: Path, *words: str) -> StoredRun:
    """A run by real workers, of cells that take a moment."""
    command = [sys.executable, "-m", "infsa_bench", "sweep", "--mechanisms", "softmax,infsa-linear", "--res", "32,48"]
    command += ["--device", "cpu", "--warmup", "1", "--iterations", "2", "--time-budget", "none", "--energy", "none"]
    command += ["--no-peaks", "--no-report", "--out", str(folder), *words]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return load(folder)


def test_three_shards_have_the_cells_of_one_run(tmp_path: Path) -> None:
    """Real workers, one shard after the other, and all cells at once."""
    shards = [real(tmp_path / f"shard-{index}", "--shard", f"{index}/3") for index in range(3)]
    whole = real(tmp_path / "whole")
    command = [sys.executable, "-m", "infsa_bench", "merge", *(str(found.path) for found in shards)]
    subprocess.run([*command, "--out", str(tmp_path / "merged")], check=True, capture_output=True)
    merged = load_run(tmp_path / "merged")
    assert merged.manifest.plan == whole.manifest.plan
    assert [record.case for record in merged.records] == [record.case for record in whole.records]
    assert all(isinstance(record.outcome, Measurement) for record in merged.records)
    assert merged.manifest.environments == whole.manifest.environments
    # Who is compared with its reference is so in one process: both were in the same shard.
    assert all((row.speedup_over_reference is None) == (row.case.implementation == "reference") for row in merged.rows)
