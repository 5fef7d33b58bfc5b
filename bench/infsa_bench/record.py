"""What was found out: one record per case, a measurement or a failure, and its JSON form.

Raw samples are stored; medians, intervals and throughput are computed by those who read them.

Schema history:
    1: first version.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from infsa_bench.errors import SchemaError
from infsa_bench.spec import Case

SCHEMA_VERSION = 1

FailureKind = Literal["oom", "host_oom", "timeout", "crash", "killed", "unsupported", "skipped", "error"]
Stage = Literal["plan", "start", "build", "warm-up", "timing"]
MemorySource = Literal["cuda_allocator", "process_rss"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A case that ran.

    Attributes:
        latencies_seconds: host time of each timed iteration, from the call until the device has finished it.
        gpu_seconds: the same iterations between two CUDA events; empty on a CPU.
        warmup_seconds: the same for each call before timing began; compilation is in the first.
        build_seconds: building and initialising the model on the device, graph capture included.
        parameters: parameters as built for this resolution.
        model_bytes: parameters and buffers; for training also gradients and optimiser state.
        peak_memory_bytes: peak during the timed iterations, the model included; None where unknown.
        peak_reserved_bytes: the allocator's peak of reserved memory; None on a CPU.
        memory_source: ``cuda_allocator``, or ``process_rss`` (resident memory above the worker's own baseline).
        flags: what a reader of the number must know, e.g. ``non_finite_output``, ``time_limited``.
    """

    latencies_seconds: tuple[float, ...]
    gpu_seconds: tuple[float, ...]
    warmup_seconds: tuple[float, ...]
    build_seconds: float
    parameters: int
    model_bytes: int
    peak_memory_bytes: int | None
    peak_reserved_bytes: int | None
    memory_source: MemorySource
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no clock can have measured."""
        if not self.latencies_seconds or min(self.latencies_seconds) <= 0:
            raise ValueError("latencies_seconds must hold at least one time, all above zero")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A case that did not run to its end, and why.

    Attributes:
        kind: ``oom`` (device memory), ``host_oom``, ``timeout``, ``crash`` (the worker died by itself), ``killed``
            (from outside), ``unsupported`` (cannot run by design), ``skipped`` (predicted not to fit), ``error``.
        stage: where it happened.
        message: one line for people.
        exception: class name of the Python exception, if there was one.
        exit_code: of the worker; negative is a signal.
        requested_bytes: size of the allocation that failed.
        free_bytes: memory that was free then.
        predicted_seconds: for ``skipped``: predicted duration of the case.
        predicted_bytes: for ``skipped``: predicted peak memory of the case.
    """

    kind: FailureKind
    stage: Stage
    message: str
    exception: str | None = None
    exit_code: int | None = None
    requested_bytes: int | None = None
    free_bytes: int | None = None
    predicted_seconds: float | None = None
    predicted_bytes: int | None = None


Outcome = Measurement | Failure


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where a worker ran. ``device`` is ``cpu`` or ``cuda:N``; sizes in bytes; None means unknown or not there."""

    device: str
    device_name: str
    device_uuid: str | None
    device_memory_bytes: int
    driver_version: str | None
    cuda_version: str | None
    cudnn_version: str | None
    torch_version: str
    timm_version: str
    python_version: str
    operating_system: str
    cpu_name: str
    cpu_count: int
    torch_threads: int
    float32_matmul_precision: str
    cudnn_benchmark: bool
    allocator_settings: str | None
    infsa_bench_version: str
    git_commit: str | None
    git_dirty: bool | None

    @property
    def device_type(self) -> str:
        """``cpu`` or ``cuda``."""
        return self.device.partition(":")[0]

    @property
    def key(self) -> str:
        """Short digest; records refer to their environment by it."""
        return hashlib.sha256(encode(self).encode()).hexdigest()[:12]


def encode(value: Any, *, indent: int | None = None) -> str:
    """Return a dataclass as JSON, on one line without ``indent``. NaN and infinities are refused: JSON has none."""
    separators = (",", ": ") if indent else (",", ":")
    return json.dumps(_plain(value), allow_nan=False, separators=separators, indent=indent)


def decode(kind: type[T], text: str | bytes) -> T:
    """Return the dataclass that ``text`` (JSON) holds, every field checked.

    Raises:
        SchemaError: not JSON, another schema version, an unknown or missing field, or a value of the wrong type.
    """
    try:
        raw = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"not JSON: {error}") from None
    if isinstance(raw, dict) and "schema_version" in {field.name for field in dataclasses.fields(kind)}:  # type: ignore[arg-type]
        version = raw.get("schema_version")
        if version != SCHEMA_VERSION:
            raise SchemaError(f"schema version {version!r}; this infsa-bench reads version {SCHEMA_VERSION}")
    return typing.cast(T, _typed(kind, raw, kind.__name__))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


@functools.cache
def _field_types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _typed(kind: Any, raw: Any, where: str) -> Any:
    """Return ``raw`` as ``kind``, a dataclass, a tuple, a dict, a literal, a union or a plain type."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _typed_dataclass(kind, raw, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _typed_union(arguments, raw, where)
    if origin is tuple and isinstance(raw, list):
        items = [arguments[0]] * len(raw) if arguments[-1] is Ellipsis else arguments
        if len(items) == len(raw):
            return tuple(
                _typed(item, value, f"{where}[{i}]") for i, (item, value) in enumerate(zip(items, raw, strict=True))
            )
    elif origin is dict and isinstance(raw, dict):
        return {key: _typed(arguments[1], value, f"{where}[{key!r}]") for key, value in raw.items()}
    elif origin is Literal:
        if raw in arguments and isinstance(raw, str):
            return raw
    elif kind is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        # Numbers beyond the range of a float: 1e999 is read as infinity, an integer of 400 digits overflows.
        with contextlib.suppress(OverflowError):
            if math.isfinite(raw):
                return float(raw)
    elif isinstance(kind, type) and type(raw) is kind:
        return raw
    raise SchemaError(f"{where}: {str(raw)[:60]!r} is not of type {getattr(kind, '__name__', kind)}")


def _typed_dataclass(kind: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise SchemaError(f"{where}: not an object")
    hints = _field_types(kind)
    unknown, missing = sorted(raw.keys() - hints.keys()), sorted(hints.keys() - raw.keys())
    if unknown or missing:
        raise SchemaError(f"{where}: unknown fields {unknown}, missing fields {missing}")
    values = {name: _typed(hint, raw[name], f"{where}.{name}") for name, hint in hints.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise SchemaError(f"{where}: {error}") from None


def _typed_union(members: tuple[Any, ...], raw: Any, where: str) -> Any:
    if raw is None and type(None) in members:
        return None
    members = tuple(member for member in members if member is not type(None))
    if len(members) > 1 and isinstance(raw, dict):
        # Dataclasses of a union (Measurement | Failure) are told apart by the fields that they must have.
        members = tuple(member for member in members if raw.keys() <= _field_types(member).keys())
    if len(members) != 1:
        raise SchemaError(f"{where}: neither of the possible kinds")
    return _typed(members[0], raw, where)
