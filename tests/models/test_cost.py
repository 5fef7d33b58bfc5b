"""The formulas of ``cost.py`` against the models as built.

A mechanism of the table without formulas fails here. Models are traced on fake tensors: nothing is computed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from live_bytes import LiveBytes, on_fake_cpu
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from infsa_models import cost as cost_module
from infsa_models import vit
from infsa_models.cost import PRECISIONS, attention_cost, vit_cost
from infsa_models.registry import BASE_GRID, CONFIGS, EMBED_DIM, MECHANISMS, PATCH_SIZE, Backbone, load_class
from infsa_models.vit import build_vit

# Bounds of the estimates. The harness sizes its cases by them; parameters are exact.
FLOPS_TOLERANCE = 0.02
INFER_PEAK_TOLERANCE = 0.15
TRAIN_PEAK_TOLERANCE = 0.25

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "amp-bf16": torch.float32}
BASE_RESOLUTION = BASE_GRID[0] * PATCH_SIZE

every_mechanism = pytest.mark.parametrize("mechanism", MECHANISMS)
every_implementation = pytest.mark.parametrize("implementation", ["reference", "fast"])
every_config = pytest.mark.parametrize("config", CONFIGS)


@pytest.fixture(scope="module", autouse=True)
def two_layers() -> Iterator[None]:
    """Adds the two backbones cut to two layers, for the traces: further layers only repeat the second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "2L-64H", Backbone(depth=2, num_heads=64))
        patch.setitem(CONFIGS, "2L-16H", Backbone(depth=2, num_heads=16))
        yield


def convolution_backward_flops(
    grad_shape: list[int],
    input_shape: list[int],
    weight_shape: list[int],
    bias: object,
    stride: object,
    padding: object,
    dilation: object,
    transposed: bool,
    output_padding: object,
    groups: int,
    output_mask: list[bool],
    out_shape: object,
) -> int:
    """Each of the two gradients costs as much as the forward.

    torch's own formula takes the weight gradient of a depthwise convolution for that of a dense one, and counts
    it too high by the number of channels.
    """
    return (output_mask[0] + output_mask[1]) * conv_flop_count(input_shape, weight_shape, grad_shape, transposed)


CORRECTED_FLOPS = {torch.ops.aten.convolution_backward: convolution_backward_flops}


@dataclass(frozen=True)
class Traced:
    matmul_flops: int
    peak_bytes: int


