"""What is kept of findings says the same as going through all of them again."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from sample_records import make_case

from infsa_bench.analyze.dominance import resolution_family
from infsa_bench.analyze.experience import Experience, Finding, Others
from infsa_bench.spec import EXECUTIONS, LADDER, Case

CASES = [
    make_case(mechanism=mechanism, execution=execution, batch_size=batch_size, resolution=resolution)
    for mechanism in ("softmax", "agent", "soft")
    for execution in EXECUTIONS
    for batch_size in (1, 2)
    for resolution in LADDER
]


class Obvious:
    """Keeps every finding, and goes through all of them whenever it is asked."""

    def __init__(self) -> None:
        self.found: dict[Case, dict[int, Finding]] = {}

    def add(self, case: Case, finding: Finding) -> None:
        self.found.setdefault(resolution_family(case), {})[finding.tokens] = finding

    def own(self, case: Case) -> list[Finding]:
        found = self.found.get(resolution_family(case), {})
        return [found[tokens] for tokens in sorted(found)]

    def others(self, case: Case) -> Others:
        nearest = [
            min(
                sorted(found.values(), key=lambda item: item.tokens),
                key=lambda item: abs(math.log(item.tokens / case.tokens)),
            )
            for family, found in self.found.items()
            if family.execution == case.execution
        ]
        if not nearest:
            return Others(ratio=None, setup_seconds=None)
        return Others(
            ratio=statistics.median(item.ratio for item in nearest),
            setup_seconds=max(item.setup_seconds for item in nearest),
        )


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_in_whatever_order(seed: int) -> None:
    drawn = random.Random(seed)
    kept, obvious = Experience(), Obvious()
    for _ in range(150):
        case = drawn.choice(CASES)
        if drawn.random() < 0.5:
            # Few values, so that many are equal; the same case again now and then.
            finding = Finding(
                tokens=case.tokens, ratio=drawn.choice((0.5, 1.0, drawn.random())), setup_seconds=drawn.randrange(4)
            )
            kept.add(case, finding)
            obvious.add(case, finding)
        assert list(kept.own(case)) == obvious.own(case)
        assert kept.others(case) == obvious.others(case)
