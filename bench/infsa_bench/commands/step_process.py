"""One step of a reference run as a process: its output in a log, ended when its time is over or its parent dies."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.1
GRACE_SECONDS = 15.0
"""What a step has, once interrupted, to end its worker and keep what is recorded; then it is terminated."""

TERMINATE_SECONDS = 3.0
TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnd:
    """How a step ended. ``is_interrupted`` where its time was over, or somebody interrupted it or us."""

    exit_code: int
    seconds: float
    is_interrupted: bool
    last_line: str


def run_step(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    seconds: float,
    is_stopped: Callable[[], bool] = bool,
    meanwhile: Callable[[], object] = bool,
) -> StepEnd:
    """Run a command for so many seconds at most, or until ``is_stopped``; what it prints is added to ``log``.

    ``meanwhile`` is called again and again as long as it runs; what that takes, the step may take longer.

    Raises:
        OSError: it cannot be run, or the log not be written.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    interrupted = False
    with log.open("a", encoding="utf-8") as output:
        output.write(f"$ {shlex.join(command)}\n")
        output.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            # A group of its own: Ctrl-C reaches us alone, and what it started itself can be ended with it.
            start_new_session=True,
            preexec_fn=prepare_child,
        )
        try:
            while process.poll() is None:
                if is_stopped() or time.monotonic() - begin >= seconds:
                    interrupted = True
                    _end(process)
                    break
                meanwhile()
                time.sleep(POLL_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        took = time.monotonic() - begin
        output.write(f"# exit code {process.returncode} after {took:.1f} s{', interrupted' if interrupted else ''}\n")
    code = process.returncode
    return StepEnd(
        exit_code=code,
        seconds=took,
        # It may have ended by itself just then.
        is_interrupted=(interrupted and code != 0) or code in (130, -signal.SIGINT),
        last_line=_last_line(log),
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt it as Ctrl-C would, and wait; insist where that does not help."""
    for number, patience in ((signal.SIGINT, GRACE_SECONDS), (signal.SIGTERM, TERMINATE_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            return


def prepare_child(at_death: int = signal.SIGINT) -> None:
    """In the child, before it runs: an interrupt is one, and the parent's death is an interrupt, or ``at_death``."""
    # A shell that starts us in the background has its children ignore interrupts.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, at_death)


@contextlib.contextmanager
def noting_signals(stops: list[int], numbers: Iterable[int]) -> Iterator[None]:
    """Have these signals be noted only, so that who looks at ``stops`` can end in an orderly way."""

    def note(number: int, _frame: FrameType | None) -> None:
        stops.append(number)

    earlier = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _last_line(log: Path) -> str:
    """Return the last line of what a step printed."""
    with log.open("rb") as handle:
        handle.seek(max(0, handle.seek(0, os.SEEK_END) - TAIL_BYTES))
        lines = handle.read().decode(errors="replace").splitlines()
    said = [line.strip() for line in lines if line.strip() and not line.startswith(("# ", "$ "))]
    return said[-1] if said else ""
