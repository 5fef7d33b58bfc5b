"""Changes that need no test: cells that fail now, or ran before, or are gone; the largest resolution that fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from infsa_bench.analyze.baseline import Baseline, Cell
from infsa_bench.analyze.dominance import resolution_family
from infsa_bench.analyze.verdict import Direction, Judged
from infsa_bench.spec import Case


def status(cell: Cell) -> str:
    """Return ``ok``, or the most frequent failure where any process failed; one left out counts if all were."""
    failures = [one.failure for one in cell.replicates if one.failure is not None and not one.is_unplanned]
    if failures:
        return max(sorted(Counter(failures).items()), key=lambda item: item[1])[0]
    return "ok" if any(one.failure is None for one in cell.replicates) else "skipped"


def failed_share(cell: Cell) -> float:
    """Return the share of a cell's processes that failed; those that were left out for want of time do not count."""
    tried = [one.failure is not None for one in cell.replicates if not one.is_unplanned]
    return sum(tried) / len(tried) if tried else 0.0


def status_changes(base: Mapping[str, Cell], new: Mapping[str, Cell]) -> list[Judged]:
    """Return an entry for each cell of the base that is gone, or did not run everywhere on both sides."""
    judged = []
    for name, cell in sorted(base.items()):
        before, after = status(cell), status(new[name]) if name in new else "missing"
        if before == after == "ok":
            continue
        share, new_share = failed_share(cell), failed_share(new[name]) if name in new else 1.0
        direction: Direction = "neither"
        if after == "missing" or before == "ok" or new_share > share:
            direction = "worse"
        elif after == "ok" or new_share < share:
            direction = "better"
        is_changed = before != after or share != new_share
        judged.append(
            Judged(
                cell=name,
                mechanism=_mechanism(cell.case),
                metric="status",
                verdict="STATUS_CHANGED" if is_changed else "SAME",
                direction=direction if is_changed else None,
                reason=f"{_counted(cell, before)} -> {_counted(new.get(name), after)}" if is_changed else before,
                base_count=len(cell.replicates),
                new_count=len(new[name].replicates) if name in new else 0,
            )
        )
    return judged


def _counted(cell: Cell | None, kind: str) -> str:
    if cell is None or kind == "ok":
        return kind
    count = sum(one.failure == kind for one in cell.replicates)
    return kind if count == len(cell.replicates) else f"{kind} in {count} of {len(cell.replicates)} processes"


def limit_changes(base: Baseline, new: Baseline) -> list[Judged]:
    """Return an entry for each series of cells that differ in resolution only, and for each search."""
    judged = []
    theirs = {cell.name: cell for cell in new.cells}
    series: dict[Case, list[Cell]] = {}
    for cell in base.cells:
        series.setdefault(resolution_family(cell.case), []).append(cell)
    for family, cells in sorted(series.items(), key=lambda item: item[0].cell):
        if len(cells) > 1:
            # Of the base's sizes only: that NEW went further says nothing about BASE.
            found = [cell for cell in cells if cell.name in theirs and status(theirs[cell.name]) == "ok"]
            judged.append(_limit(family, _largest(cell for cell in cells if status(cell) == "ok"), _largest(found)))
    searched = {resolution_family(limit.model): limit for limit in new.limits}
    for limit in sorted(base.limits, key=lambda limit: limit.model.cell):
        family = resolution_family(limit.model)
        other = searched.get(family)
        if other is None:
            missing = _limit(family, limit.largest_resolution, None)
            judged.append(replace(missing, verdict="STATUS_CHANGED", direction="worse", reason="missing"))
        elif other.step != limit.step:
            reason = f"searched in steps of {limit.step} and {other.step} pixels"
            missing = _limit(family, limit.largest_resolution, other.largest_resolution)
            judged.append(replace(missing, verdict="NOT_COMPARABLE", reason=reason))
        else:
            judged.append(_limit(family, limit.largest_resolution, other.largest_resolution))
    return judged


def _largest(cells: Iterable[Cell]) -> int | None:
    return max((cell.case.resolution for cell in cells), default=None)


def _limit(family: Case, before: int | None, after: int | None) -> Judged:
    least, most = before or 0, after or 0
    return Judged(
        cell=family.cell.replace("/r1/", "/r*/", 1),
        mechanism=_mechanism(family),
        metric="max_resolution",
        verdict="SAME" if least == most else "REGRESSED" if most < least else "IMPROVED",
        reason="" if before and after else f"{before or 'none'} -> {after or 'none'}",
        base_value=None if before is None else float(before),
        new_value=None if after is None else float(after),
        base_count=1,
        new_count=1,
        ratio=after / before if before and after else None,
    )


def _mechanism(case: Case) -> str:
    return f"{case.mechanism}.{case.implementation}"
