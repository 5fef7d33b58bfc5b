"""A fixed set of records that has every kind of cell that Table 1 can have."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sample_records import (
    ENVIRONMENT,
    GPU,
    GPU_STATE,
    make_energy,
    make_failure,
    make_manifest,
    make_measurement,
    make_no_energy,
    make_record,
    make_trial,
    make_window,
)

from infsa_bench.analyze.run import Run, summarized
from infsa_bench.machine import Environment
from infsa_bench.record import Record
from infsa_bench.store import StoredRun
from infsa_models.registry import MECHANISMS

A100 = dataclasses.replace(
    ENVIRONMENT,
    device="cuda:0",
    device_name="NVIDIA A100-SXM4-40GB",
    device_memory_bytes=40 * 2**30,
    gpu=dataclasses.replace(GPU, name="NVIDIA A100-SXM4-40GB"),
    cuda_version="13.0",
)
H200 = dataclasses.replace(A100, device_name="NVIDIA H200", device_memory_bytes=141 * 2**30, gpu=GPU)

GIB = 2**30


def run_of(records: Sequence[Record], environment: Environment = H200, name: str = "h200") -> Run:
    """A run in which everything was measured in one environment."""
    records = [dataclasses.replace(record, environment=environment.key) for record in records]
    manifest = dataclasses.replace(
        make_manifest([record.case.id for record in records]), environments={environment.key: environment}
    )
    return summarized(StoredRun(path=Path("results") / name, manifest=manifest, records=tuple(records)))


def measured(seconds: float, joules: float | None = None, **changes: object) -> Record:
    """A cell with 30 latencies around ``seconds`` and, where asked for, an energy from three trials."""
    axes = {name: changes.pop(name) for name in tuple(changes) if name in CASE_FIELDS}
    latencies = [seconds * (1 + 0.002 * ((7 * index) % 11 - 5)) for index in range(30)]
    energy = make_no_energy("counter_unsupported", "no counter")
    if joules is not None:
        trials = [make_trial(make_window(200 * joules * (1 + 0.002 * step))) for step in (-1, 0, 1)]
        energy = make_energy(trials=tuple(trials))
    measurement = make_measurement(
        latencies, energy=energy, state_before=GPU_STATE, state_after=GPU_STATE, memory_source="cuda_allocator"
    )
    return make_record(dataclasses.replace(measurement, **changes), **axes)


CASE_FIELDS = {
    "mechanism",
    "implementation",
    "config",
    "resolution",
    "batch_size",
    "precision",
    "phase",
    "execution",
    "options",
    "replicate",
}


def table1_records(implementation: str = "fast") -> list[Record]:
    """Both models at 1024 in both phases, the larger one without training; what does not fit, and what was not tried.

    Latencies are made up: 10 ms times the place of the mechanism, quadratic ones five times that; training three times.
    """
    records = []
    for place, mechanism in enumerate(MECHANISMS, start=1):
        quadratic = 5 if mechanism in ("softmax", "infsa-pure") else 1
        axes = {"mechanism": mechanism, "implementation": implementation, "resolution": 1024}
        seconds = 0.010 * place * quadratic
        records.append(measured(seconds, 300.5 * seconds, precision="bf16", peak_memory_bytes=GIB, **axes))
        records.append(measured(3 * seconds, None, precision="amp-bf16", phase="train", **axes))
        if mechanism == "agent":
            failure = make_failure("timeout", "gave no sign of life for 60 s")
            records.append(make_record(failure, precision="bf16", config="24L-16H", **axes))
        else:
            chosen = {"backend": "flash"} if mechanism == "softmax" else {}
            records.append(measured(6 * seconds, precision="bf16", config="24L-16H", choices=chosen, **axes))
    linear = {"mechanism": "infsa-linear", "implementation": implementation, "precision": "bf16"}
    records.append(measured(5.0, 1500.0, resolution=9216, peak_memory_bytes=5 * GIB, **linear))
    softmax = linear | {"mechanism": "softmax"}
    records.append(make_record(make_failure("oom", "tried to allocate 400 GiB"), resolution=9216, **softmax))
    return records
