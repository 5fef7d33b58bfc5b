"""What a reader must know before the numbers: where and how they were measured, and what they are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from infsa_bench.analyze.energy import SYSTEMATIC_RELATIVE
from infsa_bench.analyze.roofline import data_sheet
from infsa_bench.analyze.summary import MIN_PROCESSES, SummaryRow
from infsa_bench.energy_plan import energy_preset, trials_of_replicate
from infsa_bench.machine import Environment, GpuFacts, alike
from infsa_bench.protocol import (
    PRECISION_TARGET,
    SLOW_ITERATION_SECONDS,
    SLOW_MAX_TIMED_SECONDS,
    SLOW_TIMED_ITERATIONS,
    Protocol,
)
from infsa_bench.quoting import one_line
from infsa_bench.report.peaks import describe_peaks
from infsa_bench.report.units import format_bytes, format_duration, significant
from infsa_bench.shard import Shard
from infsa_bench.spec import Case
from infsa_bench.store import Settings, StoredRun

MAX_NAMED_DEVICES = 8

SOURCES = {
    "nvml_counter": "energy counter of NVML",
    "nvml_power": "power that NVML was asked for again and again",
    "rapl": "RAPL counter",
}
SCOPES = {
    "gpu": "the GPU board",
    "module": "the module, GPU and CPU together",
    "package": "the CPU package",
    "package+dram": "CPU package and memory",
}


def describe_run(run: StoredRun, rows: Sequence[SummaryRow]) -> list[str]:
    """Return what a reader must know before the numbers, a line each."""
    settings = run.manifest.settings
    lines = describe_environments(run.manifest.environments)
    if settings.memory_limit_bytes is not None:
        lines.append(describe_memory_limit(settings.memory_limit_bytes))
    lines += _peaks(run)
    lines.append(f"{describe_protocol(settings.protocol)}; seed {settings.seed}")
    planned = len({case_id.rpartition("/")[0] for case_id in run.manifest.plan})
    if run.manifest.shard is not None:
        lines.append(describe_shard(run.manifest.shard))
    endings = ", ".join(f"{count} {status}" for status, count in Counter(row.status for row in rows).most_common())
    lines.append(f"{planned} cells planned, {len(rows)} recorded: {endings}")
    lines += [
        "Latency: median host time of one batch, from the call until the device is done, nothing queued before it",
        "images/s: batch size over the time a batch with the queue kept full (seconds_per_iteration), not over latency",
        "95 % interval of the latency: of 1 process, from order statistics of its samples (n: too few; correlated: too "
        f"few of them independent), and another process may differ by more; from {MIN_PROCESSES} processes on, "
        "Student's t of their medians; of 2, none",
    ]
    if any(row.gpu_seconds is not None for row in rows):
        lines.append("GPU time (gpu_seconds in the CSV): what the device itself takes for a batch, launches left out")
    if any(row.launch_bound for row in rows):
        lines.append("launch_bound: takes more than 1.1 times its CUDA graph, so the device waits for its launches")
    if any(row.achieved_flops_per_second is not None for row in rows):
        lines.append("FLOP/s: those of matrix products, counted as they run, over the time a batch with a full queue")
    if any(row.roofline_fraction is not None for row in rows):
        lines.append(
            "roofline: the least time that the measured peaks leave for a batch's matrix products, or for what its "
            "operators read and write if longer, over the time taken; above 100 % where caches spare the memory"
        )
    lines.append(_describe_energy(settings, rows))
    spent: Counter[str] = Counter()
    for row in rows:
        spent.update(dict(row.stage_seconds or ()))
    if spent:
        stages = ", ".join(f"{stage} {format_duration(seconds)}" for stage, seconds in spent.items())
        lines.append(f"Time spent on measured cells (by cell in the CSV): {stages}")
    # Names and reasons may come from somebody else's file.
    return [one_line(line) for line in lines]


def describe_environments(environments: Mapping[str, Environment]) -> list[str]:
    """Return a line for each kind of environment, and one more where several devices are of that kind."""
    kinds: dict[str, list[Environment]] = {}
    for key, first in alike(environments).items():
        kinds.setdefault(first, []).append(environments[key])
    lines = []
    for key, (first_of_kind, *others) in kinds.items():
        lines.append(f"Environment {key}: {describe_environment(first_of_kind)}")
        if others:
            names = ", ".join(_place(found) for found in others[:MAX_NAMED_DEVICES])
            more = len(others) - MAX_NAMED_DEVICES
            lines.append(
                f"Also measured on {len(others)} like it, so that what two cells differ by may be what two devices do: "
                f"{names}" + (f" and {more} more" if more > 0 else "")
            )
    return lines


def _place(environment: Environment) -> str:
    """The device, and where it is."""
    return environment.device if environment.node is None else f"{environment.device} of {environment.node}"


def _peaks(run: StoredRun) -> list[str]:
    """What each device can do, if that was measured."""
    lines = []
    for peaks in run.all_peaks:
        environments = run.manifest.environments.values()
        spec = next((data_sheet(found) for found in environments if peaks.are_of(found)), None)
        lines.append(describe_peaks(peaks, spec))
    return lines


def describe_memory_limit(limit_bytes: int) -> str:
    """Return one line: what was emulated, and how far that goes."""
    return (
        f"Memory: {format_bytes(limit_bytes)} emulated, by a limit on the worker's allocations; libraries may still "
        "choose what they do for the device that is there"
    )


def describe_shard(shard: Shard) -> str:
    """Return one line: which part of how large a plan a run is."""
    cells = len({case_id.rpartition("/")[0] for case_id in shard.whole})
    return f"Shard {shard.part} of a plan of {cells} cells; infsa-bench merge joins the shards"


def describe_protocol(protocol: Protocol) -> str:
    """Return one line: how often a case is run, in how many processes."""
    if protocol.max_warmup_seconds is None:
        warmup = f"{protocol.warmup_iterations} warm-up iterations"
    else:
        warmup = f"at least {protocol.warmup_iterations} warm-up iterations and {protocol.warmup_seconds:g} s, until "
        warmup += f"the times settle or {protocol.max_warmup_seconds:g} s have passed"
    if protocol.max_timed_seconds is None:
        timed = f"{protocol.timed_iterations} timed iterations"
    else:
        timed = f"at least {protocol.timed_iterations} timed iterations and {protocol.timed_seconds:g} s, until the "
        timed += f"median is known to {100 * PRECISION_TARGET:g} % or {protocol.max_timed_seconds:g} s have passed"
        if protocol.timed_iterations > SLOW_TIMED_ITERATIONS:
            slow = f"above {SLOW_ITERATION_SECONDS:g} s an iteration"
            timed += f" ({slow}: {SLOW_TIMED_ITERATIONS} iterations, {SLOW_MAX_TIMED_SECONDS:g} s)"
    processes = "1 process" if protocol.replicates == 1 else f"{protocol.replicates} processes, one after the other"
    return f"Protocol {protocol.name}: {warmup}; {timed}; {processes}"


def describe_environment(environment: Environment) -> str:
    """Return one line: device, memory, versions, commit."""
    parts = [f"{_place(environment)} ({environment.device_name}, {format_bytes(environment.device_memory_bytes)})"]
    if environment.accelerator is not None:
        parts.append(f"accelerator type {environment.accelerator}")
    if environment.device_type == "cpu":
        parts.append(f"{environment.torch_threads} threads")
    else:
        driver = environment.gpu.driver_version if environment.gpu else "unknown"
        parts.append(f"driver {driver}, CUDA {environment.cuda_version}")
    if environment.gpu is not None:
        parts += _describe_gpu(environment.gpu)
    parts.append(f"torch {environment.torch_version}, timm {environment.timm_version}")
    commit = environment.git_commit[:12] if environment.git_commit else "unknown"
    parts.append(f"infsa-bench {environment.infsa_bench_version}, commit {commit}")
    if environment.git_dirty:
        parts[-1] += " with uncommitted changes"
    return "; ".join(parts)


def flag_remarks(rows: Iterable[SummaryRow]) -> list[str]:
    """Return which rows of a block carry which flag, a line a flag."""
    flagged: dict[str, list[str]] = {}
    for row in rows:
        for flag in row.flags:
            flagged.setdefault(flag, []).append(_short_name(row.case))
    return [one_line(f"* {flag}: {', '.join(names)}") for flag, names in flagged.items()]


def energy_remarks(rows: Iterable[SummaryRow]) -> list[str]:
    """Return why energy is missing or of low confidence, a line for each reason that any row has.

    Nothing where no row has any energy: that is said of the whole run.
    """
    rows = [row for row in rows if row.energy_status is not None]
    if all(row.joules_per_image is None for row in rows):
        return []
    found: dict[tuple[str, str], list[SummaryRow]] = {}
    for row in rows:
        if row.energy_reason is not None:
            what = "not measured" if row.energy_status == "not_measured" else "low confidence (~)"
            found.setdefault((what, row.energy_reason), []).append(row)
    return [
        one_line(f"energy: {what} in {len(concerned)} of {len(rows)} cells: {_energy_reason(concerned[0])}")
        for (what, _), concerned in found.items()
    ]


def _describe_gpu(gpu: GpuFacts) -> list[str]:
    facts = []
    if gpu.vbios_version is not None:
        facts.append(f"VBIOS {gpu.vbios_version}")
    if gpu.power_limit_watts is not None:
        limit = f"power limit {significant(gpu.power_limit_watts)} W"
        default = gpu.default_power_limit_watts
        if default is not None and default != gpu.power_limit_watts:
            limit += f" (default {significant(default)} W)"
        facts.append(limit)
    if gpu.persistence_mode is not None:
        facts.append(f"persistence mode {'on' if gpu.persistence_mode else 'off'}")
    return [", ".join(facts)] if facts else []


def _describe_energy(settings: Settings, rows: Sequence[SummaryRow]) -> str:
    sources = dict.fromkeys(
        f"{SOURCES[row.energy_source]}, {SCOPES[row.energy_scope]}"
        for row in rows
        if row.energy_source is not None and row.energy_scope is not None
    )
    preset = energy_preset(settings.energy, settings.protocol)
    if preset is None:
        return "Energy: not measured (--energy none)"
    if not sources:
        lacking = {row.energy_reason: row for row in reversed(rows) if row.energy_reason is not None}
        reasons = "; ".join(_energy_reason(row) for row in reversed(lacking.values()))
        return "Energy: not measured" + (f": {reasons}" if reasons else "")
    replicates = settings.protocol.replicates
    trials = trials_of_replicate(preset, 0, replicates).total
    parts = [
        f"Energy: {', '.join(sources)}",
        f"preset {preset.name}: {trials} trials a cell, each of {preset.window_seconds:g} s or more",
        "J/image: mean of the trials and half of its 95 % interval; W: average over the same windows; "
        "~: low confidence",
    ]
    if any(row.energy_source not in (None, "rapl") for row in rows):
        off = f"{100 * SYSTEMATIC_RELATIVE:g} %"
        parts.append(f"a board's sensor may be off by {off} as a whole: in no interval, the same for all of its cells")
    return "; ".join(parts)


def _energy_reason(row: SummaryRow) -> str:
    return f"{row.energy_reason}: {row.energy_detail}" if row.energy_detail else str(row.energy_reason)


def _short_name(case: Case) -> str:
    """What tells a cell from the others of its block."""
    implementation = "" if case.implementation == "reference" else f" {case.implementation}"
    options = "".join(f" {key}={value}" for key, value in case.options)
    return f"{case.mechanism}{implementation}{options} {case.resolution}"
