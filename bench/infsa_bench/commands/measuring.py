"""Measuring given cells with a given build, by its own command line: each pass is a sweep that can be resumed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from infsa_bench.errors import SpecError, SweepStoppedError
from infsa_bench.execute.process import environment_for_python
from infsa_bench.protocol import PROTOCOLS, Protocol
from infsa_bench.spec import Case
from infsa_bench.store import Settings, is_run

NO_REPORT = "--no-report"
"""Rendering takes longer than measuring a small cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """A version of infsa-bench: the words that call it, and what its environment has beyond this one's."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


PYTHON = (sys.executable, "-P", "-m", "infsa_bench")
"""Without the folder that we are in before all others: two builds differ in what PYTHONPATH names."""


def this_build() -> Build:
    """Return the build that runs now."""
    return Build(name="new", command=PYTHON)


def build_in(folder: Path) -> Build:
    """Return the build whose files lie in ``folder``, run with this one's Python and libraries."""
    paths = [str(folder / "bench"), str(folder / "models")]
    environment = {"PYTHONPATH": os.pathsep.join([*paths, environment_for_python()["PYTHONPATH"]])}
    return Build(name="base", command=PYTHON, environment=environment)


def build_called(command: str) -> Build:
    """Return the build that a command line calls.

    Raises:
        SpecError: it is empty, or its quotes are not closed.
    """
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise SpecError(f"--base-cmd {command!r}: {error}") from None
    if not words:
        raise SpecError("--base-cmd is empty; write the command that runs the other build's infsa-bench")
    return Build(name="base", command=words)


def measure(
    build: Build,
    cases: Sequence[Case],
    settings: Settings,
    replicates: int,
    out: Path,
    console: Console,
    *,
    allow_shared: bool = False,
) -> list[Case]:
    """Have ``build`` measure cells in ``replicates`` fresh processes each; what ``out`` has already stays.

    Returns the cases that it measured: those whose names it does not know are left out, and said to be.

    Raises:
        SpecError: the build refuses for any other reason, or cannot be run.
        SweepStoppedError: its device or its disk gave up.
    """
    log = out.with_name(f"{out.name}.log")
    unknown: list[Case] = []
    options = _known_options(build)
    todo = sweeps_of(cases)
    while todo:
        group = todo.pop(0)
        command = [*build.command, "sweep", *_words(group, settings), "--replicates", str(replicates)]
        command += ["--out", str(out), *(["--resume"] if is_run(out) else [])]
        command += ["--allow-shared"] if allow_shared else []
        command += [NO_REPORT] if NO_REPORT in options else []
        if _run(command, build, log):
            continue
        mechanisms = dict.fromkeys(case.mechanism for case in group)
        if len(mechanisms) > 1:
            # Only one of them need be to blame.
            todo = [[case for case in group if case.mechanism == one] for one in mechanisms] + todo
        else:
            unknown += group
    measured = [case for case in cases if case not in unknown]
    for case in unknown:
        line = f"{out.name}: {case.cell} is not known to this build"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not measured:
        raise SpecError(f"the {build.name} build knows none of the cells; what it said is in {log}")
    line = f"{out.name}: {len(measured)} cell{'' if len(measured) == 1 else 's'} in {replicates} processes"
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    return measured


def _known_options(build: Build) -> str:
    """Return what a build says of the options of its sweep: an older one has not all of them; nothing if it fails."""
    command = [*build.command, "sweep", "--help"]
    environment = {**environment_for_python(), **build.environment, "COLUMNS": "200"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    except OSError:
        return ""
    return done.stdout


def _run(command: Sequence[str], build: Build, log: Path) -> bool:
    """Run a sweep to its end; False where the build does not know a name in it."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as output:
            output.write(f"$ {shlex.join(command)}\n")
            output.flush()
            done = subprocess.run(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment_for_python(), **build.environment},
                check=False,
            )
    except OSError as error:
        raise SpecError(f"{shlex.join(build.command)} cannot be run: {error.strerror or error}") from None
    if done.returncode == 0:
        return True
    last = (log.read_text(encoding="utf-8", errors="backslashreplace").strip().splitlines() or [""])[-1]
    message = f"{build.name} build, exit {done.returncode}: {last}; all of it is in {log}"
    if done.returncode == 2:
        if re.search(r"error: unknown (mechanism|implementation|option|config|dtype|execution) ", last):
            return False
        raise SpecError(message)
    if done.returncode in (130, -2):
        raise KeyboardInterrupt
    raise SweepStoppedError(message)


def sweeps_of(cases: Sequence[Case]) -> list[list[Case]]:
    """Return the cases in as few groups as sweeps need to measure them and nothing else."""
    models: dict[Case, list[Case]] = {}
    for case in cases:
        models.setdefault(replace(case, resolution=1, replicate=0, seed=0), []).append(case)
    # Mechanisms that differ in nothing else are one sweep.
    groups: dict[tuple[Case, frozenset[int]], list[Case]] = {}
    for model, sizes in models.items():
        grid = frozenset(case.resolution for case in sizes)
        groups.setdefault((replace(model, mechanism=""), grid), []).extend(sizes)
    return list(groups.values())


def sweep_words(cases: Sequence[Case], settings: Settings) -> list[list[str]]:
    """Return the options of as few sweeps as cover exactly these cells.

    Raises:
        SpecError: the settings are of a protocol that this command line cannot ask for.
    """
    return [_words(group, settings) for group in sweeps_of(cases)]


def _words(group: Sequence[Case], settings: Settings) -> list[str]:
    """The options of the one sweep that covers these cells."""
    case = group[0]
    mechanisms = list(dict.fromkeys(case.mechanism for case in group))
    resolutions = sorted({case.resolution for case in group})
    words = ["--mechanisms", ",".join(mechanisms), "--impl", case.implementation, "--config", case.config]
    words += ["--res", ",".join(map(str, resolutions)), "--batch-size", str(case.batch_size)]
    words += ["--dtype", case.precision, "--phase", case.phase, "--execution", case.execution]
    for mechanism in mechanisms:
        for name, value in case.options:
            words += ["--option", f"{mechanism}.{name}={value}"]
    words += [*protocol_words(settings.protocol), "--device", settings.device, "--seed", str(settings.seed)]
    words += ["--energy", settings.energy, "--time-budget", "none", "--no-peaks"]
    if settings.memory_limit_bytes is not None:
        words += ["--memory-limit", str(settings.memory_limit_bytes)]
    return words


def protocol_words(protocol: Protocol) -> list[str]:
    """Return the options that ask for a protocol, its number of replicates aside.

    Raises:
        SpecError: none do.
    """
    name = protocol.name.removesuffix("*")
    words = ["--protocol", name]
    if name in PROTOCOLS:
        warmup = protocol.warmup_iterations if protocol.max_warmup_seconds is None else None
        iterations = protocol.timed_iterations if protocol.max_timed_seconds is None else None
        asked = PROTOCOLS[name].customized(warmup=warmup, iterations=iterations, replicates=protocol.replicates)
        if replace(asked, name="") == replace(protocol, name=""):
            words += [] if warmup is None else ["--warmup", str(warmup)]
            return words + ([] if iterations is None else ["--iterations", str(iterations)])
    raise SpecError(f"the baseline's protocol {protocol.name!r} is none that this infsa-bench knows")
