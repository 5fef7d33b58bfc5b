"""``reference`` costs what the published code costs.

``golden/reference_cost.json`` holds FLOPs, peak of the live bytes and parameters of the official layers, traced in
float32 as here. Our layers are built in the variant that a case describes. The peak bounds what ``reference`` may
save or waste against upstream: a local name that lives longer or shorter than theirs shows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from live_bytes import LiveBytes, on_fake_cpu
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from infsa_models.cost import attention_cost
from infsa_models.mechanisms.mlla import MllaCore
from infsa_models.registry import MECHANISMS, load_class

FLOPS_TOLERANCE = 0.02
PEAK_TOLERANCE = 0.10


@dataclass(frozen=True)
class Variant:
    """How to build the layer of a case: options of our class, or another class than that of the table."""

    options: dict[str, Any] = field(default_factory=dict)
    layer_class: type[nn.Module] | None = None


# By (mechanism, variant) of the file.
VARIANTS = {
    ("softmax", "naive"): Variant(),
    ("linformer", "k256"): Variant(),
    ("performer", "favor_softmax_kernel"): Variant(),
    ("soft", "conv_r2_m1024"): Variant({"ratio": 2}),
    ("soft", "conv_r8_m64"): Variant({"ratio": 8}),
    ("flatten", "pvt_p3_k5"): Variant({"fused_qkv": False}),
    ("agent", "deit"): Variant(),
    ("agent", "pvt"): Variant(),
    ("mlla", "core"): Variant(layer_class=MllaCore),
    ("mlla", "gated_mixer"): Variant(),
    ("infsa-pure", "pure_infsa"): Variant(),
    ("infsa-linear", "linear_infsa"): Variant({"tie_qk": False}),
}


@dataclass(frozen=True)
class Departure:
    """Our default where it costs something else than the published code, on purpose."""

    reason: str
    parameters: int
    matmul_flops: int
    peak_bytes: int


DIM, TOKENS = 1024, 64 * 64 + 1
ACTIVATION_BYTES = 4 * TOKENS * DIM

# Differences to the published code, default minus published, at 64 x 64 patches.
DEPARTURES = {
    "infsa-linear": Departure(
        "one projection is query and key (the paper's text and parameter counts; its public code has two): "
        "one D x D linear less, and neither a key nor its scaled copy is alive",
        parameters=-(DIM * DIM + DIM),
        matmul_flops=-2 * TOKENS * DIM * DIM,
        # The published peak is q, k, v and scaled q, k; the output then takes the place of one of what is left.
        peak_bytes=-ACTIVATION_BYTES,
    ),
}


@dataclass(frozen=True)
class Measured:
    parameters: int
    matmul_flops: int
    peak_bytes: int


def measure(layer: nn.Module, tokens: int) -> Measured:
    parameters = sum(parameter.numel() for parameter in layer.parameters())
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        layer = on_fake_cpu(layer)
        x = torch.empty(1, tokens, DIM)
        with FlopCounterMode(display=False) as flops, LiveBytes() as live:
            layer(x)
    return Measured(parameters, flops.get_total_flops(), live.trace.peak_bytes)


def reference_class(mechanism: str) -> type[nn.Module]:
    return load_class(MECHANISMS[mechanism].implementations["reference"])


def load_cases(config: pytest.Config) -> list[dict[str, Any]]:
    document = json.loads((config.getoption("--golden-dir") / "reference_cost.json").read_text())
    assert (document["dim"], document["batch"], document["dtype"]) == (DIM, 1, "float32")
    return document["cases"]


def case_key(case: dict[str, Any]) -> tuple[str, str]:
    return case["mechanism"].replace("_", "-"), case["variant"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = load_cases(metafunc.config)
        ids = [f"{case['mechanism']}-{case['variant']}-{case['heads']}" for case in cases]
        metafunc.parametrize("case", cases, ids=ids)


def test_costs_what_the_published_layer_costs(case: dict[str, Any]) -> None:
    mechanism, _ = case_key(case)
    variant = VARIANTS[case_key(case)]
    layer_class = variant.layer_class or reference_class(mechanism)
    for published in case["scaling"]:
        layer = layer_class(
            DIM,
            case["heads"],
            grid=tuple(published["grid"]),
            class_token=case["class_token"],
            device="meta",
            **variant.options,
        )
        ours = measure(layer, published["tokens"])
        assert ours.parameters == published["parameters"]
        assert ours.matmul_flops == pytest.approx(published["matmul_flops"], rel=FLOPS_TOLERANCE)
        assert ours.peak_bytes == pytest.approx(published["peak_live_bytes"], rel=PEAK_TOLERANCE)


def test_every_mechanism_has_a_published_cost(pytestconfig: pytest.Config) -> None:
    keys = {case_key(case) for case in load_cases(pytestconfig)}
    assert keys == set(VARIANTS)
    assert {mechanism for mechanism, _ in keys} == set(MECHANISMS)


@pytest.mark.parametrize("mechanism", DEPARTURES)
@pytest.mark.parametrize("num_heads", [16, 64])
def test_departures_cost_what_is_said(mechanism: str, num_heads: int, pytestconfig: pytest.Config) -> None:
    departure = DEPARTURES[mechanism]
    (published,) = [
        case
        for case in load_cases(pytestconfig)
        if case_key(case)[0] == mechanism and case["heads"] == num_heads and case["tokens"] == TOKENS
    ]
    ours = measure(reference_class(mechanism)(DIM, num_heads, grid=(64, 64), device="meta"), TOKENS)
    assert ours.parameters == published["parameters"] + departure.parameters
    assert ours.matmul_flops == published["matmul_flops"] + departure.matmul_flops
    expected_peak = published["peak_live_bytes"] + departure.peak_bytes
    assert ours.peak_bytes == pytest.approx(expected_peak, rel=PEAK_TOLERANCE)


def test_formulas_give_the_published_cost(pytestconfig: pytest.Config) -> None:
    """Where our default is the published layer, class token included, ``cost.py`` needs no model to say the same."""
    compared = set()
    for case in load_cases(pytestconfig):
        mechanism, _ = case_key(case)
        if not case["class_token"] or mechanism in DEPARTURES:
            continue
        cost = attention_cost(mechanism, grid=tuple(case["grid"]), num_heads=case["heads"])
        assert cost.parameters == case["parameters"]
        assert cost.matmul_flops == case["matmul_flops"]
        assert cost.peak_activation_bytes == pytest.approx(case["peak_live_bytes"], rel=PEAK_TOLERANCE)
        compared.add(mechanism)
    assert compared == {"softmax", "linformer", "performer", "agent", "infsa-pure"}
