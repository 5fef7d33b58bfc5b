"""Patch tokens as images and back, without copies: token j of a row-major grid is the pixel (j // W, j % W)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def tokens_to_image(
    x: Float[Tensor, "batch patches embed_dim"], grid: tuple[int, int]
) -> Float[Tensor, "batch embed_dim height width"]:
    """Return patch tokens as an image, a view with the channels last in memory."""
    return x.transpose(1, 2).unflatten(2, grid)


def image_to_tokens(
    image: Float[Tensor, "batch embed_dim height width"],
) -> Float[Tensor, "batch patches embed_dim"]:
    """Return an image as patch tokens; a view where the channels are last in memory."""
    return image.flatten(2).transpose(1, 2)


def depthwise(
    x: Float[Tensor, "batch patches embed_dim"],
    grid: tuple[int, int],
    weight: Float[Tensor, "embed_dim 1 side side"],
    bias: Float[Tensor, " embed_dim"] | None,
) -> Float[Tensor, "batch patches embed_dim"]:
    """Return the convolution of every channel with a kernel of its own, zeros around the grid; in the type of ``x``."""
    channels, _, side, _ = weight.shape
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    return image_to_tokens(F.conv2d(tokens_to_image(x, grid), weight, bias, padding=side // 2, groups=channels))


def with_class_token(
    class_token: Float[Tensor, "batch 1 embed_dim"], patches: Float[Tensor, "batch patches embed_dim"]
) -> Float[Tensor, "batch tokens embed_dim"]:
    """Return both as one sequence, the class token first."""
    return torch.cat([class_token, patches], dim=1)


def patches_of(tokens: slice, class_tokens: int) -> slice:
    """Return which patches are among consecutive tokens, of which the first ``class_tokens`` of all are none."""
    return slice(max(tokens.start - class_tokens, 0), tokens.stop - class_tokens)


def tokens_of(rows: slice, grid: tuple[int, int], class_tokens: int) -> slice:
    """Return the tokens of rows of the grid; those of the first row begin with the class token."""
    width = grid[1]
    start = rows.start * width + class_tokens if rows.start else 0
    return slice(start, rows.stop * width + class_tokens)
