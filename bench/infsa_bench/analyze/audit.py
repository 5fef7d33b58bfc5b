"""Whether a table of results agrees with itself. Pure functions; nothing is measured again.

A number that follows from another one in its row says nothing of its own, and a forward pass cannot take longer than
the same pass followed by its backward pass. A printed number stands for every value that rounds to it, so each row
admits an interval of constants, and one constant explains all rows whose intervals have a point in common.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from infsa_bench.spec import Phase

Check = Literal["constant power", "throughput", "training and inference", "power limit", "idle power"]
Interval = tuple[float, float]

MIN_CELLS = 5
MIN_LATENCY_SPAN = 3.0
# Only cells that are printed this finely tell one constant from another: where "1 J" may be anything from 0.5 to
# 1.5 J, every honestly measured table has a constant power that fits it.
FINE = 0.0025
# Of numbers with all their digits: an energy this near to a constant power, a throughput this near to the reciprocal.
ENERGY_TOLERANCE = 0.0005
# Computed, not measured: on a CPU a loop costs microseconds, which leaves an honest iteration of minutes 1e-8 apart.
THROUGHPUT_TOLERANCE = 1e-12
SLACK = 1e-9  # Errors of the arithmetic here, far below every tolerance.
RECIPROCAL_SHARE = 0.95  # One misprint in a table does not make its throughput a measured one.
POWER_TOLERANCE = 0.02  # Power sensors and the regulators of boards are not more exact.
SHOWN = 10
QUANTITIES = ("images_per_second", "joules_per_image", "power_limit_watts", "idle_watts", "average_power_watts")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One cell of a table. None stands for what the table does not say.

    Attributes:
        label: what findings call the cell, together with its phase.
        pair: equal for the inference and the training of one cell.
        latency_half_unit_seconds: half a unit of the last printed digit; None for a number with all its digits.
        images_per_second_half_unit, joules_per_image_half_unit: likewise.
        window_seconds: time a batch while energy was measured, where that was not the latency.
        power_capped_fraction: share of the power samples in which the board held its clocks back for power.
    """

    label: str
    phase: Phase
    pair: str
    config: str
    batch_size: int
    latency_seconds: float
    images_per_second: float | None = None
    joules_per_image: float | None = None
    latency_half_unit_seconds: float | None = None
    images_per_second_half_unit: float | None = None
    joules_per_image_half_unit: float | None = None
    window_seconds: float | None = None
    power_limit_watts: float | None = None
    idle_watts: float | None = None
    average_power_watts: float | None = None
    power_capped_fraction: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be a result."""
        if self.batch_size < 1:
            raise ValueError(f"a batch size of {self.batch_size} is not possible")
        if not (self.latency_half_unit_seconds or 0.0) < self.latency_seconds < math.inf:
            raise ValueError(f"a latency of {self.latency_seconds:g} s is not possible")
        for name in QUANTITIES:
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} of {value:g} is not possible")
        if not 0 <= (self.power_capped_fraction or 0.0) <= 1:
            raise ValueError(f"power_capped_fraction of {self.power_capped_fraction:g} is not possible")

    @property
    def is_power_capped(self) -> bool:
        """Whether the board itself held this cell at its power limit: its power is then constant by nature."""
        known = (self.power_capped_fraction, self.average_power_watts, self.power_limit_watts)
        fraction, power, limit = (math.nan if value is None else value for value in known)
        return fraction > 0.5 and abs(power - limit) <= POWER_TOLERANCE * limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check says about some rows. Information explains a number; a fault is one that cannot stand as it is."""

    kind: Check
    severity: Literal["fault", "information"]
    message: str
    rows: tuple[AuditRow, ...]


def run_checks(rows: Iterable[AuditRow]) -> dict[Check, list[Finding] | str]:
    """Return the findings of each check, or in one line why it could not be made."""
    rows = list(rows)
    return {
        "constant power": _constant_power(rows),
        "throughput": _throughput(rows),
        "training and inference": _training_and_inference(rows),
        "power limit": _power_bound(rows, "power limit"),
        "idle power": _power_bound(rows, "idle power"),
    }


