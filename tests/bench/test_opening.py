"""What is said of the places of an engine before anything is measured there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sample_records import ENVIRONMENT, GPU
from test_cli import CommandLine, fake_launcher, run
from test_local_engine import locks

from infsa_bench.commands.opening import refuse_unlike, unlike_places
from infsa_bench.errors import SpecError

__all__ = ["locks", "run"]

ONE = replace(ENVIRONMENT, device="cuda:0", device_uuid="GPU-0", gpu=GPU, node="one")
TWIN = replace(ONE, device_uuid="GPU-1", node="twin", cpu_count=64)
OLDER = replace(ONE, node="older", gpu=replace(GPU, driver_version="1", power_limit_watts=400.0))
STALE = replace(ONE, node="stale", git_commit="f" * 40)


def test_places_that_are_alike_are_not_spoken_of() -> None:
    assert unlike_places([ONE]) == unlike_places([ONE, TWIN]) == []


def test_every_other_kind_of_place_is_named_with_what_sets_it_apart() -> None:
    end = "; what they measure will not share rows of a table"
    assert unlike_places([ONE, OLDER, TWIN, STALE, replace(OLDER, node="older still")]) == [
        f"not alike: older and 1 more differ from one in driver version, power limit watts{end}",
        f"not alike: stale differs from one in git commit{end}",
    ]


def test_nodes_of_one_hardware_go_together() -> None:
    """Whatever else differs, and a trifle of memory, which drivers keep for themselves."""
    refuse_unlike([ONE])
    refuse_unlike([ONE, TWIN, OLDER, STALE, replace(ONE, device_memory_bytes=ONE.device_memory_bytes * 99 // 100)])


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"device_name": "NVIDIA L4"}, "device"),
        ({"device_memory_bytes": 2 * ONE.device_memory_bytes}, "device memory"),
        ({"device_name": "NVIDIA L4", "device_memory_bytes": ONE.device_memory_bytes // 2}, "device, device memory"),
        ({"gpu": replace(GPU, mig_enabled=True)}, "MIG"),
    ],
)
def test_nodes_of_different_hardware_are_refused(changes: dict[str, Any], what: str) -> None:
    """Also a last one, and with what can be done: that the accelerator type is one helps nobody."""
    nodes = [replace(found, accelerator="A100") for found in (ONE, TWIN, replace(ONE, node="odd", **changes))]
    with pytest.raises(SpecError) as refused:
        refuse_unlike(nodes)
    expected = f"one and odd are different hardware ({what}), though both are of accelerator type A100; it is never "
    assert str(refused.value).startswith(expected)
    assert "as a cluster of their own, or with a type of their own for --accelerator" in str(refused.value)


def test_nodes_on_processors_of_different_threads_are_refused() -> None:
    with pytest.raises(SpecError, match=r"different hardware \(threads\); it is never mixed"):
        refuse_unlike(
            [
                replace(ENVIRONMENT, node="one"),
                replace(ENVIRONMENT, node="two", torch_threads=ENVIRONMENT.torch_threads + 1),
            ]
        )


def test_a_sweep_says_so_before_its_first_cell(run: CommandLine, monkeypatch: pytest.MonkeyPatch, locks: Path) -> None:
    """As on a cluster; devices of one machine are refused, which is left out here."""
    monkeypatch.setattr("infsa_bench.execute.local_engine._refuse_unlike", lambda first, other: None)
    monkeypatch.setattr("infsa_bench.commands.sweep.Launcher", fake_launcher("model=cuda:1:NVIDIA L4"))
    result = run("sweep", "--mechanisms", "softmax", "--res", "32", "--device", "cuda:0,cuda:1", "--dry-run")
    assert result.code == 0, result.err
    _, places, unlike, *_ = result.out[result.out.index("replicates:") :].splitlines()
    assert places.startswith("places: cuda:0, cuda:1;")
    assert unlike.startswith("not alike: cuda:1 differs from cuda:0 in device name; ")
