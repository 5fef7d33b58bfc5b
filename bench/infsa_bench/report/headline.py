"""What a run found out, in plain words and with how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infsa_bench.analyze.claims import BASE, PROPOSED
from infsa_bench.analyze.run import Run
from infsa_bench.analyze.summary import MIN_PROCESSES, SummaryRow
from infsa_bench.quoting import one_line
from infsa_bench.record import MEMORY_KINDS
from infsa_bench.report.table import MIN_SAMPLES, blocks
from infsa_bench.report.units import format_interval_seconds, format_joules, format_seconds, significant


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found of one implementation in one block of comparable rows.

    ``figure`` is the number to remember, empty where there is none; ``figure_meaning`` says of what, ``figure_range``
    how sure it is.
    """

    subject: str
    figure: str
    figure_meaning: str
    figure_range: str
    sentences: tuple[str, ...]


def headline(run: Run) -> list[Finding]:
    """Return the findings of a run: those of ``fast`` first, which is what compares mechanisms."""
    found = []
    for title, block in blocks(run.rows):
        implementations = dict.fromkeys(row.case.implementation for row in block)
        for implementation in sorted(implementations, key=lambda name: name != "fast"):
            rows = _comparable([row for row in block if row.case.implementation == implementation])
            found.append(_finding(f"{title}, {implementation}", rows))
    return sorted(found, key=lambda finding: not finding.subject.endswith(", fast"))


def caveats(run: Run) -> list[str]:
    """Return what holds for every number of the headline."""
    processes = [row.processes for row in run.rows if row.processes is not None]
    found = []
    if processes and max(processes) == 1:
        found.append(
            "Every number comes from one process; another process may differ by more than an interval within it. "
            f"Three processes and more (--replicates {MIN_PROCESSES}) show by how much."
        )
    elif processes and min(processes) < MIN_PROCESSES:
        found.append(
            f"Some cells ran in fewer than {MIN_PROCESSES} processes: how processes differ is not known there."
        )
    if any(row.energy_systematic_relative for row in run.rows):
        off = max(row.energy_systematic_relative or 0.0 for row in run.rows)
        found.append(
            f"The board's power sensor may be off by {100 * off:g} % as a whole: in no interval of an energy, and "
            "cancelled in ratios on one board."
        )
    return found


def headline_sentences(run: Run) -> list[str]:
    """Return the headline as a list of sentences, each with its subject."""
    return [f"{finding.subject}: {sentence}" for finding in headline(run) for sentence in finding.sentences] + caveats(
        run
    )


def uncertainty(row: SummaryRow) -> str:
    """Return how sure a latency is: its interval, or why there is none and the range of all times."""
    if row.latency_low_seconds is not None and row.latency_high_seconds is not None:
        within = "within one process" if row.latency_interval == "within_process" else f"over {row.processes} processes"
        return f"95 % interval {format_interval_seconds(row.latency_low_seconds, row.latency_high_seconds)} {within}"
    if row.timed_iterations == 1:
        return "one sample: no interval"
    if row.processes is not None and row.processes > 1:
        reason = f"{row.processes} processes: no interval"
    elif row.timed_iterations is not None and row.timed_iterations < MIN_SAMPLES:
        reason = f"{row.timed_iterations} samples in one process: no interval"
    else:
        reason = f"{row.timed_iterations} samples in one process, too few of them independent: no interval"
    if row.latency_min_seconds is None or row.latency_max_seconds is None:
        return reason
    return f"{reason}; range {format_interval_seconds(row.latency_min_seconds, row.latency_max_seconds)}"


def _comparable(rows: Sequence[SummaryRow]) -> list[SummaryRow]:
    """One row for each mechanism and resolution: without options where there is such a one."""
    found: dict[tuple[str, int], SummaryRow] = {}
    for row in sorted(rows, key=lambda row: len(row.case.options)):
        found.setdefault((row.case.mechanism, row.case.resolution), row)
    # In the order of the rows, not of their options.
    kept = {id(row) for row in found.values()}
    return [row for row in rows if id(row) in kept]


