"""Measure how attention mechanisms scale: latency, throughput, energy and memory against image resolution.

From Python, e.g. in a notebook::

    import infsa_bench

    run = infsa_bench.run_sweep(res="224,512", mechanisms=["softmax", "infsa-linear"], out="results/mine")
    run = infsa_bench.load_run("results/mine")  # the same again, later or elsewhere; needs no torch
    frame = run.frame()  # pandas, one line a cell, SI units in the names of its columns
    figure = infsa_bench.figures.render_latency_vs_resolution(run)  # matplotlib

The names below are imported when they are first used: a worker that measures needs none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from infsa_models import __version__

if TYPE_CHECKING:
    from infsa_bench.analyze.run import Run, load_run
    from infsa_bench.commands.api import run_sweep
    from infsa_bench.report import figures

__all__ = ["Run", "__version__", "figures", "load_run", "run_sweep"]

_PLACES = {
    "Run": "infsa_bench.analyze.run:Run",
    "load_run": "infsa_bench.analyze.run:load_run",
    "run_sweep": "infsa_bench.commands.api:run_sweep",
    "figures": "infsa_bench.report.figures:",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
