"""Hand-made cases, outcomes, records and runs, and hypothesis strategies for any dataclass of the harness."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import fake_worker
from hypothesis import strategies as st

from infsa_bench.record import SCHEMA_VERSION, Failure, FailureKind, Measurement, Outcome, Record
from infsa_bench.spec import PROTOCOLS, Case
from infsa_bench.store import Manifest, Run, Settings

CASE = Case(
    mechanism="softmax",
    implementation="reference",
    config="4L-64H",
    resolution=224,
    batch_size=1,
    precision="fp32",
    phase="infer",
    execution="eager",
)

ENVIRONMENT = dataclasses.replace(
    fake_worker.ENVIRONMENT,
    device_name="Xeon 8481C",
    device_memory_bytes=16 * 2**30,
    torch_version="2.10.0",
    timm_version="1.0.22",
    torch_threads=2,
    infsa_bench_version="0.1.0",
    git_commit="0123456789abcdef0123456789abcdef01234567",
    git_dirty=False,
)

SETTINGS = Settings(device="cpu", protocol=PROTOCOLS["quick"], seed=0, time_budget_seconds=240.0)


def make_case(**changes: Any) -> Case:
    return dataclasses.replace(CASE, **changes)


def make_measurement(latencies_seconds: Sequence[float] = (0.010, 0.011, 0.012), **changes: Any) -> Measurement:
    measurement = Measurement(
        latencies_seconds=tuple(latencies_seconds),
        gpu_seconds=(),
        warmup_seconds=(0.5, 0.25),
        build_seconds=0.75,
        parameters=57_650_152,
        model_bytes=230_600_608,
        peak_memory_bytes=300 * 2**20,
        peak_reserved_bytes=None,
        memory_source="process_rss",
    )
    return dataclasses.replace(measurement, **changes)


def make_failure(kind: FailureKind = "oom", message: str = "CUDA out of memory", **changes: Any) -> Failure:
    return dataclasses.replace(Failure(kind=kind, stage="timing", message=message), **changes)


def make_record(outcome: Outcome | None = None, *, environment: str = ENVIRONMENT.key, **case_changes: Any) -> Record:
    return Record(
        case=make_case(**case_changes),
        environment=environment,
        started_utc="2026-01-02T03:04:05+00:00",
        seconds=1.5,
        attempts=(),
        outcome=outcome or make_measurement(),
    )


def make_manifest(plan: Sequence[str] = (CASE.id,)) -> Manifest:
    return Manifest(
        created_utc="2026-01-02T03:04:05+00:00",
        command=("infsa-bench", "sweep", "--out", "results/example"),
        settings=SETTINGS,
        plan=tuple(plan),
        environments={ENVIRONMENT.key: ENVIRONMENT},
    )


def make_run(records: Sequence[Record], path: Path = Path("results/example")) -> Run:
    return Run(path=path, manifest=make_manifest([record.case.id for record in records]), records=tuple(records))


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """What a field annotated with ``kind`` may hold in a file: floats are finite, text has no surrogates."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        fields = {name: values_of(hint) for name, hint in typing.get_type_hints(kind).items()}
        if "latencies_seconds" in fields:
            times = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
            fields["latencies_seconds"] = st.lists(times, min_size=1, max_size=3).map(tuple)
        if "schema_version" in fields:
            fields["schema_version"] = st.just(SCHEMA_VERSION)
        return st.builds(kind, **fields)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([values_of(member) for member in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is dict:
        return st.dictionaries(values_of(arguments[0]), values_of(arguments[1]), max_size=2)
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values_of, arguments))
    leaves = {
        type(None): st.none(),
        bool: st.booleans(),
        int: st.integers(),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(max_size=12),
    }
    return leaves[kind]
