"""Agent attention: n_a pooled queries collect from all tokens and hand the result back to all tokens.

Formula, per head of size d, with agents ``a`` = the patch queries averaged to an s x s grid, s^2 = n_a::

    A1 = softmax(a k^T / sqrt(d) + B1) over tokens             va = A1 v          (n_a x d)
    A2 = softmax(q a^T / sqrt(d) + B2) over agents             y  = A2 va

``B1 = [ac | interp(an) + ah + aw]`` and ``B2 = [ca ; interp(na)^T + ha + wa]``: ``an``, ``na`` are 7 x 7 tables,
resized bilinearly to the grid in every forward pass as published; ``ah``, ``aw``, ``ha``, ``wa`` are made for the grid
at build; ``ac``, ``ca`` belong to the class token. Patch tokens then get ``y <- y + DWC3x3(v)``; ``out = y Wo^T + bo``.
Cost: time O(N n_a D), memory O(h N n_a): both attentions and, repeated over the batch, their biases.
Source: Han et al. 2024 (arXiv 2312.08874); LeapLabTHU/Agent-Attention, ``agent_deit`` (class token, fused ``qkv``) and
``agent_pvt`` (no class token, ``q`` and ``kv``).
Departures: rectangular grids; any depth (the published table of layers ends at 12); 49 agents in all layers.
Fast: agents from the averaged tokens (``pool(x) Wq``); the biases of some rows of the grid at a time, as one product of
their resized tables (bilinear resizing is a product with one matrix per axis), the same for all images; the softmax
over tokens in parts that are weighted with their sums; no more of the N x n_a matrices than one piece of the rows.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from infsa_models.heads import merge_heads, split_heads
from infsa_models.patches import depthwise, image_to_tokens, tokens_of, tokens_to_image
from infsa_models.pieces import joined, made_again, parts_of, row_pieces

BIAS_GRID = 7


class AgentAttention(nn.Module):
    """Agent attention with the official names: ``qkv`` (or ``q``, ``kv``), ``proj``, ``dwc``, ``an_bias`` and so on.

    Args:
        agent_num: number of agents n_a, a square number.
        fused_qkv: one projection ``qkv`` (agent_deit) or ``q`` and ``kv`` apart (agent_pvt); by default fused with a
            class token and apart without.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        grid: tuple[int, int],
        class_token: bool = True,
        agent_num: int = 49,
        fused_qkv: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        side = math.isqrt(agent_num)
        if side * side != agent_num:
            raise ValueError(f"agent_num {agent_num} is not a square number")
        self.num_heads = num_heads
        self.grid = grid
        self.class_token = class_token
        self.agent_num = agent_num
        self.scale = (embed_dim // num_heads) ** -0.5
        self.fused_qkv = class_token if fused_qkv is None else fused_qkv
        if self.fused_qkv:
            self.qkv = nn.Linear(embed_dim, 3 * embed_dim, device=device, dtype=dtype)
        else:
            self.q = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
            self.kv = nn.Linear(embed_dim, 2 * embed_dim, device=device, dtype=dtype)
        self.proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.dwc = nn.Conv2d(embed_dim, embed_dim, 3, padding=1, groups=embed_dim, device=device, dtype=dtype)
        self.pool = nn.AdaptiveAvgPool2d((side, side))

        def table(*shape: int) -> nn.Parameter:
            return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape, device=device, dtype=dtype), std=0.02))

        height, width = grid
        self.an_bias = table(num_heads, agent_num, BIAS_GRID, BIAS_GRID)
        self.na_bias = table(num_heads, agent_num, BIAS_GRID, BIAS_GRID)
        self.ah_bias = table(1, num_heads, agent_num, height, 1)
        self.aw_bias = table(1, num_heads, agent_num, 1, width)
        self.ha_bias = table(1, num_heads, height, 1, agent_num)
        self.wa_bias = table(1, num_heads, 1, width, agent_num)
        if class_token:
            self.ac_bias = table(1, num_heads, agent_num, 1)
            self.ca_bias = table(1, num_heads, 1, agent_num)

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        batch = x.shape[0]
        first_patch = int(self.class_token)
        if self.fused_qkv:
            query, key, value = self.qkv(x).chunk(3, dim=-1)
        else:
            query = self.q(x)
            key, value = self.kv(x).chunk(2, dim=-1)
        agents = split_heads(
            self.pool(self._to_image(query[:, first_patch:])).flatten(2).transpose(1, 2), self.num_heads
        )
        value_image = self._to_image(value[:, first_patch:])
        query, key, value = (
            split_heads(query, self.num_heads),
            split_heads(key, self.num_heads),
            split_heads(value, self.num_heads),
        )

        # The four tables at full size stay alive to the end, as they do in the published code.
        table_an = self._resized(self.an_bias).repeat(batch, 1, 1, 1)
        table_ah_aw = (self.ah_bias + self.aw_bias).flatten(-2).repeat(batch, 1, 1, 1)
        bias_agents = table_an + table_ah_aw
        if self.class_token:
            bias_agents = torch.cat([self.ac_bias.repeat(batch, 1, 1, 1), bias_agents], dim=-1)
        collect = ((agents * self.scale) @ key.transpose(-2, -1) + bias_agents).softmax(dim=-1)
        collected = collect @ value

        table_na = self._resized(self.na_bias).transpose(-2, -1).repeat(batch, 1, 1, 1)
        table_ha_wa = (self.ha_bias + self.wa_bias).flatten(2, 3).repeat(batch, 1, 1, 1)
        bias_tokens = table_na + table_ha_wa
        if self.class_token:
            bias_tokens = torch.cat([self.ca_bias.repeat(batch, 1, 1, 1), bias_tokens], dim=-2)
        distribute = ((query * self.scale) @ agents.transpose(-2, -1) + bias_tokens).softmax(dim=-1)
        mixed = distribute @ collected

        mixed = merge_heads(mixed)
        local = self.dwc(value_image).flatten(2).transpose(1, 2)
        if self.class_token:
            mixed[:, 1:] = mixed[:, 1:] + local
        else:
            mixed = mixed + local
        return self.proj(mixed)

    def _resized(
        self, table: Float[Tensor, "heads agents bias_height bias_width"]
    ) -> Float[Tensor, "1 heads agents patches"]:
        resized = F.interpolate(table, size=self.grid, mode="bilinear", align_corners=False)
        return resized.flatten(2).unsqueeze(0)

    def _to_image(self, x: Float[Tensor, "batch patches embed_dim"]) -> Float[Tensor, "batch embed_dim height width"]:
        return x.transpose(1, 2).unflatten(2, self.grid)


