from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from drawn import curves, draw, hollow, legend_of, notes, overlapping, run_of
from fake_worker import PEAKS
from sample_records import ENVIRONMENT, make_failure, make_measurement, make_record

from infsa_bench.analyze.run import Run, summarized
from infsa_bench.machine import Environment
from infsa_bench.record import OperationCount, Record
from infsa_bench.report.figures.roofline import Roof, describe_roofline, render_roofline, roofline_panels

TERA = 10**12


def counted(seconds: float, tera: float, giga: float, *, launch_bound: bool = False, **changes: object) -> Record:
    """A cell with so many TFLOP of products and so many GB that operators moved."""
    operations = OperationCount(
        matmul_flops=round(tera * TERA), elementwise_flops=0, operator_bytes=round(giga * 10**9)
    )
    return make_record(make_measurement([seconds], operations=operations, launch_bound=launch_bound), **changes)


RECORDS = [
    counted(1.0, 10, 1000, launch_bound=True),
    counted(1.0, 40, 1000, resolution=512),
    counted(1.0, 20, 100, mechanism="infsa-linear"),
    make_record(make_failure(), resolution=1024),
    make_record(make_measurement(operations=None), mechanism="mlla"),
]


def run_with(records: Sequence[Record], environment: Environment = ENVIRONMENT, **changes: object) -> Run:
    """A run of which the peaks are 50 TFLOP/s and 2 TB/s, of the device that it ran on."""
    rate = PEAKS.copied_bytes_per_second
    fields = {
        "device": environment.device,
        "device_name": environment.device_name,
        "device_uuid": environment.device_uuid,
        "torch_threads": environment.torch_threads,
        "flops_per_second": {"fp32": dataclasses.replace(rate, per_second=50.0 * TERA)},
        "copied_bytes_per_second": dataclasses.replace(rate, per_second=2.0 * TERA),
    }
    peaks = dataclasses.replace(PEAKS, **(fields | changes))  # type: ignore[arg-type]
    run = run_of([dataclasses.replace(record, environment=environment.key) for record in records])
    manifest = dataclasses.replace(run.manifest, environments={environment.key: environment})
    return summarized(dataclasses.replace(run, manifest=manifest, peaks=peaks))


def test_points_lie_under_the_roof() -> None:
    figure = draw(render_roofline, run_with(RECORDS))
    (axes,) = figure.axes
    softmax, linear = curves(axes)
    assert list(softmax.get_xdata()) == [10, 40]
    assert list(softmax.get_ydata()) == [10, 40]
    assert (list(linear.get_xdata()), list(linear.get_ydata())) == ([200], [20])
    (roof,) = [line for line in axes.lines if line not in (softmax, linear)]
    left, ridge, right = roof.get_xdata()  # type: ignore[misc]
    assert (left < 10, ridge, right > 200) == (True, 25, True)
    assert list(roof.get_ydata()) == [pytest.approx(2 * left), 50, 50]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert (axes.get_xlim()[0], axes.get_xlim()[1]) == (left, right)
    assert hollow(axes) == [(10, 10)]
    assert legend_of(figure) == ["softmax", "infsa-linear", "hollow: launch-bound", "roof, measured"]
    assert notes(axes) == ["roof measured: 50.0 TFLOP/s and 2.00 TB/s"]
    assert overlapping(figure) == []


def test_the_data_sheet_is_a_dashed_roof() -> None:
    h200 = dataclasses.replace(ENVIRONMENT, device="cuda:0", device_name="NVIDIA H200")
    figure = draw(render_roofline, run_with(RECORDS, h200))
    (axes,) = figure.axes
    stated = axes.lines[-1]
    assert stated.get_linestyle() == "--"
    assert list(stated.get_ydata())[1:] == [67, 67]
    assert legend_of(figure)[-2:] == ["roof, measured", "roof, data sheet"]
    assert notes(axes) == ["roof measured: 50.0 TFLOP/s and 2.00 TB/s; data sheet: 67.0 TFLOP/s and 4.80 TB/s"]


def test_only_with_peaks_of_this_device_in_this_precision_and_counted_operations() -> None:
    assert render_roofline(run_with(RECORDS)) is not None
    assert render_roofline(run_of(RECORDS)) is None
    assert render_roofline(run_with(RECORDS, device_name="another")) is None
    assert render_roofline(run_with(RECORDS, flops_per_second={})) is None
    assert render_roofline(run_with(RECORDS[3:])) is None
    assert render_roofline(run_with([counted(1.0, 0, 10), counted(1.0, 10, 0, resolution=512)])) is None
    assert describe_roofline(run_of(RECORDS)).endswith("0 panels.")


def test_blocks_are_panels_with_the_roof_of_their_precision() -> None:
    run = run_with([*RECORDS, counted(1.0, 10, 1000, precision="bf16")])
    # There is no peak in bfloat16.
    assert [panel.title for panel in roofline_panels(run)] == ["4L-64H, infer, fp32, eager, batch 1"]
    run = run_with([*RECORDS, counted(1.0, 10, 1000, phase="train")])
    assert len(draw(render_roofline, run).axes) == 2


def test_roofs() -> None:
    roof = Roof(flops_per_second=100.0, bytes_per_second=10.0)
    assert (roof.ridge, roof.at(5), roof.at(10), roof.at(1000)) == (10, 50, 100, 100)


def test_words() -> None:
    assert describe_roofline(run_with(RECORDS)) == (
        "Achieved FLOP/s against FLOP per byte under the device's roofline: 1 panel. 4L-64H, infer, fp32, eager, "
        "batch 1: measured roof 50.0 TFLOP/s and 2.00 TB/s; nearest to it comes softmax at 512 x 512 pixels with "
        "80.0 %."
    )
