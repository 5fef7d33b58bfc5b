"""Parent side of a worker: start it, give it one case at a time, and turn however that ends into an outcome.

Imports no torch, so that the parent never holds a context on the device.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from infsa_bench.errors import SchemaError, SpecError, SweepStoppedError
from infsa_bench.execute.messages import (
    CheckCommand,
    Checked,
    Command,
    Finished,
    Hello,
    Message,
    Refused,
    RunCommand,
    StageReached,
    from_line,
    to_line,
)
from infsa_bench.measure.cgroup import memory_kills
from infsa_bench.record import Attempt, Failure, Outcome, Stage
from infsa_bench.spec import Case, Protocol

START_SECONDS = 180.0
TERMINATE_SECONDS = 2.0
UNRESPONSIVE_SECONDS = 30.0
MAX_ATTEMPTS = 3
MAX_LINE_BYTES = 64 * 2**20

WorkerCommand = Callable[[str, int, int], list[str]]


def worker_command(device: str, message_fd: int, parent_pid: int) -> list[str]:
    """Return the command line of a worker."""
    return [sys.executable, "-m", "infsa_bench.execute.worker", device, str(message_fd), str(parent_pid)]


class WorkerEndedError(Exception):
    """The worker is gone (with its exit code and the end of what it printed), or was stopped for talking nonsense."""

    def __init__(self, exit_code: int | None, output: str, killed_for_memory: bool = False) -> None:
        super().__init__(output or f"exit code {exit_code}")
        self.exit_code = exit_code
        self.output = output
        self.killed_for_memory = killed_for_memory


class WorkerTimeoutError(Exception):
    """The worker has not answered in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRun:
    """How a case ended, after how many tries that were ended from outside."""

    outcome: Outcome
    attempts: tuple[Attempt, ...]


class Worker:
    """A running worker process in a session of its own, with its pipe of messages."""

    def __init__(self, device: str, command: WorkerCommand = worker_command) -> None:
        """Start the process and wait until it is ready.

        Raises:
            SpecError: the device cannot be used.
            SweepStoppedError: the worker did not start.
        """
        read_fd, write_fd = os.pipe()
        self._read_fd = read_fd
        self._pending = b""
        self._memory_kills = memory_kills()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the worker
        try:
            self._process = subprocess.Popen(
                command(device, write_fd, os.getpid()),
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                pass_fds=(write_fd,),
                # A session of its own: Ctrl-C in the terminal reaches the parent alone, which then ends the worker.
                start_new_session=True,
            )
        finally:
            os.close(write_fd)
        try:
            hello = self.receive(START_SECONDS)
        except (WorkerEndedError, WorkerTimeoutError) as error:
            self.stop()
            raise SweepStoppedError(f"the worker for {device} did not start: {str(error) or 'no answer'}") from error
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
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(to_line(command))
            self._process.stdin.flush()

    def receive(self, seconds: float | None) -> Message | Command:
        """Return the next message.

        Raises:
            WorkerTimeoutError: none came within ``seconds``.
            WorkerEndedError: the worker ended, or wrote something that is no message.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._pending:
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._read_fd], [], [], remaining)
            if not ready:
                raise WorkerTimeoutError
            chunk = os.read(self._read_fd, 2**20)
            if not chunk or len(self._pending) > MAX_LINE_BYTES:
                raise self._ended()
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        try:
            return from_line(line)
        except SchemaError as error:
            self.stop()
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


class Launcher:
    """Runs cases on one device, in a worker that it replaces after anything but a clean measurement."""

    def __init__(self, device: str, command: WorkerCommand = worker_command) -> None:
        """Start the first worker; raises as :class:`Worker` does."""
        self._device = device
        self._command = command
        self._worker: Worker | None = Worker(device, command)
        self.hello = self._worker.hello
        # "auto" was resolved by the first worker; its successors must not choose again.
        self._device = self.hello.environment.device

    def check(self, mechanisms: tuple[str, ...]) -> None:
        """Try out ``package.module:Class`` mechanisms.

        Raises:
            SpecError: one of them is none.
        """
        for target, problem in self._ready_worker().check(mechanisms).items():
            raise SpecError(f"{target} is no mechanism: {problem}")

    def run(self, case: Case, protocol: Protocol, *, timeout_seconds: float, limit_seconds: float | None) -> CaseRun:
        """Run one case to its outcome.

        ``limit_seconds`` ends its timing early, ``timeout_seconds`` kills it. A worker that is killed from outside is
        replaced and the case tried again, :data:`MAX_ATTEMPTS` times in all.

        Raises:
            SweepStoppedError: no worker can be had any more.
        """
        deadline = time.monotonic() + timeout_seconds
        attempts: list[Attempt] = []
        while True:
            worker = self._ready_worker()
            worker.send(RunCommand(case=case, protocol=protocol, limit_seconds=limit_seconds))
            outcome, reusable = _follow(worker, deadline, timeout_seconds)
            if not reusable:
                # The next case starts another; after the last one none is needed.
                self.close()
            is_killed = isinstance(outcome, Failure) and outcome.kind == "killed"
            if not is_killed or len(attempts) + 1 >= MAX_ATTEMPTS or time.monotonic() >= deadline:
                return CaseRun(outcome=outcome, attempts=tuple(attempts))
            assert isinstance(outcome, Failure)
            attempts.append(Attempt(stage=outcome.stage, message=outcome.message))

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ready_worker(self) -> Worker:
        if self._worker is None:
            try:
                self._worker = Worker(self._device, self._command)
            except SpecError as error:
                # It could be used when the sweep began.
                raise SweepStoppedError(f"{self._device} is lost: {error}") from error
        return self._worker


def _follow(worker: Worker, deadline: float, timeout_seconds: float) -> tuple[Outcome, bool]:
    """Return the outcome of the case that ``worker`` is running, and whether the worker can be used again."""
    stage: Stage = "start"
    try:
        while True:
            match worker.receive(max(0.0, deadline - time.monotonic())):
                case StageReached(stage=reached):
                    stage = reached
                case Finished(outcome=outcome, reusable=reusable):
                    return outcome, reusable
                case other:
                    return Failure(kind="crash", stage=stage, message=f"unexpected answer: {other}"), False
    except WorkerTimeoutError:
        message = f"not finished after {timeout_seconds:.0f} s; the worker was killed"
        return Failure(kind="timeout", stage=stage, message=message), False
    except WorkerEndedError as ended:
        return _ended_failure(ended, stage), False


def _ended_failure(ended: WorkerEndedError, stage: Stage) -> Failure:
    code = ended.exit_code
    tail = f": {ended.output}" if ended.output else ""
    if code is None:
        return Failure(kind="crash", stage=stage, message=ended.output or "the worker closed its pipe", exit_code=code)
    if code < 0:
        name = signal.Signals(-code).name
        if ended.killed_for_memory:
            message = "the kernel killed the worker: the machine ran out of memory"
            return Failure(kind="host_oom", stage=stage, message=message, exit_code=code)
        if -code in (signal.SIGKILL, signal.SIGTERM):
            return Failure(kind="killed", stage=stage, message=f"the worker was killed by {name}", exit_code=code)
        return Failure(kind="crash", stage=stage, message=f"the worker died of {name}{tail}", exit_code=code)
    return Failure(kind="crash", stage=stage, message=f"the worker ended with exit code {code}{tail}", exit_code=code)
