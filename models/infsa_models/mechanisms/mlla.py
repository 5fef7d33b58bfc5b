"""MLLA (MILA): linear attention with rotary positions, inside the gated mixer of a Mamba block.

Formula of the mixer, with u its input::

    g = silu(u Wact)        t = silu(DWC3x3(u Win))        out = (core(t) * g) Wout

Core, with ``[q|k] = elu(t Wqk) + 1``, v = t, per head of size d, n tokens, and R the rotation by the position::

    y = R(q) [(R(k) / sqrt(n))^T (v / sqrt(n))] / (q . mean_n k + 1e-6)        core(t) = merge(y) + DWC3x3(v)

R turns the channel pair (2j, 2j + 1) of all D channels, before the head split: the first half of the pairs by
row * theta_j, the second by column * theta_j, with theta_j = 10000^(-4j/D).
Cost: time O(N D d), state O(h d^2), and a table of N D float32 numbers per layer, not learned.
Class token (no official code exists): it takes part in q, k, v and both means, is not rotated and bypasses both
convolutions.
Source: Han et al. 2024 (arXiv 2405.16605); LeapLabTHU/MLLA.
Departures: rotation in real arithmetic (the published one is complex, and there is no complex bfloat16); the
denominator is computed in float32 at least; grids need not be square. The mixer has its own output projection, so the
host adds no second one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from infsa_models.heads import merge_heads, split_heads

ROTATION_BASE = 10000.0
MEAN_EPSILON = 1e-6


class MllaAttention(nn.Module):
    """The gated mixer with the official names: ``in_proj``, ``act_proj``, ``dwc``, ``attn``, ``out_proj``."""

    host_dense: ClassVar[bool] = False

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
        self.grid = grid
        self.class_token = class_token
        self.in_proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.act_proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.dwc = nn.Conv2d(embed_dim, embed_dim, 3, padding=1, groups=embed_dim, device=device, dtype=dtype)
        self.attn = MllaCore(embed_dim, num_heads, grid=grid, class_token=class_token, device=device, dtype=dtype)
        self.out_proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        gate = F.silu(self.act_proj(x))
        inner = F.silu(self._convolve(self.in_proj(x)))
        return self.out_proj(self.attn(inner) * gate)

    def _convolve(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        first_patch = int(self.class_token)
        convolved = self.dwc(tokens_to_image(x[:, first_patch:], self.grid)).flatten(2).transpose(1, 2)
        return torch.cat([x[:, :1].to(convolved.dtype), convolved], dim=1) if self.class_token else convolved


class MllaCore(nn.Module):
    """The linear attention of MLLA, without value and output projection: ``qk``, ``lepe`` and the table ``rope``."""

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
        self.grid = grid
        self.class_token = class_token
        self.qk = nn.Linear(embed_dim, 2 * embed_dim, device=device, dtype=dtype)
        self.lepe = nn.Conv2d(embed_dim, embed_dim, 3, padding=1, groups=embed_dim, device=device, dtype=dtype)
        self.rope = RotaryTable(grid, embed_dim, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        tokens = x.shape[1]
        first_patch = int(self.class_token)
        qk = self.qk(x)
        query, key = qk.chunk(2, dim=-1)
        query = F.elu(query) + 1
        key = F.elu(key) + 1
        # Under autocast the projection may be in a lower precision than x.
        value = split_heads(x.to(query.dtype), self.num_heads)
        query_rotated = split_heads(self._rotate(query), self.num_heads)
        key_rotated = split_heads(self._rotate(key), self.num_heads)
        query, key = split_heads(query, self.num_heads), split_heads(key, self.num_heads)

        accumulate = torch.promote_types(query.dtype, torch.float32)
        scale = tokens**-0.5
        with torch.autocast(x.device.type, enabled=False):
            mean_key = key.mean(dim=-2, keepdim=True, dtype=accumulate)
            normalizer = 1 / (query.to(accumulate) @ mean_key.transpose(-2, -1) + MEAN_EPSILON)
            state = (key_rotated.transpose(-2, -1) * scale) @ (value * scale)
            mixed = query_rotated @ state * normalizer

        mixed = merge_heads(mixed).to(value.dtype)
        local = self.lepe(tokens_to_image(x[:, first_patch:], self.grid)).flatten(2).transpose(1, 2)
        if self.class_token:
            mixed[:, 1:] = mixed[:, 1:] + local
        else:
            mixed = mixed + local
        return mixed

    def _rotate(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        first_patch = int(self.class_token)
        patches = x[:, first_patch:].unflatten(1, self.grid)
        rotated = self.rope(patches).flatten(1, 2)
        return torch.cat([x[:, :1], rotated], dim=1) if self.class_token else rotated


class RotaryTable(nn.Module):
    """Rotation of channel pairs by the position in the grid, in float32 at least; a table for one grid, as published.

    ``rotations`` holds (cos, sin) for every patch and pair. It follows from the grid, so it is not in the state dict.
    """

    rotations: Float[Tensor, "height width pairs 2"]

    def __init__(
        self,
        grid: tuple[int, int],
        embed_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        table_dtype = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        half = embed_dim // 4
        exponents = torch.arange(half, device=device, dtype=torch.float64) / half
        theta = ROTATION_BASE**-exponents
        rotations = torch.empty(*grid, 2 * half, 2, device=device, dtype=table_dtype)
        for axis, side in enumerate(grid):
            angles = torch.arange(side, device=device, dtype=torch.float64).unsqueeze(1) * theta
            turns = torch.stack([angles.cos(), angles.sin()], dim=-1)
            rotations[:, :, axis * half : (axis + 1) * half] = turns.unsqueeze(1 - axis)
        self.register_buffer("rotations", rotations, persistent=False)

    def forward(
        self, x: Float[Tensor, "batch height width embed_dim"]
    ) -> Float[Tensor, "batch height width embed_dim"]:
        cos, sin = self.rotations.unbind(-1)
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        # The half-precision factors are promoted to the table's float32; only the result is rounded.
        rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
        return rotated.flatten(-2).to(x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryTable:
        """Convert as any module does, but keep the table in float32 at least: angles reach the side of the grid."""
        table = self.rotations
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if torch.finfo(self.rotations.dtype).bits < 32:
            self.rotations = table.to(self.rotations.device)
        return self


def tokens_to_image(
    x: Float[Tensor, "batch patches embed_dim"], grid: tuple[int, int]
) -> Float[Tensor, "batch embed_dim height width"]:
    """Return patch tokens, row-major, as an image with the channels first."""
    return x.transpose(1, 2).unflatten(2, grid)
