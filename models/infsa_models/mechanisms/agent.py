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
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from infsa_models.heads import merge_heads, split_heads

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
