"""What one mixing layer of ``fast`` costs, from formulas: one function a mechanism. Imports no torch.

Symbols as in :mod:`infsa_models.layer_cost`. Peaks are sums of whole activations that a layer holds to its end (values,
local convolution, result) and of what one piece of the tokens makes on the way; the coefficients follow the layers'
code, and where several results overlap they were read off a trace (``tests/models/test_cost.py`` holds both together).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from infsa_models.layer_cost import (
    AGENT_BIAS_SIDE,
    AGENTS,
    FLOAT32_BYTES,
    LINFORMER_ROWS,
    SOFT_KERNEL_SIZE,
    SOFT_LANDMARK_SIDE,
    SOFT_NEWTON_STEPS,
    Formula,
    Layer,
    LayerCost,
    agent,
    flatten,
    infsa_linear,
    infsa_pure,
    linformer,
    mlla,
    performer,
    soft,
    softmax,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bytes:
    """Bytes as multiples of the sizes that occur: an activation, the same in float32, its conversion to float32
    (nothing where it is float32 already), and the mechanism's own matrix.
    """

    activations: float = 0
    float32: float = 0
    copies: float = 0
    matrices: float = 0

    def of(self, layer: Layer, matrix_bytes: float = 0) -> float:
        return (
            self.activations * layer.activation_bytes
            + self.float32 * layer.float32_bytes
            + self.copies * layer.float32_copy_bytes
            + self.matrices * matrix_bytes
        )


# What is still held of the peak of a whole backward pass where it goes by pieces: a piece's results meet those of
# others only as sums.
PIECE_OF_BACKWARD = 0.8


def _peaks(
    layer: Layer,
    *,
    kept: float,
    forward: _Bytes,
    saved: _Bytes,
    backward: _Bytes,
    kept_in_backward: float,
    saved_of_pieces: float,
    matrix_bytes: float = 0,
) -> dict[str, int]:
    """Return the peaks of a layer that goes by pieces.

    Args:
        kept: activations that are whole to the end of the forward, the result among them.
        forward: all that is alive at the peak where there is one piece, what is kept included.
        saved: what stays for the backward where there is one piece.
        backward: all that is alive at the peak of the backward where there is one piece.
        kept_in_backward: activations that are whole at that peak where there are several pieces.
        saved_of_pieces: activations that stay for the backward then.
    """
    if layer.pieces == 1:
        return {
            "forward_peak": round(forward.of(layer, matrix_bytes)),
            "saved": round(saved.of(layer, matrix_bytes)),
            "train_peak": round(backward.of(layer, matrix_bytes)),
        }
    of_piece = replace(forward, activations=forward.activations - kept).of(layer, matrix_bytes) / layer.pieces
    backward_piece = PIECE_OF_BACKWARD * backward.of(layer, matrix_bytes) / layer.pieces
    # What makes a piece again holds the layer's input; under autocast that is not the copy that products keep.
    held_input = layer.precision.autocast * layer.float32_bytes
    return {
        "forward_peak": round(kept * layer.activation_bytes + of_piece),
        "saved": round(saved_of_pieces * layer.activation_bytes + held_input),
        "train_peak": round(kept_in_backward * layer.activation_bytes + backward_piece),
    }


def _made_again(layer: Layer, made_flops: int) -> int:
    """Return what is computed once more in the backward, as a negative of what the backward spares."""
    return 0 if layer.pieces == 1 else -made_flops


def fast_softmax(layer: Layer) -> LayerCost:
    """A fused kernel: qkv, its result and the output; its backward multiplies five times where two products have
    four.
    """
    activation = layer.activation_bytes
    return replace(
        softmax(layer),
        forward_peak=5 * activation,
        saved=4 * activation + layer.score_bytes,
        train_peak=9 * activation + layer.score_bytes,
        without_gradient_flops=-2 * layer.activation * layer.tokens,
    )


def fast_linformer(layer: Layer) -> LayerCost:
    """A fused kernel over k rows; for N > k the tokens are compressed, not keys and values."""
    rows, activation = LINFORMER_ROWS, layer.activation_bytes
    compressed = 2 * layer.precision.activation_bytes * layer.batch_size * rows * layer.embed_dim
    projected = layer.batch_size * min(layer.tokens, rows)
    return replace(
        linformer(layer),
        forward_flops=2 * layer.linear_flops + 4 * projected * layer.embed_dim**2 + 8 * layer.activation * rows,
        forward_peak=3 * activation + compressed,
        saved=2 * activation + 2 * compressed + layer.score_bytes,
        train_peak=5 * activation + 3 * compressed,
        streamed_forward_peak=activation + 2 * activation // layer.pieces + compressed,
        without_gradient_flops=-2 * layer.activation * rows,
    )


def fast_performer(layer: Layer) -> LayerCost:
    """One float32 matrix N x m a head, of one piece; keys and queries have it one after the other."""
    features = int(layer.head_dim * math.log(layer.head_dim))
    reference = performer(layer)
    peaks = _peaks(
        layer,
        kept=1,
        forward=_Bytes(activations=1, float32=3, matrices=1),
        saved=_Bytes(activations=2, float32=3, copies=1, matrices=2),
        backward=_Bytes(activations=1, float32=3, copies=1, matrices=5),
        kept_in_backward=4,
        saved_of_pieces=0,
        matrix_bytes=layer.score_bytes * features,
    )
    return replace(
        reference,
        **peaks,
        streamed_forward_peak=peaks["forward_peak"],
        without_gradient_flops=4 * layer.activation * features
        + _made_again(layer, reference.forward_flops - layer.linear_flops),
    )


def fast_soft(layer: Layer) -> LayerCost:
    """One float32 matrix N x m a head, kept where there is one piece and made twice where there are several."""
    landmarks = min(SOFT_LANDMARK_SIDE, layer.grid[0]) * min(SOFT_LANDMARK_SIDE, layer.grid[1])
    newton_step = 4 * layer.batch_size * layer.num_heads * landmarks**3
    landmark_product = 2 * layer.batch_size * landmarks**2 * layer.embed_dim
    landmark_queries = 2 * layer.batch_size * landmarks * layer.embed_dim**2
    token_product = 2 * layer.activation * landmarks
    kernel = layer.linear_flops + token_product
    kernels = 1 if layer.pieces == 1 else 2
    forward = (
        2 * layer.linear_flops
        + kernels * kernel
        + 2 * token_product
        + landmark_queries
        + 2 * landmark_product
        + SOFT_NEWTON_STEPS * newton_step
        + layer.depthwise_flops(SOFT_KERNEL_SIZE)
    )
    matrix = layer.score_bytes * landmarks
    few, many = _Bytes(activations=3, float32=4, copies=1, matrices=1), _Bytes(activations=1, float32=2, matrices=4)
    return replace(
        soft(layer),
        forward_flops=forward,
        **_peaks(
            layer,
            kept=3,
            forward=_Bytes(activations=2, float32=2, matrices=1),
            saved=_Bytes(activations=1, float32=2, copies=1, matrices=1),
            backward=max(few, many, key=lambda peak: peak.of(layer, matrix)),
            kept_in_backward=6,
            saved_of_pieces=2,
            matrix_bytes=matrix,
        ),
        without_gradient_flops=(2 * SOFT_NEWTON_STEPS - 1) * newton_step
        + _made_again(layer, 2 * kernel + 2 * token_product),
    )


def fast_flatten(layer: Layer) -> LayerCost:
    """The focused query or key of one piece in float32, beside values, local convolution and result."""
    reference = flatten(layer)
    again = 3 * layer.linear_flops + (4 * layer.head_dim + 2) * layer.activation - layer.linear_flops
    return replace(
        reference,
        **_peaks(
            layer,
            kept=3,
            forward=_Bytes(activations=3 if layer.pieces == 1 else 4, float32=3),
            saved=_Bytes(activations=2, float32=10, copies=2),
            backward=_Bytes(activations=3, float32=15, copies=2),
            kept_in_backward=5.3,
            saved_of_pieces=2,
        ),
        without_gradient_flops=_made_again(layer, again),
    )


def fast_agent(layer: Layer) -> LayerCost:
    """Biases, scores and their softmax of one piece, N x n_a a head each, beside values, local convolution, result."""
    pooled_queries = 2 * layer.batch_size * AGENTS * layer.embed_dim**2
    columns = 2 * layer.num_heads * AGENTS * AGENT_BIAS_SIDE**2 * layer.grid[1]
    biases = 2 * layer.num_heads * AGENTS * AGENT_BIAS_SIDE * layer.patches
    reference = agent(layer)
    matrix_elements = layer.head_tokens * AGENTS
    matrix = layer.precision.activation_bytes * matrix_elements
    # Under autocast the gradients of the biases are in the type of their tables.
    wider = layer.precision.parameter_bytes / layer.precision.activation_bytes - 1
    return replace(
        reference,
        forward_flops=reference.forward_flops + pooled_queries + 2 * (columns + biases),
        buffer_bytes=layer.precision.parameter_bytes * AGENT_BIAS_SIDE * sum(layer.grid),
        **_peaks(
            layer,
            kept=3,
            forward=_Bytes(activations=4.4 if layer.pieces == 1 else 5.9, matrices=3.1 if layer.pieces == 1 else 3.9),
            saved=_Bytes(activations=4, copies=0.5, matrices=2),
            backward=_Bytes(activations=6.4, matrices=4.2 + 1.4 * wider),
            kept_in_backward=6 + wider,
            saved_of_pieces=2,
            matrix_bytes=matrix,
        ),
        without_gradient_flops=_made_again(layer, 2 * layer.linear_flops + 8 * layer.activation * AGENTS + 2 * biases),
    )


def fast_mlla(layer: Layer) -> LayerCost:
    """Query or key of one piece before and after rotation, beside the mixer's value, local convolution and result."""
    reference = mlla(layer)
    again = 3 * layer.linear_flops + (4 * layer.head_dim + 2) * layer.activation
    return replace(
        reference,
        buffer_bytes=FLOAT32_BYTES * layer.embed_dim * sum(layer.grid),
        **_peaks(
            layer,
            kept=3,
            forward=_Bytes(activations=5 if layer.pieces == 1 else 7.2, float32=2.05),
            saved=_Bytes(activations=12, float32=2),
            backward=_Bytes(activations=11.5, float32=6.5),
            kept_in_backward=8.5,
            saved_of_pieces=4,
        ),
        without_gradient_flops=_made_again(layer, again),
    )


