from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from drawn import draw, legend_of, notes, overlapping, run_of
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from sample_records import (
    CALIBRATION,
    GPU_STATE,
    make_energy,
    make_failure,
    make_measurement,
    make_no_energy,
    make_record,
    make_trial,
    make_window,
)

from infsa_bench.analyze.run import Run
from infsa_bench.errors import SchemaError, SpecError
from infsa_bench.record import Record, TracePoint
from infsa_bench.report.figures.power_trace import (
    MOST_POINTS,
    TRIAL_COLOUR,
    WINDOW_COLOUR,
    Span,
    describe_power_trace,
    lead_seconds,
    render_power_trace,
    thinned,
    trial_spans,
    watched_case,
    window_spans,
)
from infsa_bench.traces import trace_path, write_trace


def point(seconds: float, watts: float | None = 300.0) -> TracePoint:
    return TracePoint(seconds=seconds, power_watts=watts, sm_clock_mhz=None, temperature_celsius=None, event_reasons=())


# Two trials: the first one of 3 s with a window of 2 s, the second one of 4 s with two windows of 1 s.
TRIALS = (
    make_trial(make_window(seconds=2.0)),
    make_trial(make_window(seconds=1.0), make_window(seconds=1.0), begin_seconds=3.0),
)
TRACE = tuple(point(step / 4, 100.0 + step) for step in range(29))
WATCHED = make_record(make_measurement(energy=make_energy(trials=TRIALS), state_before=GPU_STATE))


def run_with(folder: Path, *records: Record, traced: bool = True) -> Run:
    """A run in whose folder every record of a measurement has the trace."""
    folder.mkdir(exist_ok=True)
    for record in records:
        if traced:
            write_trace(trace_path(folder, record.case.id), TRACE)
    return run_of(records, folder)


def spans(axes: Axes, colour: str) -> list[tuple[float, float]]:
    return [
        (patch.get_x(), patch.get_x() + patch.get_width())
        for patch in axes.patches
        if isinstance(patch, Rectangle) and to_hex(patch.get_facecolor()) == colour
    ]


def test_power_over_time_with_its_windows_shaded(tmp_path: Path) -> None:
    figure = draw(render_power_trace, run_with(tmp_path, WATCHED))
    (axes,) = figure.axes
    (line,) = [line for line in axes.lines if line.get_marker() == "."]
    assert list(line.get_xdata()) == [point.seconds for point in TRACE]
    assert list(line.get_ydata()) == [point.power_watts for point in TRACE]
    assert spans(axes, TRIAL_COLOUR) == [(0, 3), (3, 7)]
    # 0.3 s of lead, the rest of what was not measured after them.
    assert [(round(low, 6), round(high, 6)) for low, high in spans(axes, WINDOW_COLOUR)] == [
        (0.3, 2.3),
        (3.3, 4.3),
        (5.3, 6.3),
    ]
    assert axes.get_title(loc="left") == WATCHED.case.id
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("time in trials (seconds from the first sample)", "power (watts)")
    assert axes.get_ylim()[0] == 0
    assert notes(axes) == ["2 trials, 3 windows; their lengths are measured, their places estimated"]
    names = ["power, sampled", "measured window", "trial: waiting, rising", "idle, 75.0 W"]
    assert legend_of(figure) == names
    assert overlapping(figure) == []


def test_a_power_limit_that_is_near_is_a_line(tmp_path: Path) -> None:
    state = dataclasses.replace(GPU_STATE, power_limit_watts=150.0)
    record = make_record(make_measurement(energy=make_energy(trials=TRIALS), state_before=state))
    assert legend_of(draw(render_power_trace, run_with(tmp_path, record)))[-1] == "power limit, 150 W"


def test_windows_of_a_trial_share_what_is_not_measured() -> None:
    trial = make_trial(make_window(seconds=0.5), make_window(seconds=1.5))
    whole = Span(begin=10.0, end=13.0)
    assert window_spans(trial, whole, 0.25) == [Span(begin=10.25, end=10.75), Span(begin=11.25, end=12.75)]
    # No more than there is before them.
    assert window_spans(trial, whole, 9.0) == [Span(begin=10.5, end=11.0), Span(begin=11.5, end=13.0)]
    # A trace that ends early (its last samples were lost) has no window outside.
    cut = window_spans(trial, Span(begin=10.0, end=11.0), 0.25)
    assert cut == [Span(begin=10.0, end=10.5), Span(begin=10.5, end=11.0)]


