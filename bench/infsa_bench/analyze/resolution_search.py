"""Which resolution to probe next when looking for the largest that works, and what the probes so far say about it.

The path of probes is all the state there is, and their order does not matter: an interrupted search goes on from its
records. Four stages, each ending where the path has an answer: bracket the limit around the prediction, bisect down
to two neighbours on the grid, confirm both, look at a few sizes beyond. Pure functions; imports no torch.

Bracketing and bisecting take at most ``4 + log2(range / step)`` probes, confirming the two neighbours 4, looking beyond
them 3. Each size that proves unsteady costs at most ``log2(range / step) + 3`` more, until the search gives up at the
fourth; each size whose first probe ends as ``other`` one more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from infsa_bench.errors import SpecError

ProbeOutcome = Literal["ok", "memory", "index", "time", "other"]
"""``index``: a 32-bit limit of a kernel. ``time``: did not end in time. ``other``: a crash, a signal from outside, an
error, unsupported: it may have nothing to do with the size, so the first at each size is forgiven and tried again.
"""

FailureOutcome = Literal["memory", "index", "time", "other"]

PROBES_TO_CONFIRM = 3
"""Probes that must agree, the one that found the size included."""

MAX_UNSTEADY = 4
"""With so many sizes whose probes disagree, something else than the size decides, and the search gives up."""

FIRST_PROBES = (0.9, 1.1, 0.6, 1.5)
"""Sizes relative to the predicted limit. In this order those are probed whose outcome does not follow from the ones
before: the first two bracket a good prediction, the others one that is off by 30 %, without an image much too large.
"""

BEYOND = 1.25
"""Size relative to the first failure at which to look whether it works again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One model built at ``resolution`` (image side, pixels) and run once. The search does not read ``peak_bytes``."""

    resolution: int
    outcome: ProbeOutcome
    peak_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NextProbe:
    """What to probe next. ``fresh``: the size was probed before, and only a new process makes this another answer."""

    resolution: int
    fresh: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """Where to search: the multiples of ``step`` from ``smallest`` to ``largest``, all in pixels.

    An end that is no multiple itself is left out. ``predicted`` is the expected limit, which may lie outside or be far
    off; None where there is none.
    """

    smallest: int
    largest: int
    step: int
    predicted: int | None = None

    def __post_init__(self) -> None:
        if self.step < 1 or self.smallest < 1:
            raise SpecError(f"step and smallest resolution must be positive, not {self.step} and {self.smallest}")
        if not self.resolutions:
            raise SpecError(f"no multiple of {self.step} lies between {self.smallest} and {self.largest} pixels")

    @property
    def resolutions(self) -> range:
        """The grid, in ascending order."""
        first = math.ceil(self.smallest / self.step) * self.step
        return range(first, self.largest + 1, self.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What is known about the largest resolution that works.

    ``largest_ok`` is the largest below the first failure found, ``smallest_failing``; None where there is none. It is
    no claim about all sizes: smaller ones were mostly not probed, and of the larger ones only a few. ``fits_again``
    are those that worked all the same, ``unsteady`` the sizes that worked in some probes and not in others; they count
    as failing. ``limit`` is how ``smallest_failing`` failed most often; of equally frequent ways the first in the order
    of :data:`FailureOutcome`.

    ``is_confirmed``: the two are neighbours on the grid, or the end of the grid takes the place of one, and three
    probes of each agree. An unsteady ``smallest_failing`` is not confirmed, even where ``largest_ok`` always worked.
    """

    largest_ok: int | None
    smallest_failing: int | None
    limit: FailureOutcome | None
    unsteady: tuple[int, ...]
    fits_again: tuple[int, ...]
    is_confirmed: bool
    is_finished: bool
    reached_largest: bool

    @property
    def is_monotone(self) -> bool:
        """Whether no size above the first failure was seen to work."""
        return not self.fits_again


def next_probe(space: SearchSpace, path: Sequence[Probe]) -> NextProbe | None:
    """Return which resolution to probe after those of ``path``; None when the search has ended."""
    resolution = _next_resolution(space, _weigh(space, path))
    if resolution is None:
        return None
    return NextProbe(resolution=resolution, fresh=any(probe.resolution == resolution for probe in path))


