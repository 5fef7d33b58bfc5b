"""Which cases need not be tried because a smaller one of their kind ran out of memory already."""

from __future__ import annotations

import functools
from dataclasses import replace

from infsa_bench.record import MEMORY_KINDS, Failure, Record
from infsa_bench.spec import Case


class Dominance:
    """Remembers, for cases that differ in resolution only, the smallest that ran out of memory.

    Memory is not bound to grow with every step of the resolution, but over the steps of a sweep, a third of the pixels
    and more apart, no exception is known; ``maxres`` looks for one.
    """

    def __init__(self) -> None:
        self._smallest: dict[Case, Record] = {}

    def observe(self, record: Record) -> None:
        """Take in how a case ended."""
        if not (isinstance(record.outcome, Failure) and record.outcome.kind in MEMORY_KINDS):
            return
        family = resolution_family(record.case)
        known = self._smallest.get(family)
        if known is None or record.case.resolution < known.case.resolution:
            self._smallest[family] = record

    def dominating(self, case: Case) -> Record | None:
        """Return the smaller case that ran out of memory already, None where there is none."""
        known = self._smallest.get(resolution_family(case))
        return known if known is not None and known.case.resolution < case.resolution else None


@functools.cache
def resolution_family(case: Case) -> Case:
    """Return what cases share that differ in resolution and replicate only."""
    return replace(case, resolution=1, replicate=0, seed=0)
