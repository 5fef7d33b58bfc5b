"""Power traces of a run: a table in CSV for each case that has one, in a folder beside the records."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO, TypeVar

from infsa_bench.codec import INTEGER_LIMIT, LARGEST_FLOAT
from infsa_bench.errors import SchemaError
from infsa_bench.files import read_lines, replace_file, sync_folder
from infsa_bench.quoting import quoted
from infsa_bench.record import TracePoint

TRACES = "traces"
TRACE_DRAFT = "trace.new"
TRACE_COLUMNS = ("seconds", "power_watts", "sm_clock_mhz", "temperature_celsius", "event_reasons")
MAX_TRACE_STEM = 180
"""Longest name of a trace, in bytes, without its ending; file systems take 255."""

MAX_TRACE_BYTES = 2**25
MAX_TRACE_LINE_BYTES = 2**12

Number = TypeVar("Number", int, float)


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


def load_trace(file: Path) -> tuple[TracePoint, ...]:
    """Return the trace in ``file`` as :func:`write_trace` wrote it; empty where there is none.

    Raises:
        SchemaError: unreadable, too large, no regular file or in a folder that is a link, or no trace.
    """
    if file.parent.is_symlink():
        raise SchemaError(f"{file.parent}: a symbolic link where a folder should be")
    points: list[TracePoint] = []
    try:
        for number, line in enumerate(read_lines(file, MAX_TRACE_BYTES, MAX_TRACE_LINE_BYTES), start=1):
            try:
                fields = _fields(line)
                if number > 1:
                    points.append(_point(fields, points[-1].seconds if points else 0.0))
                elif tuple(fields) != TRACE_COLUMNS:
                    raise ValueError("not the columns of a trace")
            except ValueError as error:
                raise SchemaError(f"{file}, line {number}: {error}") from None
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise SchemaError(f"{file}: {error.strerror or error}") from None
    return tuple(points)


def _fields(line: bytes) -> list[str]:
    if not line.endswith(b"\n"):
        raise ValueError("torn: no end of line")
    try:
        (fields,) = csv.reader([line[:-1].decode()], strict=True)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"not CSV: {error}") from None
    if len(fields) != len(TRACE_COLUMNS):
        raise ValueError(f"{len(fields)} fields where a trace has {len(TRACE_COLUMNS)}")
    return fields


def _point(fields: Sequence[str], earliest_seconds: float) -> TracePoint:
    at, power, clock, temperature, reasons = fields
    seconds = _number(float, at, LARGEST_FLOAT)
    if seconds is None or seconds < earliest_seconds:
        raise ValueError(f"seconds {quoted(at)} after {earliest_seconds}")
    return TracePoint(
        seconds=seconds,
        power_watts=_number(float, power, LARGEST_FLOAT),
        sm_clock_mhz=_number(int, clock, INTEGER_LIMIT),
        temperature_celsius=_number(int, temperature, INTEGER_LIMIT),
        event_reasons=tuple(reasons.split()),
    )


def _number(kind: Callable[[str], Number], text: str, limit: float) -> Number | None:
    """Return a number within bounds, None for nothing."""
    if not text:
        return None
    # Python would read more than a trace is written with: spaces, underscores, digits of other scripts.
    if not re.fullmatch(r"-?[0-9][0-9.eE+-]*", text):
        raise ValueError(f"no number: {quoted(text)}")
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"no number: {quoted(text)}") from None
    if not -limit < value < limit:
        raise ValueError(f"beyond all bounds: {quoted(text)}")
    return value
