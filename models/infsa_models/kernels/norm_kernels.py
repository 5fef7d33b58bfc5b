"""Triton kernels around LayerNorm: the statistics of every token, and the residual that is normalised on its way."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def statistics_of(tile, columns, EMBED_DIM: tl.constexpr, epsilon):
    """Mean and reciprocal deviation of the rows of a tile that holds them whole."""
    mean = tl.sum(tile, axis=1) / EMBED_DIM
    centred = tl.where((columns < EMBED_DIM)[None, :], tile - mean[:, None], 0.0)
    return mean, 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / EMBED_DIM + epsilon)


@triton.jit
def row_statistics_kernel(
    x,
    x_batch_stride,
    x_token_stride,
    mean,
    rstd,
    tokens,
    epsilon,
    EMBED_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Mean and reciprocal deviation of every token. Grid: rows, batch; ``BLOCK_N`` holds a whole row."""
    image = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)
    inside = rows < tokens
    places = x + image * x_batch_stride + rows[:, None] * x_token_stride + columns[None, :]
    tile = tl.load(places, mask=inside[:, None] & (columns < EMBED_DIM)[None, :], other=0.0).to(tl.float32)
    row_mean, row_rstd = statistics_of(tile, columns, EMBED_DIM, epsilon)
    tl.store(mean + image * tokens + rows, row_mean, mask=inside)
    tl.store(rstd + image * tokens + rows, row_rstd, mask=inside)


@triton.jit
def add_layer_norm_kernel(
    x,
    x_batch_stride,
    x_token_stride,
    added,
    added_batch_stride,
    added_token_stride,
    norm_weight,
    norm_bias,
    later_bias,
    normal,
    tokens,
    epsilon,
    EMBED_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add to every token in place, and write it normalised. Grid: rows, batch; ``BLOCK_N`` holds a whole row.

    A token stride of zero adds the same row to all. ``later_bias`` is added to what stays, not to what is normalised:
    the bias of the layer whose product is added to it next.
    """
    image = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_N)
    real = columns < EMBED_DIM
    mask = (rows < tokens)[:, None] & real[None, :]
    places = x + image * x_batch_stride + rows[:, None] * x_token_stride + columns[None, :]
    tile = tl.load(places, mask=mask, other=0.0).to(tl.float32)
    added += image * added_batch_stride + rows[:, None] * added_token_stride + columns[None, :]
    tile += tl.load(added, mask=mask, other=0.0).to(tl.float32)
    # Normalised is what the next layer would read: the sum as rounded.
    tile = tile.to(x.dtype.element_ty).to(tl.float32)
    later = tl.load(later_bias + columns, mask=real, other=0.0).to(tl.float32)
    tl.store(places, (tile + later[None, :]).to(x.dtype.element_ty), mask=mask)
    row_mean, row_rstd = statistics_of(tile, columns, EMBED_DIM, epsilon)
    gain = tl.load(norm_weight + columns, mask=real, other=0.0).to(tl.float32)
    offset = tl.load(norm_bias + columns, mask=real, other=0.0).to(tl.float32)
    tile = (tile - row_mean[:, None]) * row_rstd[:, None] * gain[None, :] + offset[None, :]
    written = normal + (image * tokens + rows[:, None]) * EMBED_DIM + columns[None, :]
    tl.store(written, tile.to(normal.dtype.element_ty), mask=mask)
