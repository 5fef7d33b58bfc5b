"""Triton kernels of the backward pass of Linear-InfSA: the factors whose products with matrices are the vendor's.

Source: the formulas of :mod:`infsa_models.mean_context`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from infsa_models.kernels.relu_kernels import positive


@triton.jit
def score_gradients_kernel(
    x,
    x_batch_stride,
    x_token_stride,
    token_factor,
    offset,
    divisor,
    scores,
    factors,
    bias_parts,
    tokens,
    tokens_power,
    NUM_HEADS: tl.constexpr,
    EMBED_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Each token's share in every mean token, and its score's gradient, both times ``tokens_power``. Grid: rows, batch.

    ``factors`` is (batch, tokens, 2 heads): the shares, then the gradients.
    """
    block, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows = block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < tokens
    heads = tl.arange(0, HEADS)
    real = heads < NUM_HEADS
    x += image * x_batch_stride + rows[:, None] * x_token_stride
    token_factor += (image * NUM_HEADS + heads[None, :]) * EMBED_DIM
    products = tl.zeros((BLOCK_M, HEADS), tl.float32)
    for start in range(0, EMBED_DIM, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        tile = tl.load(x + inner[None, :], mask=inside[:, None], other=0.0)
        matrix = tl.load(token_factor + inner[:, None], mask=real[None, :], other=0.0)
        products = tl.dot(tile, matrix, products, input_precision=PRECISION)
    of_head = image * NUM_HEADS + heads
    products += tl.load(offset + of_head, mask=real, other=0.0)[None, :]
    whole = tl.load(divisor + of_head, mask=real, other=1.0)[None, :]
    mask = inside[:, None] & real[None, :]
    row = image * tokens + rows[:, None]
    score = tl.load(scores + row * NUM_HEADS + heads[None, :], mask=mask, other=0.0).to(tl.float32)
    dtype = factors.dtype.element_ty
    share = (positive(score) / whole * tokens_power).to(dtype)
    gradient = tl.where(score <= 0.0, 0.0, products / whole * tokens_power).to(dtype)
    places = factors + row * (2 * NUM_HEADS) + heads[None, :]
    tl.store(places, share, mask=mask)
    tl.store(places + NUM_HEADS, gradient, mask=mask)
    part = image * tl.num_programs(0) + block
    counted = tl.where(mask, gradient.to(tl.float32), 0.0)
    tl.store(bias_parts + part * NUM_HEADS + heads, tl.sum(counted, axis=0), mask=real)


@triton.jit
def query_gradients_kernel(
    query,
    gradients,
    pull,
    centre,
    energy,
    bias_parts,
    tokens,
    scale,
    tokens_power,
    EMBED_DIM: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The gradients of some queries, times ``tokens_power``. Grid: tiles, batch.

    ``pull`` is the gradient of the pooled query, ``centre`` its product with that.
    """
    HEADS: tl.constexpr = BLOCK_N // HEAD_DIM
    NUM_HEADS: tl.constexpr = EMBED_DIM // HEAD_DIM
    COLUMN_BLOCKS: tl.constexpr = EMBED_DIM // BLOCK_N
    column_block, block = tl.program_id(0) % COLUMN_BLOCKS, tl.program_id(0) // COLUMN_BLOCKS
    parts, image = tl.num_programs(0) // COLUMN_BLOCKS, tl.program_id(1).to(tl.int64)
    rows = block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < tokens
    places = (image * tokens + rows[:, None]) * EMBED_DIM + columns[None, :]
    values = tl.load(query + places, mask=inside[:, None], other=0.0).to(tl.float32)
    by_head = tl.reshape(values, (BLOCK_M, HEADS, HEAD_DIM))
    direction = tl.reshape(tl.load(pull + image * EMBED_DIM + columns), (1, HEADS, HEAD_DIM))
    of_head = image * NUM_HEADS + column_block * HEADS + tl.arange(0, HEADS)
    whole = tl.load(energy + of_head)[None, :]
    middle = tl.load(centre + of_head)[None, :]
    norm = scale * tl.sqrt(tl.sum(by_head * by_head, axis=2))
    rise = scale * tl.sum(by_head * direction, axis=2) - middle
    # A query of zero has no direction; its norm's derivative is taken as zero.
    turn = tl.where(norm > 0.0, rise / tl.where(norm > 0.0, norm, 1.0), 0.0) / whole
    gradient = (scale * scale * tokens_power) * turn[:, :, None] * by_head
    gradient += (scale * tokens_power) * (norm / whole)[:, :, None] * direction
    rounded = tl.reshape(gradient, (BLOCK_M, BLOCK_N)).to(gradients.dtype.element_ty)
    tl.store(gradients + places, rounded, mask=inside[:, None])
    part = image * parts + block
    counted = tl.where(inside[:, None], rounded.to(tl.float32), 0.0)
    tl.store(bias_parts + part * EMBED_DIM + columns, tl.sum(counted, axis=0))
