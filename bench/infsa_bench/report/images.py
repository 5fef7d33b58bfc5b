"""Figures as images that lie in a page: the same run gives the same bytes."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from infsa_bench.analyze.run import Run
from infsa_bench.report.figures import FIGURES, Drawing
from infsa_bench.report.sections import Picture


def data_uri(content: bytes, kind: str) -> str:
    """Return a file as an address that holds it. ``kind`` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def run_pictures(run: Run, drawings: Mapping[str, Drawing | None]) -> list[Picture]:
    """Return every figure of a run, those that it has nothing to show in without a source."""
    pictures = []
    for stem, kind in FIGURES.items():
        drawing = drawings[stem]
        if drawing is None:
            pictures.append(Picture(title=kind.title, lacking=kind.lacking))
            continue
        source = data_uri(drawing.svg.encode(errors="backslashreplace"), "image/svg+xml")
        pictures.append(Picture(title=kind.title, source=source, alternative=kind.describe(run)))
    return pictures
