"""A worker without torch that does what the case's options say; speaks the real protocol over the real pipe.

``behave=`` measure (default), oom, unsupported, pid, sigkill, sigkill-twice, sigsegv, hang, hang-on, garbage, half,
exit or print; ``sleep=SECONDS`` before that.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

from infsa_bench.execute.messages import CheckCommand, Checked, Finished, Hello, StageReached, from_line, to_line
from infsa_bench.record import Environment, Failure, Measurement
from infsa_bench.spec import Case

ENVIRONMENT = Environment(
    device="cpu",
    device_name="fake processor",
    device_uuid=None,
    device_memory_bytes=2**34,
    driver_version=None,
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
    allocator_settings=None,
    infsa_bench_version="0",
    git_commit=None,
    git_dirty=None,
)

MEASUREMENT = Measurement(
    latencies_seconds=(0.25, 0.5, 0.75),
    gpu_seconds=(),
    warmup_seconds=(1.0,),
    build_seconds=0.125,
    parameters=10,
    model_bytes=40,
    peak_memory_bytes=100,
    peak_reserved_bytes=None,
    memory_source="process_rss",
)


def main() -> None:
    message_fd = int(sys.argv[2])

    def send(message: object) -> None:
        os.write(message_fd, to_line(message))  # type: ignore[arg-type]

    # A device that is asked for by name is there.
    device = sys.argv[1] if sys.argv[1].startswith("cuda") else "cpu"
    environment = dataclasses.replace(ENVIRONMENT, device=device)
    send(Hello(environment=environment, matmul_flops_per_second={"fp32": 1e12}, available_bytes=2**40))
    for line in sys.stdin.buffer:
        command = from_line(line)
        if isinstance(command, CheckCommand):
            send(Checked(problems={}))
            continue
        send(StageReached(stage="build"))
        behave(command.case, message_fd, send)  # type: ignore[union-attr]


def behave(case: Case, message_fd: int, send: object) -> None:
    options = dict(case.options)
    if "sleep" in options:
        time.sleep(float(options["sleep"]))
    outcome: Measurement | Failure = MEASUREMENT
    match options.get("behave", "measure"):
        case "oom":
            outcome = Failure(kind="oom", stage="build", message="out of memory", requested_bytes=7)
        case "unsupported":
            outcome = Failure(kind="unsupported", stage="start", message="by design")
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
    send(Finished(outcome=outcome, reusable=isinstance(outcome, Measurement) or outcome.kind == "unsupported"))  # type: ignore[operator]


if __name__ == "__main__":
    main()