def search_result(space: SearchSpace, path: Sequence[Probe]) -> SearchResult:
    """Return what the probes of ``path`` say, whether or not the search has ended."""
    evidence = _weigh(space, path)
    failing = evidence.first_failing
    return SearchResult(
        largest_ok=evidence.last_ok,
        smallest_failing=failing,
        limit=_limit(evidence),
        unsteady=evidence.unsteady,
        fits_again=tuple(size for size in evidence.ok if failing is not None and size > failing),
        is_confirmed=evidence.high - evidence.low == space.step and all(map(evidence.agrees, evidence.ends)),
        is_finished=_next_resolution(space, evidence) is None,
        reached_largest=evidence.last_ok == space.resolutions[-1],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Evidence:
    """What each probed size showed, and what follows. ``low`` and ``high`` are the last success and the first failure,
    or one step outside the grid where there is none.
    """

    outcomes: dict[int, list[ProbeOutcome]]
    ok: tuple[int, ...]
    unsteady: tuple[int, ...]
    last_ok: int | None
    first_failing: int | None
    low: int
    high: int

    @property
    def ends(self) -> list[int]:
        return [size for size in (self.last_ok, self.first_failing) if size is not None]

    def agrees(self, size: int) -> bool:
        """Tell whether enough probes of a size are all successes, or all failures of whatever kind."""
        return len(self.outcomes[size]) >= PROBES_TO_CONFIRM and size not in self.unsteady


def _weigh(space: SearchSpace, path: Sequence[Probe]) -> _Evidence:
    grid = space.resolutions
    outcomes: dict[int, list[ProbeOutcome]] = {}
    forgiven = set()
    for probe in path:
        size = probe.resolution
        if size not in grid:
            raise SpecError(f"a probe at {size} is not on this search's grid: {grid[0]} to {grid[-1]} by {grid.step}")
        if probe.outcome == "other" and size not in forgiven:
            # Without it the evidence is what it was before, so the search asks for the same probe again.
            forgiven.add(size)
        else:
            outcomes.setdefault(size, []).append(probe.outcome)
    ok = tuple(size for size in sorted(outcomes) if set(outcomes[size]) == {"ok"})
    failing = [size for size in sorted(outcomes) if size not in ok]
    high = failing[0] if failing else grid[-1] + grid.step
    last_ok = max((size for size in ok if size < high), default=None)
    return _Evidence(
        outcomes=outcomes,
        ok=ok,
        unsteady=tuple(size for size in failing if "ok" in outcomes[size]),
        last_ok=last_ok,
        first_failing=failing[0] if failing else None,
        low=grid[0] - grid.step if last_ok is None else last_ok,
        high=high,
    )


def _limit(evidence: _Evidence) -> FailureOutcome | None:
    if evidence.first_failing is None:
        return None
    kinds: tuple[FailureOutcome, ...] = get_args(FailureOutcome)
    return max(kinds, key=evidence.outcomes[evidence.first_failing].count)


def _next_resolution(space: SearchSpace, evidence: _Evidence) -> int | None:
    if len(evidence.unsteady) >= MAX_UNSTEADY:
        return None
    if evidence.high - evidence.low > space.step:
        return _inside(space, evidence)
    # The success comes first: should it fail now, it is the first failure from then on.
    for size in evidence.ends:
        if size not in evidence.unsteady and not evidence.agrees(size):
            return size
    # Beyond a limit of time, each look would take all the time that is allowed.
    if _limit(evidence) == "time":
        return None
    beyond = (evidence.high + space.step, evidence.high + 2 * space.step, _on_grid(space, BEYOND * evidence.high))
    return next((size for size in beyond if size in space.resolutions and size not in evidence.outcomes), None)


def _inside(space: SearchSpace, evidence: _Evidence) -> int:
    """Return the next size between two that are no neighbours: around the prediction, then by bisection."""
    if space.predicted is not None:
        for factor in FIRST_PROBES:
            size = _on_grid(space, factor * space.predicted)
            if evidence.low < size < evidence.high:
                return size
    return _bisect(space, evidence)


def _bisect(space: SearchSpace, evidence: _Evidence) -> int:
    """Return the geometric mean of the bracket, or the next size that keeps to the budget.

    Where the ends are far apart their middle would be large, and slow to probe.
    """
    low, high = (end // space.step for end in (evidence.low, evidence.high))
    # Of 4 + log2(range / step) probes, how many are left: enough for a bracket of up to 2 ** left steps.
    left = 3 + (len(space.resolutions) - 1).bit_length() - len(evidence.outcomes)
    reach = max((high - low + 1) // 2, 1 << max(0, left - 1))
    return max(round(math.sqrt(max(low, 1) * high)), high - reach) * space.step


def _on_grid(space: SearchSpace, pixels: float) -> int:
    """Return the size of the grid nearest to so many pixels."""
    nearest = round(pixels / space.step) * space.step
    return min(max(nearest, space.resolutions[0]), space.resolutions[-1])
