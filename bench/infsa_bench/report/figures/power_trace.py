"""Power over time while the energy of one cell was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from infsa_bench.analyze.run import Run
from infsa_bench.energy_plan import AVERAGED_RISE_SECONDS, UNKNOWN_PERIOD_SECONDS, discarded_seconds
from infsa_bench.errors import SpecError
from infsa_bench.quoting import quoted
from infsa_bench.record import EnergyCalibration, EnergyReading, EnergyTrial, Measurement, Record, TracePoint
from infsa_bench.report.figures.styles import draw_legend, draw_title, in_plain_style, legible, new_figure, style
from infsa_bench.report.units import format_seconds, significant
from infsa_bench.traces import load_trace, trace_path

TRIAL_COLOUR, WINDOW_COLOUR = "#eeeeee", "#cfdff0"
SMOOTH_PERIOD_SECONDS = 0.005
"""A counter that moves more often is computed when it is read; meters plan in another period then."""

MOST_POINTS = 3000
"""Of a longer trace the lowest and the highest power of each of so many stretches is drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of a trace, in seconds from its first sample."""

    begin: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedCase:
    """A case whose energy was measured, with its trace."""

    record: Record
    reading: EnergyReading
    trace: tuple[TracePoint, ...]


@in_plain_style
def render_power_trace(run: Run, case_id: str | None = None) -> Figure | None:
    """Power over time in the energy trials of one case, with the windows that were measured shaded.

    Without ``case_id`` it is the case whose trials took longest. Samples are taken during trials only, so that neither
    warm-up nor settling is in a trace. A trial begins where its record says, and ends with its last sample; of its
    windows the record has the lengths, and they are placed by how long meters wait before them: to about a period of
    the counter, 0.1 s on most boards.

    Raises:
        SpecError: no case of that id in the run.
        SchemaError: the file of the trace cannot be read.
    """
    found = watched_case(run, case_id)
    if found is None:
        return None
    figure = new_figure(9.5, 4.6)
    axes = figure.add_subplot()
    points = [(point.seconds, point.power_watts) for point in found.trace if point.power_watts is not None]
    seconds, watts = thinned([second for second, _ in points], [power for _, power in points])
    spans = trial_spans(found.reading.trials, found.trace)
    for trial, span in zip(found.reading.trials, spans, strict=True):
        axes.axvspan(span.begin, span.end, facecolor=TRIAL_COLOUR, zorder=0.4)
        axes.axvline(span.begin, color="#888888", linewidth=0.9, zorder=0.6)
        for window in window_spans(trial, span, lead_seconds(found.reading.calibration)):
            axes.axvspan(window.begin, window.end, facecolor=WINDOW_COLOUR, zorder=0.5)
    colour = style(found.record.case.mechanism)[0]
    (line,) = axes.plot(seconds, watts, color=colour, linewidth=1.1, marker=".", markersize=2.5)
    handles: list[tuple[Line2D | Patch, str]] = [
        (line, "power, sampled"),
        (Patch(facecolor=WINDOW_COLOUR), "measured window"),
        (Patch(facecolor=TRIAL_COLOUR), "trial: waiting, rising"),
    ]
    for name, level, linestyle in _levels(found):
        drawn = axes.axhline(level, color="#444444", linestyle=linestyle, linewidth=1.0)
        handles.append((drawn, f"{name}, {significant(level)} W"))
    axes.set_xlabel("time in trials (seconds from the first sample)")
    axes.set_ylabel("power (watts)")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, max(seconds) or 1.0)
    axes.grid(visible=True, linewidth=0.4, alpha=0.6)
    draw_title(axes, found.record.case.id, legible(_note(found.reading), 150))
    draw_legend(figure, handles)
    return figure


def describe_power_trace(run: Run, case_id: str | None = None) -> str:
    """Say which case's power the figure shows, over how long, and its median."""
    found = watched_case(run, case_id)
    if found is None:
        return "Power over time: no case has a trace."
    watts = [point.power_watts for point in found.trace if point.power_watts is not None]
    windows = sum(len(trial.windows) for trial in found.reading.trials)
    return (
        f"Power over time of {legible(found.record.case.id, 150)}: {format_seconds(found.trace[-1].seconds)} with "
        f"{len(found.reading.trials)} trials and {windows} measured windows, shaded. The median is "
        f"{significant(float(np.median(watts)))} W, the highest sample {significant(max(watts))} W."
    )


