"""Linformer: keys and values compressed from N tokens to k rows by learned matrices.

Formula: ``K~ = E^T (x Wk)`` and ``V~ = F^T (x Wv)`` with E, F of shape N x k, shared by the heads of a layer; then per
head of size d ``A = softmax(q K~^T / sqrt(d)),  y = A V~,  out = merge(y) Wo^T + bo``. Q, K and V have no bias.
Cost: time O(N k D), memory O(h N k), and 2 N k parameters: E and F are made for one resolution, at build. The class
token is an ordinary token.
Source: Wang et al. 2020 (arXiv 2006.04768); the layer is that of the ``linformer`` package (lucidrains), run as it is.
Fast: for N > k, ``K~ = (E^T x) Wk`` and ``V~ = (F^T x) Wv``, so that K and V are never made; the N x k attention runs
in ``torch.nn.functional.scaled_dot_product_attention`` and is never written. Time O(N k D) with 4 N D^2 less, memory
O(N D).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import ClassVar

import torch
from jaxtyping import Float
from linformer.linformer import LinformerSelfAttention
from torch import Tensor, nn
from torch.nn import functional as F

from infsa_models.heads import merge_heads, split_heads
from infsa_models.pieces import joined


class LinformerAttention(LinformerSelfAttention):  # type: ignore[misc]  # the package has no types
    """The package's self-attention: ``to_q``, ``to_k``, ``to_v``, ``to_out``, ``proj_k`` (E), ``proj_v`` (F).

    Args:
        k: rows that the keys and values are compressed to.
        share_kv: one projection and one matrix for keys and values.
        one_kv_head: one key and value head of size d for all query heads.
        seq_len: rows of E and F; by default the tokens of ``grid``. Shorter inputs use the first rows.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        grid: tuple[int, int],
        class_token: bool = True,
        k: int = 256,
        share_kv: bool = False,
        one_kv_head: bool = False,
        seq_len: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        # The package takes neither device nor dtype. Made where it will live, the N x k matrices are not copied.
        with nullcontext() if device is None else torch.device(device):
            super().__init__(
                embed_dim,
                seq_len=grid[0] * grid[1] + int(class_token) if seq_len is None else seq_len,
                k=k,
                heads=num_heads,
                share_kv=share_kv,
                one_kv_head=one_kv_head,
            )
        self.to(dtype=dtype)

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        return super().forward(x)


class FastLinformerAttention(LinformerAttention):
    """The same layer, options and parameters; keys and values are compressed before they are projected."""

    output_projection: ClassVar[str] = "to_out"

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        tokens = x.shape[1]
        if tokens > self.seq_len:
            raise ValueError(f"{tokens} tokens, but the matrices are made for {self.seq_len}")
        query = split_heads(self.to_q(x), self.heads)
        key = self._compressed(x, self.to_k, self.proj_k[:tokens])
        value = key if self.share_kv else self._compressed(x, self.to_v, self.proj_v[:tokens])
        mixed = F.scaled_dot_product_attention(query, self._per_head(key), self._per_head(value))
        return self.to_out(merge_heads(mixed))

    def forward_streamed(
        self, piece_of: Callable[[slice], Float[Tensor, "batch piece embed_dim"]], pieces: Sequence[slice]
    ) -> Float[Tensor, "batch tokens embed_dim"]:
        """Return the same for tokens that exist one piece at a time; every piece is asked for twice. No gradients."""
        key_sums, value_sums = [], []
        for piece in pieces:
            part = piece_of(piece)
            key_sums.append(self._rows(self.proj_k, piece, part))
            if not self.share_kv:
                value_sums.append(self._rows(self.proj_v, piece, part))
            del part
        key = self.to_k(_added(key_sums))
        value = key
        if not self.share_kv:
            value = self.to_v(_added(value_sums))
        key, value = self._per_head(key), self._per_head(value)

        def read(index: int) -> Tensor:
            query = split_heads(self.to_q(piece_of(pieces[index])), self.heads)
            return self.to_out(merge_heads(F.scaled_dot_product_attention(query, key, value)))

        return joined(read, pieces)

    @staticmethod
    def _rows(
        matrix: Float[Tensor, "tokens rows"], piece: slice, x: Float[Tensor, "batch piece embed_dim"]
    ) -> Float[Tensor, "batch rows embed_dim"]:
        return matrix[piece].T @ x

    def _compressed(
        self, x: Float[Tensor, "batch tokens embed_dim"], projection: nn.Linear, matrix: Float[Tensor, "tokens rows"]
    ) -> Float[Tensor, "batch rows channels"]:
        # Neither has a bias, so their order is free: the cheaper one first.
        tokens, rows = matrix.shape
        if tokens > rows:
            return projection(matrix.T @ x)
        return matrix.T @ projection(x)

    def _per_head(self, x: Float[Tensor, "batch rows channels"]) -> Float[Tensor, "batch heads rows head_dim"]:
        kv_heads = x.shape[-1] // self.dim_head
        return split_heads(x, kv_heads).expand(-1, self.heads, -1, -1)


def _added(parts: Sequence[Float[Tensor, "batch rows embed_dim"]]) -> Float[Tensor, "batch rows embed_dim"]:
    """Return the sum of what the pieces gave, taken in float32 at least."""
    accumulate = torch.promote_types(parts[0].dtype, torch.float32)
    return torch.stack(list(parts)).sum(dim=0, dtype=accumulate).to(parts[0].dtype)
