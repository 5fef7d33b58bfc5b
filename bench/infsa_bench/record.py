"""What was found out: one record per case, a measurement or a failure.

Raw samples are stored; medians, intervals, throughput and joules per image are computed by those who read them.

Schema history:
    1: first version.
    2: seconds_per_iteration, CUDA-graph twin, launch_bound, energy, GPU state, NVML memory; replicates.
    3: Fit; anatomy of a failure (cause, signal, memory, what dominates it); memory limits; superseding records.
       The GPU while it was timed.
    4: operations: what an iteration really executes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from infsa_bench.machine import GpuState, SampledState
from infsa_bench.spec import Case

SCHEMA_VERSION = 4

FailureKind = Literal["oom", "host_oom", "timeout", "crash", "killed", "unsupported", "skipped", "error"]
FailureCause = Literal["allocation", "fragmentation", "workspace", "index_limit", "launch_limit"]
Stage = Literal["plan", "start", "build", "warm-up", "timing", "energy", "forward", "backward"]
MemorySource = Literal["cuda_allocator", "process_rss"]
EnergySource = Literal["nvml_counter", "nvml_power", "rapl"]
EnergyScope = Literal["gpu", "module", "package", "package+dram"]
EnergyStatus = Literal["measured", "measured_low_confidence", "not_measured"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyWindow:
    """A stretch of continuous load between two updates of an energy counter.

    Attributes:
        joules: what the counter rose by; for sampled power, its integral.
        iterations: batches that ran in it, fractions at both ends.
        seconds: from the first update to the last.
        edge_seconds: how far the two updates' moments are uncertain, both together.
        power_joules: integral of the sampled instant power over the same stretch; None where it was not sampled.
    """

    joules: float
    iterations: float
    seconds: float
    edge_seconds: float
    power_joules: float | None

    def __post_init__(self) -> None:
        """Refuse a window without time; one without load (idle) has no iterations."""
        if self.iterations < 0 or self.seconds <= 0:
            raise ValueError("an energy window has no negative iterations, and seconds above zero")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyTrial:
    """One measurement of the energy of an iteration: total joules over total iterations of its windows.

    ``begin_seconds`` is counted from the case's first trial. Clock is the median of the samples, power cap the share
    of samples in which the driver held the clocks back for power. ``throttle_reasons`` are those for heat or
    hardware protection that were seen: the number is kept, and flagged.
    """

    begin_seconds: float
    windows: tuple[EnergyWindow, ...]
    temperature_begin_celsius: int | None
    temperature_end_celsius: int | None
    sm_clock_mhz: float | None
    power_capped_fraction: float | None
    throttle_reasons: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse a trial in which nothing ran."""
        if sum(window.iterations for window in self.windows) <= 0:
            raise ValueError("an energy trial has iterations")

    @property
    def joules_per_iteration(self) -> float:
        """Energy of one batch."""
        return sum(window.joules for window in self.windows) / sum(window.iterations for window in self.windows)