class FastAgentAttention(AgentAttention):
    """The same layer, options and parameters, some rows of the grid at a time."""

    output_projection: ClassVar[str] = "proj"

    resize_rows: Float[Tensor, "height bias_height"]
    resize_columns: Float[Tensor, "bias_width width"]

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        grid: tuple[int, int],
        class_token: bool = True,
        agent_num: int = 49,
        fused_qkv: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            grid=grid,
            class_token=class_token,
            agent_num=agent_num,
            fused_qkv=fused_qkv,
            device=device,
            dtype=dtype,
        )
        rows, columns = (_bilinear(BIAS_GRID, side, device=device, dtype=dtype) for side in grid)
        self.register_buffer("resize_rows", rows, persistent=False)
        self.register_buffer("resize_columns", columns.T.contiguous(), persistent=False)

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        batch, class_tokens = x.shape[0], int(self.class_token)
        pieces = row_pieces(batch, self.grid)
        query_projection, key_projection, value_projection = self._projections()
        pooled = image_to_tokens(self.pool(tokens_to_image(x[:, class_tokens:], self.grid)))
        agents = split_heads(F.linear(pooled, *query_projection), self.num_heads) * self.scale
        value = F.linear(x, *value_projection)
        token_slices = [tokens_of(rows, self.grid, class_tokens) for rows in pieces]
        parts, values = parts_of(x, token_slices), parts_of(value, token_slices)
        agent_table = self.an_bias @ self.resize_columns
        token_table = self.na_bias @ self.resize_columns

        def collect(index: int) -> tuple[Tensor, Tensor | None]:
            """Return what agents see in the rows, and the logarithm of the sum that divides it."""
            rows = pieces[index]
            key = split_heads(F.linear(parts[index], *key_projection), self.num_heads)
            bias = self._bias(agent_table, self.ah_bias[0, :, :, rows], self.aw_bias[0], rows)
            if rows.start == 0 and self.class_token:
                bias = torch.cat([self.ac_bias[0], bias], dim=-1)
            scores = agents @ key.transpose(-2, -1)
            scores += bias
            collected = scores.softmax(dim=-1) @ split_heads(values[index], self.num_heads)
            if len(pieces) == 1:
                return collected, None
            accumulate = torch.promote_types(scores.dtype, torch.float32)
            return collected, scores.to(accumulate).logsumexp(dim=-1, keepdim=True)

        if len(pieces) == 1:
            collected, _ = collect(0)
        else:
            of_pieces, log_sums = zip(*(made_again(collect, index) for index in range(len(pieces))), strict=True)
            shares = torch.stack(log_sums).softmax(dim=0)
            collected = (shares * torch.stack(of_pieces)).sum(dim=0).to(value.dtype)
        local = depthwise(value[:, class_tokens:], self.grid, self.dwc.weight, self.dwc.bias)

        local_parts = parts_of(local, [tokens_of(rows, self.grid, 0) for rows in pieces])

        def read(index: int) -> Tensor:
            rows = pieces[index]
            query = split_heads(F.linear(parts[index], *query_projection), self.num_heads)
            rows_bias, columns_bias = (
                table[0].permute(0, 3, 1, 2) for table in (self.ha_bias[:, :, rows], self.wa_bias)
            )
            bias = self._bias(token_table, rows_bias, columns_bias, rows)
            if rows.start == 0 and self.class_token:
                bias = torch.cat([self.ca_bias[0].transpose(-2, -1), bias], dim=-1)
            scores = agents @ query.transpose(-2, -1)
            scores += bias
            mixed = merge_heads(scores.softmax(dim=-2).transpose(-2, -1) @ collected)
            patches = mixed[:, class_tokens:] if index == 0 else mixed
            patches += local_parts[index]
            return self.proj(mixed)

        return joined(read, token_slices)

    def _bias(
        self,
        table: Float[Tensor, "heads agents bias_height width"],
        rows_bias: Float[Tensor, "heads agents rows 1"],
        columns_bias: Float[Tensor, "heads agents 1 width"],
        rows: slice,
    ) -> Float[Tensor, "heads agents patches"]:
        """Return the biases of some rows of the grid: the resized table plus one number a row and one a column."""
        bias = self.resize_rows[rows] @ table
        bias += rows_bias
        bias += columns_bias
        return bias.flatten(-2)

    def _projections(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return weight and bias of query, key and value."""
        if self.fused_qkv:
            return tuple(zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True))
        return (self.q.weight, self.q.bias), *zip(self.kv.weight.chunk(2), self.kv.bias.chunk(2), strict=True)


def _bilinear(
    tabulated: int, side: int, *, device: torch.device | str | None, dtype: torch.dtype | None
) -> Float[Tensor, "side tabulated"]:
    """Return the matrix that resizes an axis of ``tabulated`` numbers to ``side``, as bilinear interpolation does."""
    steps = torch.eye(tabulated, device=device, dtype=torch.float64).unsqueeze(0)
    resized = F.interpolate(steps, size=side, mode="linear", align_corners=False)[0]
    return resized.T.contiguous().to(dtype or torch.get_default_dtype())
