"""Performer: softmax attention through positive random features (FAVOR+).

Formula, per head of size d, with ``u(t) = Omega t / d^{1/4}``, ``g(t) = |t|^2 / (2 sqrt(d))``, Omega of shape m x d::

    phi_q(t) = m^{-1/2} (exp(u - g - max over features of u) + eps)
    phi_k(t) = m^{-1/2} (exp(u - g - max over tokens and features of u) + eps)
    y        = phi_q (phi_k^T v) / (phi_q . sum_n phi_k)

then ``out = merge(y) Wo^T + bo``. Omega is a buffer of orthogonal blocks, one per layer, shared by the heads and drawn
once; the published redraw every 1000 training steps is left to a training loop.
Cost: time O(N m D), memory O(h N m) with m = int(d ln d). The class token is an ordinary token.
Source: Choromanski et al. 2021 (arXiv 2009.14794); the features and the attention are those of the
``performer-pytorch`` package (lucidrains), run as they are.
Departure: features, sums over tokens and the division run in float32 at least. In pure float16 the package gives NaN
for most tokens (the denominator falls to 2e-6), and it has no guard against autocast here.
Fast: the epsilons leave the sums (``sum (e + eps) v = sum e v + eps sum v``), both factors m^{-1/2} cancel, and
pieces of the tokens have their own maximum, rescaled to the common one when they are added: one pass over keys and
values, one over queries, and no more of the N x m features than one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from performer_pytorch.performer_pytorch import FastAttention
from torch import Tensor, nn

from infsa_models.heads import merge_heads, split_heads
from infsa_models.pieces import joined, made_again, parts_of, token_pieces

EPSILON = 1e-4
GENERALIZED_EPSILON = 1e-3


class PerformerAttention(nn.Module):
    """The package's ``SelfAttention`` with its names: ``to_q``, ``to_k``, ``to_v``, ``to_out``, ``fast_attention``.

    Args:
        nb_features: number of random features m; int(d ln d) by default.
        qkv_bias: biases in the three projections; the package has none by default.
        generalized: features ``relu(u) + 1e-3`` in place of exponentials, the package's ``generalized_attention``.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        grid: tuple[int, int],
        class_token: bool = True,
        nb_features: int | None = None,
        qkv_bias: bool = False,
        generalized: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(embed_dim, embed_dim, bias=qkv_bias, device=device, dtype=dtype)
        self.to_k = nn.Linear(embed_dim, embed_dim, bias=qkv_bias, device=device, dtype=dtype)
        self.to_v = nn.Linear(embed_dim, embed_dim, bias=qkv_bias, device=device, dtype=dtype)
        self.to_out = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        # The orthogonal blocks need a QR decomposition, so real numbers, also when the model is built on meta.
        with torch.device("cpu"):
            fast_attention = Float32FastAttention(
                embed_dim // num_heads, nb_features, generalized_attention=generalized
            )
        target = torch.get_default_device() if device is None else device
        self.fast_attention = fast_attention.to(device=target, dtype=dtype)

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        query = split_heads(self.to_q(x), self.num_heads)
        key = split_heads(self.to_k(x), self.num_heads)
        value = split_heads(self.to_v(x), self.num_heads)
        mixed = self.fast_attention(query, key, value)
        return self.to_out(merge_heads(mixed))


class KeySums(NamedTuple):
    """What tokens leave behind as keys and values, without the epsilon of their features.

    Attributes:
        maximum: of the exponents ``u``, which the features are divided by the exponential of.
        features: their sum over the tokens.
        feature_values: the sum of their products with the values.
        values: the sum of the values.
    """

    maximum: Float[Tensor, "batch 1 heads 1"]
    features: Float[Tensor, "batch heads features"]
    feature_values: Float[Tensor, "batch heads features head_dim"]
    values: Float[Tensor, "batch heads 1 head_dim"]


