"""A run on disk: ``results/<run>/{manifest.json, records.jsonl}``, the only thing that crosses to reporting.

A record is one line, written with one call and synced before the next case starts, so that a killed sweep loses at
most the case that it was in. The store never computes.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from infsa_bench.errors import RunLockedError, SchemaError, SpecError
from infsa_bench.record import SCHEMA_VERSION, Environment, Record, decode, encode
from infsa_bench.spec import Protocol

MANIFEST = "manifest.json"
RECORDS = "records.jsonl"
DRAFT = f"{MANIFEST}.new"
LOCK = ".lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What holds for every case of a run; a run with other settings needs another folder."""

    device: str
    protocol: Protocol
    seed: int
    time_budget_seconds: float | None

    def differences(self, other: Settings) -> list[str]:
        """Name what makes records under the two not comparable (the time budget does not)."""
        pairs = {
            "device": (self.device, other.device),
            "protocol": (self.protocol, other.protocol),
            "seed": (self.seed, other.seed),
        }
        return [name for name, (mine, theirs) in pairs.items() if mine != theirs]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The plan of a run and where it ran. ``plan`` holds case ids, ``environments`` is keyed by their digest."""

    created_utc: str
    command: tuple[str, ...]
    settings: Settings
    plan: tuple[str, ...]
    environments: dict[str, Environment]
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A loaded run. ``records`` hold each case once, in the order of the plan, whatever order they were measured in."""

    path: Path
    manifest: Manifest
    records: tuple[Record, ...]

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
    records, torn = _read_records(path / RECORDS)
    if torn:
        raise SchemaError(f"{path / RECORDS}: the last line is torn; sweep --resume drops it and measures it again")
    position = {case_id: index for index, case_id in enumerate(manifest.plan)}
    ordered = sorted(records, key=lambda record: position.get(record.case.id, len(position)))
    return Run(path=path, manifest=manifest, records=tuple(ordered))


def _read_records(file: Path) -> tuple[tuple[Record, ...], int]:
    """Return the whole records of a file and the number of bytes of a torn last line."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return (), 0
    except OSError as error:
        raise SchemaError(f"{file}: {error.strerror or error}") from None
    *lines, tail = content.split(b"\n")
    records: dict[str, Record] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = decode(Record, line)
        except (SchemaError, UnicodeDecodeError) as error:
            raise SchemaError(f"{file}, line {number}: {error}") from None
        if record.case.id in records:
            raise SchemaError(f"{file}, line {number}: a second record of {record.case.id}")
        records[record.case.id] = record
    return tuple(records.values()), len(tail)


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
            self.finished, self.torn_bytes = self._recover()
            self.manifest = manifest
            self._write_manifest()
            self._records = (path / RECORDS).open("ab", buffering=0)
        except BaseException:
            self._lock.close()
            raise

    def append(self, record: Record) -> None:
        """Add one record and return once it is on disk."""
        line = encode(record).encode() + b"\n"
        written = self._records.write(line)
        if written != len(line):
            raise OSError(f"only {written} of {len(line)} bytes of a record could be written")
        os.fsync(self._records.fileno())

    def add_environment(self, environment: Environment) -> str:
        """Make ``environment`` known to the manifest and return the key by which records refer to it."""
        key = environment.key
        if key not in self.manifest.environments:
            self.manifest.environments[key] = environment
            self._write_manifest()
        return key

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._records.close()
        self._lock.close()

    def _recover(self) -> tuple[frozenset[str], int]:
        """Return the ids of finished cases, and cut off a line that a killed process left half-written."""
        file = self.path / RECORDS
        records, torn = _read_records(file)
        if torn:
            with file.open("r+b") as handle:
                handle.truncate(file.stat().st_size - torn)
                os.fsync(handle.fileno())
        return frozenset(record.case.id for record in records), torn

    def _write_manifest(self) -> None:
        """Replace the manifest in one step: a reader sees the old one or the new one, never half of one."""
        draft = self.path / DRAFT
        with draft.open("w", encoding="utf-8") as handle:
            handle.write(encode(self.manifest, indent=1) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        draft.replace(self.path / MANIFEST)
        # The new names are on disk only once the folder is.
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
