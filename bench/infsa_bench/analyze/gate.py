"""The two stages of a gate: suspect by what all cells show, decide by fresh values of the suspects. Pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from infsa_bench.analyze.baseline import Baseline, Cell
from infsa_bench.analyze.compare import Comparison, compare
from infsa_bench.analyze.decisions import (
    ALPHA,
    STORED_ALPHA,
    Change,
    Moments,
    confirm,
    detectable,
    moments,
    pooled,
    screened,
)
from infsa_bench.analyze.metrics import MIN_REPLICATES, NOISY_METRICS, MetricName, Sample, log_margin, samples
from infsa_bench.analyze.noise import FEWEST_CONFIRMING, TYPICAL_SUSPECTS, Noise
from infsa_bench.analyze.outcomes import status
from infsa_bench.analyze.verdict import Judged, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A cell that may be worse in a metric."""

    cell: str
    metric: MetricName


def measurable(base: Baseline) -> Baseline:
    """Return the base without cells that were left out: a gate measures what its baseline holds."""
    return replace(base, cells=tuple(cell for cell in base.cells if status(cell) != "skipped"))


def restricted(side: Baseline, cells: Iterable[str]) -> Baseline:
    """Return a side with some of its cells only."""
    wanted = set(cells)
    return replace(side, cells=tuple(cell for cell in side.cells if cell.name in wanted))


def suspects(base: Baseline, new: Baseline, noise: Noise | None = None) -> tuple[Suspect, ...]:
    """Return what may be worse: stage 1. A cell that failed needs no second look."""
    comparison = compare(base, new, noise)
    judged = {(item.cell, item.metric): item for item in comparison.judged}
    found: list[Suspect] = []
    for name, metric in NOISY_METRICS.items():
        tested = _testable(base, new, name, comparison)
        for (cell, of_metric), item in judged.items():
            # By its margin, or by the noise of the machine.
            if of_metric == name and cell not in tested and _is_suspicious(item):
                found.append(Suspect(cell=cell, metric=name))
        if tested:
            margins = np.array([log_margin(metric, *pair) for pair in tested.values()])
            flagged = screened(*_moments(tested.values()), margins)
            found += [Suspect(cell=cell, metric=name) for cell, is_one in zip(tested, flagged, strict=True) if is_one]
    return tuple(found)


def _testable(
    base: Baseline, new: Baseline, metric: MetricName, comparison: Comparison
) -> dict[str, tuple[Sample, Sample]]:
    """The samples of the cells that say themselves how sure they are, on both sides."""
    comparable = {item.cell for item in comparison.judged if item.metric == metric and item.verdict != "NOT_COMPARABLE"}
    theirs = {cell.name: cell for cell in new.cells}
    found = {}
    for cell in base.cells:
        if cell.name in comparable:
            pair = (samples(metric, cell), samples(metric, theirs[cell.name]))
            if not _is_exact(pair) and min(len(sample.values) for sample in pair) >= MIN_REPLICATES:
                found[cell.name] = pair
    return found


def _moments(pairs: Iterable[tuple[Sample, Sample]]) -> tuple[Moments, Moments]:
    pairs = list(pairs)
    base, new = (moments([pair[side].logarithms for pair in pairs]) for side in (0, 1))
    return base, new


def gate_detectable(
    base: Baseline, new: Baseline, comparison: Comparison, confirming: int, *, is_base_stored: bool = False
) -> dict[str, float]:
    """Return, by metric, the least worsening that either stage finds four times in five, in the typical cell."""
    found: dict[str, float] = {}
    for name, metric in NOISY_METRICS.items():
        tested = _testable(base, new, name, comparison)
        if not tested:
            continue
        before, after = _moments(tested.values())
        deviation = math.sqrt(float(np.median(pooled(before, after).variance)))
        margin = statistics.median(log_margin(metric, *pair) for pair in tested.values())
        counts = (float(np.median(before.count)), float(np.median(after.count)))
        again = counts[0] if is_base_stored else confirming
        alpha = STORED_ALPHA if is_base_stored else ALPHA
        second = (deviation, again + confirming - 2, again, confirming, margin)
        stages = (
            detectable(deviation, sum(counts) - 2, *counts, margin, tests=1),
            detectable(*second, tests=TYPICAL_SUSPECTS, alpha=alpha),
        )
        found[name] = max(stages)
    return found


def _is_exact(pair: tuple[Sample, Sample]) -> bool:
    return all(sample.is_exact for sample in pair)


def _is_suspicious(item: Judged) -> bool:
    if item.verdict == "REGRESSED":
        return True
    if item.p_value is None or item.ratio is None or item.p_value >= ALPHA:
        return False
    return item.ratio < 1 if NOISY_METRICS[item.metric].is_higher_better else item.ratio > 1


