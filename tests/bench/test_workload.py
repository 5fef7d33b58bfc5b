"""What one iteration really does, seen from inside a small model that stands in for the ViT."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from sample_records import make_case
from stand_in import StandIn
from torch import Tensor, nn

from infsa_bench.execute import workload
from infsa_bench.execute.instruments import open_instruments
from infsa_bench.execute.messages import RunCommand
from infsa_bench.execute.modes import MODES, CudaGraph, Forward, IndexedForward
from infsa_bench.execute.worker import run_case
from infsa_bench.execute.workload import build_workload, unsupported_reason
from infsa_bench.protocol import PROTOCOLS
from infsa_bench.record import Failure, Measurement
from infsa_bench.spec import Case, Precision

CPU = torch.device("cpu")
CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Call:
    """The state of the world in one forward pass."""

    images: Tensor
    address: int
    autocast: torch.dtype | None
    inference_mode: bool
    training: bool
    gradients_are_clear: bool
    output: Tensor


class Probe(StandIn, nn.Module):
    """Three colours to a thousand logits; keeps what every call saw."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(3, CLASSES, dtype=dtype)
        self.register_buffer("table", torch.zeros(5, dtype=dtype))
        self.calls: list[Call] = []

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.mean(dim=(2, 3)))
        self.calls.append(
            Call(
                images=images.clone(),
                address=images.data_ptr(),
                autocast=torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None,
                inference_mode=torch.is_inference_mode_enabled(),
                training=self.training,
                gradients_are_clear=all(parameter.grad is None for parameter in self.parameters()),
                output=logits,
            )
        )
        return logits


class Builder:
    """Takes the place of build_vit and keeps what it was asked for."""

    def __init__(self) -> None:
        self.model: Probe | None = None
        self.arguments: dict[str, Any] = {}

    def __call__(self, mechanism: object, config: str, resolution: int, **arguments: Any) -> Probe:
        self.arguments = {"config": config, "resolution": resolution, **arguments}
        self.model = Probe(arguments["dtype"])
        return self.model


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    builder = Builder()
    monkeypatch.setattr(workload, "build_vit", builder)
    return builder


def run(builder: Builder, case: Case, calls: int = 4) -> tuple[Probe, list[Call]]:
    built = build_workload(case, CPU)
    for _ in range(calls):
        built.call()
    assert builder.model is not None
    return builder.model, builder.model.calls