class FastPerformerAttention(PerformerAttention):
    """The same layer, options, parameters and random features, piece by piece."""

    output_projection: ClassVar[str] = "to_out"

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        pieces = token_pieces(*x.shape[:2])
        parts = parts_of(x, pieces)
        return self._mixed(parts.__getitem__, pieces)

    def forward_streamed(
        self, piece_of: Callable[[slice], Float[Tensor, "batch piece embed_dim"]], pieces: Sequence[slice]
    ) -> Float[Tensor, "batch tokens embed_dim"]:
        """Return the same for tokens that exist one piece at a time; every piece is asked for twice."""
        return self._mixed(lambda index: piece_of(pieces[index]), pieces)

    def _mixed(
        self, part: Callable[[int], Float[Tensor, "batch piece embed_dim"]], pieces: Sequence[slice]
    ) -> Float[Tensor, "batch tokens embed_dim"]:
        tokens, device_type = pieces[-1].stop, self.to_q.weight.device.type
        if len(pieces) == 1:
            sums = self._key_sums(part(0))
        else:
            sums = _added(
                [made_again(lambda index: self._key_sums(part(index)), index) for index in range(len(pieces))]
            )
        epsilon = GENERALIZED_EPSILON if self.fast_attention.generalized_attention else EPSILON
        features = sums.features + epsilon * tokens
        feature_values = sums.feature_values + epsilon * sums.values
        # What a query's own epsilon adds.
        all_features = epsilon * features.sum(dim=-1)[:, None, :, None]
        all_feature_values = epsilon * feature_values.sum(dim=-2)[:, None]

        def read(index: int) -> Tensor:
            query = self.to_q(part(index))
            with torch.autocast(device_type, enabled=False):
                query_features, _ = self._features(query, (-1,))
                by_head = query_features.transpose(1, 2)
                numerator = (by_head @ feature_values).transpose(1, 2) + all_feature_values
                denominator = (by_head @ features.unsqueeze(-1)).transpose(1, 2) + all_features
                mixed = (numerator / denominator).flatten(2).to(query.dtype)
            return self.to_out(mixed)

        return joined(read, pieces)

    def _key_sums(self, x: Float[Tensor, "batch piece embed_dim"]) -> KeySums:
        key, value = self.to_k(x), self.to_v(x)
        with torch.autocast(x.device.type, enabled=False):
            features, maximum = self._features(key, (1, -1))
            by_head = split_heads(value.to(features.dtype), self.num_heads)
            feature_values = features.permute(0, 2, 3, 1) @ by_head
            return KeySums(maximum, features.sum(dim=1), feature_values, by_head.sum(dim=-2, keepdim=True))

    def _features(
        self, x: Float[Tensor, "batch piece embed_dim"], stabilized_over: tuple[int, ...]
    ) -> tuple[Float[Tensor, "batch piece heads features"], Float[Tensor, "batch _ heads 1"]]:
        """Return the features without their epsilon, at least in float32, and the maximum that they are relative to."""
        x = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (self.num_heads, -1))
        head_dim = x.shape[-1]
        random_features: Tensor = self.fast_attention.projection_matrix.to(x.dtype)
        exponents = x @ (random_features.T * head_dim**-0.25)
        maximum = exponents.detach().amax(dim=stabilized_over, keepdim=True)
        if self.fast_attention.generalized_attention:
            return exponents.relu_(), torch.zeros_like(maximum)
        half_squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / (2 * head_dim**0.5)
        # In place, which autograd allows here: the product does not need its result.
        return exponents.sub_(half_squares + maximum).exp_(), maximum


def _added(parts: list[KeySums]) -> KeySums:
    """Return the sums over all parts, relative to the largest of their maxima."""
    maximum = torch.stack([part.maximum for part in parts]).amax(dim=0)
    factors = [torch.exp(part.maximum - maximum)[:, 0] for part in parts]
    scaled = list(zip(factors, parts, strict=True))
    return KeySums(
        maximum,
        torch.stack([factor * part.features for factor, part in scaled]).sum(dim=0),
        torch.stack([factor.unsqueeze(-1) * part.feature_values for factor, part in scaled]).sum(dim=0),
        torch.stack([part.values for part in parts]).sum(dim=0),
    )


class Float32FastAttention(FastAttention):  # type: ignore[misc]  # the package has no types
    """The package's FAVOR+ core, computed in float32 (float64 for float64 input) whatever the precision around it."""

    projection_matrix: Tensor

    def forward(
        self,
        query: Float[Tensor, "batch heads tokens head_dim"],
        key: Float[Tensor, "batch heads tokens head_dim"],
        value: Float[Tensor, "batch heads tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        accumulate = torch.promote_types(query.dtype, torch.float32)
        with torch.autocast(query.device.type, enabled=False):
            mixed = super().forward(query.to(accumulate), key.to(accumulate), value.to(accumulate))
        return mixed.to(value.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Float32FastAttention:
        """Convert as any module does, but keep the random features in float32 at least: rounded they lose
        their orthogonality.
        """
        drawn = self.projection_matrix
        super()._apply(fn, recurse)
        if torch.finfo(self.projection_matrix.dtype).bits < 32:
            self.projection_matrix = drawn.to(self.projection_matrix.device)
        return self
