"""A smaller device than this one: a limit on the memory that this process may take.

On a GPU it is the caching allocator's limit, set so that what the process holds beside it (context, libraries) counts
as well, as it would on a smaller card. Libraries that allocate for themselves later are outside of it, and they may
still choose their algorithms for the card that is there: which is why a limit is shown as emulated, never under the
name of another card. On a CPU it is RLIMIT_DATA.
"""

from __future__ import annotations

import resource
from collections.abc import Callable

import torch

from infsa_bench.measure.memory import classify_error, release_freed_memory, status_bytes

SLACK_BYTES = 64 * 2**20
"""On a CPU: how far from its limit an allocation has to be for its fate to be known, and what may be left over."""

SLACK_SHARE = 0.01
"""The same on a GPU, as a share of the limit."""


class MemoryLimit:
    """Holds from when it is made until the process ends."""

    def __init__(self, device: torch.device, limit_bytes: int, process_bytes: Callable[[], int | None]) -> None:
        """Limit this process; ``process_bytes`` tells what it holds of a GPU by NVML, None where that is unknown.

        Where it is, everything that is taken on the GPU is taken to be this process's: the limit is then too tight by
        what others hold.

        Raises:
            ValueError: the device is smaller than that, or the limit too small for anything.
        """
        self._device = device
        release_freed_memory(device)
        if device.type == "cuda":
            free_bytes, total_bytes = torch.cuda.mem_get_info(device)
            own_bytes = process_bytes()
            taken_bytes = total_bytes - free_bytes if own_bytes is None else own_bytes
            self._allowed_bytes = limit_bytes - (taken_bytes - torch.cuda.memory_reserved(device))
            if limit_bytes > total_bytes:
                raise ValueError(f"the device has {total_bytes} bytes, less than the limit of {limit_bytes}")
            if self._allowed_bytes <= 0:
                raise ValueError(f"this process already takes {taken_bytes} bytes, more than the limit")
            torch.cuda.set_per_process_memory_fraction(self._allowed_bytes / total_bytes, device)
            return
        data_bytes = status_bytes("VmData")
        if data_bytes is None:
            raise ValueError("this system does not tell how much memory a process has: no limit can be set")
        self._start_bytes, self._allowed_bytes = data_bytes, limit_bytes
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes + limit_bytes, hard))

    def left_bytes(self) -> int:
        """Return what may still be taken."""
        if self._device.type == "cuda":
            return max(0, self._allowed_bytes - torch.cuda.memory_reserved(self._device))
        return max(0, self._allowed_bytes - (self._data_bytes() - self._start_bytes))

    def is_whole(self) -> bool:
        """Tell whether the next case could take as much as the first, once freed memory was given back."""
        if self._device.type == "cuda":
            return True
        # Address space that an earlier case made the C library reserve counts against the limit.
        return self._data_bytes() - self._start_bytes <= SLACK_BYTES

    def problem(self) -> str | None:
        """Allocate a little less and a little more than the limit; return what is wrong with it, None if it holds.

        The process is not fit for measuring afterwards.
        """
        slack_bytes = round(SLACK_SHARE * self._allowed_bytes) if self._device.type == "cuda" else SLACK_BYTES
        left_bytes = self.left_bytes()
        under, over = self._try(left_bytes - slack_bytes), self._try(left_bytes + slack_bytes)
        if under is not None:
            return f"an allocation {slack_bytes} bytes under the limit failed: {under}"
        if over is None:
            return f"an allocation {slack_bytes} bytes over the limit succeeded"
        return None

    def _try(self, size_bytes: int) -> str | None:
        """Allocate so much for a moment; return what kept it from succeeding."""
        try:
            torch.empty(max(0, size_bytes), dtype=torch.uint8, device=self._device)
        except (RuntimeError, MemoryError) as error:
            if classify_error(error).kind not in ("oom", "host_oom"):
                raise
            return str(error).strip().partition("\n")[0]
        finally:
            release_freed_memory(self._device)
        return None

    def _data_bytes(self) -> int:
        return status_bytes("VmData") or self._start_bytes
