"""What a figure shows of a run: its blocks, the lines in them, and one resolution where there is room for one only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.report.figures.styles import MOST_PANELS, MOST_SERIES, legible
from infsa_bench.report.table import blocks
from infsa_models.registry import MECHANISMS

USUAL_RESOLUTION = 1024
"""The paper's: where most of its own comparisons are made."""

_ORDER = {name: index for index, name in enumerate(MECHANISMS)}
_IMPLEMENTATIONS = {"reference": 0, "fast": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """What one line, or one row, shows: a mechanism in one implementation, with its options as they are printed."""

    mechanism: str
    implementation: str
    options: str

    @property
    def sort_key(self) -> tuple[int, str, int, str, str]:
        """The registry's order, then that of names; ``reference`` before ``fast``."""
        known = _ORDER.get(self.mechanism, len(_ORDER))
        return (
            known,
            self.mechanism,
            _IMPLEMENTATIONS.get(self.implementation, len(_IMPLEMENTATIONS)),
            self.implementation,
            self.options,
        )

    def label(self, *, with_implementation: bool) -> str:
        """Return its name for a legend, fit to be drawn."""
        name = f"{self.mechanism} ({self.implementation})" if with_implementation else self.mechanism
        return legible(name + self.options)


def series_of(row: SummaryRow) -> Series:
    """Return the series that a row belongs to."""
    options = "".join(f" {name}={value}" for name, value in row.case.options)
    return Series(mechanism=row.case.mechanism, implementation=row.case.implementation, options=options)


def by_series(rows: Iterable[SummaryRow]) -> dict[Series, list[SummaryRow]]:
    """Group rows by series, in the order of legends; no more of them than a figure can show."""
    grouped: dict[Series, list[SummaryRow]] = {}
    for row in rows:
        grouped.setdefault(series_of(row), []).append(row)
    return {series: grouped[series] for series in sorted(grouped, key=lambda series: series.sort_key)[:MOST_SERIES]}


def has_several_implementations(rows: Iterable[SummaryRow]) -> bool:
    """Tell whether names need their implementation beside them."""
    return len({row.case.implementation for row in rows}) > 1


def blocks_with(
    rows: Sequence[SummaryRow], has: Callable[[SummaryRow], bool] | None = None
) -> list[tuple[str, list[SummaryRow]]]:
    """Return the blocks in which any row has what a figure shows, all without ``has``.

    Where there are more than a figure has room for, the last title says how many are left out.
    """
    found = [(title, block) for title, block in blocks(rows) if has is None or any(map(has, block))]
    if len(found) > MOST_PANELS:
        title, block = found[MOST_PANELS - 1]
        found[MOST_PANELS - 1] = f"{title} (and {len(found) - MOST_PANELS} more blocks in the table)", block
    return found[:MOST_PANELS]


def chosen_resolution(rows: Iterable[SummaryRow], has: Callable[[SummaryRow], bool]) -> int | None:
    """Return 1024 where more than half of the series that have a number anywhere have one there.

    Else the largest of the resolutions at which most series have one; None where no row has one.
    """
    found = {(series_of(row), row.case.resolution) for row in rows if has(row)}
    counts = Counter(resolution for _, resolution in found)
    if not counts:
        return None
    if 2 * counts[USUAL_RESOLUTION] > len({series for series, _ in found}):
        return USUAL_RESOLUTION
    most = max(counts.values())
    return max(resolution for resolution, count in counts.items() if count == most)


def name_of(row: SummaryRow, rows: Iterable[SummaryRow]) -> str:
    """Return the name of a row among others, as legends and descriptions say it."""
    return series_of(row).label(with_implementation=has_several_implementations(rows))
