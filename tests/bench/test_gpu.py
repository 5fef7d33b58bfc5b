"""Sweeps on a real GPU: every phase and mode, and an out-of-memory that costs one cell.

What is not marked ``soak`` runs in a reference run, which has two minutes for all tests on a GPU.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infsa_bench.analyze.max_resolution import summarize_search
from infsa_bench.execute.device_lock import DeviceLock
from infsa_bench.measure.environment import describe_environment
from infsa_bench.record import Failure, Measurement, Record
from infsa_bench.store import load
from infsa_models.registry import MECHANISMS, load_class
from infsa_models.vit import build_vit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that torch can use"),
]


def missing_package(mechanism: str) -> str | None:
    """The package that a mechanism needs and this machine lacks."""
    try:
        load_class(MECHANISMS[mechanism].implementations["reference"])
    except ModuleNotFoundError as error:
        return error.name
    return None


INSTALLED = [name for name in MECHANISMS if missing_package(name) is None]


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_its_package_is_there(mechanism: str) -> None:
    """The others are tested without those that lack theirs."""
    if (package := missing_package(mechanism)) is not None:
        pytest.skip(f"{mechanism} needs {package}, which is not installed")


def sweep(out: Path, *words: str) -> tuple[Record, ...]:
    command = [sys.executable, "-m", "infsa_bench", "sweep", "--device", "cuda:0", "--energy", "none", "--no-report"]
    command += ["--out", str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load(out).records


@pytest.mark.parametrize(
    ("execution", "dtype"),
    [
        ("eager", "bf16"),
        *(
            pytest.param(execution, dtype, marks=pytest.mark.soak)
            for execution in ("eager", "cuda-graph", "compile")
            for dtype in ("bf16", "fp16", "amp-fp16")
            if (execution, dtype) != ("eager", "bf16")
        ),
    ],
)
def test_inference_of_all_mechanisms(tmp_path: Path, execution: str, dtype: str) -> None:
    words = ["--res", "224", "--config", "4L-64H", "--dtype", dtype, "--execution", execution, "--no-peaks"]
    words += ["--warmup", "3", "--iterations", "5", "--mechanisms", ",".join(INSTALLED)]
    records = sweep(tmp_path / "results" / "run", *words, "--impl", "reference,fast")
    assert len(records) == 2 * len(INSTALLED)
    for record in records:
        assert isinstance(record.outcome, Measurement), record
        # Of a busy or hot GPU more may be told.
        assert not {"non_finite_output", "recompiled", "time_limited"} & set(record.outcome.flags)
        assert len(record.outcome.gpu_seconds) == 5
        assert record.outcome.memory_source == "cuda_allocator"
        assert record.outcome.peak_memory_bytes is not None
        assert record.outcome.peak_memory_bytes > record.outcome.model_bytes
        # Eager inference is also captured and replayed, for comparison.
        assert "graph_failed" not in record.outcome.flags
        assert bool(record.outcome.graph_seconds_per_iteration) == (execution == "eager")


@pytest.mark.soak
def test_peaks_and_what_models_make_of_them(tmp_path: Path) -> None:
    out = tmp_path / "results" / "run"
    words = ["--res", "1024", "--config", "4L-64H", "--iterations", "5", "--mechanisms", "softmax,infsa-linear"]
    records = sweep(out, *words, "--execution", "eager,compile,cuda-graph")
    peaks = load(out).peaks
    assert peaks is not None
    assert peaks.flops_per_second.keys() == {"fp32", "bf16", "fp16"}
    # Without TF32, tensor cores leave float32 far behind.
    assert peaks.flops_per_second["bf16"].per_second > 3 * peaks.flops_per_second["fp32"].per_second
    assert peaks.copied_bytes_per_second.per_second > 1e11
    assert peaks.copied_bytes_per_second.spread < 0.1
    operations = {(record.case.mechanism, record.outcome.operations) for record in records}  # type: ignore[union-attr]
    # However it is executed, it is the same model.
    assert len(operations) == 2
    assert None not in {count for _, count in operations}


@pytest.mark.parametrize(
    ("mechanisms", "dtypes"),
    [
        (["softmax", "infsa-linear", "infsa-pure"], "amp-bf16"),
        pytest.param(INSTALLED, "amp-bf16,amp-fp16", marks=pytest.mark.soak),
    ],
    ids=["some", "all"],
)
def test_training_of_all_mechanisms(tmp_path: Path, mechanisms: list[str], dtypes: str) -> None:
    words = ["--res", "224", "--config", "4L-64H", "--warmup", "3", "--iterations", "5", "--phase", "train"]
    words += ["--mechanisms", ",".join(mechanisms), "--dtype", dtypes, "--impl", "reference,fast", "--no-peaks"]
    records = sweep(tmp_path / "results" / "run", *words)
    assert len(records) == 2 * len(dtypes.split(",")) * len(mechanisms)
    for record in records:
        assert isinstance(record.outcome, Measurement), record


@pytest.mark.parametrize("mechanisms", ["softmax", pytest.param("infsa-pure", marks=pytest.mark.soak)])
def test_out_of_memory_is_an_outcome_and_the_sweep_goes_on(tmp_path: Path, mechanisms: str) -> None:
    """The N x N matrix at 9216 x 9216 is 14 TB; no card has that."""
    words = ["--res", "9216,224", "--config", "4L-64H", "--iterations", "2", "--mechanisms", mechanisms]
    words += ["--impl", "reference", "--no-peaks"]
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
        assert outcome.cause == "allocation"
        assert outcome.allocated_bytes is not None
        assert outcome.reserved_bytes is not None
        assert outcome.allocated_bytes <= outcome.reserved_bytes


@pytest.mark.soak
def test_a_smaller_card_is_emulated(tmp_path: Path) -> None:
    """In 4 GiB the N x N matrix of 1024 x 1024 (2 GiB in bf16, several times) does not fit, a smaller one does."""
    words = ["--res", "224,1024,1536", "--config", "4L-64H", "--iterations", "2", "--mechanisms", "softmax"]
    words += ["--impl", "reference", "--memory-limit", "4GiB", "--no-peaks"]
    records = sweep(tmp_path / "results" / "run", *words)
    small, large, larger = (record.outcome for record in records)
    assert isinstance(small, Measurement)
    assert isinstance(large, Failure)
    assert (large.kind, large.cause) == ("oom", "allocation")
    assert large.free_bytes is not None
    assert large.free_bytes < 4 * 2**30
    assert large.reserved_bytes is not None
    assert large.reserved_bytes < 4 * 2**30
    assert isinstance(larger, Failure)
    assert larger.dominated_by == records[1].case.id


@pytest.mark.soak
@pytest.mark.parametrize("config", ["4L-64H", "24L-16H"])
def test_every_fast_mechanism_completes_the_largest_image_on_40_gib(tmp_path: Path, config: str) -> None:
    """9216 x 9216, bfloat16, model and activations together; one forward each."""
    words = ["--res", "9216", "--config", config, "--iterations", "1", "--warmup", "0", "--impl", "fast"]
    words += ["--mechanisms", ",".join(INSTALLED)]
    records = sweep(tmp_path / "results" / "run", *words, "--memory-limit", "40GiB", "--no-prune", "--no-peaks")
    assert len(records) == len(INSTALLED)
    for record in records:
        assert isinstance(record.outcome, Measurement), record
        assert record.outcome.choices["host"] == "lean"
        assert "non_finite_output" not in record.outcome.flags or record.case.mechanism == "soft"


@pytest.mark.parametrize(
    "precision",
    [torch.bfloat16, *(pytest.param(dtype, marks=pytest.mark.soak) for dtype in (torch.float16, torch.float32))],
)
@pytest.mark.parametrize("mechanism", INSTALLED)
def test_fast_is_reference_on_a_gpu(mechanism: str, precision: torch.dtype) -> None:
    """Logits of the whole folded model, 20,737 tokens (two pieces), as close to float64 as those of reference.

    In float64 PyTorch has no fused attention: softmax, which knows no pieces, is compared at 1024 x 1024, where its
    N x N matrix is 8.6 GB and not 220 GB.
    """
    logits = {}
    side = 1024 if mechanism == "softmax" else 2304
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1)).cuda()
    for implementation in ("reference", "fast"):
        if implementation == "reference" and mechanism == "infsa-pure":
            # N x N does not fit here; fast against its exact self is left.
            continue
        torch.manual_seed(0)
        model = build_vit(mechanism, "4L-64H", side, implementation=implementation, device="cuda", dtype=precision)
        model.eval().fold_for_inference()
        with torch.inference_mode():
            logits[implementation] = model(image.to(precision)).double()
            exact = model.double()(image.double())
        logits[implementation] = (logits[implementation] - exact).norm() / exact.norm()
        del model
        torch.cuda.empty_cache()
    rounding = torch.finfo(precision).eps
    assert logits["fast"] <= 2 * max(logits.get("reference", torch.tensor(0.0)).item(), 4 * rounding)


def test_the_limit_holds_where_it_says() -> None:
    """In a process of its own; the worker tries it out in the same way.

    Where the driver does not list us, all that is taken on the card counts as ours: the limit is far above that.
    """
    if torch.cuda.get_device_properties(0).total_memory < 20 * 2**30:
        pytest.skip("needs a card of 20 GiB")
    script = """
