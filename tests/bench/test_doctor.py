from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from test_cli import CommandLine, fake_launcher

# The fixture of the command line is that of its own tests.
from test_cli import run as run

from infsa_bench.commands.doctor import doctor


@pytest.fixture
def run_fake(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.setattr("infsa_bench.commands.doctor.Launcher", fake_launcher())
    return run


def test_one_aligned_line_a_finding(run_fake: CommandLine) -> None:
    result = run_fake("doctor")
    assert (result.code, result.err) == (0, "")
    # Brackets in a detail are text.
    assert result.out == "latency     yes  host clock\ngpu energy  no   no [GPU]\n"
    assert list(run_fake.folder.iterdir()) == []


def test_a_selfcheck_adds_its_checks(run_fake: CommandLine) -> None:
    result = run_fake("doctor", "--selfcheck", "--device", "cuda:0")
    assert result.code == 0
    assert result.out.splitlines()[-1] == "linearity   pass  J(2N) / J(N) = 2.00"


def test_a_failed_check_exits_1(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infsa_bench.commands.doctor.Launcher", fake_launcher("defective"))
    result = run("doctor", "--selfcheck")
    assert (result.code, result.err) == (1, "")
    assert "linearity   fail  J(2N)" in result.out
    # What is not tried cannot fail.
    assert run("doctor").code == 0


@pytest.mark.parametrize("selfcheck", [[], ["--selfcheck"]])
def test_a_diagnosis_that_ends_the_worker_is_one_line(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch, selfcheck: list[str]
) -> None:
    monkeypatch.setattr("infsa_bench.commands.doctor.Launcher", fake_launcher("deaf"))
    result = run("doctor", *selfcheck)
    assert (result.code, result.out, result.err.count("\n")) == (5, "", 1)
    assert "the diagnosis ended the worker" in result.err


@pytest.mark.parametrize("device", ["tpu", "cuda:x", ""])
def test_no_device_is_bad_input(run: CommandLine, device: str) -> None:
    result = run("doctor", "--device", device)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "unknown device" in result.err


def test_a_device_that_cannot_be_used_exits_2(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infsa_bench.commands.doctor.Launcher", fake_launcher("refused"))
    result = run("doctor", "--device", "cuda:7")
    assert (result.code, result.out) == (2, "")
    assert result.err == "infsa-bench: error: device 'cuda:7' cannot be used: by design\n"


def test_the_real_worker_diagnoses_this_machine() -> None:
    shown = io.StringIO()
    assert doctor("cpu", False, Console(file=shown)) == 0
    lines = shown.getvalue().splitlines()
    assert lines
    for line in lines:
        assert re.match(r"\S.*?  (yes|limited|no) ", line), line
