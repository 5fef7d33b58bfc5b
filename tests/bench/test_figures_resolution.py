from __future__ import annotations

from collections.abc import Sequence

import pytest
from drawn import Render, curves, hollow, intervals, legend_of, letters, notes, overlapping, run_of, tick_labels
from drawn import draw as draw_run
from matplotlib.figure import Figure
from sample_records import make_energy, make_failure, make_measurement, make_no_energy, make_record

from infsa_bench.record import FailureKind, Record
from infsa_bench.report.figures import render_energy_vs_resolution, render_latency_vs_resolution
from infsa_bench.report.figures.curves import thinned
from infsa_bench.report.figures.resolution import describe_energy_vs_resolution, describe_latency_vs_resolution
from infsa_bench.report.figures.styles import FAILURE_LETTERS, OTHER_COLOURS, style
from infsa_models.registry import MECHANISMS

FIXED = [
    make_record(make_measurement([0.010]), resolution=224),
    make_record(make_measurement([0.080]), resolution=512),
    make_record(make_failure("oom"), resolution=1024),
    make_record(make_measurement([0.009]), mechanism="infsa-linear", resolution=224),
    make_record(make_measurement([0.030]), mechanism="infsa-linear", resolution=512),
    make_record(make_measurement([0.120]), mechanism="infsa-linear", resolution=1024),
    make_record(make_failure("skipped"), mechanism="infsa-linear", resolution=2048),
]


def draw(records: Sequence[Record], render: Render = render_latency_vs_resolution) -> Figure:
    return draw_run(render, run_of(records))


def test_one_line_a_mechanism() -> None:
    (axes,) = draw(FIXED).axes
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in curves(axes)}
    assert lines == {
        "softmax": ([224, 512], [0.010, 0.080]),
        "infsa-linear": ([224, 512, 1024], [0.009, 0.030, 0.120]),
    }
    assert {line.get_label(): line.get_color() for line in curves(axes)} == {
        "softmax": style("softmax")[0],
        "infsa-linear": style("infsa-linear")[0],
    }
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert tick_labels(axes.xaxis) == ["224", "512", "1024", "2048"]
    assert axes.get_title(loc="left") == "4L-64H, infer, fp32, eager, batch 1"


def test_failures_stand_as_letters_at_their_resolution() -> None:
    (axes,) = draw(FIXED).axes
    assert letters(axes) == [("O", 1024, style("softmax")[0]), ("S", 2048, style("infsa-linear")[0])]
    assert notes(axes) == ["no number: O = out of memory, S = skipped"]


def test_marks_stand_above_every_point() -> None:
    """Of every mechanism a point at 1008 pixels, the highest of the panel, and a failure beside it."""
    records = [make_record(make_failure("timeout"), mechanism=name, resolution=1024) for name in MECHANISMS]
    records += [make_record(make_measurement([9.0]), mechanism=name, resolution=1008) for name in MECHANISMS]
    figure = draw([*records, make_record(make_measurement([0.001]), resolution=224)])
    (axes,) = figure.axes
    highest = axes.transData.transform((1008, 9.0))[1]
    marks = [text for text in axes.texts if len(text.get_text()) == 1]
    assert len(marks) == len(MECHANISMS)
    assert min(mark.get_window_extent().y0 for mark in marks) > highest
    assert max(mark.get_window_extent().y1 for mark in marks) < axes.get_window_extent().y1


def test_the_note_on_marks_and_the_title_do_not_meet() -> None:
    figure = draw([*FIXED, *(make_record(make_failure(kind), resolution=16 + 16 * i) for i, kind in enumerate(KINDS))])
    (axes,) = figure.axes
    (note,) = (text for text in axes.texts if len(text.get_text()) > 1)
    title = axes._left_title  # type: ignore[attr-defined]
    assert note.get_window_extent().y1 <= title.get_window_extent().y0
    assert note.get_window_extent().x1 <= figure.bbox.x1


def test_no_marks_without_failures() -> None:
    (axes,) = draw(FIXED[:2]).axes
    assert list(axes.texts) == []


KINDS: tuple[FailureKind, ...] = ("oom", "host_oom", "timeout", "crash", "killed", "unsupported", "skipped", "error")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_failure_has_a_letter(kind: FailureKind) -> None:
    (axes,) = draw([make_record(make_failure(kind))]).axes
    assert [letter for letter, _, _ in letters(axes)] == [FAILURE_LETTERS[kind]]


