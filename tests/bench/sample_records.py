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

from infsa_bench.codec import INTEGER_LIMIT, LARGEST_FLOAT, SMALLEST_FLOAT
from infsa_bench.machine import GpuFacts, GpuState
from infsa_bench.protocol import PROTOCOLS, Protocol
from infsa_bench.record import (
    SCHEMA_VERSION,
    EnergyCalibration,
    EnergyReading,
    EnergyTrial,
    EnergyWindow,
    Failure,
    FailureKind,
    Measurement,
    OperationCount,
    Outcome,
    Record,
)
from infsa_bench.search_plan import Search
from infsa_bench.shard import MAX_SHARDS, Part
from infsa_bench.spec import MAX_RESOLUTION, Case
from infsa_bench.store import Manifest, Settings, StoredRun

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

GPU = GpuFacts(
    name="NVIDIA H200",
    nvml_index=0,
    uuid="GPU-01234567-89ab-cdef-0123-456789abcdef",
    pci_bus_id="00000000:19:00.0",
    vbios_version="96.00.A1.00.01",
    driver_version="570.1",
    nvml_version="12.570.1",
    nvml_library="/usr/lib/libnvidia-ml.so.1",
    max_sm_clock_mhz=1980,
    max_memory_clock_mhz=3201,
    power_limit_watts=700.0,
    default_power_limit_watts=700.0,
    min_power_limit_watts=200.0,
    max_power_limit_watts=700.0,
    persistence_mode=True,
    compute_mode=0,
    ecc_enabled=True,
    mig_enabled=False,
    virtualization="none",
)

GPU_STATE = GpuState(
    sm_clock_mhz=1980,
    memory_clock_mhz=3201,
    temperature_celsius=40,
    performance_state=0,
    power_watts=300.0,
    power_limit_watts=700.0,
    event_reasons=(),
    power_violation_seconds=0.0,
    thermal_violation_seconds=0.0,
    utilization_percent=100,
    memory_used_bytes=2**30,
    own_process_visible=True,
    foreign_processes=0,
)

CALIBRATION = EnergyCalibration(
    source="nvml_counter",
    scope="gpu",
    period_seconds=0.1,
    period_p95_seconds=0.101,
    step_joules=0.001,
    call_seconds=0.0001,
    rise_seconds=0.1,
    idle_watts=75.0,
    idle_seconds=10.0,
    temperature_celsius=35,
)

SETTINGS = Settings(device="cpu", protocol=PROTOCOLS["quick"], seed=0, time_budget_seconds=240.0)


def make_case(**changes: Any) -> Case:
    return dataclasses.replace(CASE, **changes)


def make_measurement(latencies_seconds: Sequence[float] = (0.010, 0.011, 0.012), **changes: Any) -> Measurement:
    """A measurement without energy whose batches take the same time one by one as with the queue kept full."""
    measurement = dataclasses.replace(
        fake_worker.MEASUREMENT,
        latencies_seconds=tuple(latencies_seconds),
        seconds_per_iteration=tuple(latencies_seconds),
        warmup_seconds=(0.5, 0.25),
        build_seconds=0.75,
        choices={},
        parameters=57_650_152,
        model_bytes=230_600_608,
        peak_memory_bytes=300 * 2**20,
    )
    return dataclasses.replace(measurement, **changes)


def make_window(joules: float = 600.0, **changes: Any) -> EnergyWindow:
    """A window of 200 iterations in 2 s."""
    window = EnergyWindow(joules=joules, iterations=200.0, seconds=2.0, edge_seconds=0.002, power_joules=None)
    return dataclasses.replace(window, **changes)


def make_trial(*windows: EnergyWindow, **changes: Any) -> EnergyTrial:
    trial = EnergyTrial(
        begin_seconds=0.0,
        windows=windows or (make_window(),),
        temperature_begin_celsius=40,
        temperature_end_celsius=41,
        sm_clock_mhz=1980.0,
        power_capped_fraction=0.0,
        throttle_reasons=(),
    )
    return dataclasses.replace(trial, **changes)


