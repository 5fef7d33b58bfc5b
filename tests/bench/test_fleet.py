"""The command of each accelerator type: what is typed for it, and how several of them end. No cluster is needed."""

from __future__ import annotations

import functools
import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from test_cli import CommandLine, run

from infsa_bench.commands.fleet import run_all, words_for_sweep, words_for_table
from infsa_bench.execute.ray_cluster import Node

__all__ = ["run"]

PARENT = """
import json, sys
from rich.console import Console
from infsa_bench.commands import fleet
fleet.GRACE_SECONDS = float(sys.argv[2])
sys.exit(fleet.run_all(json.loads(sys.argv[1]), Console()))
"""

CHILD = """
import pathlib, sys, time
try:
    print("ready", flush=True)
    time.sleep(120)
except KeyboardInterrupt:
    time.sleep(0.3)
    pathlib.Path(sys.argv[1]).write_text("in an orderly way")
    sys.exit(130)
"""

DEAF = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(120)
"""


def parent(*children: list[str], before: tuple[str, ...] = (), grace_seconds: float = 60.0) -> subprocess.Popen[str]:
    """Start a process that runs these commands as those of accelerator types."""
    commands = json.dumps({f"type-{index}": command for index, command in enumerate(children)})
    words = [*before, sys.executable, "-c", PARENT, commands, str(grace_seconds)]
    return subprocess.Popen(
        words,
        # Of a terminal nohup says that it reads nothing.
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Who runs the tests may have them outlive a terminal.
        preexec_fn=functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),
    )


def when_ready(process: subprocess.Popen[str], count: int) -> None:
    assert process.stdout is not None
    lines = sorted(process.stdout.readline() for _ in range(count))
    assert lines == [f"type-{index}: ready\n" for index in range(count)]


def python(program: str, *words: object) -> list[str]:
    return [sys.executable, "-c", program, *map(str, words)]


def living(word: object) -> list[int]:
    """Return the processes that have a word in their command lines."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if str(word).encode() in command:
            found.append(int(folder.name))
    return found


def until(is_so: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_words_are_those_that_were_typed_but_for_the_folder() -> None:
    words = ["sweep", "--out", "results/x", "--engine", "ray", "--per-accelerator", "--res=32"]
    expected = ["sweep", "--engine", "ray", "--res=32", "--out", "a"]
    assert words_for_sweep(words)(Path("a")) == expected
    assert words_for_sweep(["sweep", "--out=results/x", *expected[1:4]])(Path("a")) == expected


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--against results/x results/x --per-accelerator --measure", "--against results/x OUT --measure"),
        ("results/table/ --measure --engine ray --per-accelerator", "OUT --measure --engine ray"),
        ("./x --measure --engine ray --per-accelerator", "OUT --measure --engine ray"),
        ("--measure --engine ray --per-accelerator a//b", "--measure --engine ray OUT"),
        # Runs that are called as the command, an option's value or an option are.
        ("--measure --per-accelerator table1", "--measure OUT"),
        ("--engine ray --phase infer --measure --per-accelerator ray", "--engine ray --phase infer --measure OUT"),
        ("--engine=ray --phase infer infer --measure --per-accelerator", "--engine=ray --phase infer OUT --measure"),
        ("--engine ray --per-accelerator --measure -- -x", "--engine ray --measure -- OUT"),
    ],
)
def test_the_run_of_a_table_is_found_however_it_is_written(typed: str, expected: str) -> None:
    words_of = words_for_table(["table1", *typed.split()])
    assert words_of(Path("OUT")) == ["table1", *expected.split()]
    assert words_of(Path("other"))[1:] == expected.replace("OUT", "other").split()


