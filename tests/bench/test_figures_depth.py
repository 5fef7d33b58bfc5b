from __future__ import annotations

import pytest
from drawn import curves, draw, legend_of, lying_intervals, overlapping, run_of, tick_labels
from sample_records import make_failure, make_measurement, make_record

from infsa_bench.record import Record
from infsa_bench.report.figures.depth import DEPTH_RATIO, describe_depth_comparison, ratio, render_depth_comparison
from infsa_bench.report.figures.styles import style


def pair(shallow: float | None, deep: float | None, **changes: object) -> list[Record]:
    """The records of both configs at 1024 pixels; None ran out of memory."""
    changes = {"resolution": 1024} | changes
    return [
        make_record(make_failure() if seconds is None else make_measurement([seconds]), config=config, **changes)
        for config, seconds in (("4L-64H", shallow), ("24L-16H", deep))
    ]


RECORDS = [
    *pair(0.01, 0.06),
    *pair(0.004, 0.02, mechanism="infsa-linear"),
    *pair(0.02, None, mechanism="infsa-pure"),
    *pair(0.001, 0.002, resolution=224),
]


def test_two_points_a_mechanism_with_their_ratio() -> None:
    figure = draw(render_depth_comparison, run_of(RECORDS))
    (axes,) = figure.axes
    assert tick_labels(axes.yaxis) == ["softmax", "infsa-pure", "infsa-linear"]
    marks = [
        (float(line.get_ydata()[0]), float(line.get_xdata()[0]), line.get_markersize())  # type: ignore[index,arg-type]
        for line in curves(axes)
        if line.get_marker() != "|"
    ]
    assert marks == [(0, 0.01, 5), (0, 0.06, 9), (1, 0.02, 5), (2, 0.004, 5), (2, 0.02, 9)]
    assert [text.get_text() for text in axes.texts] == ["6.00x", "24L-16H: out of memory", "5.00x"]
    assert [line.get_marker() for line in curves(axes) if line.get_ydata()[0] == 2][:2] == [  # type: ignore[index]
        style("infsa-linear")[1]
    ] * 2
    assert axes.get_title(loc="left") == "infer, fp32, eager, batch 1, 1024 x 1024 pixels"
    assert axes.get_xlabel() == "latency, one batch (seconds, median)"
    assert legend_of(figure) == ["4L-64H", "24L-16H", "6 times 4L-64H"]
    assert overlapping(figure) == []


def test_a_tick_stands_where_depth_alone_would_lead() -> None:
    assert DEPTH_RATIO == 6
    (axes,) = draw(render_depth_comparison, run_of(RECORDS)).axes
    ticks = [float(line.get_xdata()[0]) for line in curves(axes) if line.get_marker() == "|"]  # type: ignore[index,arg-type]
    assert ticks == [pytest.approx(0.06), pytest.approx(0.12), pytest.approx(0.024)]


def test_implementations_are_rows_of_their_own() -> None:
    run = run_of([*RECORDS, *pair(0.005, 0.03, implementation="fast")])
    (axes,) = draw(render_depth_comparison, run).axes
    assert tick_labels(axes.yaxis)[:2] == ["softmax (reference)", "softmax (fast)"]
    lines = {line.get_ydata()[0]: line.get_linestyle() for line in axes.lines if len(line.get_xdata()) == 2}  # type: ignore[index]
    assert (lines[0], lines[1]) == ("-", "--")


def test_intervals_are_drawn() -> None:
    spread = [0.098, 0.1, 0.102, 0.099, 0.101, 0.1, 0.097, 0.103, 0.1, 0.1]
    run = run_of([make_record(make_measurement(spread)), make_record(make_measurement([0.6]), config="24L-16H")])
    row = next(row for row in run.rows if row.case.config == "4L-64H")
    (axes,) = draw(render_depth_comparison, run).axes
    assert lying_intervals(axes) == [(0, row.latency_low_seconds, row.latency_high_seconds)]


def test_a_mechanism_of_one_config_only_is_said_to_be() -> None:
    run = run_of([*RECORDS[:2], make_record(make_measurement([0.5]), mechanism="mlla", resolution=1024)])
    (axes,) = draw(render_depth_comparison, run).axes
    assert [text.get_text() for text in axes.texts] == ["6.00x", "24L-16H: not in this run"]


def test_phases_are_panels() -> None:
    run = run_of([*RECORDS, *pair(0.03, 0.2, phase="train")])
    titles = [axes.get_title(loc="left") for axes in draw(render_depth_comparison, run).axes]
    assert titles == [f"{phase}, fp32, eager, batch 1, 1024 x 1024 pixels" for phase in ("infer", "train")]


@pytest.mark.parametrize(
    "records",
    [[], pair(0.1, None), pair(None, 0.1), [make_record()], pair(0.1, 0.2, mechanism="x:Y")[:1]],
    ids=["nothing", "deep failed", "shallow failed", "one config", "other"],
)
def test_without_a_pair_there_is_no_figure(records: list[Record]) -> None:
    run = run_of(records)
    assert render_depth_comparison(run) is None
    assert "times as long" not in describe_depth_comparison(run)


def test_ratios() -> None:
    rows = run_of(RECORDS[:2]).rows
    deep, shallow = sorted(rows, key=lambda row: row.case.config)
    assert ratio((shallow, deep)) == pytest.approx(6)
    assert ratio((shallow, None)) is None


def test_words() -> None:
    assert describe_depth_comparison(run_of(RECORDS)) == (
        "Latency of 4L-64H beside 24L-16H for each mechanism: 1 panel. infer, fp32, eager, batch 1, at 1024 x 1024 "
        "pixels the deeper model takes 5.00 (infsa-linear) to 6.00 (softmax) times as long; depth alone would give 6."
    )
