"""The relu of kernels: what is no number stays none, as in PyTorch."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def positive(x):
    """``relu(x)`` in the precision of ``x``, one instruction a number."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL).to(x.dtype)
