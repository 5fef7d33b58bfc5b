"""Pure-InfSA: the whole non-negative affinity matrix, normalised once per head by its Frobenius norm.

Formula, per head of size d::

    A    = relu(q k^T / d)                    q and k are each scaled by d^{-1/2}: 1/d, not 1/sqrt(d)
    Ahat = A / (|A|_F + eps)                  one number per head; |Ahat|_2 <= |Ahat|_F <= 1
    y    = rho Ahat v

then ``out = merge(y) Wo^T + bo``; ``rho = sigmoid(rho_logit)``, one learnable scalar per layer.
Cost: time O(N^2 D), memory O(h N^2): the matrix before and after every elementwise step. The class token is an
ordinary token. A head without any positive affinity gives exactly zero.
Source: Roffo et al. 2026 (arXiv 2603.00175), Pure-InfSA; public code giorgioroffo/infinite-self-attention.
Departures: ``rho`` stays a tensor (the public code calls ``.item()``: no gradient, one device synchronisation per
layer), the norm accumulates in float32, and the N x N matrix is divided by the power of two next to its norm; the
rest of the division, a factor near one, falls on the N x D result (see ``MATRIX_SCALE``).
Fast: ``relu(q k^T) v`` and ``|relu(q k^T)|_F^2`` in one pass over tiles (:mod:`infsa_models.relu_attention`), N x N
never written, on GPUs by kernels of our own in Triton; ``rho / (|A|_F + eps)`` is one number a head and image and
scales the columns of the output projection.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from infsa_models.heads import merge_heads, split_heads
from infsa_models.kernels.support import AUTO, chosen, described
from infsa_models.relu_attention import relu_attention

EPSILON = 1e-6
INITIAL_RHO = 0.95

# Normalised affinities are about 1/N, in float16 subnormal beyond N = 16,384, and a norm near zero has no float16
# reciprocal. Dividing by a power of two within float16's range is exact; times 64 the quotients stay normal numbers.
MATRIX_SCALE = 64.0
MAX_EXPONENT = 15.0


class PureInfsaAttention(nn.Module):
    """Pure-InfSA with the official names: ``q_proj``, ``k_proj``, ``v_proj``, ``out_proj``, ``rho_logit``."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        grid: tuple[int, int],
        class_token: bool = True,
        rho: float = INITIAL_RHO,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.k_proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.v_proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.out_proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.rho_logit = nn.Parameter(torch.full((), math.log(rho / (1 - rho)), device=device, dtype=dtype))

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        query = split_heads(self.q_proj(x), self.num_heads)
        key = split_heads(self.k_proj(x), self.num_heads)
        value = split_heads(self.v_proj(x), self.num_heads)
        mixed = pure_infsa(query, key, value, torch.sigmoid(self.rho_logit))
        return self.out_proj(merge_heads(mixed))


