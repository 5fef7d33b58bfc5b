"""What the paper claims beside what a run shows: reproduced, not reproduced, or not testable. Pure functions.

Absolute numbers belong to the hardware. What carries over to other hardware are ratios, orders, exponents, and who
completes what. Every claim is looked at on both sides in the same way, so that either side may be the paper.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from infsa_bench.analyze.scaling import MIN_POINTS, claimed_exponent
from infsa_bench.analyze.sides import ABSENT, Estimate, Side, SideCell
from infsa_bench.paper import TABLE_RESOLUTION
from infsa_bench.record import MEMORY_KINDS
from infsa_models.registry import CONFIGS, MECHANISMS

ClaimKind = Literal[
    "speedup", "rank order", "completes", "completes in 40 GiB", "slower in inference", "exponent", "energy"
]
Verdict = Literal["reproduced", "not reproduced", "not testable"]

BASE, PROPOSED = "softmax", "infsa-linear"
LARGEST_RESOLUTION = 9216
PAPER_MEMORY_BYTES = 40 * 2**30
LEAST_MEMORY_BYTES = 39 * 2**30
"""What a card of 40 GB has at least: running out of less memory says nothing about it."""

RATIO_TOLERANCE = 0.1
"""A ratio is reproduced if its interval comes within 10 % of the other side's."""

MOST_UNCERTAIN = 0.25
"""A ratio that is not known to 25 % confirms and refutes nothing."""

MIN_TAU = 0.8
"""An order is reproduced from this Kendall tau on: of nine mechanisms, at most 3 of the 36 pairs are exchanged."""

MIN_RANKED = 5
"""Fewer mechanisms than these have no order worth the name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What one side shows of a claim: a number, or names of mechanisms, in the order of the claim."""

    estimate: Estimate | None = None
    names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One claim, looked at on two sides.

    Attributes:
        config: the model it is about.
        mechanism: the mechanism it is about; empty for all of them.
        theirs: None where that side does not show it; so is ``ours``.
        tau: for ``rank order``, Kendall's tau of the two orders.
        remark: why it is not testable, or what one must know of the verdict.
    """

    kind: ClaimKind
    config: str
    mechanism: str = ""
    theirs: Shown | None
    ours: Shown | None
    verdict: Verdict
    tau: float | None = None
    remark: str = ""


def claims(ours: Side, theirs: Side) -> list[Claim]:
    """Return every claim of both models, in the order in which they are read."""
    checks = (_speedup, _rank_order, _completes, _completes_in_40_gib, _slower_in_inference)
    found = [check(config, ours, theirs) for check in checks for config in CONFIGS]
    found += [_exponent(config, name, ours) for config in CONFIGS for name in MECHANISMS]
    return found + [_energy(config, ours, theirs) for config in CONFIGS]


def _speedup(config: str, ours: Side, theirs: Side) -> Claim:
    return _number_claim("speedup", config, ours, theirs, _speedup_of, "inference of both at 1024 x 1024")


def _energy(config: str, ours: Side, theirs: Side) -> Claim:
    claim = _number_claim("energy", config, ours, theirs, _energy_over_latency, "energy of both at 1024 x 1024")
    doubts = [_energy_doubt(config, side) for side in (ours, theirs)]
    return replace(claim, remark="; ".join(remark for remark in (claim.remark, *dict.fromkeys(doubts)) if remark))


def _energy_doubt(config: str, side: Side) -> str:
    """Return what one must know of a side's energies, nothing where they are measured."""
    if side.is_paper:
        return "published energy is assumed, latency times a constant: 1 by construction"
    kinds = {_inferred(side, config, name).energy_kind for name in (BASE, PROPOSED)}
    return "energy of low confidence" if "measured_low_confidence" in kinds else ""


def _number_claim(
    kind: ClaimKind, config: str, ours: Side, theirs: Side, number: Callable[[str, Side], Estimate | None], needs: str
) -> Claim:
    mine, other = number(config, ours), number(config, theirs)
    verdict: Verdict = "not testable"
    remark = f"needs {needs}"
    if mine is not None and other is not None:
        if max(_uncertainty(mine), _uncertainty(other)) > MOST_UNCERTAIN:
            remark = "the interval is too wide to tell"
        else:
            verdict = "reproduced" if _is_near(mine, other) else "not reproduced"
            remark = "" if ours.is_paper or mine.low is not None else "ours has no interval"
    return Claim(
        kind=kind,
        config=config,
        mechanism=PROPOSED,
        theirs=None if other is None else Shown(estimate=other),
        ours=None if mine is None else Shown(estimate=mine),
        verdict=verdict,
        remark=remark,
    )


