"""What the worker does with a case, in this process; test_launcher and test_sweep run it as a process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sample_records import make_case
from stand_in import StandIn
from torch import Tensor, nn

from infsa_bench.errors import SpecError
from infsa_bench.execute import measured_case, workload
from infsa_bench.execute.instruments import open_instruments
from infsa_bench.execute.launcher import Launcher
from infsa_bench.execute.messages import Message, ProbeCommand, RunCommand, StageReached
from infsa_bench.execute.worker import check_mechanism, run_case, run_probe
from infsa_bench.measure.memory import PeakMemory
from infsa_bench.protocol import PROTOCOLS
from infsa_bench.record import Failure, Fit

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("os:system", "TypeError: os:system is not a torch.nn.Module class"),
        ("no_such_package.module:Class", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("torch.nn:NoSuchClass", "TypeError: torch.nn:NoSuchClass is not a torch.nn.Module class"),
        ("torch.nn:Linear", "TypeError: "),
        ("torch.nn:Flatten", "TypeError: "),
        # By contract this one is a mechanism: it takes any arguments and returns tokens of the same shape.
        ("torch.nn:Identity", None),
    ],
)
def test_check_mechanism(target: str, problem: str | None) -> None:
    found = check_mechanism(target)
    assert found is None if problem is None else found is not None and found.startswith(problem)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "oom"),
        (MemoryError(), "host_oom"),
        (RuntimeError("input tensor is too large for 32-bit index math"), "unsupported"),
        (ZeroDivisionError("division by zero"), "error"),
    ],
)
@pytest.mark.parametrize("stage", ["build", "warm-up", "timing"])
def test_an_error_at_any_stage_is_an_outcome(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str, stage: str
) -> None:
    where = {"build": "build_workload", "warm-up": "warm_up", "timing": "time_case"}[stage]

    def fail(*arguments: object, **options: object) -> None:
        raise error

    if stage != "build":
        built = SimpleNamespace(call=None, count_call=None, is_in_backward=bool)
        monkeypatch.setattr(measured_case, "build_workload", lambda case, device: built)
    if stage == "timing":
        monkeypatch.setattr(measured_case, "warm_up", lambda *arguments, **options: ())
    monkeypatch.setattr(measured_case, where, fail)
    sent: list[Message] = []
    command = RunCommand(case=make_case(), protocol=PROTOCOLS["quick"], limit_seconds=None)
    finished = run_case(command, open_instruments(CPU), sent.append)
    assert isinstance(finished.outcome, Failure)
    assert (finished.outcome.kind, finished.outcome.stage) == (kind, stage)
    assert finished.outcome.exception == type(error).__name__
    assert not finished.reusable
    assert sent[-1] == StageReached(stage=stage)


ONCE = PROTOCOLS["quick"].customized(warmup=0, iterations=1, replicates=None)
TRAINING = make_case(mechanism="infsa-linear", resolution=32, phase="train")


class Failing(torch.autograd.Function):
    """Fails in its forward or its backward pass."""

    @staticmethod
    def forward(context: object, x: Tensor, error: Exception, is_forward: bool) -> Tensor:
        context.error = error  # type: ignore[attr-defined]
        if is_forward:
            raise error
        return x.clone()

    @staticmethod
    def backward(context: object, gradient: Tensor) -> tuple[Tensor | None, ...]:
        raise context.error  # type: ignore[attr-defined]


class FailingModel(StandIn, nn.Linear):
    """A classifier of images' first pixels."""

    def __init__(self, is_forward: bool) -> None:
        super().__init__(3, 1000)
        self._is_forward = is_forward

    def forward(self, images: Tensor) -> Tensor:
        error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return Failing.apply(super().forward(images[:, :, 0, 0]), error, self._is_forward)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("is_forward", "stages"), [(True, ("warm-up", "forward")), (False, ("backward", "backward"))])
def test_a_failed_step_of_training_knows_in_which_pass(
    monkeypatch: pytest.MonkeyPatch, is_forward: bool, stages: tuple[str, str]
) -> None:
    monkeypatch.setattr(workload, "build_vit", lambda *arguments, **options: FailingModel(is_forward))
    instruments = open_instruments(CPU)
    command = RunCommand(case=TRAINING, protocol=PROTOCOLS["quick"], limit_seconds=None)
    measured = run_case(command, instruments, lambda message: None)
    probed = run_probe(ProbeCommand(case=TRAINING), instruments, lambda message: None)
    for finished, stage in zip((measured, probed), stages, strict=True):
        assert isinstance(finished.outcome, Failure)
        assert (finished.outcome.kind, finished.outcome.stage, finished.outcome.requested_bytes) == (
            "oom",
            stage,
            2**31,
        )


def test_a_probe_builds_and_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Counting(StandIn, nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            calls.append(images.shape)
            return super().forward(images[:, :, 0, 0])

    monkeypatch.setattr(workload, "build_vit", lambda *arguments, **options: Counting(3, 1000))
    sent: list[Message] = []
    case = make_case(mechanism="infsa-linear", resolution=512)
    finished = run_probe(ProbeCommand(case=case), open_instruments(CPU), sent.append)
    assert calls == [(1, 3, 512, 512)]
    fit = finished.outcome
    assert isinstance(fit, Fit)
    assert fit.model_bytes == 4 * (3 * 1000 + 1000)
    assert fit.first_call_seconds > 0
    # The two rotating images alone.
    assert fit.peak_memory_bytes is None or fit.peak_memory_bytes >= 2 * 4 * 3 * 512**2
    assert [getattr(message, "stage", None) for message in sent] == ["build", "forward"]
    training = make_case(mechanism="infsa-linear", resolution=32, phase="train", precision="bf16")
    # The peak counts from before the build, and a process that is left with something is not used again.
    instruments, order = open_instruments(CPU), []
    monkeypatch.setattr(PeakMemory, "reset", lambda self: order.append("reset"))
    monkeypatch.setattr(workload, "build_vit", lambda *arguments, **options: order.append("build") or Counting(3, 1000))
    for held_bytes, reusable in ((0, True), (2**30, False)):
        monkeypatch.setattr(PeakMemory, "held_bytes", lambda self, held=held_bytes: held)
        assert run_probe(ProbeCommand(case=case), instruments, sent.append).reusable == reusable
        command = RunCommand(case=case, protocol=ONCE, limit_seconds=None)
        assert run_case(command, instruments, sent.append).reusable == reusable
    assert order[:2] == ["reset", "build"]
    refused = run_probe(ProbeCommand(case=training), open_instruments(CPU), sent.append)
    assert isinstance(refused.outcome, Failure)
    assert (refused.outcome.kind, refused.reusable) == ("unsupported", True)


def test_a_mechanism_that_leaves_ends_the_worker_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaving.py").write_text(
        "from torch import nn\n\nclass Leaving(nn.Identity):\n    def forward(self, x): raise SystemExit(3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    with Launcher("cpu") as launcher, pytest.raises(SpecError, match="SystemExit: 3"):
        launcher.check(("leaving:Leaving",))
