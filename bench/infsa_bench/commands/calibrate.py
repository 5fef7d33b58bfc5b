"""``infsa-bench calibrate``: how often the gate is wrong, by simulation; kept with what it was made from."""

from __future__ import annotations

import dataclasses
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy
from rich.console import Console

from infsa_bench import __version__
from infsa_bench.analyze.calibration import DEVIATIONS, CalibrationRow, Setup, calibrate
from infsa_bench.codec import encode
from infsa_bench.commands.repository import commit_here
from infsa_bench.errors import SpecError
from infsa_bench.report.calibration import (
    calibration_cells,
    describe_setup,
    render_calibration_csv,
    render_calibration_markdown,
)
from infsa_bench.sweep import utc_now


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationManifest:
    """What a table was made from."""

    created_utc: str
    setup: Setup
    deviations: tuple[float, ...]
    seconds: float
    python_version: str
    numpy_version: str
    scipy_version: str
    infsa_bench_version: str
    git_commit: str | None


def run_calibration(suites: int, seed: int, out: Path | None, console: Console) -> None:
    """Simulate, print the table, and write it into ``out``.

    Raises:
        SpecError: no suites, or the folder cannot be written.
    """
    if not 1 <= suites <= 1_000_000:
        raise SpecError(f"--suites must be between 1 and 1000000, not {suites}")
    if not 0 <= seed < 2**63:
        raise SpecError(f"--seed must be between 0 and 2^63 - 1, not {seed}")
    setup = dataclasses.replace(Setup(), suites=suites, seed=seed)
    # Before, not after: the tree may change in the meantime.
    started, commit = time.monotonic(), commit_here()
    rows: list[CalibrationRow] = []
    for line in describe_setup(setup):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for deviation in DEVIATIONS:
        found = calibrate(setup, deviation)
        rows += found
        for row in found:
            console.print("  ".join(calibration_cells(row)), markup=False, highlight=False, soft_wrap=True)
    if out is None:
        return
    manifest = CalibrationManifest(
        created_utc=utc_now(),
        setup=setup,
        deviations=DEVIATIONS,
        seconds=time.monotonic() - started,
        python_version=platform.python_version(),
        numpy_version=np.__version__,
        scipy_version=scipy.__version__,
        infsa_bench_version=__version__,
        git_commit=commit,
    )
    files = {
        "table.md": render_calibration_markdown(setup, rows),
        "table.csv": render_calibration_csv(rows),
        "manifest.json": encode(manifest, indent=1) + "\n",
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"cannot write to {out}: {error.strerror or error}") from error
    console.print(f"table: {out / 'table.md'}", markup=False, highlight=False, soft_wrap=True)
