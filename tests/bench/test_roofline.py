from __future__ import annotations

import dataclasses

import pytest
from fake_worker import PEAKS
from sample_records import ENVIRONMENT, GPU, make_failure, make_measurement, make_record

from infsa_bench.analyze.roofline import (
    DATA_SHEET,
    achieved_bytes_per_second,
    achieved_flops_per_second,
    data_sheet,
    datasheet_fraction,
    measured_fraction,
    roofline_fraction,
)
from infsa_bench.analyze.summary import summarize
from infsa_bench.machine import Environment
from infsa_bench.peaks import MeasuredPeaks
from infsa_bench.record import OperationCount

OPERATIONS = OperationCount(matmul_flops=2**30, elementwise_flops=2**20, operator_bytes=2**28)


def environment_of(name: str, **changes: object) -> Environment:
    return dataclasses.replace(ENVIRONMENT, device="cuda:0", device_name=name, **changes)  # type: ignore[arg-type]


def test_achieved_rates() -> None:
    assert achieved_flops_per_second(OPERATIONS, 0.5) == 2**31
    assert achieved_bytes_per_second(OPERATIONS, 0.5) == 2**29


@pytest.mark.parametrize(
    ("flops", "bandwidth", "expected"),
    [
        # Products bound it: a quarter of a second at the least, of half a second.
        (2.0**32, 2.0**40, 0.5),
        # Memory does: an eighth of a second.
        (2.0**40, 2.0**31, 0.25),
        # Out of caches.
        (2.0**40, 2.0**28, 2.0),
    ],
)
def test_the_fraction_is_of_whichever_bounds(flops: float, bandwidth: float, expected: float) -> None:
    assert roofline_fraction(OPERATIONS, 0.5, flops_per_second=flops, bytes_per_second=bandwidth) == expected


@pytest.mark.parametrize(
    ("name", "half_teraflops", "gigabytes"),
    [
        ("NVIDIA A100-SXM4-40GB", 312, 1555),
        ("A100-SXM4-80GB", 312, 2039),
        ("NVIDIA A100-PCIE-40GB", 312, 1555),
        ("NVIDIA A100 80GB PCIe", 312, 1935),
        ("NVIDIA H100 80GB HBM3", 989.5, 3350),
        ("NVIDIA H100 PCIe", 756, 2000),
        ("NVIDIA H200", 989.5, 4800),
        ("NVIDIA L4", 121, 300),
        ("NVIDIA GeForce RTX 4090", 165.2, 1008),
        ("Tesla T4", 65, 320),
        ("Tesla V100-SXM2-32GB", 125, 900),
    ],
)
def test_known_devices(name: str, half_teraflops: float, gigabytes: float) -> None:
    spec = data_sheet(environment_of(name))
    assert spec is not None
    assert (spec.flops_of("amp-fp16"), spec.memory_bytes_per_second) == (half_teraflops * 1e12, gigabytes * 1e9)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100",
        "NVIDIA H100 80GB HBM2e",
        "NVIDIA H100 96GB HBM3",
        "NVIDIA A10G",
        "NVIDIA L40",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA H200 MIG 1g.18gb",
        "nvidia h200",
        "Some GPU",
        "",
    ],
)
def test_what_is_not_known_by_exactly_its_name_is_unknown(name: str) -> None:
    environment = environment_of(name)
    assert data_sheet(environment) is None
    assert datasheet_fraction(OPERATIONS, 0.5, "bf16", environment) is None


def test_a_part_of_a_device_and_a_processor_are_unknown() -> None:
    part = dataclasses.replace(GPU, mig_enabled=True)
    assert data_sheet(environment_of("NVIDIA H200", gpu=GPU)) is DATA_SHEET["H200"]
    assert data_sheet(environment_of("NVIDIA H200", gpu=part)) is None
    assert data_sheet(dataclasses.replace(ENVIRONMENT, device_name="NVIDIA H200")) is None


def test_every_entry_makes_sense_and_names_its_source() -> None:
    for name, spec in DATA_SHEET.items():
        assert spec.fp16_flops_per_second is not None
        assert 5e13 < spec.fp16_flops_per_second < 1e15, name
        assert spec.bf16_flops_per_second in (None, spec.fp16_flops_per_second)
        assert 5e12 < spec.fp32_flops_per_second < 1e14
        assert 2e11 < spec.memory_bytes_per_second < 5e12
        assert spec.source.startswith("NVIDIA ")


