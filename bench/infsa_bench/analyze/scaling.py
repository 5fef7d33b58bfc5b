"""How time and memory grow with the number of tokens: measured exponents beside the claimed ones. Pure functions.

An exponent is the slope of log quantity against log tokens, by least squares over the asymptotic part of a series,
with Student's interval of the slope: scatter and curvature both widen it. A claim holds for large images only. What
a model's FLOPs, by formula, do over the very same sizes tells whether a series reaches that far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import special

from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.errors import SpecError
from infsa_bench.intervals import CONFIDENCE
from infsa_bench.spec import Case, resolve_mechanisms
from infsa_models.cost import vit_cost
from infsa_models.options import formulas_hold

ASYMPTOTIC_SPAN = 16
"""The asymptotic part: from a sixteenth of the most tokens on, a quarter of the longest side; three sizes at least."""

ASYMPTOTIC_TOKENS = 4097
"""A series that ends below 1024 x 1024 shows fixed costs as much as growth."""

MIN_POINTS = 3
TOLERANCE = 0.1
"""What an interval may miss a claimed exponent by: a mechanism runs in a ViT whose other parts are linear."""

FORMULA_TOLERANCE = 0.15
"""How far the exponent of the FLOPs may be from the claimed one for the range to count as asymptotic."""

EXPONENTS = (1, 2)

Verdict = Literal["as claimed", "differs", "range too short", "no claim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exponent:
    """A fitted slope with its 95 % interval, and the tokens of the first and the last of the points it is from."""

    value: float
    low: float
    high: float
    points: int
    tokens_low: int
    tokens_high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """One series: everything of a case but its resolution.

    Attributes:
        case: the smallest of the series.
        environment: where it was measured.
        latency: exponent of the latency; None with fewer than three points that are not launch-bound.
        memory: exponent of the peak memory above the model's own; None with fewer than three points.
        claimed: exponent of time that the mechanism's complexity states; None for one that states none.
        flops: exponent of the FLOPs by formula over the points of ``latency``; None without a formula.
        verdict: whether the latency's exponent is as claimed; ``range too short`` where it ends below 1024 x 1024,
            where the FLOPs are not asymptotic yet, or where the interval cannot tell a linear mechanism from a
            quadratic one.
    """

    case: Case
    environment: str
    latency: Exponent | None
    memory: Exponent | None
    claimed: int | None
    flops: float | None
    verdict: Verdict


def fit_exponent(tokens: Sequence[float], values: Sequence[float]) -> Exponent:
    """Return the slope of log ``values`` against log ``tokens``, with Student's 95 % interval of it.

    Raises:
        ValueError: fewer than three points, or fewer than two numbers of tokens.
    """
    x, y = np.log(np.asarray(tokens, dtype=float)), np.log(np.asarray(values, dtype=float))
    count = len(x)
    if count < MIN_POINTS or len(set(tokens)) < 2:
        raise ValueError(f"an exponent needs {MIN_POINTS} points, not {count}, and two sizes")
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread
    residuals = y - y.mean() - slope * centred
    quantile = float(special.stdtrit(count - 2, (1 + CONFIDENCE) / 2))
    half_width = quantile * math.sqrt(float(residuals @ residuals) / (count - 2) / spread)
    return Exponent(
        value=slope,
        low=slope - half_width,
        high=slope + half_width,
        points=count,
        tokens_low=int(min(tokens)),
        tokens_high=int(max(tokens)),
    )


def claimed_exponent(mechanism: str) -> int | None:
    """Return 2 for a mechanism whose stated complexity is quadratic in its tokens N, 1 for a linear one, else None."""
    try:
        complexity = resolve_mechanisms([mechanism])[mechanism].complexity
    except SpecError:
        return None
    if not complexity.startswith("O(N"):
        return None
    return 2 if "N^2" in complexity else 1


def scaling(rows: Iterable[SummaryRow]) -> list[Scaling]:
    """Return one entry a series, in the order in which series first come; those with a single size are left out."""
    series: dict[tuple[str, str], list[SummaryRow]] = {}
    for row in rows:
        key = replace(row.case, resolution=1).cell
        series.setdefault((key, row.environment), []).append(row)
    return [_scaling(items) for items in series.values() if len({row.case.resolution for row in items}) > 1]


def _scaling(rows: Sequence[SummaryRow]) -> Scaling:
    case = min((row.case for row in rows), key=lambda case: case.resolution)
    claimed = claimed_exponent(case.mechanism)
    timed = _asymptotic(rows, lambda row: None if row.launch_bound else row.latency_seconds)
    latency = _fit(timed)
    flops = None if latency is None else _flops_exponent(case, [tokens for tokens, _ in timed])
    return Scaling(
        case=case,
        environment=rows[0].environment,
        latency=latency,
        memory=_fit(_asymptotic(rows, _activation_bytes)),
        claimed=claimed,
        flops=flops,
        verdict=_verdict(latency, claimed, flops),
    )


def _activation_bytes(row: SummaryRow) -> float | None:
    """Return what an iteration needs beside its model, which would hide how that grows."""
    if row.peak_memory_bytes is None or row.model_bytes is None or row.peak_memory_bytes <= row.model_bytes:
        return None
    return row.peak_memory_bytes - row.model_bytes


def _asymptotic(rows: Sequence[SummaryRow], value: Callable[[SummaryRow], float | None]) -> list[tuple[int, float]]:
    """Return tokens and value of the points that have one, from a sixteenth of the most tokens on.

    Of a series with wider steps, the last three.
    """
    points = sorted((row.case.tokens, found) for row in rows if (found := value(row)) is not None)
    asymptotic = [(tokens, found) for tokens, found in points if tokens * ASYMPTOTIC_SPAN >= points[-1][0]]
    return asymptotic if len(asymptotic) >= MIN_POINTS else points[-MIN_POINTS:]


def _fit(points: Sequence[tuple[int, float]]) -> Exponent | None:
    if len(points) < MIN_POINTS:
        return None
    return fit_exponent([tokens for tokens, _ in points], [value for _, value in points])


def _flops_exponent(case: Case, tokens: Sequence[int]) -> float | None:
    """Return the exponent of the formula's FLOPs over these numbers of tokens."""
    if not formulas_hold(case.mechanism, case.implementation, dict(case.options)):
        return None
    sides = [round(math.sqrt(count - 1)) * 16 for count in tokens]
    try:
        costs = [vit_cost(case.mechanism, case.config, side, implementation=case.implementation) for side in sides]
    except (KeyError, ValueError):
        # A config or a size that no model has: a record may come from anywhere.
        return None
    return fit_exponent(tokens, [cost.matmul_flops for cost in costs]).value


def _verdict(latency: Exponent | None, claimed: int | None, flops: float | None) -> Verdict:
    if claimed is None:
        return "no claim"
    if latency is None or latency.tokens_high < ASYMPTOTIC_TOKENS:
        return "range too short"
    if flops is not None and abs(flops - claimed) > FORMULA_TOLERANCE:
        return "range too short"
    held = [each for each in EXPONENTS if latency.low - TOLERANCE <= each <= latency.high + TOLERANCE]
    if claimed not in held:
        return "differs"
    return "as claimed" if held == [claimed] else "range too short"
