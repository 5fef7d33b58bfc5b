"""Start the kernels of Pure-InfSA: the bodies in Triton of the operators of :mod:`infsa_models.relu_attention`."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from infsa_models.kernels.launching import blocks_of, kernels_of, on_device, precision_of
from infsa_models.kernels.tiles import Tile, tile_of


def relu_attention(
    query: Float[Tensor, "batch tokens embed_dim"],
    key: Float[Tensor, "batch tokens embed_dim"],
    value: Float[Tensor, "batch tokens embed_dim"],
    num_heads: int,
    scale: float,
) -> tuple[Float[Tensor, "batch tokens embed_dim"], Float[Tensor, "batch heads"]]:
    """Return ``relu(scale q k^T) v`` of every head, merged, and the sums of squares of the matrices in float32."""
    query, key, value = (tensor.contiguous() for tensor in (query, key, value))
    batch, tokens, embed_dim = query.shape
    tile = tile_of("relu_attention", embed_dim // num_heads, query.device)
    blocks = blocks_of(tokens, tile.rows)
    mixed = torch.empty_like(value)
    square_parts = query.new_empty(batch, num_heads, blocks, dtype=torch.float32)
    with on_device(query):
        kernels_of("relu_attention").relu_attention_kernel[(blocks, num_heads, batch)](
            query, key, value, mixed, square_parts, tokens, scale, **_constants(query, num_heads, tile)
        )
    return mixed, square_parts.sum(dim=-1)


def relu_attention_backward(
    query: Float[Tensor, "batch tokens embed_dim"],
    key: Float[Tensor, "batch tokens embed_dim"],
    value: Float[Tensor, "batch tokens embed_dim"],
    mixed_gradient: Float[Tensor, "batch tokens embed_dim"],
    square_sum_gradient: Float[Tensor, "batch heads"],
    num_heads: int,
    scale: float,
) -> tuple[
    Float[Tensor, "batch tokens embed_dim"],
    Float[Tensor, "batch tokens embed_dim"],
    Float[Tensor, "batch tokens embed_dim"],
]:
    """Return the gradients of queries, keys and values."""
    tensors = [tensor.contiguous() for tensor in (query, key, value, mixed_gradient)]
    batch, tokens, embed_dim = query.shape
    rise = (2 * square_sum_gradient).float().contiguous()
    query_gradient, key_gradient, value_gradient = (torch.empty_like(tensor) for tensor in tensors[:3])
    of_keys = tile_of("relu_attention_key_gradients", embed_dim // num_heads, query.device)
    of_queries = tile_of("relu_attention_query_gradients", embed_dim // num_heads, query.device)
    with on_device(query):
        kernels_of("relu_attention").affinity_key_gradients_kernel[
            (blocks_of(tokens, of_keys.columns), num_heads, batch)
        ](*tensors, rise, key_gradient, value_gradient, tokens, scale, **_constants(query, num_heads, of_keys))
        kernels_of("relu_attention").affinity_query_gradients_kernel[
            (blocks_of(tokens, of_queries.rows), num_heads, batch)
        ](*tensors, rise, query_gradient, tokens, scale, **_constants(query, num_heads, of_queries))
    return query_gradient, key_gradient, value_gradient


def _constants(query: Tensor, num_heads: int, tile: Tile) -> dict[str, Any]:
    return {
        "NUM_HEADS": num_heads,
        "HEAD_DIM": query.shape[-1] // num_heads,
        "PRECISION": precision_of(query.dtype),
        "BLOCK_M": tile.rows,
        "BLOCK_N": tile.columns,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
