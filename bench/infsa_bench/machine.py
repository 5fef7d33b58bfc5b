"""The machine that a case ran on: the device, its settings, the versions, and a GPU's state at one time or another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from infsa_bench.codec import OMITTED_IF_NONE, encode


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """A GPU at one moment, as NVML tells it; None where it does not.

    Attributes:
        event_reasons: what held the clocks back just then, e.g. ``sw_power_cap``, ``hw_slowdown``; ``gpu_idle``.
        power_violation_seconds: time spent below the wished clocks for power, since the driver was loaded.
        thermal_violation_seconds: the same for heat.
        own_process_visible: whether the driver lists the worker itself; in containers it may not.
        foreign_processes: other processes that the driver lists on this GPU; None where it lists nobody.
    """

    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_celsius: int | None
    performance_state: int | None
    power_watts: float | None
    power_limit_watts: float | None
    event_reasons: tuple[str, ...] | None
    power_violation_seconds: float | None
    thermal_violation_seconds: float | None
    utilization_percent: int | None
    memory_used_bytes: int | None
    own_process_visible: bool
    foreign_processes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledState:
    """A GPU over a stretch of work, from ``samples`` of it; None where NVML does not tell.

    Attributes:
        sm_clock_mhz: median.
        temperature_celsius: highest.
        event_reasons: everything that held the clocks back in any sample.
        power_capped_fraction: share of the samples with ``sw_power_cap``, which is normal at full load.
        foreign_processes: most that were listed at a time.
    """

    samples: int
    sm_clock_mhz: float | None
    temperature_celsius: int | None
    event_reasons: tuple[str, ...]
    power_capped_fraction: float
    foreign_processes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """What NVML says of the GPU and its settings, none of which infsa-bench ever changes; None where it says nothing.

    ``nvml_library`` is the file that answered. ``nvml_index`` need not be CUDA's. ``virtualization`` is ``none``,
    ``passthrough``, ``vgpu`` or a host mode.
    """

    name: str
    nvml_index: int
    uuid: str
    pci_bus_id: str
    vbios_version: str | None
    driver_version: str
    nvml_version: str
    nvml_library: str | None
    max_sm_clock_mhz: int | None
    max_memory_clock_mhz: int | None
    power_limit_watts: float | None
    default_power_limit_watts: float | None
    min_power_limit_watts: float | None
    max_power_limit_watts: float | None
    persistence_mode: bool | None
    compute_mode: int | None
    ecc_enabled: bool | None
    mig_enabled: bool | None
    virtualization: str | None

    @property
    def is_fake(self) -> bool:
        """Whether the answers come from the library that tests use in place of NVML."""
        return self.name.startswith("FAKE") or self.driver_version.endswith("fake")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where a worker ran. ``device`` is ``cpu`` or ``cuda:N``; sizes in bytes; None means unknown or not there.

    ``gpu`` is None on a CPU, and where NVML or the GPU in it cannot be found. Only on a cluster have ``node``, its name
    for the machine, and ``accelerator``, its name for the model of the GPU, a value.
    """

    device: str
    device_name: str
    device_uuid: str | None
    device_memory_bytes: int
    gpu: GpuFacts | None
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
    tf32_convolutions: bool
    allocator_settings: str | None
    infsa_bench_version: str
    git_commit: str | None
    git_dirty: bool | None
    node: str | None = field(default=None, metadata=OMITTED_IF_NONE)
    accelerator: str | None = field(default=None, metadata=OMITTED_IF_NONE)

    @property
    def device_type(self) -> str:
        """``cpu`` or ``cuda``."""
        return self.device.partition(":")[0]

    @property
    def key(self) -> str:
        """Short digest; records refer to their environment by it."""
        return hashlib.sha256(encode(self).encode()).hexdigest()[:12]

    @property
    def kind(self) -> Environment:
        """What environments have in common that are alike: everything but which of several like devices it was.

        Nor does a worker's share of the cores matter beside a GPU: with another number of GPUs it is another.
        """
        gpu = None if self.gpu is None else replace(self.gpu, **_ANY_GPU)
        share = {} if self.device_type == "cpu" else _ANY_SHARE
        return replace(self, device=self.device_type, device_uuid=None, gpu=gpu, node=None, **share)


_ANY_GPU: dict[str, Any] = {"nvml_index": 0, "uuid": "", "pci_bus_id": "", "vbios_version": None}
"""In place of what tells a GPU from others of its model; their firmware is seldom the same."""

_ANY_SHARE: dict[str, Any] = {"cpu_count": 0, "torch_threads": 0}


def differing_facts(one: Environment, other: Environment) -> list[str]:
    """Name the facts in which the kinds of two environments differ."""
    mine, theirs = (found.kind for found in (one, other))
    if mine.device != theirs.device:
        # Only one of them has a share that matters.
        mine, theirs = (replace(found, **_ANY_SHARE) for found in (mine, theirs))
    differing = _differing_fields(replace(mine, gpu=None), replace(theirs, gpu=None))
    if mine.gpu is not None and theirs.gpu is not None:
        return differing + _differing_fields(mine.gpu, theirs.gpu)
    return differing + (["GPU"] if mine.gpu != theirs.gpu else [])


def _differing_fields(mine: Environment | GpuFacts, theirs: Environment | GpuFacts) -> list[str]:
    names = (found.name for found in fields(mine))
    return [name.replace("_", " ") for name in names if getattr(mine, name) != getattr(theirs, name)]


def like(environments: Mapping[str, Environment], key: str) -> list[Environment]:
    """Return the environments of the kind of the one with that key, itself first; none if there is no such key."""
    if key not in environments:
        return []
    found = environments[key]
    return [found, *(other for name, other in environments.items() if name != key and other.kind == found.kind)]


def alike(environments: Mapping[str, Environment]) -> dict[str, str]:
    """Return, for the key of each environment, that of the first one of its kind."""
    first: dict[Environment, str] = {}
    return {key: first.setdefault(found.kind, key) for key, found in environments.items()}
