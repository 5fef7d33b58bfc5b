"""Nodes and their accelerator types, as Ray lists them. Needs no Ray."""

from __future__ import annotations

import pytest

from infsa_bench.errors import SpecError
from infsa_bench.execute.ray_cluster import Node, accelerator_types, refuse_several_types, without_type


def nodes(*types: str) -> list[Node]:
    """Return a node for each: its accelerator types with ``+`` between them, none if empty."""
    return [
        Node(
            id=str(index), name=f"node-{index}", gpus=1, cores=1, accelerators=frozenset(filter(None, text.split("+")))
        )
        for index, text in enumerate(types)
    ]


def test_types_are_named_once() -> None:
    found = nodes("H100", "", "A100+H100", "")
    assert accelerator_types(found) == ["A100", "H100"]
    assert without_type(found) == ["node-1", "node-3"]


def test_nodes_of_one_type_or_of_none_go_together() -> None:
    refuse_several_types(nodes("A100", "A100"), None)
    refuse_several_types(nodes("", ""), None)
    refuse_several_types(nodes("A100", "A100+H100"), "A100")


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (("A100", "H100"), "has several accelerator types (A100, H100), which"),
        (("A100", "A100+H100"), "has several accelerator types (A100, H100), which"),
        (("A100", ""), "has nodes with an accelerator type and nodes without (A100; none: node-1), which"),
        (("", "A100", "H100", ""), "has several accelerator types (A100, H100; none: node-0, node-3), which"),
    ],
)
def test_others_are_refused_with_what_they_are(types: tuple[str, ...], message: str) -> None:
    with pytest.raises(SpecError) as refused:
        refuse_several_types(nodes(*types), None)
    assert str(refused.value).startswith(f"the Ray cluster {message} are never mixed in one run: choose one with --acc")