import torch
from infsa_bench.execute.instruments import open_instruments
device = torch.device("cuda:0")
torch.zeros(1, device=device)
instruments = open_instruments(device).limited(16 * 2**30)
assert instruments.memory_limit.problem() is None, instruments.memory_limit.problem()
assert 12 * 2**30 < instruments.available_bytes() < 16 * 2**30
instruments.close()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.soak
def test_the_largest_image_on_a_smaller_card(tmp_path: Path) -> None:
    out = tmp_path / "results" / "run"
    command = [sys.executable, "-m", "infsa_bench", "maxres", "--device", "cuda:0", "--out", str(out)]
    command += [
        "--mechanism",
        "softmax,infsa-linear",
        "--impl",
        "reference",
        "--memory-limit",
        "8GiB",
        "--max-res",
        "4096",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = load(out)
    assert run.manifest.search is not None
    softmax, linear = summarize_search(run.manifest.search, run.records)
    assert softmax.result.limit == "memory"
    assert softmax.result.largest_ok is not None
    assert linear.result.reached_largest or (linear.result.largest_ok or 0) > 2 * softmax.result.largest_ok


@pytest.mark.soak
def test_two_sweeps_on_one_gpu_are_refused(tmp_path: Path) -> None:
    torch.zeros(1, device="cuda:0")
    environment = describe_environment(torch.device("cuda:0"))
    with DeviceLock(environment, allow_shared=False):
        command = [sys.executable, "-m", "infsa_bench", "sweep", "--device", "cuda:0", "--res", "224"]
        command += ["--mechanisms", "softmax", "--iterations", "2", "--energy", "none"]
        done = subprocess.run([*command, "--out", str(tmp_path / "a")], capture_output=True, text=True)
        assert (done.returncode, (tmp_path / "a").exists()) == (2, False)
        assert "--allow-shared" in done.stderr
        done = subprocess.run(
            [*command, "--allow-shared", "--out", str(tmp_path / "b")], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    (record,) = load(tmp_path / "b").records
    assert isinstance(record.outcome, Measurement)
    assert "shared" in record.outcome.flags
