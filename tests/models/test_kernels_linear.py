"""The Triton kernels of Linear-InfSA against the formula in float64, and against what PyTorch computes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from kernel_cases import (
    RAGGED,
    WIDTHS_AND_HEADS,
    allowed_error,
    error,
    exact,
    gradients,
    mean_context,
    projections,
    values,
)
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("triton", reason="needs Triton")

from infsa_models import pieces
from infsa_models.kernels import mean_context as kernels
from infsa_models.kernels import tiles
from infsa_models.kernels.mean_context_steps import Norm, Sizes, Tokens, token_sums
from infsa_models.mean_context import Projections, pool_tokens
from infsa_models.mean_context_autograd import MeanContext
from infsa_models.relu_attention import relu_attention, relu_attention_backward

DTYPES = [torch.float32, torch.float16]
BOUNDS = {torch.float32: 4e-7, torch.float16: 2.7e-4}
"""What a prototype of these kernels came to, of keys that are the queries and of tokens with a common component, as
trained ones have: most scores are then positive. A head with few has few tokens to average over, and is held to what
PyTorch's kernels come to.
"""

GRADIENT_BOUNDS = {torch.float32: 2e-6, torch.float16: 1.5e-3}
BATCH = 2


lengths = pytest.mark.parametrize("tokens", RAGGED)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16"])
sizes = pytest.mark.parametrize(("width", "num_heads"), WIDTHS_AND_HEADS)


@lengths
@dtypes
@sizes
def test_context_of_normalised_tokens(width: int, num_heads: int, dtype: torch.dtype, tokens: int) -> None:
    of = projections(width, dtype, is_tied=True)
    # Far from normal: a mean and a scale that only LayerNorm takes away.
    x = values(BATCH, tokens, width).mul(3).add(2).to(dtype)
    weight, bias = values(width, seed=7).div(5).add(1).to(dtype), values(width, seed=8).div(5).add(1).to(dtype)
    norm = Norm(weight, bias, 1e-6)
    rho_logit = torch.tensor(1.5, dtype=dtype)

    context = kernels.pooled_context(x, norm, of, rho_logit, num_heads)

    exact_x, exact_weight, exact_bias = exact([x, weight, bias])
    normal = F.layer_norm(exact_x, (width,), exact_weight, exact_bias, 1e-6)
    # The tokens are rounded once normalised: what remains is the kernels' own error.
    right = mean_context(normal.to(dtype).double(), Projections(*exact(of)), num_heads)
    right = torch.sigmoid(rho_logit.double()) * right.flatten(1)
    assert context.dtype == dtype
    assert error(context, right) <= allowed_error(BOUNDS[dtype], right, dtype, tokens)


@lengths
@dtypes
@sizes
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_context_and_what_is_kept_of_it(
    width: int, num_heads: int, dtype: torch.dtype, tokens: int, is_tied: bool
) -> None:
    of, x = projections(width, dtype, is_tied=is_tied), values(BATCH, tokens, width).add(is_tied).to(dtype)
    pooled = kernels.pool_tokens(x, of, num_heads, keep_queries=True)
    exact_of, exact_x = Projections(*exact(of)), x.double()
    right = mean_context(exact_x, exact_of, num_heads)
    in_torch = pool_tokens(lambda piece: x[:, piece], num_heads, [slice(0, tokens)], of)
    allowed = allowed_error(BOUNDS[dtype], right, torch.float32, tokens)
    if not is_tied:
        allowed = max(allowed, error(in_torch.context, right))
    assert error(pooled.context, right) <= allowed
    twin = pool_tokens(lambda piece: exact_x[:, piece], num_heads, [slice(0, tokens)], exact_of)
    # The twin of float64 has no power of two.
    power = pooled.power.double()
    kept = {
        "mean_token": pooled.mean_token,
        "share": pooled.share,
        "pooled_query": pooled.pooled_query / power[..., None],
        "energy": pooled.energy,
        "score_weight": pooled.score_weight / power[..., None],
        "score_bias": pooled.score_bias / power[:, None],
        "divisor": pooled.divisor / power,
        "queries": pooled.queries,
        "scores": pooled.scores / power[:, None],
    }
    for name, ours in kept.items():
        theirs = getattr(twin, name)
        assert ours.shape == theirs.shape, name
        assert error(ours, theirs) <= 2 * allowed, name


GRADIENT_CASES = [
    *itertools.product(RAGGED[:3], DTYPES, [True, False], [True, False]),
    (RAGGED[3], torch.float32, True, True),
    (RAGGED[3], torch.float32, False, False),
    (RAGGED[3], torch.float16, True, True),
]


@pytest.mark.parametrize(("tokens", "dtype", "is_tied", "is_whole"), GRADIENT_CASES)
@sizes
def test_gradients(
    width: int,
    num_heads: int,
    dtype: torch.dtype,
    tokens: int,
    is_tied: bool,
    is_whole: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not is_whole:
        monkeypatch.setattr(pieces, "PIECE_TOKENS", BATCH * tokens // 3 + 1)
    of, x = projections(width, dtype, is_tied=is_tied), values(BATCH, tokens, width).add(0.5).to(dtype)
    inputs = [x, *of[:2], *of[4:]] + ([] if is_tied else list(of[2:4]))
    weight = values(BATCH, num_heads, width // num_heads, seed=9)

    def by_kernels(x: torch.Tensor, *layers: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (MeanContext.apply(num_heads, pieces.token_pieces(*x.shape[:2]), "triton", x, *layers),)

    def by_formula(x: torch.Tensor, *layers: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, value, key = layers[:2], layers[2:4], layers[4:] or layers[:2]
        return (mean_context(x, Projections(*query, *key, *value), num_heads),)

    def by_twin(x: torch.Tensor, *layers: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (MeanContext.apply(num_heads, pieces.token_pieces(*x.shape[:2]), "torch", x, *layers),)

    ours, theirs = gradients(by_kernels, inputs, [weight]), gradients(by_formula, exact(inputs), [weight])
    twins = gradients(by_twin, inputs, [weight])
    largest = max(torch.linalg.vector_norm(gradient).item() for gradient in theirs)
    for name, found, right, twin in zip(("x", "Wq", "bq", "Wv", "bv", "Wk", "bk"), ours, theirs, twins, strict=False):
        assert found.dtype == dtype
        # A single token's context does not depend on its query: its gradient is rounding error in both.
        allowed = GRADIENT_BOUNDS[dtype] * max(torch.linalg.vector_norm(right).item(), largest * (tokens == 1))
        twin_error = torch.linalg.vector_norm(twin.double() - right).item()
        assert torch.linalg.vector_norm(found.double() - right).item() <= max(allowed, 2 * twin_error), name


def test_a_width_and_a_number_of_heads_that_are_no_powers_of_two() -> None:
    width, num_heads, tokens = 192, 12, 197
    of, x = projections(width, torch.float32), values(1, tokens, width, dtype=torch.float32)
    ours = kernels.pool_tokens(x, of, num_heads, keep_queries=True)
    right = mean_context(x.double(), Projections(*exact(of)), num_heads)
    assert error(ours.context, right) <= BOUNDS[torch.float32]
    gradient = values(*ours.context.shape, dtype=torch.float32)
    found = kernels.pooling_gradients(x, of, ours, gradient)

    def by_formula(x: torch.Tensor, *layers: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (mean_context(x, Projections(*layers), num_heads),)

    theirs = gradients(by_formula, exact([x, *of]), [gradient])
    assert all(error(one, right) <= GRADIENT_BOUNDS[torch.float32] for one, right in zip(found, theirs, strict=True))


@dtypes
def test_heads_without_positive_scores_give_zero_and_no_gradient(dtype: torch.dtype) -> None:
    width, num_heads, tokens = 64, 4, 33
    of, x = projections(width, dtype), values(1, tokens, width, dtype=dtype)
    # Every key is minus the pooled query, so that no score is positive.
    query, bias = of.query_weight, torch.ones_like(of.query_bias)
    of = of._replace(query_weight=query / 100, query_bias=bias, key_weight=-query / 100, key_bias=-bias)
    pooled = kernels.pool_tokens(x, of, num_heads, keep_queries=True)
    assert not pooled.scores.relu().any()
    assert not pooled.context.any()
    ours = kernels.pooling_gradients(x, of, pooled, torch.ones_like(pooled.context))
    assert all(torch.isfinite(gradient).all() for gradient in ours)
    assert not ours[0].any()


@pytest.mark.parametrize("factor", [2.0**-12, 2.0**10], ids=["tiny", "huge"])
def test_queries_beyond_the_range_of_float16(factor: float) -> None:
    """Energies whose sum, or scores whose size, float16 could not hold."""
    width, num_heads, tokens = 64, 4, 197
    of, x = projections(width, torch.float16), values(1, tokens, width, dtype=torch.float16)
    of = of._replace(query_weight=of.query_weight * factor, query_bias=of.query_bias * factor)
    context = kernels.pool_tokens(x, of, num_heads, keep_queries=False).context
    right = mean_context(x.double(), Projections(*exact(of)), num_heads)
    assert error(context, right) <= 4 * BOUNDS[torch.float16]


def test_tokens_may_be_part_of_a_larger_tensor() -> None:
    width, num_heads = 64, 4
    of, whole = projections(width, torch.float32), values(2, 40, 2 * width, dtype=torch.float32)
    x = whole[:, 3:, width:]
    ours = kernels.pool_tokens(x, of, num_heads, keep_queries=False).context
    assert torch.equal(ours, kernels.pool_tokens(x.contiguous(), of, num_heads, keep_queries=False).context)


@dtypes
def test_tokens_of_another_precision_than_the_products(dtype: torch.dtype) -> None:
    """As under autocast: float32 tokens, normalised in float32 and then rounded."""
    width, num_heads, tokens = 64, 4, 17
    of, x = projections(width, dtype), values(1, tokens, width, dtype=torch.float32)
    norm = Norm(torch.ones(width), torch.zeros(width), 1e-6)
    context = kernels.pooled_context(x, norm, of, torch.tensor(100.0), num_heads)
    normal = F.layer_norm(x.double(), (width,), eps=1e-6).to(dtype).double()
    right = mean_context(normal, Projections(*exact(of)), num_heads).flatten(1)
    assert context.dtype == dtype
    assert error(context, right) <= allowed_error(BOUNDS[dtype], right, dtype, tokens)


def test_the_same_bits_in_every_run_and_nothing_but_the_result_is_written() -> None:
    width, num_heads, tokens = 64, 4, 197
    of, x = projections(width, torch.float16), values(2, tokens, width, dtype=torch.float16)
    before = x.clone()
    first, second = (kernels.pool_tokens(x, of, num_heads, keep_queries=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    gradient = torch.ones_like(first.context)
    pairs = zip(*(kernels.pooling_gradients(x, of, first, gradient) for _ in range(2)), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert torch.equal(x, before)


@pytest.mark.parametrize("keep_queries", [True, False], ids=["kept", "made-again"])
def test_flops_are_counted_as_those_of_the_twin(keep_queries: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    width, num_heads, tokens = 256, 16, 24
    if not keep_queries:
        monkeypatch.setattr(pieces, "PIECE_TOKENS", 12)
    of, x = projections(width, torch.float32), values(1, tokens, width, dtype=torch.float32)
    counted = {}
    for which in ("torch", "triton"):
        leaf = x.clone().requires_grad_()
        with FlopCounterMode(display=False) as counter:
            context = MeanContext.apply(
                num_heads, pieces.token_pieces(1, tokens), which, leaf, *of[:2], *of[4:], *of[2:4]
            )
            forward = counter.get_total_flops()
            context.sum().backward()
        counted[which] = forward, counter.get_total_flops()
    (forward, whole), (twin_forward, twin_whole) = counted["triton"], counted["torch"]
    assert math.isclose(forward, twin_forward, rel_tol=0.01)
    # The scores of pieces are kept, where the twin makes them again.
    again = 0 if keep_queries else 2 * tokens * width * num_heads
    assert math.isclose(whole, twin_whole - again, rel_tol=0.01)


@pytest.fixture
def _poisoned_memory() -> Iterator[None]:
    """Every buffer is full of NaN before a kernel writes to it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_poisoned_memory")