def _finding(subject: str, rows: Sequence[SummaryRow]) -> Finding:
    by_side: dict[int, list[SummaryRow]] = {}
    for row in rows:
        if row.latency_seconds is not None:
            by_side.setdefault(row.case.resolution, []).append(row)
    pair = _pair(by_side)
    if pair is None:
        named = [row.case.mechanism for side in by_side.values() for row in side]
        only = f"Only {named[0]} has a number" if named else "No cell has a number"
        sentences = [f"{only}: there is nothing to compare."]
        figure = meaning = certainty = ""
    else:
        candidate, baseline = pair
        ratio = _latency(baseline) / _latency(candidate)
        side = candidate.case.resolution
        figure = f"{significant(ratio)}x"
        meaning = f"as fast as {_name(baseline)}: {_name(candidate)} at {side} x {side} pixels"
        certainty = _ratio_range(candidate, baseline)
        sentences = [_takes(candidate), _compared(candidate, baseline), _at_the_smallest(candidate, baseline, by_side)]
        sentences += [_fastest(by_side[side]), _energy(candidate, baseline), _flagged(candidate, baseline)]
    sentences += [_largest(rows), _without_number(rows)]
    kept = tuple(one_line(sentence) for sentence in sentences if sentence)
    return Finding(
        subject=one_line(subject),
        figure=figure,
        figure_meaning=one_line(meaning),
        figure_range=certainty,
        sentences=kept,
    )


def _pair(by_side: dict[int, list[SummaryRow]]) -> tuple[SummaryRow, SummaryRow] | None:
    """The two rows that the headline compares, at the largest resolution that has both.

    Where infsa-linear and softmax never meet: the fastest with softmax, or infsa-linear with the slowest, or the
    fastest with the slowest.
    """
    for side in sorted(by_side, reverse=True):
        named = {row.case.mechanism: row for row in by_side[side]}
        if PROPOSED in named and BASE in named:
            return named[PROPOSED], named[BASE]
    for side in sorted(by_side, reverse=True):
        if len(by_side[side]) < 2:
            continue
        named = {row.case.mechanism: row for row in by_side[side]}
        ordered = sorted(by_side[side], key=_latency)
        candidate = named.get(PROPOSED) or next(row for row in ordered if row.case.mechanism != BASE)
        baseline = named.get(BASE) or next(row for row in reversed(ordered) if row is not candidate)
        return candidate, baseline
    return None


def _latency(row: SummaryRow) -> float:
    assert row.latency_seconds is not None
    return row.latency_seconds


def _name(row: SummaryRow) -> str:
    return row.case.mechanism + "".join(f" {key}={value}" for key, value in row.case.options)


def _takes(row: SummaryRow) -> str:
    case = row.case
    batch = "one image" if case.batch_size == 1 else f"a batch of {case.batch_size} images"
    what = f"a training step with {batch}" if case.phase == "train" else batch
    return (
        f"At {case.resolution} x {case.resolution} ({case.tokens:,} tokens) {_name(row)} takes "
        f"{format_seconds(_latency(row))} for {what} ({uncertainty(row)})."
    )


def _compared(candidate: SummaryRow, baseline: SummaryRow) -> str:
    ratio = _latency(baseline) / _latency(candidate)
    text = f"{significant(ratio)} times as fast as" if ratio >= 1 else f"{significant(1 / ratio)} times as long as with"
    overlap = _has_interval(candidate) and _has_interval(baseline) and _overlap(candidate, baseline)
    doubt = ", but the two intervals overlap: no difference is shown" if overlap else ""
    return f"That is {text} {_name(baseline)} ({format_seconds(_latency(baseline))}; {uncertainty(baseline)}){doubt}."


def _ratio_range(candidate: SummaryRow, baseline: SummaryRow) -> str:
    """Between what the ratio of two latencies lies, if they lie anywhere in their intervals or ranges."""
    (low, high), (other_low, other_high) = _spans(candidate, baseline)
    between = f"{significant(other_low / high)} .. {significant(other_high / low)}"
    if _has_interval(candidate) and _has_interval(baseline):
        return f"{between} with both 95 % intervals at their ends"
    return f"{between} over all times of both; one of them or both have no 95 % interval"


def _overlap(one: SummaryRow, other: SummaryRow) -> bool:
    (low, high), (other_low, other_high) = _spans(one, other)
    return low <= other_high and other_low <= high


def _at_the_smallest(candidate: SummaryRow, baseline: SummaryRow, by_side: dict[int, list[SummaryRow]]) -> str:
    for side in sorted(side for side in by_side if side < candidate.case.resolution):
        named = {_name(row): row for row in by_side[side]}
        if _name(candidate) in named and _name(baseline) in named:
            ratio = _latency(named[_name(baseline)]) / _latency(named[_name(candidate)])
            return f"At {side} x {side} it is {significant(ratio)} times as fast."
    return ""


