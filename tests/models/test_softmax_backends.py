"""The kernels of softmax: which one runs, and why one cannot."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from infsa_models.mechanisms.softmax import FastSoftmaxAttention, SoftmaxAttention, xformers_attention

ON_A_CPU = ("auto", "flash", "math")


def layers(backend: str) -> tuple[nn.Module, FastSoftmaxAttention]:
    torch.manual_seed(0)
    reference = SoftmaxAttention(64, 4, grid=(6, 10))
    fast = FastSoftmaxAttention(64, 4, grid=(6, 10), backend=backend)
    fast.load_state_dict(reference.state_dict())
    return reference, fast


@pytest.mark.parametrize("backend", ON_A_CPU)
def test_backends_of_a_cpu(backend: str) -> None:
    reference, fast = layers(backend)
    x = torch.randn(2, 61, 64)
    assert fast.choices == {}
    with torch.no_grad():
        torch.testing.assert_close(fast(x), reference(x), rtol=1e-5, atol=1e-6)
    assert fast.choices == {"backend": {"auto": "flash"}.get(backend, backend)}


@pytest.mark.parametrize("backend", ["mem-efficient", "cudnn"])
def test_backends_that_a_cpu_lacks(backend: str) -> None:
    _, fast = layers(backend)
    with torch.no_grad(), pytest.raises(NotImplementedError, match=f"backend {backend}: has no kernel for cpu"):
        fast(torch.randn(2, 61, 64))


def test_xformers_has_no_kernel_for_cpus() -> None:
    _, fast = layers("xformers")
    with torch.no_grad(), pytest.raises(NotImplementedError, match="backend xformers: has no kernel for cpu"):
        fast(torch.randn(2, 61, 64))


def test_xformers_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that has kernels: here the meta device stands for one, and an import that fails for none."""
    monkeypatch.setitem(__import__("sys").modules, "xformers.ops", None)
    tensors = torch.empty(3, 2, 61, 4, 16, device="meta").unbind()
    with pytest.raises(NotImplementedError, match="backend xformers"):
        xformers_attention(*tensors)


def test_an_unknown_backend() -> None:
    with pytest.raises(ValueError, match="none of auto, flash"):
        FastSoftmaxAttention(64, 4, grid=(6, 10), backend="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use")
@pytest.mark.parametrize("backend", ["auto", "flash", "mem-efficient", "cudnn", "math", "xformers"])
@pytest.mark.parametrize("num_heads", [16, 64])
def test_backends_of_a_gpu(backend: str, num_heads: int) -> None:
    """Each runs and agrees, or says why it cannot."""
    torch.manual_seed(0)
    reference = SoftmaxAttention(1024, num_heads, grid=(16, 16), device="cuda", dtype=torch.bfloat16)
    fast = FastSoftmaxAttention(1024, num_heads, grid=(16, 16), backend=backend, device="cuda", dtype=torch.bfloat16)
    fast.load_state_dict(reference.state_dict())
    x = torch.randn(2, 257, 1024, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        try:
            result = fast(x)
        except NotImplementedError as error:
            assert str(error).startswith(f"backend {backend}")
            assert backend not in ("auto", "math")
            return
        assert (result - reference(x)).abs().max() < 0.02
    assert fast.choices["backend"] in ("flash", "mem-efficient", "cudnn", "math", "xformers")
