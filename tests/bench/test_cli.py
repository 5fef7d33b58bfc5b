"""The command line as a user meets it: bad input is one line and exit 2, and nothing is written."""

from __future__ import annotations

import math
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_worker import CALIBRATION, CALIBRATION_LATER, NO_ENERGY
from test_launcher import fake_command_of

from infsa_bench.cli import main
from infsa_bench.execute.launcher import Launcher
from infsa_bench.execute.local_engine import LocalEngine
from infsa_bench.execute.station import StartLauncher
from infsa_bench.record import SCHEMA_VERSION, Measurement, Record, TracePoint
from infsa_bench.schedule import Plan
from infsa_bench.store import MANIFEST, RECORDS, RunWriter, load, load_manifest
from infsa_bench.traces import TRACES


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


class CommandLine:
    """Runs ``infsa-bench ...`` in this process, in an empty folder.

    Sweeps and searches are of ``reference`` alone, so that a mechanism is one cell, unless the words name the
    implementations or the call asks for the defaults.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path) -> None:
        self._monkeypatch, self._capfd, self.folder = monkeypatch, capfd, folder

    def __call__(self, *words: str, with_defaults: bool = False) -> Result:
        if words[:1] in (("sweep",), ("maxres",)) and "--impl" not in words and not with_defaults:
            words = (words[0], "--impl", "reference", *words[1:])
        self._monkeypatch.setattr(sys, "argv", ["infsa-bench", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self._capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, out, err)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> CommandLine:
    monkeypatch.chdir(tmp_path)
    return CommandLine(monkeypatch, capfd, tmp_path)


BAD_OPTIONS = {
    "unknown mechanism": (["--mechanisms", "sofmax"], "did you mean 'softmax'?"),
    "unknown mechanism in a list": (["--mechanisms", "softmax,perfomer"], "did you mean 'performer'?"),
    "no multiple of 16": (["--res", "225"], "multiple of 16"),
    "zero": (["--res", "0"], "multiple of 16"),
    "negative": (["--res=-224"], "multiple of 16"),
    "text": (["--res", "big"], "not a whole number"),
    "fraction": (["--res", "224.5"], "not a whole number"),
    "reversed range": (["--res", "1024..224"], "reversed"),
    "open range": (["--res", "224.."], "not a whole number"),
    "empty range": (["--res", "240..256"], "no step of the ladder"),
    "absurdly large": (["--res", "1600000"], "above"),
    "huge number": (["--res", "9" * 5000], "not a whole number"),
    "empty resolutions": (["--res", ""], "empty resolution"),
    "empty item": (["--res", "224,,512"], "empty resolution"),
    "empty mechanisms": (["--mechanisms", ""], "empty mechanism"),
    "empty phases": (["--phase", ","], "empty phase"),
    "unknown dtype": (["--dtype", "fp8"], "unknown dtype 'fp8'"),
    "unknown config": (["--config", "12L-12H"], "unknown config"),
    "unknown implementation": (["--impl", "fastest"], "unknown implementation"),
    "unknown phase": (["--phase", "inference"], "did you mean 'infer'?"),
    "unknown execution": (["--execution", "jit"], "unknown execution"),
    "unknown protocol": (["--protocol", "fast"], "unknown protocol"),
    "batch size 0": (["--batch-size", "0"], "batch size 0"),
    "batch size text": (["--batch-size", "one"], "not a whole number"),
    "negative warm-up": (["--warmup", "-1"], "--warmup"),
    "no iterations": (["--iterations", "0"], "--iterations"),
    "no number": (["--iterations", "many"], "--iterations"),
    "no replicates": (["--replicates", "0"], "--replicates must be between"),
    "too many replicates": (["--replicates", "101"], "--replicates must be between"),
    "negative replicates": (["--replicates=-1"], "--replicates must be between"),
    "replicates text": (["--replicates", "some"], "--replicates"),
    "unknown energy": (["--energy", "ful"], "unknown energy 'ful'; did you mean 'full'?"),
    "no energy preset": (["--energy", "off"], "known: auto, quick, full, none"),
    "empty energy": (["--energy", ""], "unknown energy ''"),
    "energies": (["--energy", "quick,full"], "unknown energy"),
    "time budget": (["--time-budget", "soon"], "no duration"),
    "no time budget": (["--time-budget", "0s"], "above zero"),
    "negative time budget": (["--time-budget=-5s"], "no duration"),
    "budget below what ending takes": (["--time-budget", "10s"], "must be above 15 s"),
    "seed too large": (["--seed", "9" * 23], "--seed must be between"),
    "negative seed": (["--seed=-1"], "--seed must be between"),
    "unknown device": (["--device", "tpu"], "unknown device"),
    "malformed device": (["--device", "cuda:x"], "unknown device"),
    "unknown device in a list": (["--device", "cuda:0,tpu"], "unknown device 'tpu'; write auto, cpu, cuda:N, several"),
    "empty device": (["--device", "cuda:0,"], "unknown device ''"),
    "a GPU twice": (["--device", "cuda:1,cuda:0,cuda:1"], "cuda:1 stands there twice"),
    "a GPU by two indices": (["--device", "cuda:0,cuda:00"], "cuda:0 stands there twice"),
    "a GPU by two names": (["--device", "cuda,cuda:0"], "cuda:0 stands there twice"),
    "GPU and processor": (["--device", "cpu,cuda:0"], "several devices are GPUs, or workers on the processor"),
    "auto and a GPU": (["--device", "auto,cuda:0"], "several devices are GPUs, or workers on the processor"),
    "all and a GPU": (["--device", "all,cuda:0"], "unknown device 'all'"),
    "more workers than cores": (["--device", ",".join(["cpu"] * 5000)], "would disturb each other"),
    "malformed target": (["--mechanisms", "os:"], "package.module:Class"),
    "unknown option": (["--resolution", "224"], "--resolution"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_are_one_line_and_exit_2(run: CommandLine, name: str) -> None:
    words, expected = BAD_OPTIONS[name]
    result = run("sweep", *words, "--out", "results/x")
    assert result.code == 2
    assert expected in result.err
    assert result.err.count("\n") == 1
    assert result.err.startswith("infsa-bench: error: ")
    assert not list(run.folder.iterdir())


def test_cuda_that_is_not_there_is_refused(run: CommandLine) -> None:
    result = run("sweep", "--device", "cuda:97", "--out", "results/x")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "cuda:97" in result.err
    assert not list(run.folder.iterdir())


def test_a_mechanism_from_elsewhere_is_tried_out_first(run: CommandLine) -> None:
    words = ["--res", "32", "--device", "cpu", "--out", "results/x"]
    result = run("sweep", "--mechanisms", "softmax,os:system", *words)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "os:system is no mechanism: TypeError: os:system is not a torch.nn.Module class" in result.err
    assert not list(run.folder.iterdir())


def test_report_of_a_run_that_does_not_exist(run: CommandLine) -> None:
    result = run("report", "results/none")
    assert (result.code, result.err) == (2, "infsa-bench: error: results/none is no run: it has no manifest.json\n")


def test_a_folder_that_is_no_run_is_left_alone(run: CommandLine) -> None:
    (run.folder / "mine").mkdir()
    (run.folder / "mine" / "notes.txt").write_text("mine")
    for words in (["--out", "mine"], ["--out", "mine", "--resume"], ["--out", "mine/notes.txt"]):
        result = run("sweep", "--res", "32", *words)
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert "is no run of infsa-bench" in result.err
    assert [path.name for path in run.folder.rglob("*")] == ["mine", "notes.txt"]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of two mechanisms at 32 x 32 pixels."""
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["infsa-bench", *SMALL_SWEEP])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
    return folder


