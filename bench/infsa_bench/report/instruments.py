"""What is known of a machine's instruments, in words."""

from __future__ import annotations

from infsa_bench.reference.facts import InstrumentFacts, LoadPower
from infsa_bench.report.units import format_bytes, format_seconds

UNKNOWN = "not told here"


def describe_instruments(facts: InstrumentFacts) -> list[tuple[str, str]]:
    """Return name and finding, one pair a line."""
    calibration = facts.calibration
    found = [
        ("fresh worker", f"{_duration(facts.ready_seconds)} until it can measure"),
        (
            "of that",
            f"{_duration(facts.import_seconds)} loading Python and libraries, "
            f"{_duration(facts.context_seconds)} opening the device",
        ),
        ("device memory of a context", _context(facts)),
        ("own process", _visible(facts)),
    ]
    if facts.events is not None:
        step = _duration(facts.events.step_seconds)
        found.append(
            (
                "CUDA events",
                f"{_duration(facts.events.record_seconds)} to record one, {_duration(facts.events.empty_span_seconds)} "
                f"between two in a row, in steps of {step}",
            )
        )
    if calibration is None:
        return [*found, ("energy counter", f"not measured: {facts.no_energy}")]
    idle = "unknown" if calibration.idle_watts is None else f"{calibration.idle_watts:.1f} W"
    period, late = _duration(calibration.period_seconds), _duration(calibration.period_p95_seconds)
    step, call = _number(calibration.step_joules, "J"), _duration(calibration.call_seconds)
    return [
        *found,
        ("energy counter", f"moves every {period} (95th percentile {late}) by {step} at the least, read in {call}"),
        ("counter's rise", f"{_duration(facts.counter_rise_seconds)} to 90 % of its rate under load"),
        ("sensor's rise", f"{_duration(calibration.rise_seconds)} from 10 to 90 %"),
        ("power", f"changes every {_duration(facts.power_period_seconds)}; idle {idle}"),
        ("sensor's window", f"{_duration(facts.sensor_window_seconds)}, from its response to square waves"),
        *((f"counter against power, load {load.duty:.0%}", _compared(load)) for load in facts.loads),
    ]


def _context(facts: InstrumentFacts) -> str:
    if facts.context_bytes is None:
        return UNKNOWN
    how = " more taken on the whole device than before; others may have a part in it"
    return f"{format_bytes(facts.context_bytes)}{how if facts.is_context_by_growth else ''}"


def _visible(facts: InstrumentFacts) -> str:
    if facts.own_process_visible is None:
        return UNKNOWN
    count = facts.listed_processes or 0
    listed = f"{count} process{'' if count == 1 else 'es'} listed"
    return f"{'listed' if facts.own_process_visible else 'not listed'} by the driver; {listed}"


def _duration(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else format_seconds(seconds)


def _number(value: float | None, unit: str) -> str:
    return UNKNOWN if value is None else f"{value:.4g} {unit}"


def _compared(load: LoadPower) -> str:
    counted, sampled = load.counter_watts, load.power_watts
    gap = "" if not counted or sampled is None else f" ({sampled / counted - 1:+.1%})"
    return f"{_number(counted, 'W')} against {_number(sampled, 'W')}{gap}"
