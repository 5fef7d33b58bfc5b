"""What an iteration executes, against counts by hand."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from infsa_bench.measure.operations import count_operations
from infsa_bench.record import OperationCount
from infsa_models.cost import vit_cost
from infsa_models.registry import MECHANISMS
from infsa_models.vit import build_vit

FLOAT = 4


def counted(call: Callable[[], object]) -> tuple[int, int, int]:
    found = count_operations(call)
    return found.matmul_flops, found.elementwise_flops, found.operator_bytes


A, B, VECTOR, SQUARE = torch.randn(3, 5), torch.randn(5, 7), torch.randn(5), torch.randn(4, 4)


@pytest.mark.parametrize("is_inference", [False, True])
@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: A @ B, (2 * 3 * 5 * 7, 0, FLOAT * (15 + 35 + 21))),
        (lambda: F.linear(A, B.t(), torch.zeros(7)), (2 * 3 * 5 * 7, 0, FLOAT * (15 + 35 + 21 + 7 + 7))),
        (lambda: torch.mv(A, VECTOR), (2 * 15, 0, FLOAT * (15 + 5 + 3))),
        (lambda: torch.dot(VECTOR, VECTOR + 1), (2 * 5, 5, FLOAT * (5 + 5 + 5 + 5 + 1))),
        (lambda: torch.einsum("ij,jk->ik", A, B), (2 * 3 * 5 * 7, 0, FLOAT * (15 + 35 + 21))),
        (lambda: (A * VECTOR).sum(dim=1), (0, 15 + 15, FLOAT * (15 + 5 + 15 + 15 + 3))),
        (lambda: A + A, (0, 15, FLOAT * (15 + 15))),
        (lambda: A.exp(), (0, 15, FLOAT * 30)),
        (lambda: F.gelu(A), (0, 15, FLOAT * 30)),
        (lambda: torch.softmax(A, dim=-1), (0, 5 * 15, FLOAT * 30)),
        (lambda: F.layer_norm(A, (5,), VECTOR, VECTOR + 0), (0, 6 * 15 + 5, FLOAT * (15 + 5 + 5 + 15 + 3 + 3 + 10))),
        (lambda: A.amax(dim=1), (0, 15, FLOAT * 18)),
        # Views move nothing, and neither does what is only allocated.
        (lambda: A.t().reshape(5, 3).unsqueeze(0)[:, 1:].expand(6, 4, 3).detach(), (0, 0, 0)),
        (lambda: A.contiguous(), (0, 0, 0)),
        (lambda: A.split(1)[0].unbind(), (0, 0, 0)),
        (lambda: (torch.empty(9), torch.empty_like(A), A.new_empty(4)), (0, 0, 0)),
        # Copies do, and the shape that they take is not read.
        (lambda: A.clone(), (0, 0, FLOAT * 30)),
        (lambda: A.t().contiguous(), (0, 0, FLOAT * 30)),
        (lambda: A.to(torch.bfloat16), (0, 0, 15 * (4 + 2))),
        (lambda: torch.cat([A, A]), (0, 0, FLOAT * (15 + 30))),
        (lambda: torch.zeros_like(A), (0, 0, FLOAT * 15)),
        (lambda: A.new_zeros(9), (0, 0, FLOAT * 9)),
        # In place: read and written; overwritten: only written.
        (lambda: A.clone().add_(1), (0, 15, FLOAT * (30 + 30))),
        (lambda: torch.empty(3, 5).copy_(A), (0, 0, FLOAT * 30)),
        (lambda: torch.empty(3, 5).zero_(), (0, 0, FLOAT * 15)),
        (lambda: torch.empty(3, 5)[:2].fill_(1), (0, 0, FLOAT * 10)),
        (lambda: torch.exp(A, out=torch.empty(3, 5)), (0, 15, FLOAT * 30)),
        # What is expanded is read from where it lies; what comes of it is whole.
        (lambda: VECTOR.expand(1000, 5) * 2, (0, 5000, FLOAT * (5 + 5000))),
        (lambda: torch.randn(0, 5) + 1, (0, 0, 0)),
        # Fused attention of 2 heads: two products of 4 x 3 x 4.
        (
            lambda: F.scaled_dot_product_attention(*(torch.empty(1, 2, 4, 3) for _ in range(3))),
            (2 * 2 * (2 * 4 * 3 * 4), 0, FLOAT * (4 * 24 + 8)),
        ),
        # Of a depthwise convolution, each of 4 channels with itself.
        (
            lambda: F.conv2d(torch.empty(1, 4, 6, 6), torch.empty(4, 1, 3, 3), groups=4),
            (2 * 4 * 16 * 9, 0, FLOAT * (144 + 36 + 64)),
        ),
    ],
)
def test_small_functions(call: Callable[[], object], expected: tuple[int, int, int], is_inference: bool) -> None:
    with torch.inference_mode(is_inference):
        assert counted(call) == expected


def test_a_backward_pass() -> None:
    weight = torch.randn(5, 7, requires_grad=True)
    product = 2 * 3 * 5 * 7
    forward = FLOAT * (15 + 35 + 21) + FLOAT * (21 + 1)
    # The gradient of the sum is a one; expanded, it is multiplied with A to give the weight's.
    backward = FLOAT * 1 + FLOAT * (15 + 1 + 35)
    assert counted(lambda: (A @ weight).sum().backward()) == (2 * product, 21, forward + backward)
    assert weight.grad is not None


def test_a_depthwise_convolution_backward_is_not_counted_as_a_dense_one() -> None:
    images, weight = torch.randn(1, 8, 6, 6, requires_grad=True), torch.randn(8, 1, 3, 3, requires_grad=True)
    forward = 2 * 8 * 16 * 9
    assert counted(lambda: F.conv2d(images, weight, groups=8).sum().backward())[0] == 3 * forward


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(context: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (x,) = context.saved_tensors  # type: ignore[attr-defined]
        return (x @ torch.ones_like(x)) * gradient * 2


def test_the_inside_of_an_autograd_function_is_counted_both_ways() -> None:
    x = torch.randn(4, 4, requires_grad=True)
    gradient = torch.ones(4, 4)
    assert counted(lambda: Squared.apply(x)) == (0, 16, FLOAT * 32)
    flops, elementwise, _ = counted(lambda: Squared.apply(x).backward(gradient))
    assert (flops, elementwise) == (2 * 64, 16 + 16 + 16)


def test_casts_of_autocast_are_counted() -> None:
    layer = nn.Linear(5, 7, bias=False)

    def call() -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return layer(A)

    casts, product = (15 + 35) * (4 + 2), 2 * (15 + 35 + 21)
    assert counted(call) == (2 * 3 * 5 * 7, 0, casts + product)


def test_an_operator_from_elsewhere_has_the_flops_that_it_registered() -> None:
    @torch.library.custom_op("infsa_test::mix", mutates_args=())
    def mix(x: Tensor) -> Tensor:
        return x @ x

    @register_flop_formula(torch.ops.infsa_test.mix)
    def mix_flops(shape: list[int], *arguments: object, **options: object) -> int:
        return 1000 * shape[0]

    assert counted(lambda: mix(SQUARE)) == (4000, 0, FLOAT * 32)


def train_step(model: nn.Module, images: Tensor) -> None:
    F.cross_entropy(model(images).float(), torch.zeros(len(images), dtype=torch.long)).backward()


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("phase", ["infer", "train"])
def test_a_whole_model_has_the_flops_of_the_formulas(mechanism: str, phase: str) -> None:
    model = build_vit(mechanism, "4L-64H", 64, device="cpu")
    images = torch.randn(1, 3, 64, 64)
    if phase == "train":
        found = count_operations(lambda: train_step(model.train(), images))
    else:
        with torch.inference_mode():
            found = count_operations(lambda: model.eval()(images))
    expected = vit_cost(mechanism, "4L-64H", 64, phase=phase)
    assert found.matmul_flops == pytest.approx(expected.matmul_flops, rel=0.02)
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    assert found.operator_bytes > parameters
    assert 0 < found.elementwise_flops < found.matmul_flops


def test_the_count_keeps_nothing_alive_and_changes_nothing() -> None:
    kept: list[weakref.ref[Tensor]] = []
    model = nn.Sequential(nn.Linear(5, 5), nn.GELU(), nn.Linear(5, 5))
    expected = model(A)

    def call() -> None:
        output = model(A)
        assert torch.equal(output, expected)
        kept.append(weakref.ref(output))

    gc.disable()
    try:
        first = count_operations(call)
        assert kept[0]() is None
        assert count_operations(call) == first
    finally:
        gc.enable()


def test_what_the_call_raises_comes_through_and_nothing_is_left_on() -> None:
    with pytest.raises(ZeroDivisionError):
        count_operations(lambda: 1 / 0)
    assert count_operations(lambda: None) == OperationCount(matmul_flops=0, elementwise_flops=0, operator_bytes=0)


def test_what_cannot_be_looked_into_is_refused() -> None:
    with pytest.raises((NotImplementedError, RuntimeError)):
        count_operations(lambda: A.to_sparse())