@pytest.mark.parametrize(
    ("precision", "weights", "autocast"),
    [
        ("fp32", torch.float32, None),
        ("bf16", torch.bfloat16, None),
        ("fp16", torch.float16, None),
        ("amp-bf16", torch.float32, torch.bfloat16),
        ("amp-fp16", torch.float32, torch.float16),
    ],
)
def test_inference(builder: Builder, precision: Precision, weights: torch.dtype, autocast: torch.dtype | None) -> None:
    model, calls = run(builder, make_case(precision=precision, resolution=32, batch_size=3))
    assert builder.arguments["dtype"] == weights
    assert builder.arguments["device"] == CPU
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for call in calls:
        assert call.images.shape == (3, 3, 32, 32)
        assert call.images.dtype == weights
        # Autocast is entered inside every call, so that its casts are paid every time.
        assert call.autocast == autocast
        assert call.inference_mode
        assert not call.training
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    "changes",
    [{}, {"execution": "compile"}, {"phase": "train"}, {"phase": "train", "execution": "compile"}],
)
def test_there_is_no_graph_twin_on_a_cpu(
    builder: Builder, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    assert build_workload(make_case(resolution=32, **changes), CPU).graph_twin is None


class Captures(CudaGraph):
    """Captures on any device: runs as it is, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.inputs: list[tuple[Tensor, ...]] = []

    def unsupported_reason(self, phase: str, device_type: str) -> str | None:
        return super().unsupported_reason(phase, "cuda")

    def prepare(self, forward: Forward, inputs: Sequence[Tensor]) -> IndexedForward:
        self.inputs.append(tuple(inputs))
        return lambda index: forward(inputs[index])


@pytest.mark.parametrize(
    ("changes", "has_twin"),
    [
        ({}, True),
        ({"precision": "amp-bf16"}, True),
        ({"phase": "train"}, False),
        ({"execution": "compile"}, False),
        ({"execution": "cuda-graph"}, False),
    ],
)
def test_the_graph_twin_is_of_eager_inference(
    builder: Builder, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], has_twin: bool
) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    monkeypatch.setattr(workload, "MODES", {**MODES, "cuda-graph": Captures()})
    assert (build_workload(make_case(resolution=32, **changes), CPU).graph_twin is not None) == has_twin


def test_the_graph_twin_runs_the_same_iteration(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    captures = Captures()
    monkeypatch.setattr(workload, "MODES", {**MODES, "cuda-graph": captures})
    built = build_workload(make_case(resolution=32, precision="amp-bf16"), CPU)
    assert built.graph_twin is not None
    assert builder.model is not None
    # Nothing is captured before somebody asks.
    assert captures.inputs == []
    expected = [built.call() for _ in range(4)]
    replay = built.graph_twin()
    found = [replay() for _ in range(4)]
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    calls = builder.model.calls
    assert [call.address for call in calls[4:]] == [call.address for call in calls[:4]]
    assert [call.autocast for call in calls] == [torch.bfloat16] * 8
    assert all(call.inference_mode for call in calls)
    assert [batch.data_ptr() for batch in captures.inputs[0]] == [call.address for call in calls[:2]]


def test_inputs_are_random_and_rotate(builder: Builder) -> None:
    _, calls = run(builder, make_case(resolution=32), calls=5)
    first, second, *_ = calls
    assert first.address != second.address
    assert [call.address for call in calls] == [first.address, second.address] * 2 + [first.address]
    assert not torch.equal(first.images, second.images)
    for call in (first, second):
        assert call.images.float().std() == pytest.approx(1.0, abs=0.1)
        assert call.images.float().mean() == pytest.approx(0.0, abs=0.1)


def test_the_seed_decides_weights_and_inputs(builder: Builder) -> None:
    runs = [run(builder, make_case(resolution=32, seed=seed)) for seed in (7, 7, 8)]
    weights = [model.linear.weight for model, _ in runs]
    images = [calls[0].images for _, calls in runs]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(images[0], images[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(images[0], images[2])


@pytest.mark.parametrize(("precision", "autocast"), [("fp32", None), ("amp-bf16", torch.bfloat16)])
def test_a_training_step(builder: Builder, precision: Precision, autocast: torch.dtype | None) -> None:
    built = build_workload(make_case(phase="train", precision=precision, resolution=32, batch_size=2), CPU)
    assert builder.model is not None
    before = builder.model.linear.weight.detach().clone()
    logits = built.call()
    (call,) = builder.model.calls
    assert call.training
    assert not call.inference_mode
    assert call.autocast == autocast
    assert call.images.dtype == torch.float32
    assert logits.shape == (2, CLASSES)
    gradient = builder.model.linear.weight.grad
    assert gradient is not None
    # The first step of AdamW is the learning rate (0.001) against the sign of the gradient, plus weight decay.
    steps = builder.model.linear.weight.detach() - before * (1 - 0.001 * 0.01)
    large = gradient.abs() > 1e-5
    assert large.any()
    assert torch.allclose(steps[large], -0.001 * gradient[large].sign(), atol=2e-5)
    built.call()
    assert all(call.gradients_are_clear for call in builder.model.calls)


def test_labels_are_classes_at_random(builder: Builder) -> None:
    """The gradient of the cross-entropy by the bias is softmax minus the label: negative at the labels alone."""
    built = build_workload(make_case(phase="train", resolution=32, batch_size=64), CPU)
    built.call()
    assert builder.model is not None
    gradient = builder.model.linear.bias.grad
    assert gradient is not None
    labels = (gradient < 0).nonzero().flatten()
    assert 40 <= len(labels) <= 64
    assert labels.float().std() > 200


@pytest.mark.parametrize(("precision", "enabled"), [("fp32", False), ("amp-bf16", False), ("amp-fp16", True)])
def test_float16_training_scales_its_gradients(
    builder: Builder, monkeypatch: pytest.MonkeyPatch, precision: Precision, enabled: bool
) -> None:
    made: list[torch.amp.GradScaler] = []

    class Scaler(torch.amp.GradScaler):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(torch.amp, "GradScaler", Scaler)
    run(builder, make_case(phase="train", precision=precision, resolution=32), calls=1)
    assert [scaler.is_enabled() for scaler in made] == [enabled]


def test_model_bytes(builder: Builder) -> None:
    parameters = 3 * CLASSES + CLASSES
    inference = build_workload(make_case(precision="bf16", resolution=32), CPU)
    assert (inference.parameters, inference.model_bytes) == (parameters, 2 * (parameters + 5))
    training = build_workload(make_case(phase="train", resolution=32), CPU)
    # Weights, gradients and AdamW's two moments; buffers have none of these.
    assert training.model_bytes == 4 * (4 * parameters + 5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"execution": "compile"}, None),
        ({"execution": "cuda-graph"}, "CUDA graphs need a CUDA device"),
        ({"phase": "train", "precision": "bf16"}, "training keeps float32 parameters: use fp32 or amp-bf16"),
        ({"phase": "train", "precision": "amp-fp16"}, None),
    ],
)
def test_what_cannot_run_by_design_is_known_before_anything_is_built(
    changes: dict[str, Any], reason: str | None
) -> None:
    assert unsupported_reason(make_case(**changes), "cpu") == reason


def test_cuda_graphs_hold_inference_only() -> None:
    assert unsupported_reason(make_case(execution="cuda-graph"), "cuda") is None
    training = make_case(execution="cuda-graph", phase="train", precision="amp-bf16")
    assert unsupported_reason(training, "cuda") == "training steps are not captured in CUDA graphs"


def test_a_precision_that_a_reference_cannot_run_in_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    known = workload.resolve_mechanisms(["softmax"])["softmax"]
    limited = dataclasses.replace(known, unsupported={"fp16": "it overflows"})
    monkeypatch.setattr(workload, "resolve_mechanisms", lambda names: {"softmax": limited})
    assert unsupported_reason(make_case(precision="fp16"), "cpu") == "it overflows"
    assert unsupported_reason(make_case(precision="bf16"), "cpu") is None
    assert unsupported_reason(make_case(precision="fp16", implementation="fast"), "cpu") is None


@pytest.mark.parametrize(("value", "flags"), [(0.0, ()), (float("nan"), ("non_finite_output",))])
def test_an_output_that_is_not_finite_is_flagged(
    monkeypatch: pytest.MonkeyPatch, value: float, flags: tuple[str, ...]
) -> None:
    class Spoiled(Probe):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * value

    monkeypatch.setattr(workload, "build_vit", lambda *arguments, **options: Spoiled(torch.float32))
    protocol = PROTOCOLS["quick"].customized(warmup=1, iterations=2, replicates=None)
    command = RunCommand(case=make_case(resolution=32), protocol=protocol, limit_seconds=None)
    outcome = run_case(command, open_instruments(CPU), lambda message: None).outcome
    assert isinstance(outcome, Measurement)
    assert outcome.flags == flags
    assert (len(outcome.warmup_seconds), len(outcome.latencies_seconds)) == (1, 2)


def test_compile_runs_the_whole_model_for_one_shape(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def compiled(model: nn.Module, **options: object) -> nn.Module:
        asked.append(options)
        return model

    monkeypatch.setattr(torch, "compile", compiled)
    for phase in ("infer", "train"):
        run(builder, make_case(execution="compile", phase=phase, resolution=32))
    assert asked == [{"dynamic": False, "fullgraph": True}] * 2


def test_a_limit_ends_the_timing_early_and_says_so(builder: Builder) -> None:
    protocol = PROTOCOLS["quick"].customized(warmup=0, iterations=50, replicates=None)
    command = RunCommand(case=make_case(resolution=32), protocol=protocol, limit_seconds=0.0)
    outcome = run_case(command, open_instruments(CPU), lambda message: None).outcome
    assert isinstance(outcome, Measurement)
    # Nothing was counted, either: there was no warm-up to do it in.
    assert outcome.flags == ("time_limited", "operations_not_counted")
    assert len(outcome.latencies_seconds) == 3
    assert outcome.warmup_seconds == ()


@pytest.mark.parametrize(("phase", "precision"), [("infer", "fp32"), ("infer", "bf16"), ("train", "fp32")])
def test_fast_is_folded_for_inference_only(phase: str, precision: str) -> None:
    """Parameters are those of the model before; what is in memory is what runs."""
    case = make_case(implementation="fast", resolution=32, phase=phase, precision=precision)
    built = build_workload(case, CPU)
    reference = build_workload(dataclasses.replace(case, implementation="reference"), CPU)
    assert built.parameters == reference.parameters
    folded_bytes = 4 * (1024 * 1024 + 1024) * (2 if precision == "bf16" else 4)
    assert reference.model_bytes - built.model_bytes == (folded_bytes if phase == "infer" else 0)


def test_a_model_says_which_kernel_it_chose() -> None:
    built = build_workload(make_case(implementation="fast", resolution=32), CPU)
    assert built.choices() == {}
    built.call()
    assert built.choices() == {"backend": "flash"}


def test_options_are_words_in_a_case_and_values_in_a_model(builder: Builder) -> None:
    options = (("cls_prune", "0"), ("rho", "0.5"), ("tie_qk", "1"))
    build_workload(make_case(mechanism="infsa-linear", options=options), CPU)
    assert builder.arguments["options"] == {"cls_prune": False, "rho": 0.5, "tie_qk": True}


def test_a_kernel_that_the_device_lacks_is_unsupported() -> None:
    command = RunCommand(
        case=make_case(implementation="fast", resolution=32, options=(("backend", "cudnn"),)),
        protocol=PROTOCOLS["quick"].customized(warmup=1, iterations=2, replicates=None),
        limit_seconds=None,
    )
    failure = run_case(command, open_instruments(CPU), lambda message: None).outcome
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.stage) == ("unsupported", "warm-up")
    assert failure.message == "backend cudnn: has no kernel for cpu"


def test_what_was_chosen_is_recorded() -> None:
    command = RunCommand(
        case=make_case(implementation="fast", resolution=32),
        protocol=PROTOCOLS["quick"].customized(warmup=1, iterations=2, replicates=None),
        limit_seconds=None,
    )
    measurement = run_case(command, open_instruments(CPU), lambda message: None).outcome
    assert isinstance(measurement, Measurement)
    assert measurement.choices == {"backend": "flash"}
