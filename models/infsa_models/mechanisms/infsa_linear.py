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
Fast (none of it changes the function): with ``U_h = Wk_h^T qbar_h / sqrt(d)`` a token's score is ``relu(x U_h + ...)``, so
K is never made; the scores average the *tokens*, and Wv meets one vector a head, so V is never made; the output
projection meets one vector an image. One N x D x D product is left (the queries), 2 N D^2 + 4 N D h in place of 6 N D^2,
and the backward pass is written out (:class:`_MeanContext`): 4 N D^2 + 8 N D h. Above one piece of tokens the queries are
made piece by piece, and again in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from infsa_models.heads import merge_heads, split_heads
from infsa_models.pieces import token_pieces

EPSILON = 1e-6
INITIAL_RHO = 0.95

# Normalised weights are about 1/N: 3e-6 at 9216 x 9216, where float16 is subnormal. Scaled by a power of two they
# stay normal numbers, and dividing the result by it again is exact.
WEIGHT_SCALE = 64.0
MAX_EXPONENT = 15.0


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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.tie_qk = tie_qk
        self.q_proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.k_proj = None if tie_qk else nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.v_proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.out_proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.rho_logit = nn.Parameter(torch.full((), math.log(rho / (1 - rho)), device=device, dtype=dtype))

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        query = split_heads(self.q_proj(x), self.num_heads)
        key = query if self.k_proj is None else split_heads(self.k_proj(x), self.num_heads)
        value = split_heads(self.v_proj(x), self.num_heads)
        mixed = linear_infsa(query, key, value, torch.sigmoid(self.rho_logit))
        return self.out_proj(merge_heads(mixed))


