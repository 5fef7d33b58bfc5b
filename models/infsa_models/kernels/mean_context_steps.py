"""Launch the kernels of Linear-InfSA, one function each: what it reads, the buffers of its sums, its grid."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor

from infsa_models.kernels.launching import blocks_of, dividing, kernels_of, power_of_two_from, precision_of
from infsa_models.kernels.norm import Statistics
from infsa_models.kernels.tiles import MAX_SPLITS, PROGRAMS, tile_of
from infsa_models.mean_context import Pooled, Projections

MIN_HEADS = 16
"""The least number of columns that a product can have: heads are padded to it."""

PARTS_AT_ONCE = 64
CHANNELS_AT_ONCE = 16
COLUMNS_AT_ONCE = 256


class Norm(NamedTuple):
    """The LayerNorm that tokens go through on being read."""

    weight: Float[Tensor, " embed_dim"]
    bias: Float[Tensor, " embed_dim"]
    epsilon: float


class Sizes(NamedTuple):
    """What every launch must know of the tokens and heads."""

    batch: int
    tokens: int
    embed_dim: int
    num_heads: int

    @classmethod
    def of(cls, x: Float[Tensor, "batch tokens embed_dim"], num_heads: int) -> Self:
        """Return the sizes of tokens in so many heads."""
        batch, tokens, embed_dim = x.shape
        return cls(batch, tokens, embed_dim, num_heads)

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.embed_dim // self.num_heads

    @property
    def scale(self) -> float:
        """One over the root of these."""
        return self.head_dim**-0.5

    @property
    def padded_heads(self) -> int:
        """Heads as columns of a product."""
        return power_of_two_from(self.num_heads, least=MIN_HEADS)


class Tokens(NamedTuple):
    """Tokens, and how they are normalised on being read."""

    x: Float[Tensor, "batch tokens embed_dim"]
    norm: Norm | None
    statistics: Statistics | None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The first arguments of every kernel that reads tokens; what it will not look at is anything."""
        x, norm, statistics = self
        assert x.stride(-1) == 1
        around = (x, x, x, x)
        if norm is not None and statistics is not None:
            around = (*statistics, norm.weight, norm.bias)
        return x, x.stride(0), x.stride(1), *around


class QuerySums(NamedTuple):
    """Sums over blocks of tokens: of the norms of the queries, and of the queries times their norms."""

    energy_parts: Float[Tensor, "batch parts heads"]
    query_parts: Float[Tensor, "batch parts embed_dim"]


class ScoreWeight(NamedTuple):
    """What the scores are products with, and what it comes from; the names are those of ``Pooled``."""

    pooled_query: Float[Tensor, "batch heads head_dim"]
    energy: Float[Tensor, "batch heads"]
    power: Float[Tensor, "batch heads"]
    weight: Float[Tensor, "batch heads embed_dim"]
    bias: Float[Tensor, "batch 1 heads"]


class Scores(NamedTuple):
    """The scores before their relu, and sums over blocks of tokens after it."""

    scores: Float[Tensor, "batch tokens heads"]
    total_parts: Float[Tensor, "batch parts heads"]