def decide(
    base: Baseline,
    new: Baseline,
    suspected: Sequence[Suspect],
    second_base: Baseline | None,
    second_new: Baseline | None,
    noise: Noise | None = None,
    *,
    is_base_stored: bool = False,
    confirming: int = FEWEST_CONFIRMING,
) -> Comparison:
    """Return the verdicts of a gate: those of the suspects come from the second sides alone.

    With ``is_base_stored`` the base was not measured again, and its stored values stand in both stages.
    ``confirming`` is the number of processes that suspects have.
    """
    first = compare(base, new, noise)
    first = replace(
        first,
        detectable=first.detectable | gate_detectable(base, new, first, confirming, is_base_stored=is_base_stored),
    )
    if not suspected or second_base is None or second_new is None:
        return replace(first, judged=tuple(_unless_suspected(item) for item in first.judged))
    cells = {suspect.cell for suspect in suspected}
    again = compare(restricted(second_base, cells), restricted(second_new, cells), noise)
    keys = {(suspect.cell, suspect.metric) for suspect in suspected}
    second = {(item.cell, item.metric): item for item in again.judged}
    decided = _confirm(suspected, second, second_base, second_new, STORED_ALPHA if is_base_stored else ALPHA)
    judged = []
    for item in first.judged:
        key = (item.cell, item.metric)
        judged.append(decided[key] if key in decided else _unless_suspected(item, is_suspected=key in keys))
    # A failure that only showed when it was measured again.
    failed = {item.cell: item for item in again.judged if item.metric == "status" and item.is_regression}
    judged = [item for item in judged if item.metric != "status" or item.cell not in failed or item.is_regression]
    known = {item.cell for item in judged if item.metric == "status"}
    judged += [item for cell, item in failed.items() if cell not in known]
    return replace(first, judged=tuple(judged))


def _unless_suspected(item: Judged, *, is_suspected: bool = False) -> Judged:
    """A single stage convicts nobody: not by a test."""
    if item.verdict == "REGRESSED" and item.q_value is not None:
        reason = "worse among all cells, but not suspected by itself"
        if is_suspected:
            reason = "suspected; could not be measured again in enough processes of both sides"
        return replace(item, verdict="AMBIGUOUS", reason=reason)
    return item


def _confirm(
    suspected: Sequence[Suspect],
    second: dict[tuple[str, MetricName], Judged],
    base: Baseline,
    new: Baseline,
    alpha: float,
) -> dict[tuple[str, MetricName], Judged]:
    mine, theirs = ({cell.name: cell for cell in side.cells} for side in (base, new))
    decided: dict[tuple[str, MetricName], Judged] = {}
    tested: list[Suspect] = []
    sides: list[tuple[Sample, Sample]] = []
    for suspect in suspected:
        key = (suspect.cell, suspect.metric)
        item = second.get(key)
        if item is None or item.ratio is None:
            # It failed, which its status says.
            continue
        pair = _pair(suspect, mine, theirs)
        if _is_exact(pair):
            decided[key] = replace(item, tags=(*item.tags, "measured again"))
        elif min(len(sample.values) for sample in pair) >= MIN_REPLICATES:
            tested.append(suspect)
            sides.append(pair)
        elif item.p_value is not None:
            # One of the sides has too few processes to say how sure it is; the machine's noise does.
            is_worse = item.p_value * len(suspected) < alpha
            verdict: Verdict = "REGRESSED" if is_worse and item.verdict == "REGRESSED" else "AMBIGUOUS"
            reason = "" if verdict == "REGRESSED" else "suspected, and not confirmed by fresh processes"
            decided[key] = replace(item, verdict=verdict, reason=reason, tags=(*item.tags, "measured again"))
    if not tested:
        return decided
    before, after = _moments(sides)
    margins = np.array(
        [log_margin(NOISY_METRICS[suspect.metric], *pair) for suspect, pair in zip(tested, sides, strict=True)]
    )
    result, adjusted = confirm(before, after, margins)
    for index, suspect in enumerate(tested):
        key = (suspect.cell, suspect.metric)
        decided[key] = _decided(
            second[key], result, index, adjusted=float(adjusted[index]), alpha=alpha, margin=float(margins[index])
        )
    return decided


def _pair(suspect: Suspect, mine: dict[str, Cell], theirs: dict[str, Cell]) -> tuple[Sample, Sample]:
    return samples(suspect.metric, mine[suspect.cell]), samples(suspect.metric, theirs[suspect.cell])


def _decided(item: Judged, result: Change, index: int, *, adjusted: float, alpha: float, margin: float) -> Judged:
    low, high = float(result.low[index]), float(result.high[index])
    verdict: Verdict = "AMBIGUOUS"
    reason = "suspected, and not confirmed by fresh processes"
    if adjusted < alpha:
        verdict, reason = "REGRESSED", ""
    elif -margin <= low and high <= margin:
        verdict = "SAME"
    is_higher_better = NOISY_METRICS[item.metric].is_higher_better
    assert item.ratio is not None
    ratios = [math.exp(-end if is_higher_better else end) for end in (low, high)]
    return replace(
        item,
        verdict=verdict,
        reason=reason,
        low=min(*ratios, item.ratio),
        high=max(*ratios, item.ratio),
        p_value=float(result.p_worse[index]),
        q_value=adjusted,
        tags=(*item.tags, "measured again"),
    )
