"""Figures as images that lie in a page: the same run gives the same bytes."""

from __future__ import annotations

import base64
import io

import matplotlib
from matplotlib.figure import Figure

from infsa_bench.analyze.run import Run
from infsa_bench.report.figures import FIGURES
from infsa_bench.report.sections import Picture

METADATA = {"Date": None, "Creator": None}


def render_svg(figure: Figure) -> bytes:
    """Return a figure as an SVG on a white ground, without the time at which it was made."""
    file = io.BytesIO()
    # Ids are random without a salt; text as paths needs no font where it is shown.
    with matplotlib.rc_context({"svg.hashsalt": "infsa-bench", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata=METADATA, facecolor="white")
    return file.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """Return a file as an address that holds it. ``kind`` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def run_pictures(run: Run) -> list[Picture]:
    """Return every figure of a run, those that it has nothing to show in without a source."""
    pictures = []
    for kind in FIGURES.values():
        figure = kind.render(run)
        if figure is None:
            pictures.append(Picture(title=kind.title, lacking=kind.lacking))
            continue
        source = data_uri(render_svg(figure), "image/svg+xml")
        pictures.append(Picture(title=kind.title, source=source, alternative=kind.describe(run)))
    return pictures