def make_energy(joules: Sequence[float] = (600.0, 603.0, 597.0), **changes: Any) -> EnergyReading:
    """A reading with one trial of one window for each value; a doubt that comes without a reason is the reason."""
    reading: dict[str, Any] = {"status": "measured", "reason": None, "detail": None, "preset": "quick"}
    reading |= {"relative_bias": 0.001, "calibration": CALIBRATION}
    reading["trials"] = tuple(
        make_trial(make_window(value), begin_seconds=10.0 * index) for index, value in enumerate(joules)
    )
    if changes.get("doubts"):
        reading |= {"status": "measured_low_confidence", "reason": changes["doubts"][0]}
    return EnergyReading(**(reading | changes))


def make_no_energy(reason: str = "rapl_absent", detail: str | None = "no counter here") -> EnergyReading:
    return EnergyReading(status="not_measured", reason=reason, detail=detail)


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


def make_run(records: Sequence[Record], path: Path = Path("results/example")) -> StoredRun:
    return StoredRun(path=path, manifest=make_manifest([record.case.id for record in records]), records=tuple(records))


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """What a field annotated with ``kind`` may hold in a file: numbers are within bounds, text has no surrogates."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        fields = {name: values_of(hint) for name, hint in typing.get_type_hints(kind).items()}
        times = st.floats(min_value=SMALLEST_FLOAT, max_value=LARGEST_FLOAT)
        if kind is EnergyReading:
            return _readings(fields)
        if kind is Case:
            fields |= dict.fromkeys(("resolution", "batch_size"), st.integers(1, INTEGER_LIMIT - 1))
            fields |= dict.fromkeys(("replicate", "seed"), st.integers(0, INTEGER_LIMIT - 1))
        if kind is Part:
            return st.integers(1, MAX_SHARDS).flatmap(
                lambda count: st.builds(Part, index=st.integers(0, count - 1), count=st.just(count))
            )
        if kind is Search:
            steps = st.integers(1, 8).map(lambda count: 64 * count)
            fields |= {"smallest": st.just(1), "step": steps, "largest": st.integers(512, MAX_RESOLUTION)}
            fields |= {"timeout_seconds": times, "available_bytes": st.integers(1, INTEGER_LIMIT - 1)}
        if kind is Protocol:
            fields["replicates"] = st.integers(1, INTEGER_LIMIT - 1)
        if kind is EnergyWindow:
            fields |= {"iterations": times, "seconds": times}
        if kind is EnergyTrial:
            fields["windows"] = st.lists(values_of(EnergyWindow), min_size=1, max_size=2).map(tuple)
        if kind is OperationCount:
            fields = dict.fromkeys(fields, st.integers(0, INTEGER_LIMIT - 1))
        if kind is Measurement:
            for name in ("latencies_seconds", "seconds_per_iteration"):
                fields[name] = st.lists(times, min_size=1, max_size=3).map(tuple)
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
    return LEAVES[kind]


def _readings(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[EnergyReading]:
    """Readings that hold together: a reason unless measured, trials with their calibration unless not measured."""
    nothing = fields | {"status": st.just("not_measured"), "reason": LEAVES[str], "trials": st.just(())}
    trials = st.lists(values_of(EnergyTrial), min_size=1, max_size=2).map(tuple)
    something = fields | {"trials": trials, "relative_bias": LEAVES[float], "calibration": values_of(EnergyCalibration)}
    sure = {"status": st.just("measured"), "reason": st.none()}
    doubtful = {"status": st.just("measured_low_confidence"), "reason": LEAVES[str]}
    return st.one_of([st.builds(EnergyReading, **each) for each in (nothing, something | sure, something | doubtful)])


LEAVES: dict[Any, st.SearchStrategy[Any]] = {
    type(None): st.none(),
    bool: st.booleans(),
    int: st.integers(-INTEGER_LIMIT, INTEGER_LIMIT - 1),
    float: st.floats(-LARGEST_FLOAT, LARGEST_FLOAT).filter(lambda value: value == 0 or abs(value) >= SMALLEST_FLOAT),
    str: st.text(max_size=12),
}
