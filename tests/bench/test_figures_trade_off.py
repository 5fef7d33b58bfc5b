from __future__ import annotations

import pytest
from drawn import curves, draw, legend_of, lying_intervals, overlapping, run_of
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
from sample_records import make_energy, make_failure, make_measurement, make_no_energy, make_record

from infsa_bench.record import Record
from infsa_bench.report.figures.styles import style
from infsa_bench.report.figures.trade_off import (
    TIER_COLOURS,
    describe_throughput_vs_energy,
    hull,
    render_throughput_vs_energy,
    tier,
)
from infsa_models.registry import MECHANISMS


def measured(seconds: float, joules: float, mechanism: str = "softmax", *doubts: str, **changes: object) -> Record:
    """A cell of which an image takes so many seconds and joules."""
    energy = make_energy([joules * 200] * 3, doubts=doubts, relative_bias=0.02)
    changes = {"resolution": 1024} | changes
    return make_record(make_measurement([seconds], energy=energy), mechanism=mechanism, **changes)


RECORDS = [
    measured(0.1, 20),
    measured(0.02, 4, "infsa-linear"),
    measured(0.05, 9, "agent", "shared"),
    measured(0.001, 1, resolution=224),
    make_record(make_failure(), mechanism="infsa-pure", resolution=1024),
    make_record(make_measurement(energy=make_no_energy()), mechanism="mlla", resolution=1024),
]


def points(axes: Axes) -> dict[str, tuple[float, float]]:
    """Each point by its colour."""
    found = [line for line in curves(axes) if len(line.get_xdata()) == 1]
    return {
        str(line.get_color()): (float(line.get_xdata()[0]), float(line.get_ydata()[0]))  # type: ignore[index,arg-type]
        for line in found
    }


def test_one_point_a_mechanism() -> None:
    figure = draw(render_throughput_vs_energy, run_of(RECORDS))
    (axes,) = figure.axes
    assert points(axes) == {
        style("softmax")[0]: pytest.approx((20, 10)),
        style("infsa-linear")[0]: pytest.approx((4, 50)),
        style("agent")[0]: pytest.approx((9, 20)),
    }
    assert {str(line.get_color()): line.get_marker() for line in curves(axes)} == dict(
        style(name) for name in ("softmax", "infsa-linear", "agent")
    )
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_title(loc="left") == "4L-64H, infer, fp32, eager, batch 1, 1024 x 1024 pixels"
    assert "joules per image" in axes.get_xlabel()
    assert "images per second" in axes.get_ylabel()
    assert lying_intervals(axes) == [
        (pytest.approx(10), pytest.approx(19.6), pytest.approx(20.4)),
        (pytest.approx(20), pytest.approx(8.82), pytest.approx(9.18)),
        (pytest.approx(50), pytest.approx(3.92), pytest.approx(4.08)),
    ]
    assert overlapping(figure) == []


def test_low_confidence_is_hollow() -> None:
    figure = draw(render_throughput_vs_energy, run_of(RECORDS))
    faces = {str(line.get_color()): line.get_markerfacecolor() for line in curves(figure.axes[0])}
    assert {colour for colour, face in faces.items() if face == "white"} == {style("agent")[0]}
    assert "hollow: low confidence" in legend_of(figure)
    assert "hollow: low confidence" not in legend_of(draw(render_throughput_vs_energy, run_of(RECORDS[:2])))


def test_complexity_is_an_area_around_its_mechanisms() -> None:
    figure = draw(render_throughput_vs_energy, run_of([*RECORDS, measured(0.03, 5, "some.package:Mine")]))
    (axes,) = figure.axes
    areas = {patch.get_facecolor(): patch for patch in axes.patches if isinstance(patch, Polygon)}
    assert len(areas) == 2
    assert legend_of(figure) == [
        "softmax",
        "agent",
        "infsa-linear",
        "some.package:Mine",
        "hollow: low confidence",
        "time quadratic in tokens",
        "time linear in tokens",
    ]
    corners = sorted({(round(x, 6), round(y, 6)) for area in areas.values() for x, y in area.get_xy()})
    assert corners == [(4, 50), (9, 20), (20, 10)]


def test_tiers_come_from_the_registry() -> None:
    assert {name for name in MECHANISMS if tier(name) == "quadratic"} == {"softmax", "infsa-pure"}
    assert {tier(name) for name in MECHANISMS} == set(TIER_COLOURS)
    assert tier("some.package:Mine") is None


@pytest.mark.parametrize(
    ("given", "corners"),
    [
        ([], []),
        ([(1, 2)], [(1, 2)]),
        ([(1, 2), (1, 2), (3, 4)], [(1, 2), (3, 4)]),
        ([(0, 0), (1, 1), (2, 2)], [(0, 0), (2, 2)]),
        ([(0, 0), (2, 0), (1, 0.5), (2, 2), (0, 2)], [(0, 0), (2, 0), (2, 2), (0, 2)]),
    ],
)
def test_hulls(given: list[tuple[float, float]], corners: list[tuple[float, float]]) -> None:
    assert hull(given) == corners


def test_a_line_leads_from_reference_to_fast() -> None:
    records = [*RECORDS, measured(0.05, 10, implementation="fast"), measured(0.01, 2, "mlla", implementation="fast")]
    figure = draw(render_throughput_vs_energy, run_of(records))
    (axes,) = figure.axes
    (step,) = [line for line in axes.lines if len(line.get_xdata()) == 2]
    assert (list(step.get_xdata()), list(step.get_ydata())) == (
        [pytest.approx(20), pytest.approx(10)],
        [pytest.approx(10), pytest.approx(20)],
    )
    assert legend_of(figure)[:2] == ["softmax (reference)", "softmax (fast)"]
    handles = [handle for handle in figure.legends[0].legend_handles if isinstance(handle, Line2D)]
    assert [handle.get_fillstyle() for handle in handles[:2]] == ["full", "left"]


def test_nothing_without_energy() -> None:
    assert render_throughput_vs_energy(run_of(RECORDS[4:])) is None
    assert "No cell has a number" in describe_throughput_vs_energy(run_of(RECORDS[4:]))


def test_words() -> None:
    assert describe_throughput_vs_energy(run_of(RECORDS)) == (
        "Images per second against joules per image: 1 panel, points of 3 mechanisms. 4L-64H, infer, fp32, eager, "
        "batch 1, at 1024 x 1024 pixels from 4.00 J an image (infsa-linear) to 20.0 J an image (softmax)."
    )
