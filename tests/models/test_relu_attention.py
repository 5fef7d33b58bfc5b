"""The operator behind fast Pure-InfSA: tiles of every shape, its gradient, what tools see of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from infsa_models import relu_attention as module
from infsa_models.relu_attention import relu_attention

BATCH, TOKENS, HEADS, HEAD_DIM = 2, 37, 3, 8
SCALE = 0.25


def inputs(dtype: torch.dtype = torch.float64, tokens: int = TOKENS, requires_grad: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, tokens, HEADS * HEAD_DIM)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]
    return [tensor.requires_grad_(requires_grad) for tensor in tensors]


def written_out(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    by_head = [tensor.unflatten(-1, (HEADS, -1)).transpose(1, 2) for tensor in (query, key, value)]
    affinity = torch.relu(SCALE * by_head[0] @ by_head[1].transpose(-2, -1))
    return (affinity @ by_head[2]).transpose(1, 2).flatten(2), affinity.square().sum(dim=(-2, -1))


# Tiles of one row of one head, of a few rows, of one head and two heads whole, of everything.
ROW_BYTES = 8 * TOKENS
TILES = [1, 5 * ROW_BYTES, TOKENS * ROW_BYTES, 2 * TOKENS * ROW_BYTES, 2**30]


@pytest.mark.parametrize("tile_bytes", TILES)
def test_every_tiling_gives_the_same(tile_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.TILE_BYTES, "cpu", tile_bytes)
    tensors, exact = inputs(requires_grad=True), inputs(requires_grad=True)
    results, expected = relu_attention(*tensors, HEADS, SCALE), written_out(*exact)
    for ours, theirs in zip(results, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weights = [torch.randn_like(result) for result in expected]
    for found in (results, expected):
        sum((result * weight).sum() for result, weight in zip(found, weights, strict=True)).backward()
    for ours, theirs in zip(tensors, exact, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tile_bytes", TILES)
def test_no_tile_is_larger_than_allowed(tile_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.TILE_BYTES, "cpu", tile_bytes)
    query = inputs()[0]
    seen = torch.zeros(BATCH, HEADS, TOKENS, dtype=torch.long)
    for image, heads, channels, rows in module._tiles(query, HEADS):
        part = seen[image, heads, rows]
        part += 1
        assert part.shape[0] * part.shape[1] * ROW_BYTES <= max(tile_bytes, ROW_BYTES)
        assert channels == slice(heads.start * HEAD_DIM, heads.stop * HEAD_DIM)
    assert (seen == 1).all()


@pytest.mark.parametrize("requires_grad", [False, True])
def test_torch_accepts_the_operator(requires_grad: bool) -> None:
    """Schema, fake implementation, autograd and compilation, as torch checks them itself."""
    tensors = inputs(torch.float32, requires_grad=requires_grad)
    torch.library.opcheck(torch.ops.infsa.relu_attention, (*tensors, HEADS, SCALE, "torch"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_sum_of_squares_is_in_float32(dtype: torch.dtype) -> None:
    mixed, square_sum = relu_attention(*inputs(dtype), HEADS, SCALE)
    assert (mixed.dtype, square_sum.dtype) == (dtype, torch.float32)
    expected = written_out(*(tensor.double() for tensor in inputs(dtype)))[1]
    torch.testing.assert_close(square_sum.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_flops_are_counted() -> None:
    product = 2 * BATCH * TOKENS**2 * HEADS * HEAD_DIM
    tensors = inputs(requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        mixed, square_sum = relu_attention(*tensors, HEADS, SCALE)
    with FlopCounterMode(display=False) as backward:
        (mixed.sum() + square_sum.sum()).backward()
    assert forward.get_total_flops() == 2 * product
    assert backward.get_total_flops() == 5 * product


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_add_up_in_float32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 500 tiles of one row; in the precision of the inputs their sum would lose what it adds late."""
    monkeypatch.setitem(module.TILE_BYTES, "cpu", 1)
    tokens = 500
    tensors, exact = inputs(dtype, tokens), [tensor.double() for tensor in inputs(dtype, tokens)]
    for tensor in (*tensors, *exact):
        tensor.requires_grad_()
    relu_attention(*tensors, HEADS, SCALE)[0].sum().backward()
    written_out(*exact)[0].sum().backward()
    for ours, theirs in zip(tensors, exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        error = (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()
        assert error < 2 * torch.finfo(dtype).eps
