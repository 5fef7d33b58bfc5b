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

IN_MEMORY = Path("/dev/shm")
MOST_GROWTH = 1.2

RESUME_SECONDS_PER_CELL = 1e-3
"""Four times what a busy machine took, 0.25 ms: ten seconds for 10,000 cells."""


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
    held = bytearray(2**30)
    held[:: mmap.PAGESIZE] = b"x" * len(range(0, len(held), mmap.PAGESIZE))
    figures = grown(folder / "few", 60)
    assert 2**20 < figures["peak_bytes"] < len(held)


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
