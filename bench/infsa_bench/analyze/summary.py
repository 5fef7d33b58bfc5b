"""Records to summary rows: medians, intervals, throughput, energy. Pure functions; nothing is measured here."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from infsa_bench.analyze.energy import pool_energy
from infsa_bench.analyze.roofline import (
    achieved_bytes_per_second,
    achieved_flops_per_second,
    datasheet_fraction,
    measured_fraction,
)
from infsa_bench.analyze.speedup import with_speedups
from infsa_bench.intervals import effective_samples, lag1_autocorrelation, mean_half_width, median_interval
from infsa_bench.machine import Environment, alike, like
from infsa_bench.peaks import MeasuredPeaks, measured_device, peaks_of
from infsa_bench.record import (
    EnergyScope,
    EnergySource,
    EnergyStatus,
    Failure,
    FailureKind,
    Fit,
    Measurement,
    OperationCount,
    Record,
)
from infsa_bench.spec import Case
from infsa_models.cost import vit_cost
from infsa_models.options import formulas_hold

IntervalKind = Literal["within_process", "between_processes"]

MIN_PROCESSES = 3
"""Processes from which on their medians have an interval."""

MIN_P99_SAMPLES = 100
LATENCY_THROUGHPUT_GAP = 0.05
"""Relative difference of latency and time per iteration above which a row is flagged: waiting for the host, mostly."""

PROCESSES_DISAGREE = 0.1
"""Relative difference between the medians of the slowest and the fastest process above which a row is flagged."""

ENERGY_THROUGHPUT_GAP = 0.05
"""The same between throughput as timed and throughput in the windows of the energy: they saw different conditions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRow:
    """One cell as tables and figures show it, its replicates pooled. What there is no number for is None, never zero.

    Attributes:
        case: that of replicate 0, whichever were recorded.
        status: ``ok`` where any replicate ran, else the most frequent kind of failure.
        reason: why, for a failure; otherwise empty.
        emulated_memory_bytes: memory of the smaller device that was emulated; None for none.
        choices: what the model decided by itself, as in Measurement; None for nothing.
        speedup_over_reference: latency of the same cell as ``reference`` over this one's, both of one run; None where
            there is no such cell, and for ``reference`` itself.
        processes: replicates that ran, one process each: those that the numbers come from.
        latency_seconds: median over processes of each one's median host time of one batch.
        latency_low_seconds: lower end of its 95 % interval; None below 6 samples in one process, and for 2 processes.
        latency_high_seconds: its upper end.
        latency_interval: ``within_process``: order statistics of the samples of the only process, where other
            processes may differ by more; ``between_processes``: Student's t of the logarithms of the medians.
        latency_min_seconds: smallest of all samples; the 5th, 95th and 99th percentiles are theirs, too.
        timed_iterations: number of these samples.
        lag1_autocorrelation: of a process's latencies, median over processes.
        effective_samples: as many independent latencies would know as much, all processes together.
        gpu_seconds: median of the processes' medians; None on a CPU.
        seconds_per_iteration: the same, of the time a batch with the queue kept full.
        graph_seconds_per_iteration: the same, replayed as a CUDA graph; None where there was none.
        launch_bound: whether that was so in any process; None where no process knows.
        images_per_second: batch size over ``seconds_per_iteration``, never over latency.
        base_parameters: of the same model at 224 x 224, as papers report them, by formula; None without formulas, or
        with
            options that they do not hold with.
        parameters: as built for this resolution.
        model_bytes: as in Measurement.
        matmul_flops: of one iteration, as in OperationCount; None where it was not counted. So are the following two.
        achieved_flops_per_second: matrix products over ``seconds_per_iteration``; this and the following as in
            analyze/roofline.py.
        roofline_fraction: of the peaks that were measured on this device; None where there are none.
        datasheet_fraction: of those that its maker states; None where they are not known.
        peak_memory_bytes: largest of the processes; so are the other two.
        stage_seconds: time spent on each stage, all processes together.
        energy_status: None for a failed cell; this and all below as in EnergySummary, J/image with its 95 % interval.
        power_limit_watts: highest that held before timing; flagged if it changed.
        flags: those of all replicates; then what follows from the numbers: ``launch_bound``,
            ``latency_throughput_gap``, ``energy_throughput_gap``, ``processes_disagree``, ``power_limit_changed``,
            ``several_devices``, and e.g. ``oom_in_1_of_3``.
    """

    case: Case
    environment: str
    status: FailureKind | str
    reason: str
    emulated_memory_bytes: int | None = None
    choices: tuple[tuple[str, str], ...] | None = None
    speedup_over_reference: float | None = None
    processes: int | None = None
    latency_seconds: float | None = None
    latency_low_seconds: float | None = None
    latency_high_seconds: float | None = None
    latency_interval: IntervalKind | None = None
    latency_min_seconds: float | None = None
    latency_p5_seconds: float | None = None
    latency_p95_seconds: float | None = None
    latency_p99_seconds: float | None = None
    latency_max_seconds: float | None = None
    timed_iterations: int | None = None
    lag1_autocorrelation: float | None = None
    effective_samples: float | None = None
    gpu_seconds: float | None = None
    seconds_per_iteration: float | None = None
    graph_seconds_per_iteration: float | None = None
    launch_bound: bool | None = None
    images_per_second: float | None = None
    base_parameters: int | None = None
    parameters: int | None = None
    model_bytes: int | None = None
    peak_memory_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    nvml_process_bytes: int | None = None
    matmul_flops: int | None = None
    elementwise_flops: int | None = None
    operator_bytes: int | None = None
    achieved_flops_per_second: float | None = None
    achieved_bytes_per_second: float | None = None
    roofline_fraction: float | None = None
    datasheet_fraction: float | None = None
    stage_seconds: tuple[tuple[str, float], ...] | None = None
    energy_status: EnergyStatus | None = None
    energy_reason: str | None = None
    energy_detail: str | None = None
    energy_source: EnergySource | None = None
    energy_scope: EnergyScope | None = None
    energy_preset: str | None = None
    energy_trials: int | None = None
    joules_per_image: float | None = None
    joules_per_image_low: float | None = None
    joules_per_image_high: float | None = None
    net_joules_per_image: float | None = None
    average_power_watts: float | None = None
    idle_power_watts: float | None = None
    power_limit_watts: float | None = None
    power_capped_fraction: float | None = None
    window_images_per_second: float | None = None
    energy_systematic_relative: float | None = None
    energy_crosscheck_gap: float | None = None
    energy_change_per_trial: float | None = None
    temperature_low_celsius: int | None = None
    temperature_high_celsius: int | None = None
    flags: tuple[str, ...] = ()


