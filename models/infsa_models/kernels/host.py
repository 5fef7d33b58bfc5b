"""The host's MLP and its residuals between hand-written kernels; :mod:`infsa_models.host` has the twin."""

from __future__ import annotations

import torch
from jaxtyping import Float
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block
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
    weight = mlp.fc2.weight.T
    # Not addmm_, which counters of FLOPs do not know.
    if x.is_contiguous():
        rows = x.flatten(0, 1)
        torch.addmm(rows, hidden.flatten(0, 1), weight, out=rows)
    elif x.shape[1] == 1:
        rows = x[:, 0]
        torch.addmm(rows, hidden[:, 0], weight, out=rows)
    else:
        torch.baddbmm(x, hidden, weight.expand(len(x), -1, -1), out=x)


def is_plain(*modules: nn.Module) -> bool:
    """Tell whether modules do what their types say: nobody waits for their calls, or hooked something on."""
    return not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def takes(block: Block) -> bool:
    """Tell whether :func:`add_mlp_` computes what a block would."""
    norm, mlp = block.norm2, block.mlp
    if type(mlp) is not Mlp or type(mlp.act) is not nn.GELU or mlp.act.approximate != "none":
        return False
    if not (isinstance(norm, nn.LayerNorm) and type(mlp.fc1) is nn.Linear and type(mlp.fc2) is nn.Linear):
        return False
    if mlp.fc1.bias is None or mlp.fc2.bias is None or norm.weight is None or norm.bias is None:
        return False
    if block.training and any(drop.p > 0 for drop in (mlp.drop1, mlp.drop2)):
        return False
    return isinstance(mlp.norm, nn.Identity) and is_plain(block, norm, mlp, mlp.fc1, mlp.act, mlp.fc2)
