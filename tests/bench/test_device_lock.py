"""One sweep on a GPU at a time, across processes."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_worker import ENVIRONMENT

from infsa_bench.errors import SpecError
from infsa_bench.execute import device_lock
from infsa_bench.execute.device_lock import DeviceLock

GPU = dataclasses.replace(ENVIRONMENT, device="cuda:0", device_name="a GPU", device_uuid="GPU-1234")

HOLDER = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_device_lock import GPU
from infsa_bench.execute.device_lock import DeviceLock
with DeviceLock(GPU, allow_shared={allow_shared}, folder=Path({folder!r})):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_sweep(folder: Path, *, allow_shared: bool = False) -> Iterator[subprocess.Popen[str]]:
    script = HOLDER.format(tests=str(Path(__file__).parent), folder=str(folder), allow_shared=allow_shared)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_sweep_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    with another_sweep(tmp_path) as first:
        with pytest.raises(SpecError, match=r"another sweep runs on cuda:0 \(a GPU\).*--allow-shared"):
            DeviceLock(GPU, allow_shared=False, folder=tmp_path)
        # However it goes: the lock dies with its process.
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        with DeviceLock(GPU, allow_shared=False, folder=tmp_path) as lock:
            assert not lock.is_shared()


def test_both_of_two_that_share_know(tmp_path: Path) -> None:
    with DeviceLock(GPU, allow_shared=False, folder=tmp_path) as first:
        assert not first.is_shared()
        with another_sweep(tmp_path, allow_shared=True):
            for _ in range(3):
                assert first.is_shared()
            with DeviceLock(GPU, allow_shared=True, folder=tmp_path) as third:
                assert third.is_shared()
        assert not first.is_shared()
        # Having looked costs nobody the lock.
        with pytest.raises(SpecError, match="another sweep"):
            DeviceLock(GPU, allow_shared=False, folder=tmp_path)


def test_other_devices_are_other_locks_and_a_processor_has_none(tmp_path: Path) -> None:
    other = dataclasses.replace(GPU, device_uuid="GPU-5678")
    unnamed = dataclasses.replace(GPU, device_uuid=None)
    with another_sweep(tmp_path):
        for environment in (other, unnamed, ENVIRONMENT):
            with DeviceLock(environment, allow_shared=False, folder=tmp_path) as lock:
                assert not lock.is_shared()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"infsa-bench-{name}.lock" for name in ("GPU-1234", "GPU-5678", "cuda-0")]


def test_a_lock_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    (tmp_path / "infsa-bench-GPU-1234.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SpecError, match=r"cannot open .*GPU-1234.lock .*--allow-shared"):
        DeviceLock(GPU, allow_shared=False, folder=tmp_path)
    with DeviceLock(GPU, allow_shared=True, folder=tmp_path) as lock:
        assert not lock.is_shared()
    assert not (tmp_path / "elsewhere").exists()


def test_a_child_does_not_inherit_the_lock(tmp_path: Path) -> None:
    with DeviceLock(GPU, allow_shared=False, folder=tmp_path):
        child = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        with DeviceLock(GPU, allow_shared=False, folder=tmp_path) as lock:
            assert not lock.is_shared()
    finally:
        child.kill()
        child.wait()


def test_everybody_looks_in_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever each one's folder for temporary files is: clusters give every job its own."""
    unique = dataclasses.replace(GPU, device_uuid=f"GPU-of-a-test-{os.getpid()}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with DeviceLock(unique, allow_shared=False):
        monkeypatch.setenv("TMPDIR", "/")
        with pytest.raises(SpecError, match="another sweep"):
            DeviceLock(unique, allow_shared=False)
    (device_lock.LOCKS / f"infsa-bench-{unique.device_uuid}.lock").unlink()
