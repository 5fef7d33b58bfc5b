"""Peak memory of a stretch of work, and what an out-of-memory error says."""

from __future__ import annotations

import ctypes
import gc
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from infsa_bench.measure.cgroup import memory_left_bytes
from infsa_bench.record import FailureCause, FailureKind, MemorySource

_SIZES = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

_HOST_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "bad_alloc")
_SPELLINGS: tuple[tuple[tuple[str, ...], FailureKind, FailureCause], ...] = (
    # cuBLAS, cuDNN and cuSPARSE name the status of what they could not get beside the allocator.
    (("ALLOC_FAILED",), "oom", "workspace"),
    (("CUDA out of memory", "error: out of memory", "cudaErrorMemoryAllocation"), "oom", "allocation"),
    (("memory outside PyTorch's allocator",), "oom", "workspace"),
    # In the words of torch's kernels: cuBLAS, convolutions, element-wise loops, norms, and others.
    (("non-negative and less than", "positive and less than"), "unsupported", "index_limit"),
    (("canUse32BitIndexMath", "can_use_32bit_indexing"), "unsupported", "index_limit"),
    (("int32 index", "32-bit index", "INT_MAX"), "unsupported", "index_limit"),
    (
        ("too many resources", "invalid configuration argument", "maximum CUDA grid size"),
        "unsupported",
        "launch_limit",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Bytes at the peak, the model included; ``reserved_bytes`` is the allocator's own (None on a CPU)."""

    allocated_bytes: int | None
    reserved_bytes: int | None
    source: MemorySource


class PeakMemory:
    """Peak memory on one device since :meth:`reset`.

    On CUDA it is the caching allocator's. On a CPU it is the process's peak resident memory (``VmHWM``, reset
    through ``/proc/self/clear_refs``) above what was resident when this object was made, before any case; where
    the kernel does not allow the reset, the peak is unknown (None), because it could be that of an earlier case.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        release_freed_memory(device)
        self._baseline_bytes = None if device.type == "cuda" else status_bytes("VmRSS")
        self._was_reset = False

    def reset(self) -> None:
        """Forget the peak so far."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._was_reset = True
        except OSError:
            self._was_reset = False

    def read(self) -> Peak:
        """Return the peak since the last reset."""
        if self._device.type == "cuda":
            return Peak(
                allocated_bytes=torch.cuda.max_memory_allocated(self._device),
                reserved_bytes=torch.cuda.max_memory_reserved(self._device),
                source="cuda_allocator",
            )
        high = status_bytes("VmHWM") if self._was_reset else None
        if high is None or self._baseline_bytes is None:
            return Peak(allocated_bytes=None, reserved_bytes=None, source="process_rss")
        return Peak(allocated_bytes=max(0, high - self._baseline_bytes), reserved_bytes=None, source="process_rss")

    def reserved_bytes(self) -> int | None:
        """Return what the caching allocator has taken from a GPU now; None on a CPU, which has none."""
        return torch.cuda.memory_reserved(self._device) if self._device.type == "cuda" else None

    def held_bytes(self) -> int | None:
        """Return what is held now: by tensors on a GPU, on a CPU by the process above what it held at first."""
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        resident = status_bytes("VmRSS")
        if resident is None or self._baseline_bytes is None:
            return None
        return max(0, resident - self._baseline_bytes)


def release_freed_memory(device: torch.device) -> None:
    """Give freed memory back, so that it counts neither in the next case's peak nor against its limit."""
    gc.collect()
    if device.type == "cuda" and torch.cuda.is_initialized():
        torch.cuda.synchronize(device)
        # cuBLAS keeps a workspace for each stream, from the caching allocator: what a case's own streams made it take
        # would count in the next case's peak. torch has no public name for giving them back.
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
    elif device.type != "cuda":
        # glibc keeps freed blocks of some megabytes resident; other C libraries have no such call.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def status_bytes(field: str) -> int | None:
    """Return a size that Linux tells of this process (``VmRSS``, ``VmHWM``, ``VmData``), None where it does not."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def available_host_bytes() -> int | None:
    """Return the memory that this process could still take: the machine's, or what a limit on it leaves."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    known = [int(found[1]) * 1024] if found else []
    left = memory_left_bytes()
    return min([*known, *([] if left is None else [left])], default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorKind:
    """What kind of failure an exception is, what in particular, and the bytes asked for if it says so."""

    kind: FailureKind
    cause: FailureCause | None = None
    requested_bytes: int | None = None


def classify_error(error: BaseException) -> ErrorKind:
    """Return what kind of failure an exception is.

    ``torch.OutOfMemoryError`` is told by its type. Failed host allocations have three spellings in torch; cuBLAS and
    cuDNN report a failed workspace by status. Limits of 32-bit indexing are not a matter of memory.
    """
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        cause: FailureCause = "workspace" if "memory outside PyTorch's allocator" in text else "allocation"
        return ErrorKind(kind="oom", cause=cause, requested_bytes=_requested_bytes(text))
    if isinstance(error, MemoryError) or any(spelling in text for spelling in _HOST_MEMORY):
        return ErrorKind(kind="host_oom", cause="allocation", requested_bytes=_requested_bytes(text))
    if isinstance(error, RuntimeError):
        for spellings, kind, cause in _SPELLINGS:
            if any(spelling in text for spelling in spellings):
                return ErrorKind(kind=kind, cause=cause, requested_bytes=_requested_bytes(text))
    return ErrorKind(kind="error")


def _requested_bytes(text: str) -> int | None:
    found = re.search(r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB|TiB)", text)
    return int(float(found[1]) * _SIZES[found[2]]) if found else None
