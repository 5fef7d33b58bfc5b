"""``fast`` against ``reference``: the same function and the same gradients, lean, at every length.

The golden files say that both are the published function. Here is what they do not hold: gradients, tiny and ragged
lengths, pieces, the parts of the host that ``fast`` brings with it, and what all of it keeps in memory.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from live_bytes import LiveBytes, on_fake_cpu
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from infsa_models import pieces, vit
from infsa_models.registry import CONFIGS, MECHANISMS, Backbone, load_class
from infsa_models.vit import build_vit

EMBED_DIM, NUM_HEADS, BATCH = 64, 4, 2

every_mechanism = pytest.mark.parametrize("mechanism", MECHANISMS)
whole_and_in_pieces = pytest.mark.parametrize("piece_tokens", [None, 24], ids=["whole", "pieces"], indirect=True)
with_and_without_class_token = pytest.mark.parametrize("class_token", [True, False], ids=["cls", "grid"])

# Grids of 1, 2, 17, 197 and 1,025 tokens: with a class token of one patch less.
LENGTHS = {1: (1, 1), 2: (1, 2), 17: (1, 17), 197: (1, 197), 1025: (25, 41)}
LENGTHS_WITH_CLASS_TOKEN = {2: (1, 1), 17: (4, 4), 197: (14, 14), 1025: (32, 32)}
SHAPES = [(grid, False) for grid in LENGTHS.values()] + [(grid, True) for grid in LENGTHS_WITH_CLASS_TOKEN.values()]

# Options that change which products there are.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "linformer": [{"share_kv": True}, {"one_kv_head": True, "k": 16}, {"k": 8}],
    "performer": [{"qkv_bias": True}, {"generalized": True}, {"nb_features": 7}],
    "soft": [{"ratio": 2, "conv_size": 5}, {"newton_steps": 6}],
    "flatten": [{"fused_qkv": False, "focusing_factor": 4, "kernel_size": 3}],
    "agent": [{"agent_num": 9}, {"fused_qkv": False}],
    "infsa-linear": [{"tie_qk": False}],
}
WITH_OPTIONS = [(mechanism, {}) for mechanism in MECHANISMS] + [
    (mechanism, options) for mechanism, several in OPTIONS.items() for options in several
]

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-9}


@pytest.fixture
def piece_tokens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """How many tokens a piece has, where that is not left alone."""
    if request.param is not None:
        monkeypatch.setattr(pieces, "PIECE_TOKENS", request.param)
    return request.param


def pair(
    mechanism: str,
    *,
    grid: tuple[int, int],
    class_token: bool,
    dtype: torch.dtype,
    **options: Any,
) -> tuple[nn.Module, nn.Module]:
    """Return ``reference`` and ``fast`` of the same parameters, biases and tables away from their initial zeros."""
    torch.manual_seed(0)
    layers = []
    for implementation in ("reference", "fast"):
        layer_class = load_class(MECHANISMS[mechanism].implementations[implementation])
        layers.append(layer_class(EMBED_DIM, NUM_HEADS, grid=grid, class_token=class_token, dtype=dtype, **options))
    reference, fast = layers
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    fast.load_state_dict(reference.state_dict(), strict=True)
    return reference, fast


def tokens_of(grid: tuple[int, int], class_token: bool, dtype: torch.dtype, batch: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, grid[0] * grid[1] + class_token, EMBED_DIM)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def gradients(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a loss that weighs every result differently."""
    x = x.clone().requires_grad_()
    weights = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(x.dtype)
    (layer(x) * weights).sum().backward()
    named = {name: parameter.grad for name, parameter in layer.named_parameters()} | {"x": x.grad}
    missing = [name for name, gradient in named.items() if gradient is None]
    assert missing == []
    return {name: gradient for name, gradient in named.items() if gradient is not None}


