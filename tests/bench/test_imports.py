"""The parent and the reports need no torch: neither for speed nor on a laptop."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT_TORCH = [
    "infsa_bench",
    "infsa_bench.cli",
    "infsa_bench.commands.sweep",
    "infsa_bench.commands.report",
    "infsa_bench.commands.list",
    "infsa_bench.commands.doctor",
    "infsa_bench.commands.peaks",
    "infsa_bench.commands.compare",
    "infsa_bench.commands.baseline",
    "infsa_bench.commands.gate",
    "infsa_bench.commands.aa",
    "infsa_bench.commands.export",
    "infsa_bench.commands.calibrate",
    "infsa_bench.commands.reference_run",
    "infsa_bench.commands.instruments",
    "infsa_bench.commands.unpack",
    "infsa_bench.commands.results",
    "infsa_bench.analyze.compare",
    "infsa_bench.analyze.roofline",
    "infsa_bench.sweep",
    "infsa_bench.execute.launcher",
    "infsa_bench.execute.messages",
    "infsa_bench.execute.cores",
    "infsa_bench.execute.local_engine",
    "infsa_bench.execute.ray_cluster",
    "infsa_bench.execute.ray_engine",
    "infsa_bench.execute.ray_station",
    "infsa_bench.commands.fleet",
    "infsa_bench.codec",
    "infsa_bench.protocol",
    "infsa_bench.intervals",
    "infsa_bench.report.figures",
    "infsa_models.registry",
    "infsa_models.cost",
]


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_a_fresh_interpreter_imports_no_torch(module: str) -> None:
    program = f"import sys, {module}; print([name for name in ('torch', 'timm', 'pynvml') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