@pytest.mark.parametrize(
    "records",
    [
        [make_record()],
        [make_record(make_failure())],
        [make_record(make_failure(), mechanism=name, resolution=side) for name in MECHANISMS for side in (224, 9216)],
        [make_record(), make_record(make_failure(), mechanism="soft")],
        [make_record(make_measurement([1e-6])), make_record(make_measurement([1e6]), resolution=9216)],
    ],
    ids=["one point", "one failure", "all failed", "a point and a failure", "extremes"],
)
def test_small_and_failed_runs_render(records: Sequence[Record]) -> None:
    draw(records)


def test_one_panel_a_block() -> None:
    figure = draw([*FIXED, make_record(phase="train"), make_record(environment="elsewhere")])
    assert len(figure.axes) == 3
    titles = {axes.get_title(loc="left") for axes in figure.axes}
    assert len(titles) == 3
    assert sum("environment elsewhere" in title for title in titles) == 1


def test_a_mechanism_looks_the_same_in_every_figure() -> None:
    for order in (FIXED, FIXED[::-1], FIXED[3:]):
        (axes,) = draw(order).axes
        line = next(line for line in curves(axes) if line.get_label() == "infsa-linear")
        assert (line.get_color(), line.get_marker()) == style("infsa-linear")


def test_implementations_differ_by_line_only() -> None:
    (axes,) = draw([make_record(), make_record(implementation="fast"), make_record(implementation="other")]).axes
    assert {line.get_label(): line.get_linestyle() for line in curves(axes)} == {
        "softmax (reference)": "-",
        "softmax (fast)": "--",
        "softmax (other)": ":",
    }
    assert len({line.get_color() for line in curves(axes)}) == 1


@pytest.mark.parametrize(
    "name", ["some.package:Mixer", "_private.package:Mixer", "$x$", "$\\nonsense$", "a_b^c", "<b>", "%s"]
)
def test_any_other_name_gets_a_style_and_stands_in_the_legend_as_it_is(name: str) -> None:
    assert style(name) == style(name)
    assert style(name)[0] in OTHER_COLOURS
    figure = draw([make_record(mechanism=name), make_record(make_failure(), mechanism=name, resolution=512)])
    (legend,) = figure.legends
    (entry,) = legend.get_texts()
    assert entry.get_text().replace("\\$", "$") == name
    assert "$" not in name or "\\$" in entry.get_text() or not entry.get_parse_math()


def test_intervals_are_bars() -> None:
    records = [
        make_record(make_measurement([0.010 + 0.001 * (3 * i % 8) for i in range(8)])),
        make_record(make_measurement([0.1]), resolution=512),
    ]
    records += [make_record(make_measurement([0.2 * 1.01**i]), resolution=1024, replicate=i) for i in range(3)]
    (axes,) = draw(records).axes
    rows = run_of(records).rows
    assert intervals(axes) == [
        (row.case.resolution, pytest.approx(row.latency_low_seconds), pytest.approx(row.latency_high_seconds))
        for row in (rows[0], rows[2])
    ]
    assert len(curves(axes)) == 1


def test_launch_bound_points_are_hollow() -> None:
    records = [
        make_record(make_measurement([0.01], launch_bound=True)),
        make_record(make_measurement([0.02], launch_bound=False), resolution=512),
        make_record(make_measurement([0.04], launch_bound=None), resolution=1024),
        make_record(make_measurement([0.03], launch_bound=True), mechanism="agent", resolution=512),
    ]
    figure = draw(records)
    (axes,) = figure.axes
    assert hollow(axes) == [(224, 0.01), (512, 0.03)]
    assert legend_of(figure) == ["softmax", "agent", "hollow: launch-bound"]
    figure = draw(records[1:3])
    (axes,) = figure.axes
    assert hollow(axes) == []
    assert legend_of(figure) == ["softmax"]


ENERGY = [
    make_record(make_measurement(energy=make_energy([600.0, 600.0], relative_bias=0.01))),
    make_record(make_measurement(energy=make_energy([1200.0], doubts=("shared",))), resolution=512),
    make_record(make_measurement(energy=make_no_energy()), resolution=1024),
    make_record(make_failure("timeout"), resolution=2048),
]


def test_energy_over_resolution() -> None:
    figure = draw(ENERGY, render_energy_vs_resolution)
    (axes,) = figure.axes
    (line,) = curves(axes)
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([224, 512], [3.0, 6.0])
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_ylabel() == "energy (joules per image, mean)"
    assert intervals(axes) == [(224, pytest.approx(2.97), pytest.approx(3.03))]
    assert hollow(axes) == [(512, 6.0)]
    assert legend_of(figure) == ["softmax", "hollow: low confidence"]
    assert [(letter, side) for letter, side, _ in letters(axes)] == [("N", 1024), ("T", 2048)]
    assert notes(axes) == ["no number: N = energy not measured, T = timeout"]


