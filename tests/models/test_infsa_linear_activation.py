"""The activation of Linear-InfSA, which the paper's ablation varies."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from infsa_models.mechanisms.infsa_linear import LinearInfsaAttention, linear_infsa


@pytest.mark.parametrize(("name", "function"), [("relu", F.relu), ("gelu", F.gelu), ("silu", F.silu)])
def test_affinities_go_through_it(name: str, function: object) -> None:
    """Against the formula with the activation put in, in float64."""
    torch.manual_seed(0)
    layer = LinearInfsaAttention(32, 4, grid=(4, 4), activation=name, dtype=torch.float64)
    x = torch.randn(2, 17, 32, dtype=torch.float64)
    query = layer.q_proj(x).unflatten(-1, (4, 8)).transpose(1, 2) * 8**-0.5
    value = layer.v_proj(x).unflatten(-1, (4, 8)).transpose(1, 2)
    energy = query.norm(dim=-1, keepdim=True)
    mean = (energy / (energy.sum(dim=-2, keepdim=True) + 1e-6) * query).sum(dim=-2, keepdim=True)
    affinity = function((query * mean).sum(dim=-1, keepdim=True))  # type: ignore[operator]
    pooled = 0.95 * (affinity * value).sum(dim=-2) / (affinity.sum(dim=-2) + 1e-6)
    expected = layer.out_proj(pooled.flatten(1)).unsqueeze(1).expand_as(x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-8)


def test_relu_is_the_default() -> None:
    torch.manual_seed(0)
    query, value = torch.randn(2, 1, 2, 9, 4), torch.randn(1, 2, 9, 4)
    rho = torch.tensor(0.95)
    assert linear_infsa(query[0], query[1], value, rho).equal(linear_infsa(query[0], query[1], value, rho, torch.relu))
    assert LinearInfsaAttention(32, 4, grid=(4, 4)).activation is torch.relu


def test_an_unknown_one_is_refused() -> None:
    with pytest.raises(KeyError):
        LinearInfsaAttention(32, 4, grid=(4, 4), activation="tanh")
