"""Triton kernel of the hidden layer of the host's MLP: the product, its bias and GELU in one pass."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gelu(x):
    """``x/2 (1 + erf(x / sqrt(2)))`` with an error function that has no branches.

    Source: Abramowitz and Stegun, 7.1.26, which is off by 1.5e-7 at most; its p is divided by sqrt(2) and its five
    coefficients by two. For negative ``x`` there is no difference of two numbers near one.
    """
    t = 1.0 / (1.0 + 0.2316418882 * tl.abs(x))
    polynomial = t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145))))
    # exp(-x^2 / 2), as a power of two
    tail = x * polynomial * tl.exp2(x * x * -0.7213475204444817)
    return tl.where(x > 0.0, x - tail, tail)


@triton.jit
def linear_gelu_kernel(
    x,
    weight,
    bias,
    result,
    tokens,
    channels,
    EMBED_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """``gelu(x weight^T + bias)``, GELU by the error function. Grid: all tiles; ``GROUP`` rows of tiles go together."""
    # Tiles that run at the same time share their rows of x and of the weight: both then stay in the last cache.
    row_blocks = tl.cdiv(tokens, BLOCK_M)
    column_blocks = tl.cdiv(channels, BLOCK_N)
    group, place = tl.program_id(0) // (GROUP * column_blocks), tl.program_id(0) % (GROUP * column_blocks)
    height = tl.minimum(row_blocks - group * GROUP, GROUP)
    rows = (group * GROUP + place % height).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (place // height) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside, real = rows < tokens, columns < channels
    x += rows[:, None] * EMBED_DIM
    products = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, EMBED_DIM, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        tile = tl.load(x + inner[None, :], mask=inside[:, None], other=0.0)
        matrix = tl.load(weight + columns[None, :] * EMBED_DIM + inner[:, None], mask=real[None, :], other=0.0)
        products = tl.dot(tile, matrix, products, input_precision=PRECISION)
    products += tl.load(bias + columns, mask=real, other=0.0).to(tl.float32)[None, :]
    products = gelu(products)
    written = result + rows[:, None] * channels + columns[None, :]
    tl.store(written, products.to(result.dtype.element_ty), mask=inside[:, None] & real[None, :])