def test_the_precision_chooses_the_peak_of_a_data_sheet() -> None:
    spec = DATA_SHEET["H200"]
    assert [spec.flops_of(name) for name in ("fp32", "bf16", "amp-bf16", "fp16", "amp-fp16")] == [67e12] + [
        989.5e12
    ] * 4
    assert DATA_SHEET["T4"].flops_of("amp-bf16") is None
    assert datasheet_fraction(OPERATIONS, 0.5, "bf16", environment_of("Tesla T4")) is None
    expected = 2**28 / 4.8e12 / 0.5
    assert datasheet_fraction(OPERATIONS, 0.5, "bf16", environment_of("NVIDIA H200")) == pytest.approx(expected)


HERE = dataclasses.replace(PEAKS, device_name=ENVIRONMENT.device_name, torch_threads=ENVIRONMENT.torch_threads)


def test_peaks_hold_for_their_device_and_precision_alone() -> None:
    # 2^30 FLOP at 2^37 FLOP/s are 2^-7 s, 2^28 bytes at 2^34 bytes/s are 2^-6 s.
    assert measured_fraction(OPERATIONS, 0.5, "fp32", HERE, ENVIRONMENT) == 2.0**-5
    # Neither another precision's rate nor the data sheet's stands in.
    assert measured_fraction(OPERATIONS, 0.5, "bf16", HERE, ENVIRONMENT) is None
    assert measured_fraction(OPERATIONS, 0.5, "fp32", None, ENVIRONMENT) is None
    for changes in ({"device_name": "another"}, {"device_uuid": "GPU-1"}, {"torch_threads": 9}, {"device": "cuda:0"}):
        other = dataclasses.replace(ENVIRONMENT, **changes)  # type: ignore[arg-type]
        assert measured_fraction(OPERATIONS, 0.5, "fp32", HERE, other) is None
    assert measured_fraction(OPERATIONS, 0.5, "fp32", HERE, environment_of("NVIDIA H200")) is None


def row_of(environment: Environment, peaks: MeasuredPeaks | None, precision: str = "fp32", **changes: object):  # type: ignore[no-untyped-def]
    measurement = make_measurement([0.5], operations=OPERATIONS, **changes)
    record = make_record(measurement, environment=environment.key, precision=precision)
    (row,) = summarize([record], environments={environment.key: environment}, peaks=peaks)
    return row


def test_a_row_has_what_ran_and_how_near_it_came() -> None:
    row = row_of(ENVIRONMENT, HERE)
    assert (row.matmul_flops, row.elementwise_flops, row.operator_bytes) == (2**30, 2**20, 2**28)
    assert (row.achieved_flops_per_second, row.achieved_bytes_per_second) == (2.0**31, 2.0**29)
    assert (row.roofline_fraction, row.datasheet_fraction) == (2.0**-5, None)


def test_a_data_sheet_alone_gives_its_own_fraction_and_no_other() -> None:
    row = row_of(environment_of("NVIDIA H200"), None, "bf16")
    assert row.roofline_fraction is None
    assert row.datasheet_fraction == pytest.approx(2**28 / 4.8e12 / 0.5)


def test_what_was_not_counted_has_no_rates() -> None:
    row = row_of(ENVIRONMENT, HERE)
    nothing = make_record(make_measurement([0.5], operations=None), environment=ENVIRONMENT.key)
    counted = make_record(make_measurement([0.5], operations=OPERATIONS), environment=ENVIRONMENT.key, replicate=1)
    (empty,) = summarize([nothing], environments={ENVIRONMENT.key: ENVIRONMENT}, peaks=HERE)
    (pooled,) = summarize([nothing, counted], environments={ENVIRONMENT.key: ENVIRONMENT}, peaks=HERE)
    names = ("matmul_flops", "operator_bytes", "achieved_flops_per_second", "roofline_fraction", "datasheet_fraction")
    assert all(getattr(empty, name) is None for name in names)
    assert [getattr(pooled, name) for name in names] == [getattr(row, name) for name in names]
    (failed,) = summarize([make_record(make_failure())], peaks=HERE)
    assert failed.matmul_flops is None
