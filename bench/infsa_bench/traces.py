"""Power traces of a run: a table in CSV for each case that has one, in a folder beside the records."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from infsa_bench.files import replace_file, sync_folder
from infsa_bench.record import TracePoint

TRACES = "traces"
TRACE_DRAFT = "trace.new"
TRACE_COLUMNS = ("seconds", "power_watts", "sm_clock_mhz", "temperature_celsius", "event_reasons")
MAX_TRACE_STEM = 180
"""Longest name of a trace, in bytes, without its ending; file systems take 255."""


def trace_path(path: Path, case_id: str) -> Path:
    """Return the file that holds the power trace of a case of the run in ``path``, whether there is one or not."""
    stem = case_id.replace("/", "_")
    if "_" in case_id or not re.fullmatch(r"[A-Za-z0-9_.,=+-]+", stem) or len(stem) > MAX_TRACE_STEM:
        # Two ids may come to the same here, and are told apart by a digest; no other name has a tilde.
        digest = hashlib.sha256(case_id.encode(errors="surrogatepass")).hexdigest()[:12]
        kept = re.sub(r"[^A-Za-z0-9_.,=+-]", "-", stem)
        stem = f"{kept[: MAX_TRACE_STEM - 1 - len(digest)]}~{digest}"
    return path / TRACES / f"{stem}.csv"


def write_trace(file: Path, trace: Sequence[TracePoint]) -> None:
    """Make ``trace`` the one of its case, whatever was there before, and return once that is on disk.

    Raises:
        OSError: it cannot be written, or the folder of the traces is a link to elsewhere.
    """
    folder = file.parent
    if folder.is_symlink():
        raise NotADirectoryError(f"{folder}: a symbolic link where a folder should be")
    if not trace:
        try:
            file.unlink()
        except FileNotFoundError:
            return
        sync_folder(folder)
        return

    def write(handle: TextIO) -> None:
        rows = csv.writer(handle, lineterminator="\n")
        rows.writerow(TRACE_COLUMNS)
        for point in trace:
            reasons = " ".join(point.event_reasons)
            rows.writerow([point.seconds, point.power_watts, point.sm_clock_mhz, point.temperature_celsius, reasons])

    if not folder.is_dir():
        folder.mkdir()
        sync_folder(folder.parent)
    replace_file(folder / TRACE_DRAFT, file, write)
