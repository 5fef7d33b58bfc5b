"""Linear-InfSA: one power-iteration step towards the dominant eigenvector of the token graph.

Formula, per head of size d, with ``q' = q / sqrt(d)`` and ``k' = k / sqrt(d)``::

    e_i  = |q'_i|_2                    w_i = e_i / (sum e + eps)
    qbar = sum_i w_i q'_i              a_j = relu(qbar . k'_j)
    y    = rho sum_j a_j v_j / (sum a + eps)        the same y for every token

then ``out = merge(y) Wo^T + bo``; ``rho = sigmoid(rho_logit)``, one learnable scalar per layer.
Cost: time O(N D), memory O(h N) for the scores and O(D) for the state. The class token is an ordinary token.
Source: Roffo et al. 2026 (arXiv 2603.00175), Linear-InfSA; public code giorgioroffo/infinite-self-attention.
Departures: ``tie_qk=True`` (the paper's text and parameter counts; the public code never ties), ``rho`` stays a
tensor (the public code calls ``.item()``: no gradient, one device synchronisation per layer), and the sums over
tokens accumulate in float32: in pure float16 the public code's energy sum overflows from about 65,000 tokens up,
and its output is then silently zero.
Fast (none of it changes the function): with ``U_h = Wk_h^T qbar_h / sqrt(d)`` a token's score is ``relu(x U_h +
...)``, so K is never made; the scores average the *tokens*, and Wv meets one vector a head, so V is never made; the
output projection meets one vector an image. One N x D x D product is left (the queries), 2 N D^2 + 4 N D h in place
of 6 N D^2, and the backward pass is written out (:mod:`infsa_models.mean_context`): 4 N D^2 + 8 N D h. Above one
piece of tokens the queries are made piece by piece, and again in the backward pass. On GPUs the passes over the tokens
are kernels of our own in Triton (:mod:`infsa_models.kernels.mean_context`), which also normalise the tokens on reading
them and never store a query.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from infsa_models.heads import merge_heads, split_heads
from infsa_models.kernels.mean_context import pooled_context
from infsa_models.kernels.mean_context_steps import Norm
from infsa_models.kernels.support import AUTO, TRITON, chosen, described
from infsa_models.mean_context import EPSILON, Projections, pool_tokens
from infsa_models.mean_context_autograd import MeanContext
from infsa_models.pieces import token_pieces

INITIAL_RHO = 0.95

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: Mapping[str, Activation] = {"relu": torch.relu, "gelu": F.gelu, "silu": F.silu}
"""What keeps affinities from being negative: relu (paper); the others are of its ablation, for latency only: they let
a little below zero through, so that the sum of the affinities need not be positive.
"""

# Normalised weights are about 1/N: 3e-6 at 9216 x 9216, where float16 is subnormal. Scaled by a power of two they
# stay normal numbers, and dividing the result by it again is exact.
WEIGHT_SCALE = 64.0


class LinearInfsaAttention(nn.Module):
    """Linear-InfSA with the official names: ``q_proj``, ``k_proj``, ``v_proj``, ``out_proj``, ``rho_logit``."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        grid: tuple[int, int],
        class_token: bool = True,
        tie_qk: bool = True,
        rho: float = INITIAL_RHO,
        activation: str = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.tie_qk = tie_qk
        self.activation = ACTIVATIONS[activation]
        self.q_proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.k_proj = None if tie_qk else nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.v_proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.out_proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.rho_logit = nn.Parameter(torch.full((), math.log(rho / (1 - rho)), device=device, dtype=dtype))

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        query = split_heads(self.q_proj(x), self.num_heads)
        key = query if self.k_proj is None else split_heads(self.k_proj(x), self.num_heads)
        value = split_heads(self.v_proj(x), self.num_heads)
        mixed = linear_infsa(query, key, value, torch.sigmoid(self.rho_logit), self.activation)
        return self.out_proj(merge_heads(mixed))