def _ends(found: Estimate) -> tuple[float, float]:
    """Return both ends of the interval; without one, the number itself."""
    return (found.value if found.low is None else found.low, found.value if found.high is None else found.high)


def _uncertainty(found: Estimate) -> float:
    """Return half the width of the interval, relative to the number."""
    low, high = _ends(found)
    return (high - low) / 2 / found.value


def _is_near(mine: Estimate, other: Estimate) -> bool:
    (low, high), (other_low, other_high) = _ends(mine), _ends(other)
    return low <= (1 + RATIO_TOLERANCE) * other_high and other_low <= (1 + RATIO_TOLERANCE) * high


def ratio(numerator: Estimate, denominator: Estimate) -> Estimate:
    """Return the ratio of two estimates; its ends are those of both intervals, a printed number being exact."""
    value = numerator.value / denominator.value
    if numerator.low is None and denominator.low is None:
        return Estimate(value=value)
    (low, high), (other_low, other_high) = _ends(numerator), _ends(denominator)
    return Estimate(value=value, low=low / other_high, high=high / other_low)


def _inferred(side: Side, config: str, mechanism: str) -> SideCell:
    return side.cell(config, mechanism, "infer", TABLE_RESOLUTION)


def _speedup_of(config: str, side: Side) -> Estimate | None:
    base, proposed = (_inferred(side, config, name).latency_seconds for name in (BASE, PROPOSED))
    return None if base is None or proposed is None else ratio(base, proposed)


def _energy_over_latency(config: str, side: Side) -> Estimate | None:
    """Return the ratio of energies over that of latencies: 1 where energy says nothing that latency does not."""
    base, proposed = (_inferred(side, config, name) for name in (BASE, PROPOSED))
    speedup = _speedup_of(config, side)
    if base.joules_per_image is None or proposed.joules_per_image is None or speedup is None:
        return None
    return ratio(ratio(base.joules_per_image, proposed.joules_per_image), speedup)


def _rank_order(config: str, ours: Side, theirs: Side) -> Claim:
    orders = [_order(config, side) for side in (ours, theirs)]
    common = [name for name in orders[1] if name in orders[0]]
    mine, other = ([name for name in order if name in common] for order in orders)
    verdict: Verdict = "not testable"
    tau, remark = None, f"needs inference of at least {MIN_RANKED} mechanisms at 1024 x 1024 on both sides"
    if len(common) >= MIN_RANKED:
        tau = kendall_tau(mine, other)
        verdict = "reproduced" if tau >= MIN_TAU else "not reproduced"
        remark = "" if len(common) == len(MECHANISMS) else f"of {len(common)} mechanisms"
    return Claim(
        kind="rank order",
        config=config,
        theirs=Shown(names=tuple(other)) if tau is not None else None,
        ours=Shown(names=tuple(mine)) if tau is not None else None,
        verdict=verdict,
        tau=tau,
        remark=remark,
    )


def _order(config: str, side: Side) -> list[str]:
    """Return the mechanisms that have a latency, fastest first."""
    found = [(cell.latency_seconds, name) for name in MECHANISMS if (cell := _inferred(side, config, name))]
    return [name for _, name in sorted((latency.value, name) for latency, name in found if latency is not None)]


def kendall_tau(first: Sequence[str], second: Sequence[str]) -> float:
    """Return Kendall's tau of two orders of the same names without ties: 1 for equal ones, -1 for reversed ones."""
    place = {name: index for index, name in enumerate(second)}
    pairs = list(itertools.combinations(first, 2))
    return sum(1 if place[left] < place[right] else -1 for left, right in pairs) / len(pairs)


def _completes(config: str, ours: Side, theirs: Side) -> Claim:
    return _completion("completes", config, ours, theirs, _completed)


def _completes_in_40_gib(config: str, ours: Side, theirs: Side) -> Claim:
    return _completion("completes in 40 GiB", config, ours, theirs, _completed_in_40_gib)


def _completion(
    kind: ClaimKind, config: str, ours: Side, theirs: Side, completed: Callable[[str, str, Side], bool | None]
) -> Claim:
    """Compare who completes 9216 x 9216: one mechanism that differs refutes it, only all of them confirm it."""
    mine, other = ({name: completed(config, name, side) for name in MECHANISMS} for side in (ours, theirs))
    known = [name for name in MECHANISMS if mine[name] is not None and other[name] is not None]
    differing = [name for name in known if mine[name] != other[name]]
    unknown = [name for name in MECHANISMS if name not in known]
    verdict: Verdict = "not reproduced" if differing else "reproduced" if not unknown else "not testable"
    return Claim(
        kind=kind,
        config=config,
        theirs=_names(other),
        ours=_names(mine),
        verdict=verdict,
        remark=f"unknown for {mechanism_list(unknown)}" if unknown else "",
    )


