from __future__ import annotations

import dataclasses

from fake_worker import PEAKS

from infsa_bench.analyze.roofline import DATA_SHEET
from infsa_bench.peaks import MeasuredPeaks, MeasuredRate
from infsa_bench.report.peaks import describe_peaks, peaks_lines


def on_gpu() -> MeasuredPeaks:
    rate = MeasuredRate(per_second=7.5e14, what="4096 x 1024 x 4096", rounds=5, repetitions=20, spread=0.01)
    rates = {"fp32": dataclasses.replace(rate, per_second=5e13), "bf16": rate}
    return dataclasses.replace(PEAKS, device="cuda:0", device_name="NVIDIA H200", flops_per_second=rates)


def test_an_unknown_device() -> None:
    assert peaks_lines(PEAKS, None) == [
        "      measured                                         data sheet",
        "fp32  137 GFLOP/s (4096 x 1024 x 4096; spread 6.25 %)  unknown",
        "copy  17.2 GB/s (copy of 256 MiB; spread 3.12 %)       unknown",
        "measured 2026-01-02T03:04:05+00:00 in 3.5 s, on random data: the best of 3 medians of 3 samples each; "
        "copy is read and written together",
        "data sheet: unknown",
    ]
    assert describe_peaks(PEAKS, None) == (
        "Peaks of cpu, measured 2026-01-02T03:04:05+00:00: fp32 137 GFLOP/s, copy 17.2 GB/s; data sheet: unknown"
    )


def test_a_known_device_beside_its_data_sheet() -> None:
    spec = DATA_SHEET["H200"]
    assert peaks_lines(on_gpu(), spec)[1:4] == [
        "fp32  50.0 TFLOP/s (4096 x 1024 x 4096; spread 1.00 %)  67.0 TFLOP/s",
        "bf16  750 TFLOP/s (4096 x 1024 x 4096; spread 1.00 %)   990 TFLOP/s",
        "copy  17.2 GB/s (copy of 256 MiB; spread 3.12 %)        4.80 TB/s",
    ]
    assert describe_peaks(on_gpu(), spec) == (
        "Peaks of cuda:0, measured 2026-01-02T03:04:05+00:00: fp32 50.0 TFLOP/s, bf16 750 TFLOP/s, copy 17.2 GB/s; "
        "data sheet: fp32 67.0 TFLOP/s, bf16 990 TFLOP/s, memory 4.80 TB/s "
        "(NVIDIA H200 Tensor Core GPU data sheet, SXM)"
    )
    assert "bf16 unknown" in describe_peaks(on_gpu(), DATA_SHEET["T4"])


def test_what_others_may_have_spoilt_is_said() -> None:
    shared = dataclasses.replace(PEAKS, is_shared=True)
    for text in (peaks_lines(shared, None)[-2], describe_peaks(shared, None)):
        assert "others used the device meanwhile" in text
