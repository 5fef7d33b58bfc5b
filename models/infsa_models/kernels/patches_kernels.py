"""Triton kernel of the patch embedding: read from the image, written where the tokens stay."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def embed_patches_kernel(
    images,
    weight,
    bias,
    positions,
    tokens,
    height,
    width,
    patches,
    grid_width,
    EMBED_DIM: tl.constexpr,
    CHANNELS: tl.constexpr,
    PATCH: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Some channels of some patches' tokens, with their positions. Grid: tiles, batch.

    Token 0 of ``tokens`` and ``positions``, the class token's, is left alone.
    """
    PIXELS: tl.constexpr = CHANNELS * PATCH * PATCH
    COLUMN_BLOCKS: tl.constexpr = EMBED_DIM // BLOCK_N
    image = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) // COLUMN_BLOCKS * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) % COLUMN_BLOCKS * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < patches
    corner = ((rows // grid_width) * PATCH).to(tl.int64) * width + (rows % grid_width) * PATCH
    corner += image * CHANNELS * height * width
    products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, PIXELS, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        channel, line, pixel = inner // (PATCH * PATCH), (inner // PATCH) % PATCH, inner % PATCH
        offset = (channel.to(tl.int64) * height + line) * width + pixel
        tile = tl.load(images + corner[:, None] + offset[None, :], mask=inside[:, None], other=0.0)
        matrix = tl.load(weight + columns[None, :] * PIXELS + inner[:, None])
        products = tl.dot(tile, matrix, products, input_precision=PRECISION)
    products += tl.load(bias + columns).to(tl.float32)[None, :]
    token = 1 + rows[:, None].to(tl.int64)
    places = token * EMBED_DIM + columns[None, :]
    products += tl.load(positions + places, mask=inside[:, None], other=0.0).to(tl.float32)
    places += image * (1 + patches) * EMBED_DIM
    tl.store(tokens + places, products.to(tokens.dtype.element_ty), mask=inside[:, None])
