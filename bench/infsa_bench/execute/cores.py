"""The processor cores that workers get, several on one machine: whole physical cores, each worker its own.

Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
"""Where Linux tells which of its cores are hyperthreads of one physical core."""

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that say how many threads a worker has, whatever its cores."""


def own_cores() -> list[int]:
    """Return the cores that this thread may use."""
    return sorted(os.sched_getaffinity(0))


def divided_cores(cores: Sequence[int], parts: int, cpus: Path = CPUS) -> list[frozenset[int] | None]:
    """Return equal shares of the cores, None for all where nobody else is to have any.

    A share is whole physical cores where there are enough, and neighbours: of one package if it fits. Where there are
    more parts than cores, they take turns.
    """
    if parts == 1:
        return [None]
    physical = physical_cores(cores, cpus)
    ordered = [core for siblings in physical for core in siblings]
    size = max(1, len(ordered) // parts)
    width = len(physical[0])
    if size > width and all(len(siblings) == width for siblings in physical):
        size -= size % width
    return [frozenset(ordered[(part * size + core) % len(ordered)] for core in range(size)) for part in range(parts)]


def physical_cores(cores: Sequence[int], cpus: Path = CPUS) -> list[tuple[int, ...]]:
    """Return the cores in groups that share a physical one, package by package; each alone where nobody tells."""
    found: dict[tuple[int, int], list[int]] = {}
    for core in sorted(cores):
        topology = cpus / f"cpu{core}" / "topology"
        package = _first_number(topology / "physical_package_id", 0)
        # Siblings all list the same ones, the lowest first.
        found.setdefault((package, _first_number(topology / "thread_siblings_list", core)), []).append(core)
    return [tuple(found[key]) for key in sorted(found)]


def limited_threads(environment: Mapping[str, str], cores: int) -> dict[str, str]:
    """Return the variables that leave a worker no more threads than cores, fewer if ``environment`` says so."""
    wanted = {name: environment.get(name, "") for name in THREADS}
    return {name: str(min(cores, int(text) if text.isdecimal() else cores)) for name, text in wanted.items()}


def _first_number(path: Path, default: int) -> int:
    try:
        return int(path.read_text(encoding="ascii").replace("-", ",").split(",")[0])
    except (OSError, ValueError):
        return default
