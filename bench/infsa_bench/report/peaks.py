"""What a device can do at its best, as people read it: measured beside what its maker states."""

from __future__ import annotations

from infsa_bench.analyze.roofline import DeviceSpec
from infsa_bench.peaks import MeasuredPeaks, MeasuredRate
from infsa_bench.report.units import format_bytes_per_second, format_flops_per_second, format_percent

UNKNOWN = "unknown"
SHARED = "; others used the device meanwhile: they may be too low"


def peaks_lines(peaks: MeasuredPeaks, spec: DeviceSpec | None) -> list[str]:
    """Return a table: each rate as it was measured and as the data sheet has it; then how and when."""
    rows = [("", "measured", "data sheet")]
    for precision, rate in peaks.flops_per_second.items():
        stated = None if spec is None else spec.flops_of(precision)
        rows.append((precision, _measured(rate, format_flops_per_second(rate.per_second)), _flops(stated)))
    copied = peaks.copied_bytes_per_second
    stated_copy = UNKNOWN if spec is None else format_bytes_per_second(spec.memory_bytes_per_second)
    rows.append(("copy", _measured(copied, format_bytes_per_second(copied.per_second)), stated_copy))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append(
        f"measured {peaks.measured_utc} in {peaks.seconds:.1f} s, on random data: the best of {copied.rounds} medians "
        f"of {copied.repetitions} samples each; copy is read and written together{SHARED if peaks.is_shared else ''}"
    )
    lines.append(f"data sheet: {UNKNOWN if spec is None else spec.source}")
    return lines


def describe_peaks(peaks: MeasuredPeaks, spec: DeviceSpec | None) -> str:
    """Return the same in one line, for the head of a report."""
    rates = [f"{name} {format_flops_per_second(rate.per_second)}" for name, rate in peaks.flops_per_second.items()]
    rates.append(f"copy {format_bytes_per_second(peaks.copied_bytes_per_second.per_second)}")
    line = f"Peaks of {peaks.device}, measured {peaks.measured_utc}: {', '.join(rates)}"
    line += f"{SHARED if peaks.is_shared else ''}; data sheet: "
    if spec is None:
        return line + UNKNOWN
    stated = [f"{name} {_flops(spec.flops_of(name))}" for name in peaks.flops_per_second]
    stated.append(f"memory {format_bytes_per_second(spec.memory_bytes_per_second)}")
    return f"{line}{', '.join(stated)} ({spec.source})"


def _measured(rate: MeasuredRate, text: str) -> str:
    return f"{text} ({rate.what}; spread {format_percent(rate.spread)})"


def _flops(stated: float | None) -> str:
    return UNKNOWN if stated is None else format_flops_per_second(stated)
