"""Whether the hand-written kernels run here. Imports no Triton."""

from __future__ import annotations

import importlib.util
import os

import torch

from infsa_models.kernels.tiles import origin
from infsa_models.options import KERNELS_VARIABLE

AUTO, TRITON, TORCH = "auto", "triton", "torch"
"""Values of the option ``kernels``: Triton's where they can run, Triton's or nothing, PyTorch's."""

CHOICES = (AUTO, TRITON, TORCH)
MIN_CAPABILITY = (8, 0)
"""The first GPUs with asynchronous copies and bfloat16: Ampere."""

MIN_HEAD_DIM = 16
"""The least that a product of tensor cores can sum over."""
MAX_HEAD_DIM = 128
EMBED_DIM_STEP = 64
"""Rows are read so many channels at a time."""

HAS_TRITON = importlib.util.find_spec("triton") is not None

PRODUCT_DTYPES = (torch.bfloat16, torch.float16)
"""Precisions for which they are written; an interpreter takes others."""


def chosen(kernels: str, embed_dim: int, num_heads: int, device: torch.device, dtype: torch.dtype) -> str:
    """Return which kernels run, ``triton`` or ``torch``, for what was asked for and a layer's sizes.

    Raises:
        NotImplementedError: Triton's were asked for and cannot run, with the reason.
        ValueError: the environment variable INFSA_KERNELS, which says what ``auto`` is, says nothing known.
    """
    if kernels == AUTO:
        kernels = os.environ.get(KERNELS_VARIABLE, AUTO)
    if kernels not in CHOICES:
        raise ValueError(f"{KERNELS_VARIABLE}={kernels} is none of {', '.join(CHOICES)}")
    if kernels == TORCH:
        return TORCH
    reason = problem(embed_dim, num_heads, device, dtype)
    if kernels == AUTO:
        # What interprets them is for tests.
        return TRITON if reason is None and device.type == "cuda" else TORCH
    if reason is not None:
        raise NotImplementedError(f"kernels triton: {reason}")
    return TRITON


def described(kernels: str | None, device: torch.device) -> dict[str, str]:
    """Return what a layer decided, for the record: the ``kernels`` that ran, and where their ``tiles`` come from."""
    if kernels is None:
        return {}
    return {"kernels": kernels, "tiles": origin(device)} if kernels == TRITON else {"kernels": kernels}


def problem(embed_dim: int, num_heads: int, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the kernels cannot run a layer on a device, or None."""
    head_dim = embed_dim // num_heads
    if head_dim & (head_dim - 1) or not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM:
        return f"head dimension {head_dim} is no power of two from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}"
    if embed_dim % EMBED_DIM_STEP:
        return f"width {embed_dim} is no multiple of {EMBED_DIM_STEP}"
    if not HAS_TRITON:
        return "Triton is not installed"
    if device.type == "cpu":
        return None if is_interpreted() else "a CPU runs them in Triton's interpreter only (TRITON_INTERPRET=1)"
    if device.type != "cuda" or torch.version.hip is not None:
        return f"they are written for NVIDIA GPUs, not for {device.type if torch.version.hip is None else 'AMD'}"
    if dtype not in PRODUCT_DTYPES:
        return f"products of {str(dtype).removeprefix('torch.')} have no use for tensor cores"
    # torch.compile knows the properties as constants, and the capability not.
    properties = torch.cuda.get_device_properties(device)
    if (properties.major, properties.minor) < MIN_CAPABILITY:
        return f"compute capability {properties.major}.{properties.minor} is below {'.'.join(map(str, MIN_CAPABILITY))}"
    return None


def is_interpreted() -> bool:
    """Tell whether Triton interprets kernels instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET") == "1"
