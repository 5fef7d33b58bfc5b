"""What a worker says of the machine that it runs on."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_nvml import FakeNvml

from infsa_bench import __version__
from infsa_bench.errors import MeterUnavailableError
from infsa_bench.execute.worker import resolve_device
from infsa_bench.measure import environment
from infsa_bench.measure.environment import describe_environment, find_gpu, git_state, matmul_flops_per_second

CPU = torch.device("cpu")


def test_the_environment_of_a_cpu() -> None:
    described = describe_environment(CPU)
    assert (described.device, described.device_type) == ("cpu", "cpu")
    assert described.device_name
    assert described.device_memory_bytes > 2**30
    assert described.torch_version == torch.__version__
    assert described.torch_threads == torch.get_num_threads()
    assert described.infsa_bench_version == __version__
    assert described.gpu is None
    assert described.key == describe_environment(CPU).key


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


def test_the_rate_of_a_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that moves 0.0625 s a reading: four readings after the start, three products between them."""
    readings = itertools.count()
    monkeypatch.setattr(environment.time, "perf_counter", lambda: next(readings) / 16)
    rate = matmul_flops_per_second(CPU, torch.float32, seconds=0.25)
    assert rate == 2 * 1024**3 * 3 / 0.25


def properties_of(uuid: str, bus: int) -> SimpleNamespace:
    return SimpleNamespace(uuid=uuid.removeprefix("GPU-"), pci_domain_id=0, pci_bus_id=bus, pci_device_id=0)


def test_a_gpu_is_found_by_identity_not_by_number(fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's first GPU is NVML's second."""
    fake_nvml.reset(devices=2)
    second = fake_nvml.device(1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties_of(second.uuid, 2))
    facts = find_gpu(torch.device("cuda:0")).facts
    assert (facts.nvml_index, facts.uuid, facts.name) == (1, second.uuid, "FAKE GPU 1")
    assert facts.is_fake


@pytest.mark.parametrize(("uuid", "bus"), [("GPU-00000000-0000-0000-0000-000000000000", 9), ("first", 2)])
def test_a_gpu_that_nvml_does_not_know_or_knows_twice_is_refused(
    fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, uuid: str, bus: int
) -> None:
    fake_nvml.reset(devices=2)
    uuid = fake_nvml.device(0).uuid if uuid == "first" else uuid
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties_of(uuid, bus))
    with pytest.raises(MeterUnavailableError) as refusal:
        find_gpu(torch.device("cuda:0"))
    assert refusal.value.reason == "identity"


@pytest.mark.parametrize(("available", "expected"), [(True, "cuda:0"), (False, "cpu")])
def test_auto_prefers_a_gpu(monkeypatch: pytest.MonkeyPatch, available: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert str(resolve_device("auto")) == expected
    assert str(resolve_device("cpu")) == "cpu"
    assert str(resolve_device("cuda:3")) == "cuda:3"
