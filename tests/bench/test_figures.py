from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sample_records import make_failure, make_measurement, make_record

from infsa_bench.analyze.summary import summarize
from infsa_bench.record import FailureKind, Record
from infsa_bench.report.figures import (
    COLOURS,
    FAILURE_LETTERS,
    MARKERS,
    OTHER_COLOURS,
    STYLES,
    render_latency_vs_resolution,
    style,
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


def draw(records: Sequence[Record]) -> Figure:
    """Draw to the last pixel; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = render_latency_vs_resolution(summarize(records))
        figure.canvas.draw()
    return figure


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
    records = [make_record(make_failure("timeout"), mechanism=name, resolution=1024) for name in MECHANISMS]
    records += [
        make_record(make_measurement([9.0]), mechanism=name, resolution=1024, replicate=1) for name in MECHANISMS
    ]
    figure = draw([*records, make_record(make_measurement([0.001]), resolution=224)])
    (axes,) = figure.axes
    highest = axes.transData.transform((1024, 9.0))[1]
    marks = [text for text in axes.texts if len(text.get_text()) == 1]
    assert len(marks) == len(MECHANISMS)
    assert min(mark.get_window_extent().y0 for mark in marks) > highest
    assert max(mark.get_window_extent().y1 for mark in marks) < axes.get_window_extent().y1


def test_no_marks_without_failures() -> None:
    (axes,) = draw(FIXED[:2]).axes
    assert list(axes.texts) == []


@pytest.mark.parametrize("kind", ["oom", "host_oom", "timeout", "crash", "killed", "unsupported", "skipped", "error"])
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
