"""Start the kernels around LayerNorm; their twins are ``torch.nn.functional.layer_norm`` and an addition."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from infsa_models.kernels.launching import blocks_of, kernels_of, on_device, power_of_two_from

ROW_ELEMENTS = 4096
"""What one program holds: four tokens of width 1024."""


class Statistics(NamedTuple):
    """Of every token: its mean, and one over its standard deviation."""

    mean: Float[Tensor, "batch tokens"]
    rstd: Float[Tensor, "batch tokens"]


def row_statistics(x: Float[Tensor, "batch tokens embed_dim"], epsilon: float) -> Statistics:
    """Return in float32 what LayerNorm needs of every token; ``epsilon`` is added to the variance."""
    batch, tokens, embed_dim = x.shape
    mean, rstd = (torch.empty(batch, tokens, device=x.device, dtype=torch.float32) for _ in range(2))
    columns = power_of_two_from(embed_dim)
    rows = max(1, ROW_ELEMENTS // columns)
    with on_device(x):
        kernels_of("norm").row_statistics_kernel[(blocks_of(tokens, rows), batch)](
            x,
            x.stride(0),
            x.stride(1),
            mean,
            rstd,
            tokens,
            epsilon,
            EMBED_DIM=embed_dim,
            BLOCK_M=rows,
            BLOCK_N=columns,
            num_warps=4,
        )
    return Statistics(mean, rstd)


@torch.library.custom_op("infsa::add_layer_norm_", mutates_args=("x",))
def add_layer_norm_(
    x: Tensor, added: Tensor, weight: Tensor, bias: Tensor, epsilon: float, later_bias: Tensor
) -> Tensor:
    """Add ``added`` and ``later_bias`` to ``x`` in place; return the LayerNorm of ``x + added``.

    ``x`` is (batch, tokens, embed_dim), and ``added`` as large or one row for all tokens; the result has the precision
    of ``weight``.
    """
    batch, tokens, embed_dim = x.shape
    if x.stride(-1) != 1:
        raise ValueError("what is added to in place must have its channels side by side")
    if added.stride(-1) != 1:
        added = added.contiguous()
    normal = torch.empty(x.shape, device=x.device, dtype=weight.dtype)
    columns = power_of_two_from(embed_dim)
    rows = max(1, ROW_ELEMENTS // columns)
    with on_device(x):
        kernels_of("norm").add_layer_norm_kernel[(blocks_of(tokens, rows), batch)](
            x,
            x.stride(0),
            x.stride(1),
            added,
            added.stride(0),
            added.stride(1) if added.shape[1] > 1 else 0,
            weight,
            bias,
            later_bias,
            normal,
            tokens,
            epsilon,
            EMBED_DIM=embed_dim,
            BLOCK_M=rows,
            BLOCK_N=columns,
            num_warps=4,
        )
    return normal


@add_layer_norm_.register_fake
def _(x: Tensor, added: Tensor, weight: Tensor, bias: Tensor, epsilon: float, later_bias: Tensor) -> Tensor:
    return torch.empty(x.shape, device=x.device, dtype=weight.dtype)
