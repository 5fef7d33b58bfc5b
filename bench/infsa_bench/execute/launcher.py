"""Give a worker one case at a time, and turn however that ends into an outcome.

Imports no torch, so that the parent never holds a context on the device.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from infsa_bench.energy_plan import EnergyPreset, trials_of_replicate
from infsa_bench.errors import SpecError, SweepStoppedError
from infsa_bench.execute.messages import Finding, Finished, ProbeCommand, RunCommand, StageReached
from infsa_bench.execute.process import (
    Abandonment,
    Worker,
    WorkerAbandonedError,
    WorkerCommand,
    WorkerEndedError,
    WorkerKilledError,
    WorkerTimeoutError,
    worker_command,
)
from infsa_bench.peaks import MeasuredPeaks
from infsa_bench.protocol import Protocol
from infsa_bench.record import Attempt, EnergyCalibration, Failure, FailureKind, Outcome, Stage, TracePoint
from infsa_bench.spec import Case

MAX_ATTEMPTS = 3
MAX_STARTS = 5
GRACE_SECONDS = 5.0
"""Time after the end of a sweep's budget for a case to end by itself, before its worker is killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRun:
    """How a case ended, after how many tries that were ended from outside.

    ``trace`` is the power over its energy trials, ``calibration`` what the run knows about the energy counter.
    ``stopped`` is why there can be no next case, None if there can.
    """

    outcome: Outcome
    attempts: tuple[Attempt, ...]
    trace: tuple[TracePoint, ...] = ()
    calibration: EnergyCalibration | None = None
    stopped: SweepStoppedError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """When a try at a case is given up: so long after its begin, and so long after its worker's last sign of life.

    Starting a worker is nobody's time. ``until`` is when, on the monotonic clock, the whole sweep should end, None for
    never: a try that is under way then has GRACE_SECONDS more, and there is none after it.
    """

    timeout_seconds: float
    silence_seconds: float
    until: float | None = None


class Launcher:
    """Runs cases on one device, in a worker that it replaces after anything but a clean measurement.

    What the first worker found out about the energy counter is handed to its successors, and so is a memory limit.
    """

    def __init__(
        self, device: str, command: WorkerCommand = worker_command, abandonment: Abandonment | None = None
    ) -> None:
        """Start the first worker; raises as :class:`Worker` does.

        ``abandonment`` is what ends every wait for a worker, from the first one on, if the caller has one; the
        launcher has its own otherwise.
        """
        self._device = device
        self._command = command
        self._memory_limit_bytes: int | None = None
        with contextlib.ExitStack() as opened:
            self._abandonment = abandonment or opened.enter_context(contextlib.closing(Abandonment()))
            self._worker: Worker | None = start_worker(device, command, abandonment=self._abandonment)
            self._opened = opened.pop_all()
        self._has_run = False
        self._calibration: EnergyCalibration | None = None
        self.hello = self._worker.hello
        # "auto" was resolved by the first worker; its successors must not choose again.
        self._device = self.hello.environment.device

    def limit_memory(self, limit_bytes: int, *, is_tried_out: bool = True) -> None:
        """Have every worker take no more than so many bytes, as on a smaller device; try it out once, or do not.

        Raises:
            SpecError: the device cannot be limited to that, or the limit does not hold.
        """
        self._memory_limit_bytes = None
        try:
            self._ready_worker().limit_memory(limit_bytes, is_tried_out=is_tried_out)
        finally:
            if is_tried_out:
                # What was allocated for it could change the first number.
                self.close()
        self._memory_limit_bytes = limit_bytes

    def check(self, mechanisms: tuple[str, ...]) -> None:
        """Try out ``package.module:Class`` mechanisms.

        Raises:
            SpecError: one of them is none.
        """
        for target, problem in self._ready_worker().check(mechanisms).items():
            raise SpecError(f"{target} is no mechanism: {problem}")

    def diagnose(self, selfcheck: bool) -> tuple[Finding, ...]:
        """Find out what can be measured on the device; raises as :meth:`Worker.diagnose`."""
        return self._ready_worker().diagnose(selfcheck)

    def measure_peaks(self) -> MeasuredPeaks:
        """Measure what the device itself can do, without a memory limit; raises as :meth:`Worker.measure_peaks`."""
        limit_bytes, self._memory_limit_bytes = self._memory_limit_bytes, None
        try:
            return self._ready_worker().measure_peaks()
        finally:
            # What it allocated could change the first number.
            self.close()
            self._memory_limit_bytes = limit_bytes

    def calibrate(self) -> EnergyCalibration | None:
        """Watch the idle device once more; None where its energy counter never worked, or no longer does."""
        if self._calibration is None:
            return None
        try:
            return self._ready_worker().calibrate(self._calibration)
        except (WorkerEndedError, WorkerTimeoutError, SweepStoppedError):
            # Every case is on disk already.
            self.close()
            return None

    def renew(self) -> None:
        """See to it that the next case is the first of its worker."""
        if self._has_run:
            self.close()

    def run(
        self,
        case: Case,
        protocol: Protocol,
        patience: Patience,
        *,
        limit_seconds: float | None,
        energy: EnergyPreset | None = None,
    ) -> CaseRun:
        """Measure one case to its outcome.

        ``limit_seconds`` ends its warm-up and timing early. ``energy`` is how its energy is watched, None for not at
        all. A worker that is killed from outside is replaced and the case tried again, :data:`MAX_ATTEMPTS` times in
        all.

        Raises:
            SweepStoppedError: no worker can be had any more.
        """
        return self._run(
            lambda: RunCommand(
                case=case,
                protocol=protocol,
                limit_seconds=limit_seconds,
                energy=energy,
                share=trials_of_replicate(energy, case.replicate, protocol.replicates) if energy else None,
                calibration=self._calibration,
            ),
            patience,
        )

    def probe(self, case: Case, patience: Patience, *, is_fresh: bool) -> CaseRun:
        """Build one case and run it once, in a worker of its own if it is to be ``is_fresh``; raises as :meth:`run`."""
        if is_fresh:
            self.renew()
        return self._run(lambda: ProbeCommand(case=case), patience)

    def _run(self, next_command: Callable[[], RunCommand | ProbeCommand], patience: Patience) -> CaseRun:
        attempts: list[Attempt] = []
        while True:
            worker = self._ready_worker()
            worker.send(next_command())
            self._has_run = True
            finished = _follow(worker, patience)
            self._calibration = self._calibration or finished.calibration
            stopped: SweepStoppedError | None = None
            if not finished.reusable:
                # The next case starts another; after the last one none is needed.
                try:
                    self.close()
                except SweepStoppedError as error:
                    # The case has its outcome all the same.
                    stopped = error
            outcome = finished.outcome
            is_killed = isinstance(outcome, Failure) and outcome.kind == "killed"
            is_late = patience.until is not None and time.monotonic() >= patience.until
            is_last = len(attempts) + 1 >= MAX_ATTEMPTS or is_late or stopped is not None
            if not is_killed or is_last:
                return CaseRun(
                    outcome=outcome,
                    attempts=tuple(attempts),
                    trace=finished.trace,
                    calibration=self._calibration,
                    stopped=stopped,
                )
            assert isinstance(outcome, Failure)
            attempts.append(Attempt(stage=outcome.stage, message=outcome.message))

    def close(self) -> None:
        """End the worker.

        Raises:
            SweepStoppedError: it cannot be ended.
        """
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        finally:
            self._opened.close()

    def _ready_worker(self) -> Worker:
        if self._worker is None:
            try:
                self._worker = start_worker(
                    self._device, self._command, self._memory_limit_bytes, abandonment=self._abandonment
                )
                self._has_run = False
            except SpecError as error:
                # It could be used when the sweep began.
                raise SweepStoppedError(f"{self._device} is lost: {error}") from error
        return self._worker


