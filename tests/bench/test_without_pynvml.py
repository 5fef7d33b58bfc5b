"""A machine whose Python has torch but not nvidia-ml-py: NVML is not there, and everything else is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infsa_bench.reference.stages import GPU_TESTS

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def blocked(tmp_path: Path) -> dict[str, str]:
    """An environment in which, in every process, importing pynvml fails as it does where it was never installed."""
    (tmp_path / "pynvml.py").write_text("raise ModuleNotFoundError(\"No module named 'pynvml'\", name='pynvml')\n")
    paths = [str(tmp_path), str(ROOT / "bench"), str(ROOT / "models")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def run(blocked: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=blocked, capture_output=True, text=True, timeout=300)


def test_nvml_is_unavailable_for_that_reason(blocked: dict[str, str]) -> None:
    program = (
        "from infsa_bench.errors import MeterUnavailableError\n"
        "from infsa_bench.measure.nvml import Gpu, loaded_library, visible_gpus\n"
        "for ask in (visible_gpus, lambda: Gpu.find('GPU-1', None)):\n"
        "    try:\n        ask()\n"
        "    except MeterUnavailableError as error:\n        print(error.reason, error.detail)\n"
        "print(loaded_library())\n"
    )
    done = run(blocked, "-c", program)
    line = "nvml_unavailable NVML cannot be asked: there is no package nvidia-ml-py\n"
    assert (done.stdout, done.stderr) == (line + line + "None\n", "")


def test_a_worker_measures(blocked: dict[str, str], tmp_path: Path) -> None:
    words = ("--device", "cpu", "--res", "32", "--mechanisms", "softmax", "--impl", "fast", "--warmup", "1")
    words += ("--iterations", "3", "--no-peaks", "--no-report", "--out", str(tmp_path / "run"))
    done = run(blocked, "-m", "infsa_bench", "sweep", *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "records.jsonl").read_text().count("\n") == 1


def test_the_tests_of_a_reference_run_are_collected(blocked: dict[str, str]) -> None:
    """Those that need pynvml itself are skipped by name."""
    words = ("-m", "pytest", "-q", "--collect-only", "-rs", "-p", "no:cacheprovider")
    done = run(blocked, *words, *(name for name in GPU_TESTS if name.startswith("tests/bench")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_queues.py::test_a_cpu_is_never_held" in done.stdout
    assert "needs nvidia-ml-py" in done.stdout
    assert "error" not in done.stdout.lower().splitlines()[-1]
