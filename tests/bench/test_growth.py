"""Scheduling and storing take as long for each of many cells as for each of few, and hold little of them."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import simulated_run

from infsa_bench.analyze.run import load_run
from infsa_bench.report.table import render_markdown

IN_MEMORY = Path("/dev/shm")
MOST_GROWTH = 1.2

RESUME_SECONDS_PER_CELL = 4e-4
"""Four times what it took on a busy machine, 0.1 ms, with 100,000 cells as with 10,000: four seconds for 10,000."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: how long a disk takes to sync says nothing of the schedule."""
    if not os.access(IN_MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as name:
        yield Path(name)


def grown(folder: Path, cells: int, *options: str) -> dict[str, Any]:
    """The figures of a run in a process of its own, whose memory is its own as well."""
    folder.mkdir()
    command = [sys.executable, simulated_run.__file__, str(cells), str(folder), *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    print(figures)
    return figures


def test_the_peak_is_that_of_the_run_not_of_who_started_it(folder: Path) -> None:
    held = bytearray(3 * 2**28)
    held[:: mmap.PAGESIZE] = b"x" * len(range(0, len(held), mmap.PAGESIZE))
    figures = grown(folder / "few", 60)
    assert 2**20 < figures["peak_bytes"] < len(held)


def test_a_run_that_was_opened_again_can_still_be_reported(tmp_path: Path) -> None:
    plan = simulated_run.plan_of(simulated_run.cells_of(24), has_budget=False)
    simulated_run.run(plan, tmp_path / "run", places=2)
    before = load_run(tmp_path / "run")
    left, _ = simulated_run.resume(plan, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert (left, run) == (0, before)
    assert {record.environment for record in run.records} < run.manifest.environments.keys()
    assert "24 cells" in render_markdown(run, run.rows)


OPTIONS = {
    "no budget": (),
    "budget": ("--budget",),
    "two places": ("--places", "2"),
    "budget, two places": ("--budget", "--places", "2"),
}
SOAKED = [(100_000, name) for name in OPTIONS] + [(10_000, "budget"), (10_000, "two places")]


@pytest.mark.parametrize(
    ("cells", "options"),
    [
        (10_000, "no budget"),
        (10_000, "budget, two places"),
        *(pytest.param(*each, marks=pytest.mark.soak) for each in SOAKED),
    ],
)
def test_a_cell_takes_as_long_whether_there_are_few_or_many(folder: Path, cells: int, options: str) -> None:
    figures: dict[str, Any] = {}
    # Who else uses the processor changes its time as well: what really grows does so twice.
    for attempt in range(2):
        figures = grown(folder / str(attempt), cells, *OPTIONS[options])
        if figures["seconds_per_cell"] < MOST_GROWTH * figures["small_seconds_per_cell"]:
            break
    assert figures["seconds_per_cell"] < MOST_GROWTH * figures["small_seconds_per_cell"]
    assert figures["peak_bytes"] < 2**30
    assert figures["left"] == 0
    # A record is read again in less than it took to plan, make and write it.
    assert figures["resume_seconds"] < 0.5 * figures["seconds_per_cell"] * cells
    assert figures["resume_seconds"] < RESUME_SECONDS_PER_CELL * cells
