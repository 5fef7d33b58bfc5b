"""SOFT: attention by a Gaussian kernel, approximated from m landmarks with a Newton inverse; no softmax.

Formula, with one projection for query and key, ``Q = (x Wq) / d^{1/4}``, per head of size d::

    L  = gelu(layernorm(landmarks(Q)))                          m x d, weights shared by the heads
    K1 = exp(-|Q_i - L_a|^2 / 2)        K2 = exp(-|L_a - L_b|^2 / 2)
    Y  = K1 Newton(K2) (K1^T V) + conv(V)                       conv: one c x c kernel per head

then ``out = merge(Y) Wff^T + b``. ``Newton``: P = K2 + I/100, V_0 = 1.8 P / (largest row sum of K2)^2, then 20 times
``V <- 2V - V P V``; its gradient is that of the exact inverse, ``-X^T G X^T``, not of the iterations.
Landmarks are the patch grid of Q averaged to 7 x 7, m = 49 at every resolution, as the authors describe; ``ratio=r``
gives the published strided convolution, with m = n_p / r^2 and therefore quadratic cost.
Cost: time O(N m D + 20 h m^3), memory O(h N m): five N x m tensors while K1 is made.
Class token (the authors' answer, fudan-zvg/SOFT#11): it is among the rows of K1 but not among the landmarks, and
conv(V) passes its value through.
Source: Lu et al. 2021 (arXiv 2110.11945); fudan-zvg/SOFT, ``SoftmaxFreeAttention`` with its pure-torch kernel.
Departures: 49 pooled landmarks by default; the kernels, Newton and their products run in float32 at least: K1^T V
is a sum over all tokens without normalisation, and the distances are differences of large numbers.
Fast: ``K1 (Newton(K2) (K1^T V))``, which multiplies N x m by m x d in place of m x m; landmarks from the averaged
tokens (``pool(x) Wq``); the squared norms are added, not multiplied with ones; conv(V) leaves the layout of the
tokens as it is; no more of the N x m kernel than one piece of the tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from infsa_models.heads import merge_heads, split_heads
from infsa_models.patches import depthwise, image_to_tokens, patches_of, tokens_to_image
from infsa_models.pieces import joined, made_again, parts_of, token_pieces

LANDMARK_SIDE = 7
DIAGONAL = 0.01
NEWTON_START = 1.8


class SoftAttention(nn.Module):
    """SOFT with the official names: ``W_q``, ``W_v``, ``attn.Qlandmark_op``, ``attn.Qnorm_act``, ``attn.conv``, ``ff``.

    Args:
        ratio: kernel and stride of the published landmark convolution; None for 7 x 7 average pooling.
        conv_size: side of the convolution over the values.
        newton_steps: iterations of the inverse.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        grid: tuple[int, int],
        class_token: bool = True,
        ratio: int | None = None,
        conv_size: int = 3,
        newton_steps: int = 20,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.W_q = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.W_v = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.attn = SoftCore(
            embed_dim // num_heads,
            num_heads,
            grid=grid,
            class_token=class_token,
            ratio=ratio,
            conv_size=conv_size,
            newton_steps=newton_steps,
            device=device,
            dtype=dtype,
        )
        self.ff = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        query = split_heads(self.W_q(x), self.num_heads)
        value = split_heads(self.W_v(x), self.num_heads)
        mixed = self.attn(query, value)
        return self.ff(merge_heads(mixed))