def linear_infsa(
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch heads tokens head_dim"],
    value: Float[Tensor, "batch heads tokens head_dim"],
    rho: Float[Tensor, ""],
    activation: Activation = torch.relu,
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Return the pooled value, repeated for every token (a broadcast view)."""
    scores = linear_infsa_scores(query, key, activation)
    pooled = ((scores * WEIGHT_SCALE).to(value.dtype) * value).sum(dim=-2, keepdim=True, dtype=scores.dtype)
    return (pooled * (rho / WEIGHT_SCALE)).to(value.dtype).expand_as(value)


def linear_infsa_scores(
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch heads tokens head_dim"],
    activation: Activation = torch.relu,
) -> Float[Tensor, "batch heads tokens 1"]:
    """Return each token's share in the pooled value, summing to one per head (or all zero), at least in float32."""
    accumulate = torch.promote_types(query.dtype, torch.float32)
    scale = query.shape[-1] ** -0.5
    query_scaled = query * scale
    # Tied projections pass the same tensor twice: scale it once.
    key_scaled = query_scaled if key is query else key * scale

    energy = torch.linalg.vector_norm(query_scaled, dim=-1, dtype=accumulate)
    weights = energy / (energy.sum(dim=-1, keepdim=True) + EPSILON)
    pooled_query = (weights * WEIGHT_SCALE).to(query.dtype).unsqueeze(-2) @ query_scaled / WEIGHT_SCALE
    affinity = activation(key_scaled @ pooled_query.transpose(-2, -1)).to(accumulate)
    return affinity / (affinity.sum(dim=-2, keepdim=True) + EPSILON)


class FastLinearInfsaAttention(LinearInfsaAttention):
    """The same layer and parameters, reassociated, with relu only; a host need not see N equal rows.

    Args:
        kernels: what passes over the tokens: ``triton``, ``torch``, or ``auto``, Triton's where a GPU can
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
        tie_qk: bool = True,
        rho: float = INITIAL_RHO,
        kernels: str = AUTO,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            grid=grid,
            class_token=class_token,
            tie_qk=tie_qk,
            rho=rho,
            device=device,
            dtype=dtype,
        )
        self.kernels = kernels
        self.kernels_run: str | None = None

    @property
    def choices(self) -> dict[str, str]:
        """What was decided by itself, by name; known after a forward."""
        return described(self.kernels_run, self.q_proj.weight.device)

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        return self.forward_pooled(x).expand_as(x)

    def forward_pooled(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch 1 embed_dim"]:
        """Return the row that is the result for every token."""
        pieces, dtype = token_pieces(*x.shape[:2]), self._compute_dtype()
        kernels = self._chosen(x.device, dtype)
        if not torch.is_grad_enabled():
            if kernels == TRITON:
                return self._pooled_by_triton(x, None, dtype)
            return self.forward_streamed(lambda piece: x[:, piece], pieces)
        with torch.autocast(x.device.type, enabled=False):
            query, key, value = self.q_proj, self.k_proj, self.v_proj
            layers = (query, value) if key is None else (query, value, key)
            projections = (tensor.to(dtype) for layer in layers for tensor in (layer.weight, layer.bias))
            context = MeanContext.apply(self.num_heads, pieces, kernels, x.to(dtype), *projections)
        return self._projected(context, dtype)

    def forward_normalised(
        self, x: Float[Tensor, "batch tokens embed_dim"], norm: nn.LayerNorm
    ) -> Float[Tensor, "batch 1 embed_dim"] | None:
        """Return the row for ``norm(x)``, which is never whole; None where PyTorch's kernels run. No gradients."""
        dtype = self._compute_dtype()
        return self._pooled_by_triton(x, norm, dtype) if self._chosen(x.device, dtype) == TRITON else None

    def forward_streamed(
        self, piece_of: Callable[[slice], Float[Tensor, "batch piece embed_dim"]], pieces: Sequence[slice]
    ) -> Float[Tensor, "batch 1 embed_dim"]:
        """Return the same for tokens that exist one piece at a time; every piece is asked for twice. No gradients."""
        dtype = self._compute_dtype()
        with torch.autocast(self.q_proj.weight.device.type, enabled=False):
            projections = Projections(*(tensor.to(dtype) for tensor in self._projections()))
            pooled = pool_tokens(lambda piece: piece_of(piece).to(dtype), self.num_heads, pieces, projections)
        return self._projected(pooled.context, dtype)

    def _chosen(self, device: torch.device, dtype: torch.dtype) -> str:
        """Return which kernels run."""
        kernels = chosen(self.kernels, self.q_proj.in_features, self.num_heads, device, dtype)
        self.kernels_run = kernels
        return kernels

    def _pooled_by_triton(
        self, x: Float[Tensor, "batch tokens embed_dim"], norm: nn.LayerNorm | None, dtype: torch.dtype
    ) -> Float[Tensor, "batch 1 embed_dim"]:
        on_load = None if norm is None else Norm(norm.weight, norm.bias, norm.eps)
        projections = Projections(*(tensor.to(dtype) for tensor in self._projections()))
        return self.out_proj(pooled_context(x, on_load, projections, self.rho_logit, self.num_heads).unsqueeze(1))

    def _projections(self) -> Projections:
        key, value = self.q_proj if self.k_proj is None else self.k_proj, self.v_proj
        return Projections(self.q_proj.weight, self.q_proj.bias, key.weight, key.bias, value.weight, value.bias)

    def _compute_dtype(self) -> torch.dtype:
        weight = self.q_proj.weight
        device_type = weight.device.type
        return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else weight.dtype

    def _projected(
        self, context: Float[Tensor, "batch heads head_dim"], dtype: torch.dtype
    ) -> Float[Tensor, "batch 1 embed_dim"]:
        rho = torch.sigmoid(self.rho_logit).to(context.dtype)
        return self.out_proj((rho * context).flatten(1).unsqueeze(1).to(dtype))
