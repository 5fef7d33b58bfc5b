"""Tokens to heads and back: head j owns channels [j * d, (j + 1) * d)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def split_heads(
    x: Float[Tensor, "batch tokens embed_dim"], num_heads: int
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Return tokens by head; a view where the layout of ``x`` allows it."""
    batch, tokens, _ = x.shape
    return x.reshape(batch, tokens, num_heads, -1).transpose(1, 2)


def merge_heads(x: Float[Tensor, "batch heads tokens head_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
    """Return the heads' channels side by side, as one contiguous tensor."""
    batch, _, tokens, _ = x.shape
    return x.transpose(1, 2).reshape(batch, tokens, -1)
