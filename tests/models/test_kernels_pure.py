"""The Triton kernels of Pure-InfSA against the formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_cases import RAGGED, WIDTHS_AND_HEADS, allowed_error, error, exact, gradients, relu_attention, values
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from infsa_models import relu_attention as operators

pytest.importorskip("triton", reason="needs Triton")

DTYPES = [torch.float32, torch.float16]
BOUNDS = {torch.float32: 2.35e-7, torch.float16: 2.15e-4}
"""What a prototype of these kernels came to: 2.3e-7 and 2.1e-4, to two digits."""

GRADIENT_BOUNDS = {torch.float32: 5e-7, torch.float16: 5e-4}
BATCH = 2

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16"])
sizes = pytest.mark.parametrize(("width", "num_heads"), WIDTHS_AND_HEADS)


def inputs(tokens: int, width: int, dtype: torch.dtype, batch: int = BATCH) -> list[Tensor]:
    return [values(batch, tokens, width, dtype=dtype, seed=seed) for seed in (1, 2, 3)]


@pytest.mark.parametrize("tokens", RAGGED)
@dtypes
@sizes
def test_values_and_sums_of_squares(width: int, num_heads: int, dtype: torch.dtype, tokens: int) -> None:
    tensors, scale = inputs(tokens, width, dtype), num_heads / width
    mixed, square_sum = operators.relu_attention(*tensors, num_heads, scale, "triton")
    right, right_square_sum = relu_attention(*exact(tensors), num_heads, scale)
    assert mixed.dtype == dtype
    assert square_sum.dtype == torch.float32
    assert error(mixed, right) <= allowed_error(BOUNDS[dtype], right, dtype, tokens)
    single = torch.float32
    assert error(square_sum, right_square_sum) <= allowed_error(BOUNDS[single], right_square_sum, single, tokens)


@pytest.mark.parametrize("tokens", RAGGED[:3])
@dtypes
@sizes
def test_gradients(width: int, num_heads: int, dtype: torch.dtype, tokens: int) -> None:
    tensors, scale = inputs(tokens, width, dtype), num_heads / width
    weights = [values(BATCH, tokens, width, dtype=dtype, seed=4), values(BATCH, num_heads, seed=5) / tokens]

    def by_kernels(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return operators.relu_attention(*tensors, num_heads, scale, "triton")

    def by_formula(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return relu_attention(*tensors, num_heads, scale)

    ours, theirs = gradients(by_kernels, tensors, weights), gradients(by_formula, exact(tensors), exact(weights))
    for name, found, right in zip(("query", "key", "value"), ours, theirs, strict=True):
        assert found.dtype == dtype
        assert error(found, right) <= GRADIENT_BOUNDS[dtype], name


@pytest.mark.parametrize(
    ("width", "num_heads", "dtype"),
    [(64, 4, torch.float32), (128, 2, torch.float32), (128, 2, torch.float16)],
    ids=["16-fp32", "64-fp32", "64-fp16"],
)
def test_gradients_of_a_thousand_tokens(width: int, num_heads: int, dtype: torch.dtype) -> None:
    """Of one image: the interpreter is slow."""
    tensors, scale = inputs(RAGGED[3], width, dtype, batch=1), num_heads / width
    weights = [values(1, RAGGED[3], width, dtype=dtype, seed=4), values(1, num_heads, seed=5) / RAGGED[3]]

    def by_kernels(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return operators.relu_attention(*tensors, num_heads, scale, "triton")

    def by_formula(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return relu_attention(*tensors, num_heads, scale)

    ours, theirs = gradients(by_kernels, tensors, weights), gradients(by_formula, exact(tensors), exact(weights))
    assert all(error(found, right) <= GRADIENT_BOUNDS[dtype] for found, right in zip(ours, theirs, strict=True))


def test_a_head_without_affinities_is_zero_and_has_no_gradient() -> None:
    query = values(1, 33, 64, dtype=torch.float32).abs()
    tensors = [query.requires_grad_(), (-query.detach()).requires_grad_(), values(1, 33, 64, dtype=torch.float32)]
    mixed, square_sum = operators.relu_attention(*tensors, 4, 1 / 16, "triton")
    assert not mixed.any()
    assert not square_sum.any()
    (mixed.sum() + square_sum.sum()).backward()
    for tensor in tensors[:2]:
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_inputs_may_be_parts_of_larger_tensors_and_stay_as_they_were() -> None:
    whole = values(2, 37, 3 * 64, dtype=torch.float32)
    before, tensors = whole.clone(), list(whole.chunk(3, dim=-1))
    mixed, _ = operators.relu_attention(*tensors, 4, 1 / 16, "triton")
    assert torch.equal(
        mixed, operators.relu_attention(*(part.contiguous() for part in tensors), 4, 1 / 16, "triton")[0]
    )
    assert torch.equal(whole, before)


def test_the_same_bits_in_every_run() -> None:
    tensors = inputs(197, 64, torch.float16)
    pairs = zip(*(operators.relu_attention(*tensors, 4, 1 / 16, "triton") for _ in range(2)), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_what_is_no_number_stays_none() -> None:
    """A NaN must not come out as zero, which would look like a result."""
    tensors = [tensor.requires_grad_() for tensor in inputs(33, 64, torch.float32, batch=1)]
    with torch.no_grad():
        tensors[0][0, 5, 3] = math.nan
    mixed, square_sum = operators.relu_attention(*tensors, 4, 1 / 16, "triton")
    expected, expected_sum = operators.relu_attention(*tensors, 4, 1 / 16, "torch")
    assert torch.equal(torch.isnan(mixed), torch.isnan(expected))
    assert torch.equal(torch.isnan(square_sum), torch.isnan(expected_sum))
    (mixed.sum() + square_sum.sum()).backward()
    assert all(tensor.grad is not None and torch.isnan(tensor.grad).any() for tensor in tensors)


def test_flops_are_those_that_are_executed() -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(17, 64, torch.float32)]
    product, counted = 2 * BATCH * 17**2 * 64, {}
    for kernels in ("torch", "triton"):
        with FlopCounterMode(display=False) as counter:
            operators.relu_attention(*tensors, 4, 1 / 16, kernels)[0].sum().backward()
        counted[kernels] = counter.get_total_flops() // product
    assert counted == {"torch": 7, "triton": 9}