def start_worker(
    device: str,
    command: WorkerCommand,
    memory_limit_bytes: int | None = None,
    *,
    abandonment: Abandonment | None = None,
) -> Worker:
    """Return a worker that is ready and limited; one that is killed from outside before it is, is replaced.

    Raises:
        SpecError: the device cannot be used.
        SweepStoppedError: the worker did not start, or was killed :data:`MAX_STARTS` times in a row.
        WorkerAbandonedError: ``abandonment`` was declared meanwhile.
    """
    for _ in range(MAX_STARTS - 1):
        with contextlib.suppress(WorkerKilledError):
            return _start_once(device, command, memory_limit_bytes, abandonment)
    return _start_once(device, command, memory_limit_bytes, abandonment)


def _start_once(
    device: str, command: WorkerCommand, memory_limit_bytes: int | None, abandonment: Abandonment | None
) -> Worker:
    try:
        worker = Worker(device, command, abandonment)
    except OSError as error:
        # No room for its output, no process, no descriptor: this machine's trouble, not the sweep's.
        raise SweepStoppedError(f"the worker for {device} did not start: {error}") from error
    if memory_limit_bytes is not None:
        try:
            worker.limit_memory(memory_limit_bytes, is_tried_out=False)
        except (SpecError, WorkerKilledError, WorkerAbandonedError):
            worker.stop()
            raise
    return worker


def _follow(worker: Worker, patience: Patience) -> Finished:
    """Return how the case that ``worker`` is running ended, in the worker's words or, where it has none, in ours."""
    stage: Stage = "start"
    begin = time.monotonic()
    deadline, silent_at = begin + patience.timeout_seconds, begin + patience.silence_seconds
    if patience.until is not None:
        deadline = min(deadline, max(begin, patience.until) + GRACE_SECONDS)
    try:
        while True:
            match worker.receive(max(0.0, min(deadline, silent_at) - time.monotonic())):
                case StageReached(stage=reached):
                    stage = reached
                    silent_at = time.monotonic() + patience.silence_seconds
                case Finished() as finished:
                    return finished
                case other:
                    failure = Failure(kind="crash", stage=stage, message=f"unexpected answer: {other}")
                    break
    except WorkerTimeoutError:
        message = f"not finished after {deadline - begin:.0f} s; the worker was killed"
        if silent_at < deadline:
            message = f"no sign of life for {patience.silence_seconds:.0f} s; the worker was killed"
        failure = Failure(kind="timeout", stage=stage, message=message)
    except WorkerEndedError as ended:
        failure = _ended_failure(ended, stage)
    return Finished(outcome=failure, reusable=False)


def _ended_failure(ended: WorkerEndedError, stage: Stage) -> Failure:
    code = ended.exit_code
    tail = f": {ended.output}" if ended.output else ""
    if code is None:
        return Failure(kind="crash", stage=stage, message=ended.output or "the worker closed its pipe")
    if code >= 0:
        return Failure(
            kind="crash", stage=stage, message=f"the worker ended with exit code {code}{tail}", exit_code=code
        )
    name = _signal_name(-code)
    kind: FailureKind = "crash"
    message = f"the worker died of {name}{tail}"
    if ended.killed_for_memory:
        kind, message = "host_oom", "the kernel killed the worker: the machine ran out of memory"
    elif ended.is_killed:
        kind, message = "killed", f"the worker was killed by {name}"
    return Failure(kind=kind, stage=stage, message=message, exit_code=code, signal=name)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        # Real-time signals have numbers only.
        return f"signal {number}"