def mechanism_list(names: Sequence[str]) -> str:
    """Return names of mechanisms in a row, or that they are all nine."""
    return "all" if len(names) == len(MECHANISMS) else ", ".join(names)


def _names(completed: dict[str, bool | None]) -> Shown | None:
    if all(value is None for value in completed.values()):
        return None
    return Shown(names=tuple(name for name, value in completed.items() if value))


def _completed(config: str, mechanism: str, side: Side) -> bool | None:
    """Tell whether 9216 x 9216 ran; None where it was not tried, or ended for another reason than want of memory.

    Nor does it say anything to run out of less memory than the paper's card has.
    """
    reach = side.reach.get((config, mechanism))
    if side.is_paper:
        return None if reach is None else reach.resolution == LARGEST_RESOLUTION
    cell = side.cell(config, mechanism, "infer", LARGEST_RESOLUTION)
    if cell.status == "ok":
        return True
    if side.available_bytes is None or side.available_bytes < LEAST_MEMORY_BYTES:
        return None
    ran_out = reach is not None and reach.next_status in MEMORY_KINDS
    return False if cell.status in MEMORY_KINDS or (ran_out and cell.status in ("skipped", ABSENT)) else None


def _completed_in_40_gib(config: str, mechanism: str, side: Side) -> bool | None:
    """Tell the same of a device of 40 GiB: emulated, or by what the process held on another one."""
    completed = _completed(config, mechanism, side)
    if side.is_paper or not completed or (side.available_bytes or PAPER_MEMORY_BYTES + 1) <= PAPER_MEMORY_BYTES:
        return completed
    held = side.cell(config, mechanism, "infer", LARGEST_RESOLUTION).device_memory_bytes
    return None if held is None else held <= PAPER_MEMORY_BYTES


def _slower_in_inference(config: str, ours: Side, theirs: Side) -> Claim:
    """Compare which mechanisms take longer to infer than to train: of one protocol and machine, none can."""
    mine, other = ({name: _is_slower(config, name, side) for name in MECHANISMS} for side in (ours, theirs))
    known = [name for name in MECHANISMS if mine[name] is not None and other[name] is not None]
    unknown = [name for name in MECHANISMS if name not in known]
    differing = [name for name in known if mine[name] != other[name]]
    verdict: Verdict = "not reproduced" if differing else "reproduced" if not unknown else "not testable"
    needs = "needs training and inference at 1024 x 1024, told apart by their intervals"
    return Claim(
        kind="slower in inference",
        config=config,
        theirs=_names(other),
        ours=_names(mine),
        verdict=verdict,
        remark=f"{needs}, of {mechanism_list(unknown)}" if unknown else "",
    )


def _is_slower(config: str, mechanism: str, side: Side) -> bool | None:
    """Tell whether inference takes longer than training; None without both, or where their intervals overlap."""
    infer, train = (
        side.cell(config, mechanism, phase, TABLE_RESOLUTION).latency_seconds for phase in ("infer", "train")
    )
    if infer is None or train is None:
        return None
    (low, high), (other_low, other_high) = _ends(infer), _ends(train)
    return True if low > other_high else False if high < other_low else None


def _exponent(config: str, mechanism: str, ours: Side) -> Claim:
    """Compare a mechanism's exponent of time with the one that its complexity states."""
    claimed, found = claimed_exponent(mechanism), ours.scaling.get((config, mechanism))
    assert claimed is not None
    verdict: Verdict = "not testable"
    remark = f"needs {MIN_POINTS} sizes that are not launch-bound"
    shown = None
    if found is not None and found.latency is not None:
        latency = found.latency
        shown = Shown(estimate=Estimate(value=latency.value, low=latency.low, high=latency.high))
        remark = f"{latency.points} sizes, {latency.tokens_low:,} to {latency.tokens_high:,} tokens"
        if found.verdict == "range too short":
            remark = f"range too short: {remark}"
            remark += "" if found.flops is None else f", over which the FLOPs grow with exponent {found.flops:.2f}"
        else:
            verdict = "reproduced" if found.verdict == "as claimed" else "not reproduced"
    return Claim(
        kind="exponent",
        config=config,
        mechanism=mechanism,
        theirs=Shown(estimate=Estimate(value=float(claimed))),
        ours=shown,
        verdict=verdict,
        remark=remark,
    )