def linear_infsa(
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch heads tokens head_dim"],
    value: Float[Tensor, "batch heads tokens head_dim"],
    rho: Float[Tensor, ""],
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Return the pooled value, repeated for every token (a broadcast view)."""
    scores = linear_infsa_scores(query, key)
    pooled = ((scores * WEIGHT_SCALE).to(value.dtype) * value).sum(dim=-2, keepdim=True, dtype=scores.dtype)
    return (pooled * (rho / WEIGHT_SCALE)).to(value.dtype).expand_as(value)


def linear_infsa_scores(
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch heads tokens head_dim"],
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
    affinity = torch.relu(key_scaled @ pooled_query.transpose(-2, -1)).to(accumulate)
    return affinity / (affinity.sum(dim=-2, keepdim=True) + EPSILON)


class FastLinearInfsaAttention(LinearInfsaAttention):
    """The same layer, options and parameters, reassociated; a host need not see N equal rows."""

    output_projection: ClassVar[str] = "out_proj"

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        return self.forward_pooled(x).expand_as(x)

    def forward_pooled(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch 1 embed_dim"]:
        """Return the row that is the result for every token."""
        pieces = token_pieces(*x.shape[:2])
        if not torch.is_grad_enabled():
            return self.forward_streamed(lambda piece: x[:, piece], pieces)
        dtype = self._compute_dtype()
        with torch.autocast(x.device.type, enabled=False):
            projections = (tensor.to(dtype) for tensor in self._projections())
            context = _MeanContext.apply(self.num_heads, pieces, x.to(dtype), *projections)
        return self._projected(context, dtype)

    def forward_streamed(
        self, piece_of: Callable[[slice], Float[Tensor, "batch piece embed_dim"]], pieces: Sequence[slice]
    ) -> Float[Tensor, "batch 1 embed_dim"]:
        """Return the same for tokens that exist one piece at a time; every piece is asked for twice. No gradients."""
        dtype = self._compute_dtype()
        with torch.autocast(self.q_proj.weight.device.type, enabled=False):
            projections = Projections(*(tensor.to(dtype) for tensor in self._projections()))
            pooled = pool_tokens(lambda piece: piece_of(piece).to(dtype), self.num_heads, pieces, projections)
        return self._projected(pooled.context, dtype)

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


class Projections(NamedTuple):
    """Weights and biases; those of the key are the query's where the two are tied."""

    query_weight: Float[Tensor, "embed_dim embed_dim"]
    query_bias: Float[Tensor, " embed_dim"]
    key_weight: Float[Tensor, "embed_dim embed_dim"]
    key_bias: Float[Tensor, " embed_dim"]
    value_weight: Float[Tensor, "embed_dim embed_dim"]
    value_bias: Float[Tensor, " embed_dim"]


class Pooled(NamedTuple):
    """What the tokens come to, at least in float32 but for the two that meet them again.

    Attributes:
        context: ``sum_j a_j v_j / (sum a + eps)``.
        mean_token: ``sum_j a_j x_j / (sum a + eps)`` for every head.
        share: ``sum a / (sum a + eps)``: one, or zero where no score is positive.
        pooled_query: ``qbar``, times a power of two that keeps scores within float16.
        energy: ``sum e + eps``.
        score_weight: ``U``: a token's scores are ``relu(x U^T + score_bias)``.
        score_bias: see ``score_weight``.
        divisor: ``sum a + eps``, with the same power of two.
        power: that power of two.
        queries: ``x Wq^T + bq``, where there was one piece; empty where there were several.
        scores: before their relu; where there was one piece; empty where there were several.
    """

    context: Float[Tensor, "batch heads head_dim"]
    mean_token: Float[Tensor, "batch heads embed_dim"]
    share: Float[Tensor, "batch heads"]
    pooled_query: Float[Tensor, "batch heads head_dim"]
    energy: Float[Tensor, "batch heads"]
    score_weight: Float[Tensor, "batch heads embed_dim"]
    score_bias: Float[Tensor, "batch 1 heads"]
    divisor: Float[Tensor, "batch heads"]
    power: Float[Tensor, "batch heads"]
    queries: Float[Tensor, "batch tokens embed_dim"]
    scores: Float[Tensor, "batch tokens heads"]


def pool_tokens(
    piece_of: Callable[[slice], Float[Tensor, "batch piece embed_dim"]],
    num_heads: int,
    pieces: Sequence[slice],
    projections: Projections,
) -> Pooled:
    """Return the context of every head, with what its backward pass needs, from two passes over the tokens."""
    dtype, heads = projections.query_weight.dtype, (num_heads, -1)
    accumulate = torch.promote_types(dtype, torch.float32)
    head_dim = projections.query_bias.shape[0] // num_heads
    scale = head_dim**-0.5

    is_whole = len(pieces) == 1
    queries = scores = projections.query_weight.new_empty(0)

    def query_sums(piece: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the sum of the energies, that of the queries times theirs, and the queries if they are all."""
        query = F.linear(piece_of(piece), projections.query_weight, projections.query_bias)
        by_head = query.unflatten(-1, heads)
        energy = scale * torch.linalg.vector_norm(by_head, dim=-1, dtype=accumulate)
        total = energy.sum(dim=1)
        shares = _shares(energy, total).to(dtype)
        mean_query = (shares.transpose(1, 2).unsqueeze(2) @ by_head.transpose(1, 2)).squeeze(2)
        return total, scale / WEIGHT_SCALE * total.unsqueeze(-1) * mean_query, query if is_whole else None

    energies, weighted = [], []
    for piece in pieces:
        total, weighted_sum, maybe_queries = query_sums(piece)
        energies.append(total)
        weighted.append(weighted_sum)
        queries = queries if maybe_queries is None else maybe_queries
    energy = sum(energies) + EPSILON
    pooled_query = sum(weighted) / energy.unsqueeze(-1)
    power = _power_of_two(pooled_query) if torch.finfo(dtype).bits < 32 else torch.ones_like(energy)
    pooled_query = pooled_query * power.unsqueeze(-1)

    per_head = (scale * pooled_query).to(dtype)
    # (heads, batch, head_dim) @ (heads, head_dim, embed_dim)
    score_weight = (per_head.transpose(0, 1) @ projections.key_weight.unflatten(0, heads)).transpose(0, 1)
    score_bias = (per_head * projections.key_bias.unflatten(0, heads)).sum(dim=-1).unsqueeze(1)

    def token_sums(piece: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the sum of the scores, that of the tokens times theirs, and the scores if they are all."""
        tokens = piece_of(piece)
        scores = (tokens @ score_weight.transpose(1, 2)).add_(score_bias)
        positive = torch.relu(scores).to(accumulate)
        total = positive.sum(dim=1)
        shares = _shares(positive, total).to(dtype)
        # The shares as rounded: their sum is what makes it a mean.
        factor = total / shares.sum(dim=1, dtype=accumulate).clamp(min=torch.finfo(accumulate).tiny)
        return total, factor.unsqueeze(-1) * (shares.transpose(1, 2) @ tokens), scores if is_whole else None

    totals, weighted = [], []
    for piece in pieces:
        total, weighted_sum, maybe_scores = token_sums(piece)
        totals.append(total)
        weighted.append(weighted_sum)
        scores = scores if maybe_scores is None else maybe_scores
    total = sum(totals)
    divisor = total + EPSILON * power
    mean_token = sum(weighted) / divisor.unsqueeze(-1)
    share = total / divisor

    projected = projections.value_weight.unflatten(0, heads) @ mean_token.to(dtype).permute(1, 2, 0)
    context = projected.permute(2, 0, 1) + projections.value_bias.unflatten(0, heads) * share.unsqueeze(-1)
    return Pooled(
        context=context,
        mean_token=mean_token,
        share=share,
        pooled_query=pooled_query,
        energy=energy,
        score_weight=score_weight,
        score_bias=score_bias,
        divisor=divisor,
        power=power,
        queries=queries,
        scores=scores,
    )


def _shares(
    weights: Float[Tensor, "batch piece heads"], total: Float[Tensor, "batch heads"]
) -> Float[Tensor, "batch piece heads"]:
    """Return each token's share of the total, times WEIGHT_SCALE; zeros where the total is zero."""
    smallest = WEIGHT_SCALE * torch.finfo(total.dtype).tiny
    return weights * (WEIGHT_SCALE / total.clamp(min=smallest)).unsqueeze(1)


def _power_of_two(x: Float[Tensor, "batch heads head_dim"]) -> Float[Tensor, "batch heads"]:
    """Return the power of two that brings the largest number of each head to between one and two."""
    largest = x.abs().amax(dim=-1)
    exponent = -torch.log2(largest).floor().clamp(-MAX_EXPONENT, MAX_EXPONENT)
    return torch.exp2(exponent)


class _MeanContext(torch.autograd.Function):
    """``pool_tokens(...).context`` and its gradient, written out: two N x D x D products, nothing kept of size N x D
    beside the tokens but, where they are one piece, the queries.

    Source: the chain rule over the formula of the module, with all sums over tokens taken before any projection.
    """

    @staticmethod
    def forward(ctx: Any, num_heads: int, pieces: Sequence[slice], x: Tensor, *projections: Tensor) -> Tensor:
        pooled = pool_tokens(lambda piece: x[:, piece], num_heads, pieces, Projections(*projections))
        ctx.num_heads, ctx.pieces = num_heads, pieces
        ctx.save_for_backward(x, *projections, *pooled[1:])
        return pooled.context

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        projections, pooled = Projections(*saved[:6]), Pooled(gradient, *saved[6:])
        with torch.autocast(x.device.type, enabled=False):
            return None, None, *_pooling_gradients(ctx.num_heads, ctx.pieces, x, projections, pooled, gradient)


def _pooling_gradients(
    num_heads: int,
    pieces: Sequence[slice],
    x: Float[Tensor, "batch tokens embed_dim"],
    projections: Projections,
    pooled: Pooled,
    gradient: Float[Tensor, "batch heads head_dim"],
) -> tuple[Float[Tensor, "..."], ...]:
    """Return the gradients of the tokens and of all six projections from that of the context."""
    dtype, heads, accumulate = x.dtype, (num_heads, -1), gradient.dtype
    scale = gradient.shape[-1] ** -0.5
    # Gradients of single tokens are about 1 / N: times this they stay normal numbers in float16.
    tokens_power = 2.0 ** round(math.log2(x.shape[1]))

    def per_token(factor: Tensor) -> Tensor:
        return (factor * tokens_power).to(dtype)

    def over_batch(left: Tensor, right: Tensor) -> Tensor:
        """Sum the outer products (heads, channels, batch) @ (heads, batch, embed_dim) over the batch."""
        return (left.permute(1, 2, 0) @ right.transpose(0, 1)).flatten(0, 1)

    # The context from the mean token.
    value_weight_gradient = over_batch(gradient, pooled.mean_token)
    value_bias_gradient = (gradient * pooled.share.unsqueeze(-1)).sum(dim=0).flatten()
    by_head = projections.value_weight.unflatten(0, heads).to(accumulate)
    mean_token_gradient = (gradient.transpose(0, 1) @ by_head).transpose(0, 1)
    share_gradient = (gradient * projections.value_bias.unflatten(0, heads)).sum(dim=-1)
    centre = (mean_token_gradient * pooled.mean_token).sum(dim=-1) + share_gradient * pooled.share
    token_factor = mean_token_gradient.to(dtype)

    # The mean token from the scores.
    token_gradient = torch.empty_like(x)
    weight_sums: list[Tensor] = []
    bias_sums: list[Tensor] = []
    for piece in pieces:
        tokens = x[:, piece]
        if len(pieces) == 1:
            scores = pooled.scores
        else:
            scores = (tokens @ pooled.score_weight.transpose(1, 2)).add_(pooled.score_bias)
        shares = torch.relu(scores).to(accumulate) / pooled.divisor.unsqueeze(1)
        rises = (tokens @ token_factor.transpose(1, 2)).to(accumulate) + (share_gradient - centre).unsqueeze(1)
        score_gradient = per_token(rises / pooled.divisor.unsqueeze(1) * (scores > 0))
        weight_sums.append((score_gradient.transpose(1, 2) @ tokens).to(accumulate))
        bias_sums.append(score_gradient.sum(dim=1, dtype=accumulate))
        from_scores = torch.cat([per_token(shares), score_gradient], dim=-1)
        factors = torch.cat([token_factor, pooled.score_weight], dim=1)
        token_gradient[:, piece] = (from_scores @ factors) / tokens_power
    score_weight_gradient, score_bias_gradient = sum(weight_sums) / tokens_power, sum(bias_sums) / tokens_power

    # The scores from the pooled query.
    key_weight_gradient = over_batch(scale * pooled.pooled_query, score_weight_gradient)
    key_bias_gradient = (scale * pooled.pooled_query * score_bias_gradient.unsqueeze(-1)).sum(dim=0).flatten()
    key_by_head = projections.key_weight.unflatten(0, heads).to(accumulate)
    from_weight = (key_by_head @ score_weight_gradient.permute(1, 2, 0)).permute(2, 0, 1)
    from_bias = projections.key_bias.unflatten(0, heads) * score_bias_gradient.unsqueeze(-1)
    query_gradient = scale * pooled.power.unsqueeze(-1) * (from_weight + from_bias)
    pooled_query = pooled.pooled_query / pooled.power.unsqueeze(-1)
    query_centre = (pooled_query * query_gradient).sum(dim=-1)

    # The pooled query from the queries, whose weights are their own norms.
    query_weight_gradient, query_bias_gradient = 0, 0
    for piece in pieces:
        tokens = x[:, piece]
        if len(pieces) == 1:
            query = pooled.queries
        else:
            query = F.linear(tokens, projections.query_weight, projections.query_bias)
        query_heads = query.unflatten(-1, heads)
        energy = scale * torch.linalg.vector_norm(query_heads, dim=-1, dtype=accumulate)
        along = (query_heads.transpose(1, 2) @ (scale * query_gradient).to(dtype).unsqueeze(-1)).squeeze(-1)
        rises = along.transpose(1, 2).to(accumulate) - query_centre.unsqueeze(1)
        # A query of zero has no direction; its norm's derivative is taken as zero.
        turn = torch.where(energy > 0, rises / energy, 0) / pooled.energy.unsqueeze(1)
        pull = energy / pooled.energy.unsqueeze(1)
        gradients = per_token(scale * scale * turn).unsqueeze(-1) * query_heads
        gradients += per_token(scale * pull).unsqueeze(-1) * query_gradient.to(dtype).unsqueeze(1)
        gradients = gradients.flatten(2)
        token_gradient[:, piece] += (gradients @ projections.query_weight) / tokens_power
        query_weight_gradient = query_weight_gradient + gradients.flatten(0, 1).T @ tokens.flatten(0, 1)
        query_bias_gradient = query_bias_gradient + gradients.sum(dim=(0, 1), dtype=accumulate)
    return (
        token_gradient,
        (query_weight_gradient / tokens_power).to(dtype),
        (query_bias_gradient / tokens_power).to(dtype),
        key_weight_gradient.to(dtype),
        key_bias_gradient.to(dtype),
        value_weight_gradient.to(dtype),
        value_bias_gradient.to(dtype),
    )