def test_every_number_is_written() -> None:
    width, num_heads, tokens = 64, 4, 77
    assert torch.isnan(torch.empty(3)).all()
    of, x = projections(width, torch.float32), values(2, tokens, width, dtype=torch.float32)
    pooled = kernels.pool_tokens(x, of, num_heads, keep_queries=True)
    found = kernels.pooling_gradients(x, of, pooled, torch.ones_like(pooled.context))
    context = kernels.pooled_context(
        x, Norm(torch.ones(width), torch.zeros(width), 1e-6), of, torch.zeros(()), num_heads
    )
    mixed, square_sum = relu_attention(x, x, x, num_heads, 0.25, "triton")
    gradients = relu_attention_backward(x, x, x, x, square_sum, num_heads, 0.25, "triton")
    for tensor in (*pooled, *found, context, mixed, square_sum, *gradients):
        assert torch.isfinite(tensor).all()


def test_what_is_no_number_stays_none() -> None:
    """A NaN must not come out as zero, which would look like a result."""
    width, num_heads, tokens = 64, 4, 17
    of, x = projections(width, torch.float16), values(1, tokens, width, dtype=torch.float16)
    of.query_bias[3] = math.nan
    ours = kernels.pool_tokens(x, of, num_heads, keep_queries=False).context
    theirs = pool_tokens(lambda piece: x[:, piece], num_heads, [slice(0, tokens)], of).context
    assert torch.equal(torch.isnan(ours), torch.isnan(theirs))
    assert torch.isnan(ours).any()


@pytest.mark.parametrize(("batch", "splits"), [(1, 16), (16, 8), (130, 1)])
def test_sums_over_tokens_are_split_no_further_than_there_are_programs(
    batch: int, splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each split is one more buffer of a row a head."""
    monkeypatch.setitem(tiles.DEFAULTS, "token_sums", tiles.Tile(rows=1, columns=64))
    x, factors = values(batch, 16, 64, dtype=torch.float32), values(batch, 16, 4, dtype=torch.float32, seed=1)
    sums = token_sums(Tokens(x, None, None), Sizes.of(x, 4), factors, is_positive=False)
    assert sums.shape == (batch, splits, 4, 64)
    assert error(sums.sum(dim=1), factors.double().transpose(1, 2) @ x.double()) <= 1e-6
