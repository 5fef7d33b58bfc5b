"""A worker process and its pipe of messages, as its parent sees them. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from infsa_bench.errors import PeaksUnavailableError, SchemaError, SpecError, SweepStoppedError
from infsa_bench.execute.cores import limited_threads, own_cores
from infsa_bench.execute.messages import (
    CalibrateCommand,
    Calibrated,
    CheckCommand,
    Checked,
    Command,
    DiagnoseCommand,
    Diagnosed,
    Finding,
    Hello,
    LimitMemoryCommand,
    MeasurePeaksCommand,
    MemoryLimited,
    Message,
    PeaksMeasured,
    Refused,
    from_line,
    to_line,
)
from infsa_bench.measure.cgroup import memory_kills
from infsa_bench.peaks import MeasuredPeaks
from infsa_bench.record import EnergyCalibration

START_SECONDS = 180.0
SELFCHECK_SECONDS = 600.0
TERMINATE_SECONDS = 2.0
UNRESPONSIVE_SECONDS = 30.0
MAX_LINE_BYTES = 64 * 2**20

WorkerCommand = Callable[[str, int, int], list[str]]


def worker_command(device: str, message_fd: int, parent_pid: int) -> list[str]:
    """Return the command line of a worker.

    With -P the folder that we are in does not come before PYTHONPATH: a worker imports what its parent does.
    """
    return [sys.executable, "-P", "-m", "infsa_bench.execute.worker", device, str(message_fd), str(parent_pid)]


def environment_for_python() -> dict[str, str]:
    """Return the environment of a Python of ours: where modules are looked for last is the folder that we are in."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, str(Path.cwd())])}


def _environment_of_worker() -> dict[str, str]:
    """Return the environment of a worker: one that is started by a thread with a share of the cores has its threads."""
    environment = environment_for_python()
    cores = own_cores()
    # The second are those of the main thread.
    if len(cores) < len(os.sched_getaffinity(os.getpid())):
        environment |= limited_threads(environment, len(cores))
    return environment


class WorkerEndedError(Exception):
    """The worker is gone (with its exit code and the end of what it printed), or is to go, for it talks nonsense."""

    def __init__(self, exit_code: int | None, output: str, killed_for_memory: bool = False) -> None:
        super().__init__(output or f"exit code {exit_code}")
        self.exit_code = exit_code
        self.output = output
        self.killed_for_memory = killed_for_memory

    @property
    def is_killed(self) -> bool:
        """Whether somebody else ended it."""
        return self.exit_code in (-signal.SIGKILL, -signal.SIGTERM)


class WorkerKilledError(SweepStoppedError):
    """The worker was killed from outside before it was ready."""


class WorkerTimeoutError(Exception):
    """The worker has not answered in time."""


class WorkerAbandonedError(Exception):
    """Who waited for the worker was told to wait no longer."""


class Abandonment:
    """Tells who waits for a worker in another thread to wait no longer, now or ever after."""

    def __init__(self) -> None:
        self._waiting, self._telling = socket.socketpair()

    def declare(self) -> None:
        """End every wait."""
        self._telling.send(b"x")

    def fileno(self) -> int:
        """Return what can be read once it is declared."""
        return self._waiting.fileno()

    def close(self) -> None:
        """Give its descriptors back."""
        self._waiting.close()
        self._telling.close()


