"""How many times faster than ``reference`` an implementation is, from the rows of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from infsa_bench.spec import Case
from infsa_models.options import options_of

if TYPE_CHECKING:
    from infsa_bench.analyze.summary import SummaryRow

BASE = "reference"


def with_speedups(rows: Sequence[SummaryRow]) -> list[SummaryRow]:
    """Return the rows with ``speedup_over_reference`` where the same cell was measured as ``reference`` as well.

    An option that ``reference`` does not have (a kernel) is left out to find it. Only rows of one environment compare.
    """
    latencies = {(row.case, row.environment): row.latency_seconds for row in rows if row.case.implementation == BASE}

    def compared(row: SummaryRow) -> SummaryRow:
        base_latency = latencies.get((_base_case(row.case), row.environment))
        if row.case.implementation == BASE or row.latency_seconds is None or base_latency is None:
            return row
        return replace(row, speedup_over_reference=base_latency / row.latency_seconds)

    return [compared(row) for row in rows]


def _base_case(case: Case) -> Case:
    known = options_of(case.mechanism, BASE)
    options = tuple((name, value) for name, value in case.options if name in known)
    return replace(case, implementation=BASE, options=options)
