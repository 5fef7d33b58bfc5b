"""What the worker does with a case, in this process; test_launcher and test_sweep run it as a process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from test_launcher import make_case

from infsa_bench.errors import SpecError
from infsa_bench.execute import measured_case
from infsa_bench.execute.instruments import open_instruments
from infsa_bench.execute.launcher import Launcher
from infsa_bench.execute.messages import Message, RunCommand, StageReached
from infsa_bench.execute.worker import check_mechanism, first_line, run_case
from infsa_bench.protocol import PROTOCOLS
from infsa_bench.record import Failure

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
        monkeypatch.setattr(measured_case, "build_workload", lambda case, device: type("Workload", (), {"call": None}))
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


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one\ntwo", "one"),
        ("", "ValueError"),
        (" \n", "ValueError"),
        ("a \ud800 b", "a \ufffd b"),
        ("\x1b[31mred\x1b[0m", "\ufffd[31mred\ufffd[0m"),
        ("x" * 200_000, "x" * 300 + "..."),
    ],
)
def test_the_first_line_of_an_error_can_be_stored_and_shown(text: str, line: str) -> None:
    assert first_line(ValueError(text)) == line
    assert line.encode()


def test_a_mechanism_that_leaves_ends_the_worker_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaving.py").write_text(
        "from torch import nn\n\nclass Leaving(nn.Identity):\n    def forward(self, x): raise SystemExit(3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    with Launcher("cpu") as launcher, pytest.raises(SpecError, match="SystemExit: 3"):
        launcher.check(("leaving:Leaving",))
