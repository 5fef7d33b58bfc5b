"""``--per-accelerator``: the same command once for every accelerator type of a Ray cluster, all at the same time.

Each type has a run of its own, in a folder beside the one that was named: ``results/fleet-A100`` and so on. So a case
has the same id on every type, and resuming, comparing, merging and reporting work as they do for any run; records of
different hardware cannot mix, for they never meet in a folder.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from infsa_bench.commands.measuring import PYTHON
from infsa_bench.commands.options import RAY_ADDRESS, SweepRequest, check_options
from infsa_bench.commands.resuming import INTERRUPTED
from infsa_bench.commands.step_process import POLL_SECONDS, noting_signals, prepare_child
from infsa_bench.commands.table1_words import with_run
from infsa_bench.errors import SpecError
from infsa_bench.execute.process import environment_for_python
from infsa_bench.execute.ray_cluster import Cluster, accelerator_types, nodes_with, without_type

FLAG = "--per-accelerator"
GRACE_SECONDS = 60.0
"""What a command has, once interrupted, to end its workers on all nodes and keep what is recorded."""

WordsOf = Callable[[Path], list[str]]
"""Returns the words of the command for a folder, without :data:`FLAG`."""


def run_on_each(request: SweepRequest, out: Path, words_of: WordsOf, console: Console) -> tuple[int, list[Path]]:
    """Run a command on each accelerator type; return the exit code and the folders.

    The code is 0 if all of them ended so, 130 if they were interrupted, else that of the first that did not.

    Raises:
        SpecError: an option makes no sense, or the cluster has no accelerator types.
    """
    check_options(request)
    if out.name in ("", ".."):
        raise SpecError(f"{out}: with {FLAG} name a folder, for those of the types are called after it")
    with Cluster(request.ray_address or RAY_ADDRESS) as cluster:
        _, nodes = nodes_with(cluster, request.device)
    types = accelerator_types(nodes)
    if not types:
        raise SpecError(f"no node of the Ray cluster names an accelerator type: leave {FLAG} out")
    folders = {name: out.with_name(f"{out.name}-{re.sub(r'[^A-Za-z0-9.-]', '-', name)}") for name in types}
    # Not at the end, where it might stand after "--".
    typed = {name: words_of(folder) for name, folder in folders.items()}
    commands = [[*PYTHON, verb, "--accelerator", name, *rest] for name, (verb, *rest) in typed.items()]
    console.print(f"accelerator types: {', '.join(types)}", highlight=False, markup=False, soft_wrap=True)
    if untyped := without_type(nodes):
        line = f"left out, for they have no accelerator type: {', '.join(untyped)}"
        Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)
    return run_all(dict(zip(types, commands, strict=True)), console), list(folders.values())


def words_for_sweep(words: Sequence[str]) -> WordsOf:
    """Return what to type for another folder in the place of that of ``--out``."""
    kept, is_value = [], False
    for word in words:
        if is_value or word == FLAG or word.startswith("--out="):
            is_value = False
            continue
        is_value = word == "--out"
        kept += [] if is_value else [word]
    return lambda folder: [*kept, "--out", str(folder)]


def words_for_table(words: Sequence[str]) -> WordsOf:
    """Return what to type for another folder in the place of the run, which is an argument by itself."""
    verb, *kept = (word for word in words if word != FLAG)
    return lambda folder: [verb, *with_run(kept, folder)]


def run_all(commands: Mapping[str, Sequence[str]], console: Console) -> int:
    """Run commands at the same time; each line of theirs is printed after their name. None of them outlives this.

    The code is 0 if all of them ended so, 130 if we were told to end, else that of the first that did not.

    Raises:
        OSError: one of them cannot be run.
    """
    processes: dict[str, subprocess.Popen[str]] = {}
    relays: list[threading.Thread] = []
    stops: list[int] = []
    numbers = [signal.SIGINT, signal.SIGTERM]
    # With nohup a terminal that goes away is not to matter.
    numbers += [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    with noting_signals(stops, numbers):
        try:
            for name, command in commands.items():
                processes[name] = _start(command)
            for name, process in processes.items():
                relay = threading.Thread(target=_relay, args=(name, process, console))
                relay.start()
                relays.append(relay)
            while not stops and any(process.poll() is None for process in processes.values()):
                time.sleep(POLL_SECONDS)
        finally:
            _end(list(processes.values()))
            for relay in relays:
                relay.join()
    if stops:
        return INTERRUPTED
    return next((process.returncode for process in processes.values() if process.returncode), 0)


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        env=environment_for_python(),
        # An interrupt in the terminal is for this process, which hands it on once.
        process_group=0,
        # Should we be killed, it is told so once for each thread of ours: a second interrupt would disturb the end that
        # the first began.
        preexec_fn=functools.partial(prepare_child, signal.SIGTERM),
    )


def _relay(name: str, process: subprocess.Popen[str], console: Console) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        # Where nobody reads any more, e.g. in a terminal that was closed, the process is not to wait for a reader.
        with contextlib.suppress(OSError, SystemExit):
            console.print(f"{name}: {line.rstrip()}", highlight=False, markup=False, soft_wrap=True)


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Interrupt those that still run, as Ctrl-C would, and wait; kill what does not end."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGINT)
    until = time.monotonic() + GRACE_SECONDS
    for process in running:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            # With what it started, which may hold the other end of its output.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
