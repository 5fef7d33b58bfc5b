"""Sweeps on a real GPU: every phase and mode, and an out-of-memory that costs one cell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infsa_bench.record import Failure, Measurement, Record
from infsa_bench.store import load
from infsa_models.registry import MECHANISMS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use"),
]


def sweep(out: Path, *words: str) -> tuple[Record, ...]:
    command = [sys.executable, "-m", "infsa_bench", "sweep", "--device", "cuda:0", "--energy", "none"]
    command += ["--out", str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load(out).records


@pytest.mark.parametrize("execution", ["eager", "cuda-graph", "compile"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "amp-fp16"])
def test_inference_of_all_mechanisms(tmp_path: Path, execution: str, dtype: str) -> None:
    words = ["--res", "224", "--config", "4L-64H", "--iterations", "5", "--dtype", dtype, "--execution", execution]
    records = sweep(tmp_path / "results" / "run", *words)
    assert len(records) == len(MECHANISMS)
    for record in records:
        assert isinstance(record.outcome, Measurement), record
        # Of a busy or hot GPU more may be told.
        assert not {"non_finite_output", "recompiled", "time_limited"} & set(record.outcome.flags)
        assert len(record.outcome.gpu_seconds) == 5
        assert record.outcome.memory_source == "cuda_allocator"
        assert record.outcome.peak_memory_bytes is not None
        assert record.outcome.peak_memory_bytes > record.outcome.model_bytes


def test_training_of_all_mechanisms(tmp_path: Path) -> None:
    words = ["--res", "224", "--config", "4L-64H", "--iterations", "5", "--phase", "train"]
    records = sweep(tmp_path / "results" / "run", *words, "--dtype", "amp-bf16,amp-fp16")
    assert len(records) == 2 * len(MECHANISMS)
    for record in records:
        assert isinstance(record.outcome, Measurement), record


def test_out_of_memory_is_an_outcome_and_the_sweep_goes_on(tmp_path: Path) -> None:
    """The N x N matrix at 9216 x 9216 is 14 TB; no card has that."""
    words = ["--res", "9216,224", "--config", "4L-64H", "--iterations", "2", "--mechanisms", "softmax,infsa-pure"]
    records = sweep(tmp_path / "results" / "run", *words)
    by_resolution = {
        resolution: [r.outcome for r in records if r.case.resolution == resolution] for resolution in (224, 9216)
    }
    assert all(isinstance(outcome, Measurement) for outcome in by_resolution[224])
    for outcome in by_resolution[9216]:
        assert isinstance(outcome, Failure)
        assert (outcome.kind, outcome.stage) == ("oom", "warm-up")
        assert outcome.requested_bytes is not None
        assert outcome.free_bytes is not None
