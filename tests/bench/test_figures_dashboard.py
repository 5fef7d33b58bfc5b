from __future__ import annotations

import pytest
from drawn import draw, lying_intervals, overlapping, run_of, tick_labels
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from sample_records import make_energy, make_failure, make_measurement, make_no_energy, make_record

from infsa_bench.report.figures.dashboard import describe_dashboard, render_dashboard
from infsa_bench.report.figures.styles import style

NO_ENERGY = make_no_energy("counter_frozen")
SPREAD = [0.098, 0.1, 0.102, 0.099, 0.101, 0.1, 0.097, 0.103, 0.1, 0.1]
RECORDS = [
    make_record(make_measurement(SPREAD, energy=make_energy([4000.0] * 3, relative_bias=0.05)), resolution=1024),
    make_record(make_failure("oom"), mechanism="infsa-pure", resolution=1024),
    make_record(
        make_measurement([0.025], energy=make_energy([800.0] * 3, doubts=("shared",)), launch_bound=True),
        mechanism="infsa-linear",
        resolution=1024,
    ),
    make_record(make_measurement([0.05], energy=NO_ENERGY), mechanism="mlla", resolution=1024),
    make_record(make_measurement([0.001]), resolution=224),
]


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def bars(axes: Axes) -> list[tuple[float, float]]:
    """The bars of a panel: their row and their length."""
    found = {
        (round(bar.get_y() + bar.get_height() / 2), bar.get_width())
        for bar in axes.patches
        if isinstance(bar, Rectangle)
    }
    return sorted(found)


def test_four_panels_of_bars() -> None:
    figure = draw(render_dashboard, run_of(RECORDS))
    latency, throughput, energy, speedup = figure.axes
    assert tick_labels(latency.yaxis) == ["softmax", "mlla", "infsa-pure", "infsa-linear"]
    assert tick_labels(energy.yaxis) == []
    assert bars(latency) == [(0, pytest.approx(100)), (1, pytest.approx(50)), (3, pytest.approx(25))]
    assert texts(latency) == ["100 ms", "50.0 ms", "out of memory", "25.0 ms"]
    assert bars(throughput) == [(0, pytest.approx(10)), (1, pytest.approx(20)), (3, pytest.approx(40))]
    assert texts(throughput) == ["10.0", "20.0", "out of memory", "40.0"]
    assert bars(energy) == [(0, pytest.approx(20)), (3, pytest.approx(4))]
    assert texts(energy) == ["20.0 J", "not measured (counter_frozen)", "out of memory", "~4.00 J"]
    assert bars(speedup) == [(0, pytest.approx(1)), (1, pytest.approx(2)), (3, pytest.approx(4))]
    assert texts(speedup) == ["1.00x", "2.00x", "out of memory", "4.00x"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "latency (ms, median; hollow: launch-bound)",
        "throughput (images per second)",
        "energy (joules per image; hollow: low confidence)",
        "speed-up over softmax (latency, times)",
    ]
    assert overlapping(figure) == []


def test_whiskers_are_intervals() -> None:
    run = run_of(RECORDS)
    figure = draw(render_dashboard, run)
    softmax = next(row for row in run.rows if row.case.resolution == 1024 and row.case.mechanism == "softmax")
    assert softmax.latency_low_seconds is not None
    assert softmax.latency_high_seconds is not None
    expected = (0, pytest.approx(softmax.latency_low_seconds * 1e3), pytest.approx(softmax.latency_high_seconds * 1e3))
    assert lying_intervals(figure.axes[0]) == [expected]
    assert lying_intervals(figure.axes[2]) == [
        (0, pytest.approx(19), pytest.approx(21)),
        (3, pytest.approx(3.996), pytest.approx(4.004)),
    ]
    # One of the two latencies has no interval, and softmax over itself is exactly one.
    assert lying_intervals(figure.axes[3]) == []


def test_the_whisker_of_a_speed_up_reaches_from_the_nearest_to_the_farthest_ends() -> None:
    faster = make_measurement([seconds / 4 for seconds in SPREAD])
    run = run_of([RECORDS[0], make_record(faster, mechanism="agent", resolution=1024)])
    softmax, agent = run.rows
    ((row, low, high),) = lying_intervals(draw(render_dashboard, run).axes[3])
    assert row == 1
    assert low == pytest.approx(softmax.latency_low_seconds / agent.latency_high_seconds)  # type: ignore[operator]
    assert high == pytest.approx(softmax.latency_high_seconds / agent.latency_low_seconds)  # type: ignore[operator]


def test_looks_say_which_mechanism_and_implementation_it_is_and_how_sure() -> None:
    records = [*RECORDS[:3], make_record(make_measurement([0.01]), implementation="fast", resolution=1024)]
    figure = draw(render_dashboard, run_of(records))
    latency = [bar for bar in figure.axes[0].patches if isinstance(bar, Rectangle) and bar.get_fill()]
    faces = [bar.get_facecolor() for bar in latency if bar.get_facecolor()[3] > 0]
    assert faces[0] == faces[1] == (0, 0, 0, 1)
    assert faces[2] == (1, 1, 1, 1)
    assert [bar.get_hatch() or "" for bar in latency if bar.get_facecolor()[3] > 0] == ["", "////", ""]
    assert style("softmax")[0] == "#000000"
    assert tick_labels(figure.axes[0].yaxis)[:2] == ["softmax (reference)", "softmax (fast)"]


def test_a_speed_up_needs_softmax_of_the_same_implementation() -> None:
    records = [*RECORDS[:1], make_record(implementation="fast", mechanism="agent", resolution=1024)]
    assert texts(draw(render_dashboard, run_of(records)).axes[3]) == ["1.00x", "no softmax to compare with"]
    failed = [make_record(make_failure("timeout"), resolution=1024), RECORDS[3]]
    assert texts(draw(render_dashboard, run_of(failed)).axes[3]) == ["timeout", "softmax: timeout"]


def test_the_resolution_is_said() -> None:
    run = run_of([*RECORDS, make_record(phase="train", resolution=384)])
    figure = draw(render_dashboard, run)
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles == [
        "1024 x 1024 pixels: 4L-64H, infer, fp32, eager, batch 1",
        "384 x 384 pixels: 4L-64H, train, fp32, eager, batch 1",
    ]


def test_a_mechanism_without_that_resolution_is_said_to_be_missing() -> None:
    figure = draw(render_dashboard, run_of([*RECORDS, make_record(mechanism="agent")]))
    assert tick_labels(figure.axes[0].yaxis)[1] == "agent"
    assert {texts(axes)[1] for axes in figure.axes} == {"not in this run"}


def test_nothing_ran_nothing_to_show() -> None:
    run = run_of(RECORDS[1:2])
    assert render_dashboard(run) is None
    assert "No cell has a number" in describe_dashboard(run)


def test_words() -> None:
    assert describe_dashboard(run_of(RECORDS)) == (
        "Bars of latency, throughput, joules per image and speed-up over softmax: 1 panel, bars of 4 mechanisms. "
        "4L-64H, infer, fp32, eager, batch 1, at 1024 x 1024 pixels from 25.0 ms (infsa-linear) to 100 ms (softmax)."
    )
