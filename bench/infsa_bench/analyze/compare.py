"""Two sides to verdicts: which cells became worse, which better, and which nobody can tell. Pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from infsa_bench.analyze.baseline import Baseline, Cell
from infsa_bench.analyze.comparability import Difference, differences, energy_mismatch
from infsa_bench.analyze.decisions import (
    ALPHA,
    Change,
    Spread,
    benjamini_hochberg,
    change,
    detectable,
    fit_prior,
    moderated,
    moments,
    pooled,
)
from infsa_bench.analyze.metrics import (
    MEMORY_MARGIN,
    MEMORY_MARGIN_BYTES,
    MIN_REPLICATES,
    NOISY_METRICS,
    TIMING_MARGIN,
    Metric,
    MetricName,
    Sample,
    log_margin,
    samples,
)
from infsa_bench.analyze.noise import Noise
from infsa_bench.analyze.outcomes import limit_changes, status_changes
from infsa_bench.analyze.verdict import Judged, Verdict

NOTABLE_FLAGS = ("shared", "throttled", "not_converged", "time_limited", "launch_bound", "fragmentation")
DETECTABLE_TARGET = 0.07
"""Data that would miss a slowdown of this size are said to be too noisy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """Geometric mean of the ratios of a mechanism's cells; for information, no verdict."""

    mechanism: str
    metric: MetricName
    ratio: float
    cells: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What follows from two sides.

    Attributes:
        judged: one entry for each cell and metric that either side has a number of, in a fixed order.
        added: cells that only the new side has.
        detectable: by metric, the least worsening (relative) that these data would have shown four times in five;
            only of metrics that were tested.
    """

    base: str
    new: str
    differences: tuple[Difference, ...]
    judged: tuple[Judged, ...]
    added: tuple[str, ...]
    means: tuple[Mean, ...]
    detectable: dict[str, float]

    @property
    def counts(self) -> dict[Verdict, int]:
        """Number of entries by verdict."""
        found: dict[Verdict, int] = {}
        for item in self.judged:
            found[item.verdict] = found.get(item.verdict, 0) + 1
        return found

    @property
    def is_comparable(self) -> bool:
        """Whether the two sides were measured alike."""
        return not any(difference.is_fatal for difference in self.differences)

    @property
    def regressions(self) -> tuple[Judged, ...]:
        """What became worse."""
        return tuple(item for item in self.judged if item.is_regression)

    @property
    def is_too_noisy(self) -> bool:
        """Whether a slowdown of 7 % would have been missed."""
        return any(self.detectable.get(metric, 0.0) > DETECTABLE_TARGET for metric in ("latency", "throughput"))

    @property
    def is_ambiguous(self) -> bool:
        """Whether something could not be told."""
        return self.is_too_noisy or any(item.verdict in ("AMBIGUOUS", "NOT_COMPARABLE") for item in self.judged)

    def exit_code(self, *, is_strict: bool, is_mismatch_allowed: bool = False) -> int:
        """Return 0 for no regression, 1 for one, 3 for sides that are not comparable, 4 for doubt if strict."""
        if not self.is_comparable and not is_mismatch_allowed:
            return 3
        if self.regressions:
            return 1
        return 4 if is_strict and self.is_ambiguous else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """A metric of a cell that both sides have."""

    base_cell: Cell
    new_cell: Cell
    base: Sample
    new: Sample
    margin: float


def compare(base: Baseline, new: Baseline, noise: Noise | None = None) -> Comparison:
    """Compare two sides cell by cell. ``noise`` is their machine's, for cells with too few replicates."""
    mine, theirs = ({cell.name: cell for cell in side.cells} for side in (base, new))
    common = [name for name in sorted(mine) if name in theirs]
    judged = status_changes(mine, theirs)
    floors: dict[str, float] = {}
    for name, metric in NOISY_METRICS.items():
        mismatch = energy_mismatch(base, new) if name == "energy" else None
        found, floor = _judge_metric(metric, [(mine[cell], theirs[cell]) for cell in common], mismatch, noise)
        judged += found
        if floor is not None:
            floors[name] = floor
    judged += limit_changes(base, new)
    return Comparison(
        base=base.name,
        new=new.name,
        differences=differences(base, new),
        judged=tuple(judged),
        added=tuple(name for name in sorted(theirs) if name not in mine),
        means=tuple(_means(judged)),
        detectable=floors,
    )