def trace_iteration(model: nn.Module, images: tuple[int, ...], *, phase: str, precision: str) -> Traced:
    """Run one iteration on fake tensors, with gradients allocated before as after a first iteration."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = on_fake_cpu(model)
        x = torch.empty(images, dtype=DTYPES[precision])
        if phase == "train":
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
        labels = torch.zeros(images[0], dtype=torch.long)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=PRECISIONS[precision].autocast)
        flops = FlopCounterMode(display=False, custom_mapping=CORRECTED_FLOPS)
        with flops, LiveBytes() as live, torch.set_grad_enabled(phase == "train"):
            with autocast:
                output = model(x)
            if phase == "train":
                loss = F.cross_entropy(output.float(), labels) if output.ndim == 2 else output.sum()
                loss.backward()
    return Traced(flops.get_total_flops(), live.trace.peak_bytes)


@every_mechanism
@every_implementation
@every_config
def test_parameters_are_exact(mechanism: str, implementation: str, config: str) -> None:
    base_cost = vit_cost(mechanism, config, BASE_RESOLUTION, implementation=implementation)
    for resolution in (224, 512, 2048):
        cost = vit_cost(mechanism, config, resolution, implementation=implementation)
        model = build_vit(mechanism, config, resolution, implementation=implementation, device="meta")
        parameters = sum(parameter.numel() for parameter in model.parameters())
        model.fold_for_inference()
        kept = [*model.parameters(), *model.buffers()]
        assert cost.parameters == parameters
        assert cost.model_bytes == sum(tensor.nbytes for tensor in kept)
        assert cost.base_parameters == base_cost.parameters


@pytest.mark.parametrize(
    ("mechanism", "config", "parameters"),
    [
        ("softmax", "4L-64H", 57_650_152),
        ("softmax", "24L-16H", 330_566_632),
        ("infsa-pure", "4L-64H", 57_650_156),
        ("infsa-pure", "24L-16H", 330_566_656),
        ("infsa-linear", "4L-64H", 53_451_756),
        ("infsa-linear", "24L-16H", 305_376_256),
    ],
)
def test_published_parameter_counts(mechanism: str, config: str, parameters: int) -> None:
    assert vit_cost(mechanism, config, 224).parameters == parameters
    assert vit_cost(mechanism, config, 1024).base_parameters == parameters


@every_mechanism
@pytest.mark.parametrize(
    ("implementation", "config", "resolution", "batch_size", "phase", "precision"),
    [
        ("reference", "4L-64H", 224, 2, "infer", "fp32"),
        ("reference", "2L-64H", 1024, 1, "infer", "bf16"),
        ("reference", "2L-16H", 2048, 1, "infer", "fp32"),
        ("reference", "2L-64H", 512, 2, "train", "fp32"),
        ("reference", "2L-16H", 1024, 1, "train", "fp32"),
        ("reference", "2L-16H", 1024, 1, "train", "amp-bf16"),
        ("fast", "4L-64H", 224, 2, "infer", "fp32"),
        ("fast", "2L-64H", 1024, 1, "infer", "bf16"),
        ("fast", "2L-16H", 4096, 1, "infer", "fp32"),
        ("fast", "2L-64H", 512, 2, "train", "fp32"),
        ("fast", "2L-16H", 1024, 1, "train", "fp32"),
        ("fast", "2L-16H", 1024, 1, "train", "amp-bf16"),
        pytest.param("fast", "2L-64H", 4096, 1, "train", "amp-bf16", marks=pytest.mark.soak),
    ],
)
def test_flops_and_peak_of_a_model(
    mechanism: str, implementation: str, config: str, resolution: int, batch_size: int, phase: str, precision: str
) -> None:
    plan: dict[str, Any] = {"implementation": implementation}
    cost = vit_cost(mechanism, config, resolution, batch_size=batch_size, phase=phase, precision=precision, **plan)
    model = build_vit(mechanism, config, resolution, device="meta", dtype=DTYPES[precision], **plan)
    if phase == "infer":
        model.fold_for_inference()
    traced = trace_iteration(model, (batch_size, 3, resolution, resolution), phase=phase, precision=precision)
    assert cost.matmul_flops == pytest.approx(traced.matmul_flops, rel=FLOPS_TOLERANCE)
    tolerance = TRAIN_PEAK_TOLERANCE if phase == "train" else INFER_PEAK_TOLERANCE
    assert cost.peak_activation_bytes == pytest.approx(traced.peak_bytes, rel=tolerance)


@every_mechanism
@pytest.mark.parametrize(("phase", "precision"), [("infer", "bf16"), ("train", "amp-bf16")])
def test_flops_and_peak_with_a_lean_host(
    mechanism: str, phase: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lean host begins earlier here than it does: at 65,537 tokens, five pieces, that trace in seconds."""
    for module in (vit, cost_module):
        monkeypatch.setattr(module, "LEAN_TOKENS", 65_537)
    cost = vit_cost(mechanism, "2L-16H", 4096, implementation="fast", phase=phase, precision=precision)
    model = build_vit(mechanism, "2L-16H", 4096, implementation="fast", device="meta", dtype=DTYPES[precision])
    assert model.choices(batch=1) == {"host": "lean"}
    if phase == "infer":
        model.fold_for_inference()
    traced = trace_iteration(model, (1, 3, 4096, 4096), phase=phase, precision=precision)
    assert cost.matmul_flops == pytest.approx(traced.matmul_flops, rel=FLOPS_TOLERANCE)
    tolerance = TRAIN_PEAK_TOLERANCE if phase == "train" else INFER_PEAK_TOLERANCE
    assert cost.peak_activation_bytes == pytest.approx(traced.peak_bytes, rel=tolerance)


