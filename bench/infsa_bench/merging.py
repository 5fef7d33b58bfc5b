"""Joining runs of one plan, e.g. the shards of an array job, into one.

One run is read after the other, so that only the largest of them need fit into memory. What is joined is written into
a folder beside the one asked for, which gets its name when everything is on disk: a merge that is killed leaves
nothing under that name.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, TextIO

from infsa_bench.codec import encode
from infsa_bench.dealing import shards_with_cases
from infsa_bench.errors import RunLockedError, SchemaError, SpecError
from infsa_bench.files import open_regular, read_file, replace_file, sync_folder
from infsa_bench.machine import Environment
from infsa_bench.peaks import MeasuredPeaks, write_further_peaks, write_peaks
from infsa_bench.record import EnergyCalibration, Measurement, Record
from infsa_bench.shard import Part
from infsa_bench.store import (
    DRAFT,
    LOCK,
    MANIFEST,
    MAX_RECORDS_BYTES,
    RECORDS,
    Manifest,
    StoredRun,
    load,
    load_manifest,
)
from infsa_bench.traces import MAX_TRACE_BYTES, TRACES, load_trace, trace_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What a merge came to.

    Attributes:
        recorded: number of cases with a record.
        repeated: number of records that an earlier run had as well, the same in both.
        traces: number of power traces that came along.
        missing_traces: number of records that should have one, but had none beside them.
        missing_shards: parts of the plan that none of the runs was of, and whose cases have no record. None where the
            runs are no shards, or another run has some of the cases: which shards those were of is not known.
    """

    manifest: Manifest
    recorded: int
    repeated: int
    traces: int
    missing_traces: int
    missing_shards: tuple[Part, ...]


def merge_runs(paths: Sequence[Path], out: Path, command: tuple[str, ...]) -> Merged:
    """Join the runs in ``paths`` into a new one in ``out``; ``command`` is what its manifest says made it.

    Of each case the record that counts comes along, with its power trace; of each run its environments, what it found
    out about its energy counter, and its peaks. The plan is the whole one, whether all of it is recorded or not.

    Raises:
        SpecError: the runs are not of one plan and one set of settings, two of them have different results of one
            case, or ``out`` is taken.
        SchemaError: a file of one of them cannot be read, or it has no records, not even an empty file of them.
        RunLockedError: one of them is being written.
        OSError: ``out`` cannot be written.
    """
    _refuse_folders(paths, out)
    # What is not there yet has no parent to go up to, as in new/../out.
    out = out.resolve()
    with _made(out.parent):
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".merging", dir=out.parent))
        try:
            draft.chmod(out.parent.stat().st_mode & 0o777)  # It was made for this user's eyes only.
            with (draft / RECORDS).open("xb") as records:
                joined = _Joined(draft, records)
                for path in paths:
                    with _unwritten(path):
                        joined.add(load(path))
                _sync(records)
            merged = joined.finish(command)
            try:
                draft.rename(out)
            except OSError as error:
                raise SpecError(f"{out} came to be meanwhile: {error.strerror or error}") from None
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    sync_folder(out.parent)
    return merged