SMALL_SWEEP = ["sweep", "--impl", "reference", "--res", "32", "--mechanisms", "softmax,infsa-linear", "--device", "cpu"]
SMALL_SWEEP += ["--warmup", "1", "--iterations", "2", "--no-peaks", "--out", "results/small"]


@pytest.fixture
def run_small(run: CommandLine, small_run: Path) -> CommandLine:
    shutil.copytree(small_run, run.folder, dirs_exist_ok=True)
    return run


def test_a_finished_run_is_not_written_over(run_small: CommandLine) -> None:
    records = run_small.folder / "results/small" / RECORDS
    before = records.read_bytes()
    result = run_small(*SMALL_SWEEP)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "add --resume" in result.err
    assert records.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--iterations", "3"], "another protocol"),
        (["--seed", "1"], "another seed"),
        (["--energy", "none"], "another energy"),
        (["--iterations", "3", "--replicates", "2"], "another protocol"),
    ],
)
def test_resuming_with_other_settings_is_refused(run_small: CommandLine, words: list[str], expected: str) -> None:
    result = run_small(*SMALL_SWEEP, *words, "--resume")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert expected in result.err


def test_resuming_may_add_cells(run_small: CommandLine) -> None:
    before = (run_small.folder / "results/small" / RECORDS).read_text()
    result = run_small(*SMALL_SWEEP, "--mechanisms", "mlla", "--resume")
    assert result.code == 0, result.err
    after = (run_small.folder / "results/small" / RECORDS).read_text()
    assert after.startswith(before)
    assert after.count("\n") == 3
    assert "3 cells planned, 3 recorded: 3 ok" in result.out


