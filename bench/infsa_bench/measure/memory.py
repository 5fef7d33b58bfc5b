"""Peak memory of a stretch of work, and what an out-of-memory error says."""

from __future__ import annotations

import ctypes
import gc
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from infsa_bench.measure.cgroup import memory_left_bytes
from infsa_bench.record import FailureKind, MemorySource

_SIZES = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


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
        self._baseline_bytes = None if device.type == "cuda" else _status_bytes("VmRSS")
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
        high = _status_bytes("VmHWM") if self._was_reset else None
        if high is None or self._baseline_bytes is None:
            return Peak(allocated_bytes=None, reserved_bytes=None, source="process_rss")
        return Peak(allocated_bytes=max(0, high - self._baseline_bytes), reserved_bytes=None, source="process_rss")


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


def _status_bytes(field: str) -> int | None:
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


def classify_error(error: BaseException) -> tuple[FailureKind, int | None]:
    """Return what kind of failure an exception is, and the bytes asked for if it is about memory.

    ``torch.OutOfMemoryError`` is told by its type. Failed host allocations have three spellings in torch; cuBLAS and
    cuDNN report a failed workspace by status. Limits of 32-bit indexing are not a matter of memory.
    """
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "oom", _requested_bytes(text)
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in text or "bad_alloc" in text:
        return "host_oom", _requested_bytes(text)
    if isinstance(error, RuntimeError):
        device_memory = ("CUDA out of memory", "error: out of memory", "ALLOC_FAILED", "cudaErrorMemoryAllocation")
        if any(spelling in text for spelling in device_memory):
            return "oom", _requested_bytes(text)
        size_limits = ("int32 index", "32-bit index", "INT_MAX", "too many resources", "invalid configuration argument")
        if any(spelling in text for spelling in size_limits):
            return "unsupported", None
    return "error", None


def _requested_bytes(text: str) -> int | None:
    found = re.search(r"[Tt]ried to allocate ([\d.]+) (bytes|KiB|MiB|GiB|TiB)", text)
    return int(float(found[1]) * _SIZES[found[2]]) if found else None