def query_sums(tokens: Tokens, sizes: Sizes, projections: Projections, query: Tensor | None) -> QuerySums:
    """Return the sums over the queries, which are written to ``query`` where there is one."""
    tile = tile_of("query_sums", sizes.head_dim, tokens.x.device)
    columns = max(sizes.head_dim, dividing(tile.columns, sizes.embed_dim))
    parts = blocks_of(sizes.tokens, tile.rows)
    energy_parts = tokens.x.new_empty(sizes.batch, parts, sizes.num_heads, dtype=torch.float32)
    query_parts = tokens.x.new_empty(sizes.batch, parts, sizes.embed_dim, dtype=torch.float32)
    kernels_of("linear_infsa").query_sums_kernel[(sizes.embed_dim // columns * parts, sizes.batch)](
        *tokens.arguments,
        projections.query_weight,
        projections.query_bias,
        energy_parts if query is None else query,
        energy_parts,
        query_parts,
        sizes.tokens,
        EMBED_DIM=sizes.embed_dim,
        HEAD_DIM=sizes.head_dim,
        NORMALISE=tokens.norm is not None,
        KEEP=query is not None,
        PRECISION=precision_of(projections.query_weight.dtype),
        BLOCK_M=tile.rows,
        BLOCK_N=columns,
        BLOCK_K=dividing(tile.inner, sizes.embed_dim),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return QuerySums(energy_parts, query_parts)


def score_weight_of(sums: QuerySums, sizes: Sizes, projections: Projections) -> ScoreWeight:
    """Return what the scores of all tokens are products with."""
    by_image, weight = (sizes.batch, sizes.num_heads), projections.key_weight
    pooled_query = sums.energy_parts.new_empty(*by_image, sizes.head_dim)
    energy, power = (sums.energy_parts.new_empty(by_image) for _ in range(2))
    score_weight = weight.new_empty(*by_image, sizes.embed_dim)
    score_bias = sums.energy_parts.new_empty(sizes.batch, 1, sizes.num_heads)
    columns = dividing(COLUMNS_AT_ONCE, sizes.embed_dim)
    kernels_of("linear_infsa").score_weight_kernel[(sizes.num_heads, sizes.embed_dim // columns, sizes.batch)](
        sums.energy_parts,
        sums.query_parts,
        weight,
        projections.key_bias,
        pooled_query,
        energy,
        power,
        score_weight,
        score_bias,
        sums.energy_parts.shape[1],
        sizes.scale,
        EMBED_DIM=sizes.embed_dim,
        HEAD_DIM=sizes.head_dim,
        SCALED=torch.finfo(weight.dtype).bits < 32,
        BLOCK_P=PARTS_AT_ONCE,
        BLOCK_N=columns,
        num_warps=4,
    )
    return ScoreWeight(pooled_query, energy, power, score_weight, score_bias)


def scores_of(tokens: Tokens, sizes: Sizes, weight: ScoreWeight) -> Scores:
    """Return the scores of all tokens."""
    tile = tile_of("scores", sizes.head_dim, tokens.x.device)
    parts = blocks_of(sizes.tokens, tile.rows)
    scores = weight.weight.new_empty(sizes.batch, sizes.tokens, sizes.num_heads)
    total_parts = weight.energy.new_empty(sizes.batch, parts, sizes.num_heads)
    kernels_of("linear_infsa").scores_kernel[(parts, sizes.batch)](
        *tokens.arguments,
        weight.weight,
        weight.bias,
        scores,
        total_parts,
        sizes.tokens,
        NUM_HEADS=sizes.num_heads,
        EMBED_DIM=sizes.embed_dim,
        NORMALISE=tokens.norm is not None,
        PRECISION=precision_of(scores.dtype),
        HEADS=sizes.padded_heads,
        BLOCK_M=tile.rows,
        BLOCK_K=dividing(tile.inner, sizes.embed_dim),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return Scores(scores, total_parts)


def token_sums(
    tokens: Tokens, sizes: Sizes, factors: Float[Tensor, "batch tokens heads"], *, is_positive: bool
) -> Float[Tensor, "batch splits heads embed_dim"]:
    """Return, for every head, the sums of the tokens times their factors, of which negative ones may be zero."""
    tile = tile_of("token_sums", sizes.head_dim, tokens.x.device)
    columns = dividing(tile.columns, sizes.embed_dim)
    wanted = max(1, min(MAX_SPLITS, PROGRAMS // (sizes.batch * (sizes.embed_dim // columns))))
    per_split = blocks_of(blocks_of(sizes.tokens, wanted), tile.rows) * tile.rows
    splits = blocks_of(sizes.tokens, per_split)
    sums = factors.new_empty(sizes.batch, splits, sizes.num_heads, sizes.embed_dim, dtype=torch.float32)
    kernels_of("linear_infsa").token_sums_kernel[(sizes.embed_dim // columns, splits, sizes.batch)](
        *tokens.arguments,
        factors,
        factors.stride(1),
        sums,
        sizes.tokens,
        per_split,
        NUM_HEADS=sizes.num_heads,
        EMBED_DIM=sizes.embed_dim,
        NORMALISE=tokens.norm is not None,
        POSITIVE=is_positive,
        PRECISION=precision_of(factors.dtype),
        HEADS=sizes.padded_heads,
        BLOCK_T=tile.rows,
        BLOCK_N=columns,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return sums


def write_context(
    sums: Float[Tensor, "batch splits heads embed_dim"],
    scores: Scores,
    weight: ScoreWeight,
    sizes: Sizes,
    projections: Projections,
    context: Tensor,
    rho_logit: Float[Tensor, ""] | None,
    kept: Pooled | None,
) -> None:
    """Write the context, times rho where there is one, and what is ``kept`` of how it came about."""
    nothing = (sums, sums, sums)
    kernels_of("linear_infsa").context_kernel[(sizes.num_heads, sizes.head_dim // CHANNELS_AT_ONCE, sizes.batch)](
        sums,
        scores.total_parts,
        weight.power,
        projections.value_weight,
        projections.value_bias,
        sums if rho_logit is None else rho_logit,
        context,
        *(nothing if kept is None else (kept.mean_token, kept.share, kept.divisor)),
        sums.shape[1],
        scores.total_parts.shape[1],
        EMBED_DIM=sizes.embed_dim,
        HEAD_DIM=sizes.head_dim,
        WITH_RHO=rho_logit is not None,
        KEEP=kept is not None,
        BLOCK_P=PARTS_AT_ONCE,
        BLOCK_S=MAX_SPLITS,
        BLOCK_J=CHANNELS_AT_ONCE,
        BLOCK_K=dividing(COLUMNS_AT_ONCE, sizes.embed_dim),
        num_warps=4,
    )


def score_gradients(
    x: Tensor,
    sizes: Sizes,
    token_factor: Float[Tensor, "batch heads embed_dim"],
    offset: Float[Tensor, "batch heads"],
    divisor: Float[Tensor, "batch heads"],
    scores: Float[Tensor, "batch tokens heads"],
    tokens_power: float,
) -> tuple[Float[Tensor, "batch tokens factors"], Float[Tensor, "batch heads"]]:
    """Return shares and gradients of the scores side by side, times ``tokens_power``, and the gradients' sums."""
    tile = tile_of("score_gradients", sizes.head_dim, x.device)
    parts = blocks_of(sizes.tokens, tile.rows)
    factors = x.new_empty(sizes.batch, sizes.tokens, 2 * sizes.num_heads)
    bias_parts = divisor.new_empty(sizes.batch, parts, sizes.num_heads)
    kernels_of("linear_infsa_gradient").score_gradients_kernel[(parts, sizes.batch)](
        x,
        x.stride(0),
        x.stride(1),
        token_factor,
        offset,
        divisor,
        scores,
        factors,
        bias_parts,
        sizes.tokens,
        tokens_power,
        NUM_HEADS=sizes.num_heads,
        EMBED_DIM=sizes.embed_dim,
        PRECISION=precision_of(x.dtype),
        HEADS=sizes.padded_heads,
        BLOCK_M=tile.rows,
        BLOCK_K=dividing(tile.inner, sizes.embed_dim),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return factors, bias_parts.sum(dim=1) / tokens_power


def query_gradients(
    query: Float[Tensor, "batch piece embed_dim"],
    sizes: Sizes,
    pull: Float[Tensor, "batch heads head_dim"],
    centre: Float[Tensor, "batch heads"],
    energy: Float[Tensor, "batch heads"],
    tokens_power: float,
) -> tuple[Float[Tensor, "batch piece embed_dim"], Float[Tensor, " embed_dim"]]:
    """Return the gradients of some queries, and their sums over these, both times ``tokens_power``."""
    tile = tile_of("query_gradients", sizes.head_dim, query.device)
    columns = max(sizes.head_dim, dividing(tile.columns, sizes.embed_dim))
    parts = blocks_of(query.shape[1], tile.rows)
    gradients = torch.empty_like(query)
    bias_parts = energy.new_empty(sizes.batch, parts, sizes.embed_dim)
    kernels_of("linear_infsa_gradient").query_gradients_kernel[(sizes.embed_dim // columns * parts, sizes.batch)](
        query,
        gradients,
        pull.contiguous(),
        centre,
        energy,
        bias_parts,
        query.shape[1],
        sizes.scale,
        tokens_power,
        EMBED_DIM=sizes.embed_dim,
        HEAD_DIM=sizes.head_dim,
        BLOCK_M=tile.rows,
        BLOCK_N=columns,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return gradients, bias_parts.sum(dim=(0, 1))
