"""A run on disk: ``results/<run>/{manifest.json, records.jsonl, traces/}``, the only thing that crosses to reporting.

A record is one line, written with one call and synced before the next case starts, so that a killed sweep loses at
most the case that it was in. Its power trace, where there is one, is a file of its own and on disk before it. The
store never computes.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from infsa_bench.codec import decode, encode
from infsa_bench.energy_plan import EnergyChoice
from infsa_bench.errors import RunLockedError, SchemaError, SpecError
from infsa_bench.protocol import Protocol
from infsa_bench.record import SCHEMA_VERSION, EnergyCalibration, Environment, Record, TracePoint
from infsa_bench.spec import Case

MANIFEST = "manifest.json"
RECORDS = "records.jsonl"
TRACES = "traces"
DRAFT = f"{MANIFEST}.new"
TRACE_DRAFT = "trace.new"
LOCK = ".lock"

TRACE_COLUMNS = ("seconds", "power_watts", "sm_clock_mhz", "temperature_celsius", "event_reasons")
MAX_TRACE_STEM = 180
"""Longest name of a trace, in bytes, without its ending; file systems take 255."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What holds for every case of a run; a run with other settings needs another folder.

    ``memory_limit_bytes`` is the memory of the smaller device that was emulated, None for none.
    """

    device: str
    protocol: Protocol
    seed: int
    time_budget_seconds: float | None
    energy: EnergyChoice = "auto"
    memory_limit_bytes: int | None = None

    def differences(self, other: Settings) -> list[str]:
        """Name what makes records under the two not comparable.

        The time budget does not; nor does the number of replicates, more of which only add cases.
        """
        pairs = {
            "device": (self.device, other.device),
            "protocol": (_each_replicate(self.protocol), _each_replicate(other.protocol)),
            "seed": (self.seed, other.seed),
            "energy": (self.energy, other.energy),
            "memory limit": (self.memory_limit_bytes, other.memory_limit_bytes),
        }
        return [name for name, (mine, theirs) in pairs.items() if mine != theirs]


def _each_replicate(protocol: Protocol) -> Protocol:
    """Return what the protocol asks of every single replicate, whatever it is called for their number."""
    return replace(protocol, name="", replicates=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A search for the largest resolution that fits, in the place of a plan: what is probed follows from the records.

    ``models`` are cases of any resolution, one for each search; the grid is the multiples of ``step`` from
    ``smallest`` to ``largest``, in pixels. A probe has ``timeout_seconds``; ``available_bytes`` is the memory from
    which limits were predicted.
    """

    models: tuple[Case, ...]
    smallest: int
    largest: int
    step: int
    timeout_seconds: float
    available_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The plan of a run and where it ran. ``plan`` holds case ids, ``environments`` is keyed by their digest.

    ``search`` is what a run of ``maxres`` looks for, None for a sweep.

    ``calibrations`` are what was found out about the energy counter at the start and at the end, of this sweep and of
    each that went on with the run.
    """

    created_utc: str
    command: tuple[str, ...]
    settings: Settings
    plan: tuple[str, ...]
    environments: dict[str, Environment]
    calibrations: tuple[EnergyCalibration, ...] = ()
    search: Search | None = None
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A loaded run. ``records`` hold each case once, in the order of the plan, whatever order they were measured in."""

    path: Path
    manifest: Manifest
    records: tuple[Record, ...]
    superseded: int = 0

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def reports_path(self) -> Path:
        """Where its report goes: ``reports/<run>`` beside ``results``, or ``report`` in a run that lies elsewhere."""
        return reports_path(self.path)


def reports_path(path: Path) -> Path:
    """Return where the report of the run in ``path`` goes; see :attr:`Run.reports_path`."""
    path = path.resolve()
    parent = path.parent
    return parent.parent / "reports" / path.name if parent.name == "results" else path / "report"


def trace_path(path: Path, case_id: str) -> Path:
    """Return the file that holds the power trace of a case of the run in ``path``, whether there is one or not."""
    stem = case_id.replace("/", "_")
    if "_" in case_id or not re.fullmatch(r"[A-Za-z0-9_.,=+-]+", stem) or len(stem) > MAX_TRACE_STEM:
        # Two ids may come to the same here, and are told apart by a digest; no other name has a tilde.
        digest = hashlib.sha256(case_id.encode(errors="surrogatepass")).hexdigest()[:12]
        kept = re.sub(r"[^A-Za-z0-9_.,=+-]", "-", stem)
        stem = f"{kept[: MAX_TRACE_STEM - 1 - len(digest)]}~{digest}"
    return path / TRACES / f"{stem}.csv"


def is_run(path: Path) -> bool:
    """Tell whether ``path`` holds a run.

    Raises:
        SpecError: something else is there already.
    """
    if (path / MANIFEST).is_file():
        return True
    if path.exists() and (not path.is_dir() or any(entry.name not in (LOCK, DRAFT) for entry in path.iterdir())):
        raise SpecError(f"{path} exists and is no run of infsa-bench; choose another --out")
    return False