def _has_interval(row: SummaryRow) -> bool:
    return row.latency_low_seconds is not None and row.latency_high_seconds is not None


def _spans(*rows: SummaryRow) -> list[tuple[float, float]]:
    """The intervals of latencies where all of them have one, else the ranges of all their times: never mixed."""
    if all(map(_has_interval, rows)):
        return [(row.latency_low_seconds or 0.0, row.latency_high_seconds or 0.0) for row in rows]
    return [
        (
            _latency(row) if row.latency_min_seconds is None else row.latency_min_seconds,
            _latency(row) if row.latency_max_seconds is None else row.latency_max_seconds,
        )
        for row in rows
    ]


def _fastest(rows: Sequence[SummaryRow]) -> str:
    first, *others = sorted(rows, key=_latency)
    if not others:
        return ""
    text = f"Fastest of the {len(rows)} with a number there: {_name(first)}, {format_seconds(_latency(first))}"
    near = [row for row in others if _overlap(row, first)]
    compared = (first, *(near or others[:1]))
    what = "intervals" if all(map(_has_interval, compared)) else "ranges, for want of intervals,"
    what_of_it = what.replace("intervals", "interval", 1) if what == "intervals" else "range, for want of an interval,"
    if near:
        return f"{text}, but that is no lead: its {what_of_it} overlaps with those of {', '.join(map(_name, near))}."
    return f"{text}, before {_name(others[0])}, {format_seconds(_latency(others[0]))}; their {what} do not overlap."


def _energy(candidate: SummaryRow, baseline: SummaryRow) -> str:
    joules, other = candidate.joules_per_image, baseline.joules_per_image
    if joules is None:
        reason = candidate.energy_reason or "nobody asked for it"
        detail = f": {candidate.energy_detail}" if candidate.energy_detail else ""
        return f"Energy was not measured: {reason}{detail}."
    text = f"{_name(candidate)} needs {_joules(candidate)}"
    if not other:
        return f"{text}; that of {_name(baseline)} was not measured ({baseline.energy_reason})."
    return f"{text}, {_name(baseline)} {_joules(baseline)}: {significant(other / joules)} times as much."


def _joules(row: SummaryRow) -> str:
    assert row.joules_per_image is not None
    high = row.joules_per_image_high
    text = format_joules(row.joules_per_image, None if high is None else high - row.joules_per_image) + " an image"
    return text if row.energy_status == "measured" else f"{text} (low confidence: {row.energy_reason})"


def _flagged(*rows: SummaryRow) -> str:
    named = [f"{_name(row)} {', '.join(row.flags)}" for row in rows if row.flags]
    return f"Flagged there: {'; '.join(named)}." if named else ""


def _largest(rows: Sequence[SummaryRow]) -> str:
    """How far each mechanism got, where not all of them got equally far."""
    largest: dict[str, int] = {}
    for row in rows:
        if row.latency_seconds is not None:
            largest[row.case.mechanism] = max(row.case.resolution, largest.get(row.case.mechanism, 0))
    sides = sorted(set(largest.values()), reverse=True)
    if len(sides) < 2:
        return ""
    parts = [f"{side} for {', '.join(name for name in largest if largest[name] == side)}" for side in sides]
    return f"Largest side with a number: {'; '.join(parts)}."


def _without_number(rows: Sequence[SummaryRow]) -> str:
    """Why cells have no number, and which: from a side on where none of the larger ones has one either."""
    largest: dict[str, int] = {}
    sides: dict[str, dict[str, list[int]]] = {}
    for row in rows:
        case = row.case
        if row.latency_seconds is not None:
            largest[case.mechanism] = max(case.resolution, largest.get(case.mechanism, 0))
        elif row.status != "skipped":
            status = "out of memory" if row.status in MEMORY_KINDS else row.status
            sides.setdefault(status, {}).setdefault(case.mechanism, []).append(case.resolution)
    parts = []
    for status, named in sides.items():
        where = []
        for mechanism, found in named.items():
            is_end = min(found) > largest.get(mechanism, 0)
            where.append(f"{mechanism} " + (f"from {min(found)} on" if is_end else f"at {', '.join(map(str, found))}"))
        parts.append(f"{status}: {', '.join(where)}")
    skipped = sum(row.status == "skipped" for row in rows)
    if skipped:
        parts.append(f"{skipped} of {len(rows)} cells skipped")
    return f"Without a number: {'; '.join(parts)}." if parts else ""
