"""Which environments are alike, and what of a cluster stands in their JSON form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fake_worker import ENVIRONMENT
from sample_records import GPU

from infsa_bench.codec import decode, encode
from infsa_bench.errors import SchemaError
from infsa_bench.machine import Environment, alike, differing_facts

ONE = replace(ENVIRONMENT, device="cuda:0", device_uuid="GPU-0", gpu=GPU)


def other(**changes: Any) -> Environment:
    """Return another device of the same kind, but for some facts of its GPU."""
    facts = replace(GPU, nvml_index=5, uuid="GPU-5", pci_bus_id="00000000:20:00.0", vbios_version="97")
    return replace(ONE, device="cuda:5", device_uuid="GPU-5", gpu=replace(facts, **changes))


@pytest.mark.parametrize(
    ("theirs", "differing"),
    [
        (other(), []),
        (replace(other(), node="another"), []),
        (other(name="NVIDIA L4"), ["name"]),
        (other(power_limit_watts=400.0, driver_version="1"), ["driver version", "power limit watts"]),
        (replace(other(), device_name="NVIDIA L4"), ["device name"]),
        (replace(other(), accelerator="L4"), ["accelerator"]),
        (replace(other(), torch_version="1"), ["torch version"]),
        (replace(other(), cpu_count=32, torch_threads=32), []),
        (replace(other(), gpu=None), ["GPU"]),
        (replace(ONE, gpu=None, device="cpu"), ["device", "GPU"]),
    ],
    ids=str,
)
def test_devices_are_alike_unless_they_differ_in_more_than_which_one_it_is(
    theirs: Environment, differing: list[str]
) -> None:
    assert differing_facts(ONE, theirs) == differing_facts(theirs, ONE) == differing
    assert (ONE.kind == theirs.kind) == (not differing)
    assert ONE.key != theirs.key


def test_a_processor_with_other_cores_is_another() -> None:
    more = replace(ENVIRONMENT, cpu_count=32, torch_threads=16)
    assert differing_facts(ENVIRONMENT, more) == ["cpu count", "torch threads"]


def test_the_first_of_a_kind_stands_for_all() -> None:
    slower = other(name="NVIDIA L4")
    found = {"a": slower, "b": ONE, "c": other(), "d": replace(slower, device_uuid="GPU-9")}
    assert alike(found) == {"a": "a", "b": "b", "c": "b", "d": "a"}
    assert alike({}) == {}


def test_without_a_cluster_an_environment_is_written_as_ever() -> None:
    assert '"node"' not in encode(ONE)
    assert '"accelerator"' not in encode(ONE)
    assert decode(Environment, encode(ONE)) == ONE
    # What manifests and records of earlier runs are keyed by.
    assert ENVIRONMENT.key == "c0b70a7502be"
    on_cluster = replace(ONE, node="worker-3", accelerator="H100")
    assert decode(Environment, encode(on_cluster)) == on_cluster
    assert on_cluster.key != ONE.key
    with pytest.raises(SchemaError, match=r"node: '3' is not of type"):
        decode(Environment, encode(on_cluster).replace('"worker-3"', "3"))
