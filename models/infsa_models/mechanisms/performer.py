"""Performer: softmax attention through positive random features (FAVOR+).

Formula, per head of size d, with ``u(t) = Omega t / d^{1/4}``, ``g(t) = |t|^2 / (2 sqrt(d))``, Omega of shape m x d::

    phi_q(t) = m^{-1/2} (exp(u - g - max over features of u) + eps)
    phi_k(t) = m^{-1/2} (exp(u - g - max over tokens and features of u) + eps)
    y        = phi_q (phi_k^T v) / (phi_q . sum_n phi_k)

then ``out = merge(y) Wo^T + bo``. Omega is a buffer of orthogonal blocks, one per layer, shared by the heads and drawn
once; the published redraw every 1000 training steps is left to a training loop.
Cost: time O(N m D), memory O(h N m) with m = int(d ln d). The class token is an ordinary token.
Source: Choromanski et al. 2021 (arXiv 2009.14794); the features and the attention are those of the
``performer-pytorch`` package (lucidrains), run as they are.
Departure: features, sums over tokens and the division run in float32 at least. In pure float16 the package gives NaN
for most tokens (the denominator falls to 2e-6), and it has no guard against autocast here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from performer_pytorch.performer_pytorch import FastAttention
from torch import Tensor, nn

from infsa_models.heads import merge_heads, split_heads


class PerformerAttention(nn.Module):
    """The package's ``SelfAttention`` with its names: ``to_q``, ``to_k``, ``to_v``, ``to_out``, ``fast_attention``.

    Args:
        nb_features: number of random features m; int(d ln d) by default.
        qkv_bias: biases in the three projections; the package has none by default.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        grid: tuple[int, int],
        class_token: bool = True,
        nb_features: int | None = None,
        qkv_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(embed_dim, embed_dim, bias=qkv_bias, device=device, dtype=dtype)
        self.to_k = nn.Linear(embed_dim, embed_dim, bias=qkv_bias, device=device, dtype=dtype)
        self.to_v = nn.Linear(embed_dim, embed_dim, bias=qkv_bias, device=device, dtype=dtype)
        self.to_out = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        # The orthogonal blocks need a QR decomposition, so real numbers, also when the model is built on meta.
        with torch.device("cpu"):
            fast_attention = Float32FastAttention(embed_dim // num_heads, nb_features)
        target = torch.get_default_device() if device is None else device
        self.fast_attention = fast_attention.to(device=target, dtype=dtype)

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        query = split_heads(self.to_q(x), self.num_heads)
        key = split_heads(self.to_k(x), self.num_heads)
        value = split_heads(self.to_v(x), self.num_heads)
        mixed = self.fast_attention(query, key, value)
        return self.to_out(merge_heads(mixed))


class Float32FastAttention(FastAttention):  # type: ignore[misc]  # the package has no types
    """The package's FAVOR+ core, computed in float32 (float64 for float64 input) whatever the precision around it."""

    projection_matrix: Tensor

    def forward(
        self,
        query: Float[Tensor, "batch heads tokens head_dim"],
        key: Float[Tensor, "batch heads tokens head_dim"],
        value: Float[Tensor, "batch heads tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        accumulate = torch.promote_types(query.dtype, torch.float32)
        with torch.autocast(query.device.type, enabled=False):
            mixed = super().forward(query.to(accumulate), key.to(accumulate), value.to(accumulate))
        return mixed.to(value.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Float32FastAttention:
        """Convert as any module does, but keep the random features in float32 at least: rounded they lose
        their orthogonality.
        """
        drawn = self.projection_matrix
        super()._apply(fn, recurse)
        if torch.finfo(self.projection_matrix.dtype).bits < 32:
            self.projection_matrix = drawn.to(self.projection_matrix.device)
        return self