@every_mechanism
@every_implementation
@pytest.mark.parametrize("phase", ["infer", "train"])
def test_flops_of_a_model_pruned_to_the_class_token(mechanism: str, implementation: str, phase: str) -> None:
    plan: dict[str, Any] = {"implementation": implementation}
    cost = vit_cost(mechanism, "2L-16H", 512, phase=phase, cls_prune=True, **plan)
    model = build_vit(mechanism, "2L-16H", 512, device="meta", options={"cls_prune": True}, **plan)
    if phase == "infer":
        model.fold_for_inference()
    traced = trace_iteration(model, (1, 3, 512, 512), phase=phase, precision="fp32")
    assert cost.matmul_flops == pytest.approx(traced.matmul_flops, rel=FLOPS_TOLERANCE)
    assert cost.matmul_flops < vit_cost(mechanism, "2L-16H", 512, phase=phase, **plan).matmul_flops


@every_mechanism
@every_implementation
@pytest.mark.parametrize("num_heads", [16, 64])
def test_flops_and_peak_of_a_layer(mechanism: str, implementation: str, num_heads: int) -> None:
    grid = (40, 64)
    cost = attention_cost(mechanism, grid=grid, num_heads=num_heads, implementation=implementation)
    mixer = load_class(MECHANISMS[mechanism].implementations[implementation])
    layer = mixer(EMBED_DIM, num_heads, grid=grid, device="meta")
    traced = trace_iteration(layer, (1, grid[0] * grid[1] + 1, EMBED_DIM), phase="infer", precision="fp32")
    assert cost.parameters == sum(parameter.numel() for parameter in layer.parameters())
    assert cost.matmul_flops == pytest.approx(traced.matmul_flops, rel=FLOPS_TOLERANCE)
    assert cost.peak_activation_bytes == pytest.approx(traced.peak_bytes, rel=INFER_PEAK_TOLERANCE)


def test_training_keeps_gradients_and_optimizer_states() -> None:
    infer = vit_cost("softmax", "4L-64H", 224)
    train = vit_cost("softmax", "4L-64H", 224, phase="train", precision="amp-bf16")
    assert train.model_bytes == 4 * infer.model_bytes
    pure_bf16 = vit_cost("softmax", "4L-64H", 224, phase="train", precision="bf16")
    assert pure_bf16.model_bytes == infer.parameters * (2 + 2 + 8)


def test_a_linear_mechanism_grows_with_the_number_of_tokens() -> None:
    small, large = (vit_cost("infsa-linear", "24L-16H", resolution) for resolution in (2048, 8192))
    tokens = [(resolution // 16) ** 2 + 1 for resolution in (2048, 8192)]
    assert large.matmul_flops / small.matmul_flops == pytest.approx(tokens[1] / tokens[0], rel=1e-3)
    assert large.peak_activation_bytes / small.peak_activation_bytes == pytest.approx(tokens[1] / tokens[0], rel=1e-3)


def test_what_has_no_formula_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        vit_cost("someone-elses", "4L-64H", 224)
    with pytest.raises(KeyError):
        vit_cost("softmax", "4L-64H", 224, implementation="someone-elses")
    with pytest.raises(KeyError):
        vit_cost("softmax", "4L-64H", 224, precision="fp8")
    with pytest.raises(KeyError):
        vit_cost("softmax", "4L-65H", 224)


def test_bad_values_are_refused() -> None:
    with pytest.raises(ValueError, match="phase"):
        vit_cost("softmax", "4L-64H", 224, phase="predict")
    with pytest.raises(ValueError, match="multiple of 16"):
        vit_cost("softmax", "4L-64H", 230)


def test_imports_no_torch() -> None:
    program = "import sys; import infsa_models.cost, infsa_models.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
