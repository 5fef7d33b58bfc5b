from __future__ import annotations

import dataclasses

import pytest
from sample_records import make_energy, make_failure, make_measurement, make_record
from table1_records import A100, GIB, H200, measured, run_of, table1_records

from infsa_bench.analyze.sides import Estimate, Reach, paper_side, sides_of
from infsa_bench.errors import SpecError
from infsa_models.registry import CONFIGS, MECHANISMS


def test_the_paper_is_a_side_with_assumed_energy() -> None:
    paper = paper_side()
    assert not sides_of(run_of([measured(0.1, implementation="as published")]))[0].is_paper
    assert (paper.title, paper.device, paper.is_paper) == ("paper", "NVIDIA A100 40 GB", True)
    assert len(paper.cells) == 39
    cell = paper.cell("4L-64H", "infsa-linear", "infer", 1024)
    assert cell.latency_seconds == Estimate(value=0.00433)
    assert (cell.energy_kind, cell.precision, cell.status) == ("assumed", "amp-fp16", "ok")
    assert cell.implied_watts == pytest.approx(200, rel=0.005)
    assert paper.parameters["4L-64H", "softmax"] == 57_700_000
    assert paper.reach["24L-16H", "mlla"] == Reach(resolution=1024)
    assert paper.reach["24L-16H", "infsa-linear"] == Reach(resolution=9216)
    assert paper.cell("4L-64H", "softmax", "infer", 9216).status == "absent"
    assert paper.cell("4L-64H", "softmax", "infer", 9216).reason == "not in the paper"
    assert len(paper.parameters) == len(paper.reach) == len(CONFIGS) * len(MECHANISMS)


def test_a_run_is_a_side() -> None:
    (side,) = sides_of(run_of(table1_records()))
    assert (side.title, side.device, side.implementation, side.execution) == ("h200", "NVIDIA H200", "fast", "eager")
    assert side.precisions == ("bf16", "amp-bf16")
    cell = side.cell("4L-64H", "softmax", "infer", 1024)
    assert cell.latency_seconds is not None
    assert cell.latency_seconds.value == pytest.approx(0.050)
    assert cell.latency_seconds.low is not None
    assert cell.latency_seconds.low < 0.050
    assert cell.joules_per_image is not None
    assert cell.joules_per_image.value == pytest.approx(15.025)
    assert cell.implied_watts == pytest.approx(300.5)
    assert (cell.energy_kind, cell.processes) == ("measured", 1)
    assert side.cell("4L-64H", "softmax", "train", 1024).precision == "amp-bf16"
    assert side.cell("24L-16H", "agent", "infer", 1024).status == "timeout"
    assert side.cell("24L-16H", "agent", "train", 1024).status == "absent"
    assert side.reach["4L-64H", "softmax"] == Reach(resolution=1024, next_resolution=9216, next_status="oom")
    assert side.reach["24L-16H", "agent"] == Reach(resolution=None, next_resolution=1024, next_status="timeout")
    assert side.parameters["4L-64H", "softmax"] == 57_650_152


def test_each_implementation_execution_and_precision_is_a_side() -> None:
    records = [
        *(measured(0.1, implementation=name, precision="bf16") for name in ("reference", "fast")),
        measured(0.1, precision="fp32"),
        measured(0.1, precision="fp32", execution="compile"),
        measured(0.1, precision="amp-bf16", phase="train"),
        measured(0.1, precision="amp-fp16", phase="train"),
    ]
    found = [(side.implementation, side.execution, side.precisions) for side in sides_of(run_of(records))]
    assert sorted(found) == [
        ("fast", "eager", ("bf16",)),
        ("reference", "compile", ("fp32",)),
        ("reference", "eager", ("amp-fp16",)),
        ("reference", "eager", ("bf16", "amp-bf16")),
        ("reference", "eager", ("fp32",)),
    ]


