"""Triton kernels of ``relu(scale q k^T) v`` and its gradients: the core of Pure-InfSA, tile by tile.

There is no maximum, no rescaling and no mask: a key beyond the last is loaded as zero, has affinity zero and adds
nothing. Every sum is taken by one program in one order: no atomics, the same bits in every run. For that the backward
pass makes the affinities twice, once for the keys and once for the queries.

Source: the formulas of :mod:`infsa_models.relu_attention`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from infsa_models.kernels.relu_kernels import positive


@triton.jit
def relu_attention_kernel(
    query,
    key,
    value,
    mixed,
    square_parts,
    tokens,
    scale,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Some rows of one head, and the sum of squares of their affinities. Grid: rows, heads, batch."""
    EMBED_DIM: tl.constexpr = NUM_HEADS * HEAD_DIM
    block, head, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows = block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = head * HEAD_DIM + tl.arange(0, HEAD_DIM)
    inside = rows < tokens
    dtype = value.dtype.element_ty
    first = image * tokens * EMBED_DIM
    places = first + rows[:, None] * EMBED_DIM + channels[None, :]
    queries = tl.load(query + places, mask=inside[:, None], other=0.0)
    queries = (queries.to(tl.float32) * scale).to(dtype)
    summed = tl.zeros((BLOCK_M, HEAD_DIM), tl.float32)
    squares = tl.zeros((BLOCK_M, BLOCK_N // 2), tl.float32)
    key += first + channels[None, :]
    value += first + channels[None, :]
    for start in range(0, tokens, BLOCK_N):
        others = start + tl.arange(0, BLOCK_N).to(tl.int64)
        known = (others < tokens)[:, None]
        keys = tl.load(key + others[:, None] * EMBED_DIM, mask=known, other=0.0)
        affinity = positive(tl.dot(queries, tl.trans(keys), input_precision=PRECISION))
        # One fused multiply-add a score: a reduction here would take half a sum more. Neighbours share a thread.
        even, odd = tl.split(tl.reshape(affinity, (BLOCK_M, BLOCK_N // 2, 2)))
        squares = odd * odd + (even * even + squares)
        values = tl.load(value + others[:, None] * EMBED_DIM, mask=known, other=0.0)
        summed = tl.dot(affinity.to(dtype), values, summed, input_precision=PRECISION)
    tl.store(mixed + places, summed.to(dtype), mask=inside[:, None])
    part = (image * NUM_HEADS + head) * tl.num_programs(0) + block
    tl.store(square_parts + part, tl.sum(tl.sum(squares, axis=1), axis=0))


@triton.jit
def affinity_key_gradients_kernel(
    query,
    key,
    value,
    mixed_gradient,
    rise,
    key_gradient,
    value_gradient,
    tokens,
    scale,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The gradients of some keys and values of one head. Grid: rows of the keys, heads, batch.

    ``rise`` is twice the gradient of the sum of squares, one number a head and image.
    """
    EMBED_DIM: tl.constexpr = NUM_HEADS * HEAD_DIM
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    others = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    channels = head * HEAD_DIM + tl.arange(0, HEAD_DIM)
    known = (others < tokens)[:, None]
    dtype = value.dtype.element_ty
    first = image * tokens * EMBED_DIM
    places = first + others[:, None] * EMBED_DIM + channels[None, :]
    keys = tl.load(key + places, mask=known, other=0.0)
    values = tl.load(value + places, mask=known, other=0.0)
    of_squares = tl.load(rise + image * NUM_HEADS + head)
    of_keys = tl.zeros((BLOCK_N, HEAD_DIM), tl.float32)
    of_values = tl.zeros((BLOCK_N, HEAD_DIM), tl.float32)
    query += first + channels[None, :]
    mixed_gradient += first + channels[None, :]
    for start in range(0, tokens, BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M).to(tl.int64)
        inside = (rows < tokens)[:, None]
        queries = tl.load(query + rows[:, None] * EMBED_DIM, mask=inside, other=0.0)
        queries = (queries.to(tl.float32) * scale).to(dtype)
        incoming = tl.load(mixed_gradient + rows[:, None] * EMBED_DIM, mask=inside, other=0.0)
        affinity = positive(tl.dot(keys, tl.trans(queries), input_precision=PRECISION))
        of_values = tl.dot(affinity.to(dtype), incoming, of_values, input_precision=PRECISION)
        inner = tl.dot(values, tl.trans(incoming), input_precision=PRECISION) + of_squares * affinity
        inner = tl.where(affinity <= 0.0, 0.0, inner)
        of_keys = tl.dot(inner.to(dtype), queries, of_keys, input_precision=PRECISION)
    tl.store(key_gradient + places, of_keys.to(dtype), mask=known)
    tl.store(value_gradient + places, of_values.to(dtype), mask=known)


@triton.jit
def affinity_query_gradients_kernel(
    query,
    key,
    value,
    mixed_gradient,
    rise,
    query_gradient,
    tokens,
    scale,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The gradients of some queries of one head. Grid: rows, heads, batch; ``rise`` as for the keys."""
    EMBED_DIM: tl.constexpr = NUM_HEADS * HEAD_DIM
    head, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = head * HEAD_DIM + tl.arange(0, HEAD_DIM)
    inside = (rows < tokens)[:, None]
    dtype = value.dtype.element_ty
    first = image * tokens * EMBED_DIM
    places = first + rows[:, None] * EMBED_DIM + channels[None, :]
    queries = tl.load(query + places, mask=inside, other=0.0)
    queries = (queries.to(tl.float32) * scale).to(dtype)
    incoming = tl.load(mixed_gradient + places, mask=inside, other=0.0)
    of_squares = tl.load(rise + image * NUM_HEADS + head)
    of_queries = tl.zeros((BLOCK_M, HEAD_DIM), tl.float32)
    key += first + channels[None, :]
    value += first + channels[None, :]
    for start in range(0, tokens, BLOCK_N):
        others = start + tl.arange(0, BLOCK_N).to(tl.int64)
        known = (others < tokens)[:, None]
        keys = tl.load(key + others[:, None] * EMBED_DIM, mask=known, other=0.0)
        values = tl.load(value + others[:, None] * EMBED_DIM, mask=known, other=0.0)
        affinity = positive(tl.dot(queries, tl.trans(keys), input_precision=PRECISION))
        inner = tl.dot(incoming, tl.trans(values), input_precision=PRECISION) + of_squares * affinity
        inner = tl.where(affinity <= 0.0, 0.0, inner)
        of_queries = tl.dot(inner.to(dtype), keys, of_queries, input_precision=PRECISION)
    tl.store(query_gradient + places, (of_queries * scale).to(dtype), mask=inside)
