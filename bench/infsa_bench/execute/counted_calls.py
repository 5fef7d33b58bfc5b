"""The calls that warm a case up, the first of which also counts what an iteration executes."""

from __future__ import annotations

import torch

from infsa_bench.execute.failures import attempt
from infsa_bench.execute.workload import Workload
from infsa_bench.measure.memory import classify_error, release_freed_memory
from infsa_bench.measure.operations import count_operations
from infsa_bench.record import MEMORY_KINDS, OperationCount


class CountedCalls:
    """Calls of a workload, for its warm-up only: what is timed is never looked into.

    A count that fails costs the case nothing but the count.

    Attributes:
        operations: of one iteration; None before the first call, and where they could not be counted.
    """

    def __init__(self, workload: Workload, device: torch.device) -> None:
        self._workload, self._device = workload, device
        self._is_counted_in_call = workload.count_call is None
        self.operations: OperationCount | None = None

    def count_apart(self) -> None:
        """Count an eager iteration by itself, where the calls are of a mode that hides its operators."""
        count_call = self._workload.count_call
        if count_call is None:
            return
        counted = attempt(lambda: count_operations(count_call))
        if isinstance(counted, OperationCount):
            self._keep(counted)
        # The eager model needs more memory than the other modes, perhaps more than there is.
        del counted
        release_freed_memory(self._device)

    def __call__(self) -> None:
        """Run one iteration."""
        if self._is_counted_in_call:
            self._is_counted_in_call = False
            counted = attempt(lambda: count_operations(self._workload.call))
            if isinstance(counted, OperationCount):
                self._keep(counted)
                return
            if classify_error(counted).kind in MEMORY_KINDS:
                # Counting takes none: it is the model's, and the state of the memory is still that of the failure.
                raise counted
            # Whose error it was shows without the count.
            del counted
        self._workload.call()

    def _keep(self, counted: OperationCount) -> None:
        # Zeros that only the first step of training writes.
        once_bytes = self._workload.optimizer_bytes()
        self.operations = OperationCount(
            matmul_flops=counted.matmul_flops,
            elementwise_flops=counted.elementwise_flops,
            operator_bytes=max(0, counted.operator_bytes - once_bytes),
        )