def test_a_torn_line_is_reported_and_dropped_by_resume(run_small: CommandLine) -> None:
    records = run_small.folder / "results/small" / RECORDS
    records.write_bytes(records.read_bytes()[:-30])
    result = run_small("report", "results/small")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "torn" in result.err
    assert "--resume" in result.err
    resumed = run_small(*SMALL_SWEEP, "--resume")
    assert resumed.code == 0, resumed.err
    assert "dropped a torn last line" in resumed.out
    assert run_small("report", "results/small").code == 0


@pytest.mark.parametrize("file", [MANIFEST, RECORDS])
def test_another_schema_version_is_named(run_small: CommandLine, file: str) -> None:
    path = run_small.folder / "results/small" / file
    path.write_text(
        path.read_text()
        .replace(f'"schema_version":{SCHEMA_VERSION}', '"schema_version":99')
        .replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 99')
    )
    for words in (["report", "results/small"], [*SMALL_SWEEP, "--resume"]):
        result = run_small(*words)
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert "schema version 99" in result.err
        assert file in result.err


def test_report_renders_again_the_same(run_small: CommandLine) -> None:
    table = run_small.folder / "reports/small/table.md"
    before = table.read_text()
    table.unlink()
    result = run_small("report", "results/small")
    assert result.code == 0, result.err
    assert table.read_text() == before
    assert (run_small.folder / "reports/small/latency_vs_resolution.png").stat().st_size > 10_000


def test_dry_run_writes_nothing(run: CommandLine) -> None:
    result = run("sweep", "--res", "224..9216", "--device", "cpu", "--dry-run", "--out", "results/x")
    assert result.code == 0, result.err
    assert "108 cells planned" in result.out
    assert "infsa/infsa-linear.reference/4L-64H/r9216/b1/fp32/infer/eager/p0" in result.out
    assert not list(run.folder.iterdir())


def test_list_names_every_mechanism_with_counts_and_departures(run: CommandLine) -> None:
    result = run("list")
    assert result.code == 0
    for expected in ("57,650,152", "330,566,632", "57,650,156", "330,566,656", "53,451,756", "305,376,256", "330.6"):
        assert expected in result.out
    assert "infsa-pure: Pure-InfSA" in result.out
    assert "departure: the N x N matrix is written to memory" in " ".join(result.out.split())


def test_help_and_version(run: CommandLine) -> None:
    assert run("--version").out.startswith("infsa-bench ")
    assert "sweep" in run("--help").out
    options = run("sweep", "--help").out
    assert all(name in options for name in ("--time-budget", "--replicates", "--energy", "gate"))
    assert "--selfcheck" in run("doctor", "--help").out


