"""What every mechanism must do, run for each of the table and each of its implementations.

A new mechanism or implementation is tested here without a line of its own. Values are the golden files' business;
here is the contract of ``mechanisms/__init__.py`` and numerical health: precisions, gradients, compilation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError, jaxtyped
from live_bytes import on_fake_cpu
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from infsa_models.mechanisms.infsa_linear import linear_infsa
from infsa_models.registry import MECHANISMS, load_class

EMBED_DIM, NUM_HEADS, BATCH = 32, 4, 3
GRID = (6, 10)

IMPLEMENTATIONS = [(name, implementation) for name in MECHANISMS for implementation in MECHANISMS[name].implementations]

every_implementation = pytest.mark.parametrize(
    ("mechanism", "implementation"), IMPLEMENTATIONS, ids=["-".join(pair) for pair in IMPLEMENTATIONS]
)
autocast_precisions = pytest.mark.parametrize(
    ("precision", "dtype"), [("amp-bf16", torch.bfloat16), ("amp-fp16", torch.float16)]
)
with_and_without_class_token = pytest.mark.parametrize("class_token", [True, False], ids=["cls", "grid"])

# Largest error against float64 with the same (already rounded) weights and input, relative to the largest output, in
# units in the last place of the precision (eps: 2^-23, 2^-7, 2^-10). Half precisions accumulate in float32 and round
# each of a layer's half dozen results, the last ones with their whole error: up to 0.8 units were seen. In float32 the
# sums round as well (up to 4), and autocast also rounds weights and input (up to 1.0).
UNITS_IN_THE_LAST_PLACE = {"fp32": 8, "bf16": 2, "fp16": 2, "amp-bf16": 3, "amp-fp16": 3}
# The kernels' squared distances are small differences of large numbers, and the inverse of the landmark kernel has a
# condition number of up to 100 (its diagonal of 0.01): up to 28 units. In half precisions it is float32 all the same.
ILL_CONDITIONED = {("soft", "fp32"): 64}

# Published so; the forward's own derivative is another one.
APPROXIMATE_GRADIENTS = {
    "soft": "its backward is that of the exact inverse, not of the 20 Newton steps that run",
    "performer": "the maxima that stabilise its exponentials are detached, though eps lets them into the result",
}


def implementation_class(mechanism: str, implementation: str) -> type[nn.Module]:
    return load_class(MECHANISMS[mechanism].implementations[implementation])


def build(
    mechanism: str,
    implementation: str,
    *,
    embed_dim: int = EMBED_DIM,
    num_heads: int = NUM_HEADS,
    grid: tuple[int, int] = GRID,
    class_token: bool = True,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> nn.Module:
    torch.manual_seed(0)
    layer_class = implementation_class(mechanism, implementation)
    layer = layer_class(embed_dim, num_heads, grid=grid, class_token=class_token, device=device, dtype=dtype)
    return layer.eval()


def tokens_of(
    grid: tuple[int, int] = GRID,
    *,
    class_token: bool = True,
    embed_dim: int = EMBED_DIM,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, grid[0] * grid[1] + class_token, embed_dim, generator=generator).to(dtype)


def in_float64(layer: nn.Module, like: Callable[..., nn.Module]) -> nn.Module:
    """Return a float64 layer with the weights of ``layer``."""
    exact = like(dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    return exact


def relative_error(result: Tensor, exact: Tensor) -> float:
    return ((result.double() - exact).abs().max() / exact.abs().max()).item()


def skip_if_unsupported(mechanism: str, precision: str) -> None:
    if reason := MECHANISMS[mechanism].unsupported.get(precision):
        pytest.skip(f"{mechanism} cannot run in {precision}: {reason}")


@every_implementation
@with_and_without_class_token
@pytest.mark.parametrize("grid", [(8, 8), (6, 10), (10, 6)])
def test_output_is_like_the_input(
    mechanism: str, implementation: str, grid: tuple[int, int], class_token: bool
) -> None:
    layer = build(mechanism, implementation, grid=grid, class_token=class_token)
    x = tokens_of(grid, class_token=class_token)
    with torch.no_grad():
        output = layer(x)
    assert output.shape == x.shape
    assert output.dtype == x.dtype
    assert output.device == x.device
    assert output.isfinite().all()
    assert not torch.equal(output, torch.zeros_like(output))


@every_implementation
@with_and_without_class_token
def test_results_are_reproducible_and_images_independent(
    mechanism: str, implementation: str, class_token: bool
) -> None:
    layer = build(mechanism, implementation, class_token=class_token, dtype=torch.float64)
    x = tokens_of(class_token=class_token, dtype=torch.float64)
    before = x.clone()
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        output = layer(x)
        assert torch.equal(layer(x), output)
        assert torch.allclose(layer(x[order]), output[order], rtol=1e-10, atol=1e-12)
        assert torch.allclose(layer(x[:1]), output[:1], rtol=1e-10, atol=1e-12)
    assert torch.equal(x, before)


@every_implementation
@with_and_without_class_token
@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_every_precision_is_close_to_float64(
    mechanism: str, implementation: str, precision: str, dtype: torch.dtype, class_token: bool
) -> None:
    skip_if_unsupported(mechanism, precision)

    def like(dtype: torch.dtype) -> nn.Module:
        return build(mechanism, implementation, class_token=class_token, dtype=dtype)

    layer, x = like(dtype), tokens_of(class_token=class_token, dtype=dtype)
    with torch.no_grad():
        output, exact = layer(x), in_float64(layer, like)(x.double())
    assert output.dtype == dtype
    assert output.isfinite().all()
    units = ILL_CONDITIONED.get((mechanism, precision), UNITS_IN_THE_LAST_PLACE[precision])
    assert relative_error(output, exact) < units * torch.finfo(dtype).eps


@every_implementation
@with_and_without_class_token
@autocast_precisions
def test_autocast_is_close_to_float64(
    mechanism: str, implementation: str, precision: str, dtype: torch.dtype, class_token: bool
) -> None:
    skip_if_unsupported(mechanism, precision)

    def like(dtype: torch.dtype) -> nn.Module:
        return build(mechanism, implementation, class_token=class_token, dtype=dtype)

    layer, x = like(torch.float32), tokens_of(class_token=class_token)
    with torch.no_grad():
        exact = in_float64(layer, like)(x.double())
        with torch.autocast("cpu", dtype):
            output = layer(x)
    assert output.isfinite().all()
    assert relative_error(output, exact) < UNITS_IN_THE_LAST_PLACE[precision] * torch.finfo(dtype).eps


@every_implementation
@with_and_without_class_token
def test_gradients_reach_every_parameter(mechanism: str, implementation: str, class_token: bool) -> None:
    layer = build(mechanism, implementation, class_token=class_token).train()
    x = tokens_of(class_token=class_token).requires_grad_()
    layer(x).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)
    assert x.grad is not None
    assert x.grad.isfinite().all()
    if mechanism.startswith("infsa"):
        assert gradients["rho_logit"] is not None
        assert gradients["rho_logit"] != 0


@every_implementation
@autocast_precisions
def test_autocast_trains(mechanism: str, implementation: str, precision: str, dtype: torch.dtype) -> None:
    skip_if_unsupported(mechanism, precision)
    layer = build(mechanism, implementation).train()
    with torch.autocast("cpu", dtype):
        loss = layer(tokens_of()).float().square().mean()
    loss.backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("mechanism", "implementation"), [case for case in IMPLEMENTATIONS if case[0] not in APPROXIMATE_GRADIENTS]
)
@with_and_without_class_token
def test_the_gradient_is_that_of_the_function(mechanism: str, implementation: str, class_token: bool) -> None:
    """Along one direction, against central differences in float64."""
    layer = build(mechanism, implementation, class_token=class_token, dtype=torch.float64)
    x = tokens_of(class_token=class_token, dtype=torch.float64)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weights = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((layer(x) * weights).sum(), x)
    step = 1e-6
    with torch.no_grad():
        difference = ((layer(x + step * direction) - layer(x - step * direction)) * weights).sum() / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(difference.item(), rel=1e-4)


@every_implementation
@with_and_without_class_token
def test_compiles_without_a_graph_break(mechanism: str, implementation: str, class_token: bool) -> None:
    torch._dynamo.reset()
    layer = build(mechanism, implementation, class_token=class_token)
    x = tokens_of(class_token=class_token)
    with torch.no_grad():
        expected = layer(x)
        assert torch.allclose(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), expected, atol=1e-6)


@every_implementation
@pytest.mark.soak
def test_inductor_gives_the_same(mechanism: str, implementation: str) -> None:
    torch._dynamo.reset()
    layer, x = build(mechanism, implementation), tokens_of()
    with torch.no_grad():
        expected = layer(x)
        assert torch.allclose(torch.compile(layer, fullgraph=True)(x), expected, atol=1e-5, rtol=1e-4)


@every_implementation
def test_annotations_hold(mechanism: str, implementation: str) -> None:
    layer = build(mechanism, implementation)
    checked: Any = jaxtyped(typechecker=beartype)(type(layer).forward)
    x = tokens_of()
    with torch.no_grad():
        assert checked(layer, x).shape == x.shape
        for wrong in (x[0], x[None], x.long()):
            with pytest.raises((TypeCheckError, BeartypeCallHintViolation)):
                checked(layer, wrong)


@every_implementation
@pytest.mark.parametrize("phase", ["infer", "train"])
def test_nothing_is_read_back_to_the_host(mechanism: str, implementation: str, phase: str) -> None:
    """Fake tensors have no values: ``.item()``, ``bool(tensor)`` or a shape that depends on data would raise."""
    layer = build(mechanism, implementation, device="meta")
    with FakeTensorMode(allow_non_fake_inputs=True), torch.set_grad_enabled(phase == "train"):
        output = on_fake_cpu(layer)(torch.empty(BATCH, GRID[0] * GRID[1] + 1, EMBED_DIM))
        if phase == "train":
            output.sum().backward()
    assert output.shape == (BATCH, GRID[0] * GRID[1] + 1, EMBED_DIM)


@every_implementation
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_parameters_are_made_where_asked(mechanism: str, implementation: str, device: str, dtype: torch.dtype) -> None:
    layer = build(mechanism, implementation, device=device, dtype=dtype)
    assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
    tensors = [*layer.parameters(), *layer.buffers()]
    assert {tensor.device.type for tensor in tensors} == {device}


@every_implementation
def test_the_state_survives_saving(mechanism: str, implementation: str) -> None:
    layer, other = build(mechanism, implementation), build(mechanism, implementation)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(layer.state_dict(), strict=True)
    x = tokens_of()
    with torch.no_grad():
        assert torch.equal(other(x), layer(x))


# Breakages that give no error: published code is known to return NaN or exact zeros in these cases.

MANY_TOKENS = 70_000
"""More than float16's largest number, 65,504: a sum of as many ones is infinite."""


