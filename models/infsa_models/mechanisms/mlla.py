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
Fast: the table is kept as its two axes and turned channels are one multiply-add of the channels and their pairs' swap;
the state is a sum over pieces of the rows in float32, the mixing, the gate and the output projection one piece each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from infsa_models.heads import merge_heads, split_heads
from infsa_models.patches import depthwise, tokens_of, tokens_to_image, with_class_token
from infsa_models.pieces import joined, made_again, parts_of, row_pieces

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
        self.attn = self.make_core(embed_dim, num_heads, grid=grid, class_token=class_token, device=device, dtype=dtype)
        self.out_proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        gate = F.silu(self.act_proj(x))
        inner = F.silu(self._convolve(self.in_proj(x)))
        return self.out_proj(self.attn(inner) * gate)

    @staticmethod
    def make_core(*sizes: int, **where: Any) -> MllaCore:
        """Return the attention that the mixer gates."""
        return MllaCore(*sizes, **where)

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
        self.rope = self.make_rope(grid, embed_dim, device=device, dtype=dtype)

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

    @staticmethod
    def make_rope(*sizes: Any, **where: Any) -> nn.Module:
        """Return what turns the patches by their positions."""
        return RotaryTable(*sizes, **where)

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


class FastMllaAttention(MllaAttention):
    """The same mixer and parameters, some rows of the grid at a time."""

    attn: FastMllaCore

    @staticmethod
    def make_core(*sizes: int, **where: Any) -> FastMllaCore:
        return FastMllaCore(*sizes, **where)

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        parts = parts_of(x, self.attn.token_slices(len(x)))
        inner = F.silu(self._convolve(self.in_proj(x)))
        return self.attn.mixed(inner, lambda mixed, index: self.out_proj(mixed * F.silu(self.act_proj(parts[index]))))


class FastMllaCore(MllaCore):
    """The same attention and parameters, some rows of the grid at a time."""

    @staticmethod
    def make_rope(*sizes: Any, **where: Any) -> SeparableRotaryTable:
        return SeparableRotaryTable(*sizes, **where)

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        return self.mixed(x, lambda mixed, _: mixed)

    def mixed(
        self,
        x: Float[Tensor, "batch tokens embed_dim"],
        finish: Callable[[Float[Tensor, "batch piece embed_dim"], int], Float[Tensor, "batch piece embed_dim"]],
    ) -> Float[Tensor, "batch tokens embed_dim"]:
        """Return the core's result for ``x``, each of its ``token_slices`` finished with its index."""
        batch, tokens, _ = x.shape
        class_tokens = int(self.class_token)
        pieces, slices = row_pieces(batch, self.grid), self.token_slices(batch)
        parts = parts_of(x, slices)
        (query_weight, key_weight), (query_bias, key_bias) = self.qk.weight.chunk(2), self.qk.bias.chunk(2)
        scale = tokens**-0.5

        def collect(index: int) -> tuple[Tensor, Tensor]:
            piece = parts[index]
            key = F.elu(F.linear(piece, key_weight, key_bias)) + 1
            rotated = self._rotated(key, pieces[index])
            accumulate = torch.promote_types(key.dtype, torch.float32)
            with torch.autocast(x.device.type, enabled=False):
                # Scaled once before and once after the sum, which float16 can hold then.
                value = split_heads(piece.to(key.dtype) * scale, self.num_heads)
                state = split_heads(rotated, self.num_heads).transpose(-2, -1) @ value
                return state.to(accumulate) * scale, key.sum(dim=1, dtype=accumulate)

        if len(pieces) == 1:
            state, key_sum = collect(0)
        else:
            collected = [made_again(collect, index) for index in range(len(pieces))]
            state, key_sum = (torch.stack(sums).sum(dim=0) for sums in zip(*collected, strict=True))
        mean_key = split_heads((key_sum / tokens).unsqueeze(1), self.num_heads).transpose(-2, -1)
        local = depthwise(x[:, class_tokens:], self.grid, self.lepe.weight, self.lepe.bias)

        local_parts = parts_of(local, [tokens_of(rows, self.grid, 0) for rows in pieces])

        def read(index: int) -> Tensor:
            query = F.elu(F.linear(parts[index], query_weight, query_bias)) + 1
            rotated = split_heads(self._rotated(query, pieces[index]), self.num_heads)
            with torch.autocast(x.device.type, enabled=False):
                denominator = split_heads(query.to(mean_key.dtype), self.num_heads) @ mean_key + MEAN_EPSILON
                mixed = merge_heads(rotated @ state.to(rotated.dtype) / denominator).to(query.dtype)
            patches = mixed[:, class_tokens:] if index == 0 else mixed
            patches += local_parts[index]
            return finish(mixed, index)

        return joined(read, slices)

    def token_slices(self, batch: int) -> list[slice]:
        """Return the tokens in the pieces that ``mixed`` takes them in."""
        return [tokens_of(rows, self.grid, int(self.class_token)) for rows in row_pieces(batch, self.grid)]

    def _rotated(
        self, x: Float[Tensor, "batch piece embed_dim"], rows: slice
    ) -> Float[Tensor, "batch piece embed_dim"]:
        first_patch = int(self.class_token and rows.start == 0)
        patches = x[:, first_patch:].unflatten(1, (-1, self.grid[1]))
        rotated = self.rope(patches, rows).flatten(1, 2)
        return with_class_token(x[:, :1], rotated) if first_patch else rotated


class SeparableRotaryTable(nn.Module):
    """The rotation of :class:`RotaryTable` from one table for rows and one for columns, O(H D + W D) numbers.

    A table holds, for every position and channel, what the channel is multiplied with (the cosine) and what the other
    channel of its pair is (the sine, negative for the even one). Both follow from the grid.
    """

    row_turns: Float[Tensor, "height 1 2 half_dim"]
    column_turns: Float[Tensor, "width 2 half_dim"]

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
        pairs = embed_dim // 4
        theta = ROTATION_BASE ** -(torch.arange(pairs, device=device, dtype=torch.float64) / pairs)
        turns = []
        for side in grid:
            angles = torch.arange(side, device=device, dtype=torch.float64).unsqueeze(1) * theta
            cos = angles.cos().repeat_interleave(2, dim=1)
            sin = torch.stack([-angles.sin(), angles.sin()], dim=-1).flatten(1)
            turns.append(torch.stack([cos, sin], dim=1).to(table_dtype))
        self.register_buffer("row_turns", turns[0].unsqueeze(1), persistent=False)
        self.register_buffer("column_turns", turns[1], persistent=False)

    def forward(
        self, x: Float[Tensor, "batch rows width embed_dim"], rows: slice = slice(None)
    ) -> Float[Tensor, "batch rows width embed_dim"]:
        by_pair = x.unflatten(-1, (-1, 2))
        halves = zip(x.chunk(2, dim=-1), by_pair.flip(-1).flatten(-2).chunk(2, dim=-1), strict=True)
        turned = []
        for (channels, others), turns in zip(halves, (self.row_turns[rows], self.column_turns), strict=True):
            cos, sin = turns.unbind(-2)
            turned.append(torch.addcmul(channels * cos, others.to(sin.dtype), sin))
        return torch.cat(turned, dim=-1).to(x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SeparableRotaryTable:
        """Convert as any module does, but keep the tables in float32 at least: angles reach the side of the grid."""
        tables = self.row_turns, self.column_turns
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if torch.finfo(self.row_turns.dtype).bits < 32:
            self.row_turns, self.column_turns = (table.to(self.row_turns.device) for table in tables)
        return self