@pytest.fixture
def run_fake(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line over a worker that measures nothing and has every device."""
    monkeypatch.setattr("infsa_bench.commands.sweep.Launcher", fake_launcher())
    return run


@pytest.fixture
def run_with_meter(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The same on a machine that has an energy counter."""
    monkeypatch.setattr("infsa_bench.commands.sweep.Launcher", fake_launcher("meter"))
    return run


def fake_launcher(*traits: str) -> StartLauncher:
    return lambda device, abandonment=None: Launcher(device, fake_command_of(*traits), abandonment)


def planned(result: Result) -> list[str]:
    assert result.code == 0, result.err
    return re.findall(r"^(infsa/\S+/p[0-9]+): ", result.out, re.MULTILINE)


def test_defaults_on_a_cpu(run_fake: CommandLine) -> None:
    result = run_fake("sweep", "--device", "cpu", "--dry-run", with_defaults=True)
    cells = planned(result)
    assert len(cells) == 9 * 5 * 2
    assert {cell.split("/")[1].rpartition(".")[2] for cell in cells} == {"reference", "fast"}
    assert {cell.split("/", 2)[2] for cell in cells} == {
        f"4L-64H/r{side}/b1/fp32/infer/eager/p0" for side in (224, 384, 512, 768, 1024)
    }
    # Four minutes for everything, a quarter of one kept back for ending and rendering.
    assert re.search(r"3 min 4\d s of the time budget left", result.out)


def test_defaults_on_a_gpu(run_fake: CommandLine) -> None:
    result = run_fake("sweep", "--device", "cuda:0", "--dry-run", with_defaults=True)
    cells = planned(result)
    assert len(cells) == 9 * 12 * 2
    assert {cell.split("/")[2] for cell in cells} == {"4L-64H", "24L-16H"}
    assert {cell.split("/")[5] for cell in cells} == {"bf16"}
    assert "/r9216/" in cells[-1]
    assert "time budget" not in result.out
    training = planned(run_fake("sweep", "--device", "cuda:0", "--phase", "train", "--res", "224", "--dry-run"))
    assert {cell.split("/")[5] for cell in training} == {"amp-bf16"}


def test_the_protocol_of_the_paper(run_fake: CommandLine) -> None:
    words = ["sweep", "--res", "1024", "--mechanisms", "softmax", "--protocol", "paper", "--device", "cuda:0"]
    assert {cell.split("/")[5] for cell in planned(run_fake(*words, "--dry-run"))} == {"amp-fp16"}
    assert run_fake(*words, "--out", "results/paper").code == 0
    protocol = load_manifest(run_fake.folder / "results/paper").settings.protocol
    assert (protocol.name, protocol.warmup_iterations, protocol.timed_iterations) == ("paper", 50, 300)
    assert protocol.expected_seconds(100.0) == protocol.least_seconds(100.0) == 350 * 100


def test_the_time_budget_can_be_lifted(run_fake: CommandLine) -> None:
    result = run_fake("sweep", "--device", "cpu", "--res", "32", "--time-budget", "none", "--dry-run")
    assert result.code == 0
    assert "time budget" not in result.out


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ([], {}),
        (["--no-prune"], {"is_pruned": False}),
        (["--resume", "--retry", "killed,timeout"], {"retried": frozenset({"killed", "timeout"})}),
        (["--cell-timeout", "2m"], {"case_timeout_seconds": 120.0}),
        (["--cell-timeout", "none"], {"case_timeout_seconds": math.inf}),
        (["--cell-budget", "15s"], {"case_budget_seconds": 15.0}),
        # A limit below what the check of the machine's memory allows takes its place.
        (["--memory-limit", "1GiB"], {"host_memory_bytes": None}),
        (["--memory-limit", "1000GiB"], {}),
    ],
    ids=" ".join,
)
def test_words_reach_the_plan(
    run_fake: CommandLine, monkeypatch: pytest.MonkeyPatch, words: list[str], changes: dict[str, object]
) -> None:
    plans: list[Plan] = []

    def look(plan: Plan, engine: LocalEngine, *others: object) -> None:
        plans.append(plan)
        assert (engine.devices, engine.is_shared()) == ("cpu", False)
        raise KeyboardInterrupt

    monkeypatch.setattr("infsa_bench.commands.sweep.run_plan", look)
    for extra in ([], words):
        run_fake("sweep", "--res", "32", "--device", "cpu", "--out", f"results/{len(plans)}", *extra)
    plain, plan = plans
    expected = {"is_pruned": True, "retried": frozenset(), "case_timeout_seconds": None, "host_memory_bytes": 2**40}
    expected |= {"case_budget_seconds": None}
    for name, value in expected.items():
        assert getattr(plain, name) == value
        assert getattr(plan, name) == changes.get(name, value)


