"""Records to summary rows: medians, intervals, throughput. Pure functions; nothing is measured here."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy import stats

from infsa_bench.record import Failure, FailureKind, Measurement, Record
from infsa_bench.spec import Case
from infsa_models.cost import vit_cost

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRow:
    """One case as tables and figures show it. Quantities of a failed case are None, never zero.

    Attributes:
        status: ``ok``, or the kind of failure.
        reason: why, for a failure; otherwise empty.
        latency_seconds: median host time of one iteration of one batch.
        latency_low_seconds: lower end of the 95 % interval of that median, within this one process; None below 6
            samples, which have none.
        latency_high_seconds: its upper end.
        timed_iterations: samples behind them.
        gpu_seconds: median time between two CUDA events around the iteration; None on a CPU.
        images_per_second: batch size over ``latency_seconds``: single batches, not a saturated queue.
        base_parameters: of the same model at 224 x 224, as papers report them, by formula; None without formulas.
        parameters: as built for this resolution.
        model_bytes: as in Measurement.
        peak_memory_bytes: as in Measurement.
        flags: as in Measurement.
    """

    case: Case
    environment: str
    status: FailureKind | str
    reason: str
    latency_seconds: float | None = None
    latency_low_seconds: float | None = None
    latency_high_seconds: float | None = None
    timed_iterations: int | None = None
    gpu_seconds: float | None = None
    images_per_second: float | None = None
    base_parameters: int | None = None
    parameters: int | None = None
    model_bytes: int | None = None
    peak_memory_bytes: int | None = None
    flags: tuple[str, ...] = ()


def summarize(records: Iterable[Record]) -> list[SummaryRow]:
    """Return one row a record, ordered by config, phase, batch size, resolution, and then as the records come."""
    rows = [_row(record) for record in records]
    return sorted(rows, key=lambda row: (row.case.config, row.case.phase, row.case.batch_size, row.case.resolution))


def _row(record: Record) -> SummaryRow:
    match record.outcome:
        case Failure() as failure:
            return SummaryRow(
                case=record.case, environment=record.environment, status=failure.kind, reason=failure.message
            )
        case Measurement() as measurement:
            median = statistics.median(measurement.latencies_seconds)
            interval = median_interval(measurement.latencies_seconds)
            return SummaryRow(
                case=record.case,
                environment=record.environment,
                status="ok",
                reason="",
                latency_seconds=median,
                latency_low_seconds=interval[0] if interval else None,
                latency_high_seconds=interval[1] if interval else None,
                timed_iterations=len(measurement.latencies_seconds),
                gpu_seconds=statistics.median(measurement.gpu_seconds) if measurement.gpu_seconds else None,
                images_per_second=record.case.batch_size / median,
                base_parameters=_base_parameters(record.case),
                parameters=measurement.parameters,
                model_bytes=measurement.model_bytes,
                peak_memory_bytes=measurement.peak_memory_bytes,
                flags=measurement.flags,
            )


def _base_parameters(case: Case) -> int | None:
    try:
        return vit_cost(case.mechanism, case.config, 224, implementation=case.implementation).base_parameters
    except KeyError:
        return None


def median_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """Return the order-statistic 95 % interval of the median, or None where the samples are too few (below 6).

    The largest rank l with ``1 - 2 P(X <= l - 1) >= 0.95``, X binomial(n, 1/2): the interval runs from the l-th
    smallest to the l-th largest sample. It assumes independent samples, not a distribution.
    """
    count = len(samples)
    # ppf gives the smallest k with P(X <= k) >= 0.025, so k is the largest l with P(X <= l - 1) < 0.025.
    rank = int(stats.binom.ppf((1 - CONFIDENCE) / 2, count, 0.5))
    if rank < 1:
        return None
    ordered = sorted(samples)
    return ordered[rank - 1], ordered[count - rank]
