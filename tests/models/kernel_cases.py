"""What tests of hand-written kernels share: inputs, both functions written out in float64, and how errors are taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from infsa_models.mean_context import EPSILON, Projections

RAGGED = (1, 17, 197, 1025)
"""Numbers of tokens that no tile divides."""

FEW_TOKENS, FEW_TOKENS_FACTOR = 100, 4

WIDTHS_AND_HEADS = [(64, 4), (128, 2)]
"""Head dimensions 16 and 64."""


def values(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Return normal random numbers as ``dtype`` can hold them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def projections(width: int, dtype: torch.dtype, *, is_tied: bool = False) -> Projections:
    """Return weights and biases of the size of trained ones."""
    weights = [values(width, width, seed=seed).div(width**0.5).to(dtype) for seed in (1, 2, 3)]
    biases = [values(width, seed=seed).div(10).to(dtype) for seed in (4, 5, 6)]
    query, key, value = zip(weights, biases, strict=True)
    return Projections(*query, *(query if is_tied else key), *value)


def exact(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the same numbers in float64."""
    return [tensor.double() for tensor in tensors]


def mean_context(x: Tensor, of: Projections, num_heads: int) -> Tensor:
    """Return every head's context as the formula of Linear-InfSA says, (batch, heads, head_dim)."""
    scale = (x.shape[-1] // num_heads) ** -0.5
    query, key, value = (
        F.linear(x, weight, bias).unflatten(-1, (num_heads, -1)) for weight, bias in (of[:2], of[2:4], of[4:6])
    )
    energy = torch.linalg.vector_norm(scale * query, dim=-1, keepdim=True)
    pooled = (energy / (energy.sum(dim=1, keepdim=True) + EPSILON) * scale * query).sum(dim=1, keepdim=True)
    affinity = torch.relu((pooled * scale * key).sum(dim=-1, keepdim=True))
    return (affinity / (affinity.sum(dim=1, keepdim=True) + EPSILON) * value).sum(dim=1)


def relu_attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return ``relu(scale q k^T) v``, merged, and the sums of squares, as the formula of Pure-InfSA says."""
    query, key, value = (tensor.unflatten(-1, (num_heads, -1)).transpose(1, 2) for tensor in (query, key, value))
    affinity = torch.relu(scale * query @ key.transpose(-2, -1))
    return (affinity @ value).transpose(1, 2).flatten(2), affinity.square().sum(dim=(-2, -1))


def allowed_error(bound: float, right: Tensor, dtype: torch.dtype, tokens: int) -> float:
    """Return how far a result in ``dtype`` may be off: ``bound`` before it was rounded, and the rounding itself.

    Bounds are those of prototypes at 197 to 1,025 tokens, where roundings of single tokens average out.
    """
    return math.hypot(bound * (FEW_TOKENS_FACTOR if tokens < FEW_TOKENS else 1), error(right.to(dtype), right))


def error(ours: Tensor, theirs: Tensor) -> float:
    """Return the norm of the difference relative to the norm of what is right, or itself where that is zero."""
    difference = torch.linalg.vector_norm(ours.double() - theirs.double()).item()
    return difference / (torch.linalg.vector_norm(theirs.double()).item() or 1.0)


def gradients(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[Tensor]:
    """Return the gradients of all inputs of a loss that weighs every result differently."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    results = function(*leaves)
    loss = sum((result * weight.to(result.dtype)).sum() for result, weight in zip(results, weights, strict=True))
    assert isinstance(loss, Tensor)
    loss.backward()
    found = [leaf.grad for leaf in leaves]
    assert None not in found
    return [gradient for gradient in found if gradient is not None]
