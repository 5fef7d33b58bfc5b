"""What one iteration really executes, counted on its tensors while it runs.

    matmul FLOPs       matrix products, convolutions, fused attention: two for each multiplication with its addition
    elementwise FLOPs  one for each element of a pointwise operator's result, one for each of a reduction's input;
                       an exponential is one like an addition; fused operators as many as those they are made of
    operator bytes     the tensors that each operator reads and writes, as if none were fused with its neighbour and
                       nothing stayed in a cache; views move nothing, and an expanded tensor is what its storage holds

What is copied, gathered, sorted or interpolated is no FLOP. An operator from elsewhere moves its tensors, and has the
FLOPs that it registered with ``torch.utils.flop_counter.register_flop_formula``; inside a fused attention only the
matrix products count. Kernels that are launched past torch's dispatcher are not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    FlopCounterMode,
    conv_flop_count,
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from infsa_bench.record import OperationCount

ALLOCATING = frozenset(
    {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided", "resize_"}
)
"""Write nothing into what they return."""

OVERWRITING = frozenset({"bernoulli_", "copy_", "exponential_", "fill_", "normal_", "random_", "uniform_", "zero_"})
"""Change a tensor that they do not read."""

FLOPS_PER_INPUT_ELEMENT: Mapping[str, int] = {
    **dict.fromkeys(("all", "amax", "amin", "aminmax", "any", "argmax", "argmin", "cumsum", "linalg_vector_norm"), 1),
    **dict.fromkeys(
        ("logsumexp", "max", "mean", "min", "norm", "prod", "std", "std_mean", "sum", "var", "var_mean"), 1
    ),
    **dict.fromkeys(("_adaptive_avg_pool2d", "avg_pool2d"), 1),
    # Largest, minus it, exponential, sum, divided by it (for the logarithm: minus it).
    "_softmax": 5,
    "_log_softmax": 5,
    # Times the gradient, sum, times the result, minus.
    "_softmax_backward_data": 4,
    "_log_softmax_backward_data": 4,
    # Mean, variance, minus the one, over the root of the other, times the weight, plus the bias.
    **dict.fromkeys(("native_layer_norm", "native_group_norm", "native_batch_norm"), 6),
    # Normalised again (2); gradients of bias (1) and weight (2); of the input: times the weight, two means, and what
    # they take off (6).
    **dict.fromkeys(("native_layer_norm_backward", "native_group_norm_backward", "native_batch_norm_backward"), 11),
    # Decay (1), first moment (3), second moment (4), its root, corrected, plus epsilon (3), the step (3).
    "_fused_adamw_": 14,
}
"""Reductions, and fused operators as the pointwise operators and reductions that they stand for; by the elements of
their first argument.
"""


def count_operations(call: Callable[[], object]) -> OperationCount:
    """Run ``call`` once and return what it executed, its backward pass included.

    Raises:
        NotImplementedError, RuntimeError: an operator cannot be looked into; or whatever ``call`` raises.
    """
    matmuls, others = FlopCounterMode(display=False, custom_mapping=_MATMULS), _OperatorCounter()
    with matmuls, others:
        call()
    return OperationCount(
        matmul_flops=int(matmuls.get_total_flops()),
        elementwise_flops=others.elementwise_flops,
        operator_bytes=others.operator_bytes,
    )


class _OperatorCounter(TorchDispatchMode):
    """Sums what operators do; keeps none of their tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elementwise_flops = 0
        self.operator_bytes = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # In inference mode operators come here that are made of others, and those are what runs.
        if func.namespace != "prim" and func.overloadpacket not in flop_registry:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        self._count(func, args, kwargs, result)
        return result

    def _count(self, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        name = func.overloadpacket.__name__
        if name in ALLOCATING:
            return
        # By identity: what is read twice by one operator is read once, and what it changes comes back as its result.
        read: dict[int, Tensor] = {}
        changed: dict[int, Tensor] = {}
        given: set[int] = set()
        for argument, value in _bound(func, args, kwargs):
            is_changed = argument.alias_info is not None and argument.alias_info.is_write
            for tensor in _tensors(value):
                given.add(_storage_of(tensor))
                if is_changed:
                    changed[id(tensor)] = tensor
                if not is_changed or not (argument.is_out or name in OVERWRITING):
                    read[id(tensor)] = tensor
        new = {id(tensor): tensor for tensor in _tensors(result) if _storage_of(tensor) not in given}
        written = changed | new
        if not written:
            return
        if name.endswith("_like") or name.startswith("new_"):
            # Only the shape of its argument is looked at.
            read = {}
        self.operator_bytes += _total_bytes(read.values()) + _total_bytes(written.values())
        if name in FLOPS_PER_INPUT_ELEMENT:
            self.elementwise_flops += FLOPS_PER_INPUT_ELEMENT[name] * _elements(args[0])
        elif torch.Tag.pointwise in func.tags and name != "clone":
            self.elementwise_flops += _elements(list(written.values()))


def _bound(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield each argument of the operator's schema that was given, with its value."""
    arguments = func._schema.arguments
    yield from zip(arguments, args, strict=False)
    yield from ((argument, kwargs[argument.name]) for argument in arguments if argument.name in kwargs)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of an argument or a result: itself, or those of a list."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _storage_of(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _elements(value: Any) -> int:
    return sum(tensor.numel() for tensor in _tensors(value))


def _total_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(_bytes_of(tensor) for tensor in tensors)


def _bytes_of(tensor: Tensor) -> int:
    """Return how much memory the elements take, each place counted once however often it is repeated."""
    places = math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not size)
    return min(places * tensor.itemsize, tensor.untyped_storage().nbytes())


def _convolution_backward_flops(
    grad_shape: list[int], input_shape: list[int], weight_shape: list[int], *others: Any, **_options: object
) -> int:
    """Each of the two gradients costs as much as the forward pass.

    torch's own formula takes the weight gradient of a depthwise convolution for that of a dense one, and counts it
    too high by the number of channels.
    """
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, output_mask = others
    gradients = int(output_mask[0]) + int(output_mask[1])
    return gradients * int(conv_flop_count(input_shape, weight_shape, grad_shape, transposed))


def _product_flops(*shapes: Any, **_options: object) -> int:
    """Of a matrix with a vector: the largest argument is the matrix, or either vector."""
    sizes = [math.prod(shape) for shape in shapes if isinstance(shape, Sequence)]
    return 2 * max(sizes)


def _attention_flops(query_shape: Any, key_shape: Any, value_shape: Any, *_others: Any, **_options: object) -> int:
    return int(sdpa_flop_count(query_shape, key_shape, value_shape))


def _attention_backward_flops(
    grad_shape: Any, query_shape: Any, key_shape: Any, value_shape: Any, *_others: Any, **_options: object
) -> int:
    return int(sdpa_backward_flop_count(grad_shape, query_shape, key_shape, value_shape))


_MATMULS: dict[Any, Callable[..., int]] = {
    torch.ops.aten.convolution_backward: _convolution_backward_flops,
    torch.ops.aten.mv: _product_flops,
    torch.ops.aten.addmv: _product_flops,
    torch.ops.aten.dot: _product_flops,
    torch.ops.aten.vdot: _product_flops,
    # Without a formula before torch 2.15.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
"""What torch has no formula for, or a wrong one."""
