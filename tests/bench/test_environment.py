"""What a worker says of the machine that it runs on."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

from infsa_bench import __version__
from infsa_bench.execute.worker import resolve_device
from infsa_bench.measure.environment import describe_environment, git_state, matmul_flops_per_second

CPU = torch.device("cpu")


def test_the_environment_of_a_cpu() -> None:
    environment = describe_environment(CPU)
    assert (environment.device, environment.device_type) == ("cpu", "cpu")
    assert environment.device_name
    assert environment.device_memory_bytes > 2**30
    assert environment.torch_version == torch.__version__
    assert environment.torch_threads == torch.get_num_threads()
    assert environment.infsa_bench_version == __version__
    assert environment.driver_version is None
    assert environment.key == describe_environment(CPU).key


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_state_of_the_source_tree(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.invalid", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    source = tmp_path / "source.py"
    source.write_text("x = 1\n")
    assert git_state(source) == (None, None)
    git("init", "--quiet")
    assert git_state(source) == (None, None)
    git("add", "source.py")
    git("commit", "--quiet", "--message", "first")
    assert git_state(source) == (git("rev-parse", "HEAD"), False)
    source.write_text("x = 2\n")
    assert git_state(source) == (git("rev-parse", "HEAD"), True)
    stranger = tmp_path / "site-packages.py"
    stranger.write_text("y = 1\n")
    # An installed copy inside somebody else's checkout is not of their commit.
    assert git_state(stranger) == (None, None)


def test_the_rate_of_a_matrix_product() -> None:
    rate = matmul_flops_per_second(CPU, torch.float32, seconds=0.3)
    left, right = torch.randn(2, 1024, 1024)
    best = min(_seconds(left, right) for _ in range(10))
    # A mean over one moment of a busy machine against the fastest of ten of the next: a wrong unit is far outside.
    assert 0.05 < rate / (2 * 1024**3 / best) < 5


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    start = time.perf_counter()
    left @ right
    return time.perf_counter() - start


@pytest.mark.parametrize(("available", "expected"), [(True, "cuda:0"), (False, "cpu")])
def test_auto_prefers_a_gpu(monkeypatch: pytest.MonkeyPatch, available: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert str(resolve_device("auto")) == expected
    assert str(resolve_device("cpu")) == "cpu"
    assert str(resolve_device("cuda:3")) == "cuda:3"
