"""What an iteration executes is counted beside the warm-up, whatever the mode, and costs a case nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from sample_records import make_case
from stand_in import StandIn
from torch import Tensor, nn

from infsa_bench.execute import counted_calls, workload
from infsa_bench.execute.counted_calls import CountedCalls
from infsa_bench.execute.instruments import open_instruments
from infsa_bench.execute.messages import RunCommand
from infsa_bench.execute.modes import MODES, Compile, Forward
from infsa_bench.execute.worker import run_case
from infsa_bench.execute.workload import Workload, build_workload
from infsa_bench.measure.operations import count_operations
from infsa_bench.protocol import PROTOCOLS
from infsa_bench.record import Failure, Measurement, OperationCount

CPU = torch.device("cpu")
HEAD_FLOPS = 2 * 3 * 1000
PARAMETERS = 3 * 1000 + 1000


class Little(StandIn, nn.Module):
    """Stands in for the ViT: what it executes is counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 1000)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.mean(dim=(2, 3)))


@pytest.fixture(autouse=True)
def _little_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "build_vit", lambda *arguments, **options: Little())


def measure(**changes: object) -> Measurement | Failure:
    warmup = changes.pop("warmup", 2)
    protocol = PROTOCOLS["quick"].customized(warmup=warmup, iterations=2, replicates=None)  # type: ignore[arg-type]
    command = RunCommand(case=make_case(resolution=32, **changes), protocol=protocol, limit_seconds=None)
    outcome = run_case(command, open_instruments(CPU), lambda message: None).outcome
    assert isinstance(outcome, Measurement | Failure)
    return outcome


def measured(**changes: object) -> Measurement:
    outcome = measure(**changes)
    assert isinstance(outcome, Measurement)
    return outcome


def test_an_iteration_of_inference() -> None:
    measurement = measured()
    pixels = 3 * 32 * 32
    bytes_of_mean, bytes_of_head = 4 * (pixels + 3), 4 * (3 + PARAMETERS + 1000)
    assert measurement.operations == OperationCount(
        matmul_flops=HEAD_FLOPS, elementwise_flops=pixels, operator_bytes=bytes_of_mean + bytes_of_head
    )
    assert "operations_not_counted" not in measurement.flags


def test_a_step_of_training_without_what_only_the_first_one_does() -> None:
    case = make_case(resolution=32, phase="train", precision="amp-bf16")
    built = build_workload(case, CPU)
    assert built.optimizer_bytes() == 0
    calls = CountedCalls(built, CPU)
    calls()
    # Two moments and a step of each of the two parameters.
    assert built.optimizer_bytes() == 2 * 4 * PARAMETERS + 2 * 4
    assert calls.operations == count_operations(built.call) == count_operations(built.call)
    assert calls.operations is not None
    # Forward, and back to the weight; nothing before it learns.
    assert calls.operations.matmul_flops == 2 * HEAD_FLOPS
    assert calls.operations.elementwise_flops > 14 * PARAMETERS
    assert measured(phase="train", precision="amp-bf16").operations == calls.operations


class Disguised(Compile):
    """Takes the place of compiling: its calls have other operators than the model."""

    def wrap(self, model: nn.Module) -> Forward:
        return lambda images: torch.cat([model(images), model(images)])[: len(images)]


@pytest.mark.parametrize("phase", ["infer", "train"])
def test_other_modes_are_counted_by_the_eager_model(monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    expected = measured(phase=phase).operations
    assert expected is not None
    monkeypatch.setattr(workload, "MODES", {**MODES, "compile": Disguised()})
    assert measured(phase=phase, execution="compile").operations == expected


def test_a_compiled_model_is_not_compiled_to_be_counted() -> None:
    built = build_workload(make_case(resolution=32, execution="compile"), CPU)
    assert built.count_call is not None
    assert count_operations(built.count_call).matmul_flops == HEAD_FLOPS


def test_only_the_first_call_is_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    class Watching(Little):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(bool(torch.utils._python_dispatch._get_current_dispatch_mode_stack()))
            return super().forward(images)

    monkeypatch.setattr(workload, "build_vit", lambda *arguments, **options: Watching())
    measured(warmup=2)
    assert seen[0]
    assert not any(seen[1:])
    assert len(seen) >= 4


def test_without_warming_up_nothing_is_counted() -> None:
    measurement = measured(warmup=0)
    assert measurement.operations is None
    assert "operations_not_counted" in measurement.flags


class Sparse(Little):
    """Has an operator that cannot be counted."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + images[0, 0].to_sparse().to_dense().sum() * 0


class Failing(Little):
    """Raises what a model may raise."""

    def __init__(self, error: Exception, calls: list[str]) -> None:
        super().__init__()
        self._error, self._calls = error, calls

    def forward(self, images: Tensor) -> Tensor:
        self._calls.append("called")
        raise self._error


def test_a_count_that_fails_costs_nothing_but_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "build_vit", lambda *arguments, **options: Sparse())
    measurement = measured()
    assert measurement.operations is None
    assert "operations_not_counted" in measurement.flags
    assert len(measurement.warmup_seconds) == 2
    assert len(measurement.latencies_seconds) == 2


@pytest.mark.parametrize(
    ("error", "kind", "calls"),
    [
        # Run again without the count, an error is the model's own.
        (ZeroDivisionError("by zero"), "error", 2),
        # Memory is not asked for a second time.
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "oom", 1),
        (MemoryError(), "host_oom", 1),
    ],
)
def test_a_model_that_fails_fails(monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str, calls: int) -> None:
    made: list[str] = []
    monkeypatch.setattr(workload, "build_vit", lambda *arguments, **options: Failing(error, made))
    failure = measure()
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.stage) == (kind, "warm-up")
    assert len(made) == calls


def test_an_eager_iteration_that_does_not_fit_does_not_cost_the_other_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[torch.device] = []
    monkeypatch.setattr(counted_calls, "release_freed_memory", released.append)

    def out_of_memory() -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def calling(result: Callable[[], Tensor]) -> Workload:
        return dataclasses.replace(build_workload(make_case(resolution=32), CPU), count_call=result)

    calls = CountedCalls(calling(out_of_memory), CPU)
    calls.count_apart()
    calls()
    assert calls.operations is None
    assert released == [CPU]