def test_linear_infsa_core_in_float16_over_many_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 1, MANY_TOKENS, 16, generator=generator).half() for _ in range(3))
    value = value + 1  # a mean of zero would have no relative error to speak of
    rho = torch.tensor(0.95, dtype=torch.float16)
    energy = (query / 4).square().sum(-1).sqrt()
    assert energy.sum(dtype=torch.float64) > torch.finfo(torch.float16).max
    output = linear_infsa(query, key, value, rho)
    exact = linear_infsa(query.double(), key.double(), value.double(), rho.double())
    assert output.isfinite().all()
    assert (output != 0).all()
    assert relative_error(output, exact) < 0.01


@pytest.mark.parametrize("implementation", MECHANISMS["infsa-linear"].implementations)
def test_linear_infsa_in_float16_over_many_tokens(implementation: str) -> None:
    sizes: dict[str, Any] = {"embed_dim": 16, "num_heads": 1, "grid": (MANY_TOKENS // 100, 100)}

    def like(dtype: torch.dtype) -> nn.Module:
        return build("infsa-linear", implementation, dtype=dtype, **sizes)

    layer = like(torch.float16)
    with torch.no_grad():
        layer.get_parameter("v_proj.bias").fill_(1)
    x = tokens_of(sizes["grid"], embed_dim=16, dtype=torch.float16)[:1]
    with torch.no_grad():
        output, exact = layer(x), in_float64(layer, like)(x.double())
    assert output.isfinite().all()
    assert relative_error(output, exact) < 0.01


@pytest.mark.parametrize("implementation", MECHANISMS["flatten"].implementations)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_flatten_with_a_query_that_is_negative_everywhere(implementation: str, dtype: torch.dtype) -> None:
    layer = build("flatten", implementation, dtype=dtype)
    with torch.no_grad():
        # The query's third of the fused projection: whatever the token, -1.
        layer.get_parameter("qkv.weight")[:EMBED_DIM] = 0
        layer.get_parameter("qkv.bias")[:EMBED_DIM] = -1
        assert layer(tokens_of(dtype=dtype)).isfinite().all()


@pytest.mark.parametrize("implementation", MECHANISMS["performer"].implementations)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_performer_at_the_size_where_float16_overflows(implementation: str, dtype: torch.dtype) -> None:
    """In pure float16 the package's denominator falls to 2e-6 at 197 tokens and d = 64, and 1 / 2e-6 is infinite."""
    layer = build("performer", implementation, embed_dim=128, num_heads=2, grid=(14, 14), dtype=dtype)
    # Large tokens: queries and keys as far apart as in a trained model.
    x = 4 * tokens_of((14, 14), embed_dim=128, dtype=dtype)
    with torch.no_grad():
        assert layer(x).isfinite().all()


@pytest.mark.parametrize("implementation", MECHANISMS["soft"].implementations)
@pytest.mark.parametrize("scale", [0.0, 1.0, 16.0])
def test_soft_in_float16_stays_finite(implementation: str, scale: float) -> None:
    """From equal tokens (a singular landmark kernel, K1^T V the sum of all values) to far apart ones."""
    layer = build("soft", implementation, grid=(32, 32), dtype=torch.float16)
    with torch.no_grad():
        assert layer(scale * tokens_of((32, 32), dtype=torch.float16)).isfinite().all()


def test_linear_infsa_in_float16_keeps_large_values() -> None:
    """The weighted mean is as large as the values, and no larger on the way."""
    query, key = torch.randn(2, 1, 2, 1000, 16, generator=torch.Generator().manual_seed(0)).abs().half()
    value = torch.full((1, 2, 1000, 16), 3e4, dtype=torch.float16)
    mixed = linear_infsa(query, key, value, torch.tensor(0.95))
    assert mixed.float() == pytest.approx(0.95 * 3e4, rel=2e-3)


def test_defaults_are_the_published_ones() -> None:
    layers = {name: build(name, "reference") for name in MECHANISMS}
    for name in ("infsa-pure", "infsa-linear"):
        assert torch.sigmoid(layers[name].rho_logit).item() == pytest.approx(0.95)
    assert layers["infsa-linear"].k_proj is None
    assert layers["linformer"].k == 256
    assert layers["flatten"].focusing_factor == 3
    assert layers["flatten"].dwc.kernel_size == (5, 5)
    assert layers["agent"].agent_num == 49
    assert layers["soft"].attn.newton_steps == 20
    assert layers["soft"].attn.conv.kernel_size == (3, 3)
    head_dim = layers["performer"].fast_attention.dim_heads
    assert layers["performer"].fast_attention.nb_features == int(head_dim * math.log(head_dim))


def test_landmarks_of_soft_are_averages_of_the_patch_grid() -> None:
    layer = build("soft", "reference", grid=(14, 14))
    core = layer.attn
    query = torch.randn(2, core.num_heads, 197, core.Qnorm_act[0].normalized_shape[0])
    landmarks = core.landmarks(query)
    # Two by two patches a landmark, row by row, the class token left out.
    grid = query[:, :, 1:].unflatten(2, (14, 14)).unflatten(3, (7, 2)).unflatten(2, (7, 2))
    expected = core.Qnorm_act(grid.mean(dim=(3, 5)).flatten(2, 3))
    assert torch.allclose(landmarks, expected, atol=1e-6)
