"""The tracer counts what can be counted by hand, on real and on fake tensors."""

from __future__ import annotations

import pytest
import torch
from live_bytes import trace_live_bytes
from torch import Tensor
from torch._subclasses import FakeTensorMode

ELEMENTS = 1000
BYTES = 4 * ELEMENTS


def keeps_two(x: Tensor) -> Tensor:
    doubled = x * 2  # 1 alive
    shifted = doubled + 1  # 2 alive
    return shifted.view(10, 100)  # a view is no storage of its own


def drops_the_first(x: Tensor) -> Tensor:
    y = x * 2  # 1 alive
    y = y + 1  # 2 alive
    return y * 3  # `y` and the result: the first is gone


def works_in_place(x: Tensor) -> Tensor:
    return (x * 2).add_(1).relu_()


def squares_for_autograd(x: Tensor) -> None:
    # Forward: exp (saved for backward), its square (dead once summed), sum. Backward: the gradients of the sum
    # (a view), of the square and of exp.
    loss = x.exp().square().sum()
    loss.backward()


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize(
    ("function", "storages"), [(keeps_two, 2), (drops_the_first, 2), (works_in_place, 1)], ids=lambda v: str(v)[:20]
)
def test_counts_what_is_alive(function: object, storages: int, fake: bool) -> None:
    if fake:
        with FakeTensorMode():
            trace = trace_live_bytes(function, torch.ones(ELEMENTS))
    else:
        trace = trace_live_bytes(function, torch.ones(ELEMENTS))
    assert trace.peak_bytes == storages * BYTES
    assert len(trace.at_peak) == storages


def test_inputs_changed_in_place_are_not_counted() -> None:
    assert trace_live_bytes(lambda x: x.mul_(2), torch.ones(ELEMENTS)).peak_bytes == 0


def test_freed_memory_is_not_counted_even_if_its_address_is_used_again() -> None:
    def chain(x: Tensor) -> Tensor:
        for _ in range(50):
            x = x + 1
        return x

    # The input of the loop is not counted; afterwards the old and the new `x`.
    assert trace_live_bytes(chain, torch.ones(ELEMENTS)).peak_bytes == 2 * BYTES


def test_tensors_saved_for_backward_stay_alive() -> None:
    def saves_ten(x: Tensor) -> Tensor:
        for _ in range(10):
            x = x.exp()
        return x

    assert trace_live_bytes(saves_ten, torch.ones(ELEMENTS, requires_grad=True)).peak_bytes == 10 * BYTES
    with torch.no_grad():
        assert trace_live_bytes(saves_ten, torch.ones(ELEMENTS, requires_grad=True)).peak_bytes == 2 * BYTES


def test_backward_is_watched() -> None:
    x = torch.ones(ELEMENTS, requires_grad=True)
    backward_peak = trace_live_bytes(squares_for_autograd, x).peak_bytes
    # At the peak, in the backward of square: exp and the square's factor (2 exp) and their product with the gradient.
    assert backward_peak >= 3 * BYTES
    assert x.grad is not None
