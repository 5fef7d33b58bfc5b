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

import torch
from torch import Tensor

from infsa_bench.errors import MeterUnavailableError
from infsa_bench.execute.diagnosis import diagnose
from infsa_bench.execute.failures import attempt, describe_failure, first_line
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
    LimitMemoryCommand,
    MeasurePeaksCommand,
    MemoryLimited,
    Message,
    PeaksMeasured,
    ProbeCommand,
    Refused,
    RunCommand,
    from_line,
    to_line,
)
from infsa_bench.execute.probed_case import probe_case
from infsa_bench.execute.stages import StageReporter
from infsa_bench.execute.workload import unsupported_reason
from infsa_bench.machine import Environment
from infsa_bench.measure.energy.meter import not_measured
from infsa_bench.measure.environment import describe_environment, matmul_flops_per_second
from infsa_bench.measure.memory import available_host_bytes, release_freed_memory
from infsa_bench.measure.peaks import measure_peaks
from infsa_bench.record import EnergyCalibration, Failure, Measurement, TracePoint
from infsa_models.registry import load_class

PR_SET_PDEATHSIG = 1

Send = Callable[[Message], None]


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
                gpus=tuple(f"cuda:{index}" for index in range(torch.cuda.device_count())),
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
                case LimitMemoryCommand(limit_bytes=limit_bytes, is_tried_out=is_tried_out):
                    try:
                        instruments = instruments.limited(limit_bytes)
                    except ValueError as error:
                        send(MemoryLimited(problem=str(error)))
                        continue
                    assert instruments.memory_limit is not None
                    send(MemoryLimited(problem=instruments.memory_limit.problem() if is_tried_out else None))
                case DiagnoseCommand(selfcheck=selfcheck):
                    send(Diagnosed(findings=diagnose(environment, instruments, selfcheck=selfcheck)))
                case MeasurePeaksCommand():
                    send(find_peaks(environment, instruments))
                case ProbeCommand() as command:
                    send(run_probe(command, instruments, send))
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
    """Measure one case to its outcome, whatever happens."""
    device, meter, reporter = instruments.device, instruments.meter, StageReporter(send)
    reason = unsupported_reason(command.case, device.type)
    if reason is not None:
        return _refused(reason, reporter)
    if meter is not None and meter.calibration is None:
        meter.calibration = command.calibration
    measured_case = MeasuredCase(command, instruments, reporter)
    timed = attempt(measured_case.time)
    calibration = meter.calibration if meter else None
    if isinstance(timed, Exception):
        # Not reusable: what the traceback keeps alive, or a device that met an error, could change the next number.
        failure = describe_failure(timed, reporter.stage, instruments)
        return Finished(outcome=failure, reusable=False, calibration=calibration)
    measurement, trace, is_clean = _complete(measured_case, timed)
    del measured_case
    return Finished(
        outcome=measurement,
        reusable=is_clean and command.case.execution == "eager" and instruments.is_clean(),
        trace=trace,
        calibration=meter.calibration if meter else None,
    )


def run_probe(command: ProbeCommand, instruments: Instruments, send: Send) -> Finished:
    """Build one case and run it once, whatever happens."""
    reporter = StageReporter(send)
    reason = unsupported_reason(command.case, instruments.device.type)
    if reason is not None:
        return _refused(reason, reporter)
    fit = attempt(lambda: probe_case(command.case, instruments, reporter))
    if isinstance(fit, Exception):
        return Finished(outcome=describe_failure(fit, reporter.stage, instruments), reusable=False)
    return Finished(outcome=fit, reusable=command.case.execution == "eager" and instruments.is_clean())


def _refused(reason: str, reporter: StageReporter) -> Finished:
    return Finished(outcome=Failure(kind="unsupported", stage=reporter.stage, message=reason), reusable=True)


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


def find_peaks(environment: Environment, instruments: Instruments) -> PeaksMeasured:
    """Measure what the device can do, whatever happens."""
    peaks = attempt(lambda: measure_peaks(instruments.device, environment))
    if isinstance(peaks, Exception):
        return PeaksMeasured(peaks=None, problem=f"{type(peaks).__name__}: {first_line(peaks)}")
    if instruments.gpu is not None and (instruments.gpu.state().foreign_processes or 0) > 0:
        peaks = replace(peaks, is_shared=True)
    return PeaksMeasured(peaks=peaks, problem=None)


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
