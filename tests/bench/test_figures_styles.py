from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pytest
from drawn import HOSTILE_NAMES, legend_of, run_of, tick_labels
from matplotlib.lines import Line2D
from sample_records import make_failure, make_record

from infsa_bench.analyze.summary import summarize
from infsa_bench.report.figures import render_latency_vs_resolution
from infsa_bench.report.figures.files import draw, write_drawing
from infsa_bench.report.figures.styles import (
    COLOURS,
    FAILURE_LETTERS,
    LONGEST_NAME,
    MARKERS,
    OTHER_COLOURS,
    STYLES,
    draw_legend,
    draw_ticks,
    draw_title,
    failure_of,
    legible,
    new_figure,
    number_axis,
    style,
)
from infsa_models.registry import MECHANISMS


def test_each_of_the_nine_has_a_colour_and_a_marker_of_its_own() -> None:
    assert list(STYLES) == list(MECHANISMS)
    assert len(set(COLOURS)) == len(set(MARKERS)) == len(MECHANISMS)
    assert not set(OTHER_COLOURS) & set(COLOURS)
    assert style("softmax") == STYLES["softmax"]
    assert style("of:Mine") == style("of:Mine")
    assert style("of:Mine")[0] in OTHER_COLOURS


def test_a_failure_has_a_letter_and_a_meaning() -> None:
    (row,) = summarize([make_record(make_failure("host_oom"))])
    assert failure_of(row) == ("O", "out of memory")
    (row,) = summarize([make_record(make_failure("timeout"))])
    assert failure_of(row) == ("T", "timeout")
    assert all(len(letter) == 1 for letter in FAILURE_LETTERS.values())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("softmax", "softmax"),
        ("a\n b\tc", "a b c"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u4e2d", "\\u4e2d"),
        ("caf\u00e9 \u03c1", "caf\u00e9 \u03c1"),
        ("\udcff", "\\udcff"),
        ("$x^{", "$x^{"),
        ("a" * 20 + "b" * 20, "a" * 17 + "..." + "b" * 16),
        ("x" * 10**6 + "end", "x" * 17 + "..." + "x" * 13 + "end"),
    ],
)
def test_text_from_files_is_short_on_one_line_and_of_letters_that_the_font_has(text: str, shown: str) -> None:
    assert legible(text) == shown
    assert len(legible(text)) <= LONGEST_NAME


def test_no_text_is_a_formula(recwarn: pytest.WarningsRecorder) -> None:
    figure = new_figure(9, 6)
    axes = figure.add_subplot()
    names = [legible(name) for name in HOSTILE_NAMES]
    draw_title(axes, HOSTILE_NAMES[0], HOSTILE_NAMES[1])
    draw_ticks(axes.yaxis, range(len(names)), names)
    draw_legend(figure, [(Line2D([], []), name) for name in names])
    figure.canvas.draw()
    assert legend_of(figure) == tick_labels(axes.yaxis) == names
    assert not any(text.get_parse_math() for text in axes.get_yticklabels())
    assert list(recwarn) == []


def test_a_note_stands_between_title_and_panel_in_as_many_lines_as_it_needs() -> None:
    for length in (1, 10, 40):
        figure = new_figure(7.5, 5)
        axes = figure.add_subplot()
        draw_title(axes, "a title " * 12, "so it is, " * length)
        figure.canvas.draw()
        title = axes._left_title  # type: ignore[attr-defined]
        (note,) = axes.texts
        assert axes.get_window_extent().y1 < note.get_window_extent().y0
        assert note.get_window_extent().y1 < title.get_window_extent().y0
        assert title.get_window_extent().y1 < figure.bbox.y1
        assert max(text.get_window_extent().x1 for text in (note, title)) < figure.bbox.x1


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (8.0, 13.0, ["8", "9", "10", "11", "12", "13"]),
        (0.5, 20.0, ["0.5", "1", "2", "5", "10", "20"]),
        (0.01, 1000.0, ["0.01", "0.1", "1", "10", "100", "1000"]),
    ],
)
def test_logarithmic_axes_have_plain_numbers(low: float, high: float, expected: list[str]) -> None:
    axes = new_figure(6, 4).add_subplot()
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    number_axis(axes.xaxis)
    labels = {float(label): label for label in tick_labels(axes.xaxis)}
    assert [label for value, label in labels.items() if low <= value <= high] == expected


def test_the_style_of_a_caller_changes_nothing(tmp_path: Path) -> None:
    run = run_of([make_record(), make_record(make_failure(), resolution=512)])
    dark = {"text.color": "white", "axes.facecolor": "black", "xtick.color": "white", "text.usetex": True}
    contents = []
    for settings in ({}, dark):
        with mpl.rc_context(settings):
            png, _ = write_drawing(draw(render_latency_vs_resolution(run)), tmp_path, "figure")
            figure = render_latency_vs_resolution(run)
        contents.append(png.read_bytes())
        assert figure is not None
        # Drawn later, and elsewhere.
        with mpl.rc_context(settings):
            figure.canvas.draw()
        contents.append(bytes(figure.canvas.buffer_rgba()))  # type: ignore[attr-defined]
    assert contents[0] == contents[2]
    assert contents[1] == contents[3]


def test_figures_are_white_on_any_page() -> None:
    assert new_figure(1, 1).get_facecolor() == (1, 1, 1, 1)