def test_meters_wait_before_a_window_for_the_sensor_and_an_update() -> None:
    assert lead_seconds(CALIBRATION) == pytest.approx(0.3)
    assert lead_seconds(dataclasses.replace(CALIBRATION, period_seconds=0.02)) == pytest.approx(0.17)
    # A sensor that averages over a second is waited for; a counter that is computed tells no period.
    assert lead_seconds(dataclasses.replace(CALIBRATION, rise_seconds=1.0)) == pytest.approx(1.2)
    assert lead_seconds(dataclasses.replace(CALIBRATION, period_seconds=0.001)) == pytest.approx(0.3)
    assert lead_seconds(dataclasses.replace(CALIBRATION, source="nvml_power", period_seconds=None)) == 1.1


def test_a_trial_ends_with_its_last_sample() -> None:
    trace = [point(seconds) for seconds in (0.0, 1.0, 2.5, 3.001, 4.0)]
    assert trial_spans(TRIALS, trace) == [Span(begin=0.0, end=2.5), Span(begin=3.0, end=4.0)]
    # Without samples it is as long as nothing.
    assert trial_spans(TRIALS, trace[:2])[1] == Span(begin=3.0, end=3.0)


def test_the_case_whose_trials_took_longest_is_shown(tmp_path: Path) -> None:
    short = make_record(make_measurement(energy=make_energy([600.0])), resolution=512)
    run = run_with(tmp_path, short, WATCHED, make_record(make_failure(), resolution=1024))
    found = watched_case(run)
    assert found is not None
    assert found.record.case == WATCHED.case
    chosen = watched_case(run, short.case.id)
    assert chosen is not None
    assert chosen.record.case == short.case
    with pytest.raises(SpecError, match="no case 'infsa/nothing' in"):
        watched_case(run, "infsa/nothing")
    assert render_power_trace(run, run.records[2].case.id) is None


def test_one_without_a_trace_is_passed_over(tmp_path: Path) -> None:
    run = run_with(tmp_path, WATCHED, make_record(make_measurement(energy=make_energy([600.0])), resolution=512))
    trace_path(tmp_path, WATCHED.case.id).unlink()
    found = watched_case(run)
    assert found is not None
    assert found.record.case.resolution == 512


def test_without_any_trace_there_is_no_figure(tmp_path: Path) -> None:
    assert render_power_trace(run_with(tmp_path, WATCHED, traced=False)) is None
    assert render_power_trace(run_with(tmp_path, make_record(make_measurement(energy=make_no_energy())))) is None
    run = run_with(tmp_path, WATCHED)
    write_trace(trace_path(tmp_path, WATCHED.case.id), [point(0.0, None), point(1.0, None)])
    assert render_power_trace(run) is None
    assert describe_power_trace(run) == "Power over time: no case has a trace."


def test_a_broken_trace_is_refused(tmp_path: Path) -> None:
    run = run_with(tmp_path, WATCHED)
    trace_path(tmp_path, WATCHED.case.id).write_text("garbage\n")
    with pytest.raises(SchemaError, match="line 1"):
        render_power_trace(run)


def test_a_very_long_trace_keeps_its_extremes() -> None:
    seconds = [index / 100 for index in range(100_000)]
    watts = [300.0] * len(seconds)
    watts[12_345], watts[67_890] = 900.0, 10.0
    kept_seconds, kept_watts = thinned(seconds, watts)
    assert len(kept_seconds) <= MOST_POINTS
    assert kept_seconds == sorted(kept_seconds)
    kept = dict(zip(kept_seconds, kept_watts, strict=True))
    assert (kept[123.45], kept[678.9]) == (900.0, 10.0)
    assert thinned(seconds[:9], watts[:9]) == (seconds[:9], watts[:9])


def test_low_confidence_is_said(tmp_path: Path) -> None:
    record = make_record(make_measurement(energy=make_energy(trials=TRIALS, doubts=("shared",))))
    (axes,) = draw(render_power_trace, run_with(tmp_path, record)).axes
    assert notes(axes) == [
        "2 trials, 3 windows; their lengths are measured, their places estimated; low confidence: shared"
    ]


def test_words(tmp_path: Path) -> None:
    assert describe_power_trace(run_with(tmp_path, WATCHED)) == (
        "Power over time of infsa/softmax.reference/4L-64H/r224/b1/fp32/infer/eager/p0: 7.00 s with 2 trials and 3 "
        "measured windows, shaded. The median is 114 W, the highest sample 128 W."
    )
