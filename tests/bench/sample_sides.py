"""Hand-made runs to compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sample_records
from sample_records import ENVIRONMENT, make_failure, make_measurement, make_record

from infsa_bench.analyze.baseline import Baseline, baseline_of
from infsa_bench.machine import Environment
from infsa_bench.record import Measurement, Record
from infsa_bench.store import RunWriter, StoredRun

RESOLUTIONS = (224, 384, 512)


def measured(seconds: float, **changes: Any) -> Measurement:
    """A process whose iterations all took the same time."""
    return make_measurement([seconds] * 3, **changes)


def cell_records(seconds: Sequence[float], *, changes: Mapping[str, Any] | None = None, **case: Any) -> list[Record]:
    """One record for each process's median latency."""
    return [
        make_record(measured(value, **(changes or {})), replicate=index, **case) for index, value in enumerate(seconds)
    ]


def failed_records(kind: Any = "oom", count: int = 5, **case: Any) -> list[Record]:
    return [make_record(make_failure(kind), replicate=index, **case) for index in range(count)]


def make_side(
    records: Sequence[Record], *, environment: Environment = ENVIRONMENT, name: str = "base", **settings: Any
) -> Baseline:
    return baseline_of(stored(records, environment=environment, name=name, **settings))


def stored(
    records: Sequence[Record], *, environment: Environment = ENVIRONMENT, name: str = "base", **settings: Any
) -> StoredRun:
    run = sample_records.make_run(
        [dataclasses.replace(record, environment=environment.key) for record in records], Path("results") / name
    )
    manifest = dataclasses.replace(
        run.manifest,
        environments={environment.key: environment},
        settings=dataclasses.replace(run.manifest.settings, **settings),
    )
    return dataclasses.replace(run, manifest=manifest)


def write_run(path: Path, records: Sequence[Record], **changes: Any) -> Path:
    """Write a run to disk."""
    run = stored(records, name=path.name, **changes)
    with RunWriter(path, run.manifest) as writer:
        for record in run.records:
            writer.append(record)
    return path


def noisy(count: int = 5, *, deviation: float = 0.005, seed: int = 0, slower: float = 1.0) -> list[Record]:
    """Twelve cells with process-level noise; ``slower`` is how many times longer the softmax cells take."""
    generator = np.random.default_rng(seed)
    records = []
    for mechanism in ("softmax", "linformer", "mlla", "agent"):
        for resolution in RESOLUTIONS:
            factor = slower if mechanism == "softmax" else 1.0
            seconds = factor * resolution / 1e4 * np.exp(generator.normal(0, deviation, count))
            memory = {"memory_source": "cuda_allocator", "peak_memory_bytes": resolution * 2**20}
            records += cell_records(seconds.tolist(), changes=memory, mechanism=mechanism, resolution=resolution)
    return records
