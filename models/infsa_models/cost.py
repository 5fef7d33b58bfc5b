"""What a model costs, from formulas: parameters, memory, FLOPs. Imports no torch.

The harness plans with these numbers (which case fits, how long it takes) and prints them next to measured ones.
:mod:`infsa_models.layer_cost` describes each mechanism's layer; the host around it (:mod:`infsa_models.vit`) is
described here, once. The tests compare every formula with the built model: parameters exactly, FLOPs with
``torch.utils.flop_counter``, peaks with a trace of all live tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from infsa_models.fast_layer_cost import FAST_FORMULAS, POOLED
from infsa_models.layer_cost import (
    BACKWARD_OVER_FORWARD,
    FLOAT32_BYTES,
    FORMULAS,
    PRECISIONS,
    WITHOUT_HOST_DENSE,
    Formula,
    Layer,
    LayerCost,
    Precision,
)
from infsa_models.registry import BASE_GRID, CONFIGS, EMBED_DIM, LEAN_TOKENS, MLP_RATIO, NUM_CLASSES, PATCH_SIZE

Phase = Literal["infer", "train"]

CHANNELS = 3
ADAMW_STATES = 2

_IMPLEMENTATIONS: Mapping[str, Mapping[str, Formula]] = {"reference": FORMULAS, "fast": FAST_FORMULAS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Cost of one iteration: the forward of one batch, for ``phase="train"`` with the backward.

    Attributes:
        parameters: As built at this resolution, before anything is folded.
        base_parameters: The same model at 224 x 224, as the paper reports.
        model_bytes: What stays in memory between iterations: parameters and buffers, in the inference of ``fast`` with
            the host's dense folded away; in training also the gradients and AdamW's two states.
        matmul_flops: Of products and convolutions, a multiply-add being 2, as ``torch.utils.flop_counter`` counts
            (except that it counts the weight gradient of a depthwise convolution as that of a dense one).
        peak_activation_bytes: Peak of what one iteration creates on top of model and input, operators' private
            scratch memory excluded. In training the gradients are counted in ``model_bytes``, not here. An estimate
            for sizing: within 15 % of a trace in inference, 25 % in training; under autocast coarser, and as on a
            CPU, whose softmax stays in half precision.
    """

    parameters: int
    base_parameters: int
    model_bytes: int
    matmul_flops: int
    peak_activation_bytes: int


def attention_cost(
    mechanism: str,
    *,
    grid: tuple[int, int],
    num_heads: int,
    embed_dim: int = EMBED_DIM,
    class_token: bool = True,
    implementation: str = "reference",
    batch_size: int = 1,
    phase: str = "infer",
    precision: str = "fp32",
) -> Cost:
    """Return the cost of one mixing layer, without the host's dense.

    Raises:
        KeyError: no formulas for the mechanism or implementation, or unknown precision.
    """
    layer = Layer(
        embed_dim=embed_dim,
        num_heads=num_heads,
        grid=grid,
        class_token=class_token,
        batch_size=batch_size,
        precision=PRECISIONS[precision],
    )
    formula = _IMPLEMENTATIONS[implementation][mechanism]
    cost, base = formula(layer), formula(replace(layer, grid=BASE_GRID))
    train = _is_train(phase)
    return Cost(
        parameters=cost.parameters,
        base_parameters=base.parameters,
        model_bytes=_model_bytes(cost.parameters, cost.buffer_bytes, layer.precision, train),
        matmul_flops=cost.forward_flops + train * cost.backward_flops,
        peak_activation_bytes=cost.train_peak if train else cost.forward_peak,
    )


