"""Triton kernels of Linear-InfSA: the context of every head from the tokens, and its gradient.

The twin of :mod:`infsa_models.mean_context`, step by step, with what PyTorch would write to memory in between kept on
the chip::

    query_sums    x (normalised on load) -> sum_i |q_i|, sum_i |q_i| q_i      queries are stored only for training
    score_weight  those sums             -> qbar, U = Wk^T qbar / sqrt(d)     one row a head
    scores        x, U                   -> x_j . U + u, sum_j a_j            N x h
    token_sums    x, scores              -> sum_j a_j x_j                     split over tokens
    context       those sums             -> rho (Wv xbar + bv sum a / (sum a + eps))

The backward pass has two more (``linear_infsa_gradient_kernels.py``), and ``token_sums`` again. Sums over tokens go
through one buffer of partial sums a block and a second reduction, in a fixed order: no atomics, the same bits in every
run. Offsets of tokens are 64-bit numbers.

Source: the formulas of :mod:`infsa_models.mean_context`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from infsa_models.kernels.relu_kernels import positive

EPSILON = tl.constexpr(1e-6)
MAX_EXPONENT = tl.constexpr(15.0)
SMALLEST = tl.constexpr(1e-37)


@triton.jit
def normalised(x, mean, rstd, weight, bias, columns, dtype: tl.constexpr, NORMALISE: tl.constexpr):
    """LayerNorm of a tile whose rows have ``mean`` and ``rstd``, in the precision of the products."""
    if NORMALISE:
        gain = tl.load(weight + columns).to(tl.float32)
        offset = tl.load(bias + columns).to(tl.float32)
        x = (x.to(tl.float32) - mean[:, None]) * rstd[:, None] * gain[None, :] + offset[None, :]
    return x.to(dtype)


@triton.jit
def query_sums_kernel(
    x,
    x_batch_stride,
    x_token_stride,
    mean,
    rstd,
    norm_weight,
    norm_bias,
    weight,
    bias,
    query,
    energy_parts,
    query_parts,
    tokens,
    EMBED_DIM: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NORMALISE: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of the queries: their norms by head, and their sum weighted by these. Grid: tiles, batch."""
    HEADS: tl.constexpr = BLOCK_N // HEAD_DIM
    COLUMN_BLOCKS: tl.constexpr = EMBED_DIM // BLOCK_N
    column_block, block = tl.program_id(0) % COLUMN_BLOCKS, tl.program_id(0) // COLUMN_BLOCKS
    parts, image = tl.num_programs(0) // COLUMN_BLOCKS, tl.program_id(1).to(tl.int64)
    rows = block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < tokens
    row_mean, row_rstd = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    if NORMALISE:
        row_mean = tl.load(mean + image * tokens + rows, mask=inside, other=0.0)
        row_rstd = tl.load(rstd + image * tokens + rows, mask=inside, other=0.0)
    x += image * x_batch_stride + rows[:, None] * x_token_stride
    dtype = weight.dtype.element_ty
    products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, EMBED_DIM, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        tile = tl.load(x + inner[None, :], mask=inside[:, None], other=0.0)
        tile = normalised(tile, row_mean, row_rstd, norm_weight, norm_bias, inner, dtype, NORMALISE)
        matrix = tl.load(weight + columns[None, :] * EMBED_DIM + inner[:, None])
        products = tl.dot(tile, matrix, products, input_precision=PRECISION)
    products += tl.load(bias + columns).to(tl.float32)[None, :]
    if KEEP:
        places = (image * tokens + rows[:, None]) * EMBED_DIM + columns[None, :]
        tl.store(query + places, products.to(query.dtype.element_ty), mask=inside[:, None])
    # Rows beyond the last are queries of the bias alone: they must not count.
    products = tl.where(inside[:, None], products, 0.0)
    by_head = tl.reshape(products, (BLOCK_M, HEADS, HEAD_DIM))
    energy = tl.sqrt(tl.sum(by_head * by_head, axis=2))
    weighted = tl.sum(by_head * energy[:, :, None], axis=0)
    part = image * parts + block
    heads = column_block * HEADS + tl.arange(0, HEADS)
    tl.store(energy_parts + part * (EMBED_DIM // HEAD_DIM) + heads, tl.sum(energy, axis=0))
    tl.store(query_parts + part * EMBED_DIM + columns, tl.reshape(weighted, (BLOCK_N,)))


@triton.jit
def score_weight_kernel(
    energy_parts,
    query_parts,
    key_weight,
    key_bias,
    pooled_query,
    energy,
    power,
    score_weight,
    score_bias,
    parts,
    scale,
    EMBED_DIM: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The pooled query of one head, and some columns of what its scores are products with. Grid: heads, columns, batch.

    ``SCALED`` multiplies the pooled query by the power of two that brings its largest number to between one and two.
    """
    NUM_HEADS: tl.constexpr = EMBED_DIM // HEAD_DIM
    head, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channels = head * HEAD_DIM + tl.arange(0, HEAD_DIM)
    norms = tl.zeros((BLOCK_P,), tl.float32)
    weighted = tl.zeros((BLOCK_P, HEAD_DIM), tl.float32)
    for start in range(0, parts, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        inside = part < parts
        part = image * parts + part
        norms += tl.load(energy_parts + part * NUM_HEADS + head, mask=inside, other=0.0)
        weighted += tl.load(
            query_parts + part[:, None] * EMBED_DIM + channels[None, :], mask=inside[:, None], other=0.0
        )
    total = scale * tl.sum(norms, axis=0) + EPSILON
    pooled = scale * scale * tl.sum(weighted, axis=0) / total
    factor = 1.0
    if SCALED:
        largest = tl.maximum(tl.max(tl.abs(pooled), axis=0), SMALLEST)
        exponent = -tl.floor(tl.log2(largest))
        factor = tl.exp2(tl.minimum(tl.maximum(exponent, -MAX_EXPONENT), MAX_EXPONENT))
    pooled *= factor
    dtype = key_weight.dtype.element_ty
    per_head = (scale * pooled).to(dtype).to(tl.float32)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    matrix = tl.load(key_weight + channels[:, None] * EMBED_DIM + columns[None, :]).to(tl.float32)
    row = image * NUM_HEADS + head
    tl.store(score_weight + row * EMBED_DIM + columns, tl.sum(per_head[:, None] * matrix, axis=0).to(dtype))
    if tl.program_id(1) == 0:
        offset = tl.sum(per_head * tl.load(key_bias + channels).to(tl.float32), axis=0)
        tl.store(score_bias + row, offset)
        tl.store(energy + row, total)
        tl.store(power + row, factor)
        tl.store(pooled_query + row * HEAD_DIM + tl.arange(0, HEAD_DIM), pooled)


@triton.jit
def scores_kernel(
    x,
    x_batch_stride,
    x_token_stride,
    mean,
    rstd,
    norm_weight,
    norm_bias,
    score_weight,
    score_bias,
    scores,
    total_parts,
    tokens,
    NUM_HEADS: tl.constexpr,
    EMBED_DIM: tl.constexpr,
    NORMALISE: tl.constexpr,
    PRECISION: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The scores of some tokens in all heads, before their relu, and the sums after it. Grid: rows, batch.

    ``HEADS`` is ``NUM_HEADS`` rounded up to what a product can have.
    """
    block, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows = block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < tokens
    heads = tl.arange(0, HEADS)
    real = heads < NUM_HEADS
    row_mean, row_rstd = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    if NORMALISE:
        row_mean = tl.load(mean + image * tokens + rows, mask=inside, other=0.0)
        row_rstd = tl.load(rstd + image * tokens + rows, mask=inside, other=0.0)
    x += image * x_batch_stride + rows[:, None] * x_token_stride
    score_weight += (image * NUM_HEADS + heads[None, :]) * EMBED_DIM
    dtype = score_weight.dtype.element_ty
    products = tl.zeros((BLOCK_M, HEADS), tl.float32)
    for start in range(0, EMBED_DIM, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        tile = tl.load(x + inner[None, :], mask=inside[:, None], other=0.0)
        tile = normalised(tile, row_mean, row_rstd, norm_weight, norm_bias, inner, dtype, NORMALISE)
        matrix = tl.load(score_weight + inner[:, None], mask=real[None, :], other=0.0)
        products = tl.dot(tile, matrix, products, input_precision=PRECISION)
    products += tl.load(score_bias + image * NUM_HEADS + heads, mask=real, other=0.0)[None, :]
    rounded = products.to(scores.dtype.element_ty)
    mask = inside[:, None] & real[None, :]
    tl.store(scores + (image * tokens + rows[:, None]) * NUM_HEADS + heads[None, :], rounded, mask=mask)
    # The sum of the scores as stored: with it their quotients are a mean.
    counted = tl.where(mask, positive(rounded.to(tl.float32)), 0.0)
    part = image * tl.num_programs(0) + block
    tl.store(total_parts + part * NUM_HEADS + heads, tl.sum(counted, axis=0), mask=real)


@triton.jit
def token_sums_kernel(
    x,
    x_batch_stride,
    x_token_stride,
    mean,
    rstd,
    norm_weight,
    norm_bias,
    factors,
    factor_token_stride,
    sums,
    tokens,
    tokens_per_split,
    NUM_HEADS: tl.constexpr,
    EMBED_DIM: tl.constexpr,
    NORMALISE: tl.constexpr,
    POSITIVE: tl.constexpr,
    PRECISION: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The sum over some tokens of factor times token, for every head. Grid: columns, splits, batch.

    ``POSITIVE`` takes the relu of the factors. ``sums`` is (batch, splits, heads, embed_dim).
    """
    split, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    heads = tl.arange(0, HEADS)
    real = heads < NUM_HEADS
    dtype = factors.dtype.element_ty
    first = split.to(tl.int64) * tokens_per_split
    x += image * x_batch_stride + columns[None, :]
    factors += image * tokens * factor_token_stride
    products = tl.zeros((HEADS, BLOCK_N), tl.float32)
    for start in range(0, tokens_per_split, BLOCK_T):
        rows = first + start + tl.arange(0, BLOCK_T)
        inside = rows < tokens
        row_mean, row_rstd = tl.zeros((BLOCK_T,), tl.float32), tl.zeros((BLOCK_T,), tl.float32)
        if NORMALISE:
            row_mean = tl.load(mean + image * tokens + rows, mask=inside, other=0.0)
            row_rstd = tl.load(rstd + image * tokens + rows, mask=inside, other=0.0)
        tile = tl.load(x + rows[:, None] * x_token_stride, mask=inside[:, None], other=0.0)
        tile = normalised(tile, row_mean, row_rstd, norm_weight, norm_bias, columns, dtype, NORMALISE)
        factor = tl.load(
            factors + rows[None, :] * factor_token_stride + heads[:, None],
            mask=real[:, None] & inside[None, :],
            other=0.0,
        )
        if POSITIVE:
            factor = positive(factor)
        products = tl.dot(factor, tile, products, input_precision=PRECISION)
    place = (image * tl.num_programs(1) + split) * NUM_HEADS + heads
    tl.store(sums + place[:, None] * EMBED_DIM + columns[None, :], products, mask=real[:, None])


@triton.jit
def context_kernel(
    sums,
    total_parts,
    power,
    value_weight,
    value_bias,
    rho_logit,
    context,
    mean_token,
    share,
    divisor,
    splits,
    parts,
    EMBED_DIM: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WITH_RHO: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Some channels of one head's context. Grid: heads, channels, batch."""
    NUM_HEADS: tl.constexpr = EMBED_DIM // HEAD_DIM
    head, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    row = image * NUM_HEADS + head
    totals = tl.zeros((BLOCK_P,), tl.float32)
    for start in range(0, parts, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        totals += tl.load(total_parts + (image * parts + part) * NUM_HEADS + head, mask=part < parts, other=0.0)
    total = tl.sum(totals, axis=0)
    whole = total + EPSILON * tl.load(power + row)
    channels = head * HEAD_DIM + tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    products = tl.zeros((BLOCK_J,), tl.float32)
    for start in range(0, EMBED_DIM, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        token = tl.zeros((BLOCK_K,), tl.float32)
        for first in range(0, splits, BLOCK_S):
            split = first + tl.arange(0, BLOCK_S)
            places = ((image * splits + split) * NUM_HEADS + head)[:, None] * EMBED_DIM + inner[None, :]
            token += tl.sum(tl.load(sums + places, mask=(split < splits)[:, None], other=0.0), axis=0)
        token /= whole
        if KEEP:
            if tl.program_id(1) == 0:
                tl.store(mean_token + row * EMBED_DIM + inner, token)
        matrix = tl.load(value_weight + channels[:, None] * EMBED_DIM + inner[None, :]).to(tl.float32)
        products += tl.sum(matrix * token[None, :], axis=1)
    products += tl.load(value_bias + channels).to(tl.float32) * (total / whole)
    if WITH_RHO:
        products *= tl.sigmoid(tl.load(rho_logit).to(tl.float32))
    tl.store(context + image * EMBED_DIM + channels, products.to(context.dtype.element_ty))
    if KEEP:
        if tl.program_id(1) == 0:
            tl.store(share + row, total / whole)
            tl.store(divisor + row, whole)