def crosscheck_gap(trials: Iterable[EnergyTrial]) -> float | None:
    """Return by how much the integral of sampled power exceeds the counter, relative; None where it was not sampled."""
    windows = [window for trial in trials for window in trial.windows]
    sampled = [(window.power_joules, window.joules) for window in windows if window.power_joules is not None]
    if not sampled:
        return None
    return sum(power for power, _ in sampled) / sum(counted for _, counted in sampled) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyCalibration:
    """What a run found out about its energy counter, before any case.

    Attributes:
        period_seconds: median time between two updates of the counter, under load; None for sampled power.
        period_p95_seconds: 95th percentile of the same.
        step_joules: smallest rise seen.
        call_seconds: median duration of one reading.
        rise_seconds: how long sampled power took to follow a load from 10 to 90 %; None where it was not seen.
        idle_watts: power without load, the worker's context open; None where it could not be told.
        idle_seconds: how long that was watched.
        temperature_celsius: at the end of it.
        doubts: what is to be doubted of every reading with it, e.g. ``shared``, ``counter_frozen``.
    """

    source: EnergySource
    scope: EnergyScope
    period_seconds: float | None = None
    period_p95_seconds: float | None = None
    step_joules: float | None = None
    call_seconds: float | None = None
    rise_seconds: float | None = None
    idle_watts: float | None
    idle_seconds: float
    temperature_celsius: int | None = None
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyReading:
    """Energy of a case as it was watched; joules per image are derived from the trials.

    Attributes:
        reason: why it is of low confidence or not measured, e.g. ``rapl_absent``; None if and only if measured.
        detail: the same for people.
        doubts: every reason for low confidence that was found, the first one is ``reason``.
        preset: ``quick`` or ``full``.
        relative_bias: bound of the errors that repeating does not average out (edges, a sensor that looks part of
            the time), relative to the reading; the gain of the board's sensor (about 5 %) is not in it.
    """

    status: EnergyStatus
    reason: str | None
    detail: str | None
    doubts: tuple[str, ...] = ()
    preset: str | None = None
    relative_bias: float | None = None
    calibration: EnergyCalibration | None = None
    trials: tuple[EnergyTrial, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a number without a source, and a missing number without a reason."""
        if (self.status == "measured") != (self.reason is None):
            raise ValueError("an energy reading has a reason if and only if it is not simply measured")
        if (self.status == "not_measured") != (not self.trials):
            raise ValueError("an energy reading has trials if and only if it is measured")
        if self.trials and (self.calibration is None or self.relative_bias is None):
            raise ValueError("energy trials need the calibration of their counter and a bound of their bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class TracePoint:
    """One sample of a power trace; seconds from the first."""

    seconds: float
    power_watts: float | None
    sm_clock_mhz: int | None
    temperature_celsius: int | None
    event_reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationCount:
    """What one iteration of the eager model executed, counted operator by operator; measure/operations.py says how.

    Attributes:
        matmul_flops: of matrix products, convolutions and fused attention; a multiplication and an addition are two.
        elementwise_flops: of everything else, one for each element of a pointwise operator's result and of a
            reduction's input.
        operator_bytes: what the operators read and wrote, each by itself: nothing fused, nothing kept in a cache.
    """

    matmul_flops: int
    elementwise_flops: int
    operator_bytes: int

    def __post_init__(self) -> None:
        """Refuse what nobody can have counted."""
        if min(self.matmul_flops, self.elementwise_flops, self.operator_bytes) < 0:
            raise ValueError("operations are counted from zero upwards")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A case that ran.

    Attributes:
        latencies_seconds: host time of each timed iteration, from the call until the device has finished it, the
            queue empty before: what somebody waits who sends one batch.
        gpu_seconds: time between two CUDA events around an iteration that the queue kept waiting for the device, so
            that no launch is in it, unless the flag ``launches_in_gpu_seconds`` says so; empty on a CPU.
        seconds_per_iteration: time a batch with the queue kept full, over ``iterations_per_sample`` iterations each;
            throughput is its inverse.
        graph_seconds_per_iteration: the same replayed as a CUDA graph; empty where it was not tried or failed.
        launch_bound: whether the eager iteration takes more than 1.1 times its CUDA graph; None where that is unknown.
        warmup_seconds: host time of each call before timing began; compilation is in the first.
        build_seconds: building and initialising the model on the device, graph capture included.
        choices: what the model decided by itself, by name: e.g. ``backend`` of a fused kernel, ``host`` (``lean``).
        parameters: parameters as built for this resolution, before any are multiplied together for inference.
        model_bytes: parameters and buffers as they run; for training also gradients and optimiser state.
        peak_memory_bytes: peak after warm-up, the model and what libraries allocate through torch (workspaces of
            cuBLAS, tens of MiB) included; None where unknown.
        peak_reserved_bytes: the allocator's peak of reserved memory; None on a CPU.
        nvml_process_bytes: what NVML says the process held after timing, CUDA context included; None where unknown.
        memory_source: ``cuda_allocator``, or ``process_rss`` (resident memory above the worker's own baseline).
        operations: what an iteration executes; None where that could not be counted, which is flagged.
        state_before: the GPU before timing; None on a CPU.
        state_during: the GPU while it was timed, from samples; None where nobody sampled.
        state_after: the GPU after timing.
        stage_seconds: how long the case spent on ``build``, ``warm-up``, ``latency``, ``settle``, ``window``, ...
        flags: what a reader of the number must know, e.g. ``non_finite_output``, ``not_converged``.
    """

    latencies_seconds: tuple[float, ...]
    gpu_seconds: tuple[float, ...]
    seconds_per_iteration: tuple[float, ...]
    iterations_per_sample: int
    graph_seconds_per_iteration: tuple[float, ...]
    launch_bound: bool | None
    warmup_seconds: tuple[float, ...]
    build_seconds: float
    choices: dict[str, str]
    parameters: int
    model_bytes: int
    peak_memory_bytes: int | None
    peak_reserved_bytes: int | None
    nvml_process_bytes: int | None
    memory_source: MemorySource
    operations: OperationCount | None
    energy: EnergyReading
    state_before: GpuState | None
    state_during: SampledState | None
    state_after: GpuState | None
    stage_seconds: dict[str, float]
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no clock can have measured."""
        for name in ("latencies_seconds", "seconds_per_iteration"):
            samples = getattr(self, name)
            if not samples or min(samples) <= 0:
                raise ValueError(f"{name} must hold at least one time, all above zero")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A case that was built and run once, to see whether it fits; nothing about it was timed.

    Attributes:
        model_bytes: as in Measurement; so are the following.
        first_call_seconds: what building and the one call took together, everything cold: how far it was from its
            time limit, and no latency.
        flags: as in Measurement; ``shared``.
    """

    model_bytes: int
    peak_memory_bytes: int | None
    peak_reserved_bytes: int | None
    nvml_process_bytes: int | None
    memory_source: MemorySource
    first_call_seconds: float
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A case that did not run to its end, and why.

    Attributes:
        kind: ``oom`` (device memory), ``host_oom``, ``timeout``, ``crash`` (the worker died by itself), ``killed``
            (from outside), ``unsupported`` (cannot run by design), ``skipped`` (predicted not to fit), ``error``.
        stage: where it happened; in training ``backward`` where that is known. ``forward`` is the one call of a Fit.
        message: one line for people.
        cause: what in particular. Of memory: the allocator refused (``allocation``), though it held much that was
            free in pieces (``fragmentation``), or a library got no ``workspace``. Of ``unsupported``: more elements
            than a 32-bit index can count (``index_limit``), or more blocks than a kernel can have (``launch_limit``).
        exception: class name of the Python exception, if there was one.
        exit_code: of the worker; negative is a signal.
        signal: its name, where it died of one.
        requested_bytes: size of the allocation that failed.
        allocated_bytes: what tensors held then; on a CPU, what the process held above its start.
        reserved_bytes: what the caching allocator had taken from the device then.
        free_bytes: memory that was free then.
        dominated_by: for ``skipped``: the smaller case that had already run out of memory.
        predicted_seconds: for ``skipped``: predicted duration of the case.
        predicted_bytes: for ``skipped``: predicted peak memory of the case.
        flags: as in Measurement; ``shared``.
    """

    kind: FailureKind
    stage: Stage
    message: str
    cause: FailureCause | None = None
    exception: str | None = None
    exit_code: int | None = None
    signal: str | None = None
    requested_bytes: int | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    free_bytes: int | None = None
    dominated_by: str | None = None
    predicted_seconds: float | None = None
    predicted_bytes: int | None = None
    flags: tuple[str, ...] = ()


Outcome = Measurement | Fit | Failure


def with_flag(outcome: Outcome, flag: str) -> Outcome:
    """Return ``outcome`` with a flag more, if it has not got that already."""
    return outcome if flag in outcome.flags else replace(outcome, flags=(*outcome.flags, flag))


MEMORY_KINDS: frozenset[FailureKind] = frozenset({"oom", "host_oom"})
"""Failures for want of memory: a larger case of the same kind would fail as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An earlier try at the same case that ended from outside."""

    stage: Stage
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Exactly one line of ``records.jsonl``."""

    case: Case
    environment: str
    started_utc: str
    seconds: float
    attempts: tuple[Attempt, ...]
    outcome: Outcome
    schema_version: int = SCHEMA_VERSION
