"""Measured exponents of time and memory beside the claimed ones, as a grid of text."""

from __future__ import annotations

from collections.abc import Iterable

from infsa_bench.analyze.scaling import (
    ASYMPTOTIC_SPAN,
    ASYMPTOTIC_TOKENS,
    FORMULA_TOLERANCE,
    MIN_POINTS,
    TOLERANCE,
    Exponent,
    Scaling,
    scaling,
)
from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.report.grid import Grid

COLUMNS = (
    "mechanism",
    "implementation",
    "model",
    "time: claimed",
    "latency",
    "95 % interval",
    "tokens",
    "FLOPs, by formula",
    "verdict",
    "memory",
    "95 % interval (memory)",
)
LEFT = frozenset({"mechanism", "implementation", "model", "verdict"})


def scaling_grid(rows: Iterable[SummaryRow]) -> Grid:
    """Return one line for each series of which an exponent could be fitted."""
    found = [each for each in scaling(rows) if each.latency is not None or each.memory is not None]
    return Grid(
        title="Exponent of the tokens with which latency and memory grow",
        columns=COLUMNS,
        rows=tuple(_cells(each) for each in found),
        left=LEFT,
    )


def describe_scaling() -> list[str]:
    """Return how exponents are found and judged."""
    return [
        f"Exponent: slope of log quantity against log tokens, over the {MIN_POINTS} or more sizes from a "
        f"{ASYMPTOTIC_SPAN}th of the most tokens on, launch-bound ones left out; 95 % interval: Student's, of it",
        "Memory: the peak above what the model itself takes",
        f"As claimed: the interval comes within {TOLERANCE:g} of the exponent of the stated complexity, and tells 1 "
        f"from 2. Range too short: it does not, or the series ends below {ASYMPTOTIC_TOKENS:,} tokens, or the FLOPs by "
        f"formula grow over it with an exponent more than {FORMULA_TOLERANCE:g} off",
    ]


def _cells(found: Scaling) -> tuple[str, ...]:
    case = found.case
    options = "".join(f" {name}={value}" for name, value in case.options)
    model = f"{case.config}, {case.phase}, {case.precision}, {case.execution}, batch {case.batch_size}"
    latency = found.latency
    return (
        case.mechanism,
        f"{case.implementation}{options}",
        model,
        "" if found.claimed is None else str(found.claimed),
        *_texts(latency),
        "" if latency is None else f"{latency.tokens_low:,} .. {latency.tokens_high:,}",
        "" if found.flops is None else f"{found.flops:.2f}",
        found.verdict,
        *_texts(found.memory),
    )


def _texts(found: Exponent | None) -> tuple[str, str]:
    """Return an exponent and its interval."""
    if found is None:
        return "", ""
    # Not -0.00.
    value, low, high = (f"{round(number, 2) + 0.0:.2f}" for number in (found.value, found.low, found.high))
    return value, f"{low} .. {high}"
