"""Whether two sides may be compared at all, and what else differs between them. Pure functions."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infsa_bench.analyze.baseline import Baseline
from infsa_bench.machine import Environment, GpuFacts
from infsa_bench.protocol import Protocol
from infsa_bench.store import Settings

SIMILAR_MEMORY = 0.02
"""Relative difference of a GPU's memory that reserved areas of drivers explain."""


AXES = ("implementation", "precision", "batch_size", "phase", "execution")
"""Axes of cells: two sides that share no value of one were not measured alike, whatever their cells are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Something that is not the same on both sides; with ``is_fatal`` numbers of the two cannot be compared."""

    what: str
    base: str
    new: str
    is_fatal: bool


def differences(base: Baseline, new: Baseline) -> tuple[Difference, ...]:
    """Return what differs between the settings and the machines of two sides, the fatal first."""
    found = [
        Difference(what=what, base=_text(mine), new=_text(theirs), is_fatal=is_fatal)
        for what, is_fatal, mine, theirs in _settings(base.settings, new.settings)
        if mine != theirs
    ]
    found += _axes(base, new)
    used = [_used(side) for side in (base, new)]
    for mine, theirs in itertools.product(*used):
        for what, (is_fatal, read) in _FACTS.items():
            pair = (read(mine), read(theirs))
            if pair[0] != pair[1] and not (what == "device memory" and _is_similar(mine, theirs)):
                found.append(Difference(what=what, base=_text(pair[0]), new=_text(pair[1]), is_fatal=is_fatal))
    return tuple(sorted(dict.fromkeys(found), key=lambda difference: not difference.is_fatal))


def _axes(base: Baseline, new: Baseline) -> list[Difference]:
    """Return the axes of which the cells of two sides share no value."""
    found = []
    for axis in AXES:
        before, after = ({str(getattr(cell.case, axis)) for cell in side.cells} for side in (base, new))
        if before and after and before.isdisjoint(after):
            words = [", ".join(sorted(values)) for values in (before, after)]
            found.append(Difference(what=axis.replace("_", " "), base=words[0], new=words[1], is_fatal=True))
    return found


def energy_mismatch(base: Baseline, new: Baseline) -> str | None:
    """Return why energies of the two sides cannot be compared, None where they can.

    A board's sensor may be off by 5 % as a whole, which cancels on one board only.
    """
    for mine, theirs in itertools.product(_used(base), _used(new)):
        if mine.device_uuid != theirs.device_uuid:
            return "another GPU: its sensor has another gain"
        if mine.device_type == "cuda" and mine.device_uuid is None:
            return "which GPU it was is not known"
        if mine.cpu_name != theirs.cpu_name:
            return "another processor"
    if base.settings.energy != new.settings.energy or base.settings.protocol.energy != new.settings.protocol.energy:
        return "energy was watched in another way"
    return None


def _used(side: Baseline) -> list[Environment]:
    """The machines that numbers come from; all that are known where none is referred to."""
    keys = {replicate.environment for cell in side.cells for replicate in cell.replicates}
    found = [environment for key, environment in side.environments.items() if key in keys]
    return found or list(side.environments.values())


def differing_hardware(mine: Environment, theirs: Environment) -> list[str]:
    """Name what makes two machines different hardware, whatever they are set to."""
    facts = {what: _FACTS[what][1] for what in _HARDWARE}
    found = [what for what, read in facts.items() if read(mine) != read(theirs)]
    return [what for what in found if not (what == "device memory" and _is_similar(mine, theirs))]


def _settings(base: Settings, new: Settings) -> list[tuple[str, bool, Any, Any]]:
    pairs: list[tuple[str, bool, Any, Any]] = [("memory limit", True, base.memory_limit_bytes, new.memory_limit_bytes)]
    pairs.append(("seed", True, base.seed, new.seed))
    pairs.append(("energy", False, base.energy, new.energy))
    pairs.append(("energy of the protocol", False, base.protocol.energy, new.protocol.energy))
    for field in dataclasses.fields(Protocol):
        if field.name not in ("name", "replicates", "energy"):
            what = f"protocol: {field.name.replace('_', ' ')}"
            pairs.append((what, True, getattr(base.protocol, field.name), getattr(new.protocol, field.name)))
    return pairs


def _gpu(read: Callable[[GpuFacts], object]) -> Callable[[Environment], object]:
    return lambda environment: None if environment.gpu is None else read(environment.gpu)


def _is_similar(mine: Environment, theirs: Environment) -> bool:
    sizes = (mine.device_memory_bytes, theirs.device_memory_bytes)
    return max(sizes) - min(sizes) <= SIMILAR_MEMORY * max(sizes)


_FACTS: dict[str, tuple[bool, Callable[[Environment], object]]] = {
    "device": (True, lambda found: f"{found.device_type} {found.device_name}"),
    "device memory": (True, lambda found: found.device_memory_bytes if found.device_type == "cuda" else None),
    "power limit (W)": (True, _gpu(lambda gpu: gpu.power_limit_watts)),
    "MIG": (True, _gpu(lambda gpu: gpu.mig_enabled)),
    "threads": (True, lambda found: found.torch_threads if found.device_type == "cpu" else None),
    "float32 products": (True, lambda found: found.float32_matmul_precision),
    "TF32 convolutions": (True, lambda found: found.tf32_convolutions),
    "cudnn.benchmark": (True, lambda found: found.cudnn_benchmark),
    "GPU": (False, lambda found: found.device_uuid),
    "driver": (False, _gpu(lambda gpu: gpu.driver_version)),
    "VBIOS": (False, _gpu(lambda gpu: gpu.vbios_version)),
    "ECC": (False, _gpu(lambda gpu: gpu.ecc_enabled)),
    "persistence mode": (False, _gpu(lambda gpu: gpu.persistence_mode)),
    "CUDA": (False, lambda found: found.cuda_version),
    "cuDNN": (False, lambda found: found.cudnn_version),
    "torch": (False, lambda found: found.torch_version),
    "timm": (False, lambda found: found.timm_version),
    "Python": (False, lambda found: found.python_version),
    "operating system": (False, lambda found: found.operating_system),
    "processor": (False, lambda found: found.cpu_name),
    "processor cores": (False, lambda found: found.cpu_count),
    "allocator": (False, lambda found: found.allocator_settings),
    "infsa-bench": (False, lambda found: found.infsa_bench_version),
    "commit": (False, lambda found: (found.git_commit or "unknown")[:12] + ("+" if found.git_dirty else "")),
}
"""What of a machine is looked at, and whether a difference in it makes numbers incomparable."""

_HARDWARE = ("device", "device memory", "MIG", "threads")


def _text(value: object) -> str:
    return "unknown" if value is None else str(value)