def load_manifest(path: Path) -> Manifest:
    """Read the manifest of the run in ``path``.

    Raises:
        SpecError: no run there.
        SchemaError: unreadable, or of another schema version.
    """
    file = path / MANIFEST
    try:
        return decode(Manifest, file.read_bytes())
    except FileNotFoundError:
        raise SpecError(f"{path} is no run: it has no {MANIFEST}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SchemaError(f"{file}: {error}") from None
    except SchemaError as error:
        raise SchemaError(f"{file}: {error}") from None


def load(path: Path) -> Run:
    """Read a run.

    Raises:
        SpecError: no run there.
        SchemaError: a file is unreadable, of another schema version, torn at its end, or holds a case twice.
    """
    manifest = load_manifest(path)
    found, torn, superseded = _read_records(path / RECORDS)
    records = found.values()
    if torn:
        raise SchemaError(f"{path / RECORDS}: the last line is torn; sweep --resume drops it and measures it again")
    position = {case_id: index for index, case_id in enumerate(manifest.plan)}
    ordered = sorted(records, key=lambda record: position.get(record.case.id, len(position)))
    return Run(path=path, manifest=manifest, records=tuple(ordered), superseded=superseded)


def _read_records(file: Path) -> tuple[dict[str, Record], int, int]:
    """Return the whole records of a file and the number of bytes of a torn last line."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return {}, 0, 0
    except OSError as error:
        raise SchemaError(f"{file}: {error.strerror or error}") from None
    *lines, tail = content.split(b"\n")
    records: dict[str, Record] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = decode(Record, line)
        except (SchemaError, UnicodeDecodeError) as error:
            raise SchemaError(f"{file}, line {number}: {error}") from None
        records[record.case.id] = record
    return records, len(tail), len(lines) - len(records)


class RunWriter:
    """The one process that may add to a run; others are kept out by a lock that dies with the process."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Open ``path`` for writing, creating it where it is missing, and write the manifest.

        Raises:
            RunLockedError: another process holds the run.
            SchemaError: the records that are there cannot be read.
            OSError: the folder cannot be written.
        """
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = (path / LOCK).open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise RunLockedError(f"{path} is being written by another process") from None
        try:
            self.recorded, self.torn_bytes = self._recover()
            self.manifest = manifest
            self._write_manifest()
            self._records = (path / RECORDS).open("ab", buffering=0)
        except BaseException:
            self._lock.close()
            raise

    def append(self, record: Record, trace: Sequence[TracePoint] = ()) -> None:
        """Add one record, after its power trace if it has one, and return once both are on disk."""
        self._write_trace(trace_path(self.path, record.case.id), trace)
        line = encode(record).encode() + b"\n"
        written = self._records.write(line)
        if written != len(line):
            raise OSError(f"only {written} of {len(line)} bytes of a record could be written")
        os.fsync(self._records.fileno())
        self.recorded[record.case.id] = record

    def add_environment(self, environment: Environment) -> str:
        """Make ``environment`` known to the manifest and return the key by which records refer to it."""
        key = environment.key
        if key not in self.manifest.environments:
            self.manifest.environments[key] = environment
            self._write_manifest()
        return key

    def add_calibration(self, calibration: EnergyCalibration) -> None:
        """Add what was found out about the energy counter to the manifest."""
        self.manifest = replace(self.manifest, calibrations=(*self.manifest.calibrations, calibration))
        self._write_manifest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._records.close()
        self._lock.close()

    def _recover(self) -> tuple[dict[str, Record], int]:
        """Return the ids of finished cases, and cut off a line that a killed process left half-written."""
        file = self.path / RECORDS
        records, torn, _ = _read_records(file)
        if torn:
            with file.open("r+b") as handle:
                handle.truncate(file.stat().st_size - torn)
                os.fsync(handle.fileno())
        return records, torn

    def _write_manifest(self) -> None:
        def write(handle: TextIO) -> None:
            handle.write(encode(self.manifest, indent=1) + "\n")

        _replace_file(self.path / DRAFT, self.path / MANIFEST, write)

    def _write_trace(self, file: Path, trace: Sequence[TracePoint]) -> None:
        """Write the trace of a case that has no record yet: one that is there already is of a try that was cut off."""
        if not trace:
            file.unlink(missing_ok=True)
            return

        def write(handle: TextIO) -> None:
            rows = csv.writer(handle, lineterminator="\n")
            rows.writerow(TRACE_COLUMNS)
            for point in trace:
                reasons = " ".join(point.event_reasons)
                rows.writerow(
                    [point.seconds, point.power_watts, point.sm_clock_mhz, point.temperature_celsius, reasons]
                )

        if not file.parent.is_dir():
            file.parent.mkdir()
            _sync_folder(self.path)
        _replace_file(file.with_name(TRACE_DRAFT), file, write)


def _replace_file(draft: Path, file: Path, write: Callable[[TextIO], object]) -> None:
    """Replace a file in one step: a reader sees the old one or the new one, never half of one."""
    with draft.open("w", encoding="utf-8", newline="") as handle:
        write(handle)
        handle.flush()
        os.fsync(handle.fileno())
    draft.replace(file)
    _sync_folder(file.parent)


def _sync_folder(path: Path) -> None:
    """Return once new names in a folder are on disk: syncing the files alone does not promise that."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
