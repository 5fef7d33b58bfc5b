"""``relu(scale q k^T) v`` and the sum of squares of ``relu(scale q k^T)``, in tiles: the core of Pure-InfSA.

An operator of its own, ``infsa::relu_attention``, for autograd, ``torch.compile``, FLOP counters and tracing of memory:
to all of them it is one step from queries, keys and values to results of their size. Its backward pass makes every tile
again: 10 N^2 D FLOPs after 4 N^2 D (14 by Triton's kernels), and beside tiles nothing but activations.

Sums over keys are taken in the precision of the products; the sum of squares at least in float32.

``kernels`` says what computes it: ``torch``, tiles as large as the cache, or ``triton``, tiles that stay on the chip
(:mod:`infsa_models.kernels.relu_attention`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from infsa_models.kernels import relu_attention as in_triton
from infsa_models.kernels.support import TORCH, TRITON

# A tile and its gradient should stay in the last cache of a CPU; a GPU needs enough of them to keep busy.
TILE_BYTES = {"cpu": 4 * 2**20, "cuda": 512 * 2**20}


def relu_attention(
    query: Float[Tensor, "batch tokens embed_dim"],
    key: Float[Tensor, "batch tokens embed_dim"],
    value: Float[Tensor, "batch tokens embed_dim"],
    num_heads: int,
    scale: float,
    kernels: str = TORCH,
) -> tuple[Float[Tensor, "batch tokens embed_dim"], Float[Tensor, "batch heads"]]:
    """Return ``relu(scale q k^T) v`` of every head, merged, and the sums of squares of the matrices."""
    mixed, square_sum = _relu_attention(query, key, value, num_heads, scale, kernels)
    return mixed, square_sum


def tile_bytes(device_type: str) -> int:
    """Return how large a tile of the matrix may be."""
    return TILE_BYTES.get(device_type, TILE_BYTES["cuda"])


def _tiles(query: Tensor, num_heads: int) -> Iterator[tuple[int, slice, slice, slice]]:
    """Yield (image, heads, channels of these heads, rows): whole rows of some heads' matrices, of tile_bytes at most.

    At least one row of one head.
    """
    batch, tokens, embed_dim = query.shape
    head_dim = embed_dim // num_heads
    row_bytes = tokens * query.element_size()
    heads = max(1, min(num_heads, tile_bytes(query.device.type) // (tokens * row_bytes)))
    rows = max(1, min(tokens, tile_bytes(query.device.type) // (heads * row_bytes)))
    for image in range(batch):
        for head in range(0, num_heads, heads):
            last = min(head + heads, num_heads)
            for row in range(0, tokens, rows):
                yield image, slice(head, last), slice(head * head_dim, last * head_dim), slice(row, row + rows)


def _by_head(x: Float[Tensor, "rows channels"], heads: slice) -> Float[Tensor, "heads rows head_dim"]:
    return x.unflatten(-1, (heads.stop - heads.start, -1)).transpose(0, 1)


def _merged(x: Float[Tensor, "heads rows head_dim"]) -> Float[Tensor, "rows channels"]:
    return x.transpose(0, 1).flatten(1)


@torch.library.custom_op("infsa::relu_attention", mutates_args=())
def _relu_attention(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, scale: float, kernels: str
) -> tuple[Tensor, Tensor]:
    if kernels == TRITON:
        return in_triton.relu_attention(query, key, value, num_heads, scale)
    accumulate = torch.promote_types(query.dtype, torch.float32)
    mixed = torch.empty_like(value)
    square_sum = torch.zeros(query.shape[0], num_heads, device=query.device, dtype=accumulate)
    with torch.autocast(query.device.type, enabled=False):
        for image, heads, channels, rows in _tiles(query, num_heads):
            scaled = _by_head(query[image, rows, channels] * scale, heads)
            affinity = torch.bmm(scaled, _by_head(key[image, :, channels], heads).transpose(1, 2)).relu_()
            square_sum[image, heads] += torch.linalg.vector_norm(affinity, dim=(1, 2), dtype=accumulate).square()
            mixed[image, rows, channels] = _merged(torch.bmm(affinity, _by_head(value[image, :, channels], heads)))
    return mixed, square_sum


@_relu_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, num_heads: int, scale: float, kernels: str) -> tuple[Tensor, Tensor]:
    accumulate = torch.promote_types(query.dtype, torch.float32)
    return torch.empty_like(value), query.new_empty(query.shape[0], num_heads, dtype=accumulate)


@torch.library.custom_op("infsa::relu_attention_backward", mutates_args=())
def relu_attention_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mixed_gradient: Tensor,
    square_sum_gradient: Tensor,
    num_heads: int,
    scale: float,
    kernels: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """With ``P = relu(S)``: ``dV = P^T dO``, ``dS = (dO V^T + 2 P dsum) (S > 0)``, ``dQ = scale dS K``,
    ``dK = scale dS^T Q``.
    """
    if kernels == TRITON:
        return in_triton.relu_attention_backward(
            query, key, value, mixed_gradient, square_sum_gradient, num_heads, scale
        )
    accumulate = torch.promote_types(query.dtype, torch.float32)
    query_gradient = torch.empty_like(query)
    key_gradient, value_gradient = (torch.zeros_like(tensor, dtype=accumulate) for tensor in (key, value))
    with torch.autocast(query.device.type, enabled=False):
        for image, heads, channels, rows in _tiles(query, num_heads):
            scaled = _by_head(query[image, rows, channels] * scale, heads)
            keys, values = (_by_head(tensor[image, :, channels], heads) for tensor in (key, value))
            incoming = _by_head(mixed_gradient[image, rows, channels], heads)
            affinity = torch.bmm(scaled, keys.transpose(1, 2)).relu_()
            value_gradient[image, :, channels] += _merged(torch.bmm(affinity.transpose(1, 2), incoming))
            rise = 2 * square_sum_gradient[image, heads].to(affinity.dtype)
            inside = torch.bmm(incoming, values.transpose(1, 2))
            inside.addcmul_(affinity, rise[:, None, None]).mul_(affinity > 0)
            query_gradient[image, rows, channels] = _merged(torch.bmm(inside, keys)) * scale
            key_gradient[image, :, channels] += _merged(torch.bmm(inside.transpose(1, 2), scaled))
    return query_gradient, key_gradient.to(key.dtype), value_gradient.to(value.dtype)


@relu_attention_backward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mixed_gradient: Tensor,
    square_sum_gradient: Tensor,
    num_heads: int,
    scale: float,
    kernels: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:  # torch passes it by name
    *tensors, ctx.num_heads, ctx.scale, ctx.kernels = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, mixed_gradient: Tensor, square_sum_gradient: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    gradients = relu_attention_backward(
        *tensors, mixed_gradient, square_sum_gradient, ctx.num_heads, ctx.scale, ctx.kernels
    )
    return *gradients, None, None, None


_relu_attention.register_autograd(_backward, setup_context=_setup_context)


def _product_flops(shape: tuple[int, int, int], products: int) -> int:
    batch, tokens, embed_dim = shape
    return products * 2 * batch * tokens**2 * embed_dim


@register_flop_formula(torch.ops.infsa.relu_attention)
def _forward_flops(query_shape: tuple[int, int, int], *_: object, **__: object) -> int:
    return _product_flops(query_shape, products=2)


@register_flop_formula(torch.ops.infsa.relu_attention_backward)
def _backward_flops(query_shape: tuple[int, int, int], *others: object, **__: object) -> int:
    # Without atomics Triton's make the affinities and their gradients twice, for the keys and for the queries.
    return _product_flops(query_shape, products=7 if others[-1] == TRITON else 5)
