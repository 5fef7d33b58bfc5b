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

Made = TypeVar("Made")

PIECE_TOKENS = 16_384
"""Tokens of all images of a batch together: 33 MB of an activation of width 1024 in bfloat16."""


def token_pieces(batch: int, tokens: int) -> list[slice]:
    """Return the tokens as consecutive slices of nearly equal length."""
    return _pieces(tokens, math.ceil(batch * tokens / PIECE_TOKENS))


def row_pieces(batch: int, grid: tuple[int, int]) -> list[slice]:
    """Return the rows of a patch grid as consecutive slices; a piece has one row at least."""
    height, width = grid
    return _pieces(height, min(height, math.ceil(batch * height * width / PIECE_TOKENS)))


def _pieces(length: int, count: int) -> list[slice]:
    return [slice(index * length // count, (index + 1) * length // count) for index in range(count)]


def joined(
    make: Callable[[slice], Float[Tensor, "batch piece channels"]],
    token_slices: Sequence[slice],
    pieces: Sequence[slice] | None = None,
) -> Float[Tensor, "batch tokens channels"]:
    """Return what ``make`` returns for each of the pieces, joined along the tokens.

    Where gradients are needed, several pieces are made again in the backward pass (:func:`made_again`).

    Args:
        make: called with a piece; returns the tokens of the slice beside it.
        token_slices: consecutive, all tokens together.
        pieces: what ``make`` is called with; the slices themselves by default.
    """
    pieces = token_slices if pieces is None else pieces
    if len(pieces) == 1:
        return make(pieces[0])
    if torch.is_grad_enabled():
        return torch.cat([made_again(make, piece) for piece in pieces], dim=1)
    first = make(pieces[0])
    result = first.new_empty(first.shape[0], token_slices[-1].stop, first.shape[2])
    result[:, token_slices[0]] = first
    del first
    for tokens, piece in zip(token_slices[1:], pieces[1:], strict=True):
        result[:, tokens] = make(piece)
    return result


def made_again(make: Callable[[slice], Made], piece: slice) -> Made:
    """Return ``make(piece)``; autograd keeps nothing of it and makes it again when the gradient comes."""
    if not torch.is_grad_enabled():
        return make(piece)
    made: Made = checkpoint(make, piece, use_reentrant=False, preserve_rng_state=False)
    return made
