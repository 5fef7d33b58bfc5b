"""Start the kernels of Linear-InfSA: the twins of ``pool_tokens`` and its gradient in :mod:`infsa_models.mean_context`.

Three operators of their own, ``infsa::pooled_context`` (inference), ``infsa::pool_tokens`` and
``infsa::pooling_gradients`` (training), for autograd, ``torch.compile``, FLOP counters and tracing of memory.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from infsa_models.kernels import mean_context_steps as steps
from infsa_models.kernels.launching import on_device
from infsa_models.kernels.mean_context_steps import Norm, Sizes, Tokens
from infsa_models.kernels.norm import row_statistics
from infsa_models.mean_context import Pooled, Projections
from infsa_models.pieces import token_pieces


def pooled_context(
    x: Float[Tensor, "batch tokens embed_dim"],
    norm: Norm | None,
    projections: Projections,
    rho_logit: Float[Tensor, ""],
    num_heads: int,
) -> Float[Tensor, "batch embed_dim"]:
    """Return ``rho`` times every head's context, in the precision of the projections; no gradients.

    ``x`` is normalised on being read where there is a ``norm``; it may be of another precision than the projections.
    """
    weight, bias, epsilon = norm or (x.new_empty(0), x.new_empty(0), 0.0)
    context: Tensor = _pooled_context(x, weight, bias, epsilon, *projections, rho_logit, num_heads)
    return context


def pool_tokens(
    x: Float[Tensor, "batch tokens embed_dim"], projections: Projections, num_heads: int, *, keep_queries: bool
) -> Pooled:
    """Return the context of every head, with what its backward pass needs; the queries only with ``keep_queries``."""
    return Pooled(*_pool_tokens(x, *projections, num_heads, keep_queries))


def pooling_gradients(
    x: Float[Tensor, "batch tokens embed_dim"],
    projections: Projections,
    pooled: Pooled,
    gradient: Float[Tensor, "batch heads head_dim"],
) -> tuple[Float[Tensor, ...], ...]:
    """Return the gradients of the tokens and of all six projections from that of the context."""
    return tuple(_pooling_gradients(x, *projections, *pooled[1:], gradient))


def _contiguous(*tensors: Tensor) -> Projections:
    """Return weights and biases as the kernels read them."""
    return Projections(*(tensor.contiguous() for tensor in tensors))


@torch.library.custom_op("infsa::pooled_context", mutates_args=())
def _pooled_context(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    norm_epsilon: float,
    query_weight: Tensor,
    query_bias: Tensor,
    key_weight: Tensor,
    key_bias: Tensor,
    value_weight: Tensor,
    value_bias: Tensor,
    rho_logit: Tensor,
    num_heads: int,
) -> Tensor:
    projections = _contiguous(query_weight, query_bias, key_weight, key_bias, value_weight, value_bias)
    norm = Norm(norm_weight.contiguous(), norm_bias.contiguous(), norm_epsilon) if norm_weight.numel() else None
    x = x if x.stride(-1) == 1 else x.contiguous()
    sizes = Sizes.of(x, num_heads)
    with on_device(x):
        tokens = Tokens(x, norm, row_statistics(x, norm.epsilon) if norm else None)
        weight = steps.score_weight_of(steps.query_sums(tokens, sizes, projections, None), sizes, projections)
        scores = steps.scores_of(tokens, sizes, weight)
        sums = steps.token_sums(tokens, sizes, scores.scores, is_positive=True)
        context = x.new_empty(sizes.batch, sizes.embed_dim, dtype=query_weight.dtype)
        steps.write_context(sums, scores, weight, sizes, projections, context, rho_logit, None)
    return context


@_pooled_context.register_fake
def _(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, norm_epsilon: float, query_weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[2], dtype=query_weight.dtype)


@torch.library.custom_op("infsa::pool_tokens", mutates_args=())
def _pool_tokens(
    x: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    key_weight: Tensor,
    key_bias: Tensor,
    value_weight: Tensor,
    value_bias: Tensor,
    num_heads: int,
    keep_queries: bool,
) -> tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
]:  # the fields of Pooled
    projections = _contiguous(query_weight, query_bias, key_weight, key_bias, value_weight, value_bias)
    x = x if x.stride(-1) == 1 else x.contiguous()
    sizes = Sizes.of(x, num_heads)
    by_image = (sizes.batch, num_heads)
    queries = x.new_empty(x.shape if keep_queries else (0,))
    with on_device(x):
        tokens = Tokens(x, None, None)
        weight = steps.score_weight_of(
            steps.query_sums(tokens, sizes, projections, queries if keep_queries else None), sizes, projections
        )
        scores = steps.scores_of(tokens, sizes, weight)
        pooled = Pooled(
            context=weight.energy.new_empty(*by_image, sizes.head_dim),
            mean_token=weight.energy.new_empty(*by_image, sizes.embed_dim),
            share=weight.energy.new_empty(by_image),
            pooled_query=weight.pooled_query,
            energy=weight.energy,
            score_weight=weight.weight,
            score_bias=weight.bias,
            divisor=weight.energy.new_empty(by_image),
            power=weight.power,
            queries=queries,
            scores=scores.scores,
        )
        of_tokens = steps.token_sums(tokens, sizes, scores.scores, is_positive=True)
        steps.write_context(of_tokens, scores, weight, sizes, projections, pooled.context, None, pooled)
    return pooled


@_pool_tokens.register_fake
def _(x: Tensor, *others: Any) -> Pooled:
    num_heads, keep_queries = others[-2:]
    sizes, by_image = Sizes.of(x, num_heads), (x.shape[0], num_heads)

    def accumulated(*shape: int) -> Tensor:
        return x.new_empty(*shape, dtype=torch.float32)

    return Pooled(
        context=accumulated(*by_image, sizes.head_dim),
        mean_token=accumulated(*by_image, sizes.embed_dim),
        share=accumulated(*by_image),
        pooled_query=accumulated(*by_image, sizes.head_dim),
        energy=accumulated(*by_image),
        score_weight=x.new_empty(*by_image, sizes.embed_dim),
        score_bias=accumulated(sizes.batch, 1, num_heads),
        divisor=accumulated(*by_image),
        power=accumulated(*by_image),
        queries=x.new_empty(x.shape if keep_queries else (0,)),
        scores=x.new_empty(sizes.batch, sizes.tokens, num_heads),
    )


@torch.library.custom_op("infsa::pooling_gradients", mutates_args=())
def _pooling_gradients(
    x: Tensor,
    query_weight: Tensor,
    query_bias: Tensor,
    key_weight: Tensor,
    key_bias: Tensor,
    value_weight: Tensor,
    value_bias: Tensor,
    mean_token: Tensor,
    share: Tensor,
    pooled_query: Tensor,
    energy: Tensor,
    score_weight: Tensor,
    score_bias: Tensor,
    divisor: Tensor,
    power: Tensor,
    queries: Tensor,
    scores: Tensor,
    gradient: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype, num_heads = x.dtype, energy.shape[1]
    sizes = Sizes.of(x, num_heads)
    heads, scale = (num_heads, -1), sizes.scale
    tokens_power = 2.0 ** round(math.log2(sizes.tokens) / 2)
    gradient = gradient.contiguous()

    def over_batch(left: Tensor, right: Tensor) -> Tensor:
        return (left.permute(1, 2, 0) @ right.transpose(0, 1)).flatten(0, 1)

    # The context from the mean token.
    value_weight_gradient = over_batch(gradient, mean_token)
    value_bias_gradient = (gradient * share.unsqueeze(-1)).sum(dim=0).flatten()
    by_head = value_weight.unflatten(0, heads).float()
    mean_token_gradient = (gradient.transpose(0, 1) @ by_head).transpose(0, 1)
    share_gradient = (gradient * value_bias.unflatten(0, heads)).sum(dim=-1)
    centre = (mean_token_gradient * mean_token).sum(dim=-1) + share_gradient * share
    token_factor = mean_token_gradient.to(dtype).contiguous()

    # The mean token from the scores.
    with on_device(x):
        factors, score_bias_gradient = steps.score_gradients(
            x, sizes, token_factor, share_gradient - centre, divisor, scores, tokens_power
        )
        sums = steps.token_sums(Tokens(x, None, None), sizes, factors[..., num_heads:], is_positive=False)
    score_weight_gradient = sums.sum(dim=1) / tokens_power
    token_gradient = torch.empty_like(x, memory_format=torch.contiguous_format)
    matrices = torch.cat([token_factor, score_weight], dim=1)
    torch.baddbmm(token_gradient, factors, matrices, beta=0, alpha=1 / tokens_power, out=token_gradient)

    # The scores from the pooled query.
    key_weight_gradient = over_batch(scale * pooled_query, score_weight_gradient)
    key_bias_gradient = (scale * pooled_query * score_bias_gradient.unsqueeze(-1)).sum(dim=0).flatten()
    key_by_head = key_weight.unflatten(0, heads).float()
    from_weight = (key_by_head @ score_weight_gradient.permute(1, 2, 0)).permute(2, 0, 1)
    from_bias = key_bias.unflatten(0, heads) * score_bias_gradient.unsqueeze(-1)
    pull = scale * power.unsqueeze(-1) * (from_weight + from_bias)
    centre = (pooled_query / power.unsqueeze(-1) * pull).sum(dim=-1)

    # The pooled query from the queries, whose weights are their own norms.
    query_weight_gradient = torch.zeros_like(query_weight, dtype=torch.float32)
    query_bias_gradient = torch.zeros_like(query_bias, dtype=torch.float32)
    pieces = [slice(0, sizes.tokens)] if queries.numel() else token_pieces(sizes.batch, sizes.tokens)
    for piece in pieces:
        tokens = x[:, piece]
        query = queries if queries.numel() else F.linear(tokens, query_weight, query_bias)
        with on_device(x):
            gradients, bias_gradient = steps.query_gradients(query, sizes, pull, centre, energy, tokens_power)
        query_bias_gradient += bias_gradient
        query_weight_gradient += gradients.flatten(0, 1).T @ tokens.flatten(0, 1)
        for image in range(sizes.batch):
            # In its place: the product is added where the other part of the gradient stands.
            token_gradient[image, piece].addmm_(gradients[image], query_weight, alpha=1 / tokens_power)
    return (
        token_gradient,
        (query_weight_gradient / tokens_power).to(dtype),
        (query_bias_gradient / tokens_power).to(dtype),
        key_weight_gradient.to(dtype),
        key_bias_gradient.to(dtype),
        value_weight_gradient.to(dtype),
        value_bias_gradient.to(dtype),
    )


@_pooling_gradients.register_fake
def _(x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in (x, *others[:6]))


@register_flop_formula(torch.ops.infsa.pooled_context)
def _context_flops(x_shape: tuple[int, int, int], *others: Any, **__: object) -> int:
    return _forward_flops(x_shape, num_heads=others[-1])


@register_flop_formula(torch.ops.infsa.pool_tokens)
def _pooling_flops(x_shape: tuple[int, int, int], *others: Any, **__: object) -> int:
    return _forward_flops(x_shape, num_heads=others[-2])


def _forward_flops(x_shape: tuple[int, int, int], num_heads: int) -> int:
    """Queries; scores and sums of tokens; two products of a vector a head with its part of a matrix."""
    batch, tokens, embed_dim = x_shape
    return 2 * batch * embed_dim * (tokens * embed_dim + 2 * tokens * num_heads + 2 * embed_dim)


@register_flop_formula(torch.ops.infsa.pooling_gradients)
def _gradient_flops(x_shape: tuple[int, int, int], *others: Any, **__: object) -> int:
    """Two products with the queries' gradients; four of N x h x D; four of vectors; queries that were not kept."""
    batch, tokens, embed_dim = x_shape
    energy_shape, queries_shape = others[9], others[14]
    num_heads = energy_shape[1]
    products = 2 if math.prod(queries_shape) else 3
    return 2 * batch * embed_dim * (products * tokens * embed_dim + 4 * tokens * num_heads + 4 * embed_dim)
