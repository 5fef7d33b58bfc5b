"""What every launch of a kernel needs: its precision, its tile cut to the sizes at hand, its place on a device."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor


def kernels_of(name: str) -> Any:
    """Return the module of kernels ``<name>_kernels``: imported by those who run them, as only these need Triton."""
    return import_module(f"infsa_models.kernels.{name}_kernels")


def blocks_of(length: int, block: int) -> int:
    """Return how many blocks cover ``length``."""
    return -(-length // block)


def precision_of(dtype: torch.dtype) -> str:
    """Return how products are taken: of float32 in float32, whatever tensor cores could do."""
    return "ieee" if dtype == torch.float32 else "tf32"


def dividing(block: int, length: int) -> int:
    """Return the largest power of two up to ``block``, which is one, that divides ``length``."""
    return math.gcd(block, length)


def power_of_two_from(length: int, least: int = 1) -> int:
    """Return the smallest power of two that is no smaller than either."""
    return max(least, 1 << (length - 1).bit_length())


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Return the context in which Triton launches on the device of ``x``."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()
