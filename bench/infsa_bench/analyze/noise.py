"""How much a machine's numbers scatter from process to process while nothing changes, and what that lets one find."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infsa_bench.analyze.baseline import Baseline
from infsa_bench.analyze.decisions import MIN_PRIOR_CELLS, MOST_DEGREES, Prior, Spread, detectable, fit_prior
from infsa_bench.analyze.metrics import MIN_REPLICATES, NOISY_METRICS, MetricName, samples
from infsa_bench.codec import decode, encode
from infsa_bench.errors import SchemaError, SpecError
from infsa_bench.files import read_file, write_text
from infsa_bench.machine import Environment
from infsa_bench.record import SCHEMA_VERSION

NOISE = "noise.json"
MAX_NOISE_BYTES = 64 * 2**20

FEWEST_CONFIRMING, MOST_CONFIRMING = 10, 30
"""Fresh processes a side in which a gate measures its suspects again."""

TARGET_EFFECT = 0.07
TYPICAL_SUSPECTS = 3
"""A gate is to find a slowdown of 7 % four times in five, among so many suspects."""

SCREENING_REPLICATES = 5
"""Fresh processes a side in which a gate measures all cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellNoise:
    """Standard deviation of a cell's logarithms between processes, and its degrees of freedom."""

    cell: str
    metric: MetricName
    deviation: float
    degrees: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledNoise:
    """What all cells together say about any one: a scaled inverse chi-squared prior of its variance."""

    metric: MetricName
    deviation: float
    degrees: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """A machine's noise, from one build in several processes.

    Attributes:
        confirming_replicates: processes a side that find a slowdown of 7 % with a probability of 80 %, 10 to 30.
        detectable_effect: slowdown that so many find with that probability, relative.
    """

    created_utc: str
    device_type: str
    device_name: str
    torch_threads: int
    source: str
    cells: tuple[CellNoise, ...]
    pooled: tuple[PooledNoise, ...]
    confirming_replicates: int
    detectable_effect: float
    schema_version: int = SCHEMA_VERSION

    def spread(self, metric: MetricName, cell: str) -> tuple[float, float] | None:
        """Return variance and degrees of freedom of one value; None where nothing is known."""
        own = next((found for found in self.cells if (found.cell, found.metric) == (cell, metric)), None)
        prior = next((found for found in self.pooled if found.metric == metric), None)
        parts = [(found.deviation**2, float(found.degrees)) for found in (own, prior) if found is not None]
        if own is not None and sum(found.metric == metric for found in self.cells) < MIN_PRIOR_CELLS:
            # So few cells have no distribution: theirs is only their mean, in which this one counts already.
            parts = parts[:1]
        degrees = sum(part for _, part in parts)
        if not degrees:
            return None
        return sum(variance * part for variance, part in parts) / degrees, min(degrees, MOST_DEGREES)

    def is_of(self, environment: Environment) -> bool:
        """Tell whether a machine is of this kind."""
        if (self.device_type, self.device_name) != (environment.device_type, environment.device_name):
            return False
        return self.device_type != "cpu" or self.torch_threads == environment.torch_threads


def noise_of(side: Baseline, created_utc: str) -> Noise:
    """Return the noise of a run in which one build was measured in several processes.

    Raises:
        SpecError: too few of them, or on several machines.
    """
    environments = list(side.environments.values())
    if len(environments) != 1:
        raise SpecError(f"{side.name} ran on {len(environments)} machines: it does not show the noise of one")
    cells: list[CellNoise] = []
    for metric in NOISY_METRICS:
        for cell in side.cells:
            sample = samples(metric, cell)
            if len(sample.values) < MIN_REPLICATES or sample.is_exact or not sample.is_finite:
                continue
            if sample.is_within_process:
                continue
            deviation = statistics.stdev(sample.logarithms)
            cells.append(CellNoise(cell=cell.name, metric=metric, deviation=deviation, degrees=len(sample.values) - 1))
    timed = [found for found in cells if found.metric == "latency"]
    if not timed:
        raise SpecError(f"{side.name} has no cell that ran in {MIN_REPLICATES} processes or more")
    replicates = confirming_replicates([found.deviation for found in timed])
    return Noise(
        created_utc=created_utc,
        device_type=environments[0].device_type,
        device_name=environments[0].device_name,
        torch_threads=environments[0].torch_threads,
        source=side.name,
        cells=tuple(cells),
        pooled=tuple(found for metric in NOISY_METRICS if (found := _pooled(metric, cells)) is not None),
        confirming_replicates=replicates,
        detectable_effect=_detectable_by_gate([found.deviation for found in timed], replicates),
    )


def _pooled(metric: MetricName, cells: Sequence[CellNoise]) -> PooledNoise | None:
    of_metric = [cell for cell in cells if cell.metric == metric]
    if not of_metric:
        return None
    variances = np.array([max(cell.deviation**2, 1e-8) for cell in of_metric])
    degrees = np.array([float(cell.degrees) for cell in of_metric])
    # Too few cells to tell how they scatter: their average, as sure as one cell is.
    prior = fit_prior(Spread(variance=variances, degrees=degrees)) or Prior(
        variance=float(variances.mean()), degrees=float(degrees.mean())
    )
    return PooledNoise(metric=metric, deviation=math.sqrt(prior.variance), degrees=prior.degrees)


def confirming_replicates(deviations: Sequence[float]) -> int:
    """Return the least number of processes, 10 to 30, that finds 7 % four times in five in the typical cell."""
    for count in range(FEWEST_CONFIRMING, MOST_CONFIRMING):
        if _detectable(deviations, count) <= TARGET_EFFECT:
            return count
    return MOST_CONFIRMING


def _detectable(deviations: Sequence[float], count: int) -> float:
    margin = math.log1p(NOISY_METRICS["latency"].margin)
    return detectable(statistics.median(deviations), 2 * count - 2, count, count, margin, tests=TYPICAL_SUSPECTS)


def _detectable_by_gate(deviations: Sequence[float], count: int) -> float:
    """Return what both stages find, each four times in five: the first may be the one that misses it."""
    margin = math.log1p(NOISY_METRICS["latency"].margin)
    fresh = SCREENING_REPLICATES
    first = detectable(statistics.median(deviations), 2 * fresh - 2, fresh, fresh, margin, tests=1)
    return max(first, _detectable(deviations, count))


def load_noise(file: Path) -> Noise:
    """Read a machine's noise.

    Raises:
        SpecError: there is none.
        SchemaError: it cannot be read.
    """
    try:
        return decode(Noise, read_file(file, MAX_NOISE_BYTES))
    except FileNotFoundError:
        raise SpecError(f"{file} does not exist; infsa-bench aa measures a machine's noise") from None
    except OSError as error:
        raise SchemaError(f"{file}: {error.strerror or error}") from None
    except SchemaError as error:
        raise SchemaError(f"{file}: {error}") from None


def write_noise(file: Path, noise: Noise) -> None:
    """Write a machine's noise, replacing one that is there in one step.

    Raises:
        SpecError: it cannot be written.
    """
    write_text(file, encode(noise, indent=1) + "\n")


def usable_noise(noise: Noise | None, sides: Mapping[str, Baseline]) -> str | None:
    """Return why a machine's noise does not concern the sides, None where it does or there is none."""
    for name, side in sides.items():
        if noise is not None and not all(noise.is_of(found) for found in side.environments.values()):
            return f"the noise is of {noise.device_name}, {name} is not"
    return None
