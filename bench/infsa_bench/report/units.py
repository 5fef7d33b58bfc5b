"""Numbers as people read them. Data carry SI units; only what is printed is scaled."""

from __future__ import annotations

_TIME_UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))


def format_seconds(seconds: float) -> str:
    """Return a measured time with three significant digits, e.g. ``12.3 ms`` or ``75.2 s``."""
    unit, size = _time_unit(seconds)
    return f"{significant(seconds / size)} {unit}"


def format_interval_seconds(low: float, high: float) -> str:
    """Return an interval of times in one unit, e.g. ``12.1 .. 12.9 ms``, with as many digits as tell its ends apart."""
    unit, size = _time_unit(high)
    for digits in (3, 4, 5):
        ends = [significant(end / size, digits) for end in (low, high)]
        if ends[0] != ends[1]:
            return f"{' .. '.join(ends)} {unit}"
    return f"{significant(low / size)} .. {significant(high / size)} {unit}"


def format_duration(seconds: float) -> str:
    """Return how long something takes, to the second: ``5 s``, ``4 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if whole >= 3600:
        hours, minutes = divmod(round(seconds / 60), 60)
        return f"{hours} h {minutes:02d} min"
    if whole >= 60:
        minutes, rest = divmod(whole, 60)
        return f"{minutes} min {rest:02d} s"
    return f"{whole} s"


def _time_unit(seconds: float) -> tuple[str, float]:
    return next((unit for unit in _TIME_UNITS if float(f"{seconds:.2e}") >= unit[1]), _TIME_UNITS[-1])


def format_bytes(count: float) -> str:
    """Return e.g. ``1.50 GiB``, three significant digits."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{significant(count / size)} {unit}"
    return f"{count:.0f} B"


def format_flops_per_second(rate: float) -> str:
    """Return e.g. ``12.3 TFLOP/s``, three significant digits."""
    return _decimal(rate, "FLOP/s")


def format_bytes_per_second(rate: float) -> str:
    """Return e.g. ``3.35 TB/s``: powers of ten, as rates of memories are given."""
    return _decimal(rate, "B/s")


def format_percent(fraction: float) -> str:
    """Return e.g. ``12.3 %``, three significant digits."""
    return f"{significant(100 * fraction)} %"


def _decimal(value: float, unit: str) -> str:
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        # After rounding: 999.6 of the one are 1.00 of the next.
        if float(f"{value:.2e}") >= size:
            return f"{significant(value / size)} {prefix}{unit}"
    return f"{significant(value)} {unit}"


def format_joules(joules: float, half_width: float | None) -> str:
    """Return an energy and how far it may be off, that with two significant digits, e.g. ``1.234 ± 0.012 J``.

    Three significant digits where the latter is unknown.
    """
    if not half_width:
        return f"{significant(joules)} J"
    places = 1 - _exponent(half_width, digits=2)
    value, uncertainty = (f"{round(number, places):.{max(0, places)}f}" for number in (joules, half_width))
    return f"{value} ± {uncertainty} J"


def significant(value: float, digits: int = 3) -> str:
    """Return ``value`` with that many significant digits, never in scientific notation."""
    if value == 0:
        return "0"
    places = max(0, digits - 1 - _exponent(value, digits))
    return f"{value:.{places}f}"


def _exponent(value: float, digits: int) -> int:
    """Return the power of ten of the first digit after rounding: 9.996 has three significant digits as 10.0."""
    return int(f"{value:.{digits - 1}e}".partition("e")[2])
