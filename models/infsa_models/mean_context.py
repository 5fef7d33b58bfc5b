"""The context of every head of Linear-InfSA from the tokens themselves, and its gradient in closed form.

With ``q = x Wq^T + bq`` and ``k``, ``v`` likewise, per head of size d (see
:mod:`infsa_models.mechanisms.infsa_linear`)::

    qbar = sum_i |q_i| q_i / (sqrt(d) (sum_i |q_i| / sqrt(d) + eps)) / sqrt(d)      one pass over the tokens
    U    = Wk^T qbar / sqrt(d)         u = bk . qbar / sqrt(d)                       one row a head
    a_j  = relu(x_j . U + u)                                                         the scores; no keys are made
    xbar = sum_j a_j x_j / (sum_j a_j + eps)                                         a second pass
    y    = Wv xbar + bv sum_j a_j / (sum_j a_j + eps)                                no values are made

Source: the formula of the module with every sum over tokens taken before a projection; linear algebra, no
approximation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-6
MAX_EXPONENT = 15.0


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
        return total, scale * total.unsqueeze(-1) * mean_query, query if is_whole else None

    energies, weighted = [], []
    for piece in pieces:
        total, weighted_sum, maybe_queries = query_sums(piece)
        energies.append(total)
        weighted.append(weighted_sum)
        queries = queries if maybe_queries is None else maybe_queries
    energy = _added(energies) + EPSILON
    pooled_query = _added(weighted) / energy.unsqueeze(-1)
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
    total = _added(totals)
    divisor = total + EPSILON * power
    mean_token = _added(weighted) / divisor.unsqueeze(-1)
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


def _added(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of what the pieces gave."""
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(dim=0)


def _shares(
    weights: Float[Tensor, "batch piece heads"], total: Float[Tensor, "batch heads"]
) -> Float[Tensor, "batch piece heads"]:
    """Return each token's share of the total; zeros where the total is zero.

    Not scaled up: a mean must stay below float16's largest number. Shares of a piece are about 1e-4, and those that are
    subnormal in float16 add up to less than its rounding.
    """
    return weights / total.clamp(min=torch.finfo(total.dtype).tiny).unsqueeze(1)


def _power_of_two(x: Float[Tensor, "batch heads head_dim"]) -> Float[Tensor, "batch heads"]:
    """Return the power of two that brings the largest number of each head to between one and two."""
    largest = x.abs().amax(dim=-1)
    exponent = -torch.log2(largest).floor().clamp(-MAX_EXPONENT, MAX_EXPONENT)
    return torch.exp2(exponent)


def pooling_gradients(
    num_heads: int,
    pieces: Sequence[slice],
    x: Float[Tensor, "batch tokens embed_dim"],
    projections: Projections,
    pooled: Pooled,
    gradient: Float[Tensor, "batch heads head_dim"],
) -> tuple[Float[Tensor, ...], ...]:
    """Return the gradients of the tokens and of all six projections from that of the context."""
    dtype, heads, accumulate = x.dtype, (num_heads, -1), gradient.dtype
    scale = gradient.shape[-1] ** -0.5
    # Factors of single tokens are about 1 / N, or one for a token that dominates: times this both are within float16.
    tokens_power = 2.0 ** round(math.log2(x.shape[1]) / 2)

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
    score_weight_gradient, score_bias_gradient = _added(weight_sums) / tokens_power, _added(bias_sums) / tokens_power

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
    query_weight_sums: list[Tensor] = []
    query_bias_sums: list[Tensor] = []
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
        query_weight_sums.append((gradients.flatten(0, 1).T @ tokens.flatten(0, 1)).to(accumulate))
        query_bias_sums.append(gradients.sum(dim=(0, 1), dtype=accumulate))
    return (
        token_gradient,
        (_added(query_weight_sums) / tokens_power).to(dtype),
        (_added(query_bias_sums) / tokens_power).to(dtype),
        key_weight_gradient.to(dtype),
        key_bias_gradient.to(dtype),
        value_weight_gradient.to(dtype),
        value_bias_gradient.to(dtype),
    )
