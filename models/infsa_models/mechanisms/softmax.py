"""Softmax attention.

Formula, per head of size d:  ``A = softmax(q k^T / sqrt(d)),  y = A v,  out = merge(y) Wo^T + bo``.
Cost: time O(N^2 D), memory O(h N^2) written out (``reference``), O(N D) in tiles (``fast``). The class token is an
ordinary token.
Source: Vaswani et al. 2017; layout of the timm / DeiT ViT (``qkv`` fused, ``proj``).
Departure: timm calls a tiled kernel today; the published latencies are those of the written-out form.
Fast: ``torch.nn.functional.scaled_dot_product_attention``, or xFormers' memory-efficient attention.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.backends import cuda as cuda_backends
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from infsa_models.heads import merge_heads

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "mem-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
AUTO, XFORMERS = "auto", "xformers"


class SoftmaxAttention(nn.Module):
    """Multi-head softmax attention. Parameters are named as in timm: ``qkv``, ``proj``."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        grid: tuple[int, int],
        class_token: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (embed_dim // num_heads) ** -0.5
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, device=device, dtype=dtype)
        self.proj = nn.Linear(embed_dim, embed_dim, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        attention = (query @ key.transpose(-2, -1)) * self.scale
        attention = attention.softmax(dim=-1)
        mixed = merge_heads(attention @ value)
        return self.proj(mixed)


class FastSoftmaxAttention(SoftmaxAttention):
    """Softmax attention through a kernel that never writes N x N.

    Args:
        backend: ``flash``, ``mem-efficient``, ``cudnn``, ``math`` (which writes N x N) or ``xformers``; ``auto`` leaves
            the choice to PyTorch. :attr:`choices` says which one ran.

    Raises:
        ValueError: no such backend.
        NotImplementedError: in ``forward``, with the reason: the backend is missing or cannot take these tensors.
    """

    output_projection: ClassVar[str] = "proj"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        grid: tuple[int, int],
        class_token: bool = True,
        backend: str = AUTO,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, grid=grid, class_token=class_token, device=device, dtype=dtype)
        if backend not in (AUTO, *BACKENDS, XFORMERS):
            raise ValueError(f"backend {backend!r} is none of {', '.join((AUTO, *BACKENDS, XFORMERS))}")
        self.backend = backend
        self.choices: dict[str, str] = {}

    def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]:
        batch, tokens, _ = x.shape
        query, key, value = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).unbind(2)
        if not self.choices and not torch.compiler.is_compiling():
            self.choices = {"backend": self._chosen(query, key, value)}
        if self.backend == XFORMERS:
            return self.proj(xformers_attention(query, key, value).reshape(batch, tokens, -1))
        choice = nullcontext() if self.backend == AUTO else sdpa_kernel(BACKENDS[self.backend])
        with choice:
            mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return self.proj(merge_heads(mixed))

    def _chosen(self, *tensors: Float[Tensor, "batch tokens heads head_dim"]) -> str:
        """Return the backend that will run; raise NotImplementedError where the one asked for cannot."""
        query, key, value = (tensor.transpose(1, 2) for tensor in tensors)
        if self.backend == AUTO:
            chosen = torch._fused_sdp_choice(query, key, value)
            return next((name for name, backend in BACKENDS.items() if backend.value == chosen), str(chosen))
        if self.backend != XFORMERS and (reason := backend_problem(self.backend, query, key, value)):
            raise NotImplementedError(f"backend {self.backend}: {reason}")
        return self.backend


def backend_problem(
    backend: str,
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch heads tokens head_dim"],
    value: Float[Tensor, "batch heads tokens head_dim"],
) -> str | None:
    """Return why a backend of PyTorch cannot take these tensors, in PyTorch's words, or None."""
    if query.device.type != "cuda":
        return None if backend in ("flash", "math") else f"has no kernel for {query.device.type}"
    checks = {
        "flash": cuda_backends.can_use_flash_attention,
        "mem-efficient": cuda_backends.can_use_efficient_attention,
        "cudnn": cuda_backends.can_use_cudnn_attention,
    }
    if backend not in checks:
        return None
    parameters = cuda_backends.SDPAParams(query, key, value, None, 0.0, False, False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if checks[backend](parameters, debug=True):
            return None
    return "; ".join(str(warning.message) for warning in said) or "PyTorch refuses it"


def xformers_attention(
    query: Float[Tensor, "batch tokens heads head_dim"],
    key: Float[Tensor, "batch tokens heads head_dim"],
    value: Float[Tensor, "batch tokens heads head_dim"],
) -> Float[Tensor, "batch tokens heads head_dim"]:
    """Return xFormers' memory-efficient attention.

    Raises:
        NotImplementedError: xFormers is not installed, or has no kernel for these tensors (none for CPUs).
    """
    if query.device.type == "cpu":
        raise NotImplementedError("backend xformers: has no kernel for cpu")
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        raise NotImplementedError(f"backend xformers: {error}") from error
    try:
        mixed: Tensor = memory_efficient_attention(query, key, value)
    except NotImplementedError as error:
        # It lists its kernels, and why it took none of them, over many lines.
        raise NotImplementedError(f"backend xformers: {' '.join(str(error).split())}") from error
    return mixed
