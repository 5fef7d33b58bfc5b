"""Runs for reports: an ordinary one, and one whose every text is hostile."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sample_records import (
    ENVIRONMENT,
    GPU,
    make_energy,
    make_failure,
    make_manifest,
    make_measurement,
    make_no_energy,
    make_record,
    make_run,
)

from infsa_bench.analyze.run import Run, summarized
from infsa_bench.machine import Environment
from infsa_bench.record import Record

GPU_ENVIRONMENT = dataclasses.replace(
    ENVIRONMENT,
    device="cuda:0",
    device_name="NVIDIA H200",
    device_memory_bytes=141 * 2**30,
    cuda_version="12.8",
    gpu=GPU,
)

HOSTILE = "<img src=x onerror=alert(1)>"
HOSTILE_TEXTS = (
    HOSTILE,
    '"><script>alert(2)</script>',
    "' onmouseover='alert(3)' x='",
    "</td></table><svg onload=alert(4)>",
    "javascript:alert(5)",
    "{{ 7 * 7 }}{% raw %}",
    "--></style></script><h1>",
)


def times(center: float) -> tuple[float, ...]:
    """33 times around ``center``, whose interval is 12 in 1024 to both sides: from the 11th to the 23rd."""
    return tuple(center * (1 + (8 * i % 33 - 16) / 512) for i in range(33))


def run_of(
    records: Sequence[Record],
    path: Path = Path("results/example"),
    environment: Environment = ENVIRONMENT,
    command: tuple[str, ...] = ("infsa-bench", "sweep", "--out", "results/example"),
) -> Run:
    """A run of records in one environment, summed up."""
    stored = make_run([dataclasses.replace(record, environment=environment.key) for record in records], path)
    manifest = dataclasses.replace(
        make_manifest(stored.manifest.plan), environments={environment.key: environment}, command=command
    )
    return summarized(dataclasses.replace(stored, manifest=manifest))


def ordinary_records(factor: float = 1.0) -> list[Record]:
    """Three mechanisms at three sizes in two phases, with energy, flags, and cells without a number."""
    records = []
    for phase in ("infer", "train"):
        for side, center in ((224, 1 / 128), (512, 1 / 32), (1024, 1 / 2)):
            for mechanism, ratio in (("softmax", 4.0), ("linformer", 1.25), ("infsa-linear", 1.0)):
                for implementation in ("reference", "fast"):
                    seconds = center * factor * (1.0 if side == 224 else ratio) * (1 if implementation == "fast" else 2)
                    seconds *= 3 if phase == "train" else 1
                    energy = make_energy([seconds * 60000 * i for i in (1.0, 1.005, 0.995)])
                    flags = ("not_converged",) if (mechanism, side) == ("linformer", 512) else ()
                    outcome = make_measurement(times(seconds), energy=energy, flags=flags)
                    axes = {"mechanism": mechanism, "implementation": implementation, "resolution": side}
                    if (mechanism, implementation, side) == ("softmax", "reference", 1024):
                        records.append(make_record(make_failure("oom", "20.00 GiB asked for"), phase=phase, **axes))
                    else:
                        records.append(make_record(outcome, phase=phase, **axes))
    return records


def hostile_run() -> Run:
    """A run in which everything that a file may say is an attack."""
    records = []
    for index, text in enumerate(HOSTILE_TEXTS):
        axes = {"mechanism": text, "implementation": text, "config": text, "options": ((text, text),)}
        energy = make_no_energy(text, text) if index % 2 else make_energy(doubts=(text,), detail=text)
        outcome = make_measurement(energy=energy, flags=(text,), choices={text: text}, stage_seconds={text: 1.0})
        records += [make_record(outcome, **axes), make_record(make_failure("error", text), resolution=512, **axes)]
    environment = dataclasses.replace(
        GPU_ENVIRONMENT,
        device_name=HOSTILE_TEXTS[1],
        torch_version=HOSTILE,
        git_commit=HOSTILE,
        gpu=dataclasses.replace(GPU, name=HOSTILE),
    )
    return run_of(records, Path("results") / HOSTILE, environment, command=HOSTILE_TEXTS)
