"""FLatten: focused linear attention, with a depthwise convolution that restores the rank.

Formula, with p = 3, ``sigma = softplus(scale)``, ``k <- k + PE``, and norms over all D channels before the head split::

    t    = (relu(t) + 1e-6) / sigma           f(t) = |t| t^p / |t^p|                          for t in q, k
    y    = f(q) [(f(k) / sqrt(n))^T (v / sqrt(n))] / (f(q) . mean_n f(k) + 1e-6)              per head of size d
    y    = y + DWC(v)                         depthwise k x k, the same d kernels for every head

then ``out = merge(y) Wo^T + bo``.
Cost: time O(N D d), state O(h d^2), and N D parameters: PE is a zero-initialised table of the grid as built.
Class token (no official code exists): an ordinary token with a row of its own in PE, left out of the convolution, as
the same laboratory's Agent-DeiT does.
Source: Han et al. 2023 (arXiv 2308.00442); LeapLabTHU/FLatten-Transformer, ``flatten_swin`` (fused ``qkv``) and
``flatten_pvt`` (``q`` and ``kv``).
Departures: everything between the projections runs in float32 at least: in float16 the cube of 1e-6 is zero, and a
token whose query is negative everywhere gives 0/0. Grids need not be square.
Fast: the query's norms, one number a token, go into the denominator; the convolution leaves the layout of the tokens as
it is; no more of the focused queries and keys than one piece of the tokens.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from infsa_models.heads import merge_heads, split_heads
from infsa_models.patches import depthwise, patches_of
from infsa_models.pieces import joined, made_again, parts_of, token_pieces

RELU_EPSILON = 1e-6
MEAN_EPSILON = 1e-6


class FlattenAttention(nn.Module):
    """Focused linear attention: ``qkv`` (or ``q``, ``kv``), ``scale``, ``positional_encoding``, ``dwc``, ``proj``.

    Args:
        focusing_factor: the power p.
        kernel_size: side of the depthwise convolution.
        fused_qkv: one projection ``qkv`` (flatten_swin), or ``q`` and ``kv`` apart (flatten_pvt).
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        grid: tuple[int, int],
        class_token: bool = True,
        focusing_factor: int = 3,
        kernel_size: int = 5,
        fused_qkv: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.grid = grid
        self.class_tokens = int(class_token)
        self.focusing_factor = focusing_factor
        self.fused_qkv = fused_qkv
        head_dim = embed_dim // num_heads
        tokens = grid[0] * grid[1] + self.class_tokens
        if fused_qkv:
            self.qkv = nn.Linear(embed_dim, 3 * embed_dim, device=device, dtype=dtype)
        else:
            self.q = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
            self.kv = nn.Linear(embed_dim, 2 * embed_dim, device=device, dtype=dtype)
        self.scale = nn.Parameter(torch.zeros(1, 1, embed_dim, device=device, dtype=dtype))
        self.positional_encoding = nn.Parameter(torch.zeros(1, tokens, embed_dim, device=device, dtype=dtype))
        self.dwc = nn.Conv2d(
            head_dim, head_dim, kernel_size, padding=kernel_size // 2, groups=head_dim, device=device, dtype=dtype
        )
        self.proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        batch, _, embed_dim = x.shape
        height, width = self.grid
        if self.fused_qkv:
            query, key, value = self.qkv(x).chunk(3, dim=-1)
        else:
            query = self.q(x)
            key, value = self.kv(x).chunk(2, dim=-1)
        key = key + self.positional_encoding

        accumulate = torch.promote_types(value.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            sigma = F.softplus(self.scale.to(accumulate))
            query = focus(query.to(accumulate), sigma, self.focusing_factor)
            key = focus(key.to(accumulate), sigma, self.focusing_factor)
            mixed = focused_linear_attention(
                split_heads(query, self.num_heads),
                split_heads(key, self.num_heads),
                split_heads(value.to(accumulate), self.num_heads),
            )
        mixed = merge_heads(mixed).to(value.dtype)

        # The heads join the batch: they share the kernels.
        images = split_heads(value[:, self.class_tokens :], self.num_heads).transpose(-2, -1)
        convolved = self.dwc(images.reshape(batch * self.num_heads, -1, height, width))
        local = convolved.reshape(batch, embed_dim, height * width).transpose(1, 2)
        if self.class_tokens:
            mixed[:, 1:] = mixed[:, 1:] + local
        else:
            mixed = mixed + local
        return self.proj(mixed)


class FastFlattenAttention(FlattenAttention):
    """The same layer, options and parameters, piece by piece."""

    output_projection: ClassVar[str] = "proj"

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        batch, tokens, _ = x.shape
        pieces, class_tokens = token_pieces(batch, tokens), self.class_tokens
        query_projection, key_projection, value_projection = self._projections()
        value = F.linear(x, *value_projection)
        parts, values, encodings = (parts_of(whole, pieces) for whole in (x, value, self.positional_encoding))
        accumulate = torch.promote_types(value.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            sigma = F.softplus(self.scale.to(accumulate))

        def collect(index: int) -> tuple[Tensor, Tensor]:
            key = F.linear(parts[index], *key_projection) + encodings[index]
            with torch.autocast(x.device.type, enabled=False):
                cubes, stretch = self._focused(key.to(accumulate), sigma)
                focused = split_heads(cubes * stretch, self.num_heads)
                state = focused.transpose(-2, -1) @ split_heads(values[index].to(accumulate), self.num_heads)
                return state, focused.sum(dim=-2)

        if len(pieces) == 1:
            state, key_sum = collect(0)
        else:
            collected = [made_again(collect, index) for index in range(len(pieces))]
            state, key_sum = (torch.stack(sums).sum(dim=0) for sums in zip(*collected, strict=True))
        state, mean_key = state / tokens, (key_sum / tokens).unsqueeze(-1)
        kernels = self.dwc.weight.repeat(self.num_heads, 1, 1, 1)
        assert self.dwc.bias is not None
        local = depthwise(value[:, class_tokens:], self.grid, kernels, self.dwc.bias.repeat(self.num_heads))
        local_parts = parts_of(local, [patches_of(piece, class_tokens) for piece in pieces])

        def read(index: int) -> Tensor:
            query = F.linear(parts[index], *query_projection)
            with torch.autocast(x.device.type, enabled=False):
                cubes, stretch = self._focused(query.to(accumulate), sigma)
                cubes = split_heads(cubes, self.num_heads)
                denominator = cubes @ mean_key + MEAN_EPSILON / stretch.unsqueeze(1)
                mixed = merge_heads(cubes @ state / denominator).to(value.dtype)
            patches = mixed[:, class_tokens:] if index == 0 else mixed
            patches += local_parts[index]
            return self.proj(mixed)

        return joined(read, pieces)

    def _focused(
        self, x: Float[Tensor, "batch piece embed_dim"], sigma: Float[Tensor, "1 1 embed_dim"]
    ) -> tuple[Float[Tensor, "batch piece embed_dim"], Float[Tensor, "batch piece 1"]]:
        """Return the focusing map as two factors: the powers, and what gives each token its old norm."""
        x = (x.clamp(min=0) + RELU_EPSILON) / sigma
        powers = x**self.focusing_factor
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return powers, norm / torch.linalg.vector_norm(powers, dim=-1, keepdim=True)

    def _projections(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return weight and bias of query, key and value."""
        if self.fused_qkv:
            return tuple(zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True))
        return (self.q.weight, self.q.bias), *zip(self.kv.weight.chunk(2), self.kv.bias.chunk(2), strict=True)


def focus(
    x: Float[Tensor, "batch tokens embed_dim"], sigma: Float[Tensor, "1 1 embed_dim"], power: int
) -> Float[Tensor, "batch tokens embed_dim"]:
    """Return the focusing map: the direction is sharpened, the norm over all channels is kept."""
    x = (torch.relu(x) + RELU_EPSILON) / sigma
    norm = x.norm(dim=-1, keepdim=True)
    x = x**power
    return x / x.norm(dim=-1, keepdim=True) * norm


def focused_linear_attention(
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch heads tokens head_dim"],
    value: Float[Tensor, "batch heads tokens head_dim"],
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Return linear attention of focused queries and keys; key and value are scaled down so that sums are means."""
    scale = key.shape[-2] ** -0.5
    normalizer = 1 / (query @ key.mean(dim=-2, keepdim=True).transpose(-2, -1) + MEAN_EPSILON)
    state = (key.transpose(-2, -1) * scale) @ (value * scale)
    return query @ state * normalizer
