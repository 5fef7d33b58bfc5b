from __future__ import annotations

from typing import Any

import pytest
from sample_records import make_case, make_failure, make_measurement, make_record

from infsa_bench.analyze.dominance import Dominance
from infsa_bench.record import FailureKind


@pytest.mark.parametrize(
    ("kind", "dominates"),
    [
        ("oom", True),
        ("host_oom", True),
        ("timeout", False),
        ("crash", False),
        ("killed", False),
        ("unsupported", False),
        ("skipped", False),
        ("error", False),
    ],
)
def test_only_want_of_memory_dominates(kind: FailureKind, dominates: bool) -> None:
    dominance = Dominance()
    dominance.observe(make_record(make_failure(kind), resolution=512))
    assert (dominance.dominating(make_case(resolution=768)) is not None) == dominates


def test_the_smallest_is_named_whatever_the_order_and_what_is_as_small_is_tried() -> None:
    dominance = Dominance()
    records = {side: make_record(make_failure(), resolution=side) for side in (1024, 512, 768)}
    for each in records.values():
        dominance.observe(each)
    dominance.observe(make_record(make_measurement(), resolution=224))
    assert dominance.dominating(make_case(resolution=4096)) == records[512]
    for resolution in (512, 384, 224):
        assert dominance.dominating(make_case(resolution=resolution)) is None
    assert dominance.dominating(make_case(resolution=768, replicate=2)) == records[512]


@pytest.mark.parametrize(
    "axis",
    [
        {"mechanism": "infsa-linear"},
        {"implementation": "fast"},
        {"config": "24L-16H"},
        {"batch_size": 8},
        {"precision": "bf16"},
        {"phase": "train"},
        {"execution": "compile"},
        {"options": (("rho", "0.5"),)},
    ],
    ids=lambda axis: next(iter(axis)),
)
def test_another_model_is_not_dominated(axis: dict[str, Any]) -> None:
    dominance = Dominance()
    dominance.observe(make_record(make_failure(), resolution=512))
    assert dominance.dominating(make_case(**{"resolution": 768, **axis})) is None
