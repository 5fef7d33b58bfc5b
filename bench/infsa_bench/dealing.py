"""Which cases of a plan a shard runs: the same on every machine, about equal in work."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from infsa_bench.analyze.predict import TIMED_PASSES, Predictor
from infsa_bench.energy_plan import EnergyPreset
from infsa_bench.protocol import Protocol
from infsa_bench.shard import Part
from infsa_bench.spec import Case

NOMINAL_FLOPS_PER_SECOND: Mapping[str, float] = {"cpu": 1e11, "cuda": 1e14}
"""By device type: in place of the rate of the machine at hand, which the others do not know. A cell has its least time
on a fast machine, too, so that the rate hardly matters for a GPU; on a CPU it is that of a few cores.
"""


def deal(
    cases: Sequence[Case], part: Part, protocol: Protocol, device_type: str, energy: EnergyPreset | None
) -> tuple[Case, ...]:
    """Return the cases of one part of a plan, in the plan's order.

    Cells are dealt longest first, each to the part with the least work so far: what the formulas predict at a nominal
    rate, so that nothing depends on where that is computed. Whatever is read side by side stays in one part, and so on
    one machine: the replicates of a cell, its implementations and its options.
    """
    # Replicates add the same to all parts; with more of them the cells stay where they are.
    once = replace(protocol, replicates=1)
    watched = energy if device_type == "cuda" else None
    rates = {"fp32": NOMINAL_FLOPS_PER_SECOND[device_type]}
    predictor = Predictor(rates, passes=TIMED_PASSES[device_type], energy=watched)
    seconds: dict[Case, float] = {}
    for case in cases:
        group = _group(case)
        seconds.setdefault(group, 0.0)
        if case.replicate == 0:
            seconds[group] += predictor.predict(case, once).seconds
    loads = [(0.0, index) for index in range(part.count)]
    dealt: dict[Case, int] = {}
    # Sorting keeps the plan's order among equals.
    for group in sorted(seconds, key=lambda group: -seconds[group]):
        load, index = heapq.heappop(loads)
        dealt[group] = index
        heapq.heappush(loads, (load + seconds[group], index))
    return tuple(case for case in cases if dealt[_group(case)] == part.index)


def shards_with_cases(case_ids: Iterable[str], count: int) -> int:
    """Return how many of ``count`` shards of a plan have cases; these are the first of them.

    Each group has some work, so that none gets a second one before all shards have one.
    """
    return min(count, len({_named_group(case_id) for case_id in case_ids}))


def _group(case: Case) -> Case:
    return replace(case, implementation="", options=(), replicate=0)


def _named_group(case_id: str) -> tuple[str, ...]:
    """Return the same as :func:`_group` where only the id of a case is known."""
    # A file may hold names of any form.
    model, *others = case_id.split("/")[1:8] or [case_id]
    return model.rpartition(".")[0], *others