def summarize(
    records: Iterable[Record],
    *,
    memory_limit_bytes: int | None = None,
    environments: Mapping[str, Environment] = MappingProxyType({}),
    peaks: MeasuredPeaks | None = None,
    further_peaks: Sequence[MeasuredPeaks] = (),
) -> list[SummaryRow]:
    """Return one row a cell, ordered by config, phase, batch size, resolution, and then as the records come.

    Replicates are pooled; records of one cell from two environments are not comparable and stay two rows, unless these
    are alike: then the row has the first one's name, and a flag if it comes from several. The other arguments are those
    of the run. A Fit has nothing to sum up and no row.
    """
    kinds = alike(environments)
    cells: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if isinstance(record.outcome, Fit):
            continue
        kind = kinds.get(record.environment, record.environment)
        cells.setdefault((record.case.cell, kind), []).append(record)
    measured = [*([] if peaks is None else [peaks]), *further_peaks]
    devices = {kind: measured_device(like(environments, kind), measured) for kind in dict.fromkeys(kinds.values())}
    peaks_by_kind = {kind: peaks_of(found, measured) for kind, found in devices.items()}
    rows = []
    for (_, environment), replicates in cells.items():
        row = replace(_row(replicates, environment), emulated_memory_bytes=memory_limit_bytes)
        rows.append(_with_fractions(row, devices.get(environment), peaks_by_kind.get(environment)))
    rows = with_speedups(rows)
    return sorted(rows, key=lambda row: (row.case.config, row.case.phase, row.case.batch_size, row.case.resolution))