class _Joined:
    """The runs joined so far: their records are in the draft, what else they bring is remembered until the end."""

    def __init__(self, draft: Path, records: BinaryIO) -> None:
        self._draft = draft
        self._records = records
        self._bytes = 0
        self._repeated = 0
        self._traces = 0
        self._missing_traces = 0
        self._first: StoredRun | None = None
        self._plan: frozenset[str] = frozenset()
        self._created: list[str] = []
        self._budgets: list[float | None] = []
        self._parts: dict[Part, Path] = {}
        self._dealt: dict[str, Path] = {}
        self._seen: dict[str, tuple[bytes, Path]] = {}
        self._environments: dict[str, Environment] = {}
        self._calibrations: dict[EnergyCalibration, None] = {}
        self._peaks: list[MeasuredPeaks] = []

    def add(self, run: StoredRun) -> None:
        """Check a run against those before it, and write what is new of it.

        Raises:
            SpecError: it does not go together with them.
            SchemaError: a file of it cannot be read.
        """
        manifest = run.manifest
        if not (run.path / RECORDS).exists():
            # Whoever writes a run makes it before anything is measured.
            raise SchemaError(f"{run.path} has no {RECORDS}: only a part of the run was copied")
        if manifest.search is not None:
            raise SpecError(f"{run.path} is a search for the largest resolution, which is merged with nothing")
        if self._first is None:
            self._first, self._plan = replace(run, records=()), frozenset(_whole_plan(manifest))
        self._refuse_another_plan(run, self._first)
        self._refuse_overlap(run)
        self._created.append(manifest.created_utc)
        self._budgets.append(manifest.settings.time_budget_seconds)
        self._calibrations |= dict.fromkeys(manifest.calibrations)
        for key, environment in manifest.environments.items():
            if self._environments.setdefault(key, environment) != environment:
                raise SpecError(f"{run.path}: environment {key} is another one in a run before it")
        self._peaks += [peaks for peaks in run.all_peaks if not any(map(peaks.are_of, self._peaks))]
        for record in run.records:
            if record.environment not in manifest.environments:
                raise SchemaError(f"{run.path}: {record.case.id} ran in an environment that the manifest lacks")
            if record.case.id not in self._plan:
                raise SpecError(f"{run.path}: {record.case.id} has a record, but no place in the plan")
            self._add_record(run.path, record)

    def finish(self, command: tuple[str, ...]) -> Merged:
        """Write peaks and manifest; then everything is on disk."""
        assert self._first is not None
        if self._peaks:
            write_peaks(self._draft, self._peaks[0])
        if self._peaks[1:]:
            write_further_peaks(self._draft, self._peaks[1:])
        if (self._draft / TRACES).is_dir():
            sync_folder(self._draft / TRACES)
        budgets = [seconds for seconds in self._budgets if seconds is not None]
        budget_seconds = None if len(budgets) < len(self._budgets) else max(budgets)
        first = self._first.manifest
        manifest = replace(
            first,
            created_utc=min(self._created),
            command=command,
            settings=replace(first.settings, time_budget_seconds=budget_seconds),
            plan=_whole_plan(first),
            environments=self._environments,
            calibrations=tuple(self._calibrations),
            shard=None,
        )
        _write_manifest(self._draft, manifest)
        return Merged(
            manifest=manifest,
            recorded=len(self._seen),
            repeated=self._repeated,
            traces=self._traces,
            missing_traces=self._missing_traces,
            missing_shards=self._missing_shards(),
        )

    def _refuse_another_plan(self, run: StoredRun, first: StoredRun) -> None:
        differences = first.manifest.settings.differences(run.manifest.settings)
        if differences:
            raise SpecError(f"{run.path} was made with another {', '.join(differences)} than {first.path}")
        mine, theirs = _whole_plan(run.manifest), _whole_plan(first.manifest)
        for path, plan, other in ((run.path, mine, self._plan), (first.path, theirs, frozenset(mine))):
            alone = next((case_id for case_id in plan if case_id not in other), None)
            if alone is not None:
                plans = f"different plans, of {len(mine)} and {len(theirs)} cases"
                raise SpecError(f"{run.path} and {first.path} are of {plans}: {alone} is only in that of {path}")

    def _refuse_overlap(self, run: StoredRun) -> None:
        shard = run.manifest.shard
        if shard is None:
            return
        for part, path in self._parts.items():
            if part.count != shard.part.count:
                raise SpecError(f"{path} is shard {part}, {run.path} is shard {shard.part}: dealt out differently")
            if part == shard.part:
                raise SpecError(f"{path} and {run.path} are both shard {part}")
        self._parts[shard.part] = run.path
        for case_id in run.manifest.plan:
            path = self._dealt.setdefault(case_id, run.path)
            if path != run.path:
                raise SpecError(f"shards overlap: {case_id} is in {path} and in {run.path}")

    def _add_record(self, path: Path, record: Record) -> None:
        case_id, line = record.case.id, encode(record).encode() + b"\n"
        digest = hashlib.sha256(line).digest()
        known, where = self._seen.setdefault(case_id, (digest, path))
        if known != digest:
            raise SpecError(f"{case_id} has different records in {where} and in {path}")
        if where != path:
            self._repeated += 1
            return
        self._bytes += len(line)
        if self._bytes > MAX_RECORDS_BYTES:
            raise SpecError(f"the records are more than the {MAX_RECORDS_BYTES} bytes that one run may have")
        self._records.write(line)
        if self._copy_trace(path, case_id):
            self._traces += 1
        elif _should_have_trace(record):
            self._missing_traces += 1

    def _copy_trace(self, path: Path, case_id: str) -> bool:
        """Copy the power trace of a case; tell whether there is one.

        Raises:
            SchemaError: what is there is no trace, or only a part of one.
        """
        source, target = trace_path(path, case_id), trace_path(self._draft, case_id)
        if not load_trace(source):
            return False
        try:
            content = read_file(source, MAX_TRACE_BYTES)
        except OSError as error:
            raise SchemaError(f"{source}: {error.strerror or error}") from None
        target.parent.mkdir(exist_ok=True)
        with target.open("xb") as file:
            file.write(content)
            _sync(file)
        return True

    def _missing_shards(self) -> tuple[Part, ...]:
        elsewhere = self._plan - self._dealt.keys()
        if not self._parts or not elsewhere or elsewhere & self._seen.keys():
            return ()
        count = next(iter(self._parts)).count
        having = (Part(index=index, count=count) for index in range(shards_with_cases(self._plan, count)))
        return tuple(part for part in having if part not in self._parts)