class Worker:
    """A running worker process in a session of its own, with its pipe of messages."""

    def __init__(
        self, device: str, command: WorkerCommand = worker_command, abandonment: Abandonment | None = None
    ) -> None:
        """Start the process and wait until it is ready.

        Raises:
            SpecError: the device cannot be used.
            WorkerAbandonedError: ``abandonment`` was declared; it also ends every :meth:`receive`.
            WorkerKilledError: the worker was killed before it was ready.
            SweepStoppedError: it did not start for another reason.
            OSError: this machine has no room for it, or no process.
        """
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the worker
        read_fd, write_fd = os.pipe()
        self._read_fd = read_fd
        self._pending = b""
        self._abandonment = abandonment
        self._memory_kills = memory_kills()
        try:
            self._process = subprocess.Popen(
                command(device, write_fd, os.getpid()),
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                pass_fds=(write_fd,),
                # A session of its own: Ctrl-C in the terminal reaches the parent alone, which then ends the worker.
                start_new_session=True,
                env=_environment_of_worker(),
            )
        except OSError:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        try:
            hello = self.receive(START_SECONDS)
        except (WorkerEndedError, WorkerTimeoutError) as error:
            self.stop()
            is_killed = isinstance(error, WorkerEndedError) and error.is_killed
            kind = WorkerKilledError if is_killed else SweepStoppedError
            raise kind(f"the worker for {device} did not start: {str(error) or 'no answer'}") from error
        except BaseException:
            self.stop()
            raise
        if isinstance(hello, Refused):
            self.stop()
            raise SpecError(hello.message)
        assert isinstance(hello, Hello)
        self.hello = hello

    def send(self, command: Command) -> None:
        """Hand the worker a command. A worker that is gone shows in the next :meth:`receive`."""
        assert self._process.stdin is not None
        # What the kernel killed before is not this command's doing.
        self._memory_kills = memory_kills()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(to_line(command))
            self._process.stdin.flush()

    def receive(self, seconds: float | None) -> Message | Command:
        """Return the next message.

        Raises:
            WorkerTimeoutError: none came within ``seconds``.
            WorkerEndedError: the worker ended, or wrote something that is no message.
            WorkerAbandonedError: nobody waits for it any more.
        """
        waited_for = [self._read_fd] if self._abandonment is None else [self._read_fd, self._abandonment.fileno()]
        deadline = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._pending:
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select(waited_for, [], [], remaining)
            if not ready:
                raise WorkerTimeoutError
            if self._read_fd not in ready:
                raise WorkerAbandonedError
            chunk = os.read(self._read_fd, 2**20)
            if not chunk:
                raise self._ended()
            if len(self._pending) > MAX_LINE_BYTES:
                raise WorkerEndedError(None, f"a message of more than {MAX_LINE_BYTES} bytes")
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        try:
            return from_line(line)
        except SchemaError as error:
            raise WorkerEndedError(None, f"unreadable message: {error}") from None

    def check(self, mechanisms: tuple[str, ...]) -> dict[str, str]:
        """Return, by ``package.module:Class``, what is wrong with it.

        Raises:
            SpecError: trying them out ended the worker.
        """
        self.send(CheckCommand(mechanisms=mechanisms))
        try:
            answer = self.receive(START_SECONDS)
        except (WorkerEndedError, WorkerTimeoutError) as error:
            names = ", ".join(mechanisms)
            raise SpecError(f"trying out {names} ended the worker: {str(error) or 'no answer'}") from None
        assert isinstance(answer, Checked)
        return answer.problems

    def limit_memory(self, limit_bytes: int, *, is_tried_out: bool) -> None:
        """Have the worker take no more than so many bytes.

        Raises:
            SpecError: the device cannot be limited to that, or, if it is to be tried out, the limit does not hold.
            WorkerKilledError: the worker was killed over it.
        """
        self.send(LimitMemoryCommand(limit_bytes=limit_bytes, is_tried_out=is_tried_out))
        try:
            answer = self.receive(START_SECONDS)
        except (WorkerEndedError, WorkerTimeoutError) as error:
            message = f"limiting the memory ended the worker: {str(error) or 'no answer'}"
            if isinstance(error, WorkerEndedError) and error.is_killed:
                raise WorkerKilledError(message) from None
            raise SpecError(message) from None
        assert isinstance(answer, MemoryLimited)
        if answer.problem is not None:
            raise SpecError(f"a memory limit of {limit_bytes} bytes cannot be had: {answer.problem}")

    def diagnose(self, selfcheck: bool) -> tuple[Finding, ...]:
        """Return what this machine can measure; ``selfcheck`` also tries the meters out.

        Raises:
            SweepStoppedError: finding that out ended the worker.
        """
        self.send(DiagnoseCommand(selfcheck=selfcheck))
        try:
            answer = self.receive(SELFCHECK_SECONDS if selfcheck else START_SECONDS)
        except (WorkerEndedError, WorkerTimeoutError) as error:
            raise SweepStoppedError(f"the diagnosis ended the worker: {str(error) or 'no answer'}") from None
        assert isinstance(answer, Diagnosed)
        return answer.findings

    def measure_peaks(self) -> MeasuredPeaks:
        """Return what the device can do at its best.

        Raises:
            PeaksUnavailableError: it could not be measured, or measuring it ended the worker.
        """
        self.send(MeasurePeaksCommand())
        try:
            answer = self.receive(START_SECONDS)
        except (WorkerEndedError, WorkerTimeoutError) as error:
            raise PeaksUnavailableError(f"measuring the peaks ended the worker: {str(error) or 'no answer'}") from None
        assert isinstance(answer, PeaksMeasured)
        if answer.peaks is None:
            raise PeaksUnavailableError(f"the peaks cannot be measured: {answer.problem}")
        return answer.peaks

    def calibrate(self, known: EnergyCalibration) -> EnergyCalibration | None:
        """Return what the worker finds out about its idle device now, None where it has no meter.

        Raises:
            WorkerEndedError, WorkerTimeoutError: as :meth:`receive`.
        """
        self.send(CalibrateCommand(calibration=known))
        answer = self.receive(START_SECONDS)
        return answer.calibration if isinstance(answer, Calibrated) else None

    def stop(self) -> None:
        """End the process, politely first.

        Raises:
            SweepStoppedError: it cannot be killed; the device hangs.
        """
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        for signal_number, seconds in ((signal.SIGTERM, TERMINATE_SECONDS), (signal.SIGKILL, UNRESPONSIVE_SECONDS)):
            if self._process.poll() is not None:
                break
            self._process.send_signal(signal_number)
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                continue
        if self._process.poll() is None:
            raise SweepStoppedError(f"worker {self._process.pid} cannot be killed: its device no longer answers")
        # What the worker may have started itself (compilers) shares its session.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._read_fd >= 0:
            os.close(self._read_fd)
            self._read_fd = -1
        self._output.close()

    def _ended(self) -> WorkerEndedError:
        try:
            exit_code: int | None = self._process.wait(UNRESPONSIVE_SECONDS)
        except subprocess.TimeoutExpired:
            exit_code = None
        self._output.seek(max(0, self._output.seek(0, os.SEEK_END) - 4096))
        lines = self._output.read().decode(errors="replace").strip().splitlines()
        killed_for_memory = exit_code == -signal.SIGKILL and memory_kills() > self._memory_kills
        return WorkerEndedError(exit_code, lines[-1].strip() if lines else "", killed_for_memory)
