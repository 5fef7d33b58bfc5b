"""Traces how many bytes of tensors a call keeps alive, on real or fake CPU tensors. Tests only.

Counted is every storage that an operator creates during the call, from its creation until nothing refers to it:
what eager Python keeps alive through its local names, and what autograd saves. Not counted are the tensors that
existed before (model, input) and a kernel's private scratch memory. On fake tensors (``FakeTensorMode``) nothing is
computed or allocated, so a model at 9216 x 9216 takes about a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, slots=True)
class LiveStorage:
    """A storage alive at the peak: the operator that created it and the tensor it created it for."""

    operator: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    storage_bytes: int


@dataclass(slots=True)
class _Tracked:
    reference: StorageWeakRef
    storage: LiveStorage


@dataclass(slots=True)
class Trace:
    """Peak of the live bytes, and what was alive when it was first reached (largest first)."""

    peak_bytes: int = 0
    at_operator: str = ""
    at_peak: list[LiveStorage] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.peak_bytes} bytes at {self.at_operator}"]
        lines += [f"  {s.storage_bytes:>14} {s.operator} {list(s.shape)} {s.dtype}" for s in self.at_peak[:20]]
        return "\n".join(lines)


class LiveBytes(TorchDispatchMode):
    """Watches every operator below autograd; ``trace`` holds the peak so far."""

    def __init__(self) -> None:
        super().__init__()
        self.trace = Trace()
        self._created: dict[int, _Tracked] = {}
        # A weak reference keeps the storage's address from being given to another storage, so that the address can
        # serve as its identity. Those of inputs are kept for the same reason.
        self._known_before: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for tensor in _tensors((args, kwargs)):
            reference = StorageWeakRef(tensor.untyped_storage())
            if reference.cdata not in self._created:
                self._known_before.setdefault(reference.cdata, reference)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            if reference.cdata not in self._created and reference.cdata not in self._known_before:
                origin = LiveStorage(str(func), tuple(tensor.shape), tensor.dtype, storage.nbytes())
                self._created[reference.cdata] = _Tracked(reference, origin)
        self._update_peak(str(func))
        return result

    def _update_peak(self, operator: str) -> None:
        self._created = {key: tracked for key, tracked in self._created.items() if not tracked.reference.expired()}
        live_bytes = sum(tracked.storage.storage_bytes for tracked in self._created.values())
        if live_bytes > self.trace.peak_bytes:
            alive = sorted((tracked.storage for tracked in self._created.values()), key=lambda s: -s.storage_bytes)
            self.trace = Trace(live_bytes, operator, alive)


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def trace_live_bytes(function: Callable[..., object], *args: object) -> Trace:
    """Run ``function(*args)`` and return the peak of the bytes it created, its result included."""
    with LiveBytes() as mode:
        function(*args)
    return mode.trace


def on_fake_cpu(module: nn.Module) -> nn.Module:
    """Return ``module``, built on the meta device, with fake tensors on the CPU in place of its own.

    Call inside ``FakeTensorMode(allow_non_fake_inputs=True)``. timm cannot be built inside that mode, and meta
    tensors themselves take other code paths than those of a device.
    """
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return module.to_empty(device="cpu")
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
