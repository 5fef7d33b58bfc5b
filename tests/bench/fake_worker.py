"""A worker without torch that does what the case's options say; speaks the real protocol over the real pipe.

``behave=`` measure (default; a probe fits), energy (with a power trace, and a calibration of ``watts=`` idle power),
echo (fails with the command as its message), place (with its device and cores), lose (the device, by its name in
``file=``; ``lose-once`` unless something stands there), oom, host_oom, index, exception, unsupported, pid, limit (of
its memory), sigkill, sigkill-twice, sigsegv, hang, hang-on, end (in an orderly way), endless, beat (alive for
``seconds=``, then measure), garbage, half, exit or print; ``sleep=SECONDS`` before that; ``stage=`` is the stage in
which it happens.

Words after the three that every worker gets make it another machine: ``meter`` measures energy where it is asked to,
``defective`` fails its selfcheck, ``refused`` cannot be used at all, ``deaf`` ends when it is asked for a diagnosis, a
calibration or a limit, ``mute`` hangs; ``gpus=N`` is how many there are, ``lost=FILE`` holds names of devices that
are no longer there, ``model=DEVICE:NAME`` is the name of one; ``cores`` tells how many cores and
threads it really has; ``fits=N`` runs out of memory above a resolution of N,
``hole=N`` at N, ``at=N:BEHAVE`` behaves so there,
``peakless`` cannot measure its peaks, ``dead-peaks`` ends over them; ``leaky`` cannot limit its memory; ``slow`` takes
a moment to start, ``asleep=FILE`` writes its process there and never does, ``mortal=FILE`` is killed over its limit.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from infsa_bench.codec import encode
from infsa_bench.execute.messages import (
    CalibrateCommand,
    Calibrated,
    CheckCommand,
    Checked,
    DiagnoseCommand,
    Diagnosed,
    Finding,
    Finished,
    Hello,
    LimitMemoryCommand,
    MeasurePeaksCommand,
    MemoryLimited,
    PeaksMeasured,
    ProbeCommand,
    Refused,
    RunCommand,
    StageReached,
    from_line,
    to_line,
)
from infsa_bench.machine import Environment
from infsa_bench.peaks import MeasuredPeaks, MeasuredRate
from infsa_bench.record import (
    EnergyCalibration,
    EnergyReading,
    EnergyTrial,
    EnergyWindow,
    Failure,
    Fit,
    Measurement,
    OperationCount,
    Outcome,
    TracePoint,
)

ENVIRONMENT = Environment(
    device="cpu",
    device_name="fake processor",
    device_uuid=None,
    device_memory_bytes=2**34,
    gpu=None,
    cuda_version=None,
    cudnn_version=None,
    torch_version="0",
    timm_version="0",
    python_version="3",
    operating_system="fake",
    cpu_name="fake processor",
    cpu_count=1,
    torch_threads=1,
    float32_matmul_precision="highest",
    cudnn_benchmark=False,
    tf32_convolutions=False,
    allocator_settings=None,
    infsa_bench_version="0",
    git_commit=None,
    git_dirty=None,
)

NO_ENERGY = EnergyReading(
    status="not_measured", reason="rapl_absent", detail="this machine has no counter of its processor's energy"
)

MEASUREMENT = Measurement(
    latencies_seconds=(0.25, 0.5, 0.75),
    gpu_seconds=(),
    seconds_per_iteration=(0.25, 0.5, 0.75),
    iterations_per_sample=1,
    graph_seconds_per_iteration=(),
    launch_bound=None,
    warmup_seconds=(1.0,),
    build_seconds=0.125,
    choices={},
    parameters=10,
    model_bytes=40,
    peak_memory_bytes=100,
    peak_reserved_bytes=None,
    nvml_process_bytes=None,
    memory_source="process_rss",
    operations=OperationCount(matmul_flops=2**32, elementwise_flops=2**24, operator_bytes=2**30),
    energy=NO_ENERGY,
    state_before=None,
    state_during=None,
    state_after=None,
    stage_seconds={"build": 0.125, "warm-up": 1.0, "latency": 1.5},
)


PEAKS = MeasuredPeaks(
    device="cpu",
    device_name="fake processor",
    device_uuid=None,
    torch_threads=1,
    measured_utc="2026-01-02T03:04:05+00:00",
    seconds=3.5,
    is_shared=False,
    flops_per_second={
        "fp32": MeasuredRate(per_second=2.0**37, what="4096 x 1024 x 4096", rounds=3, repetitions=3, spread=0.0625)
    },
    copied_bytes_per_second=MeasuredRate(
        per_second=2.0**34, what="copy of 256 MiB", rounds=3, repetitions=3, spread=0.03125
    ),
)

FIT = Fit(
    model_bytes=40,
    peak_memory_bytes=100,
    peak_reserved_bytes=None,
    nvml_process_bytes=None,
    memory_source="process_rss",
    first_call_seconds=0.5,
)

CALIBRATION = EnergyCalibration(
    source="rapl",
    scope="package",
    period_seconds=0.1,
    period_p95_seconds=0.105,
    step_joules=0.01,
    call_seconds=1e-5,
    rise_seconds=None,
    idle_watts=60.0,
    idle_seconds=10.0,
    temperature_celsius=40,
)

CALIBRATION_LATER = dataclasses.replace(CALIBRATION, idle_watts=65.0, temperature_celsius=55)

TRACE = (
    TracePoint(seconds=0.0, power_watts=60.25, sm_clock_mhz=1980, temperature_celsius=40, event_reasons=()),
    TracePoint(seconds=0.1, power_watts=None, sm_clock_mhz=None, temperature_celsius=None, event_reasons=()),
    TracePoint(
        seconds=0.2,
        power_watts=300.0,
        sm_clock_mhz=1755,
        temperature_celsius=52,
        event_reasons=("sw_power_cap", "sw_thermal_slowdown"),
    ),
)


def measured_energy(trials: int, calibration: EnergyCalibration) -> EnergyReading:
    window = EnergyWindow(joules=600.0, iterations=40.0, seconds=2.0, edge_seconds=0.002, power_joules=598.0)
    trial = EnergyTrial(
        begin_seconds=0.0,
        windows=(window,),
        temperature_begin_celsius=40,
        temperature_end_celsius=52,
        sm_clock_mhz=1755.0,
        power_capped_fraction=0.25,
        throttle_reasons=(),
    )
    return EnergyReading(
        status="measured",
        reason=None,
        detail=None,
        preset="quick",
        relative_bias=0.001,
        calibration=calibration,
        trials=(trial,) * trials,
    )


FINDINGS = (
    Finding(name="latency", verdict="yes", detail="host clock"),
    Finding(name="gpu energy", verdict="no", detail="no [GPU]"),
)


def main() -> None:
    message_fd, traits = int(sys.argv[2]), sys.argv[4:]

    def send(message: object) -> None:
        os.write(message_fd, to_line(message))  # type: ignore[arg-type]

    # A device that is asked for by name is there.
    device = sys.argv[1] if sys.argv[1].startswith("cuda") else "cpu"
    has_meter = "meter" in traits
    if "slow" in traits:
        time.sleep(0.7)
    for trait in traits:
        if trait.startswith("asleep="):
            with Path(trait.removeprefix("asleep=")).open("a") as handle:
                handle.write(f"{os.getpid()}\n")
            time.sleep(3600)
    if "refused" in traits or is_lost(device, traits):
        send(Refused(message=f"device {device!r} cannot be used: by design"))
        return
    send(
        Hello(
            environment=environment_of(device, traits),
            gpus=tuple(f"cuda:{index}" for index in range(gpus_of(traits, device))),
            matmul_flops_per_second={"fp32": 1e12},
            available_bytes=2**40,
            energy_source="rapl" if has_meter else None,
            no_energy_reason=None if has_meter else NO_ENERGY.detail,
        )
    )
    for line in sys.stdin.buffer:
        command = from_line(line)
        if isinstance(command, DiagnoseCommand | CalibrateCommand | LimitMemoryCommand) and "deaf" in traits:
            os._exit(3)
        if isinstance(command, DiagnoseCommand | CalibrateCommand) and "mute" in traits:
            time.sleep(3600)
        match command:
            case CheckCommand():
                send(Checked(problems={}))
            case DiagnoseCommand(selfcheck=selfcheck):
                verdict = "fail" if "defective" in traits else "pass"
                check = Finding(name="linearity", verdict=verdict, detail="J(2N) / J(N) = 2.00")  # type: ignore[arg-type]
                send(Diagnosed(findings=(*FINDINGS, check) if selfcheck else FINDINGS))
            case CalibrateCommand():
                send(Calibrated(calibration=CALIBRATION_LATER if has_meter else None))
            case MeasurePeaksCommand():
                if "peakless" in traits:
                    send(PeaksMeasured(peaks=None, problem="RuntimeError: by design"))
                elif "dead-peaks" in traits:
                    os._exit(3)
                else:
                    send(PeaksMeasured(peaks=dataclasses.replace(PEAKS, device=device), problem=None))
            case LimitMemoryCommand(limit_bytes=limit_bytes, is_tried_out=is_tried_out):
                os.environ["LIMIT"] = str(limit_bytes)
                die_of(traits)
                send(MemoryLimited(problem="it leaks" if "leaky" in traits and is_tried_out else None))
            case ProbeCommand() | RunCommand():
                send(StageReached(stage=dict(command.case.options).get("stage", "build")))  # type: ignore[arg-type]
                limits = [int(trait.removeprefix("fits=")) for trait in traits if trait.startswith("fits=")]
                is_hole = f"hole={command.case.resolution}" in traits
                default = "oom" if is_hole or (limits and command.case.resolution > limits[0]) else "measure"
                for trait in traits:
                    if trait.startswith(f"at={command.case.resolution}:"):
                        default = trait.partition(":")[2]
                if isinstance(command, RunCommand) and has_meter and command.energy and default == "measure":
                    default = "energy"
                send(behave(command, message_fd, default))
            case other:
                raise AssertionError(other)


def gpus_of(traits: list[str], device: str) -> int:
    """Return how many GPUs the machine has: one that is asked for by name is there."""
    counts = [int(trait.removeprefix("gpus=")) for trait in traits if trait.startswith("gpus=")]
    return counts[0] if counts else int(device.startswith("cuda"))


def environment_of(device: str, traits: list[str]) -> Environment:
    found = dataclasses.replace(ENVIRONMENT, device=device, device_name=model_of(device, traits))
    if "cores" not in traits:
        return found
    count = len(os.sched_getaffinity(0))
    # As torch does.
    return dataclasses.replace(found, cpu_count=count, torch_threads=int(os.environ.get("OMP_NUM_THREADS", count)))


def is_lost(device: str, traits: list[str]) -> bool:
    files = [Path(trait.removeprefix("lost=")) for trait in traits if trait.startswith("lost=")]
    return any(file.exists() and device in file.read_text().split() for file in files)


def model_of(device: str, traits: list[str]) -> str:
    prefix = f"model={device}:"
    found = [trait.removeprefix(prefix) for trait in traits if trait.startswith(prefix)]
    return found[0] if found else ENVIRONMENT.device_name


def die_of(traits: list[str]) -> None:
    """Be killed, as often as there are letters in the file of a mortal worker."""
    for trait in traits:
        if trait.startswith("mortal="):
            deaths = Path(trait.removeprefix("mortal="))
            left = deaths.read_text() if deaths.exists() else ""
            if left:
                deaths.write_text(left[1:])
                os.kill(os.getpid(), signal.SIGKILL)


def behave(command: ProbeCommand | RunCommand, message_fd: int, default: str) -> Finished:
    options = dict(command.case.options)
    if "sleep" in options:
        time.sleep(float(options["sleep"]))
    outcome: Outcome = MEASUREMENT if isinstance(command, RunCommand) else FIT
    match options.get("behave", default):
        case "energy":
            assert isinstance(command, RunCommand)
            # What the run knows already is not found out again.
            watts = float(options.get("watts", "60"))
            calibration = command.calibration or dataclasses.replace(CALIBRATION, idle_watts=watts)
            energy = measured_energy(command.share.count if command.share else 1, calibration)
            measurement = dataclasses.replace(MEASUREMENT, energy=energy)
            return Finished(outcome=measurement, reusable=True, trace=TRACE, calibration=calibration)
        case "echo":
            outcome = Failure(kind="unsupported", stage="start", message=encode(command))
        case "place":
            cores = sorted(os.sched_getaffinity(0))
            outcome = Failure(kind="unsupported", stage="start", message=f"{sys.argv[1]} {os.getpid()} {cores}")
        case "lose" | "lose-once" as how:
            file = Path(options["file"])
            if how == "lose" or not file.exists():
                with file.open("a") as handle:
                    handle.write(f"{sys.argv[1]}\n")
                os.kill(os.getpid(), signal.SIGKILL)
        case "oom":
            outcome = Failure(kind="oom", stage="build", message="out of memory", requested_bytes=7)
        case "host_oom":
            outcome = Failure(kind="host_oom", stage="build", message="out of memory", cause="allocation")
        case "index":
            outcome = Failure(kind="unsupported", stage="build", message="too many elements", cause="index_limit")
        case "exception":
            outcome = Failure(kind="error", stage="build", message="by zero", exception="ZeroDivisionError")
        case "unsupported":
            outcome = Failure(kind="unsupported", stage="start", message="by design")
        case "limit":
            outcome = Failure(kind="unsupported", stage="start", message=os.environ.get("LIMIT", "none"))
        case "pid":
            outcome = Failure(kind="unsupported", stage="start", message=str(os.getpid()))
        case "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "sigkill-twice":
            deaths = Path(options["file"])
            with deaths.open("a") as handle:
                handle.write("x")
            if len(deaths.read_text()) <= 2:
                os.kill(os.getpid(), signal.SIGKILL)
        case "sigsegv":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hang":
            time.sleep(3600)
        case "end":
            signal.signal(
                signal.SIGTERM, lambda number, frame: Path(options["file"]).write_text("asked to") and os._exit(0)
            )
            child = subprocess.Popen(["sleep", "3600"])
            Path(options["child"]).write_text(str(child.pid))
            time.sleep(3600)
        case "endless":
            while True:
                os.write(message_fd, b"x" * 2**12)
        case "beat":
            # Alive, for so long.
            end = time.monotonic() + float(options["seconds"])
            while time.monotonic() < end:
                os.write(message_fd, to_line(StageReached(stage="timing")))
                time.sleep(0.05)
        case "hang-on":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(3600)
        case "garbage":
            os.write(message_fd, b"\x00\xff not a message\n")
            time.sleep(3600)
        case "half":
            os.write(message_fd, to_line(Finished(outcome=MEASUREMENT, reusable=True))[:-20])
            os._exit(0)
        case "exit":
            print("the last words", file=sys.stderr, flush=True)
            os._exit(3)
        case "print":
            print("x" * 2**20)
    if isinstance(outcome, Failure) and outcome.kind in ("oom", "host_oom", "error"):
        outcome = dataclasses.replace(outcome, stage=options.get("stage", "build"))
    reusable = not isinstance(outcome, Failure) or outcome.kind == "unsupported"
    return Finished(outcome=outcome, reusable=reusable)


if __name__ == "__main__":
    main()
