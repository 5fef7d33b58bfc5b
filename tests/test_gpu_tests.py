"""Tests that need a GPU can be collected where little is installed, and a reference run knows the short ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infsa_bench.reference.stages import GPU_TESTS

ROOT = Path(__file__).parent.parent

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""
MISSING = ("playwright", "beartype", "linformer", "performer_pytorch", "xformers")


def collect(folder: Path, blocked: tuple[str, ...], *words: str) -> subprocess.CompletedProcess[str]:
    """Collect tests where packages are missing, also for every process that is started."""
    (folder / "sitecustomize.py").write_text(BLOCKER.format(blocked=set(blocked)))
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT / "bench"), str(ROOT / "models")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", "-m", "gpu", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_missing_packages_are_no_error(tmp_path: Path) -> None:
    done = collect(tmp_path, MISSING, "tests")
    assert done.returncode == 0, done.stdout
    assert "test_gpu.py::test_training_of_all_mechanisms[some]" in done.stdout
    assert "error" not in done.stdout.lower()


def test_the_short_ones_need_pytest_alone(tmp_path: Path) -> None:
    done = collect(tmp_path, (*MISSING, "hypothesis", "hatchling"), "-p", "no:hypothesispytest", *GPU_TESTS)
    assert done.returncode == 0, done.stdout
    assert "test_backends_of_a_gpu" in done.stdout


def test_a_reference_run_has_all_that_are_short() -> None:
    marked = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"^@pytest\.mark\.gpu$|^    pytest\.mark\.gpu,$", file.read_text(), re.MULTILINE)
        and not re.search(r"^    pytest\.mark\.soak,$", file.read_text(), re.MULTILINE)
    }
    assert marked == set(GPU_TESTS)


@pytest.mark.parametrize("package", ["linformer", "performer_pytorch"])
def test_a_mechanism_without_its_package_is_unsupported(package: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER.format(blocked={package}))
    code = (
        "from infsa_bench.execute.workload import unsupported_reason\n"
        "from infsa_bench.spec import Sweep\n"
        "axes = dict(configs=('4L-64H',), resolutions=(32,), phases=('infer',), precisions=(), executions=('eager',))\n"
        "names = ('linformer', 'performer', 'softmax')\n"
        "sweep = Sweep(mechanisms=names, implementations=('reference', 'fast'), batch_sizes=(1,), **axes)\n"
        "for case in sweep.cases('cpu'): print(case.mechanism, unsupported_reason(case, 'cpu'))\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT / "bench"), str(ROOT / "models")])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    found = dict.fromkeys(done.stdout.splitlines())
    reason = f"needs the package {package}, which is not installed"
    missing = package.partition("_")[0]
    others = {"linformer", "performer", "softmax"} - {missing}
    assert set(found) == {f"{missing} {reason}", *(f"{name} None" for name in others)}