class SomeNodes:
    """A cluster that need not be there, with nodes of these accelerator types."""

    types: tuple[str, ...] = ()

    def __init__(self, address: str) -> None:
        self.address = address

    def nodes(self) -> list[Node]:
        return [
            Node(id=str(index), name=f"node-{index}", gpus=1, cores=1, accelerators=frozenset({name} - {""}))
            for index, name in enumerate(self.types)
        ]

    def __enter__(self) -> SomeNodes:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def some_nodes(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line in front of such a cluster, where commands are printed instead of run."""
    monkeypatch.setattr(SomeNodes, "types", ("H100", "", "A100 SXM"))
    monkeypatch.setattr("infsa_bench.commands.fleet.Cluster", SomeNodes)
    monkeypatch.setattr("infsa_bench.commands.fleet.PYTHON", (sys.executable, "-c", "import sys; print(sys.argv[1:])"))
    return run


def test_each_type_has_a_command_and_nodes_without_one_are_named(some_nodes: CommandLine) -> None:
    words = ["--engine", "ray", "--per-accelerator", "--dry-run"]
    result = some_nodes("table1", "./x/", "--measure", *words)
    assert result.code == 0, result.err
    assert "left out, for they have no accelerator type: node-1\n" in result.err
    kept = ["--measure", "--engine", "ray", "--dry-run"]
    first, *commands = result.out.splitlines()
    assert first == "accelerator types: A100 SXM, H100"
    assert sorted(commands) == [
        f"A100 SXM: {['table1', '--accelerator', 'A100 SXM', 'x-A100-SXM', *kept]}",
        f"H100: {['table1', '--accelerator', 'H100', 'x-H100', *kept]}",
    ]


def test_shards_that_start_at_once_have_folders_of_their_own(some_nodes: CommandLine) -> None:
    words = ["--engine", "ray", "--per-accelerator", "--dry-run", "--shard"]
    for command in (["sweep"], ["table1", "--measure"]):
        outs = [re.findall(r"'(results/[^']+)'", some_nodes(*command, *words, f"{index}/2").out) for index in (0, 1)]
        for index, folders in enumerate(outs):
            assert len(folders) == 2
            assert all(re.search(rf"-shard-{index}-of-2-(A100-SXM|H100)$", folder) for folder in folders)


@pytest.mark.parametrize("out", [".", "..", "x/.."])
def test_a_folder_without_a_name_is_refused(some_nodes: CommandLine, out: str) -> None:
    result = some_nodes("sweep", "--engine", "ray", "--per-accelerator", "--out", out)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"{out}: with --per-accelerator name a folder" in result.err


@pytest.mark.parametrize(
    ("codes", "expected"), [((0, 0), 0), ((2, 0), 2), ((0, 5), 5), ((0, 5, 2), 5), ((0, 2, 5), 2)], ids=str
)
def test_the_code_is_that_of_the_first_that_did_not_end_well(codes: tuple[int, ...], expected: int) -> None:
    commands = {f"type-{code}": python(f"print('hello'); raise SystemExit({code})") for code in codes}
    printed = io.StringIO()
    assert run_all(commands, Console(file=printed)) == expected
    assert sorted(printed.getvalue().splitlines()) == sorted(f"{name}: hello" for name in commands)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_ends_it_is_handed_on_and_waited_for(number: signal.Signals, tmp_path: Path) -> None:
    files = [tmp_path / "one", tmp_path / "two"]
    process = parent(*(python(CHILD, file) for file in files))
    when_ready(process, 2)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert [file.read_text() for file in files] == ["in an orderly way"] * 2
    assert living(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells of a parent's death")
def test_a_killed_one_takes_its_commands_along(tmp_path: Path) -> None:
    process = parent(python(CHILD, tmp_path / "one"), python(DEAF, tmp_path))
    when_ready(process, 2)
    process.kill()
    process.communicate(timeout=60)
    until(lambda: not living(tmp_path))


def test_a_terminal_that_goes_away_does_not_matter_with_nohup(tmp_path: Path) -> None:
    process = parent(python(CHILD, tmp_path / "one"), before=("nohup",))
    when_ready(process, 1)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    assert living(tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert living(tmp_path) == []


def test_one_that_does_not_end_is_killed(tmp_path: Path) -> None:
    process = parent(python(DEAF, tmp_path), python(CHILD, tmp_path / "one"), grace_seconds=5.0)
    when_ready(process, 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert (tmp_path / "one").exists()
    assert living(tmp_path) == []


def test_if_one_cannot_be_started_the_others_do_not_live_on(tmp_path: Path) -> None:
    process = parent(python(CHILD, tmp_path / "one"), [str(tmp_path / "no-such-program")])
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "FileNotFoundError" in out
    assert living(tmp_path / "one") == []


def test_commands_go_on_if_nobody_reads_what_they_print(tmp_path: Path) -> None:
    program = "import sys\nfor _ in range(20_000): print('ready', flush=True)\nopen(sys.argv[1], 'w')"
    process = parent(python(program, tmp_path / "one"))
    when_ready(process, 1)
    assert process.stdout is not None
    process.stdout.close()
    process.wait(timeout=120)
    assert (tmp_path / "one").exists()
    assert living(tmp_path) == []