def _judge_metric(
    metric: Metric, cells: Sequence[tuple[Cell, Cell]], mismatch: str | None, noise: Noise | None
) -> tuple[list[Judged], float | None]:
    """Return the verdicts of one metric, and the least worsening that would have been found; None without a test."""
    judged: dict[str, Judged] = {}
    tested: dict[str, _Pair] = {}
    for base_cell, new_cell in cells:
        base, new = samples(metric.name, base_cell), samples(metric.name, new_cell)
        if not base.values and not new.values:
            continue
        name = base_cell.name
        reason = mismatch or _obstacle(metric, base_cell, new_cell, base, new)
        if reason is not None:
            judged[name] = _judged(metric, base_cell, base, new, "NOT_COMPARABLE", reason=reason)
            continue
        pair = _Pair(base_cell=base_cell, new_cell=new_cell, base=base, new=new, margin=log_margin(metric, base, new))
        if sorted(base.values) == sorted(new.values):
            judged[name] = _judged(metric, base_cell, base, new, "SAME", reason="the same samples", tags=_tags(pair))
        elif base.is_exact and new.is_exact:
            judged[name] = _judge_exact(metric, pair)
        else:
            tested[name] = pair
    found, floor = _judge_tested(metric, tested, noise)
    judged |= found
    return [judged[name] for name in sorted(judged)], floor


def _obstacle(metric: Metric, base_cell: Cell, new_cell: Cell, base: Sample, new: Sample) -> str | None:
    """Why two samples cannot be compared, None where they can."""
    if not base.values or not new.values:
        # Where a side did not run at all, its status says so.
        return f"not measured in {'BASE' if not base.values else 'NEW'}"
    if not base.is_finite or not new.is_finite:
        return "a value that is no positive number"
    if metric.name == "energy":
        sources = [
            {(one.energy_source, one.energy_scope) for one in cell.replicates if one.joules_per_image}
            for cell in (base_cell, new_cell)
        ]
        if len(sources[0] | sources[1]) > 1:
            return "energy from different sources"
    if metric.name == "peak_memory":
        kinds = {one.memory_source for cell in (base_cell, new_cell) for one in cell.replicates if one.failure is None}
        if len(kinds) > 1:
            return "memory from different sources"
    return None


def _judge_exact(metric: Metric, pair: _Pair) -> Judged:
    """Without a test: the same program takes the same memory."""
    before, after = max(pair.base.values), max(pair.new.values)
    verdict: Verdict = "SAME"
    if abs(after - before) > max(MEMORY_MARGIN * min(before, after), MEMORY_MARGIN_BYTES):
        verdict = "REGRESSED" if after > before else "IMPROVED"
    judged = _judged(metric, pair.base_cell, pair.base, pair.new, verdict, tags=_tags(pair))
    return replace(judged, base_value=before, new_value=after, ratio=after / before)


def _judge_tested(
    metric: Metric, pairs: Mapping[str, _Pair], noise: Noise | None
) -> tuple[dict[str, Judged], float | None]:
    own = {name: pair for name, pair in pairs.items() if _has_replicates(pair)}
    known: dict[str, tuple[float, float]] = {}
    if own:
        base, new = (moments([getattr(pair, side).logarithms for pair in own.values()]) for side in ("base", "new"))
        spread = pooled(base, new)
        spread = moderated(spread, fit_prior(spread))
        known = dict(zip(own, zip(spread.variance.tolist(), spread.degrees.tolist(), strict=True), strict=True))
    judged: dict[str, Judged] = {}
    for name, pair in pairs.items():
        borrowed = None if name in own or noise is None else noise.spread(metric.name, name)
        if borrowed is not None:
            known[name] = borrowed
        elif name not in own:
            counts = f"{len(pair.base.values)} and {len(pair.new.values)}"
            reason = f"{counts} replicates; {MIN_REPLICATES} are needed, or the machine's noise (infsa-bench aa)"
            judged[name] = _judged(
                metric, pair.base_cell, pair.base, pair.new, "AMBIGUOUS", reason=reason, tags=_tags(pair)
            )
    if not known:
        return judged, None
    names = list(known)
    spread = Spread(
        variance=np.array([known[name][0] for name in names]), degrees=np.array([known[name][1] for name in names])
    )
    base, new = (moments([getattr(pairs[name], side).logarithms for name in names]) for side in ("base", "new"))
    result = change(base, new, spread, np.array([pairs[name].margin for name in names]))
    q_worse, q_better = benjamini_hochberg(result.p_worse), benjamini_hochberg(result.p_better)
    for index, name in enumerate(names):
        judged[name] = _judge_change(metric, pairs[name], result, index, float(q_worse[index]), float(q_better[index]))
        if name not in own:
            judged[name] = replace(judged[name], tags=(*judged[name].tags, "noise of the machine"))
        if judged[name].p_value is not None and metric.name == "latency" and _is_clock(pairs[name], judged[name]):
            judged[name] = replace(judged[name], tags=(*judged[name].tags, "clock"))
    floor = detectable(
        math.sqrt(float(np.median(spread.variance))),
        float(np.median(spread.degrees)),
        float(np.median(base.count)),
        float(np.median(new.count)),
        statistics.median(pairs[name].margin for name in names),
        tests=len(names),
    )
    return judged, floor