def vit_cost(
    mechanism: str,
    config: str,
    resolution: int,
    *,
    implementation: str = "reference",
    batch_size: int = 1,
    phase: str = "infer",
    precision: str = "fp32",
    cls_prune: bool = False,
) -> Cost:
    """Return the cost of the model that ``build_vit`` builds from the same arguments, folded for inference.

    The peak of a forward is in a block's MLP (the block's input, the tokens before the MLP, their norm, the hidden
    layer before and after GELU; timm also keeps the first block's input) or in its mixer. The peak of a training
    iteration is at the last block, when all blocks have saved what their backward needs: in the backward of the MLP,
    or in the mixer's.

    Raises:
        KeyError: no formulas for the mechanism or implementation (third-party ones), unknown config or precision.
        ValueError: resolution is not a positive multiple of the patch size, or unknown phase.
    """
    if resolution <= 0 or resolution % PATCH_SIZE:
        raise ValueError(f"resolution {resolution} is not a positive multiple of {PATCH_SIZE}")
    formula, backbone, train = _IMPLEMENTATIONS[implementation][mechanism], CONFIGS[config], _is_train(phase)
    layer = Layer(
        embed_dim=backbone.embed_dim,
        num_heads=backbone.num_heads,
        grid=(resolution // PATCH_SIZE, resolution // PATCH_SIZE),
        class_token=True,
        batch_size=batch_size,
        precision=PRECISIONS[precision],
    )
    base_layer = replace(layer, grid=BASE_GRID)
    mixer = formula(layer)
    is_fast = implementation == "fast"
    host = _Host(
        depth=backbone.depth,
        dense=mechanism not in WITHOUT_HOST_DENSE,
        folded=is_fast and not train,
        pooled=is_fast and mechanism in POOLED,
        lean=is_fast and batch_size * layer.tokens >= LEAN_TOKENS,
        cls_prune=cls_prune,
    )
    parameters = _vit_parameters(layer, mixer, host)
    peak = _train_peak(layer, mixer, host) if train else _forward_peak(layer, mixer, host)
    kept_parameters = parameters - host.depth * layer.linear * (host.dense and host.folded)
    if layer.precision.autocast:
        # Every weight is cast once and the copy kept to the end of the iteration; the position embedding is not.
        peak += layer.precision.activation_bytes * (kept_parameters - layer.tokens * layer.embed_dim)
    return Cost(
        parameters=parameters,
        base_parameters=_vit_parameters(base_layer, formula(base_layer), host),
        model_bytes=_model_bytes(kept_parameters, backbone.depth * mixer.buffer_bytes, layer.precision, train),
        matmul_flops=_vit_flops(layer, mixer, host, train),
        peak_activation_bytes=peak,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Host:
    """What surrounds the mixers.

    Attributes:
        dense: whether a dense follows every mixer.
        folded: whether it is multiplied into the mixer's output projection.
        pooled: whether mixers return one row for all tokens.
        lean: whether the host works in place (inference) or makes its MLPs again (training), piece by piece.
        cls_prune: whether the last MLP is for the class token only.
    """

    depth: int
    dense: bool
    folded: bool
    pooled: bool
    lean: bool
    cls_prune: bool


def _vit_parameters(layer: Layer, mixer: LayerCost, host: _Host) -> int:
    dim = layer.embed_dim
    layer_norm = 2 * dim
    mlp = 2 * MLP_RATIO * dim * dim + (MLP_RATIO + 1) * dim
    block = 2 * layer_norm + mixer.parameters + host.dense * layer.linear + mlp
    patch_embedding = CHANNELS * PATCH_SIZE**2 * dim + dim
    class_token_and_positions = dim + layer.tokens * dim
    pooler_and_head = layer.linear + (dim + 1) * NUM_CLASSES
    return patch_embedding + class_token_and_positions + host.depth * block + layer_norm + pooler_and_head


def _vit_flops(layer: Layer, mixer: LayerCost, host: _Host, train: bool) -> int:
    dim = layer.embed_dim
    patch_embedding = 2 * layer.batch_size * layer.patches * CHANNELS * PATCH_SIZE**2 * dim
    linear_of_a_row = 2 * layer.batch_size * dim * dim
    dense = (linear_of_a_row if host.pooled else layer.linear_flops) * (host.dense and not host.folded)
    last_mlp = 2 * MLP_RATIO * (linear_of_a_row if host.cls_prune else layer.linear_flops)
    mlps = (host.depth - 1) * 2 * MLP_RATIO * layer.linear_flops + last_mlp
    rest = host.depth * dense + mlps + linear_of_a_row + 2 * layer.batch_size * dim * NUM_CLASSES
    forward = patch_embedding + rest + host.depth * mixer.forward_flops
    # The image has no gradient: one product less in the backward of the patch embedding. A lean host makes the hidden
    # layers again: the first of an MLP's two products.
    backward = (
        patch_embedding + BACKWARD_OVER_FORWARD * rest + host.depth * mixer.backward_flops + host.lean * mlps // 2
    )
    return forward + train * backward


def _forward_peak(layer: Layer, mixer: LayerCost, host: _Host) -> int:
    activation = layer.precision.activation_bytes * layer.activation
    residual = layer.precision.parameter_bytes * layer.activation
    if host.lean:
        # The tokens; beside them a piece of the MLP, or the mixer with its input.
        in_mlp = residual + (residual + 2 * MLP_RATIO * activation) // layer.pieces
        mixer_input = residual + layer.precision.autocast * activation
        if mixer.streamed_forward_peak is None:
            in_mixer = residual + mixer_input + mixer.forward_peak
        else:
            in_mixer = residual + mixer_input // layer.pieces + mixer.streamed_forward_peak
        return max(in_mlp, in_mixer)
    in_mlp = 4 * residual + 2 * MLP_RATIO * activation
    in_mixer = 3 * residual + layer.precision.autocast * activation + mixer.forward_peak
    return max(in_mlp, in_mixer)


def _train_peak(layer: Layer, mixer: LayerCost, host: _Host) -> int:
    activation = layer.precision.activation_bytes * layer.activation
    residual = layer.precision.parameter_bytes * layer.activation
    dense = host.dense and not host.pooled
    # The two residual sums; the inputs of mixer and dense; of the MLP the input, the hidden layer before and after
    # GELU.
    mlp = 0 if host.lean else (1 + 2 * MLP_RATIO) * activation
    block = 2 * residual + (1 + dense) * activation + mlp + mixer.saved
    # The gradients of the residual sum, of the hidden layer and of a weight of the MLP.
    weight = layer.precision.activation_bytes * MLP_RATIO * layer.embed_dim**2
    hidden = MLP_RATIO * activation
    if host.lean:
        hidden = residual + (1 + 3 * MLP_RATIO) * activation // layer.pieces
    in_mlp = host.depth * block + residual + hidden + weight
    # The last block's input, its norm and the gradient of the residual sum.
    in_mixer = (host.depth - 1) * block + 3 * residual + mixer.train_peak
    return max(in_mlp, in_mixer)


def _model_bytes(parameters: int, buffer_bytes: int, precision: Precision, train: bool) -> int:
    parameter_bytes = parameters * precision.parameter_bytes
    gradients_and_states = parameter_bytes + parameters * ADAMW_STATES * FLOAT32_BYTES
    return parameter_bytes + buffer_bytes + train * gradients_and_states


def _is_train(phase: str) -> bool:
    if phase not in get_args(Phase):
        raise ValueError(f"phase {phase!r} is none of {', '.join(get_args(Phase))}")
    return phase == "train"
