"""A run on disk, the only thing that crosses to reporting: ``results/<run>/``, and in it ``manifest.json``,
``records.jsonl``, ``traces/``, ``peaks.json``, and of a run merged from several ``peaks-further.json``.

A record is one line, written with one call and synced before the next case starts, so that a killed sweep loses at
most the case that it was in. Of two lines of one case the last one counts. A record's power trace, where there is
one, is a file of its own and on disk before it. The store never computes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from infsa_bench.codec import OMITTED_IF_NONE, decode, encode
from infsa_bench.energy_plan import EnergyChoice
from infsa_bench.errors import RunLockedError, SchemaError, SpecError
from infsa_bench.files import open_regular, read_file, read_lines, refuse_exchanged, replace_file
from infsa_bench.machine import Environment
from infsa_bench.peaks import MeasuredPeaks, load_further_peaks, load_peaks, write_peaks
from infsa_bench.protocol import Protocol
from infsa_bench.record import SCHEMA_VERSION, EnergyCalibration, Record, TracePoint
from infsa_bench.recorded import Recorded, Span
from infsa_bench.search_plan import Search
from infsa_bench.shard import Shard
from infsa_bench.traces import trace_path, write_trace

MANIFEST = "manifest.json"
RECORDS = "records.jsonl"
DRAFT = f"{MANIFEST}.new"
LOCK = ".lock"

MAX_MANIFEST_BYTES = 64 * 2**20
MAX_RECORD_BYTES = 64 * 2**20
MAX_RECORDS_BYTES = 4 * 2**30
"""A manifest takes about 100 bytes a case, a record about 25 bytes a sample, and a case seldom has 1000 of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What holds for every case of a run; a run with other settings needs another folder.

    ``device`` is the name of the device, or of several, with commas between them. ``memory_limit_bytes`` is the memory
    of the smaller device that was emulated, None for none.
    """

    device: str
    protocol: Protocol
    seed: int
    time_budget_seconds: float | None
    energy: EnergyChoice = "auto"
    memory_limit_bytes: int | None = None

    @property
    def first_device(self) -> str:
        """The only device, or the first of several, which are alike."""
        return self.device.partition(",")[0]

    def differences(self, other: Settings) -> list[str]:
        """Name what makes records under the two not comparable.

        The time budget does not; nor does the number of replicates, more of which only add cases; nor which devices of
        a type it was, and how many: records refer to theirs.
        """
        pairs = {
            "device": (self.first_device.partition(":")[0], other.first_device.partition(":")[0]),
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
class Manifest:
    """The plan of a run and where it ran. ``plan`` holds case ids, ``environments`` is keyed by their digest.

    ``search`` is what a run of ``maxres`` looks for, None for a sweep. ``shard`` is which part of a larger plan the run
    is, and that plan; None for a run by itself.

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
    shard: Shard | None = field(default=None, metadata=OMITTED_IF_NONE)
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRun:
    """A loaded run. ``records`` hold each case once, in the order of the plan, whatever order they were measured in.

    ``peaks`` are what the device can do at its best, None where that was not measured.
    ``further_peaks`` are those of other devices, in a run that was merged from several.
    ``superseded`` is the number of lines that do not count, because a later one is of the same case.
    """

    path: Path
    manifest: Manifest
    records: tuple[Record, ...]
    superseded: int = 0
    peaks: MeasuredPeaks | None = None
    further_peaks: tuple[MeasuredPeaks, ...] = ()

    @property
    def all_peaks(self) -> tuple[MeasuredPeaks, ...]:
        """The peaks of every device of which they were measured."""
        return (*(() if self.peaks is None else (self.peaks,)), *self.further_peaks)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def reports_path(self) -> Path:
        """Where its report goes: ``reports/<run>`` beside ``results``, or ``report`` in a run that lies elsewhere."""
        return reports_path(self.path)


def reports_path(path: Path) -> Path:
    """Return where the report of the run in ``path`` goes; see :attr:`StoredRun.reports_path`."""
    path = path.resolve()
    parent = path.parent
    return parent.parent / "reports" / path.name if parent.name == "results" else path / "report"


