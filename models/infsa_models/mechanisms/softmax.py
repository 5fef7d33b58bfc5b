"""Softmax attention with its N x N matrix written to memory.

Formula, per head of size d:  ``A = softmax(q k^T / sqrt(d)),  y = A v,  out = merge(y) Wo^T + bo``.
Cost: time O(N^2 D), memory O(h N^2). The class token is an ordinary token.
Source: Vaswani et al. 2017; layout of the timm / DeiT ViT (``qkv`` fused, ``proj``).
Departure: timm calls a tiled kernel today; the published latencies are those of the written-out form.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from infsa_models.heads import merge_heads


class SoftmaxAttention(nn.Module):
    """Multi-head softmax attention. Parameters are named as in timm: ``qkv``, ``proj``."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        grid: tuple[int, int],
        class_token: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (embed_dim // num_heads) ** -0.5
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, device=device, dtype=dtype)
        self.proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        attention = (query @ key.transpose(-2, -1)) * self.scale
        attention = attention.softmax(dim=-1)
        mixed = merge_heads(attention @ value)
        return self.proj(mixed)