@pytest.mark.parametrize("is_reversed", [False, True])
def test_a_precision_is_of_a_phase(is_reversed: bool) -> None:
    """What is trained under autocast goes with inference in its half precision; inference under autocast does not."""
    records = [
        measured(0.02, precision="bf16", resolution=1024),
        measured(0.05, precision="amp-bf16", resolution=1024),
        measured(0.09, precision="amp-bf16", resolution=1024, phase="train"),
    ]
    sides = sides_of(run_of(records[::-1] if is_reversed else records))
    latencies = {
        cell.precision: cell.latency_seconds.value
        for side in sides
        for (_, _, phase, _), cell in side.cells.items()
        if phase == "infer" and cell.latency_seconds is not None
    }
    assert latencies == {"bf16": pytest.approx(0.02), "amp-bf16": pytest.approx(0.05)}
    assert sorted(len(side.cells) for side in sides) == [1, 2]
    (with_training,) = (side for side in sides if len(side.cells) == 2)
    assert with_training.cell("4L-64H", "softmax", "train", 1024).status == "ok"


def test_two_machines_are_two_sides() -> None:
    run = run_of([measured(0.1)])
    other = dataclasses.replace(measured(0.2), environment=A100.key)
    environments = {H200.key: H200, A100.key: A100}
    manifest = dataclasses.replace(run.manifest, environments=environments)
    both = dataclasses.replace(
        run, manifest=manifest, rows=(*run.rows, dataclasses.replace(run.rows[0], environment=A100.key))
    )
    assert {side.device for side in sides_of(both)} == {"NVIDIA H200", "NVIDIA A100-SXM4-40GB"}
    assert other.environment == A100.key


def test_other_cells_are_no_part_of_it() -> None:
    alone = measured(0.1)
    others = [
        measured(0.1, batch_size=8),
        measured(0.1, options=(("cls_prune", "1"),)),
        measured(0.1, mechanism="some.package:Mixer"),
    ]
    (side,) = sides_of(run_of([alone, *others]))
    assert list(side.cells) == [("4L-64H", "softmax", "infer", 224)]
    with pytest.raises(SpecError, match="has no cell of the nine mechanisms, with one image a batch and no options"):
        sides_of(run_of(others))


@pytest.mark.parametrize(
    ("axes", "choices", "kernels"),
    [
        ({"mechanism": "softmax", "implementation": "reference"}, {}, "PyTorch operators"),
        ({"mechanism": "softmax", "implementation": "fast"}, {"backend": "flash"}, "vendor kernel (flash)"),
        ({"mechanism": "softmax", "implementation": "fast"}, {"backend": "math"}, "PyTorch operators"),
        ({"mechanism": "linformer", "implementation": "fast"}, {}, "vendor kernel"),
        ({"mechanism": "linformer", "implementation": "reference"}, {}, "PyTorch operators"),
        ({"mechanism": "mlla", "implementation": "fast"}, {"host": "lean"}, "PyTorch operators"),
        ({"mechanism": "infsa-linear"}, {"kernel": "triton"}, "hand-written kernel (triton)"),
        ({"execution": "compile"}, {}, "PyTorch operators, compiled"),
        ({"execution": "cuda-graph"}, {"backend": "cudnn"}, "vendor kernel (cudnn), CUDA graph"),
    ],
)
def test_which_kernels_a_cell_ran_on(axes: dict[str, str], choices: dict[str, str], kernels: str) -> None:
    (side,) = sides_of(run_of([measured(0.1, choices=choices, **axes)]))
    (cell,) = side.cells.values()
    assert cell.kernels == kernels


def test_what_a_process_held_is_nvmls_number_where_there_is_one() -> None:
    sizes = {"peak_memory_bytes": GIB, "peak_reserved_bytes": 2 * GIB, "nvml_process_bytes": 3 * GIB}
    for expected in (3 * GIB, 2 * GIB, GIB):
        (side,) = sides_of(run_of([measured(0.1, **sizes)]))
        assert next(iter(side.cells.values())).device_memory_bytes == expected
        sizes[next(name for name in reversed(sizes) if sizes[name] is not None)] = None  # type: ignore[assignment]


def test_energy_of_low_confidence_says_so() -> None:
    energy = make_energy(doubts=("shared",))
    (side,) = sides_of(run_of([make_record(make_measurement([0.1], energy=energy))]))
    (cell,) = side.cells.values()
    assert (cell.energy_kind, cell.energy_reason) == ("measured_low_confidence", "shared")


def test_a_failed_cell_has_no_number() -> None:
    (side,) = sides_of(run_of([make_record(make_failure("oom", "too much"))]))
    (cell,) = side.cells.values()
    assert (cell.status, cell.reason, cell.latency_seconds, cell.implied_watts, cell.kernels) == (
        "oom",
        "too much",
        None,
        None,
        "",
    )
