"""How mechanisms look, the same in every figure, and how text from files is drawn: as it stands, never as a formula.

Every mechanism has a colour and a marker of its own, so that figures can be read without colour. ``reference`` is a
solid line or a full bar, ``fast`` a dashed or a hatched one. Figures are white, on a dark page as well: black is one
of the colours.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec

import matplotlib as mpl
import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.quoting import one_line
from infsa_models.registry import MECHANISMS

# Paul Tol's "muted" scheme, made for colour-blind readers; the ninth line is black.
COLOURS = ("#000000", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#AA4499", "#CC6677", "#332288")
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "<", ">")
STYLES = {name: (COLOURS[i], MARKERS[i]) for i, name in enumerate(MECHANISMS)}
OTHER_COLOURS = ("#882255", "#661100", "#6699CC", "#888888")
MARKER_SIZE = 5.0
LINES = {"reference": "-", "fast": "--"}
HATCHES = {"reference": "", "fast": "////"}
OTHER_HATCH = "xxxx"
BACKGROUND = "white"
FAILURE_LETTERS = {
    "oom": "O",
    "host_oom": "O",
    "timeout": "T",
    "crash": "C",
    "killed": "K",
    "unsupported": "U",
    "skipped": "S",
    "error": "E",
}

P = ParamSpec("P")

LONGEST_NAME = 36
MOST_READ = 1000
LONGEST_TITLE = 150
TITLE_WIDTH = 58
NOTE_WIDTH = 84
MOST_PANELS = 12
"""A figure of a run with more blocks shows the first ones: beyond this nobody reads it, and files grow without end."""

MOST_SERIES = 40
SHORT_RATIO, LONG_RATIO = 6.0, 200.0


def style(mechanism: str) -> tuple[str, str]:
    """Return colour and marker of a mechanism; those from elsewhere share a few more colours."""
    known = STYLES.get(mechanism)
    if known:
        return known
    return OTHER_COLOURS[sum(mechanism.encode(errors="surrogatepass")) % len(OTHER_COLOURS)], "*"


def failure_of(row: SummaryRow) -> tuple[str, str]:
    """Return the letter of a failed row and what it means."""
    letter = FAILURE_LETTERS[row.status]
    return letter, "out of memory" if letter == "O" else row.status


def legible(text: str, longest: int = LONGEST_NAME) -> str:
    """Return text from a file on one line, its middle left out where it is long, with escapes for what no font here
    has.
    """
    if len(text) > MOST_READ:
        text = text[: MOST_READ // 2] + text[-MOST_READ // 2 :]
    text = one_line(text)
    text = "".join(letter if ord(letter) in _glyphs() else ascii(letter)[1:-1] for letter in text)
    if len(text) <= longest:
        return text
    half = (longest - 3) // 2
    return f"{text[: longest - 3 - half]}...{text[-half:]}"


@functools.cache
def _glyphs() -> frozenset[int]:
    fonts = [get_font(findfont(FontProperties(weight=weight))) for weight in ("normal", "bold")]
    return frozenset.intersection(*(frozenset(font.get_charmap()) for font in fonts))


def in_plain_style(render: Callable[P, Figure | None]) -> Callable[P, Figure | None]:
    """Make a function draw in matplotlib's own style, whatever style its caller (a dark notebook) has set."""

    @functools.wraps(render)
    def plain(*arguments: P.args, **options: P.kwargs) -> Figure | None:
        with mpl.style.context("default"):
            figure = render(*arguments, **options)
            for axes in figure.axes if figure else ():
                # Ticks take their colours when they are made, which would be when the figure is drawn.
                axes.get_xticklabels()
                axes.get_yticklabels()
            return figure

    return plain


def new_figure(width: float, height: float) -> Figure:
    """Return a white figure of that many inches, without any global state of pyplot."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    return figure


def draw_title(axes: Axes, title: str, note: str = "") -> None:
    """Put a title over a panel, and small print between the two, each in as many lines as it needs."""
    small = textwrap.wrap(note, NOTE_WIDTH)
    large = textwrap.fill(legible(title, LONGEST_TITLE), TITLE_WIDTH)
    pad = 6.0 + 10.0 * len(small)
    axes.set_title(large, fontsize=10, loc="left", parse_math=False, pad=pad)
    if small:
        axes.text(
            0.0,
            1.01,
            "\n".join(small),
            fontsize=7,
            ha="left",
            va="bottom",
            transform=axes.transAxes,
            parse_math=False,
        )


def draw_ticks(axis: Axis, positions: Sequence[float], labels: Sequence[str], **changes: Any) -> None:
    """Put labels on an axis in the place of numbers, as they stand."""
    axis.set_ticks(positions, labels=labels, **changes)
    axis.set_ticks([], minor=True)
    for text in axis.get_ticklabels():
        text.set_parse_math(False)


def number_axis(axis: Axis) -> None:
    """Write the numbers of a logarithmic axis as people do, 0.5 and 200, few on a long one and enough on a short one.

    Its limits must be final.
    """
    low, high = axis.get_view_interval()
    if high < SHORT_RATIO * low:
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < LONG_RATIO * low else (1.0,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def draw_intervals(
    axes: Axes, spans: Sequence[tuple[float, float, float]], *, upright: bool, colour: str = "#444444"
) -> None:
    """Draw intervals as lines without caps, each at a place from its low to its high end, upright or lying.

    All of them are one patch: files stay small.
    """
    if not spans:
        return
    corners = [(place, end) if upright else (end, place) for place, *ends in spans for end in ends]
    path = Path(corners, [Path.MOVETO, Path.LINETO] * len(spans))
    axes.add_patch(PathPatch(path, fill=False, edgecolor=colour, linewidth=1.0, zorder=2.2))


def draw_legend(figure: Figure, entries: Iterable[tuple[Artist, str]]) -> None:
    """Put one legend for all panels at the right of a figure.

    A name may begin with an underscore, which legends leave out, or hold dollar signs, which they read as formulas.
    """
    entries = list(entries)
    if not entries:
        return
    legend = figure.legend(
        [handle for handle, _ in entries],
        ["name"] * len(entries),
        fontsize=8,
        loc="outside right upper",
        frameon=False,
        handlelength=2.8,
    )
    for text, (_, label) in zip(legend.get_texts(), entries, strict=True):
        text.set_parse_math(False)
        text.set_text(label)