class FastPureInfsaAttention(PureInfsaAttention):
    """The same layer and parameters, in tiles.

    Args:
        kernels: what computes the tiles: ``triton``, ``torch``, or ``auto``, Triton's where a GPU can
            run them. :attr:`choices` says which ran.

    Raises:
        NotImplementedError: in ``forward``, with the reason: Triton's kernels were asked for and cannot run.
    """

    output_projection: ClassVar[str] = "out_proj"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        grid: tuple[int, int],
        class_token: bool = True,
        rho: float = INITIAL_RHO,
        kernels: str = AUTO,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, grid=grid, class_token=class_token, rho=rho, device=device, dtype=dtype)
        self.kernels = kernels
        self.kernels_run: str | None = None

    @property
    def choices(self) -> dict[str, str]:
        """What was decided by itself, by name; known after a forward."""
        return described(self.kernels_run, self.q_proj.weight.device)

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        kernels = chosen(self.kernels, query.shape[-1], self.num_heads, query.device, query.dtype)
        self.kernels_run = kernels
        head_dim = query.shape[-1] // self.num_heads
        if query.dtype == torch.float16:
            query_power, key_power = (self._power_of_two(projected) for projected in (query, key))
            query, key = self._scaled(query, query_power), self._scaled(key, key_power)
            scale, power = 1.0, head_dim * query_power * key_power
        else:
            scale, power = 1 / head_dim, 1.0
        mixed, square_sum = relu_attention(query, key, value, self.num_heads, scale, kernels)
        with torch.autocast(x.device.type, enabled=False):
            norm = square_sum.clamp(min=torch.finfo(square_sum.dtype).tiny).sqrt()
            factor = torch.sigmoid(self.rho_logit).to(norm.dtype) / (norm + power * EPSILON)
            # A head without affinities gives zero whatever the factor: one that float16 can hold.
            factor = torch.where(square_sum > 0, factor, 0)
        return self._projected(mixed, factor)

    def _power_of_two(self, projected: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch heads"]:
        """Return, in float32, the power of two that lets affinities and their sums over keys be float16 numbers.

        Queries and keys so scaled have affinities of about N^{-1/2}, whose products with the values add up to N^{1/2}
        at most. The factor, the same for all tokens of a head, cancels in the normalised affinity but for its epsilon.
        """
        by_head = projected.detach().unflatten(-1, (self.num_heads, -1))
        _, tokens, _, head_dim = by_head.shape
        norm = torch.linalg.vector_norm(by_head, dim=(1, 3), dtype=torch.float32)
        root_mean_square = norm / (tokens * head_dim) ** 0.5
        exponent = -(torch.log2(root_mean_square) + math.log2(tokens * head_dim) / 4).round()
        return torch.exp2(exponent.clamp(-MAX_EXPONENT + 1, MAX_EXPONENT))

    def _scaled(
        self, projected: Float[Tensor, "batch tokens embed_dim"], power: Float[Tensor, "batch heads"]
    ) -> Float[Tensor, "batch tokens embed_dim"]:
        by_channel = power.repeat_interleave(projected.shape[-1] // self.num_heads, dim=1)
        return projected * by_channel.to(projected.dtype).unsqueeze(1)

    def _projected(
        self, mixed: Float[Tensor, "batch tokens embed_dim"], factor: Float[Tensor, "batch heads"]
    ) -> Float[Tensor, "batch tokens embed_dim"]:
        """Return the output projection of ``factor`` times each head: its columns are scaled, an image at a time."""
        by_channel = factor.repeat_interleave(mixed.shape[-1] // self.num_heads, dim=1)
        weights = (self.out_proj.weight * by_channel.unsqueeze(1)).to(mixed.dtype)
        if len(weights) == 1:
            return F.linear(mixed, weights[0], self.out_proj.bias)
        return torch.baddbmm(self.out_proj.bias.to(mixed.dtype), mixed, weights.transpose(1, 2))


def pure_infsa(
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch heads tokens head_dim"],
    value: Float[Tensor, "batch heads tokens head_dim"],
    rho: Float[Tensor, ""],
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Return ``rho Ahat v``, in the dtype of ``value``."""
    normalized, remainder = pure_infsa_scores(query, key)
    normalized = rho.to(normalized.dtype) * normalized
    mixed = normalized @ value
    return (mixed.to(remainder.dtype) * remainder).to(value.dtype)


def pure_infsa_scores(
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch heads tokens head_dim"],
) -> tuple[Float[Tensor, "batch heads tokens tokens"], Float[Tensor, "batch heads 1 1"]]:
    """Return ``Ahat`` as two factors: the matrix divided by a power of two, and a number per head in float32.

    The number is between 1/128 and 1/64, except where the norm is below 2^-9 or above 2^21.
    """
    accumulate = torch.promote_types(query.dtype, torch.float32)
    scale = query.shape[-1] ** -0.5
    query_scaled = query * scale
    key_scaled = key * scale

    affinity = torch.relu(query_scaled @ key_scaled.transpose(-2, -1))
    norm = torch.linalg.vector_norm(affinity, dim=(-2, -1), keepdim=True, dtype=accumulate) + EPSILON
    exponent = torch.log2(norm.detach() / MATRIX_SCALE).floor().clamp(-MAX_EXPONENT, MAX_EXPONENT)
    divisor = torch.exp2(exponent).to(affinity.dtype)
    return affinity / divisor, divisor.to(accumulate) / norm
