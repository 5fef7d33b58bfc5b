"""One case built and run once, in the worker: does it fit? Nothing is timed."""

from __future__ import annotations

import time

from infsa_bench.execute.instruments import Instruments
from infsa_bench.execute.stages import StageReporter
from infsa_bench.execute.workload import build_workload
from infsa_bench.measure.latency import synchronize
from infsa_bench.record import Fit
from infsa_bench.spec import Case


def probe_case(case: Case, instruments: Instruments, reporter: StageReporter) -> Fit:
    """Build ``case`` and run one iteration; raises whatever that raises.

    The peak counts from before the build, which can need more than the iteration.
    """
    device = instruments.device
    begin = time.monotonic()
    reporter.reach("build")
    instruments.peak_memory.reset()
    workload = build_workload(case, device)
    synchronize(device)
    reporter.ask(workload.is_in_backward)
    reporter.reach("forward")
    workload.call()
    synchronize(device)
    seconds = time.monotonic() - begin
    peak = instruments.peak_memory.read()
    return Fit(
        model_bytes=workload.model_bytes,
        peak_memory_bytes=peak.allocated_bytes,
        peak_reserved_bytes=peak.reserved_bytes,
        nvml_process_bytes=instruments.gpu.process_bytes() if instruments.gpu else None,
        memory_source=peak.source,
        first_call_seconds=seconds,
    )
