"""Every kernel through Triton's real compiler and NVIDIA's assembler, for GPUs that are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton")

SHARED_BYTES = {80: 99 * 1024, 90: 227 * 1024}
"""What a program may have, by compute capability (CUDA programming guide): the least of all 8.x, which L4 and RTX have
and for which the code is the same as for A100; H100 and H200.
"""

WITH_PRODUCTS = {
    "query_sums_kernel",
    "scores_kernel",
    "token_sums_kernel",
    "score_gradients_kernel",
    "relu_attention_kernel",
    "affinity_key_gradients_kernel",
    "affinity_query_gradients_kernel",
    "linear_gelu_kernel",
    "embed_patches_kernel",
}


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_kernels_compile_fit_and_keep_their_loops_in_registers(capability: int) -> None:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("compiled_kernels.py"), str(capability)],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "0", "PYTHONWARNINGS": "ignore"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["kernel"] for kernel in kernels} > WITH_PRODUCTS
    for kernel in kernels:
        assert kernel["shared_bytes"] <= SHARED_BYTES[capability], kernel
        assert not kernel["spills_in_loop"], kernel
        assert kernel["atomics"] == 0, kernel
        if kernel["kernel"] in WITH_PRODUCTS:
            assert kernel["tensor_core_instructions"] > 0, kernel