def fault_launcher(*traits: str) -> StartLauncher:
    return lambda device, abandonment=None: Launcher(device, fake_command_of(*traits), abandonment)


def test_every_fault_leaves_a_whole_sweep_and_a_summary(run_fake: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One size each; the sweep ends as ever, with every cell in the table and the count of how they ended."""
    faults = {
        32: "oom",
        48: "host_oom",
        64: "index",
        80: "sigsegv",
        96: "sigkill",
        112: "exception",
        128: "garbage",
        144: "half",
        160: "exit",
        176: "hang",
    }
    traits = [f"at={side}:{behave}" for side, behave in faults.items()]
    monkeypatch.setattr("infsa_bench.commands.sweep.Launcher", fault_launcher(*traits))
    sides = ",".join(map(str, [*faults, 192]))
    words = ["sweep", "--device", "cpu", "--mechanisms", "softmax", "--res", sides, "--no-prune", "--cell-timeout", "2"]
    result = run_fake(*words, "--out", "results/faults")
    assert result.code == 0, result.err
    text = " ".join(result.out.split())
    counts = "4 crash, 1 oom, 1 host_oom, 1 unsupported, 1 killed, 1 error, 1 timeout, 1 ok"
    assert f"11 cells planned, 11 recorded: {counts}" in text
    for kind in ("oom", "host_oom", "unsupported", "crash", "killed", "error", "timeout"):
        assert f": {kind}: " in text
    assert len(load(run_fake.folder / "results/faults").records) == 11


@pytest.mark.parametrize(
    "command", [["sweep", "--res", "32,48,64"], ["maxres", "--max-res", "256"]], ids=lambda w: w[0]
)
def test_a_disk_that_is_full_ends_the_command_and_keeps_the_records(
    run_fake: CommandLine, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """A limit on the size of files stands in for the disk."""
    monkeypatch.setattr("infsa_bench.commands.maxres.Launcher", fault_launcher())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    append = RunWriter.append

    def fill(self: RunWriter, record: Record, trace: Sequence[TracePoint] = ()) -> None:
        size = (self.path / RECORDS).stat().st_size
        if size:
            # Room for half a record more.
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 200, limits[1]))
        try:
            append(self, record, trace)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(RunWriter, "append", fill)
    name = "--mechanism" if command[0] == "maxres" else "--mechanisms"
    result = run_fake(*command, name, "softmax", "--device", "cpu", "--out", "results/full")
    assert result.code == 5
    assert result.err.count("\n") == 1
    assert "stopped early: cannot write to results/full" in result.err
    assert len(load(run_fake.folder / "results/full").records) == 1


def test_what_resuming_prints_is_what_to_type(run_fake: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("infsa_bench.commands.sweep.run_plan", interrupt)
        result = run_fake("sweep", "--res", "32", "--mechanisms", "softmax", "--device", "cpu")
    assert result.code == 130
    found = re.search(r"To go on: infsa-bench (.*)", result.out)
    assert found is not None
    resumed = run_fake(*shlex.split(found[1]))
    assert resumed.code == 0, resumed.err
    assert len(list((run_fake.folder / "results").iterdir())) == 1


def test_resuming_a_run_that_does_not_exist_starts_it(run_fake: CommandLine) -> None:
    result = run_fake("sweep", "--res", "32", "--device", "cpu", "--out", "results/new", "--resume")
    assert result.code == 0, result.err
    assert "9 cells planned, 9 recorded: 9 ok" in result.out


def test_resuming_counts_on(run_fake: CommandLine) -> None:
    words = ["sweep", "--res", "32", "--device", "cpu", "--out", "results/x"]
    run_fake(*words, "--mechanisms", "softmax,mlla")
    result = run_fake(*words, "--resume")
    assert "9 cells planned, 2 of them recorded already" in result.out
    assert "[3/9] " in result.out
    assert "[9/9] " in result.out
    assert "[10/9] " not in result.out


def test_a_sweep_that_cannot_go_on_exits_5(run_fake: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: RunWriter, record: Record, trace: Sequence[TracePoint] = ()) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunWriter, "append", full)
    result = run_fake("sweep", "--res", "32", "--mechanisms", "softmax", "--out", "results/x")
    assert (result.code, result.err.count("\n")) == (5, 1)
    assert "stopped early: cannot write to results/x: [Errno 28] No space left on device" in result.err


FEW = ["sweep", "--res", "32", "--mechanisms", "softmax,mlla", "--device", "cpu", "--out", "results/x"]


@pytest.mark.parametrize(
    ("words", "replicates"),
    [
        ([], 1),
        (["--protocol", "full"], 3),
        (["--protocol", "gate"], 5),
        (["--protocol", "paper"], 1),
        (["--protocol", "gate", "--replicates", "2"], 2),
        (["--replicates", "100"], 100),
    ],
)
def test_replicates_are_passes_over_the_plan(run_fake: CommandLine, words: list[str], replicates: int) -> None:
    result = run_fake(*FEW, *words, "--dry-run")
    cells = planned(result)
    assert [cell.rpartition("/p")[2] for cell in cells] == [str(number) for number in range(replicates) for _ in "12"]
    assert ("2 cells planned;" in result.out) == (replicates == 1)
    assert (f"2 cells planned, in all {2 * replicates} cases;" in result.out) == (replicates > 1)
    assert ("each a pass over all cells in a fresh process" in result.out) == (replicates > 1)
    assert re.search(rf"^replicates: {replicates}\b", result.out, re.MULTILINE)


def test_replicates_run_and_are_recorded(run_fake: CommandLine) -> None:
    result = run_fake(*FEW, "--replicates", "2")
    assert result.code == 0, result.err
    assert re.search(r"^\[4/4\] infsa/\S+ \(replicate 2\): ", result.out, re.MULTILINE)
    records = load(run_fake.folder / "results/x").records
    assert [(record.case.mechanism, record.case.replicate) for record in records] == [
        ("softmax", 0),
        ("mlla", 0),
        # Each pass begins one cell later.
        ("mlla", 1),
        ("softmax", 1),
    ]


def test_resuming_may_add_replicates(run_fake: CommandLine) -> None:
    assert run_fake(*FEW).code == 0
    before = (run_fake.folder / "results/x" / RECORDS).read_text()
    result = run_fake(*FEW, "--resume", "--replicates", "3")
    assert result.code == 0, result.err
    assert "2 cells planned, in all 6 cases, 2 of them recorded already" in result.out
    after = (run_fake.folder / "results/x" / RECORDS).read_text()
    assert after.startswith(before)
    assert after.count("\n") == 6
    assert load_manifest(run_fake.folder / "results/x").settings.protocol.replicates == 3
    # Asking for fewer takes none away.
    assert run_fake(*FEW, "--resume").code == 0
    manifest = load_manifest(run_fake.folder / "results/x")
    assert (manifest.settings.protocol.replicates, len(manifest.plan)) == (3, 6)
    assert (run_fake.folder / "results/x" / RECORDS).read_text() == after


def test_it_is_said_first_why_energy_is_not_measured(run_fake: CommandLine) -> None:
    result = run_fake(*FEW)
    assert f"; energy: not measured: {NO_ENERGY.detail}\n" in result.out
    assert result.out.index("energy:") < result.out.index("[1/2]")
    assert "energy: not measured, as asked for" in run_fake(*FEW, "--energy", "none", "--out", "results/y").out


@pytest.mark.parametrize(
    ("words", "said", "trials"),
    [
        ([], "quick (3 trials of 2 s a cell), by rapl", 3),
        (["--energy", "quick", "--protocol", "paper"], "quick (3 trials", 3),
        (["--energy", "full"], "full (5 trials of 5 s a cell)", 5),
        (["--protocol", "full", "--replicates", "1"], "full (5 trials", 5),
        (["--protocol", "gate"], "quick (3 trials", 1),
    ],
)
def test_energy_is_measured_as_asked(run_with_meter: CommandLine, words: list[str], said: str, trials: int) -> None:
    result = run_with_meter(*FEW, *words, "--time-budget", "none")
    assert result.code == 0, result.err
    assert f"; energy: {said}" in result.out
    folder = run_with_meter.folder / "results/x"
    run = load(folder)
    for record in run.records:
        assert isinstance(record.outcome, Measurement)
        assert len(record.outcome.energy.trials) == trials
    assert run.manifest.calibrations == (CALIBRATION, CALIBRATION_LATER)
    assert len(list((folder / TRACES).iterdir())) == len(run.records)


def test_no_energy_is_measured_where_none_is_asked_for(run_with_meter: CommandLine) -> None:
    assert run_with_meter(*FEW, "--energy", "none").code == 0
    run = load(run_with_meter.folder / "results/x")
    assert run.manifest.settings.energy == "none"
    assert run.manifest.calibrations == ()
    assert all(isinstance(item.outcome, Measurement) and not item.outcome.energy.trials for item in run.records)
    assert not (run_with_meter.folder / "results/x" / TRACES).exists()


def test_the_announcement_counts_energy_and_keeps_within_the_budget(
    run_fake: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*FEW, "--mechanisms", "softmax", "--dry-run", "--time-budget"]

    def predicted(budget: str) -> float:
        found = re.search(r"predicted ([0-9.]+) s from FLOPs alone", run_fake(*words, budget).out)
        assert found is not None
        return float(found[1])

    without = predicted("none")
    assert predicted("1h") == without
    monkeypatch.setattr("infsa_bench.commands.sweep.Launcher", fake_launcher("meter"))
    # Three trials of two seconds, and what they take beside.
    assert predicted("none") > without + 6
    # Of a minute, 15 s are for ending and 15 for looking at the counter once more.
    assert re.search(r"(30|29) s of the time budget left", run_fake(*words, "60s").out)


def test_resume_needs_to_know_which_run(run: CommandLine) -> None:
    result = run("sweep", "--res", "32", "--resume")
    assert (result.code, result.err) == (
        2,
        "infsa-bench: error: --resume needs --out, the folder of the run to go on with\n",
    )


def test_no_command_prints_the_help(run: CommandLine) -> None:
    result = run()
    assert result.code == 0
    assert result.out.count("\n") > 10
    assert "sweep" in result.out


def test_all_and_a_name_is_all(run_fake: CommandLine) -> None:
    words = ["sweep", "--res", "32", "--device", "cpu", "--dry-run", "--mechanisms"]
    assert planned(run_fake(*words, "mlla,all")) == planned(run_fake(*words, "all"))


def test_a_report_folder_that_cannot_be_is_refused_first(run_fake: CommandLine) -> None:
    (run_fake.folder / "reports").write_text("in the way")
    result = run_fake("sweep", "--res", "32", "--device", "cpu", "--out", "results/x")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "is no folder that can be written" in result.err
    assert not (run_fake.folder / "results").exists()


def test_a_report_can_be_left_for_later(run_fake: CommandLine) -> None:
    words = ["sweep", "--res", "32", "--mechanisms", "softmax", "--device", "cpu", "--out", "results/x", "--no-report"]
    result = run_fake(*words)
    assert (result.code, len(load(run_fake.folder / "results/x").records)) == (0, 1)
    assert "records: results/x" in result.out
    assert not (run_fake.folder / "reports").exists()
    assert run_fake("report", "results/x").code == 0
    assert (run_fake.folder / "reports/x/index.html").is_file()


def test_a_report_that_cannot_be_written_loses_no_record(
    run_fake: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("infsa_bench.commands.report.render_page", full)
    result = run_fake("sweep", "--res", "32", "--device", "cpu", "--out", "results/x")
    assert (result.code, result.err.count("\n")) == (5, 1)
    assert "all cells are recorded in results/x, but cannot write the report" in result.err
    assert (run_fake.folder / "results/x" / RECORDS).read_text().count("\n") == 9


def test_text_that_the_terminal_cannot_show_ends_nothing(tmp_path: Path) -> None:
    """Lone surrogates in a name, over a terminal that knows ASCII only, through sweep and report."""
    folder = tmp_path / "results" / "a \u00fc \udcff"
    program = [sys.executable, "-m", "infsa_bench"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    words = ["--res", "32", "--mechanisms", "softmax", "--device", "cpu", "--warmup", "1", "--iterations", "1"]
    words += ["--no-peaks", "--out", str(folder)]
    for command in (["sweep", *words], ["report", folder]):
        done = subprocess.run([*program, *command], env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr
