"""The engine that a sweep is run with, as its options ask for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from infsa_bench.analyze.comparability import differing_hardware
from infsa_bench.commands.options import RAY_ADDRESS, SweepOptions, SweepRequest
from infsa_bench.errors import SpecError
from infsa_bench.execute.engines import Engine
from infsa_bench.execute.local_engine import LocalEngine
from infsa_bench.execute.ray_cluster import ACCELERATOR_PREFIX, Cluster
from infsa_bench.execute.ray_engine import RayEngine
from infsa_bench.execute.station import StartLauncher
from infsa_bench.machine import Environment, differing_facts
from infsa_bench.schedule import MEMORY_SHARE


@contextmanager
def opened_engine(request: SweepRequest, options: SweepOptions, start_launcher: StartLauncher) -> Iterator[Engine]:
    """Lend the engine that is asked for, its places all of one hardware.

    Raises:
        SpecError: there is none, or its places are not all of one hardware.
    """
    if request.engine == "local":
        with LocalEngine(options.devices, start_launcher, allow_shared=request.allow_shared) as local:
            yield local
        return
    (device,) = options.devices
    with (
        Cluster(request.ray_address or RAY_ADDRESS) as cluster,
        RayEngine(cluster, device, request.accelerator, allow_shared=request.allow_shared) as remote,
    ):
        refuse_unlike([hello.environment for hello in remote.hellos])
        yield remote


def refuse_unlike(environments: Sequence[Environment]) -> None:
    """Refuse nodes of different hardware, though the accelerator type is one.

    Raises:
        SpecError: one differs from the first.
    """
    one, *others = environments
    for other in others:
        differing = differing_hardware(one, other)
        if differing:
            types = "" if one.accelerator is None else f", though both are of accelerator type {one.accelerator}"
            raise SpecError(
                f"{one.node} and {other.node} are different hardware ({', '.join(differing)}){types}; it is never "
                "mixed in one run: start the nodes of each kind as a cluster of their own, or with a type of their own "
                f"for --accelerator: ray start --resources='{{\"{ACCELERATOR_PREFIX}NAME\": 1}}'"
            )


def unlike_places(environments: Sequence[Environment]) -> list[str]:
    """Return a line for each kind of place but the first: how many they are, and what sets them apart."""
    first, *others = dict.fromkeys(environment.kind for environment in environments)
    base = environments[0].node or environments[0].device
    lines = []
    for kind in others:
        name, *more = dict.fromkeys(found.node or found.device for found in environments if found.kind == kind)
        which = f"{name} and {len(more)} more differ" if more else f"{name} differs"
        facts = ", ".join(differing_facts(first, kind))
        lines.append(f"not alike: {which} from {base} in {facts}; what they measure will not share rows of a table")
    return lines


def checked_host_memory(engine: Engine, memory_limit_bytes: int | None) -> int | None:
    """Return the memory that cases on a CPU are checked against before they run, None for no check.

    Under a limit that lies below what the check allows, running out harms nobody and is what one wants to see.
    """
    available_bytes = engine.available_bytes
    if engine.hello.environment.device_type != "cpu" or available_bytes is None:
        return None
    if memory_limit_bytes is not None and memory_limit_bytes <= MEMORY_SHARE * available_bytes:
        return None
    return available_bytes
