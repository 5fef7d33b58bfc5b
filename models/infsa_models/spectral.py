"""The spectral quantities that InfSA is derived from: Neumann series, absorbing Markov chain, Perron vectors.

Plain functions of matrices; batch dimensions lead. They explain and test the mechanisms and are no part of a forward
pass: every one of them is O(N^2) or O(N^3).

Source: Roffo et al. 2026 (arXiv 2603.00175), "Neumann series" and "absorbing Markov chain"; the exact equations are
those of the modules :mod:`infsa_models.mechanisms.infsa_pure` and :mod:`infsa_models.mechanisms.infsa_linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


def row_normalize(affinity: Float[Tensor, "*batch tokens tokens"]) -> Float[Tensor, "*batch tokens tokens"]:
    """Return ``D^{-1} A`` with D the row sums: the transition matrix of a Markov chain. Rows of zeros stay zero."""
    row_sums = affinity.sum(dim=-1, keepdim=True)
    return affinity / torch.where(row_sums == 0, 1, row_sums)


def neumann_terms(
    operators: Sequence[Float[Tensor, "*batch tokens tokens"]] | Float[Tensor, "layers tokens tokens"],
    features: Float[Tensor, "*batch tokens channels"],
    gamma: float,
) -> Float[Tensor, "layers *batch tokens channels"]:
    """Return the terms ``gamma^t A_t ... A_1 X`` for t = 1 .. L: what a stack of layers adds, newest on the left."""
    terms = []
    term = features
    for operator in operators:
        term = gamma * (operator @ term)
        terms.append(term)
    return torch.stack(terms)


def neumann_partial_sum(
    operators: Sequence[Float[Tensor, "*batch tokens tokens"]] | Float[Tensor, "layers tokens tokens"],
    features: Float[Tensor, "*batch tokens channels"],
    gamma: float,
) -> Float[Tensor, "*batch tokens channels"]:
    """Return ``S_L = sum over t = 1 .. L of gamma^t A_t ... A_1 X``: the depth of a network as a truncated series."""
    return neumann_terms(operators, features, gamma).sum(dim=0)


def neumann_limit(
    operator: Float[Tensor, "*batch tokens tokens"],
    features: Float[Tensor, "*batch tokens channels"],
    gamma: float,
) -> Float[Tensor, "*batch tokens channels"]:
    """Return ``S_inf = ((I - gamma A)^{-1} - I) X``, the sum of the series when every layer has the same matrix."""
    return torch.linalg.solve(_resolvent_matrix(operator, gamma), features) - features


def fundamental_matrix(
    operator: Float[Tensor, "*batch tokens tokens"], gamma: float
) -> Float[Tensor, "*batch tokens tokens"]:
    """Return ``(I - gamma A)^{-1} = I + gamma A + gamma^2 A^2 + ...``.

    For a row-stochastic A (:func:`row_normalize`) it is the fundamental matrix of the absorbing Markov chain that
    stops with probability 1 - gamma at every step: entry (i, j) is the expected number of visits to token j from
    token i, and every row sums to 1 / (1 - gamma).
    """
    return torch.linalg.inv(_resolvent_matrix(operator, gamma))


class Perron(NamedTuple):
    """The dominant eigenpair of a non-negative matrix.

    Attributes:
        vector: of Euclidean norm one, non-negative.
        eigenvalue: the spectral radius.
        residual: ``|A v - lambda v| / lambda``; not small where the iteration has not converged.
    """

    vector: Float[Tensor, "*batch tokens"]
    eigenvalue: Float[Tensor, "*batch"]
    residual: Float[Tensor, "*batch"]


def perron_right(affinity: Float[Tensor, "*batch tokens tokens"], iterations: int = 200) -> Perron:
    """Return the right Perron pair, ``A v = lambda v``, by power iteration from the uniform vector.

    A matrix of zeros gives a vector of zeros and eigenvalue zero.
    """
    tokens = affinity.shape[-1]
    vector = affinity.new_full((*affinity.shape[:-1], 1), tokens**-0.5)
    for _ in range(iterations):
        image = affinity @ vector
        norm = torch.linalg.vector_norm(image, dim=-2, keepdim=True)
        vector = image / torch.where(norm == 0, 1, norm)
    image = affinity @ vector
    eigenvalue = (vector * image).sum(dim=-2, keepdim=True)
    difference = torch.linalg.vector_norm(image - eigenvalue * vector, dim=-2, keepdim=True)
    residual = difference / torch.where(eigenvalue == 0, 1, eigenvalue)
    return Perron(vector.squeeze(-1), eigenvalue[..., 0, 0], residual[..., 0, 0])


def perron_left(affinity: Float[Tensor, "*batch tokens tokens"], iterations: int = 200) -> Perron:
    """Return the left Perron pair, ``A^T u = lambda u``: the one that the weights of Linear-InfSA approximate.

    Those weights are ``relu(w^T A)`` with w the shares of the token energies: one step from the left.
    """
    return perron_right(affinity.transpose(-2, -1), iterations)


def cosine_alignment(
    weights: Float[Tensor, "*batch tokens"], vector: Float[Tensor, "*batch tokens"]
) -> Float[Tensor, "*batch"]:
    """Return the cosine between token weights and an eigenvector, the paper's measure of alignment."""
    return torch.nn.functional.cosine_similarity(weights, vector, dim=-1)


def _resolvent_matrix(
    operator: Float[Tensor, "*batch tokens tokens"], gamma: float
) -> Float[Tensor, "*batch tokens tokens"]:
    identity = torch.eye(operator.shape[-1], device=operator.device, dtype=operator.dtype)
    return identity - gamma * operator
