"""The context of every head of Linear-InfSA as one step of autograd, computed by PyTorch's kernels or by Triton's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from infsa_models import mean_context as in_torch
from infsa_models.kernels import mean_context as in_triton
from infsa_models.kernels.support import TRITON
from infsa_models.mean_context import Pooled, Projections


class MeanContext(torch.autograd.Function):
    """``pool_tokens(...).context`` and its gradient, written out: two N x D x D products, nothing kept of size N x D
    beside the tokens but, where they are one piece, the queries.

    Source: the chain rule over the formula of the module, with all sums over tokens taken before any projection.

    ``kernels`` says which compute it: ``torch``, or ``triton`` (:mod:`infsa_models.kernels.mean_context`).

    Called with weight and bias of query and value, and of the key only where that is not the query's: torch.compile
    takes no tensor twice. It has no second derivative, and says so.
    """

    @staticmethod
    def forward(
        ctx: Any, num_heads: int, pieces: Sequence[slice], kernels: str, x: Tensor, *projections: Tensor
    ) -> Tensor:
        if kernels == TRITON:
            pooled = in_triton.pool_tokens(x, _untied(projections), num_heads, keep_queries=len(pieces) == 1)
        else:
            pooled = in_torch.pool_tokens(lambda piece: x[:, piece], num_heads, pieces, _untied(projections))
        ctx.num_heads, ctx.pieces, ctx.kernels, ctx.count = num_heads, pieces, kernels, len(projections)
        ctx.save_for_backward(x, *projections, *pooled[1:])
        return pooled.context

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        projections, pooled = saved[: ctx.count], Pooled(gradient, *saved[ctx.count :])
        with torch.autocast(x.device.type, enabled=False):
            if ctx.kernels == TRITON:
                gradients = in_triton.pooling_gradients(x, _untied(projections), pooled, gradient)
            else:
                gradients = in_torch.pooling_gradients(
                    ctx.num_heads, ctx.pieces, x, _untied(projections), pooled, gradient
                )
        of_tokens, query_weight, query_bias, key_weight, key_bias, *value = gradients
        if ctx.count == TIED_COUNT:
            return None, None, None, of_tokens, query_weight + key_weight, query_bias + key_bias, *value
        return None, None, None, of_tokens, query_weight, query_bias, *value, key_weight, key_bias


TIED_COUNT = 4
"""Tensors of two projections, weight and bias each."""


def _untied(projections: Sequence[Tensor]) -> Projections:
    query, value, key = projections[:2], projections[2:4], projections[TIED_COUNT:] or projections[:2]
    return Projections(*query, *key, *value)
