"""Start the kernel of the patch embedding; its twin is ``InfVit._embedded_in_pieces``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from infsa_models.kernels.launching import blocks_of, dividing, kernels_of, on_device, precision_of
from infsa_models.kernels.tiles import tile_of


@torch.library.custom_op("infsa::embed_patches", mutates_args=())
def embed_patches(images: Tensor, weight: Tensor, bias: Tensor, class_token: Tensor, positions: Tensor) -> Tensor:
    """Return class token and patches with their positions, (batch, 1 + patches, embed_dim); no gradients.

    ``images`` is (batch, channels, height, width), ``weight`` (embed_dim, channels, patch, patch) of a convolution with
    stride patch, ``class_token`` (1, 1, embed_dim), ``positions`` (1, 1 + patches, embed_dim): all of one precision.
    """
    images, weight, positions = images.contiguous(), weight.contiguous(), positions.contiguous()
    batch, channels, height, width = images.shape
    embed_dim, weight_channels, patch, _ = weight.shape
    tokens = _empty(images, weight)
    patches = tokens.shape[1] - 1
    if channels != weight_channels or height % patch or width % patch or positions.shape[1] != 1 + patches:
        raise ValueError(
            f"{channels} channels of {height} x {width} pixels are not what {positions.shape[1] - 1} positions and "
            f"patches of {weight_channels} channels of {patch} x {patch} are for"
        )
    tokens[:, :1] = class_token + positions[:, :1]
    tile = tile_of("embed_patches", 0, images.device)
    columns = dividing(tile.columns, embed_dim)
    with on_device(images):
        kernels_of("patches").embed_patches_kernel[(embed_dim // columns * blocks_of(patches, tile.rows), batch)](
            images,
            weight,
            bias,
            positions,
            tokens,
            height,
            width,
            patches,
            width // patch,
            EMBED_DIM=embed_dim,
            CHANNELS=channels,
            PATCH=patch,
            PRECISION=precision_of(weight.dtype),
            BLOCK_M=tile.rows,
            BLOCK_N=columns,
            BLOCK_K=dividing(tile.inner, channels * patch * patch),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return tokens


@embed_patches.register_fake
def _(images: Tensor, weight: Tensor, bias: Tensor, class_token: Tensor, positions: Tensor) -> Tensor:
    return _empty(images, weight)


def _empty(images: Tensor, weight: Tensor) -> Tensor:
    batch, _, height, width = images.shape
    embed_dim, _, patch, _ = weight.shape
    return images.new_empty(batch, 1 + (height // patch) * (width // patch), embed_dim)


@register_flop_formula(torch.ops.infsa.embed_patches)
def _flops(
    images_shape: tuple[int, int, int, int], weight_shape: tuple[int, int, int, int], *_: Any, **__: object
) -> int:
    batch, channels, height, width = images_shape
    return 2 * batch * channels * height * width * weight_shape[0]
