from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infsa_bench.measure.memory import (
    ErrorKind,
    Peak,
    PeakMemory,
    available_host_bytes,
    classify_error,
    release_freed_memory,
)
from infsa_bench.record import FailureCause, FailureKind

CPU = torch.device("cpu")

CACHING_ALLOCATOR = (
    "CUDA out of memory. Tried to allocate 20.25 GiB. GPU 0 has a total capacity of 139.80 GiB of which 10.50 MiB is "
    "free. Of the allocated memory 100.00 GiB is allocated by PyTorch."
)
CPU_ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "1152921504606846976 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("error", "kind", "cause", "requested_bytes"),
    [
        (torch.OutOfMemoryError(CACHING_ALLOCATOR), "oom", "allocation", 20.25 * 2**30),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512 bytes."), "oom", "allocation", 512),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 KiB."), "oom", "allocation", 1536),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 MiB."), "oom", "allocation", 3 * 2**20),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 TiB."), "oom", "allocation", 2 * 2**40),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than 1EB memory."),
            "oom",
            "allocation",
            None,
        ),
        (torch.OutOfMemoryError(), "oom", "allocation", None),
        (RuntimeError(CACHING_ALLOCATOR), "oom", "allocation", 20.25 * 2**30),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "oom",
            "workspace",
            None,
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "oom", "workspace", None),
        (
            RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in"),
            "oom",
            "allocation",
            None,
        ),
        (RuntimeError(CPU_ALLOCATOR), "host_oom", "allocation", 2**60),
        (RuntimeError("std::bad_alloc"), "host_oom", "allocation", None),
        (MemoryError(), "host_oom", "allocation", None),
        (MemoryError("std::bad_alloc"), "host_oom", "allocation", None),
        # Verbatim, from torch's own libraries.
        (
            RuntimeError(
                "Expected canUse32BitIndexMath(input) && canUse32BitIndexMath(output) to be true, but got false.  "
                "(Could this error message be improved?"
            ),
            "unsupported",
            "index_limit",
            None,
        ),
        (
            RuntimeError(
                "at::cuda::blas::bgemm<float> argument m must be non-negative and less than 2147483647 but got"
            ),
            "unsupported",
            "index_limit",
            None,
        ),
        (
            RuntimeError('iter.can_use_32bit_indexing() INTERNAL ASSERT FAILED at "CUDALoops.cuh":707'),
            "unsupported",
            "index_limit",
            None,
        ),
        (RuntimeError("output gradient tensor must fit into 32-bit index math"), "unsupported", "index_limit", None),
        (
            RuntimeError("Normalized shape should have less than INT_MAX elements,   file a support request"),
            "unsupported",
            "index_limit",
            None,
        ),
        (
            RuntimeError("M should be less than maximum CUDA grid size,   file a support request"),
            "unsupported",
            "launch_limit",
            None,
        ),
        (
            torch.OutOfMemoryError("CUDA ran out of memory outside PyTorch's allocator. If this workload uses"),
            "oom",
            "workspace",
            None,
        ),
        (
            RuntimeError("CUDA ran out of memory outside PyTorch's allocator. If this workload uses"),
            "oom",
            "workspace",
            None,
        ),
        (RuntimeError("input tensor is too large for 32-bit index math"), "unsupported", "index_limit", None),
        (RuntimeError("CUDA error: too many resources requested for launch"), "unsupported", "launch_limit", None),
        (RuntimeError("CUDA error: invalid configuration argument"), "unsupported", "launch_limit", None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)"), "error", None, None),
        (RuntimeError("CUDA error: device-side assert triggered"), "error", None, None),
        (RuntimeError(), "error", None, None),
        (ValueError("int32"), "error", None, None),
        (KeyError("CUDA out of memory"), "error", None, None),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, BaseException) else None,
)
def test_classify_error(
    error: BaseException, kind: FailureKind, cause: FailureCause | None, requested_bytes: int | None
) -> None:
    assert classify_error(error) == ErrorKind(kind=kind, cause=cause, requested_bytes=requested_bytes)