def relative_errors(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Return the largest error of each, relative to its largest number.

    A gradient that should be zero (a single token's attention does not depend on its query) is rounding error in both:
    numbers below 32 roundings of the largest one of all count as those.
    """
    assert ours.keys() == theirs.keys()
    largest_of_all = max(expected.abs().max().item() for expected in theirs.values())
    errors = {}
    for name, expected in theirs.items():
        rounding = 32 * torch.finfo(ours[name].dtype).eps * largest_of_all
        error = (ours[name].double() - expected.double()).abs().max().item()
        # max() of Python lets NaN pass.
        assert math.isfinite(error), f"{name} is not a number"
        errors[name] = max(0.0, error - rounding) / max(expected.abs().max().item(), rounding)
    return errors


def tolerance(mechanism: str, dtype: torch.dtype, reference: nn.Module, x: Tensor) -> float:
    """Return what is tolerated. The gradient of SOFT's inverse is ill-conditioned: in float32 ``reference`` itself is
    off by more than 1e-5 at some of these shapes, and two times that is what both may differ by.
    """
    if mechanism != "soft" or dtype == torch.float64:
        return TOLERANCES[dtype]
    exact = gradients(copy.deepcopy(reference).double(), x.double())
    own = relative_errors(gradients(copy.deepcopy(reference), x), exact)
    return max(TOLERANCES[dtype], 2 * max(own.values()))


@pytest.mark.parametrize(("mechanism", "options"), WITH_OPTIONS, ids=lambda value: str(value).replace(" ", ""))
@whole_and_in_pieces
@with_and_without_class_token
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_and_gradients_are_those_of_reference(
    mechanism: str, options: dict[str, Any], piece_tokens: int | None, class_token: bool, dtype: torch.dtype
) -> None:
    if mechanism == "agent" and "fused_qkv" in options:
        options = {"fused_qkv": not class_token}
    grid = (6, 10)
    reference, fast = pair(mechanism, grid=grid, class_token=class_token, dtype=dtype, **options)
    x = tokens_of(grid, class_token, dtype)
    bound = tolerance(mechanism, dtype, reference, x)
    with torch.no_grad():
        expected, inferred = reference(x), fast(x)
    assert relative_errors({"y": inferred}, {"y": expected})["y"] <= bound
    errors = relative_errors(gradients(fast, x), gradients(reference, x))
    assert max(errors.values()) <= bound, errors


@every_mechanism
@pytest.mark.parametrize(("grid", "class_token"), SHAPES, ids=lambda value: str(value).replace(" ", ""))
@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.soak), torch.float64], ids=str)
def test_every_length(mechanism: str, grid: tuple[int, int], class_token: bool, dtype: torch.dtype) -> None:
    """1, 2, 17, 197 and 1,025 tokens, most of them in grids that are not square."""
    reference, fast = pair(mechanism, grid=grid, class_token=class_token, dtype=dtype)
    x = tokens_of(grid, class_token, dtype, batch=1)
    bound = tolerance(mechanism, dtype, reference, x)
    with torch.no_grad():
        assert relative_errors({"y": fast(x)}, {"y": reference(x)})["y"] <= bound
    errors = relative_errors(gradients(fast, x), gradients(reference, x))
    assert max(errors.values()) <= bound, errors


@pytest.mark.parametrize("mechanism", ["infsa-pure", "infsa-linear"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@whole_and_in_pieces
def test_affinities_that_are_negative_everywhere(mechanism: str, dtype: torch.dtype, piece_tokens: int | None) -> None:
    """Nothing is mixed: the result is the output's bias, exactly, and no gradient is NaN."""
    reference, fast = pair(mechanism, grid=(6, 10), class_token=True, dtype=dtype, **NEGATIVE_OPTIONS[mechanism])
    with torch.no_grad():
        for name, sign in (("q_proj", 1), ("k_proj", -1)):
            for layer in (reference, fast):
                layer.get_submodule(name).weight.zero_()
                layer.get_submodule(name).bias.fill_(sign)
    x = tokens_of((6, 10), True, dtype)
    with torch.no_grad():
        expected = fast.out_proj.bias.expand_as(x)
        assert torch.equal(fast(x), expected)
        assert torch.equal(reference(x), expected)
    assert all(gradient.isfinite().all() for gradient in gradients(fast, x).values())


NEGATIVE_OPTIONS: dict[str, dict[str, Any]] = {"infsa-pure": {}, "infsa-linear": {"tie_qk": False}}


@every_mechanism
@whole_and_in_pieces
@pytest.mark.parametrize("precision", ["bf16", "fp16", "amp-bf16", "amp-fp16"])
def test_half_precisions_are_no_worse_than_twice_reference(
    mechanism: str, precision: str, piece_tokens: int | None
) -> None:
    """Errors against float64 with the same rounded weights, those of ``reference`` beside those of ``fast``."""
    half = torch.bfloat16 if precision.endswith("bf16") else torch.float16
    is_autocast = precision.startswith("amp")
    dtype = torch.float32 if is_autocast else half
    grid = (14, 14)
    reference, fast = pair(mechanism, grid=grid, class_token=True, dtype=dtype)
    x = tokens_of(grid, True, dtype)
    with torch.no_grad():
        exact = copy.deepcopy(reference).double()(x.double())
        with torch.autocast("cpu", half, enabled=is_autocast):
            results = {"reference": reference(x), "fast": fast(x)}
    errors = {name: (result.double() - exact).norm().item() for name, result in results.items()}
    # Rounding the result itself is half a unit; nothing can be asked to be better than that.
    rounding = torch.finfo(half).eps / 4 * exact.norm().item()
    assert errors["fast"] <= 2 * max(errors["reference"], rounding), errors


def test_linear_infsa_core_in_float16_over_many_tokens_at_d_64() -> None:
    """70,000 tokens are more than float16 can count; several pieces are used."""
    layer_class = load_class(MECHANISMS["infsa-linear"].implementations["fast"])
    torch.manual_seed(0)
    fast = layer_class(64, 1, grid=(700, 100), class_token=False, dtype=torch.float16)
    exact = layer_class(64, 1, grid=(700, 100), class_token=False, dtype=torch.float64)
    with torch.no_grad():
        fast.v_proj.bias.fill_(1)
        exact.load_state_dict(fast.state_dict())
        x = torch.randn(1, 70_000, 64, generator=torch.Generator().manual_seed(1)).half()
        output, expected = fast(x), exact(x.double())
    assert output.isfinite().all()
    assert (output.double() - expected).abs().max() < 2e-3 * expected.abs().max()


# The host.


@pytest.fixture(autouse=True)
def small_config() -> Iterator[None]:
    """A backbone small enough to run, and the two published ones cut to two layers for tracing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "small", Backbone(depth=3, num_heads=4, embed_dim=64))
        patch.setitem(CONFIGS, "2L-64H", Backbone(depth=2, num_heads=64))
        patch.setitem(CONFIGS, "2L-16H", Backbone(depth=2, num_heads=16))
        yield


def small_vit(mechanism: str, implementation: str = "fast", **options: Any) -> vit.InfVit:
    torch.manual_seed(0)
    model = build_vit(
        mechanism, "small", 96, implementation=implementation, options=options, num_classes=10, dtype=torch.float64
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def images(side: int = 96) -> Tensor:
    return torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@every_mechanism
def test_a_folded_model_is_the_same(mechanism: str) -> None:
    reference, fast = small_vit(mechanism, "reference"), small_vit(mechanism)
    fast.load_state_dict(reference.state_dict(), strict=True)
    fast.fold_for_inference()
    has_dense = getattr(type(reference.blocks[0].attn.mixer), "host_dense", True)
    assert all(isinstance(block.attn.dense, nn.Identity) for block in fast.blocks)
    assert fast_parameters(reference) - fast_parameters(fast) == has_dense * 3 * (64 * 64 + 64)
    with torch.no_grad():
        torch.testing.assert_close(fast(images()), reference(images()), rtol=1e-9, atol=1e-9)


def fast_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_reference_is_not_folded() -> None:
    model = small_vit("softmax", "reference")
    model.fold_for_inference()
    assert all(isinstance(block.attn.dense, nn.Linear) for block in model.blocks)


@every_mechanism
@pytest.mark.parametrize("implementation", ["reference", "fast"])
def test_pruning_to_the_class_token_changes_nothing_that_is_looked_at(mechanism: str, implementation: str) -> None:
    whole, pruned = small_vit(mechanism, implementation), small_vit(mechanism, implementation, cls_prune=True)
    results = []
    for model in (whole, pruned):
        logits = model(images())
        (logits * torch.arange(10)).sum().backward()
        results.append((logits, {name: parameter.grad for name, parameter in model.named_parameters()}))
    (expected, expected_gradients), (logits, pruned_gradients) = results
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(pruned_gradients[name], gradient, rtol=1e-8, atol=1e-9)


def test_pruning_spares_the_last_mlp() -> None:
    rows = []
    for options in ({}, {"cls_prune": True}):
        model = small_vit("softmax", **options)
        model.blocks[-1].mlp.register_forward_hook(lambda _module, inputs, _output: rows.append(inputs[0].shape[1]))
        with torch.no_grad():
            model(images())
    assert rows == [37, 1]


@every_mechanism
@pytest.mark.parametrize("cls_prune", [False, True])
@pytest.mark.parametrize("phase", ["infer", "train"])
def test_the_lean_host_is_the_same(
    mechanism: str, cls_prune: bool, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for lean_tokens, piece_tokens in ((10**9, 10**9), (74, 24)):
        monkeypatch.setattr(vit, "LEAN_TOKENS", lean_tokens)
        monkeypatch.setattr(pieces, "PIECE_TOKENS", piece_tokens)
        model = small_vit(mechanism, cls_prune=cls_prune)
        assert ("host" in model.choices(batch=2)) == (lean_tokens == 74)
        given = images()
        before = given.clone()
        with torch.set_grad_enabled(phase == "train"):
            logits = model(given)
        if phase == "train":
            (logits * torch.arange(10)).sum().backward()
        assert torch.equal(given, before)
        results.append((logits.detach(), [parameter.grad for parameter in model.parameters()]))
    (expected, expected_gradients), (logits, lean_gradients) = results
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    if phase == "train":
        for gradient, lean in zip(expected_gradients, lean_gradients, strict=True):
            torch.testing.assert_close(lean, gradient, rtol=1e-8, atol=1e-9)


def test_reference_is_never_lean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit, "LEAN_TOKENS", 1)
    assert small_vit("softmax", "reference").choices(batch=2) == {}
    assert small_vit("softmax").choices(batch=2) == {"host": "lean"}


def test_autocast_in_the_lean_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for mechanism in MECHANISMS:
        results = []
        for lean_tokens, piece_tokens in ((10**9, 10**9), (1, 24)):
            monkeypatch.setattr(vit, "LEAN_TOKENS", lean_tokens)
            monkeypatch.setattr(pieces, "PIECE_TOKENS", piece_tokens)
            model = small_vit(mechanism).float()
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                results.append(model(images().float()).float())
        torch.testing.assert_close(results[1], results[0], rtol=0.05, atol=0.05)


# What is kept in memory at 9216 x 9216.

GIGABYTE = 1e9
LARGEST = 9216


class LargestTensor(TorchDispatchMode):
    """Watches for the tensor with the most elements."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *(tensor.untyped_storage().nbytes() // 2 for tensor in tensors)])
        return result


@every_mechanism
@pytest.mark.parametrize(
    "config", ["2L-64H", "2L-16H", *(pytest.param(name, marks=pytest.mark.soak) for name in ("4L-64H", "24L-16H"))]
)
def test_9216_fits_in_inference(mechanism: str, config: str) -> None:
    """Traced on fake tensors in bfloat16, batch 1, model and image not counted, scratch memory of kernels neither.

    With two layers, which any number repeats in the same memory, and with all of them.
    """
    model = build_vit(mechanism, config, LARGEST, implementation="fast", device="meta", dtype=torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = on_fake_cpu(model).eval()
        model.fold_for_inference()
        image = torch.empty(1, 3, LARGEST, LARGEST, dtype=torch.bfloat16)
        # Not inference_mode: there composite operators are not taken apart, and what is inside them is not seen.
        with torch.no_grad(), LiveBytes() as live, LargestTensor() as largest:
            model(image)
    assert live.trace.peak_bytes <= (1.5 if mechanism == "infsa-linear" else 11) * GIGABYTE, str(live.trace)
    tokens = (LARGEST // 16) ** 2 + 1
    # The largest are those of qkv, three activations; N x N is a hundred times that.
    assert largest.elements <= 3 * tokens * 1024


@every_mechanism
def test_training_on_long_sequences_keeps_activations_only(mechanism: str) -> None:
    """A layer at 4096 x 4096, 64 heads, float32: nothing of size N x m stays for the backward pass."""
    tokens = 256 * 256 + 1
    activation = 4 * 1024 * tokens
    layer = load_class(MECHANISMS[mechanism].implementations["fast"])(1024, 64, grid=(256, 256), device="meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(1, tokens, 1024, requires_grad=True)
        with LiveBytes() as live:
            on_fake_cpu(layer)(x).sum().backward()
    assert live.trace.peak_bytes <= 13 * activation, str(live.trace)


def test_soft_keeps_its_kernel_only_where_there_is_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one piece K1 is made once; with several it is made again, which costs one product of N x m x d more."""
    made: list[int] = []
    for piece_tokens, calls in ((10**9, 2), (24, 1 + 2 * 3)):
        monkeypatch.setattr(pieces, "PIECE_TOKENS", piece_tokens)
        _, fast = pair("soft", grid=(6, 10), class_token=True, dtype=torch.float32)
        made.clear()
        fast.W_q.register_forward_hook(lambda *_: made.append(1))
        with torch.no_grad():
            fast(tokens_of((6, 10), True, torch.float32, batch=1))
        assert len(made) == calls


# Float16 at its ends. The other precisions have the range of float32.


def float16_error(mechanism: str, implementation: str, change: Any, *, grid: tuple[int, int] = (14, 14)) -> float:
    """Return the largest error against float64 of a layer of one head of 64, changed before, relative."""
    layer_class = load_class(MECHANISMS[mechanism].implementations[implementation])
    torch.manual_seed(0)
    layer = layer_class(64, 1, grid=grid, class_token=True, dtype=torch.float16)
    x = torch.randn(1, grid[0] * grid[1] + 1, 64, generator=torch.Generator().manual_seed(1)).half()
    with torch.no_grad():
        change(layer, x)
        exact = copy.deepcopy(layer).double()(x.double())
        return ((layer(x).double() - exact).abs().max() / exact.abs().max()).item()


def one_large_query_channel(layer: Any, x: Tensor) -> None:
    layer.q_proj.bias[0] = 1100


def one_large_token_channel(layer: Any, x: Tensor) -> None:
    x[..., 0] += 1100


def small_affinities(layer: Any, x: Tensor) -> None:
    for projection in (layer.q_proj, layer.k_proj or layer.q_proj):
        projection.weight *= 0.03
        projection.bias *= 0.03


def tiny_affinities(layer: Any, x: Tensor) -> None:
    for _ in range(2):
        small_affinities(layer, x)


def large_affinities(layer: Any, x: Tensor) -> None:
    for projection in (layer.q_proj, layer.k_proj or layer.q_proj):
        projection.weight *= 30


@pytest.mark.parametrize("grid", [(14, 14), (64, 64)], ids=["197", "4097"])
@pytest.mark.parametrize(
    ("mechanism", "change"),
    [
        ("infsa-linear", one_large_query_channel),
        ("infsa-linear", one_large_token_channel),
        ("infsa-linear", small_affinities),
        ("infsa-linear", large_affinities),
        ("infsa-pure", small_affinities),
        ("infsa-pure", tiny_affinities),
        ("infsa-pure", large_affinities),
    ],
)
def test_float16_is_no_worse_than_twice_reference_at_its_ends(
    mechanism: str, change: Any, grid: tuple[int, int]
) -> None:
    reference = float16_error(mechanism, "reference", change, grid=grid)
    assert float16_error(mechanism, "fast", change, grid=grid) <= 2 * reference


def test_gradients_in_float16_autocast_with_a_token_that_dominates() -> None:
    """Its share is one, among more tokens than float16 can count: N times that would be infinite."""
    tokens, width = 90_000, 16
    layer_class = load_class(MECHANISMS["infsa-linear"].implementations["fast"])
    torch.manual_seed(0)
    layer = layer_class(width, 1, grid=(tokens // 100, 100), class_token=False)
    with torch.no_grad():
        layer.q_proj.weight.copy_(torch.eye(width))
        layer.q_proj.bias.zero_()
    x = 0.01 * torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(1))
    # All look away from where the first one looks, whose query is most of the pooled one.
    x[..., 0] -= 0.1
    x[0, 0, 0] = 100
    exact = gradients(copy.deepcopy(layer).double(), x.double())
    with torch.autocast("cpu", torch.float16):
        found = gradients(layer, x)
    for name, gradient in found.items():
        assert gradient.isfinite().all(), name
    assert (found["x"].double() - exact["x"]).abs().max() <= 0.01 * exact["x"].abs().max()


@pytest.mark.parametrize("precision", ["amp-bf16", "amp-fp16"])
@pytest.mark.parametrize("mechanism", ["infsa-pure", "infsa-linear"])
def test_gradients_of_many_tokens_in_half_precision(mechanism: str, precision: str) -> None:
    """Each token's is about 1 / N of the whole; they must be no worse than twice those of reference."""
    half = torch.bfloat16 if precision == "amp-bf16" else torch.float16
    grid = (40, 50)
    reference, fast = pair(mechanism, grid=grid, class_token=True, dtype=torch.float32)
    x = tokens_of(grid, True, torch.float32, batch=1)
    exact = gradients(copy.deepcopy(reference).double(), x.double())
    errors: dict[str, dict[str, float]] = {}
    for name, layer in (("reference", reference), ("fast", fast)):
        with torch.autocast("cpu", half):
            found = gradients(layer, x)
        errors[name] = {key: ((found[key].double() - exact[key]).norm() / exact[key].norm()).item() for key in exact}
    for key, error in errors["fast"].items():
        # A single number may be right by chance.
        floor = (2 if key == "rho_logit" else 1) * torch.finfo(half).eps
        assert error <= 2 * max(errors["reference"][key], floor), (key, errors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_queries_of_zero_have_no_direction(dtype: torch.dtype) -> None:
    """One token's query is exactly zero: its norm's derivative is taken as zero, as torch does."""
    reference, fast = pair("infsa-linear", grid=(4, 4), class_token=True, dtype=dtype)
    x = tokens_of((4, 4), True, dtype)
    x[:, 3] = 0
    for layer in (reference, fast):
        with torch.no_grad():
            layer.q_proj.bias.zero_()
    errors = relative_errors(gradients(fast, x), gradients(reference, x))
    assert max(errors.values()) <= TOLERANCES[dtype], errors


@every_mechanism
def test_a_second_derivative_is_right_or_refused(mechanism: str) -> None:
    layers = pair(mechanism, grid=(4, 4), class_token=True, dtype=torch.float64)
    found = []
    for layer in layers:
        x = tokens_of((4, 4), True, torch.float64).requires_grad_()
        (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        try:
            found.append(torch.autograd.grad(first.square().sum(), x)[0])
        except RuntimeError:
            assert layer is layers[1]
            return
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-8)


@every_mechanism
def test_training_compiles_without_a_graph_break(mechanism: str) -> None:
    torch._dynamo.reset()
    _, fast = pair(mechanism, grid=(6, 10), class_token=True, dtype=torch.float32)
    x = tokens_of((6, 10), True, torch.float32)
    expected = gradients(fast, x)
    fast.zero_grad()
    compiled = gradients(torch.compile(fast, fullgraph=True, backend="aot_eager"), x)
    errors = relative_errors({name.removeprefix("_orig_mod."): value for name, value in compiled.items()}, expected)
    assert max(errors.values()) <= 1e-5, errors


@every_mechanism
def test_more_images_than_a_piece_has_tokens(mechanism: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_TOKENS", 4)
    reference, fast = pair(mechanism, grid=(1, 2), class_token=True, dtype=torch.float64)
    x = tokens_of((1, 2), True, torch.float64, batch=20)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), reference(x), rtol=1e-9, atol=1e-9)
