"""Figures on disk: each as PNG and as SVG, the same bytes for the same run."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

PNG_DPI = 150
SETTINGS: Any = {
    # Ids in an SVG are random without a salt.
    "svg.hashsalt": "infsa-bench",
    # Text stays text: a fraction of the size of its outlines, and searchable. Its fonts are named with every piece.
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A figure as the contents of its two files."""

    png: bytes
    svg: str


def draw(figure: Figure | None) -> Drawing | None:
    """Return a figure as PNG and as SVG, arranged once; None of none."""
    if figure is None:
        return None
    picture, drawing = io.BytesIO(), io.StringIO()
    with mpl.style.context(["default", SETTINGS]):
        # Not through savefig, which would arrange and draw everything once more for each of them.
        figure.set_dpi(PNG_DPI)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.print_png(picture, metadata={"Software": None})
        figure.set_layout_engine("none")
        canvas = FigureCanvasSVG(figure)
        canvas.print_svg(drawing, metadata={"Date": None})
    return Drawing(png=picture.getvalue(), svg=compacted(drawing.getvalue()))


def write_drawing(drawing: Drawing | None, folder: Path, stem: str) -> list[Path]:
    """Write a drawing and return its files; of none, remove those of an earlier one of that name.

    Raises:
        OSError: the folder cannot be written.
    """
    png, svg = folder / f"{stem}.png", folder / f"{stem}.svg"
    for file in (png, svg):
        # A figure of an earlier run would be taken for this one's, and a link would be followed.
        file.unlink(missing_ok=True)
    if drawing is None:
        return []
    png.write_bytes(drawing.png)
    svg.write_text(drawing.svg, encoding="utf-8", errors="backslashreplace")
    return [png, svg]


def compacted(svg: str) -> str:
    """Return a drawing with coordinates to a hundredth of a point, without comments and turns by nothing.

    Only what stands in tags is rounded, no text that is shown.
    """
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<text [^<>]*?) transform="rotate\(-0 [^()]*\)"', r"\1", svg)
    return re.sub(r"<[^<>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), svg)
