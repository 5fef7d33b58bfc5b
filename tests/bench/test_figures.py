from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from sample_records import make_energy, make_failure, make_measurement, make_no_energy, make_record

from infsa_bench.analyze.summary import SummaryRow, summarize
from infsa_bench.record import FailureKind, Record
from infsa_bench.report.figures import (
    COLOURS,
    FAILURE_LETTERS,
    MARKERS,
    OTHER_COLOURS,
    STYLES,
    render_energy_vs_resolution,
    render_latency_vs_resolution,
    style,
    write_energy_vs_resolution,
    write_latency_vs_resolution,
)
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


Render = Callable[[Sequence[SummaryRow]], Figure]


def draw(records: Sequence[Record], render: Render = render_latency_vs_resolution) -> Figure:
    """Draw to the last pixel; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = render(summarize(records))
        figure.canvas.draw()
    return figure


def bars(axes: Axes) -> list[tuple[float, float, float]]:
    """The bars of intervals: resolution, lower end, upper end."""
    ends = [
        segment
        for collection in axes.collections
        if isinstance(collection, LineCollection)
        for segment in collection.get_segments()
    ]
    return sorted((float(low[0]), float(low[1]), float(high[1])) for low, high in ends if low[0] == high[0])


def hollow(axes: Axes) -> list[tuple[float, float]]:
    """The points that are drawn hollow."""
    collections = [item for item in axes.collections if isinstance(item, PathCollection)]
    assert all((item.get_facecolor() == 1).all() for item in collections)
    return sorted((float(x), float(y)) for item in collections for x, y in item.get_offsets())


def legend_of(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def letters(axes: Axes) -> list[tuple[str, float, str]]:
    """The marks of failures: letter, resolution, colour."""
    return [
        (text.get_text(), text.get_position()[0], str(text.get_color()))
        for text in axes.texts
        if len(text.get_text()) == 1
    ]


def test_one_line_a_mechanism() -> None:
    (axes,) = draw(FIXED).axes
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    assert lines == {
        "softmax": ([224, 512], [0.010, 0.080]),
        "infsa-linear": ([224, 512, 1024], [0.009, 0.030, 0.120]),
    }
    assert {line.get_label(): line.get_color() for line in axes.lines} == {
        "softmax": style("softmax")[0],
        "infsa-linear": style("infsa-linear")[0],
    }
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["224", "512", "1024", "2048"]
    assert axes.get_title(loc="left") == "4L-64H, infer, fp32, eager, batch 1"


def test_failures_stand_as_letters_at_their_resolution() -> None:
    (axes,) = draw(FIXED).axes
    assert letters(axes) == [("O", 1024, style("softmax")[0]), ("S", 2048, style("infsa-linear")[0])]
    notes = [text.get_text() for text in axes.texts if len(text.get_text()) > 1]
    assert notes == ["no number: O = out of memory, S = skipped"]


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
        [],
        [make_record()],
        [make_record(make_failure())],
        [make_record(make_failure(), mechanism=name, resolution=side) for name in MECHANISMS for side in (224, 9216)],
        [make_record(), make_record(make_failure(), mechanism="soft")],
        [make_record(make_measurement([1e-6])), make_record(make_measurement([1e6]), resolution=9216)],
    ],
    ids=["nothing", "one point", "one failure", "all failed", "a point and a failure", "extremes"],
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
        line = next(line for line in axes.lines if line.get_label() == "infsa-linear")
        assert (line.get_color(), line.get_marker()) == style("infsa-linear")


def test_implementations_differ_by_line_only() -> None:
    (axes,) = draw([make_record(), make_record(implementation="fast"), make_record(implementation="other")]).axes
    assert {line.get_label(): line.get_linestyle() for line in axes.lines} == {
        "softmax (reference)": "-",
        "softmax (fast)": "--",
        "softmax (other)": ":",
    }
    assert len({line.get_color() for line in axes.lines}) == 1


def test_each_of_the_nine_has_a_colour_and_a_marker_of_its_own() -> None:
    assert list(STYLES) == list(MECHANISMS)
    assert len(set(COLOURS)) == len(set(MARKERS)) == len(MECHANISMS)
    assert not set(OTHER_COLOURS) & set(COLOURS)


@pytest.mark.parametrize(
    "name", ["some.package:Mixer", "_private.package:Mixer", "$x$", "$\\nonsense$", "a_b^c", "<b>", "%s"]
)
def test_any_other_name_gets_a_style_and_stands_in_the_legend_as_it_is(name: str) -> None:
    assert style(name) == style(name)
    assert style(name)[0] in OTHER_COLOURS
    (axes,) = draw([make_record(mechanism=name), make_record(make_failure(), mechanism=name, resolution=512)]).axes
    legend = axes.get_legend()
    assert legend is not None
    (entry,) = legend.get_texts()
    assert entry.get_text().replace("\\$", "$") == name
    assert "$" not in name or "\\$" in entry.get_text() or not entry.get_parse_math()


def test_the_picture_is_a_png_file(tmp_path: Path) -> None:
    file = tmp_path / "figure.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_latency_vs_resolution(summarize(FIXED), file)
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(content[start : start + 4]) for start in (16, 20))
    assert (width, height) == (1125, 780)
    assert len(content) > 10_000


def test_intervals_are_bars() -> None:
    records = [
        make_record(make_measurement([0.010 + 0.001 * (3 * i % 8) for i in range(8)])),
        make_record(make_measurement([0.1]), resolution=512),
    ]
    records += [make_record(make_measurement([0.2 * 1.01**i]), resolution=1024, replicate=i) for i in range(3)]
    (axes,) = draw(records).axes
    rows = summarize(records)
    assert bars(axes) == [
        (row.case.resolution, pytest.approx(row.latency_low_seconds), pytest.approx(row.latency_high_seconds))
        for row in (rows[0], rows[2])
    ]
    assert len(axes.lines) == 1


def test_launch_bound_points_are_hollow() -> None:
    records = [
        make_record(make_measurement([0.01], launch_bound=True)),
        make_record(make_measurement([0.02], launch_bound=False), resolution=512),
        make_record(make_measurement([0.04], launch_bound=None), resolution=1024),
        make_record(make_measurement([0.03], launch_bound=True), mechanism="agent", resolution=512),
    ]
    (axes,) = draw(records).axes
    assert hollow(axes) == [(224, 0.01), (512, 0.03)]
    assert legend_of(axes) == ["softmax", "agent", "hollow: launch-bound"]
    (axes,) = draw(records[1:3]).axes
    assert hollow(axes) == []
    assert legend_of(axes) == ["softmax"]


ENERGY = [
    make_record(make_measurement(energy=make_energy([600.0, 600.0], relative_bias=0.01))),
    make_record(make_measurement(energy=make_energy([1200.0], doubts=("shared",))), resolution=512),
    make_record(make_measurement(energy=make_no_energy()), resolution=1024),
    make_record(make_failure("timeout"), resolution=2048),
]


def test_energy_over_resolution() -> None:
    (axes,) = draw(ENERGY, render_energy_vs_resolution).axes
    (line,) = axes.lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([224, 512], [3.0, 6.0])
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_ylabel() == "energy (joules per image, mean)"
    assert bars(axes) == [(224, pytest.approx(2.97), pytest.approx(3.03))]
    assert hollow(axes) == [(512, 6.0)]
    assert legend_of(axes) == ["softmax", "hollow: low confidence"]
    assert [(letter, side) for letter, side, _ in letters(axes)] == [("N", 1024), ("T", 2048)]
    notes = [text.get_text() for text in axes.texts if len(text.get_text()) > 1]
    assert notes == ["no number: N = energy not measured, T = timeout"]


def test_energy_has_panels_for_blocks_that_have_energy() -> None:
    records = [*ENERGY, make_record(phase="train"), make_record(make_measurement(energy=make_energy()), batch_size=8)]
    titles = [axes.get_title(loc="left") for axes in draw(records, render_energy_vs_resolution).axes]
    assert titles == ["4L-64H, infer, fp32, eager, batch 1", "4L-64H, infer, fp32, eager, batch 8"]


def test_an_interval_of_energy_that_reaches_zero_can_be_drawn() -> None:
    wild = make_energy([100.0, 1100.0])
    (row,) = summarize([make_record(make_measurement(energy=wild))])
    assert row.joules_per_image_low is not None
    assert row.joules_per_image_low < 0
    (axes,) = draw([make_record(make_measurement(energy=wild)), *ENERGY[1:]], render_energy_vs_resolution).axes
    ((side, low, high),) = bars(axes)
    assert (side, high) == (224, pytest.approx(row.joules_per_image_high))
    assert 0 < low < 0.1 * 3.0


def test_the_picture_of_energy_is_a_png_file(tmp_path: Path) -> None:
    file = tmp_path / "figure.png"
    write_energy_vs_resolution(summarize(ENERGY), file)
    assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