def _has_replicates(pair: _Pair) -> bool:
    return min(len(pair.base.values), len(pair.new.values)) >= MIN_REPLICATES


def _judge_change(metric: Metric, pair: _Pair, result: Change, index: int, q_worse: float, q_better: float) -> Judged:
    low, high = float(result.low[index]), float(result.high[index])
    p_worse, p_better = float(result.p_worse[index]), float(result.p_better[index])
    reason = ""
    verdict: Verdict = "AMBIGUOUS"
    if q_worse < ALPHA:
        verdict = "REGRESSED"
    elif q_better < ALPHA:
        verdict = "IMPROVED"
    elif min(p_worse, p_better) < ALPHA:
        reason = f"{'worse' if p_worse < p_better else 'better'} by itself, but not among so many cells"
    elif -pair.margin <= low and high <= pair.margin:
        verdict = "SAME"
    else:
        reason = "the interval reaches beyond the margin"
    is_worse = p_worse <= p_better
    judged = _judged(metric, pair.base_cell, pair.base, pair.new, verdict, reason=reason, tags=_tags(pair))
    # The interval is of means, the ratio of medians: one that did not hold it would only confuse.
    assert judged.ratio is not None
    difference = -math.log(judged.ratio) if metric.is_higher_better else math.log(judged.ratio)
    ends = (min(low, difference), max(high, difference))
    ratios = [math.exp(-end if metric.is_higher_better else end) for end in ends]
    return replace(
        judged,
        low=min(ratios),
        high=max(ratios),
        p_value=p_worse if is_worse else p_better,
        q_value=q_worse if is_worse else q_better,
    )


def _judged(
    metric: Metric,
    cell: Cell,
    base: Sample,
    new: Sample,
    verdict: Verdict,
    *,
    reason: str = "",
    tags: tuple[str, ...] = (),
) -> Judged:
    """Return an entry with the medians of the replicates and their ratio."""
    before, after = _median(base, metric), _median(new, metric)
    return Judged(
        cell=cell.name,
        mechanism=f"{cell.case.mechanism}.{cell.case.implementation}",
        metric=metric.name,
        verdict=verdict,
        reason=reason,
        base_value=before,
        new_value=after,
        base_count=len(base.values),
        new_count=len(new.values),
        ratio=None if before is None or after is None else after / before,
        tags=tags,
    )


def _median(sample: Sample, metric: Metric) -> float | None:
    if not sample.values or not sample.is_finite:
        return None
    middle = statistics.median(sample.values)
    return 1 / middle if metric.is_higher_better else middle


def _tags(pair: _Pair) -> tuple[str, ...]:
    replicates = [*pair.base_cell.replicates, *pair.new_cell.replicates]
    tags = [flag for flag in NOTABLE_FLAGS if any(flag in one.flags for one in replicates)]
    chosen = [
        {name: value for one in cell.replicates for name, value in one.choices.items()}
        for cell in (pair.base_cell, pair.new_cell)
    ]
    for name in sorted(chosen[0].keys() | chosen[1].keys()):
        before, after = chosen[0].get(name), chosen[1].get(name)
        if before != after:
            tags.append(f"{name}: {before or 'none'} -> {after or 'none'}")
    if pair.base.is_within_process or pair.new.is_within_process:
        tags.append("within one process")
    return tuple(tags)


def _is_clock(pair: _Pair, judged: Judged) -> bool:
    """Whether the GPU ran slower, not the program: cycles are the same, seconds are more."""
    if judged.ratio is None or judged.ratio <= 1 + TIMING_MARGIN:
        return False
    cycles = []
    for cell in (pair.base_cell, pair.new_cell):
        found = [
            one.latency_seconds * one.sm_clock_mhz
            for one in cell.replicates
            if one.latency_seconds is not None and one.sm_clock_mhz
        ]
        if not found:
            return False
        cycles.append(statistics.median(found))
    return abs(math.log(cycles[1] / cycles[0])) <= math.log1p(TIMING_MARGIN)


def _means(judged: Sequence[Judged]) -> list[Mean]:
    found: dict[tuple[str, MetricName], list[float]] = {}
    for item in judged:
        if item.ratio is not None and item.verdict != "NOT_COMPARABLE" and item.metric in NOISY_METRICS:
            found.setdefault((item.mechanism, item.metric), []).append(math.log(item.ratio))
    return [
        Mean(mechanism=mechanism, metric=metric, ratio=math.exp(statistics.fmean(logs)), cells=len(logs))
        for (mechanism, metric), logs in sorted(found.items())
    ]
