"""``infsa-bench reference-run``: everything worth knowing of a GPU that is there for minutes, the best of it first.

Each step is a process of its own with a log of its own, so that one that fails or is killed takes no other along. What
is done is written down; the same command goes on from there, however the last one ended.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import re
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from infsa_bench.commands.options import check_device
from infsa_bench.commands.reference_course import Course, command_of
from infsa_bench.commands.repository import commit_here
from infsa_bench.commands.step_process import noting_signals
from infsa_bench.errors import RunLockedError, SpecError, SweepStoppedError
from infsa_bench.execute.launcher import Launcher
from infsa_bench.machine import Environment
from infsa_bench.reference.sizes import FULL, REHEARSAL
from infsa_bench.reference.stages import Stage, all_stages, chosen_stages, in_order
from infsa_bench.reference.state import (
    FINAL,
    ReferenceRun,
    is_reference_run,
    load_reference_run,
    source_digest,
)
from infsa_bench.report.units import format_duration
from infsa_bench.sweep import utc_now

CLOSING_SECONDS = 20.0
"""Kept back of the deadline: for the step that is running to end in an orderly way, and for packing."""

LOCK = ".lock"
INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceRequest:
    """The options as typed."""

    device: str
    stage: str | None = None
    deadline: str = "24"
    out: Path | None = None
    parts: Path | None = None
    commit: str | None = None
    is_rehearsal: bool = False
    is_dry_run: bool = False


def parse_deadline(text: str) -> float:
    """Parse ``24`` (minutes), ``9m``, ``540s`` or ``1.5h`` into seconds.

    Raises:
        SpecError: anything else, or less than a minute.
    """
    found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)([smh]?)", text)
    if found is None:
        raise SpecError(f"{text!r} is no deadline: write 24 (minutes), 540s, 9m or 1.5h")
    seconds = float(found[1]) * {"": 60.0, "s": 1.0, "m": 60.0, "h": 3600.0}[found[2]]
    if seconds < 60:
        raise SpecError(f"a deadline of {text} is less than the minute that starting and ending may take")
    return seconds


def parse_commit(text: str) -> str:
    """Return a commit as it is written down: 7 to 40 hexadecimal digits, and a ``+`` where it was changed since.

    Raises:
        SpecError: anything else.
    """
    if re.fullmatch(r"[0-9a-f]{7,40}\+?", text) is None:
        raise SpecError(f"{text!r} is no commit: write 7 to 40 hexadecimal digits, and + if it was changed since")
    return text


def reference_run(request: ReferenceRequest, console: Console) -> int:
    """Run the stages that are asked for, as far as the deadline allows; return the exit code.

    Raises:
        SpecError: an option makes no sense, the device cannot be used, or the folder holds something else.
        SchemaError, RunLockedError: the folder's state cannot be read, or another process is running it.
        SweepStoppedError: the disk gave up.
    """
    begin = time.monotonic()
    end = begin + parse_deadline(request.deadline) - CLOSING_SECONDS
    names = chosen_stages(request.stage)
    check_device(request.device)
    commit = _commit_of(request)
    is_rehearsal = request.is_rehearsal or request.device == "cpu"
    sizes = REHEARSAL if is_rehearsal else FULL
    if request.is_dry_run:
        _print_plan([all_stages("OUT", request.device, sizes)[name] for name in names], console)
        return 0
    with Launcher(request.device) as launcher:
        environment = launcher.hello.environment
    if environment.device_type == "cpu" and not is_rehearsal:
        raise SpecError("there is no GPU that torch can use; --device cpu rehearses all of it in small")
    out = request.out or _default_out(environment, is_rehearsal)
    stages = [all_stages(str(out), environment.device, sizes)[name] for name in names]
    stops: list[int] = []
    # Either ends the run in an orderly way: the step first, then packing.
    with _held(out), noting_signals(stops, (signal.SIGINT, signal.SIGTERM)):
        journal = _open_journal(out, environment, commit, is_rehearsal)
        course = Course(
            out=out, parts=request.parts or out / "parts", journal=journal, console=console, end=end, stops=stops
        )
        try:
            course.run(stages)
        except OSError as error:
            raise SweepStoppedError(f"cannot write to {out}: {error}") from error
        _say_what_is_left(stages, course.journal, console)
    if stops:
        return INTERRUPTED
    states = [course.journal.steps.get(stage.key_of(step)) for stage in stages for step in stage.steps]
    return 1 if any(state and state.status in ("failed", "findings") for state in states) else 0


def _commit_of(request: ReferenceRequest) -> str | None:
    """Return the commit of this code: the repository's, or what was typed where there is none.

    Raises:
        SpecError: what was typed is no commit, or another than the repository's.
    """
    typed = None if request.commit is None else parse_commit(request.commit)
    here = commit_here()
    if typed is not None and here is not None and not here.startswith(typed.removesuffix("+")):
        raise SpecError(f"--commit {typed} is not that of this repository, {here}")
    return here or typed


def _open_journal(out: Path, environment: Environment, commit: str | None, is_rehearsal: bool) -> ReferenceRun:
    """Return the state of the run in ``out``, a new one where there is none, with this machine and this code in it.

    Raises:
        SpecError: the run in there is of another device, or of the other kind.
    """
    source, now = source_digest(), utc_now()
    if not is_reference_run(out):
        return ReferenceRun(
            created_utc=now,
            updated_utc=now,
            is_rehearsal=is_rehearsal,
            environments={environment.key: environment},
            commits={source: commit},
            steps={},
        )
    known = load_reference_run(out)
    if known.is_rehearsal != is_rehearsal:
        raise SpecError(f"{out} holds {'a rehearsal' if known.is_rehearsal else 'no rehearsal'}; choose another folder")
    if known.device_name != environment.device_name:
        raise SpecError(f"{out} was measured on {known.device_name}, not on {environment.device_name}")
    environments = {key: one for key, one in known.environments.items() if key != environment.key}
    commits = {key: one for key, one in known.commits.items() if key != source}
    # The last of each is the one of today.
    return replace(
        known,
        environments={**environments, environment.key: environment},
        commits={**commits, source: commit or known.commits.get(source)},
    )


@contextlib.contextmanager
def _held(out: Path) -> Iterator[None]:
    """Keep a second reference run out of the folder; the lock dies with the process.

    Raises:
        SpecError: the folder holds something else, or cannot be written.
        RunLockedError: there is one already.
    """
    try:
        is_taken = out.exists() and (not out.is_dir() or any(entry.name != LOCK for entry in out.iterdir()))
        if is_taken and not is_reference_run(out):
            raise SpecError(f"{out} exists and holds no reference run; choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / LOCK).open("wb")
    except OSError as error:
        raise SpecError(f"cannot write to {out}: {error.strerror or error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLockedError(f"{out} is being written by another process") from None
        yield


def _default_out(environment: Environment, is_rehearsal: bool) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", environment.device_name.lower().removeprefix("nvidia ")).strip("-")
    kind = "rehearsal" if is_rehearsal else "gpu"
    return Path("results") / f"{kind}-{name}-{datetime.datetime.now():%Y%m%d}"


def _print_plan(stages: Sequence[Stage], console: Console) -> None:
    """Print every step as one would type it."""
    for stage, step in in_order(stages):
        console.print(f"# {stage.key_of(step)}: at most {format_duration(step.seconds)}", markup=False, highlight=False)
        console.print(shlex.join(command_of(step)[1]), markup=False, highlight=False, soft_wrap=True)


def _say_what_is_left(stages: Sequence[Stage], journal: ReferenceRun, console: Console) -> None:
    left = [
        stage.key_of(step)
        for stage, step in in_order(stages)
        if (state := journal.steps.get(stage.key_of(step))) is None or state.status not in FINAL
    ]
    line = f"left for the next time, with the same command: {', '.join(left)}" if left else "all of it is done"
    console.print(line, markup=False, highlight=False, soft_wrap=True)