def is_run(path: Path) -> bool:
    """Tell whether ``path`` holds a run.

    Raises:
        SpecError: something else is there already.
    """
    if (path / MANIFEST).is_file():
        return True
    if path.exists() and (not path.is_dir() or any(entry.name not in (LOCK, DRAFT) for entry in path.iterdir())):
        raise SpecError(f"{path} exists and is no run of infsa-bench; choose another folder")
    return False


def load_manifest(path: Path) -> Manifest:
    """Read the manifest of the run in ``path``.

    Raises:
        SpecError: no run there.
        SchemaError: unreadable, or of another schema version.
    """
    file = path / MANIFEST
    try:
        content = read_file(file, MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        raise SpecError(f"{path} is no run: it has no {MANIFEST}") from None
    except OSError as error:
        raise SchemaError(f"{file}: {error.strerror or error}") from None
    try:
        return decode(Manifest, content)
    except SchemaError as error:
        raise SchemaError(f"{file}: {error}") from None


def load(path: Path) -> StoredRun:
    """Read a run.

    Raises:
        SpecError: no run there.
        SchemaError: a file is unreadable, too large, no regular file, of another schema version, or torn at its end.
    """
    manifest = load_manifest(path)
    counting: dict[str, Record] = {}
    superseded = 0
    for record, _ in _read_records(path / RECORDS):
        if record is None:
            torn = "the last line is torn; sweep --resume drops it and measures it again"
            raise SchemaError(f"{path / RECORDS}: {torn}")
        superseded += record.case.id in counting
        counting[record.case.id] = record
    position = {case_id: index for index, case_id in enumerate(manifest.plan)}
    ordered = sorted(counting.values(), key=lambda record: position.get(record.case.id, len(position)))
    return StoredRun(
        path=path,
        manifest=manifest,
        records=tuple(ordered),
        superseded=superseded,
        peaks=load_peaks(path),
        further_peaks=load_further_peaks(path),
    )


def _read_records(file: Path) -> Iterator[tuple[Record | None, Span]]:
    """Yield the records in ``file`` and where they lie; None for a torn last line.

    Raises:
        SchemaError: as :func:`load`.
    """
    begin = 0
    try:
        for number, line in enumerate(read_lines(file, MAX_RECORDS_BYTES, MAX_RECORD_BYTES), start=1):
            if not line.endswith(b"\n"):
                yield None, Span(begin, len(line))
                return
            try:
                record = decode(Record, line[:-1])
            except SchemaError as error:
                raise SchemaError(f"{file}, line {number}: {error}") from None
            yield record, Span(begin, len(line) - 1)
            begin += len(line)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SchemaError(f"{file}: {error.strerror or error}") from None


class RunWriter:
    """The one process that may add to a run; others are kept out by a lock that dies with the process.

    Attributes:
        path: the run's folder.
        manifest: as it is on disk, but for calibrations that wait, see :meth:`add_calibration`.
        peaks: what the run's device can do at its best, None where that has not been measured.
        torn_bytes: length of the line that a killed process had left half-written, and that opening the run cut off.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Open ``path`` for writing, creating it where it is missing, and write the manifest.

        Raises:
            RunLockedError: another process holds the run.
            SchemaError: the records or the peaks that are there cannot be read, or something lies where a file
                should be.
            OSError: the folder cannot be written.
        """
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.manifest = manifest
        self._added_calibrations = 0
        self._is_behind = False
        with contextlib.ExitStack() as opened:
            lock = open_regular(path / LOCK, os.O_RDWR | os.O_CREAT)
            self._lock = opened.enter_context(os.fdopen(lock, "r+b"))
            self._hold_lock()
            self.peaks = load_peaks(path)
            self._recorded, self.torn_bytes = Recorded(), 0
            for record, span in _read_records(path / RECORDS):
                if record is None:
                    self.torn_bytes = span.length
                else:
                    self._recorded.add(record, span)
            self._write_manifest()
            records = open_regular(path / RECORDS, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            # Without a buffer: one record is one write.
            self._records = opened.enter_context(os.fdopen(records, "ab", buffering=0))
            self._recorded.read_from(self._records)
            if self.torn_bytes:
                self._truncate(os.fstat(records).st_size - self.torn_bytes)
            self._opened = opened.pop_all()

    @property
    def recorded(self) -> Recorded:
        """The records on disk by case id, the last one of each case; to be read only while the run is open."""
        return self._recorded

    def append(self, record: Record, trace: Sequence[TracePoint] = ()) -> None:
        """Add one record and its power trace, if it has one, and return once both are on disk.

        A trace comes before its record, so that no record ever waits for its trace. Where the record supersedes
        another, the old trace goes first and the new one comes last: whenever the process is killed, the record that
        counts has its own trace or none, never the other's.

        Raises:
            OSError: not on disk; the records so far are as they were.
        """
        refuse_exchanged(self._lock, self.path / LOCK)
        file = trace_path(self.path, record.case.id)
        is_superseding = record.case.id in self._recorded
        write_trace(file, () if is_superseding else trace)
        self._recorded.add(record, self._append_line(encode(record).encode() + b"\n"))
        if is_superseding:
            write_trace(file, trace)

    def add_environment(self, environment: Environment) -> str:
        """Make ``environment`` known to the manifest and return the key by which records refer to it."""
        self.add_environments([environment])
        return environment.key

    def add_environments(self, environments: Iterable[Environment]) -> None:
        """Make environments known to the manifest, which is written once for all of them, if at all."""
        new = {environment.key: environment for environment in environments}
        if new.keys() - self.manifest.environments.keys():
            self.manifest.environments.update(new)
            self._write_manifest()

    def add_calibration(self, calibration: EnergyCalibration) -> None:
        """Add what was found out about the energy counter to the manifest.

        The first two are on disk at once. Of more, as many devices have them, those that came wait until they have
        doubled in number, or for :meth:`sync_manifest`: a large manifest takes long to write, and each reading has a
        copy of its calibration.
        """
        self.manifest = replace(self.manifest, calibrations=(*self.manifest.calibrations, calibration))
        self._added_calibrations += 1
        if self._added_calibrations.bit_count() == 1:
            self._write_manifest()
        else:
            self._is_behind = True

    def sync_manifest(self) -> None:
        """Return once nothing of the manifest waits to be written.

        Raises:
            OSError: not on disk.
        """
        if self._is_behind:
            self._write_manifest()

    def set_peaks(self, peaks: MeasuredPeaks) -> None:
        """Make ``peaks`` those of the run.

        Raises:
            OSError: not on disk.
        """
        refuse_exchanged(self._lock, self.path / LOCK)
        write_peaks(self.path, peaks)
        self.peaks = peaks

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Whoever ends in good order has synced it, and said so if that failed.
        with contextlib.suppress(OSError):
            self.sync_manifest()
        self._opened.close()

    def _hold_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLockedError(f"{self.path} is being written by another process") from None
        # Held on a file that was deleted in between, it would keep nobody out.
        refuse_exchanged(self._lock, self.path / LOCK)

    def _append_line(self, line: bytes) -> Span:
        length = os.fstat(self._records.fileno()).st_size
        if len(line) > MAX_RECORD_BYTES or length + len(line) > MAX_RECORDS_BYTES:
            raise OSError(errno.EFBIG, f"a record of {len(line)} bytes is more than can be read again")
        try:
            written = self._records.write(line)
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes of a record could be written")
            os.fsync(self._records.fileno())
            refuse_exchanged(self._records, self.path / RECORDS)
        except OSError:
            # A disk that fails here as well leaves a torn line, which the next writer cuts off.
            with contextlib.suppress(OSError):
                self._truncate(length)
            raise
        return Span(length, len(line) - 1)

    def _truncate(self, length: int) -> None:
        os.ftruncate(self._records.fileno(), length)
        os.fsync(self._records.fileno())

    def _write_manifest(self) -> None:
        def write(handle: TextIO) -> None:
            handle.write(encode(self.manifest, indent=1) + "\n")

        refuse_exchanged(self._lock, self.path / LOCK)
        replace_file(self.path / DRAFT, self.path / MANIFEST, write)
        refuse_exchanged(self._lock, self.path / LOCK)
        self._is_behind = False
