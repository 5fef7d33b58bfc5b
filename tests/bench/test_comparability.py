"""What may be compared with what."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from sample_records import ENVIRONMENT, GPU
from sample_sides import cell_records, make_side

from infsa_bench.analyze.comparability import differences, energy_mismatch
from infsa_bench.protocol import PROTOCOLS

BOARD = dataclasses.replace(ENVIRONMENT, device="cuda:0", device_name="NVIDIA H200", device_uuid=GPU.uuid, gpu=GPU)


def side(environment: Any = BOARD, **settings: Any) -> Any:
    return make_side(cell_records([1.0]), environment=environment, **settings)


def test_nothing_differs_from_itself() -> None:
    assert differences(side(), side()) == ()
    assert energy_mismatch(side(), side()) is None


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"device_name": "NVIDIA H100"}, "device"),
        ({"device": "cpu"}, "device"),
        ({"device_memory_bytes": 40 * 2**30}, "device memory"),
        ({"float32_matmul_precision": "high"}, "float32 products"),
        ({"tf32_convolutions": True}, "TF32 convolutions"),
        ({"gpu": dataclasses.replace(GPU, power_limit_watts=500.0)}, "power limit (W)"),
        ({"gpu": dataclasses.replace(GPU, mig_enabled=True)}, "MIG"),
        ({"gpu": None}, "MIG"),
    ],
)
def test_another_machine_is_not_comparable(change: dict[str, Any], what: str) -> None:
    found = differences(side(), side(dataclasses.replace(BOARD, **change)))
    assert what in [difference.what for difference in found if difference.is_fatal]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"torch_version": "2.11.0"}, "torch"),
        ({"cuda_version": "13.0"}, "CUDA"),
        ({"cudnn_version": "9"}, "cuDNN"),
        ({"git_commit": "f" * 40}, "commit"),
        ({"device_uuid": "GPU-other"}, "GPU"),
        ({"gpu": dataclasses.replace(GPU, driver_version="571.0")}, "driver"),
        ({"device": "cuda:1"}, None),
    ],
)
def test_other_versions_are_only_said(change: dict[str, Any], what: str | None) -> None:
    found = differences(side(), side(dataclasses.replace(BOARD, **change)))
    assert [difference.what for difference in found] == ([] if what is None else [what])
    assert not any(difference.is_fatal for difference in found)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"memory_limit_bytes": 2**30}, "memory limit"),
        ({"seed": 1}, "seed"),
        ({"protocol": PROTOCOLS["paper"]}, "protocol: timed iterations"),
    ],
)
def test_other_settings_are_not_comparable(settings: dict[str, Any], what: str) -> None:
    found = differences(side(), side(**settings))
    assert what in [difference.what for difference in found if difference.is_fatal]


def test_more_replicates_are_no_other_protocol() -> None:
    assert differences(side(), side(protocol=PROTOCOLS["gate"], time_budget_seconds=None)) == ()


def test_energy_watched_for_longer_is_not_comparable_and_times_are() -> None:
    found = differences(side(), side(protocol=PROTOCOLS["full"]))
    assert [difference.is_fatal for difference in found] == [False]
    assert energy_mismatch(side(), side(protocol=PROTOCOLS["full"])) == "energy was watched in another way"


def test_the_processor_counts_where_its_energy_is_measured() -> None:
    other = dataclasses.replace(ENVIRONMENT, cpu_name="another")
    assert energy_mismatch(side(ENVIRONMENT), side(other)) == "another processor"
    unknown = dataclasses.replace(BOARD, device_uuid=None)
    assert energy_mismatch(side(unknown), side(unknown)) == "which GPU it was is not known"


def test_threads_count_on_a_cpu_only() -> None:
    more = {"torch_threads": 16}
    assert differences(side(), side(dataclasses.replace(BOARD, **more))) == ()
    (found,) = differences(side(ENVIRONMENT), side(dataclasses.replace(ENVIRONMENT, **more)))
    assert (found.what, found.base, found.new, found.is_fatal) == ("threads", "2", "16", True)
