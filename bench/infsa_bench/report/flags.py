"""What flags and statuses mean, in words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from infsa_bench.analyze.summary import (
    ENERGY_THROUGHPUT_GAP,
    LATENCY_THROUGHPUT_GAP,
    PROCESSES_DISAGREE,
    SummaryRow,
)
from infsa_bench.protocol import PRECISION_TARGET
from infsa_bench.quoting import one_line

UNKNOWN_FLAG = "not known to this version of infsa-bench"

FLAGS: Mapping[str, str] = {
    "shared": "others used the GPU, or more than 5 % of all processor cores, meanwhile: the numbers may be too high",
    "throttled": "heat or hardware protection held the clocks back: the times are too long",
    "not_converged": f"the median was not known to {100 * PRECISION_TARGET:g} % when its time was up",
    "time_limited": "the time budget cut warm-up or timing short",
    "launch_bound": "the device waits for its launches: a CUDA graph of the same work is more than 1.1 times faster",
    "latency_throughput_gap": f"a batch alone and batches in a row differ by over {100 * LATENCY_THROUGHPUT_GAP:g} %",
    "energy_throughput_gap": "throughput while energy was watched differs by more than "
    f"{100 * ENERGY_THROUGHPUT_GAP:g} % from that timed",
    "processes_disagree": f"the slowest and the fastest process are more than {100 * PROCESSES_DISAGREE:g} % apart",
    "power_limit_changed": "the GPU's power limit was not the same in all processes",
    "several_devices": "its processes ran on several devices of one kind, or with different shares of the cores, which "
    "need not be equally fast",
    "non_finite_output": "the model's output held infinities or was no number: a time, but not of a useful result",
    "recompiled": "torch.compile compiled again while it was timed: some times are too long",
    "operations_not_counted": "what the model executes could not be counted: no FLOP/s, no roofline",
    "graph_failed": "the model could not be captured as a CUDA graph: whether it is launch-bound is not known",
    "launches_in_gpu_seconds": "the GPU time has launches in it, because no graph of the model could be made",
}

STATUSES: Mapping[str, str] = {
    "ok": "measured",
    "oom": "out of device memory",
    "host_oom": "out of host memory",
    "timeout": "longer than its time limit",
    "crash": "its process died",
    "killed": "its process was killed from outside",
    "unsupported": "cannot run by design",
    "skipped": "not tried",
    "error": "an exception",
}


def flag_meaning(flag: str) -> str:
    """Return what a flag says of a number."""
    if flag in FLAGS:
        return FLAGS[flag]
    counted = re.fullmatch(r"([a-z_]+)_in_(\d{1,9})_of_(\d{1,9})", flag)
    if counted and counted[1] in STATUSES:
        return f"{counted[2]} of {counted[3]} processes ended otherwise: {STATUSES[counted[1]]}"
    return UNKNOWN_FLAG


def explain_flags(rows: Iterable[SummaryRow]) -> list[tuple[str, str, list[SummaryRow]]]:
    """Return each flag that rows have, what it means, and the rows."""
    flagged: dict[str, list[SummaryRow]] = {}
    for row in rows:
        for flag in dict.fromkeys(row.flags):
            flagged.setdefault(one_line(flag), []).append(row)
    return [(flag, flag_meaning(flag), concerned) for flag, concerned in flagged.items()]
