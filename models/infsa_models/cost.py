"""What a model costs, from formulas: parameters, memory, FLOPs. Imports no torch.

The harness plans with these numbers (which case fits, how long it takes) and prints them next to measured ones.
:mod:`infsa_models.layer_cost` describes each mechanism's layer; the host around it (:mod:`infsa_models.vit`) is
described here, once. The tests compare every formula with the built model: parameters exactly, FLOPs with
``torch.utils.flop_counter``, peaks with a trace of all live tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from infsa_models.layer_cost import (
    BACKWARD_OVER_FORWARD,
    FLOAT32_BYTES,
    FORMULAS,
    PRECISIONS,
    WITHOUT_HOST_DENSE,
    Layer,
    LayerCost,
    Precision,
)
from infsa_models.registry import BASE_GRID, CONFIGS, EMBED_DIM, MLP_RATIO, NUM_CLASSES, PATCH_SIZE

Phase = Literal["infer", "train"]

CHANNELS = 3
ADAMW_STATES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Cost of one iteration: the forward of one batch, for ``phase="train"`` with the backward.

    Attributes:
        parameters: As built at this resolution.
        base_parameters: The same model at 224 x 224, as the paper reports.
        model_bytes: What stays in memory between iterations: parameters and buffers; in training also the gradients
            and AdamW's two states.
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
    cost = FORMULAS[mechanism, implementation](layer)
    base = FORMULAS[mechanism, implementation](replace(layer, grid=BASE_GRID))
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
) -> Cost:
    """Return the cost of the model that ``build_vit`` builds from the same arguments.

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
    formula, backbone, train = FORMULAS[mechanism, implementation], CONFIGS[config], _is_train(phase)
    layer = Layer(
        embed_dim=backbone.embed_dim,
        num_heads=backbone.num_heads,
        grid=(resolution // PATCH_SIZE, resolution // PATCH_SIZE),
        class_token=True,
        batch_size=batch_size,
        precision=PRECISIONS[precision],
    )
    base_layer = replace(layer, grid=BASE_GRID)
    dense = mechanism not in WITHOUT_HOST_DENSE
    mixer = formula(layer)
    parameters = _vit_parameters(layer, mixer, backbone.depth, dense)
    peak = _train_peak(layer, mixer, backbone.depth, dense) if train else _forward_peak(layer, mixer)
    if layer.precision.autocast:
        # Every weight is cast once and the copy kept to the end of the iteration; the position embedding is not.
        peak += layer.precision.activation_bytes * (parameters - layer.tokens * layer.embed_dim)
    return Cost(
        parameters=parameters,
        base_parameters=_vit_parameters(base_layer, formula(base_layer), backbone.depth, dense),
        model_bytes=_model_bytes(parameters, backbone.depth * mixer.buffer_bytes, layer.precision, train),
        matmul_flops=_vit_flops(layer, mixer, backbone.depth, dense, train),
        peak_activation_bytes=peak,
    )


def _vit_parameters(layer: Layer, mixer: LayerCost, depth: int, dense: bool) -> int:
    dim = layer.embed_dim
    layer_norm = 2 * dim
    mlp = 2 * MLP_RATIO * dim * dim + (MLP_RATIO + 1) * dim
    block = 2 * layer_norm + mixer.parameters + dense * layer.linear + mlp
    patch_embedding = CHANNELS * PATCH_SIZE**2 * dim + dim
    class_token_and_positions = dim + layer.tokens * dim
    pooler_and_head = layer.linear + (dim + 1) * NUM_CLASSES
    return patch_embedding + class_token_and_positions + depth * block + layer_norm + pooler_and_head


def _vit_flops(layer: Layer, mixer: LayerCost, depth: int, dense: bool, train: bool) -> int:
    dim = layer.embed_dim
    patch_embedding = 2 * layer.batch_size * layer.patches * CHANNELS * PATCH_SIZE**2 * dim
    host = depth * (dense + 2 * MLP_RATIO) * layer.linear_flops + 2 * layer.batch_size * dim * (dim + NUM_CLASSES)
    forward = patch_embedding + host + depth * mixer.forward_flops
    # The image has no gradient: one product less in the backward of the patch embedding.
    backward = patch_embedding + BACKWARD_OVER_FORWARD * host + depth * mixer.backward_flops
    return forward + train * backward


def _forward_peak(layer: Layer, mixer: LayerCost) -> int:
    activation = layer.precision.activation_bytes * layer.activation
    residual = layer.precision.parameter_bytes * layer.activation
    in_mlp = 4 * residual + 2 * MLP_RATIO * activation
    in_mixer = 3 * residual + layer.precision.autocast * activation + mixer.forward_peak
    return max(in_mlp, in_mixer)


def _train_peak(layer: Layer, mixer: LayerCost, depth: int, dense: bool) -> int:
    activation = layer.precision.activation_bytes * layer.activation
    residual = layer.precision.parameter_bytes * layer.activation
    # The two residual sums; the inputs of mixer, dense and MLP, the hidden layer before and after GELU.
    block = 2 * residual + (2 + dense + 2 * MLP_RATIO) * activation + mixer.saved
    # The gradients of the residual sum, of the hidden layer and of a weight of the MLP.
    weight = layer.precision.activation_bytes * MLP_RATIO * layer.embed_dim**2
    in_mlp = depth * block + residual + MLP_RATIO * activation + weight
    # The last block's input, its norm and the gradient of the residual sum.
    in_mixer = (depth - 1) * block + 3 * residual + mixer.train_peak
    return max(in_mlp, in_mixer)


def _model_bytes(parameters: int, buffer_bytes: int, precision: Precision, train: bool) -> int:
    parameter_bytes = parameters * precision.parameter_bytes
    gradients_and_states = parameter_bytes + parameters * ADAMW_STATES * FLOAT32_BYTES
    return parameter_bytes + buffer_bytes + train * gradients_and_states


def _is_train(phase: str) -> bool:
    if phase not in get_args(Phase):
        raise ValueError(f"phase {phase!r} is none of {', '.join(get_args(Phase))}")
    return phase == "train"
