"""What a comparison needs of a run: of each cell and replicate the numbers, of the machine its settings.

A run's baseline is small enough for a repository and compares exactly as the run does.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from infsa_bench.analyze.max_resolution import summarize_search
from infsa_bench.codec import decode, encode
from infsa_bench.errors import SchemaError, SpecError
from infsa_bench.files import read_file, write_text
from infsa_bench.machine import Environment
from infsa_bench.record import (
    SCHEMA_VERSION,
    EnergyScope,
    EnergySource,
    Failure,
    FailureKind,
    Fit,
    Measurement,
    MemorySource,
    Record,
)
from infsa_bench.spec import Case
from infsa_bench.store import Settings, StoredRun, load

MAX_BASELINE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicate:
    """One process's numbers of a cell; None where there are none.

    Attributes:
        environment: key of the machine it ran on.
        failure: None for a case that ran.
        is_unplanned: it was left out for want of time or memory, which says nothing about it.
        latency_seconds: median of the process; so is the following.
        joules_per_image: of each trial.
        sm_clock_mhz: of the GPU while it was timed.
        choices: what the model decided by itself.
    """

    index: int
    environment: str
    failure: FailureKind | None = None
    is_unplanned: bool = False
    latency_seconds: float | None = None
    seconds_per_iteration: float | None = None
    joules_per_image: tuple[float, ...] = ()
    energy_source: EnergySource | None = None
    energy_scope: EnergyScope | None = None
    peak_memory_bytes: int | None = None
    memory_source: MemorySource | None = None
    sm_clock_mhz: float | None = None
    choices: dict[str, str]
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cell and its replicates, in their order. The case is that of replicate 0."""

    case: Case
    replicates: tuple[Replicate, ...]

    @property
    def name(self) -> str:
        """What sides are joined on."""
        return self.case.cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The largest resolution that a search found to fit, None for none; ``step`` is how exact that is."""

    model: Case
    largest_resolution: int | None
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """One side of a comparison. ``environments`` are those that its numbers come from, by their key."""

    name: str
    created_utc: str
    settings: Settings
    environments: dict[str, Environment]
    cells: tuple[Cell, ...]
    limits: tuple[Limit, ...] = ()
    schema_version: int = SCHEMA_VERSION


def baseline_of(run: StoredRun) -> Baseline:
    """Return what a comparison needs of a run. Of two records of one case the last one counts."""
    found: dict[str, dict[int, Record]] = {}
    for record in run.records:
        if not isinstance(record.outcome, Fit):
            found.setdefault(record.case.cell, {})[record.case.replicate] = record
    cells = [
        Cell(
            case=replace(next(iter(records.values())).case, replicate=0),
            replicates=tuple(_replicate(records[index]) for index in sorted(records)),
        )
        for _, records in sorted(found.items())
    ]
    search, limits = run.manifest.search, []
    if search is not None:
        # Failures of a search are what it looks for, not cells that failed.
        cells = []
        for row in summarize_search(search, run.records):
            model = replace(row.model, resolution=search.step, replicate=0)
            limits.append(Limit(model=model, largest_resolution=row.result.largest_ok, step=search.step))
    return Baseline(
        name=run.name,
        created_utc=run.manifest.created_utc,
        settings=run.manifest.settings,
        environments=dict(sorted(run.manifest.environments.items())),
        cells=tuple(cells),
        limits=tuple(limits),
    )


def _replicate(record: Record) -> Replicate:
    outcome = record.outcome
    assert not isinstance(outcome, Fit)
    index, environment = record.case.replicate, record.environment
    if isinstance(outcome, Failure):
        return Replicate(
            index=index,
            environment=environment,
            failure=outcome.kind,
            is_unplanned=outcome.kind == "skipped" and outcome.dominated_by is None,
            choices={},
            flags=outcome.flags,
        )
    calibration = outcome.energy.calibration
    return Replicate(
        index=index,
        environment=environment,
        latency_seconds=statistics.median(outcome.latencies_seconds),
        seconds_per_iteration=statistics.median(outcome.seconds_per_iteration),
        joules_per_image=tuple(trial.joules_per_iteration / record.case.batch_size for trial in outcome.energy.trials),
        energy_source=None if calibration is None else calibration.source,
        energy_scope=None if calibration is None else calibration.scope,
        peak_memory_bytes=outcome.peak_memory_bytes,
        memory_source=outcome.memory_source,
        sm_clock_mhz=_clock(outcome),
        choices=dict(outcome.choices),
        flags=outcome.flags,
    )


def _clock(measurement: Measurement) -> float | None:
    if measurement.state_during is not None and measurement.state_during.sm_clock_mhz is not None:
        return measurement.state_during.sm_clock_mhz
    states = [measurement.state_before, measurement.state_after]
    clocks = [state.sm_clock_mhz for state in states if state is not None and state.sm_clock_mhz is not None]
    return statistics.fmean(clocks) if clocks else None


def load_side(path: Path) -> Baseline:
    """Read one side of a comparison: the folder of a run, or a baseline's file.

    Raises:
        SpecError: neither is there, nothing is in it, or its energy was made up by the NVML of the tests.
        SchemaError: a file cannot be read.
    """
    side = baseline_of(load(path)) if path.is_dir() else load_baseline(path)
    if any(found.gpu is not None and found.gpu.is_fake for found in side.environments.values()):
        raise SpecError(f"{path} was made with the fake NVML library of the tests: not compared")
    if not side.cells and not side.limits:
        raise SpecError(f"{path} has nothing to compare: no record")
    return side


def load_baseline(file: Path) -> Baseline:
    """Read a baseline's file, every field checked.

    Raises:
        SpecError: there is none.
        SchemaError: it cannot be read, or holds a cell or a replicate twice.
    """
    try:
        content = read_file(file, MAX_BASELINE_BYTES)
    except FileNotFoundError:
        raise SpecError(f"{file} is neither a run nor a baseline: there is nothing") from None
    except OSError as error:
        raise SchemaError(f"{file}: {error.strerror or error}") from None
    try:
        baseline = decode(Baseline, content)
    except SchemaError as error:
        raise SchemaError(f"{file}: {error}") from None
    _refuse_repeated(file, (cell.name for cell in baseline.cells))
    for cell in baseline.cells:
        _refuse_repeated(file, (f"{cell.name}/p{replicate.index}" for replicate in cell.replicates))
        for replicate in cell.replicates:
            if replicate.environment not in baseline.environments:
                raise SchemaError(f"{file}: {cell.name} ran in an environment that is not in the file")
            if not _is_possible(replicate):
                raise SchemaError(f"{file}: {cell.name} has numbers that nobody can have measured")
        if not cell.replicates:
            raise SchemaError(f"{file}: {cell.name} has no replicate")
    return baseline


def _is_possible(replicate: Replicate) -> bool:
    """Tell whether a replicate failed, or has its times, and nothing that is not above zero."""
    times = (replicate.latency_seconds, replicate.seconds_per_iteration)
    numbers = [*times, replicate.peak_memory_bytes, *replicate.joules_per_image]
    is_whole = replicate.failure is not None or None not in times
    return is_whole and all(number is None or number > 0 for number in numbers)


def _refuse_repeated(file: Path, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SchemaError(f"{file}: {name} stands twice")
        seen.add(name)


def write_baseline(file: Path, baseline: Baseline) -> None:
    """Write a baseline's file, replacing one that is there in one step.

    Raises:
        SpecError: it cannot be written.
    """
    write_text(file, encode(baseline, indent=1) + "\n")
