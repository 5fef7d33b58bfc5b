from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from sample_records import (
    CALIBRATION,
    ENVIRONMENT,
    GPU,
    make_energy,
    make_failure,
    make_measurement,
    make_no_energy,
    make_record,
    make_run,
)

from infsa_bench.analyze.summary import summarize
from infsa_bench.energy_plan import EnergyChoice
from infsa_bench.protocol import PROTOCOLS, Protocol
from infsa_bench.record import EnergyReading, Record
from infsa_bench.report.describe import (
    SCOPES,
    SOURCES,
    describe_environment,
    describe_protocol,
    describe_run,
    energy_remarks,
    flag_remarks,
)
from infsa_bench.report.table import blocks

QUICK = PROTOCOLS["quick"]

GPU_ENVIRONMENT = dataclasses.replace(
    ENVIRONMENT,
    device="cuda:0",
    device_name="NVIDIA H200",
    device_memory_bytes=141 * 2**30,
    cuda_version="12.8",
    gpu=GPU,
)


def described(records: Sequence[Record], *, protocol: Protocol = QUICK, energy: EnergyChoice = "auto") -> list[str]:
    run = make_run(records)
    settings = dataclasses.replace(run.manifest.settings, protocol=protocol, energy=energy)
    run = dataclasses.replace(run, manifest=dataclasses.replace(run.manifest, settings=settings))
    return describe_run(run, summarize(records))


def energy_line(*readings: EnergyReading, **settings: Any) -> str:
    records = [make_record(make_measurement(energy=item), resolution=16 * i + 16) for i, item in enumerate(readings)]
    (line,) = (line for line in described(records, **settings) if line.startswith("Energy"))
    return line


@pytest.mark.parametrize(
    ("protocol", "text"),
    [
        (
            QUICK,
            "Protocol quick: at least 3 warm-up iterations and 1 s, until the times settle or 30 s have passed; "
            "at least 30 timed iterations and 1 s, until the median is known to 1 % or 10 s have passed "
            "(above 1 s an iteration: 7 iterations, 60 s); 1 process",
        ),
        (
            PROTOCOLS["full"],
            "Protocol full: at least 3 warm-up iterations and 1 s, until the times settle or 30 s have passed; "
            "at least 30 timed iterations and 1 s, until the median is known to 1 % or 10 s have passed "
            "(above 1 s an iteration: 7 iterations, 60 s); 3 processes, one after the other",
        ),
        (PROTOCOLS["paper"], "Protocol paper: 50 warm-up iterations; 300 timed iterations; 1 process"),
        (
            QUICK.customized(warmup=None, iterations=5, replicates=2),
            "Protocol quick*: at least 3 warm-up iterations and 1 s, until the times settle or 30 s have passed; "
            "5 timed iterations; 2 processes, one after the other",
        ),
    ],
    ids=["quick", "full", "paper", "custom"],
)
def test_protocols(protocol: Protocol, text: str) -> None:
    assert describe_protocol(protocol) == text


def test_cells_are_counted_and_not_their_replicates() -> None:
    records = [make_record(replicate=i, resolution=side) for i in range(3) for side in (224, 512)]
    records.append(make_record(make_failure(), resolution=1024))
    assert "3 cells planned, 3 recorded: 2 ok, 1 oom" in described(records)


def test_what_the_times_are_is_said_in_every_report() -> None:
    text = "\n".join(described([make_record()]))
    assert "Latency: median host time of one batch" in text
    assert "images/s: batch size over the time a batch with the queue kept full" in text
    assert "not over latency" in text
    assert "GPU time" not in text
    on_gpu = described([make_record(make_measurement(gpu_seconds=(0.010,)))])
    assert "GPU time (gpu_seconds in the CSV): what the device itself takes for a batch, launches left out" in on_gpu
    assert "another process may differ by more" in text
    assert "launch_bound" not in text


def test_launch_bound_is_explained_where_it_occurs() -> None:
    lines = described([make_record(make_measurement(launch_bound=True))])
    assert "launch_bound: takes more than 1.1 times its CUDA graph, so the device waits for its launches" in lines


def test_energy_that_was_measured() -> None:
    line = energy_line(make_energy(), make_no_energy())
    assert line.startswith("Energy: energy counter of NVML, the GPU board; preset quick: 3 trials a cell, each of 2 s")
    assert "off by 5 % as a whole: in no interval" in line


@pytest.mark.parametrize(
    ("protocol", "energy", "text"),
    [
        ("quick", "auto", "preset quick: 3 trials a cell, each of 2 s or more"),
        ("quick", "full", "preset full: 5 trials a cell, each of 5 s or more"),
        ("full", "auto", "preset full: 5 trials a cell, each of 5 s or more"),
        # Every process has a trial.
        ("gate", "auto", "preset quick: 5 trials a cell, each of 2 s or more"),
    ],
)
def test_presets(protocol: str, energy: EnergyChoice, text: str) -> None:
    assert text in energy_line(make_energy(), protocol=PROTOCOLS[protocol], energy=energy)


def test_the_gain_of_a_board_is_none_of_a_processor() -> None:
    rapl = make_energy(calibration=dataclasses.replace(CALIBRATION, source="rapl", scope="package+dram"))
    assert energy_line(rapl).startswith("Energy: RAPL counter, CPU package and memory; preset")
    assert "sensor" not in energy_line(rapl)
    both = energy_line(rapl, make_energy())
    assert both.startswith("Energy: RAPL counter, CPU package and memory, energy counter of NVML, the GPU board; ")
    assert "sensor" in both


