"""What figures show, in words, for who does not see them: what they are of, and their main numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.report.figures.selection import chosen_resolution, name_of
from infsa_bench.report.figures.styles import LONGEST_TITLE, legible

Panels = Sequence[tuple[str, Sequence[SummaryRow]]]


def counted(count: int, noun: str) -> str:
    """Return e.g. ``1 panel`` or ``4 panels``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def describe_panels(
    subject: str,
    panels: Panels,
    *,
    value: Callable[[SummaryRow], float | None],
    shown: Callable[[float], str],
    kind: str = "lines",
) -> str:
    """Return what a figure of one panel a block is of, and the least and the largest value of its first panel."""
    mechanisms = len({row.case.mechanism for _, block in panels for row in block})
    text = f"{subject}: {counted(len(panels), 'panel')}, {kind} of {counted(mechanisms, 'mechanism')}."
    for title, block in panels:
        numbers = extremes(block, value, shown)
        if numbers:
            return f"{text} {legible(title, LONGEST_TITLE)}, {numbers}."
    return f"{text} No cell has a number."


def extremes(
    block: Sequence[SummaryRow], value: Callable[[SummaryRow], float | None], shown: Callable[[float], str]
) -> str:
    """Return which row has the least and which one the largest value at the resolution that says most; or nothing."""
    resolution = chosen_resolution(block, lambda row: value(row) is not None)
    if resolution is None:
        return ""
    found = [(number, row) for row in block if row.case.resolution == resolution and (number := value(row)) is not None]
    least, largest = min(found, key=lambda pair: pair[0]), max(found, key=lambda pair: pair[0])
    where = f"at {resolution} x {resolution} pixels"
    if len(found) == 1:
        return f"{where} {name_of(least[1], block)}: {shown(least[0])}"
    return (
        f"{where} from {shown(least[0])} ({name_of(least[1], block)}) to {shown(largest[0])} "
        f"({name_of(largest[1], block)})"
    )
