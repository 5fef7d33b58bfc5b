"""What finished cases tell of those to come: of the same model at other resolutions, or of all other models."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from infsa_bench.analyze.dominance import resolution_family
from infsa_bench.spec import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a finished case told: ``ratio`` is its real over its computed time."""

    tokens: int
    ratio: float
    setup_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Others:
    """What other models tell of one without findings: the median ratio and the longest setup of those nearest in size.

    Both are None where no other model has been seen.
    """

    ratio: float | None
    setup_seconds: float | None


class Experience:
    """Findings by model, kept so that what all of them tell is known without going through all of them again."""

    def __init__(self) -> None:
        self._of_family: dict[Case, list[Finding]] = {}
        self._neighbours: dict[str, dict[int, _Neighbours]] = {}

    def add(self, case: Case, finding: Finding) -> None:
        """Take in a finding; it replaces an earlier one of the same model at the same resolution."""
        family = resolution_family(case)
        known = self._of_family.setdefault(family, [])
        known[:] = sorted([item for item in known if item.tokens != finding.tokens] + [finding], key=_tokens)
        for neighbours in self._neighbours.get(case.execution, {}).values():
            neighbours.changed[family] = None

    def own(self, case: Case) -> Sequence[Finding]:
        """Return the findings of the same model, ascending in tokens."""
        return self._of_family.get(resolution_family(case), ())

    def others(self, case: Case) -> Others:
        """Return what every model of the same execution tells, each by its finding nearest in size."""
        by_tokens = self._neighbours.setdefault(case.execution, {})
        neighbours = by_tokens.get(case.tokens)
        if neighbours is None:
            neighbours = by_tokens[case.tokens] = _Neighbours(tokens=case.tokens)
            families = [family for family in self._of_family if family.execution == case.execution]
            neighbours.changed.update(dict.fromkeys(families))
        for family in neighbours.changed:
            neighbours.take(family, self._of_family[family])
        neighbours.changed.clear()
        return neighbours.summary()


@dataclass(slots=True, kw_only=True)
class _Neighbours:
    """For one size, the nearest finding of each model; ``changed`` are models with a finding not yet taken in."""

    tokens: int
    changed: dict[Case, None] = field(default_factory=dict)
    _nearest: dict[Case, Finding] = field(default_factory=dict)
    _ratios: list[float] = field(default_factory=list)
    _setups: list[float] = field(default_factory=list)

    def take(self, family: Case, findings: Sequence[Finding]) -> None:
        nearest = min(findings, key=lambda item: abs(math.log(item.tokens / self.tokens)))
        before = self._nearest.get(family)
        if nearest == before:
            return
        if before is not None:
            del self._ratios[bisect.bisect_left(self._ratios, before.ratio)]
            del self._setups[bisect.bisect_left(self._setups, before.setup_seconds)]
        self._nearest[family] = nearest
        bisect.insort(self._ratios, nearest.ratio)
        bisect.insort(self._setups, nearest.setup_seconds)

    def summary(self) -> Others:
        if not self._ratios:
            return Others(ratio=None, setup_seconds=None)
        middle, is_odd = divmod(len(self._ratios), 2)
        ratio = self._ratios[middle] if is_odd else (self._ratios[middle - 1] + self._ratios[middle]) / 2
        return Others(ratio=ratio, setup_seconds=self._setups[-1])


def _tokens(finding: Finding) -> int:
    return finding.tokens