def test_every_source_and_scope_has_words() -> None:
    for source in SOURCES:
        for scope in SCOPES:
            line = energy_line(make_energy(calibration=dataclasses.replace(CALIBRATION, source=source, scope=scope)))
            assert f"Energy: {SOURCES[source]}, {SCOPES[scope]};" in line


def test_energy_that_was_not_measured_has_its_reasons_once_each() -> None:
    readings = [
        make_no_energy("rapl_permission", "run chmod"),
        make_no_energy("rapl_permission", "run chmod again"),
        make_no_energy("time_limited", None),
    ]
    assert energy_line(*readings) == "Energy: not measured: rapl_permission: run chmod; time_limited"
    (line,) = (line for line in described([make_record(make_failure())]) if line.startswith("Energy"))
    assert line == "Energy: not measured"


def test_energy_that_nobody_asked_for() -> None:
    assert energy_line(make_no_energy(), energy="none") == "Energy: not measured (--energy none)"


def test_remarks_on_energy_name_each_reason_once() -> None:
    readings = [
        make_energy(),
        make_no_energy("time_limited", "no time left"),
        make_energy(doubts=("shared",), detail="somebody else"),
        make_no_energy("time_limited", "no time left"),
        make_energy(doubts=("drift",)),
    ]
    records = [make_record(make_measurement(energy=item), resolution=16 * i + 16) for i, item in enumerate(readings)]
    records.append(make_record(make_failure(), resolution=1024))
    assert energy_remarks(summarize(records)) == [
        "energy: not measured in 2 of 5 cells: time_limited: no time left",
        "energy: low confidence (~) in 1 of 5 cells: shared: somebody else",
        "energy: low confidence (~) in 1 of 5 cells: drift",
    ]


def test_no_remarks_where_all_is_well_or_nothing_was_measured() -> None:
    assert energy_remarks(summarize([make_record(make_measurement(energy=make_energy()))])) == []
    assert energy_remarks(summarize([make_record(), make_record(make_failure(), resolution=512)])) == []
    assert energy_remarks([]) == []


def test_remarks_on_flags_name_the_rows_of_each() -> None:
    records = [
        make_record(make_measurement(flags=("time_limited",))),
        make_record(
            make_measurement(flags=("time_limited", "non_finite_output")), implementation="fast", resolution=512
        ),
        make_record(make_measurement(flags=("non_finite_output",)), options=(("rho", "0.5"),), resolution=1024),
        make_record(resolution=2048),
    ]
    assert flag_remarks(summarize(records)) == [
        "* time_limited: softmax 224, softmax fast 512",
        "* non_finite_output: softmax fast 512, softmax rho=0.5 1024",
    ]


def test_a_cpu_environment() -> None:
    assert describe_environment(ENVIRONMENT) == (
        "cpu (Xeon 8481C, 16.0 GiB); 2 threads; torch 2.10.0, timm 1.0.22; infsa-bench 0.1.0, commit 0123456789ab"
    )


def test_a_gpu_environment() -> None:
    dirty = dataclasses.replace(GPU_ENVIRONMENT, git_dirty=True)
    assert describe_environment(dirty) == (
        "cuda:0 (NVIDIA H200, 141 GiB); driver 570.1, CUDA 12.8; VBIOS 96.00.A1.00.01, power limit 700 W, "
        "persistence mode on; torch 2.10.0, timm 1.0.22; "
        "infsa-bench 0.1.0, commit 0123456789ab with uncommitted changes"
    )


def test_what_is_not_known_of_a_gpu_is_left_out() -> None:
    unknown = dataclasses.replace(GPU_ENVIRONMENT, gpu=None, git_commit=None, git_dirty=None)
    assert describe_environment(unknown) == (
        "cuda:0 (NVIDIA H200, 141 GiB); driver unknown, CUDA 12.8; torch 2.10.0, timm 1.0.22; "
        "infsa-bench 0.1.0, commit unknown"
    )
    gpu = dataclasses.replace(GPU, vbios_version=None, power_limit_watts=None, persistence_mode=None)
    silent = describe_environment(dataclasses.replace(GPU_ENVIRONMENT, gpu=gpu))
    assert "driver 570.1, CUDA 12.8; torch 2.10.0" in silent


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"power_limit_watts": 500.0}, "power limit 500 W (default 700 W)"),
        ({"default_power_limit_watts": None}, "power limit 700 W, persistence"),
        ({"persistence_mode": False}, "persistence mode off"),
    ],
    ids=str,
)
def test_settings_of_a_gpu(changes: dict[str, Any], text: str) -> None:
    environment = dataclasses.replace(GPU_ENVIRONMENT, gpu=dataclasses.replace(GPU, **changes))
    assert text in describe_environment(environment)


def test_lines_are_plain_ascii() -> None:
    """They are printed on any terminal."""
    records = [make_record(make_measurement(energy=make_energy(), launch_bound=True))]
    assert all(line.isascii() for line in described(records, protocol=PROTOCOLS["full"]))


def test_an_emulated_device_is_called_one_wherever_its_numbers_stand() -> None:
    records = [make_record(make_measurement())]
    run = make_run(records)
    settings = dataclasses.replace(run.manifest.settings, memory_limit_bytes=40 * 2**30)
    run = dataclasses.replace(run, manifest=dataclasses.replace(run.manifest, settings=settings))
    rows = summarize(records, memory_limit_bytes=settings.memory_limit_bytes)
    assert any(line.startswith("Memory: 40.0 GiB emulated") for line in describe_run(run, rows))
    ((title, block),) = blocks(rows)
    assert title.endswith(", 40.0 GiB of memory emulated")
    assert [row.emulated_memory_bytes for row in block] == [40 * 2**30]
    assert "emulated" not in "".join(described(records))
    assert "emulated" not in blocks(summarize(records))[0][0]
