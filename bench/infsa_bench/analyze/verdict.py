"""What is said about one metric of one cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from infsa_bench.analyze.metrics import MetricName

Verdict = Literal["REGRESSED", "IMPROVED", "SAME", "AMBIGUOUS", "NOT_COMPARABLE", "STATUS_CHANGED"]
Direction = Literal["worse", "better", "neither"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The verdict on one metric of one cell.

    Attributes:
        mechanism: with its implementation.
        reason: why it is what it is, where numbers do not say so.
        direction: of a changed status.
        base_value: median of the replicates, in SI units; None where there is none.
        base_count: number of values.
        ratio: of the new value to the base's; an interval of it where there is a test.
        p_value: one-sided, of the direction in which it moved.
        q_value: the same, adjusted for the number of cells.
        tags: what else a reader should know, e.g. ``clock``, ``shared``.
    """

    cell: str
    mechanism: str
    metric: MetricName
    verdict: Verdict
    reason: str = ""
    direction: Direction | None = None
    base_value: float | None = None
    new_value: float | None = None
    base_count: int = 0
    new_count: int = 0
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    q_value: float | None = None
    tags: tuple[str, ...] = ()

    @property
    def is_regression(self) -> bool:
        """Whether a gate fails for it."""
        return self.verdict == "REGRESSED" or (self.verdict == "STATUS_CHANGED" and self.direction == "worse")