class FastSoftAttention(SoftAttention):
    """The same layer, options and parameters, piece by piece."""

    output_projection: ClassVar[str] = "ff"

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        batch, tokens, _ = x.shape
        core, class_tokens = self.attn, int(self.attn.class_token)
        pieces = token_pieces(batch, tokens)
        value = self.W_v(x)
        parts, values = parts_of(x, pieces), parts_of(value, pieces)
        landmarks = self._landmarks(x)
        accumulate = landmarks.dtype

        def token_kernel(index: int) -> Tensor:
            query = self.W_q(parts[index])
            with torch.autocast(x.device.type, enabled=False):
                query = split_heads(query.to(accumulate), self.num_heads) * query_scale
                return squared_exponential(query, landmarks)

        def collect(index: int) -> tuple[Tensor, Tensor | None]:
            kernel = token_kernel(index)
            with torch.autocast(x.device.type, enabled=False):
                collected = kernel.transpose(-2, -1) @ split_heads(values[index].to(accumulate), self.num_heads)
            return collected, kernel if len(pieces) == 1 else None

        query_scale = (x.shape[-1] // self.num_heads) ** -0.25
        if len(pieces) == 1:
            collected, only_kernel = collect(0)
        else:
            of_pieces = [made_again(lambda index: collect(index)[0], index) for index in range(len(pieces))]
            collected, only_kernel = torch.stack(of_pieces).sum(dim=0), None
        with torch.autocast(x.device.type, enabled=False):
            inverse = newton_inverse(squared_exponential(landmarks, landmarks), core.newton_steps)
            collected = inverse @ collected
        local = parts_of(core.convolved_patches(value), [patches_of(piece, class_tokens) for piece in pieces])

        def read(index: int) -> Tensor:
            kernel = token_kernel(index) if only_kernel is None else only_kernel
            with torch.autocast(x.device.type, enabled=False):
                mixed = merge_heads(kernel @ collected).to(value.dtype)
            if index == 0 and class_tokens:
                mixed[:, :1] += values[0][:, :1]
                mixed[:, 1:] += local[0]
            else:
                mixed += local[index]
            return self.ff(mixed)

        return joined(read, pieces)

    def _landmarks(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch heads landmarks head_dim"]:
        """Return the landmarks, at least in float32. An average of queries is the query of the average."""
        core, class_tokens = self.attn, int(self.attn.class_token)
        if isinstance(core.Qlandmark_op, nn.AdaptiveAvgPool2d):
            pooled = core.Qlandmark_op(tokens_to_image(x[:, class_tokens:], core.grid))
            query = split_heads(self.W_q(image_to_tokens(pooled)), self.num_heads)
            query = query / query.shape[-1] ** 0.25
            landmarks = core.Qnorm_act(query.flatten(0, 1)).unflatten(0, query.shape[:2])
        else:
            query = split_heads(self.W_q(x), self.num_heads)
            landmarks = core.landmarks(query / query.shape[-1] ** 0.25)
        return landmarks.to(torch.promote_types(landmarks.dtype, torch.float32))


class SoftCore(nn.Module):
    """Softmax-free attention of given queries (which are also the keys) and values."""

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        *,
        grid: tuple[int, int],
        class_token: bool,
        ratio: int | None,
        conv_size: int,
        newton_steps: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.grid = grid
        self.class_token = class_token
        self.newton_steps = newton_steps
        self.Qlandmark_op: nn.Module
        if ratio is None:
            self.Qlandmark_op = nn.AdaptiveAvgPool2d((min(LANDMARK_SIDE, grid[0]), min(LANDMARK_SIDE, grid[1])))
        else:
            self.Qlandmark_op = nn.Conv2d(
                head_dim, head_dim, ratio, stride=ratio, bias=False, device=device, dtype=dtype
            )
        self.Qnorm_act = nn.Sequential(nn.LayerNorm(head_dim, device=device, dtype=dtype), nn.GELU())
        self.conv = nn.Conv2d(
            num_heads,
            num_heads,
            conv_size,
            padding=conv_size // 2,
            groups=num_heads,
            bias=False,
            device=device,
            dtype=dtype,
        )

    def forward(
        self,
        query: Float[Tensor, "batch heads tokens head_dim"],
        value: Float[Tensor, "batch heads tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        query_scaled = query / query.shape[-1] ** 0.25
        landmarks = self.landmarks(query_scaled)

        accumulate = torch.promote_types(query.dtype, torch.float32)
        with torch.autocast(query.device.type, enabled=False):
            landmarks = landmarks.to(accumulate)
            token_kernel = gaussian_kernel(query_scaled.to(accumulate), landmarks)
            inverse = newton_inverse(gaussian_kernel(landmarks, landmarks), self.newton_steps)
            mixed = (token_kernel @ inverse) @ (token_kernel.transpose(-2, -1) @ value.to(accumulate))
            mixed = mixed.to(value.dtype)
        # In place, as published: at small N this is the peak.
        mixed += self._convolve(value)
        return mixed

    def landmarks(
        self, query: Float[Tensor, "batch heads tokens head_dim"]
    ) -> Float[Tensor, "batch heads landmarks head_dim"]:
        """Return the landmarks of scaled queries: reduced patch grid, layer norm, GELU."""
        patches = query[:, :, int(self.class_token) :]
        images = patches.flatten(0, 1).transpose(1, 2).unflatten(2, self.grid)
        reduced = self.Qlandmark_op(images).flatten(2).transpose(1, 2)
        return self.Qnorm_act(reduced).unflatten(0, query.shape[:2])

    def convolved_patches(
        self, value: Float[Tensor, "batch tokens embed_dim"]
    ) -> Float[Tensor, "batch patches embed_dim"]:
        """Return conv(V) of the patches of merged values, in their layout: each channel with the kernel of its head."""
        head_dim = value.shape[-1] // self.num_heads
        weight = self.conv.weight.repeat_interleave(head_dim, dim=0)
        return depthwise(value[:, int(self.class_token) :], self.grid, weight, None)

    def _convolve(
        self, value: Float[Tensor, "batch heads tokens head_dim"]
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        batch, heads, _, head_dim = value.shape
        patches = value[:, :, int(self.class_token) :]
        # The channels of a head join the batch: they share its kernel.
        images = patches.permute(0, 3, 1, 2).reshape(batch * head_dim, heads, *self.grid)
        convolved = self.conv(images).reshape(batch, head_dim, heads, -1).permute(0, 2, 3, 1)
        return torch.cat([value[:, :, :1], convolved], dim=2) if self.class_token else convolved


def squared_exponential(
    rows: Float[Tensor, "batch heads rows head_dim"], columns: Float[Tensor, "batch heads columns head_dim"]
) -> Float[Tensor, "batch heads rows columns"]:
    """Return ``exp(-|r - c|^2 / 2)``, as ``gaussian_kernel`` does, with one product and no further N x m tensor."""
    half_row_squares = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square() / 2
    half_column_squares = torch.linalg.vector_norm(columns, dim=-1).square().unsqueeze(-2) / 2
    exponents = rows @ columns.transpose(-2, -1)
    # In place, which autograd allows here: neither product nor sums need their results.
    return exponents.sub_(half_row_squares).sub_(half_column_squares).exp_()


def gaussian_kernel(
    rows: Float[Tensor, "batch heads rows head_dim"], columns: Float[Tensor, "batch heads columns head_dim"]
) -> Float[Tensor, "batch heads rows columns"]:
    """Return ``exp(-|r - c|^2 / 2)``; the squared norms are spread by products with ones, as published."""
    row_squares = rows**2 @ torch.ones_like(columns).transpose(-2, -1)
    column_squares = torch.ones_like(rows) @ (columns**2).transpose(-2, -1)
    distances = row_squares + column_squares - 2 * (rows @ columns.transpose(-2, -1))
    return torch.exp(-0.5 * distances)


def newton_inverse(
    kernel: Float[Tensor, "batch heads landmarks landmarks"], steps: int
) -> Float[Tensor, "batch heads landmarks landmarks"]:
    """Return the approximate inverse of ``kernel + I / 100``; the gradient is that of the exact inverse."""
    return _NewtonInverse.apply(kernel, steps)


class _NewtonInverse(torch.autograd.Function):
    """Newton-Schulz iterations whose backward pass skips the iterations."""

    @staticmethod
    def forward(kernel: Tensor, steps: int) -> Tensor:
        identity = torch.eye(kernel.shape[-1], device=kernel.device, dtype=kernel.dtype)
        shifted = kernel + DIAGONAL * identity
        largest_row_sum = kernel.sum(dim=-1).amax(dim=-1)[..., None, None]
        inverse = NEWTON_START / largest_row_sum**2 * shifted
        for _ in range(steps):
            inverse = 2 * inverse - inverse @ shifted @ inverse
        return inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:  # noqa: ARG004  # torch passes it by name
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (inverse,) = ctx.saved_tensors
        transposed = inverse.transpose(-2, -1)
        return -(transposed @ gradient @ transposed), None
