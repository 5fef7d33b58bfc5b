"""Child side: one process per device that builds, warms up, measures, and answers with one outcome per case.

Run as ``python -m infsa_bench.execute.worker DEVICE MESSAGE_FD PARENT_PID``; started by the launcher only.
It never outlives its parent: the kernel kills it when the parent dies (Linux), and the end of its standard input
ends it anywhere.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from infsa_bench.errors import MeterUnavailableError
from infsa_bench.execute.diagnosis import diagnose
from infsa_bench.execute.instruments import Instruments, open_instruments
from infsa_bench.execute.measured_case import MeasuredCase
from infsa_bench.execute.messages import (
    CalibrateCommand,
    Calibrated,
    CheckCommand,
    Checked,
    Command,
    DiagnoseCommand,
    Diagnosed,
    Finished,
    Hello,
    Message,
    Refused,
    RunCommand,
    StageReached,
    from_line,
    to_line,
)
from infsa_bench.execute.modes import UnsupportedError
from infsa_bench.execute.workload import unsupported_reason
from infsa_bench.measure.energy.meter import not_measured
from infsa_bench.measure.environment import describe_environment, matmul_flops_per_second
from infsa_bench.measure.memory import available_host_bytes, classify_error, release_freed_memory
from infsa_bench.record import EnergyCalibration, Failure, Measurement, Stage, TracePoint
from infsa_models.registry import load_class

PR_SET_PDEATHSIG = 1
LEFTOVER_BYTES = 64 * 2**20
"""Device memory that a finished case may leave allocated; with more, something was kept and the worker is replaced."""

MAX_MESSAGE_LENGTH = 300

Send = Callable[[Message], None]
Result = TypeVar("Result")


def main() -> None:
    """Serve one parent until its commands end."""
    device_name, message_fd, parent_pid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    _die_with_parent(parent_pid)
    with os.fdopen(message_fd, "wb", buffering=0) as pipe:

        def send(message: Message) -> None:
            pipe.write(to_line(message))

        try:
            device = resolve_device(device_name)
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            send(Refused(message=f"device {device_name!r} cannot be used: {first_line(error)}"))
            return
        commands = _read_commands()
        environment, rates = describe_environment(device), _matmul_rates(device)
        instruments = open_instruments(device)
        no_energy = instruments.no_energy
        send(
            Hello(
                environment=environment,
                matmul_flops_per_second=rates,
                available_bytes=available_host_bytes(),
                energy_source=instruments.energy_source,
                no_energy_reason=f"{no_energy.reason}: {no_energy.detail}" if no_energy else None,
            )
        )
        while True:
            match commands.get():
                case CheckCommand(mechanisms=targets):
                    problems = {target: problem for target in targets if (problem := check_mechanism(target))}
                    send(Checked(problems=problems))
                case CalibrateCommand(calibration=known):
                    send(Calibrated(calibration=calibrate(instruments, known)))
                case DiagnoseCommand(selfcheck=selfcheck):
                    send(Diagnosed(findings=diagnose(environment, instruments, selfcheck=selfcheck)))
                case RunCommand() as command:
                    send(run_case(command, instruments, send))


def _die_with_parent(parent_pid: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before that call: then nobody would tell us any more.
    if os.getppid() != parent_pid:
        os._exit(1)


def _read_commands() -> queue.SimpleQueue[Command]:
    """Read standard input in a thread of its own, so that its end is noticed in the middle of a long case."""
    commands: queue.SimpleQueue[Command] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            command = from_line(line)
            assert isinstance(command, Command)
            commands.put(command)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return commands


def resolve_device(name: str) -> torch.device:
    """Return the torch device for ``auto``, ``cpu``, ``cuda`` (the first GPU) or ``cuda:N``; ``auto`` prefers a GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device("cuda:0" if name == "cuda" else name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _matmul_rates(device: torch.device) -> dict[str, float]:
    """Rates for predictions. On a CPU only float32: half precision may be emulated and take minutes."""
    dtypes = {"fp32": torch.float32}
    if device.type == "cuda":
        dtypes |= {"bf16": torch.bfloat16, "fp16": torch.float16}
    return {name: matmul_flops_per_second(device, dtype) for name, dtype in dtypes.items()}


def attempt(work: Callable[[], Result]) -> Result | Exception:
    """Return what ``work`` returns or raises: the one place that catches everything.

    A failed case is a record, not an exception, and a mechanism from elsewhere may raise anything.
    """
    try:
        return work()
    except Exception as error:  # noqa: BLE001
        return error


def check_mechanism(target: str) -> str | None:
    """Return what keeps ``package.module:Class`` from being a mechanism, or None: it is built and called once."""
    tokens = torch.randn(2, 7, 64)

    def mix() -> object:
        mixer = load_class(target)(64, 4, grid=(2, 3), class_token=True, device="cpu", dtype=torch.float32)
        return mixer(tokens)

    mixed = attempt(mix)
    if isinstance(mixed, Exception):
        return f"{type(mixed).__name__}: {first_line(mixed)}"
    if not isinstance(mixed, Tensor) or mixed.shape != tokens.shape:
        return f"its forward does not return tokens of the shape that it got, {tuple(tokens.shape)}"
    return None


def run_case(command: RunCommand, instruments: Instruments, send: Send) -> Finished:
    """Run one case to its outcome, whatever happens."""
    device, meter = instruments.device, instruments.meter
    reached: Stage = "start"

    def reach(stage: Stage) -> None:
        nonlocal reached
        reached = stage
        send(StageReached(stage=stage))

    reason = unsupported_reason(command.case, device.type)
    if reason is not None:
        return Finished(outcome=Failure(kind="unsupported", stage=reached, message=reason), reusable=True)
    if meter is not None and meter.calibration is None:
        meter.calibration = command.calibration
    measured_case = MeasuredCase(command, instruments, reach)
    timed = attempt(measured_case.time)
    calibration = meter.calibration if meter else None
    if isinstance(timed, Exception):
        # Not reusable: what the traceback keeps alive, or a device that met an error, could change the next number.
        return Finished(outcome=_failure(timed, reached, device), reusable=False, calibration=calibration)
    measurement, trace, is_clean = _complete(measured_case, timed)
    del measured_case
    return Finished(
        outcome=measurement,
        reusable=is_clean and command.case.execution == "eager" and _is_clean(device),
        trace=trace,
        calibration=meter.calibration if meter else None,
    )


def _complete(measured_case: MeasuredCase, timed: Measurement) -> tuple[Measurement, tuple[TracePoint, ...], bool]:
    """Add energy and the CUDA graph to what was timed, whatever becomes of them; tell whether both went well."""
    watched = attempt(lambda: measured_case.watch_energy(timed))
    if isinstance(watched, Exception):
        unavailable = MeterUnavailableError("error", f"{type(watched).__name__}: {first_line(watched)}")
        return replace(timed, energy=not_measured(unavailable)), (), False
    measurement, trace = watched
    # The observing process comes back with a new worker only.
    is_observed = measurement.energy.reason != "observer_lost"
    complete = attempt(lambda: measured_case.time_graph(measurement))
    if isinstance(complete, Exception):
        return replace(measurement, flags=(*measurement.flags, "graph_failed")), trace, False
    return complete, trace, is_observed


def calibrate(instruments: Instruments, known: EnergyCalibration) -> EnergyCalibration | None:
    """Watch the idle device once more; None where there is no meter, or none that works."""
    if instruments.meter is None:
        return None
    instruments.meter.calibration = known
    release_freed_memory(instruments.device)
    try:
        return instruments.meter.calibrate()
    except MeterUnavailableError:
        return None


def _failure(error: Exception, stage: Stage, device: torch.device) -> Failure:
    kind, requested_bytes = ("unsupported", None) if isinstance(error, UnsupportedError) else classify_error(error)
    return Failure(
        kind=kind,
        stage=stage,
        message=first_line(error),
        exception=type(error).__name__,
        requested_bytes=requested_bytes,
        free_bytes=_free_bytes(device) if kind in ("oom", "host_oom") else None,
    )


def _free_bytes(device: torch.device) -> int | None:
    if device.type != "cuda":
        return available_host_bytes()
    # A device that met an error answers nothing any more.
    free = attempt(lambda: torch.cuda.mem_get_info(device)[0])
    return free if isinstance(free, int) else None


def _is_clean(device: torch.device) -> bool:
    """Tell whether the finished case left nothing behind on the device."""
    release_freed_memory(device)
    return device.type != "cuda" or torch.cuda.memory_allocated(device) <= LEFTOVER_BYTES


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, printable and of bounded length, or its name if it has none."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    # Somebody else's text: no control characters for terminals, no lone surrogates, which no file can hold.
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
    return line if len(line) <= MAX_MESSAGE_LENGTH else line[:MAX_MESSAGE_LENGTH] + "..."


if __name__ == "__main__":
    exit_code = 1
    try:
        main()
        exit_code = 0
    finally:
        # Also after a SystemExit in somebody else's code. The interpreter must not be shut down in the ordinary way:
        # the thread that waits for commands holds standard input, and Python would abort over that.
        if exit_code != 0:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
