"""What one mixing layer costs, from formulas: one function a mechanism. Imports no torch.

Symbols: ``B`` batch, ``N`` tokens with the class token, ``n`` patches, ``D`` width, ``h`` heads, ``d = D / h``;
``E = B N D`` is one activation, ``S = B h N`` one number a token and head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from infsa_models.registry import PIECE_TOKENS

FLOAT32_BYTES = 4
BACKWARD_OVER_FORWARD = 2
"""A product's backward is two products of the same size: the gradients of its two factors."""

# The mechanisms' own sizes, as their classes have them by default.
LINFORMER_ROWS = 256
SOFT_LANDMARK_SIDE = 7
SOFT_NEWTON_STEPS = 20
SOFT_KERNEL_SIZE = 3
FLATTEN_KERNEL_SIZE = 5
AGENTS = 49
AGENT_BIAS_SIDE = 7
AGENT_KERNEL_SIZE = 3
MLLA_KERNEL_SIZE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Bytes of an element; under autocast activations leave products in fewer bytes than parameters have."""

    parameter_bytes: int
    activation_bytes: int

    @property
    def autocast(self) -> bool:
        """Whether weights are cast to the activations' type at every use."""
        return self.parameter_bytes != self.activation_bytes


PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision(parameter_bytes=4, activation_bytes=4),
    "bf16": Precision(parameter_bytes=2, activation_bytes=2),
    "fp16": Precision(parameter_bytes=2, activation_bytes=2),
    "amp-bf16": Precision(parameter_bytes=4, activation_bytes=2),
    "amp-fp16": Precision(parameter_bytes=4, activation_bytes=2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The sizes that a mechanism's formulas see."""

    embed_dim: int
    num_heads: int
    grid: tuple[int, int]
    class_token: bool
    batch_size: int
    precision: Precision

    @property
    def head_dim(self) -> int:
        """``d``."""
        return self.embed_dim // self.num_heads

    @property
    def patches(self) -> int:
        """``n``."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """``N``."""
        return self.patches + self.class_token

    @property
    def activation(self) -> int:
        """``E``: elements of one activation, tokens x width."""
        return self.batch_size * self.tokens * self.embed_dim

    @property
    def activation_bytes(self) -> int:
        """``E`` in the type that projections return."""
        return self.precision.activation_bytes * self.activation

    @property
    def float32_bytes(self) -> int:
        """``E`` in float32."""
        return FLOAT32_BYTES * self.activation

    @property
    def float32_copy_bytes(self) -> int:
        """What converting ``E`` to float32 creates: nothing where it is float32 already."""
        return self.float32_bytes if self.precision.activation_bytes < FLOAT32_BYTES else 0

    @property
    def head_tokens(self) -> int:
        """``S``: one element a token and head."""
        return self.batch_size * self.num_heads * self.tokens

    @property
    def score_bytes(self) -> int:
        """``S`` in float32."""
        return FLOAT32_BYTES * self.head_tokens

    @property
    def pieces(self) -> int:
        """How many pieces ``fast`` takes the tokens in."""
        return math.ceil(self.batch_size * self.tokens / PIECE_TOKENS)

    @property
    def linear(self) -> int:
        """Parameters of a D x D projection with bias."""
        return self.embed_dim * (self.embed_dim + 1)

    @property
    def linear_flops(self) -> int:
        """FLOPs of one D x D projection of all tokens."""
        return 2 * self.activation * self.embed_dim

    def depthwise_flops(self, kernel_size: int) -> int:
        """FLOPs of a depthwise convolution over the patch grid."""
        return 2 * kernel_size**2 * self.batch_size * self.patches * self.embed_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """One mixing layer, without the host's dense.

    Attributes:
        forward_peak: Bytes that the forward creates, at its peak, its input excluded and its output included.
        saved: Bytes that stay for the backward, the layer's input and output excluded.
        train_peak: The same as ``forward_peak`` for forward and backward, gradients of parameters excluded.
        streamed_forward_peak: ``forward_peak`` where a lean host gives the layer its input a piece at a time; None
        where
            the layer wants it whole.
        buffer_bytes: Tensors that are not trained.
        without_gradient_flops: What the backward spares against twice the forward.
    """

    parameters: int
    forward_flops: int
    forward_peak: int
    saved: int
    train_peak: int
    streamed_forward_peak: int | None = None
    buffer_bytes: int = 0
    without_gradient_flops: int = 0

    @property
    def backward_flops(self) -> int:
        """Two products for every one of the forward, less those whose result nothing needs."""
        return BACKWARD_OVER_FORWARD * self.forward_flops - self.without_gradient_flops


Formula: TypeAlias = Callable[[Layer], LayerCost]


def softmax(layer: Layer) -> LayerCost:
    """The scores before and after scaling (or softmax) are alive together, N x N a head each, beside qkv."""
    activation = layer.activation_bytes
    matrix = layer.precision.activation_bytes * layer.head_tokens * layer.tokens
    return LayerCost(
        parameters=4 * layer.linear,
        forward_flops=4 * layer.linear_flops + 4 * layer.activation * layer.tokens,
        forward_peak=max(2 * matrix + 3 * activation, matrix + 5 * activation),
        saved=matrix + 4 * activation,
        train_peak=max(3 * matrix + 4 * activation, matrix + 6 * activation),
    )


def linformer(layer: Layer) -> LayerCost:
    """As softmax, with N x k a head, beside the compressed keys and values; E and F are parameters."""
    rows = LINFORMER_ROWS
    activation = layer.activation_bytes
    matrix = layer.precision.activation_bytes * layer.head_tokens * rows
    compressed = 2 * layer.precision.activation_bytes * layer.batch_size * rows * layer.embed_dim
    return LayerCost(
        parameters=4 * layer.linear - 3 * layer.embed_dim + 2 * layer.tokens * rows,
        # Two compressions, two products with the compressed tokens.
        forward_flops=4 * layer.linear_flops + 8 * layer.activation * rows,
        forward_peak=2 * matrix + 3 * activation + compressed,
        saved=matrix + 4 * activation + compressed,
        train_peak=3 * matrix + 3 * activation + compressed,
    )


def performer(layer: Layer) -> LayerCost:
    """Four float32 matrices N x m a head, while the keys' features are made beside those of the queries."""
    features = int(layer.head_dim * math.log(layer.head_dim))
    activation = layer.activation_bytes
    feature_map = layer.score_bytes * features
    return LayerCost(
        parameters=4 * layer.linear - 3 * layer.embed_dim,
        # Features of queries and keys, state, readout; the denominator is a product with one vector a head.
        forward_flops=4 * layer.linear_flops + (8 * layer.activation + 2 * layer.head_tokens) * features,
        forward_peak=4 * feature_map + 3 * activation + 2 * layer.float32_copy_bytes + layer.score_bytes,
        saved=4 * feature_map + 5 * activation + 2 * layer.score_bytes,
        train_peak=6 * feature_map + 4 * activation + 2 * layer.score_bytes,
        buffer_bytes=FLOAT32_BYTES * features * layer.head_dim,
        # The random features are not trained.
        without_gradient_flops=4 * layer.activation * features,
    )


def soft(layer: Layer) -> LayerCost:
    """Five float32 matrices N x m a head inside the kernel: both squared norms, their sum, the products, doubled."""
    landmarks = min(SOFT_LANDMARK_SIDE, layer.grid[0]) * min(SOFT_LANDMARK_SIDE, layer.grid[1])
    activation, float32, copy = layer.activation_bytes, layer.float32_bytes, layer.float32_copy_bytes
    kernel = layer.score_bytes * landmarks
    newton_step = 4 * layer.batch_size * layer.num_heads * landmarks**3
    landmark_product = 2 * layer.batch_size * landmarks**2 * layer.embed_dim
    token_product = 2 * layer.activation * landmarks
    kernel_times_inverse = 2 * layer.head_tokens * landmarks**2
    return LayerCost(
        parameters=3 * layer.linear + 2 * layer.head_dim + layer.num_heads * SOFT_KERNEL_SIZE**2,
        # A kernel is three products: the dot products and two that spread the squared norms.
        forward_flops=3 * layer.linear_flops
        + 5 * token_product
        + 3 * landmark_product
        + SOFT_NEWTON_STEPS * newton_step
        + kernel_times_inverse
        + layer.depthwise_flops(SOFT_KERNEL_SIZE),
        forward_peak=max(5 * kernel + 3 * activation + copy, kernel + 6 * activation),
        saved=2 * kernel + 4 * activation + float32 + 2 * copy,
        train_peak=max(5 * kernel + 3 * activation + float32 + copy, 2 * kernel + 6 * activation + float32 + copy),
        # The inverse has a backward of two products; the ones that spread the norms have no gradient.
        without_gradient_flops=(2 * SOFT_NEWTON_STEPS - 1) * newton_step + 2 * (token_product + landmark_product),
    )


def flatten(layer: Layer) -> LayerCost:
    """A dozen elementwise results of the size of an activation, in float32; autograd saves most of them."""
    activation, float32, copy = layer.activation_bytes, layer.float32_bytes, layer.float32_copy_bytes
    return LayerCost(
        parameters=4 * layer.linear
        + (1 + layer.tokens) * layer.embed_dim
        + (FLATTEN_KERNEL_SIZE**2 + 1) * layer.head_dim,
        # The state, its readout, and the denominator.
        forward_flops=4 * layer.linear_flops
        + (4 * layer.head_dim + 2) * layer.activation
        + layer.depthwise_flops(FLATTEN_KERNEL_SIZE),
        # Beside qkv and the focused query and key: scaled key and value, or at the end the convolution's results.
        forward_peak=3 * activation + 2 * float32 + max(4 * activation, 2 * float32 + copy + layer.score_bytes),
        saved=4 * activation + 14 * float32 + 2 * layer.score_bytes,
        train_peak=8 * activation + 14 * float32 + 2 * layer.score_bytes,
    )


def agent(layer: Layer) -> LayerCost:
    """The four bias tables repeated, their two sums and both attentions, N x n_a a head each, stay to the end."""
    agents = AGENTS
    activation = layer.activation_bytes
    # Under autocast the bias tables promote the matrices to their own type.
    matrix = layer.precision.parameter_bytes * layer.head_tokens * agents
    tables = 2 * AGENT_BIAS_SIDE**2 + 2 * sum(layer.grid) + 2 * layer.class_token
    return LayerCost(
        parameters=4 * layer.linear + (AGENT_KERNEL_SIZE**2 + 1) * layer.embed_dim + layer.num_heads * agents * tables,
        forward_flops=4 * layer.linear_flops + 8 * layer.activation * agents + layer.depthwise_flops(AGENT_KERNEL_SIZE),
        forward_peak=max(8 * matrix + 6 * activation, 9 * matrix + 3 * activation),
        saved=2 * matrix + 5 * activation,
        train_peak=max(8 * matrix + 7 * activation, 9 * matrix + 4 * activation),
    )


def mlla(layer: Layer) -> LayerCost:
    """Gate, query and key before and after rotation, value; the mixing in float32. The rotations are a buffer."""
    activation, float32 = layer.activation_bytes, layer.float32_bytes
    return LayerCost(
        parameters=5 * layer.linear + 2 * (MLLA_KERNEL_SIZE**2 + 1) * layer.embed_dim,
        # The state, its readout, and the denominator.
        forward_flops=5 * layer.linear_flops
        + (4 * layer.head_dim + 2) * layer.activation
        + 2 * layer.depthwise_flops(MLLA_KERNEL_SIZE),
        forward_peak=9 * activation + 2 * float32 + layer.score_bytes,
        saved=12 * activation + 2 * float32 + 2 * layer.score_bytes,
        train_peak=15 * activation + 2 * float32 + 2 * layer.score_bytes,
        buffer_bytes=FLOAT32_BYTES * layer.patches * layer.embed_dim,
    )


def infsa_pure(layer: Layer) -> LayerCost:
    """The matrix before and after normalisation, N x N a head each, beside q, k, v and scaled q, k."""
    activation = layer.activation_bytes
    matrix = layer.precision.activation_bytes * layer.head_tokens * layer.tokens
    return LayerCost(
        parameters=4 * layer.linear + 1,
        forward_flops=4 * layer.linear_flops + 4 * layer.activation * layer.tokens,
        forward_peak=2 * matrix + 5 * activation,
        saved=3 * matrix + 6 * activation,
        train_peak=5 * matrix + 3 * activation,
    )


def infsa_linear(layer: Layer) -> LayerCost:
    """Nothing larger than an activation: query, value, a scaled copy, the output; scores are float32."""
    activation = layer.activation_bytes
    return LayerCost(
        parameters=3 * layer.linear + 1,
        # Two vectors times all tokens: the pooled query, and its product with every key.
        forward_flops=3 * layer.linear_flops + 4 * layer.activation,
        forward_peak=4 * activation,
        saved=2 * activation + 4 * layer.score_bytes,
        train_peak=5 * activation + 4 * layer.score_bytes,
    )


FORMULAS: Mapping[str, Formula] = {
    "softmax": softmax,
    "linformer": linformer,
    "performer": performer,
    "soft": soft,
    "flatten": flatten,
    "agent": agent,
    "mlla": mlla,
    "infsa-pure": infsa_pure,
    "infsa-linear": infsa_linear,
}

# Mixers whose own output projection takes the place of the host's dense.
WITHOUT_HOST_DENSE = frozenset({"mlla"})
