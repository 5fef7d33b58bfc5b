"""What a comparison looks at: each metric's margin, where its values come from, and which way is worse."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from infsa_bench.analyze.baseline import Cell, Replicate

MetricName = Literal["status", "latency", "throughput", "energy", "peak_memory", "max_resolution"]
T = TypeVar("T")

METRICS: tuple[MetricName, ...] = get_args(MetricName)

TIMING_MARGIN = 0.03
ENERGY_MARGIN = 0.05
MEMORY_MARGIN = 0.005
MEMORY_MARGIN_BYTES = 2**20
"""By so much a metric may be worse without being a regression; of memory the larger of the two."""

MIN_REPLICATES = 3
"""Fewer on a side do not say themselves how sure they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric with noise. ``margin`` is a share; with ``is_higher_better`` the values are reciprocals of it."""

    name: MetricName
    unit: str
    margin: float
    is_higher_better: bool = False


NOISY_METRICS: Mapping[MetricName, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="latency", unit="s", margin=TIMING_MARGIN),
        Metric(name="throughput", unit="images/s", margin=TIMING_MARGIN, is_higher_better=True),
        Metric(name="energy", unit="J/image", margin=ENERGY_MARGIN),
        Metric(name="peak_memory", unit="B", margin=MEMORY_MARGIN),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The values of one metric in a cell, more being worse. ``is_exact``: the same in every process.

    ``is_within_process``: they are trials of too few processes to say how processes differ.
    """

    values: tuple[float, ...]
    is_exact: bool = False
    is_within_process: bool = False

    @property
    def is_finite(self) -> bool:
        """Whether each value has a logarithm."""
        return all(math.isfinite(value) and value > 0 for value in self.values)

    @property
    def logarithms(self) -> list[float]:
        """What is tested."""
        return [math.log(value) for value in self.values]


def samples(metric: MetricName, cell: Cell) -> Sample:
    """Return what each replicate of a cell says; a replicate that failed says nothing."""
    ran = [replicate for replicate in cell.replicates if replicate.failure is None]
    match metric:
        case "latency":
            return Sample(values=_known(replicate.latency_seconds for replicate in ran))
        case "throughput":
            batch_size = cell.case.batch_size
            seconds = [replicate.seconds_per_iteration for replicate in ran]
            return Sample(values=tuple(value / batch_size for value in seconds if value is not None))
        case "energy":
            return _energy(ran)
        case "peak_memory":
            # Zero: less than the system's view of a process shows.
            sizes = _known(replicate.peak_memory_bytes or None for replicate in ran)
            # What the allocator counts is the same in each process; what the system says a process holds is not.
            is_exact = bool(ran) and all(replicate.memory_source == "cuda_allocator" for replicate in ran)
            return Sample(values=tuple(map(float, sizes)), is_exact=is_exact)
    raise ValueError(f"{metric} has no samples")


def _known(values: Iterable[T | None]) -> tuple[T, ...]:
    return tuple(value for value in values if value is not None)


def _energy(ran: Sequence[Replicate]) -> Sample:
    """A value a process where there are enough of them, else one a trial."""
    measured = [replicate.joules_per_image for replicate in ran if replicate.joules_per_image]
    if len(measured) >= MIN_REPLICATES:
        return Sample(values=tuple(statistics.fmean(trials) for trials in measured))
    return Sample(values=tuple(value for trials in measured for value in trials), is_within_process=True)


def log_margin(metric: Metric, base: Sample, new: Sample) -> float:
    """Return the margin of logarithms."""
    margin = metric.margin
    if metric.name == "peak_memory":
        margin = max(margin, MEMORY_MARGIN_BYTES / min(map(statistics.median, (base.values, new.values))))
    return math.log1p(margin)