@pytest.mark.parametrize("message", ["CUDA error: out of memory", "CUDA driver error: out of memory"])
def test_allocations_beside_the_caching_allocator_are_out_of_memory_too(message: str) -> None:
    assert classify_error(RuntimeError(message)) == ErrorKind(kind="oom", cause="allocation")


def test_a_real_failed_host_allocation() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert classify_error(caught.value) == ErrorKind(kind="host_oom", cause="allocation", requested_bytes=2**60)


def test_a_real_memory_error_of_python() -> None:
    with pytest.raises(MemoryError) as caught:
        bytearray(2**60)
    assert classify_error(caught.value) == ErrorKind(kind="host_oom", cause="allocation")


def test_a_real_programming_error() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert classify_error(caught.value) == ErrorKind(kind="error")


TWO_CASES = """
import json
import torch
from infsa_bench.measure.memory import PeakMemory, release_freed_memory

device = torch.device("cpu")
MIB = 2**20
# What the first use of an operator maps is not the case's.
torch.ones(MIB, dtype=torch.uint8).sum()
memory = PeakMemory(device)
peaks = []
for size in (256, 32, 64):
    memory.reset()
    tensor = torch.ones(size * MIB, dtype=torch.uint8)
    del tensor
    peaks.append(memory.read().allocated_bytes)
    release_freed_memory(device)
# Blocks below the allocator's mapping threshold stay with the process until they are given back.
memory.reset()
blocks = [torch.ones(64 * 1024, dtype=torch.uint8) for _ in range(1024)]
peaks.append(memory.read().allocated_bytes)
del blocks
release_freed_memory(device)
memory.reset()
peaks.append(memory.read().allocated_bytes)
print(json.dumps([None if peak is None else peak / MIB for peak in peaks]))
"""


def test_peaks_of_cases_one_after_the_other() -> None:
    """In a process of its own: what pytest holds or frees does not count."""
    result = subprocess.run([sys.executable, "-c", TWO_CASES], capture_output=True, text=True, check=True)
    peaks_mib = json.loads(result.stdout)
    if not may_reset_peak():
        assert peaks_mib == [None] * 5
        return
    first, second, third, blocks, nothing = peaks_mib
    assert first == pytest.approx(256, rel=0.1)
    assert second == pytest.approx(32, abs=8)
    assert third == pytest.approx(64, abs=8)
    assert blocks == pytest.approx(64, abs=8)
    assert nothing < 8


def may_reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def test_a_peak_that_cannot_be_reset_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = PeakMemory(CPU)

    def refuse(self: Path, text: str) -> int:
        raise PermissionError(13, "Permission denied")

    unknown = Peak(allocated_bytes=None, reserved_bytes=None, source="process_rss")
    assert memory.read() == unknown
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", refuse)
        memory.reset()
        assert memory.read() == unknown


def test_a_peak_is_unknown_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path) -> str:
        raise FileNotFoundError(2, "No such file or directory")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", missing)
        memory = PeakMemory(CPU)
        memory.reset()
        assert memory.read().allocated_bytes is None
        assert available_host_bytes() is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/proc/meminfo": "MemTotal:  9 kB\nMemAvailable:     2048 kB\n"}, 2048 * 1024),
        (
            {
                "/proc/meminfo": "MemAvailable: 2048 kB\n",
                "/sys/fs/cgroup/memory.max": "1000000\n",
                "/sys/fs/cgroup/memory.current": "400000\n",
            },
            600_000,
        ),
        (
            {
                "/proc/meminfo": "MemAvailable: 100 kB\n",
                "/sys/fs/cgroup/memory.max": "max\n",
                "/sys/fs/cgroup/memory.current": "400000\n",
            },
            100 * 1024,
        ),
        ({"/proc/meminfo": "MemAvailable: 100 kB\n", "/sys/fs/cgroup/memory.max": "?\n"}, 100 * 1024),
        ({}, None),
    ],
)
def test_available_host_memory(files: dict[str, str], expected: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: Path) -> str:
        if str(self) not in files:
            raise FileNotFoundError(2, "No such file or directory")
        return files[str(self)]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", read)
        assert available_host_bytes() == expected


def test_releasing_memory_twice_is_harmless() -> None:
    release_freed_memory(CPU)
    release_freed_memory(CPU)
