"""Start the kernel of the MLP's hidden layer; its twin is ``gelu(linear(x, weight, bias))``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from infsa_models.kernels.launching import blocks_of, dividing, kernels_of, on_device, precision_of
from infsa_models.kernels.tiles import VENDOR, tile_of

ROW_BLOCKS_TOGETHER = 8


@torch.library.custom_op("infsa::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``gelu(x weight^T + bias)``, (batch, tokens, channels), GELU by the error function; no gradients.

    ``x`` is (batch, tokens, embed_dim), and of the precision of ``weight``, (channels, embed_dim).
    """
    batch, tokens, embed_dim = x.shape
    channels = weight.shape[0]
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    tile = tile_of("linear_gelu", 0, x.device)
    if tile == VENDOR:
        hidden: Tensor = torch.ops.aten.gelu_(F.linear(x, weight, bias))
        return hidden
    result = x.new_empty(batch, tokens, channels)
    grid = (blocks_of(batch * tokens, tile.rows) * blocks_of(channels, tile.columns),)
    with on_device(x):
        kernels_of("mlp").linear_gelu_kernel[grid](
            x,
            weight,
            bias,
            result,
            batch * tokens,
            channels,
            EMBED_DIM=embed_dim,
            PRECISION=precision_of(x.dtype),
            BLOCK_M=tile.rows,
            BLOCK_N=tile.columns,
            BLOCK_K=dividing(tile.inner, embed_dim),
            GROUP=ROW_BLOCKS_TOGETHER,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return result


@linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:2], weight.shape[0])


@register_flop_formula(torch.ops.infsa.linear_gelu)
def _flops(x_shape: tuple[int, int, int], weight_shape: tuple[int, int], *_: Any, **__: object) -> int:
    batch, tokens, embed_dim = x_shape
    return 2 * batch * tokens * embed_dim * weight_shape[0]
