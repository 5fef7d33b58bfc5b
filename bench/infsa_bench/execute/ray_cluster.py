"""A Ray cluster and its nodes, as Ray lists them. Imports no torch, and Ray only for a cluster that is asked for."""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from infsa_bench.errors import SpecError

INSTALL = "pip install 'infsa-bench[ray]'"
ACCELERATOR_PREFIX = "accelerator_type:"
KNOCK_SECONDS = 10.0
"""How long an address has to answer at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the cluster, as Ray lists it: how many GPUs and cores it lends, and the names of its GPU's model."""

    id: str
    name: str
    gpus: int
    cores: int
    accelerators: frozenset[str]

    def slots(self, device: str) -> int:
        """Return how many cases it takes at a time: one for each GPU or, on processors, one."""
        return self.gpus if device == "cuda" else min(1, self.cores)


class Cluster:
    """A connection to a Ray cluster, which ends with it."""

    def __init__(self, address: str) -> None:
        """Connect to the cluster at ``address``; ``auto`` for the one that this machine belongs to.

        Raises:
            SpecError: Ray is not installed, or there is no such cluster.
        """
        self.ray = _import_ray()
        try:
            _knock(address)
            self.ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise SpecError(
                f"no Ray cluster at {address!r}: {reason}; start one with ray start --head, or name another "
                "with --ray-address"
            ) from None
        # A client of a cluster may reach nothing of it but its server.
        is_client = self.ray.util.client.ray.is_connected()
        self._head: str = address if is_client else self.ray.get_runtime_context().gcs_address

    def nodes(self) -> list[Node]:
        """Return the nodes that are alive."""
        found = [node for node in self.ray.nodes() if node["Alive"]]
        hosts = Counter(node["NodeManagerHostname"] for node in found)
        return [
            Node(
                id=node["NodeID"],
                # Several nodes on one machine are told apart by what Ray calls them.
                name=host if hosts[host := node["NodeManagerHostname"]] == 1 else f"{host}-{node['NodeID'][:8]}",
                gpus=int(node["Resources"].get("GPU", 0)),
                cores=int(node["Resources"].get("CPU", 0)),
                accelerators=frozenset(
                    name.removeprefix(ACCELERATOR_PREFIX)
                    for name in node["Resources"]
                    if name.startswith(ACCELERATOR_PREFIX)
                ),
            )
            for node in found
        ]

    def answers(self) -> bool:
        """Tell whether the head is there. Ray, asked for anything that only the head knows, would wait for it."""
        try:
            _knock(self._head)
        except OSError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.ray.shutdown()


def accelerator_types(nodes: Sequence[Node]) -> list[str]:
    """Return the accelerator types of nodes, each once."""
    return sorted({name for node in nodes for name in node.accelerators})


def without_type(nodes: Sequence[Node]) -> list[str]:
    """Return the names of the nodes that have no accelerator type."""
    return [node.name for node in nodes if not node.accelerators]


def nodes_with(cluster: Cluster, device: str) -> tuple[str, list[Node]]:
    """Return the type of device that is meant, and the nodes that lend one."""
    nodes = cluster.nodes()
    if device == "auto":
        device = "cuda" if any(node.gpus for node in nodes) else "cpu"
    return device, [node for node in nodes if node.slots(device)]


def refuse_several_types(nodes: Sequence[Node], accelerator: str | None) -> None:
    """Refuse nodes of several accelerator types, unless ``accelerator`` names the one that is meant.

    Raises:
        SpecError: there are several, or some nodes have one and others none.
    """
    if accelerator is not None or len({node.accelerators for node in nodes}) <= 1:
        return
    types, untyped = accelerator_types(nodes), without_type(nodes)
    what = "several accelerator types" if len(types) > 1 else "nodes with an accelerator type and nodes without"
    none = f"; none: {', '.join(untyped)}" if untyped else ""
    raise SpecError(
        f"the Ray cluster has {what} ({', '.join(types)}{none}), which are never mixed in one run: "
        "choose one with --accelerator, or run the plan on each with --per-accelerator"
    )


def _knock(address: str) -> None:
    """See whether anybody listens at an address, of which Ray itself would take minutes to despair.

    Raises:
        OSError: nobody does.
    """
    found = re.fullmatch(r"(?:ray://)?\[?([^/\]]+?)\]?:([0-9]{1,5})", address)
    if found:
        socket.create_connection((found[1], int(found[2])), KNOCK_SECONDS).close()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise SpecError(f"--engine ray needs Ray, which is not installed: {INSTALL}") from None
    return ray