def _row(records: Sequence[Record], environment: str) -> SummaryRow:
    case = replace(records[0].case, replicate=0)
    measured = [record.outcome for record in records if isinstance(record.outcome, Measurement)]
    failures = [record.outcome for record in records if isinstance(record.outcome, Failure)]
    # The first of those that are equally frequent: counters keep the order of arrival.
    kinds = Counter(failure.kind for failure in failures).most_common()
    if not measured:
        kind = kinds[0][0]
        reason = next(failure.message for failure in failures if failure.kind == kind)
        seen = tuple(dict.fromkeys(flag for failure in failures for flag in failure.flags))
        return SummaryRow(case=case, environment=environment, status=kind, reason=reason, flags=seen)
    latency = _median_of_medians([item.latencies_seconds for item in measured])
    seconds_per_iteration = _median_of_medians([item.seconds_per_iteration for item in measured])
    assert latency is not None
    assert seconds_per_iteration is not None
    low, high, interval = _latency_interval([item.latencies_seconds for item in measured], latency)
    pooled = np.array([seconds for item in measured for seconds in item.latencies_seconds])
    energy = pool_energy([item.energy for item in measured], case.batch_size)
    known = [item.launch_bound for item in measured if item.launch_bound is not None]
    derived = {
        "launch_bound": any(known),
        "latency_throughput_gap": abs(latency / seconds_per_iteration - 1) > LATENCY_THROUGHPUT_GAP,
        "energy_throughput_gap": energy.window_images_per_second is not None
        and abs(energy.window_images_per_second * seconds_per_iteration / case.batch_size - 1) > ENERGY_THROUGHPUT_GAP,
        "processes_disagree": _spread([item.latencies_seconds for item in measured]) > PROCESSES_DISAGREE,
        "power_limit_changed": len(_power_limits(measured)) > 1,
        "several_devices": len({record.environment for record in records if _is_measured(record)}) > 1,
    }
    flags = [flag for item in measured for flag in item.flags] + [flag for item in failures for flag in item.flags]
    flags += [flag for flag, holds in derived.items() if holds]
    flags += [f"{kind}_in_{count}_of_{len(records)}" for kind, count in kinds]
    return SummaryRow(
        case=case,
        environment=environment,
        status="ok",
        reason="",
        choices=tuple(measured[0].choices.items()) or None,
        processes=len(measured),
        latency_seconds=latency,
        latency_low_seconds=low,
        latency_high_seconds=high,
        latency_interval=interval,
        latency_min_seconds=float(pooled.min()),
        latency_p5_seconds=float(np.percentile(pooled, 5)),
        latency_p95_seconds=float(np.percentile(pooled, 95)),
        latency_p99_seconds=float(np.percentile(pooled, 99)) if len(pooled) >= MIN_P99_SAMPLES else None,
        latency_max_seconds=float(pooled.max()),
        timed_iterations=len(pooled),
        lag1_autocorrelation=statistics.median(lag1_autocorrelation(item.latencies_seconds) for item in measured),
        effective_samples=sum(effective_samples(item.latencies_seconds) for item in measured),
        gpu_seconds=_median_of_medians([item.gpu_seconds for item in measured]),
        seconds_per_iteration=seconds_per_iteration,
        graph_seconds_per_iteration=_median_of_medians([item.graph_seconds_per_iteration for item in measured]),
        launch_bound=any(known) if known else None,
        images_per_second=case.batch_size / seconds_per_iteration,
        base_parameters=_base_parameters(case),
        parameters=measured[0].parameters,
        model_bytes=measured[0].model_bytes,
        peak_memory_bytes=_largest(item.peak_memory_bytes for item in measured),
        peak_reserved_bytes=_largest(item.peak_reserved_bytes for item in measured),
        nvml_process_bytes=_largest(item.nvml_process_bytes for item in measured),
        **_rates(_operations(measured), seconds_per_iteration),
        energy_status=energy.status,
        energy_reason=energy.reason,
        energy_detail=energy.detail,
        energy_source=energy.source,
        energy_scope=energy.scope,
        energy_preset=energy.preset,
        energy_trials=energy.trials,
        joules_per_image=energy.joules_per_image,
        joules_per_image_low=energy.low_joules,
        joules_per_image_high=energy.high_joules,
        net_joules_per_image=energy.net_joules_per_image,
        average_power_watts=energy.average_power_watts,
        idle_power_watts=energy.idle_power_watts,
        power_limit_watts=max(_power_limits(measured), default=None),
        power_capped_fraction=energy.power_capped_fraction,
        window_images_per_second=energy.window_images_per_second,
        energy_systematic_relative=energy.systematic_relative,
        energy_crosscheck_gap=energy.crosscheck_gap,
        energy_change_per_trial=energy.change_per_trial,
        temperature_low_celsius=energy.temperature_low_celsius,
        temperature_high_celsius=energy.temperature_high_celsius,
        stage_seconds=_stage_seconds(measured),
        flags=tuple(dict.fromkeys(flags)),
    )