def _constant_power(rows: Sequence[AuditRow]) -> list[Finding] | str:
    rows = [row for row in rows if row.joules_per_image is not None]
    free = [row for row in rows if not row.is_power_capped]
    too_little = _too_little(free, _watts_over_latency, "energies", MIN_LATENCY_SPAN)
    findings = []
    if capped := tuple(row for row in rows if row.is_power_capped):
        limits = ", ".join(f"{limit:g} W" for limit in sorted({row.power_limit_watts or 0.0 for row in capped}))
        message = f"{len(capped)} of {len(rows)} energies were measured at the power limit ({limits}), where power is "
        message += "nearly constant" + (f"; the others cannot be judged: {too_little}" if free and too_little else "")
        findings.append(Finding(kind="constant power", severity="information", message=message, rows=capped))
    for words, group in _groups(free):
        for time, watts in (("latency", _watts_over_latency), ("the time in its window", _watts)):
            low, high = (max(watts(row)[0] for row in group), min(watts(row)[1] for row in group))
            if low > high * (1 + SLACK) or _too_little(group, watts, "energies", MIN_LATENCY_SPAN):
                continue
            message = f"all {len(group)} energies {words} equal {time} x {(low + high) / 2:.1f} W "
            message += f"(any constant from {low:.3f} to {high:.3f} W fits): as if assumed, not measured"
            findings.append(Finding(kind="constant power", severity="fault", message=message, rows=tuple(group)))
            if len(group) == len(free):
                return findings
            break
    return findings or too_little or []


def _throughput(rows: Sequence[AuditRow]) -> list[Finding] | str:
    rows = [row for row in rows if row.images_per_second is not None]
    if too_little := _too_little(rows, _images_per_batch, "throughputs"):
        return too_little
    findings = []
    for words, group in _groups(rows):
        ranges = [(row, *_images_per_batch(row)) for row in group]
        equal = [row for row, low, high in ranges if low <= 1 + SLACK and high >= 1 - SLACK]
        if len(equal) < RECIPROCAL_SHARE * len(group) or _too_little(equal, _images_per_batch, "throughputs"):
            continue
        others = _listed(
            f"{row.label} {row.phase}: {row.images_per_second:.6g}, not {row.batch_size / row.latency_seconds:.6g}"
            for row in group
            if row not in equal
        )
        message = f"in {len(equal)} of {len(group)} cells {words}" + (f" (except {others})" if others else "")
        message = f"throughput is the reciprocal of latency (x batch size) {message}: it adds nothing to latency"
        findings.append(Finding(kind="throughput", severity="fault", message=message, rows=tuple(equal)))
        if len(group) == len(rows):
            break
    return findings


def _training_and_inference(rows: Sequence[AuditRow]) -> list[Finding] | str:
    by_pair: dict[str, dict[Phase, list[AuditRow]]] = {}
    for row in rows:
        by_pair.setdefault(row.pair, {}).setdefault(row.phase, []).append(row)
    pairs = [(pair["train"], pair["infer"]) for pair in by_pair.values() if len(pair) == 2]
    if not pairs:
        return "no cell has both phases"
    found = [(train, infer) for train, infer in pairs if _median_seconds(train) <= _median_seconds(infer)]
    times = [(train[0].label, 1e3 * _median_seconds(train), 1e3 * _median_seconds(infer)) for train, infer in found]
    listed = _listed(f"{label} (train {train:.6g} ms, infer {infer:.6g} ms)" for label, train, infer in times)
    message = f"training takes no longer than inference alone in {len(found)} of {len(pairs)} cells: {listed}"
    members = tuple(row for train, infer in found for row in (*train, *infer))
    return [Finding(kind="training and inference", severity="fault", message=message, rows=members)] if found else []