def watched_case(run: Run, case_id: str | None = None) -> WatchedCase | None:
    """Return the case of that id with its trace, else the one whose trials took longest; None without any.

    Raises:
        SpecError: no case of that id in the run.
        SchemaError: the file of the trace cannot be read.
    """
    records = [record for record in run.records if case_id in (None, record.case.id)]
    if case_id is not None and not records:
        raise SpecError(f"no case {quoted(case_id)} in {run.name}")
    measured = [
        (record, record.outcome.energy)
        for record in records
        if isinstance(record.outcome, Measurement) and record.outcome.energy.trials
    ]
    # The first of those that took equally long: the order of a plan does not change.
    for record, reading in sorted(measured, key=lambda pair: -_duration(pair[1].trials)):
        trace = load_trace(trace_path(run.path, record.case.id))
        if sum(point.power_watts is not None for point in trace) > 1:
            return WatchedCase(record=record, reading=reading, trace=trace)
    return None


def _duration(trials: Sequence[EnergyTrial]) -> float:
    return trials[-1].begin_seconds + sum(window.seconds for window in trials[-1].windows)


def trial_spans(trials: Sequence[EnergyTrial], trace: Sequence[TracePoint]) -> list[Span]:
    """Return where in the trace each trial is.

    Both clocks begin with the first trial: sampling starts when it does. A trial's last sample is taken when its last
    window has ended, and the next trial begins at once.
    """
    seconds = [point.seconds for point in trace]
    begins = [trial.begin_seconds for trial in trials]
    spans = []
    for begin, following in zip(begins, [*begins[1:], float("inf")], strict=True):
        # The clocks differ by what passed until the first sample: by milliseconds, and as much too late may it end.
        inside = [second for second in seconds if begin <= second <= following]
        spans.append(Span(begin=begin, end=inside[-1] if inside else begin))
    return spans


def lead_seconds(calibration: EnergyCalibration | None) -> float:
    """Return about how long a meter waits before a window: for the load's moment, then for the sensor to follow, then
    for an update of the counter; each of the two others is half a period on average.
    """
    if calibration is None or calibration.source == "nvml_power":
        return AVERAGED_RISE_SECONDS
    period_seconds = calibration.period_seconds or 0.0
    if period_seconds < SMOOTH_PERIOD_SECONDS:
        period_seconds = UNKNOWN_PERIOD_SECONDS
    return discarded_seconds(period_seconds, calibration.rise_seconds) + period_seconds


def window_spans(trial: EnergyTrial, span: Span, lead: float) -> list[Span]:
    """Return where the windows of a trial are in its span, as near as the record tells.

    What is not measured is shared equally among the windows: ``lead`` seconds before each, and what is left after it,
    while the last iteration ends.
    """
    measured = sum(window.seconds for window in trial.windows)
    wait = max(0.0, span.end - span.begin - measured) / len(trial.windows)
    spans, now = [], span.begin
    for window in trial.windows:
        begin = now + min(lead, wait)
        end = begin + window.seconds
        now += wait + window.seconds
        spans.append(Span(begin=min(begin, span.end), end=min(end, span.end)))
    return spans


def thinned(seconds: Sequence[float], watts: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the points of a trace, of a very long one the lowest and the highest of every stretch, in their order."""
    if len(seconds) <= MOST_POINTS:
        return list(seconds), list(watts)
    kept: list[int] = []
    for stretch in np.array_split(np.arange(len(seconds)), MOST_POINTS // 2):
        powers = [watts[index] for index in stretch]
        extremes = {int(stretch[np.argmin(powers)]), int(stretch[np.argmax(powers)])}
        kept += sorted(extremes)
    return [seconds[index] for index in kept], [watts[index] for index in kept]


def _levels(found: WatchedCase) -> list[tuple[str, float, str]]:
    """Idle power and the power limit where the limit is near, with their line styles."""
    levels: list[tuple[str, float, str]] = []
    calibration = found.reading.calibration
    if calibration is not None and calibration.idle_watts is not None:
        levels.append(("idle", calibration.idle_watts, ":"))
    assert isinstance(found.record.outcome, Measurement)
    state = found.record.outcome.state_before
    limit = None if state is None else state.power_limit_watts
    highest = max(point.power_watts for point in found.trace if point.power_watts is not None)
    if limit is not None and limit <= 1.6 * highest:
        levels.append(("power limit", limit, "--"))
    return levels


def _note(reading: EnergyReading) -> str:
    windows = sum(len(trial.windows) for trial in reading.trials)
    text = f"{len(reading.trials)} trials, {windows} windows; their lengths are measured, their places estimated"
    return text if reading.status == "measured" else f"{text}; low confidence: {reading.reason}"
