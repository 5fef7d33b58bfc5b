"""Modes of execution: eager, compile, cuda-graph. One class and one line in MODES each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

WARMUP_BEFORE_CAPTURE = 3

Forward = Callable[[Tensor], Tensor]
IndexedForward = Callable[[int], Tensor]


class UnsupportedError(Exception):
    """A mode cannot take this model; a status of the case, never a silent change of mode."""


class Eager:
    """The model as it is written."""

    def unsupported_reason(self, phase: str, device_type: str) -> str | None:
        """Return why this mode cannot run ``phase`` on a device type, or None."""
        return None

    def wrap(self, model: nn.Module) -> Forward:
        """Return the model as this mode runs it."""
        return model

    def prepare(self, forward: Forward, inputs: Sequence[Tensor]) -> IndexedForward:
        """Return a callable that runs ``forward`` on ``inputs[i]`` for a given ``i``."""
        return lambda index: forward(inputs[index])


class Compile(Eager):
    """``torch.compile`` of the whole model for exactly one shape; a graph break is an error."""

    def wrap(self, model: nn.Module) -> Forward:
        """Return the compiled model; compilation happens in its first call."""
        compiled: Forward = torch.compile(model, dynamic=False, fullgraph=True)
        return compiled


class CudaGraph(Eager):
    """One captured CUDA graph per input buffer, replayed: what the mechanism costs without Python's launches."""

    def unsupported_reason(self, phase: str, device_type: str) -> str | None:
        """Return why this mode cannot run ``phase`` on a device type, or None."""
        if device_type != "cuda":
            return "CUDA graphs need a CUDA device"
        if phase == "train":
            return "training steps are not captured in CUDA graphs"
        return None

    def prepare(self, forward: Forward, inputs: Sequence[Tensor]) -> IndexedForward:
        """Capture ``forward`` on every input.

        Raises:
            UnsupportedError: the model does something that cannot be captured.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_BEFORE_CAPTURE):
                forward(inputs[0])
        torch.cuda.current_stream().wait_stream(stream)
        graphs: list[tuple[torch.cuda.CUDAGraph, Tensor]] = []
        for batch in inputs:
            graph = torch.cuda.CUDAGraph()
            try:
                # Buffers of one pool share memory: the replays never overlap.
                with torch.cuda.graph(graph, pool=graphs[0][0].pool() if graphs else None):
                    output = forward(batch)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                # Ending a capture that memory ran out in may raise on top of that.
                if isinstance(error.__context__, torch.OutOfMemoryError):
                    raise error.__context__ from None
                raise UnsupportedError(f"cannot be captured in a CUDA graph: {error}") from error
            graphs.append((graph, output))

        def replay(index: int) -> Tensor:
            graph, output = graphs[index]
            graph.replay()
            return output

        return replay


MODES: Mapping[str, Eager] = {"eager": Eager(), "compile": Compile(), "cuda-graph": CudaGraph()}


def compiled_graphs() -> int:
    """Return how many graphs torch.compile has compiled in this process; one that rises has compiled again."""
    # Not imported for the question: that takes seconds, and who never compiled has no use for it.
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])