def _power_bound(rows: Sequence[AuditRow], kind: Literal["power limit", "idle power"]) -> list[Finding] | str:
    is_limit = kind == "power limit"
    bounds = [(row, row.power_limit_watts if is_limit else row.idle_watts) for row in rows]
    known = [(row, bound) for row, bound in bounds if bound is not None and row.joules_per_image is not None]
    if not known:
        return f"no energies with a known {kind}"
    found = []
    for row, bound in known:
        low, high = _watts(row)
        if low > bound * (1 + POWER_TOLERANCE) if is_limit else high < bound * (1 - POWER_TOLERANCE):
            found.append((row, f"{row.label} {row.phase} ({(low + high) / 2:.6g} W, {kind} {bound:g} W)"))
    relation, listed = "above" if is_limit else "below", _listed(words for _, words in found)
    message = f"energy is {relation} {kind} x time in {len(found)} of {len(known)} cells: {listed}"
    members = tuple(row for row, _ in found)
    return [Finding(kind=kind, severity="fault", message=message, rows=members)] if found else []


def _watts_over_latency(row: AuditRow) -> Interval:
    """Return the range of powers that give the energy of ``row`` in its latency."""
    low, high = _printed_range(row.joules_per_image, row.joules_per_image_half_unit, ENERGY_TOLERANCE)
    shortest, longest = _printed_range(row.latency_seconds, row.latency_half_unit_seconds, 0.0)
    return row.batch_size * low / longest, row.batch_size * high / shortest


def _watts(row: AuditRow) -> Interval:
    """Return the same of the time in which energy was measured: a queue kept full is faster than single batches."""
    low, high = _watts_over_latency(row)
    factor = row.latency_seconds / row.window_seconds if row.window_seconds else 1.0
    return low * factor, high * factor


def _images_per_batch(row: AuditRow) -> Interval:
    """Return the range of throughput x latency / batch size: 1 is in it where throughput is the reciprocal."""
    low, high = _printed_range(row.images_per_second, row.images_per_second_half_unit, THROUGHPUT_TOLERANCE)
    shortest, longest = _printed_range(row.latency_seconds, row.latency_half_unit_seconds, 0.0)
    return low * shortest / row.batch_size, high * longest / row.batch_size


def _printed_range(value: float | None, half_unit: float | None, tolerance: float) -> Interval:
    half_unit = tolerance * (value or 0.0) if half_unit is None else half_unit
    return (value or 0.0) - half_unit, (value or 0.0) + half_unit


def _too_little(
    rows: Sequence[AuditRow], interval: Callable[[AuditRow], Interval], what: str, min_latency_span: float = 1.0
) -> str:
    """Return why ``rows`` are too few, too coarse or too much alike to judge by; empty where they will do."""
    if len(rows) < MIN_CELLS:
        return f"{len(rows)} {what}, {MIN_CELLS} are needed" if rows else f"no {what}"
    ranges = [(row.latency_seconds, *interval(row)) for row in rows]
    fine = [latency for latency, low, high in ranges if high - low <= FINE * (high + low)]
    if len(fine) < MIN_CELLS:
        return f"{what} or latencies have too few digits"
    if max(fine) < min_latency_span * min(fine):
        return f"latencies span less than a factor of {min_latency_span:g}"
    return ""


def _groups(rows: Sequence[AuditRow]) -> list[tuple[str, list[AuditRow]]]:
    """Return all rows and then, where there are two phases, those of each; with words for them."""
    phases = sorted({row.phase for row in rows})
    by_phase = [(f"with phase {phase}", [row for row in rows if row.phase == phase]) for phase in phases]
    return by_phase if len(phases) < 2 else [("of both phases", list(rows)), *by_phase]


def _median_seconds(rows: Sequence[AuditRow]) -> float:
    """Return the median of what may be several runs of one cell, single ones of which may well overlap."""
    return statistics.median(row.latency_seconds for row in rows)


def _listed(items: Iterable[str]) -> str:
    items = list(items)
    return "; ".join(items[:SHOWN] + [f"and {len(items) - SHOWN} more"] * (len(items) > SHOWN))