def _refuse_folders(paths: Sequence[Path], out: Path) -> None:
    if not paths or (len(paths) == 1 and not _is_all_of_its_plan(load_manifest(paths[0]))):
        raise SpecError("a merge joins two runs or more")
    known: dict[Path, Path] = {}
    for path in paths:
        if path.resolve() in known:
            raise SpecError(f"{path} is given twice")
        known[path.resolve()] = path
    if out.is_symlink() or out.resolve().exists():
        raise SpecError(f"{out} exists already; choose another folder")
    for folder, path in known.items():
        if folder in out.resolve().parents:
            raise SpecError(f"{out} lies in {path}, which is to be merged; choose another folder")


def _is_all_of_its_plan(manifest: Manifest) -> bool:
    """Tell whether a run is a shard for which all cases were, and for the others none."""
    return manifest.shard is not None and set(manifest.plan) == set(manifest.shard.whole)


def _whole_plan(manifest: Manifest) -> tuple[str, ...]:
    return manifest.plan if manifest.shard is None else manifest.shard.whole


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; where what follows fails, take away again those that were not there."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in new:
            # Where somebody else has put something into one meanwhile, it stays, and so do those above it.
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def _unwritten(path: Path) -> Iterator[None]:
    """Keep others from writing to the run in ``path`` meanwhile.

    Raises:
        RunLockedError: somebody does.
    """
    try:
        descriptor = open_regular(path / LOCK)
    except OSError:
        # A run from elsewhere has no lock, and one that cannot be opened is held by nobody here.
        yield
        return
    with os.fdopen(descriptor, "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLockedError(f"{path} is being written by another process") from None
        yield


def _should_have_trace(record: Record) -> bool:
    """Tell whether the energy of a record was read where there is power to be traced, which RAPL does not have."""
    if not isinstance(record.outcome, Measurement):
        return False
    calibration = record.outcome.energy.calibration
    return bool(record.outcome.energy.trials) and calibration is not None and calibration.source != "rapl"


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    def write(handle: TextIO) -> None:
        handle.write(encode(manifest, indent=1) + "\n")

    replace_file(folder / DRAFT, folder / MANIFEST, write)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
