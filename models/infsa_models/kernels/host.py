"""The host's MLP and its residuals between hand-written kernels; :mod:`infsa_models.host` has the twin."""

from __future__ import annotations

import torch
from jaxtyping import Float
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from infsa_models.kernels.mlp import linear_gelu
from infsa_models.kernels.norm import add_layer_norm_


def add_mlp_(
    x: Float[Tensor, "batch tokens embed_dim"],
    mixed: Float[Tensor, "batch _ embed_dim"],
    norm: nn.LayerNorm,
    mlp: Mlp,
) -> None:
    """Add to ``x``, in place, what the mixer gave (as large, or one row for all) and then ``mlp(norm(x))``.

    Three kernels: the residual with its LayerNorm; the hidden layer with GELU; its product with the second matrix,
    which the library of the vendor adds to ``x`` where that stands. The bias of the second layer goes with the first of
    the three. Everything has the precision of the parameters.
    """
    normal = add_layer_norm_(x, mixed, norm.weight, norm.bias, norm.eps, mlp.fc2.bias)
    hidden = linear_gelu(normal, mlp.fc1.weight, mlp.fc1.bias)
    # A piece of several images is not one matrix.
    pairs = [(x.flatten(0, 1), hidden.flatten(0, 1))] if x.is_contiguous() else zip(x, hidden, strict=True)
    for tokens, of_tokens in pairs:
        # Not addmm_, which counters of FLOPs do not know.
        torch.addmm(tokens, of_tokens, mlp.fc2.weight.T, out=tokens)
