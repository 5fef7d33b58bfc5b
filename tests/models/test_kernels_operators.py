"""The operators that start hand-written kernels, as torch itself checks operators."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import projections, values
from torch import Tensor

from infsa_models import relu_attention  # noqa: F401 - they register the operators
from infsa_models.kernels import host, mean_context, patches  # noqa: F401

pytest.importorskip("triton", reason="needs Triton")

WIDTH, HEADS, TOKENS = 64, 4, 17


def floats(*shape: int, seed: int = 0) -> Tensor:
    return values(*shape, dtype=torch.float32, seed=seed)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_relu_attention(requires_grad: bool) -> None:
    tensors = [floats(2, TOKENS, WIDTH, seed=seed).requires_grad_(requires_grad) for seed in range(3)]
    torch.library.opcheck(torch.ops.infsa.relu_attention, (*tensors, HEADS, 0.25, "triton"))


@pytest.mark.parametrize("is_normalised", [False, True])
def test_pooled_context(is_normalised: bool) -> None:
    norm = (floats(WIDTH), floats(WIDTH), 1e-6) if is_normalised else (torch.empty(0), torch.empty(0), 0.0)
    of, x = projections(WIDTH, torch.float32), floats(2, TOKENS, WIDTH)
    torch.library.opcheck(torch.ops.infsa.pooled_context, (x, *norm, *of, torch.zeros(()), HEADS))


@pytest.mark.parametrize("keep_queries", [False, True])
def test_pool_tokens_and_its_gradients(keep_queries: bool) -> None:
    of, x = projections(WIDTH, torch.float32), floats(2, TOKENS, WIDTH)
    torch.library.opcheck(torch.ops.infsa.pool_tokens, (x, *of, HEADS, keep_queries))
    pooled = mean_context.pool_tokens(x, of, HEADS, keep_queries=keep_queries)
    torch.library.opcheck(torch.ops.infsa.pooling_gradients, (x, *of, *pooled[1:], torch.ones_like(pooled.context)))


def test_operators_of_the_host() -> None:
    x, bias = floats(2, TOKENS, WIDTH), floats(WIDTH)
    torch.library.opcheck(torch.ops.infsa.add_layer_norm_, (x.clone(), x[:, :1], bias, bias, 1e-6, bias))
    torch.library.opcheck(torch.ops.infsa.linear_gelu, (x, floats(2 * WIDTH, WIDTH), floats(2 * WIDTH)))
    images, weight = floats(2, 3, 32, 48), floats(WIDTH, 3, 16, 16)
    torch.library.opcheck(
        torch.ops.infsa.embed_patches, (images, weight, bias, floats(1, 1, WIDTH), floats(1, 7, WIDTH))
    )
