"""Long sequences in pieces: what is made for one piece of the tokens is gone before the next piece begins.

The rule of ``fast`` (see :mod:`infsa_models.mechanisms`): up to ``PIECE_TOKENS`` tokens of a batch there is one piece
and nothing is different; above, every mechanism and the host go by pieces of that size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from infsa_models.registry import PIECE_TOKENS

Made = TypeVar("Made")


def token_pieces(batch: int, tokens: int) -> list[slice]:
    """Return the tokens as consecutive slices of nearly equal length."""
    return _pieces(tokens, min(tokens, math.ceil(batch * tokens / PIECE_TOKENS)))


def contiguous_pieces(batch: int, tokens: int) -> list[tuple[slice, slice]]:
    """Return (images, tokens) of pieces that are whole images, as many as fit, or part of one image."""
    if tokens > PIECE_TOKENS:
        return [(slice(image, image + 1), piece) for image in range(batch) for piece in token_pieces(1, tokens)]
    images = PIECE_TOKENS // tokens
    return [(slice(first, first + images), slice(0, tokens)) for first in range(0, batch, images)]


def row_pieces(batch: int, grid: tuple[int, int]) -> list[slice]:
    """Return the rows of a patch grid as consecutive slices; a piece has one row at least."""
    height, width = grid
    return _pieces(height, min(height, math.ceil(batch * height * width / PIECE_TOKENS)))


def _pieces(length: int, count: int) -> list[slice]:
    return [slice(index * length // count, (index + 1) * length // count) for index in range(count)]


def parts_of(
    x: Float[Tensor, "batch tokens channels"], slices: Sequence[slice]
) -> Sequence[Float[Tensor, "batch piece channels"]]:
    """Return the slices of ``x``, which they cover, as views.

    Not one slicing each: autograd would fill a gradient of the size of ``x`` for every one of them.
    """
    if len(slices) == 1:
        return [x]
    return x.split([piece.stop - piece.start for piece in slices], dim=1)


def joined(
    make: Callable[[int], Float[Tensor, "batch piece channels"]], slices: Sequence[slice]
) -> Float[Tensor, "batch tokens channels"]:
    """Return what ``make`` returns for each index of consecutive slices, joined along the tokens.

    Where gradients are needed, several pieces are made again in the backward pass (:func:`made_again`).
    """
    if len(slices) == 1:
        return make(0)
    if torch.is_grad_enabled():
        return torch.cat([made_again(make, index) for index in range(len(slices))], dim=1)
    first = make(0)
    result = first.new_empty(first.shape[0], slices[-1].stop, first.shape[2])
    result[:, slices[0]] = first
    del first
    for index in range(1, len(slices)):
        result[:, slices[index]] = make(index)
    return result


def made_again(make: Callable[[int], Made], index: int) -> Made:
    """Return ``make(index)``; autograd keeps nothing of it and makes it again when the gradient comes."""
    if not torch.is_grad_enabled():
        return make(index)
    made: Made = checkpoint(make, index, use_reentrant=False, preserve_rng_state=False)
    return made
