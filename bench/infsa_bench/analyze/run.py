"""A run as it is read: what was stored, and what follows from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from infsa_bench.analyze.frame import to_frame
from infsa_bench.analyze.summary import SummaryRow, summarize
from infsa_bench.errors import SpecError
from infsa_bench.store import StoredRun, load


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(StoredRun):
    """A run with its summary. ``rows`` has one entry a cell, ordered as by :func:`summarize`; none for a search."""

    rows: tuple[SummaryRow, ...]

    def frame(self) -> pd.DataFrame:
        """Return a tidy table, one line a cell, with SI units in the names of its columns."""
        return to_frame(self.rows)


def load_run(path: str | Path) -> Run:
    """Read the run in ``path`` and sum it up; needs no torch.

    Raises:
        SpecError: no run there, or one whose energy was made up by the NVML of the tests.
        SchemaError: a file of it cannot be read.
    """
    stored = load(Path(path))
    if any(found.gpu is not None and found.gpu.is_fake for found in stored.manifest.environments.values()):
        raise SpecError(f"{path} was made with the fake NVML library of the tests: not published")
    return summarized(stored)


def summarized(stored: StoredRun) -> Run:
    """Return a stored run with its summary."""
    rows = summarize(
        stored.records,
        memory_limit_bytes=stored.manifest.settings.memory_limit_bytes,
        environments=stored.manifest.environments,
        peaks=stored.peaks,
        further_peaks=stored.further_peaks,
    )
    fields = {field.name: getattr(stored, field.name) for field in dataclasses.fields(StoredRun)}
    return Run(**fields, rows=tuple(rows))