def fast_infsa_pure(layer: Layer) -> LayerCost:
    """Tiles of the matrix, queries, keys, values and two results; five products of N x N in the backward, not four."""
    activation = layer.activation_bytes
    scaled_projection = layer.precision.activation_bytes * layer.batch_size * layer.embed_dim**2
    return replace(
        infsa_pure(layer),
        forward_peak=5 * activation + scaled_projection,
        saved=4 * activation + scaled_projection,
        train_peak=8 * activation,
        without_gradient_flops=-2 * layer.activation * layer.tokens,
    )


def fast_infsa_linear(layer: Layer) -> LayerCost:
    """The queries of one piece and a few numbers a token and head; one row of output."""
    reference = infsa_linear(layer)
    activation, scores = layer.activation_bytes, layer.score_bytes
    weight = layer.precision.activation_bytes * layer.embed_dim**2
    # Scores and mean tokens; the pooled query and the context are products with one vector a head.
    per_image = 3 * 2 * layer.batch_size * layer.embed_dim**2
    forward = layer.linear_flops + 4 * layer.head_tokens * layer.embed_dim + 2 * layer.activation + per_image
    is_whole = layer.pieces == 1
    forward_peak = (activation + 4 * scores) // layer.pieces
    return replace(
        reference,
        forward_flops=forward,
        forward_peak=forward_peak,
        streamed_forward_peak=forward_peak,
        saved=activation + 2 * scores if is_whole else 0,
        train_peak=(9 * activation // 2 + 11 * scores + 4 * weight) // layer.pieces + (0 if is_whole else activation),
        without_gradient_flops=2 * layer.activation
        + _made_again(layer, layer.linear_flops + 2 * layer.head_tokens * layer.embed_dim),
    )


FAST_FORMULAS: Mapping[str, Formula] = {
    "softmax": fast_softmax,
    "linformer": fast_linformer,
    "performer": fast_performer,
    "soft": fast_soft,
    "flatten": fast_flatten,
    "agent": fast_agent,
    "mlla": fast_mlla,
    "infsa-pure": fast_infsa_pure,
    "infsa-linear": fast_infsa_linear,
}

# Mixers that give their host one row for all tokens.
POOLED = frozenset({"infsa-linear"})