def _is_measured(record: Record) -> bool:
    return isinstance(record.outcome, Measurement)


def _operations(measured: Sequence[Measurement]) -> OperationCount | None:
    """What a process counted: all of them run the same iteration."""
    return next((item.operations for item in measured if item.operations is not None), None)


def _rates(operations: OperationCount | None, seconds_per_iteration: float) -> dict[str, Any]:
    """Fields of a row."""
    if operations is None:
        return {}
    return dataclasses.asdict(operations) | {
        "achieved_flops_per_second": achieved_flops_per_second(operations, seconds_per_iteration),
        "achieved_bytes_per_second": achieved_bytes_per_second(operations, seconds_per_iteration),
    }


def _with_fractions(row: SummaryRow, environment: Environment | None, peaks: MeasuredPeaks | None) -> SummaryRow:
    """Set the row against what its device can do, or one like it."""
    seconds, precision = row.seconds_per_iteration, row.case.precision
    if environment is None or seconds is None or row.matmul_flops is None:
        return row
    assert row.elementwise_flops is not None
    assert row.operator_bytes is not None
    operations = OperationCount(
        matmul_flops=row.matmul_flops, elementwise_flops=row.elementwise_flops, operator_bytes=row.operator_bytes
    )
    return replace(
        row,
        roofline_fraction=measured_fraction(operations, seconds, precision, peaks, environment),
        datasheet_fraction=datasheet_fraction(operations, seconds, precision, environment),
    )


def _median_of_medians(samples_of_processes: Sequence[Sequence[float]]) -> float | None:
    medians = [statistics.median(samples) for samples in samples_of_processes if samples]
    return statistics.median(medians) if medians else None


def _latency_interval(
    samples_of_processes: Sequence[Sequence[float]], latency: float
) -> tuple[float | None, float | None, IntervalKind | None]:
    """Return both ends of the 95 % interval of ``latency`` and what kind it is."""
    kind: IntervalKind
    if len(samples_of_processes) == 1:
        found = median_interval(samples_of_processes[0])
        if found is None:
            return None, None, None
        low, high, kind = found.low, found.high, "within_process"
    elif len(samples_of_processes) < MIN_PROCESSES:
        return None, None, None
    else:
        logs = [math.log(statistics.median(samples)) for samples in samples_of_processes]
        centre, half_width = statistics.fmean(logs), mean_half_width(logs)
        assert half_width is not None
        low, high, kind = math.exp(centre - half_width), math.exp(centre + half_width), "between_processes"
    # Neither interval is built around this very number: not from blocks, which leave the last samples out, nor from
    # logarithms, whose mean is not their median. One that did not hold it would only confuse.
    return min(low, latency), max(high, latency), kind


def _power_limits(measured: Iterable[Measurement]) -> set[float]:
    states = [item.state_before for item in measured]
    return {state.power_limit_watts for state in states if state is not None and state.power_limit_watts is not None}


def _spread(samples_of_processes: Sequence[Sequence[float]]) -> float:
    medians = [statistics.median(samples) for samples in samples_of_processes]
    return max(medians) / min(medians) - 1


def _stage_seconds(measured: Sequence[Measurement]) -> tuple[tuple[str, float], ...]:
    """Seconds spent on each stage, all processes together, in the order in which stages first come."""
    spent: Counter[str] = Counter()
    for item in measured:
        spent.update(item.stage_seconds)
    return tuple(spent.items())


def _largest(sizes: Iterable[int | None]) -> int | None:
    return max((size for size in sizes if size is not None), default=None)


def _base_parameters(case: Case) -> int | None:
    try:
        if not formulas_hold(case.mechanism, case.implementation, dict(case.options)):
            return None
        return vit_cost(case.mechanism, case.config, 224, implementation=case.implementation).base_parameters
    except KeyError:
        return None