def test_energy_has_panels_for_blocks_that_have_energy() -> None:
    records = [*ENERGY, make_record(phase="train"), make_record(make_measurement(energy=make_energy()), batch_size=8)]
    titles = [axes.get_title(loc="left") for axes in draw(records, render_energy_vs_resolution).axes]
    assert titles == ["4L-64H, infer, fp32, eager, batch 1", "4L-64H, infer, fp32, eager, batch 8"]


def test_an_interval_of_energy_that_reaches_zero_can_be_drawn() -> None:
    wild = make_energy([100.0, 1100.0])
    (row,) = run_of([make_record(make_measurement(energy=wild))]).rows
    assert row.joules_per_image_low is not None
    assert row.joules_per_image_low < 0
    (axes,) = draw([make_record(make_measurement(energy=wild)), *ENERGY[1:]], render_energy_vs_resolution).axes
    ((side, low, high),) = intervals(axes)
    assert (side, high) == (224, pytest.approx(row.joules_per_image_high))
    assert 0 < low < 0.1 * 3.0


def test_nothing_to_show_is_no_figure() -> None:
    assert render_latency_vs_resolution(run_of([])) is None
    assert render_energy_vs_resolution(run_of([])) is None
    assert render_energy_vs_resolution(run_of([make_record(make_measurement(energy=make_no_energy()))])) is None
    assert describe_energy_vs_resolution(run_of([])).endswith("No cell has a number.")


def test_blocks_share_one_legend_in_the_order_of_the_registry() -> None:
    records = [make_record(mechanism="agent", phase="train"), make_record(mechanism="softmax"), *FIXED[3:5]]
    assert legend_of(draw(records)) == ["softmax", "agent", "infsa-linear"]


def test_marks_take_no_more_than_half_of_a_panel_and_have_no_numbers_beside_them() -> None:
    records = [make_record(make_failure(), mechanism=f"other-{index}", resolution=1024) for index in range(39)]
    (axes,) = draw([*records, *FIXED[:2]]).axes
    places = [text.get_window_extent() for text in axes.texts if len(text.get_text()) == 1]
    panel = axes.get_window_extent()
    assert min(place.y0 for place in places) > panel.y0 + 0.48 * panel.height
    tops = [axes.transData.transform((224, tick))[1] for tick in axes.get_yticks()]
    assert max(tops) < min(place.y0 for place in places)


def test_texts_of_a_large_run_do_not_meet() -> None:
    sides = (224, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 9216)
    records = [
        make_record(
            make_failure(KINDS[index % len(KINDS)])
            if index > 9
            else make_measurement([0.01 * (index + 1)], energy=make_energy()),
            mechanism=mechanism,
            implementation=implementation,
            config=config,
            phase=phase,
            resolution=side,
        )
        for mechanism in ("softmax", "infsa-linear")
        for implementation in ("reference", "fast")
        for config in ("4L-64H", "24L-16H")
        for phase in ("infer", "train")
        for index, side in enumerate(sides)
    ]
    for render in (render_latency_vs_resolution, render_energy_vs_resolution):
        figure = draw(records, render)
        assert len(figure.axes) == 4
        assert overlapping(figure) == []
        widths = {round(axes.get_window_extent().width) for axes in figure.axes}
        assert max(widths) - min(widths) < 12


def test_labels_that_would_meet_are_left_out() -> None:
    assert thinned([1024, 224, 1008, 2048, 2050]) == [224, 1008, 2048]


def test_descriptions_have_the_numbers() -> None:
    assert describe_latency_vs_resolution(run_of(FIXED)) == (
        "Latency of one batch against image side: 1 panel, lines of 2 mechanisms. 4L-64H, infer, fp32, eager, batch 1, "
        "at 512 x 512 pixels from 30.0 ms (infsa-linear) to 80.0 ms (softmax)."
    )
    assert describe_energy_vs_resolution(run_of(ENERGY)) == (
        "Energy of an image against image side: 1 panel, lines of 1 mechanism. 4L-64H, infer, fp32, eager, batch 1, "
        "at 512 x 512 pixels softmax: 6.00 J an image."
    )
    both = [make_record(make_measurement([0.5]), implementation="fast"), *FIXED[:1]]
    assert "from 10.0 ms (softmax (reference)) to 500 ms (softmax (fast))" in describe_latency_vs_resolution(
        run_of(both)
    )
