"""What a figure shows, read back from it, for tests of figures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.text import Text
from sample_records import make_run

from infsa_bench.analyze.run import Run, summarized
from infsa_bench.record import Record

HOSTILE_NAMES = (
    "$x^{",
    "$\\nonsense$",
    "<img src=x onerror=alert(1)>",
    "_hidden",
    "%s {}",
    "a\nb\x1b[31m",
    "\u4e2d\u6587 \U0001f600 \u202e",
    "long " * 200,
    "\udcff",
    "]]>--><!--",
)

Render = Callable[[Run], Figure | None]


def run_of(records: Sequence[Record], path: Path = Path("results/example")) -> Run:
    return summarized(make_run(records, path))


def draw(render: Render, run: Run) -> Figure:
    """Draw to the last pixel; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = render(run)
        assert figure is not None
        figure.canvas.draw()
    return figure


def curves(axes: Axes) -> list[Line2D]:
    """The lines with markers: not those that only mark a level."""
    return [line for line in axes.lines if line.get_marker() not in (None, "None", "")]


def intervals(axes: Axes) -> list[tuple[float, float, float]]:
    """The intervals that are drawn upright: place, lower end, upper end."""
    return sorted((x, low, high) for (x, low), (_, high) in _spans(axes))


def lying_intervals(axes: Axes) -> list[tuple[float, float, float]]:
    """The intervals that are drawn lying: place, lower end, upper end."""
    return sorted((y, low, high) for (low, y), (high, _) in _spans(axes))


def _spans(axes: Axes) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    spans = []
    for patch in axes.patches:
        if isinstance(patch, PathPatch) and not patch.get_fill():
            corners = [(float(x), float(y)) for x, y in patch.get_path().vertices]  # type: ignore[union-attr]
            spans += list(zip(corners[::2], corners[1::2], strict=True))
    return spans


def hollow(axes: Axes) -> list[tuple[float, float]]:
    """The points that are drawn hollow."""
    collections = [item for item in axes.collections if isinstance(item, PathCollection)]
    assert all((item.get_facecolor() == 1).all() for item in collections)
    return sorted((float(x), float(y)) for item in collections for x, y in item.get_offsets())


def legend_of(figure: Figure) -> list[str]:
    """The names in the one legend of a figure."""
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def letters(axes: Axes) -> list[tuple[str, float, str]]:
    """The marks of failures: letter, place, colour."""
    return [
        (text.get_text(), text.get_position()[0], str(text.get_color()))
        for text in axes.texts
        if len(text.get_text()) == 1
    ]


def notes(axes: Axes) -> list[str]:
    """Every text inside a panel but the letters of failures, as it stands on one line."""
    return [" ".join(text.get_text().split()) for text in axes.texts if len(text.get_text()) > 1]


def tick_labels(axis: object) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]  # type: ignore[attr-defined]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts of a drawn figure that lie on each other."""
    texts = [text for axes in figure.axes for text in _texts(axes)]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text() and text.get_visible()]
    return [
        (one, other)
        for index, (one, box) in enumerate(boxes)
        for other, other_box in boxes[index + 1 :]
        if min(box.x1, other_box.x1) - max(box.x0, other_box.x0) > 1
        and min(box.y1, other_box.y1) - max(box.y0, other_box.y0) > 1
    ]


def _texts(axes: Axes) -> list[Text]:
    """The texts of a panel but for tick labels that are turned or outside the view, which are not drawn."""
    titles = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]  # type: ignore[attr-defined]
    ticks = []
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        places = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
        ticks += [label for place, label in places if low <= place <= high and not label.get_rotation()]
    return [*titles, *axes.texts, *ticks]
