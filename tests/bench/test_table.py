from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_worker import PEAKS
from rich.console import Console
from sample_records import (
    ENVIRONMENT,
    GPU,
    GPU_STATE,
    make_energy,
    make_failure,
    make_manifest,
    make_measurement,
    make_no_energy,
    make_record,
    make_run,
)

from infsa_bench.analyze.summary import SummaryRow, summarize
from infsa_bench.machine import Environment
from infsa_bench.record import EnergyReading, FailureKind, Measurement, Record
from infsa_bench.report.describe import flag_remarks
from infsa_bench.report.table import blocks, render_csv, render_markdown, render_terminal
from infsa_bench.store import StoredRun
from infsa_models import registry
from infsa_models.registry import Mechanism

TIMES = [12 / 1024 + (8 * i % 33 - 16) / 2**14 for i in range(33)]
"""33 times around 11.7 ms; the interval of their median runs from the 11th to the 23rd, which are 6 / 2**14 s off.

All their sums are exact, so that every digit of the golden text holds on any machine.
"""

FIXED = [
    make_record(make_measurement(TIMES), environment="env0"),
    make_record(
        make_measurement(
            [9 / 1024, 8 / 1024, 10 / 1024], parameters=53_451_756, flags=("non_finite_output", "time_limited")
        ),
        mechanism="infsa-linear",
        environment="env0",
    ),
    make_record(
        make_failure("oom", "Tried to allocate 20.00 GiB", requested_bytes=20 * 2**30),
        resolution=1024,
        environment="env0",
    ),
    make_record(
        make_failure("skipped", "predicted to take 5 min 00 s, more than the 10 s left", stage="plan"),
        mechanism="infsa-linear",
        resolution=1024,
        options=(("rho", "0.5"),),
        environment="env0",
    ),
]

GPU_ENVIRONMENT = dataclasses.replace(
    ENVIRONMENT,
    device="cuda:0",
    device_name="NVIDIA H200",
    device_memory_bytes=141 * 2**30,
    cuda_version="12.8",
    gpu=GPU,
)


def on_gpu(factor: float, energy: EnergyReading, **changes: Any) -> Measurement:
    """Latencies of about 10 ms times ``factor``, that with the queue kept full are 9.9 ms times that."""
    return make_measurement(
        [0.0101 * factor, 0.0100 * factor, 0.0103 * factor],
        seconds_per_iteration=(0.0099 * factor,),
        gpu_seconds=(0.0098 * factor,),
        peak_reserved_bytes=320 * 2**20,
        nvml_process_bytes=800 * 2**20,
        energy=energy,
        state_before=GPU_STATE,
        **changes,
    )


WITH_ENERGY = [
    *(make_record(on_gpu(1 + i / 1000, make_energy()), environment="env0", replicate=i) for i in range(3)),
    make_record(
        on_gpu(0.5, make_energy([300.0], doubts=("shared",), detail="somebody else"), launch_bound=True),
        mechanism="infsa-linear",
        environment="env0",
    ),
    make_record(make_failure(), mechanism="infsa-linear", environment="env0", replicate=1),
    make_record(
        on_gpu(30.0, make_no_energy("counter_frozen", "no update in 1 s")), resolution=1024, environment="env0"
    ),
    make_record(make_failure("oom", "Tried"), mechanism="infsa-linear", resolution=1024, environment="env0"),
]

CATALOGUE = {
    name: Mechanism(
        title=title,
        implementations={"reference": "somewhere:Class"},
        complexity="O(N)",
        citation="nobody",
        departures=departures,
    )
    for name, title, departures in (
        ("softmax", "Softmax ViT", ()),
        ("infsa-linear", "Linear-InfSA", ("one departure", "another")),
    )
}

MARKDOWN = r"""# example

- Environment env0: cpu (Xeon 8481C, 16.0 GiB); 2 threads; torch 2.10.0, timm 1.0.22; infsa-bench 0.1.0, commit 0123456789ab
- Protocol quick: at least 3 warm-up iterations and 1 s, until the times settle or 30 s have passed; at least 30 timed iterations and 1 s, until the median is known to 1 % or 10 s have passed (above 1 s an iteration: 7 iterations, 60 s); 1 process; seed 0
- 4 cells planned, 4 recorded: 2 ok, 1 oom, 1 skipped
- Latency: median host time of one batch, from the call until the device is done, nothing queued before it
- images/s: batch size over the time a batch with the queue kept full (seconds\_per\_iteration), not over latency
- 95 % interval of the latency: of 1 process, from order statistics of its samples (n: too few; correlated: too few of them independent), and another process may differ by more; from 3 processes on, Student's t of their medians; of 2, none
- FLOP/s: those of matrix products, counted as they run, over the time a batch with a full queue
- Energy: not measured: rapl\_absent: this machine has no counter of its processor's energy
- Time spent on measured cells (by cell in the CSV): build 0 s, warm-up 2 s, latency 3 s

## 4L-64H, infer, fp32, eager, batch 1

| mechanism | implementation | resolution | tokens | latency | 95 % interval | processes | images/s | FLOP/s | J/image | W | peak memory | parameters at 224 | parameters | status |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|
| softmax | reference | 224 | 197 | 11.7 ms | 11.4 .. 12.1 ms | 1 | 85.3 | 367 GFLOP/s | not measured (rapl\_absent) | not measured | 300 MiB | 57,650,152 | 57,650,152 | ok |
| infsa-linear | reference | 224 | 197 | 8.79 ms | n = 3; range 7.81 .. 9.77 ms | 1 | 114 | 489 GFLOP/s | not measured (rapl\_absent) | not measured | 300 MiB | 53,451,756 | 53,451,756 | ok (non\_finite\_output, time\_limited) |
| softmax | reference | 1024 | 4,097 |  |  |  |  |  |  |  |  |  |  | oom |
| infsa-linear | reference rho=0.5 | 1024 | 4,097 |  |  |  |  |  |  |  |  |  |  | skipped |

## Cells without a number

- infsa/softmax.reference/4L-64H/r1024/b1/fp32/infer/eager: oom: Tried to allocate 20.00 GiB
- infsa/infsa-linear.reference/4L-64H/r1024/b1/fp32/infer/eager/rho=0.5: skipped: predicted to take 5 min 00 s, more than the 10 s left

## How `reference` departs from the published code

- softmax: no departure
- infsa-linear: one departure; another
"""  # noqa: E501

MARKDOWN_WITH_ENERGY = r"""# example

- Environment env0: cuda:0 (NVIDIA H200, 141 GiB); driver 570.1, CUDA 12.8; VBIOS 96.00.A1.00.01, power limit 700 W, persistence mode on; torch 2.10.0, timm 1.0.22; infsa-bench 0.1.0, commit 0123456789ab
- Protocol quick: at least 3 warm-up iterations and 1 s, until the times settle or 30 s have passed; at least 30 timed iterations and 1 s, until the median is known to 1 % or 10 s have passed (above 1 s an iteration: 7 iterations, 60 s); 1 process; seed 0
- 4 cells planned, 4 recorded: 3 ok, 1 oom
- Latency: median host time of one batch, from the call until the device is done, nothing queued before it
- images/s: batch size over the time a batch with the queue kept full (seconds\_per\_iteration), not over latency
- 95 % interval of the latency: of 1 process, from order statistics of its samples (n: too few; correlated: too few of them independent), and another process may differ by more; from 3 processes on, Student's t of their medians; of 2, none
- GPU time (gpu\_seconds in the CSV): what the device itself takes for a batch, launches left out
- launch\_bound: takes more than 1.1 times its CUDA graph, so the device waits for its launches
- FLOP/s: those of matrix products, counted as they run, over the time a batch with a full queue
- Energy: energy counter of NVML, the GPU board; preset quick: 3 trials a cell, each of 2 s or more; J/image: mean of the trials and half of its 95 % interval; W: average over the same windows; \~: low confidence; a board's sensor may be off by 5 % as a whole: in no interval, the same for all of its cells
- Time spent on measured cells (by cell in the CSV): build 1 s, warm-up 5 s, latency 8 s

## 4L-64H, infer, fp32, eager, batch 1

| mechanism | implementation | resolution | tokens | latency | 95 % interval | processes | images/s | FLOP/s | J/image | W | peak memory | parameters at 224 | parameters | status |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|
| softmax | reference | 224 | 197 | 10.1 ms | 10.09 .. 10.14 ms | 3 | 101 | 433 GFLOP/s | 3.000 ± 0.010 J | 300 | 300 MiB | 57,650,152 | 57,650,152 | ok |
| infsa-linear | reference | 224 | 197 | 5.05 ms | n = 3; range 5.00 .. 5.15 ms | 1 | 202 | 868 GFLOP/s | \~1.50 J (shared) | 150 | 300 MiB | 53,451,756 | 57,650,152 | ok (launch\_bound, energy\_throughput\_gap, oom\_in\_1\_of\_2) |
| softmax | reference | 1024 | 4,097 | 303 ms | n = 3; range 300 .. 309 ms | 1 | 3.37 | 14.5 GFLOP/s | not measured (counter\_frozen) | not measured | 300 MiB | 57,650,152 | 57,650,152 | ok |
| infsa-linear | reference | 1024 | 4,097 |  |  |  |  |  |  |  |  |  |  | oom |

## Cells without a number

- infsa/infsa-linear.reference/4L-64H/r1024/b1/fp32/infer/eager: oom: Tried

## Energy that is not measured, or of low confidence

- energy: low confidence (\~) in 1 of 3 cells: shared: somebody else
- energy: not measured in 1 of 3 cells: counter\_frozen: no update in 1 s

## How `reference` departs from the published code

- softmax: no departure
- infsa-linear: one departure; another
"""  # noqa: E501

CSV = """\
cell,mechanism,implementation,config,resolution,batch_size,precision,phase,execution,seed,options,tokens,\
environment,status,reason,emulated_memory_bytes,choices,speedup_over_reference,processes,latency_seconds,latency_low_seconds,latency_high_seconds,\
latency_interval,\
latency_min_seconds,latency_p5_seconds,latency_p95_seconds,latency_p99_seconds,latency_max_seconds,timed_iterations,\
lag1_autocorrelation,effective_samples,gpu_seconds,seconds_per_iteration,graph_seconds_per_iteration,launch_bound,\
images_per_second,base_parameters,parameters,model_bytes,peak_memory_bytes,peak_reserved_bytes,nvml_process_bytes,\
matmul_flops,elementwise_flops,operator_bytes,achieved_flops_per_second,achieved_bytes_per_second,roofline_fraction,\
datasheet_fraction,stage_seconds,energy_status,energy_reason,energy_detail,energy_source,energy_scope,energy_preset,energy_trials,\
joules_per_image,joules_per_image_low,joules_per_image_high,net_joules_per_image,average_power_watts,\
idle_power_watts,power_limit_watts,power_capped_fraction,window_images_per_second,energy_systematic_relative,\
energy_crosscheck_gap,energy_change_per_trial,temperature_low_celsius,temperature_high_celsius,flags
infsa/softmax.reference/4L-64H/r224/b1/fp32/infer/eager,softmax,reference,4L-64H,224,1,fp32,infer,eager,0,,197,env0,\
ok,,,,,1,0.01171875,0.0113525390625,0.0120849609375,within_process,0.0107421875,0.01083984375,0.01259765625,,\
0.0126953125,33,-0.05481283422459893,33.0,,0.01171875,,,85.33333333333333,57650152,57650152,230600608,314572800,,,\
4294967296,16777216,1073741824,366503875925.3333,91625968981.33333,,,\
build=0.125 warm-up=1.000 latency=1.500,not_measured,rapl_absent,\
this machine has no counter of its processor's energy,,,,,,,,,,,,,,,,,,,
infsa/infsa-linear.reference/4L-64H/r224/b1/fp32/infer/eager,infsa-linear,reference,4L-64H,224,1,fp32,infer,eager,0,\
,197,env0,ok,,,,,1,0.0087890625,,,,0.0078125,0.00791015625,0.00966796875,,0.009765625,3,-0.5,3.0,,0.0087890625,,,\
113.77777777777777,53451756,53451756,230600608,314572800,,,\
4294967296,16777216,1073741824,488671834567.1111,122167958641.77777,,,\
build=0.125 warm-up=1.000 latency=1.500,not_measured,\
rapl_absent,this machine has no counter of its processor's energy,,,,,,,,,,,,,,,,,,,non_finite_output time_limited
infsa/softmax.reference/4L-64H/r1024/b1/fp32/infer/eager,softmax,reference,4L-64H,1024,1,fp32,infer,eager,0,,4097,\
env0,oom,Tried to allocate 20.00 GiB,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,
infsa/infsa-linear.reference/4L-64H/r1024/b1/fp32/infer/eager/rho=0.5,infsa-linear,reference,4L-64H,1024,1,fp32,\
infer,eager,0,rho=0.5,4097,env0,skipped,"predicted to take 5 min 00 s, more than the 10 s left",,,,,,,,,,,,,,,,,,,,,,\
,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,
"""


@pytest.fixture
def _fixed_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden text is about the table, not about what this version's mechanisms depart in."""
    monkeypatch.setattr(registry, "MECHANISMS", CATALOGUE)


def make_example(records: Sequence[Record], environment: Environment = ENVIRONMENT) -> StoredRun:
    manifest = make_manifest([record.case.id for record in records])
    return StoredRun(
        path=Path("results/example"),
        manifest=dataclasses.replace(manifest, environments={"env0": environment}),
        records=tuple(records),
    )


@pytest.mark.usefixtures("_fixed_catalogue")
def test_the_whole_markdown() -> None:
    assert render_markdown(make_example(FIXED), summarize(FIXED)) == MARKDOWN


@pytest.mark.usefixtures("_fixed_catalogue")
def test_the_whole_markdown_with_energy() -> None:
    assert render_markdown(make_example(WITH_ENERGY, GPU_ENVIRONMENT), summarize(WITH_ENERGY)) == MARKDOWN_WITH_ENERGY


def test_the_roofline_has_a_column_where_peaks_were_measured() -> None:
    peaks = dataclasses.replace(PEAKS, device_name=ENVIRONMENT.device_name, torch_threads=ENVIRONMENT.torch_threads)
    run = dataclasses.replace(make_example(FIXED), peaks=peaks)
    text = render_markdown(run, summarize(FIXED, environments=run.manifest.environments, peaks=peaks))
    assert "| images/s | FLOP/s | roofline | J/image |" in text
    # 2^30 bytes at 2^34 bytes/s are 1/16 s, of 12/1024 s and of 9/1024 s: out of caches.
    assert "| 85.3 | 367 GFLOP/s | 533 % |" in text
    assert "| 114 | 489 GFLOP/s | 711 % |" in text
    assert "- Peaks of cpu, measured 2026-01-02T03:04:05+00:00: fp32 137 GFLOP/s, copy 17.2 GB/s; " in text
    assert "- roofline: the least time that the measured peaks leave" in text


def test_neither_rate_has_a_column_where_nothing_was_counted() -> None:
    records = [make_record(make_measurement(operations=None))]
    text = render_markdown(make_run(records), summarize(records))
    assert "| images/s | J/image |" in text
    assert "FLOP/s" not in text
    assert "roofline" not in text


def test_the_whole_csv() -> None:
    assert render_csv(summarize(FIXED)) == CSV


def test_csv_has_every_digit_of_every_quantity() -> None:
    rows = summarize(WITH_ENERGY)
    frame = pd.read_csv(io.StringIO(render_csv(rows)), dtype=str, keep_default_na=False)
    shown_as_they_are = [
        field.name
        for field in dataclasses.fields(SummaryRow)
        if field.name not in ("case", "flags", "reason", "stage_seconds")
    ]
    assert list(frame["stage_seconds"])[1] == "build=0.125 warm-up=1.000 latency=1.500"
    for name in shown_as_they_are:
        values = [getattr(row, name) for row in rows]
        assert list(frame[name]) == ["" if value is None else str(value) for value in values], name
    assert list(frame["flags"]) == ["", "launch_bound energy_throughput_gap oom_in_1_of_2", "", ""]


def test_csv_loads_back_with_numbers_as_numbers() -> None:
    frame = pd.read_csv(io.StringIO(render_csv(summarize([*FIXED, *WITH_ENERGY])))).convert_dtypes()
    whole = ["resolution", "batch_size", "seed", "tokens", "processes", "timed_iterations", "base_parameters"]
    whole += ["parameters", "model_bytes", "peak_memory_bytes", "peak_reserved_bytes", "nvml_process_bytes"]
    whole += ["energy_trials"]
    broken = ["latency_seconds", "latency_low_seconds", "latency_high_seconds", "images_per_second"]
    assert {str(frame[name].dtype) for name in whole} == {"Int64"}
    assert {str(frame[name].dtype) for name in broken} == {"Float64"}
    frame = pd.read_csv(io.StringIO(render_csv(summarize(FIXED)))).convert_dtypes()
    failed = frame[frame["status"] != "ok"]
    quantities = list(frame.columns[frame.columns.get_loc("processes") :])
    assert len(failed) == 2
    assert failed[quantities].isna().all(axis=None)
    measured = frame[frame["status"] == "ok"]
    assert list(measured["latency_seconds"]) == [12 / 1024, 9 / 1024]
    assert list(measured["parameters"]) == [57_650_152, 53_451_756]
    energy = list(frame.columns[frame.columns.get_loc("energy_source") : frame.columns.get_loc("flags")])
    assert "joules_per_image" in energy
    assert measured[energy].isna().all(axis=None)


def test_csv_of_no_number_writes_no_zero() -> None:
    """Nothing that was not measured may look as if it had been found to be 0."""
    rows = summarize(
        [make_record(make_failure()), make_record(make_measurement(peak_memory_bytes=None), resolution=512)]
    )
    frame = pd.read_csv(io.StringIO(render_csv(rows)), dtype=str)
    zeros = {name for name in frame.columns if frame[name].isin(["0", "0.0"]).any()}
    assert zeros <= {"seed", "lag1_autocorrelation"}


def test_csv_of_failures_alone_and_of_nothing() -> None:
    frame = pd.read_csv(io.StringIO(render_csv(summarize(FIXED[2:]))))
    assert list(frame["status"]) == ["oom", "skipped"]
    assert frame["peak_memory_bytes"].isna().all()
    assert render_csv([]) == CSV.partition("\n")[0] + "\n"


@pytest.mark.parametrize("text", ['a "quoted", reason', "two\nlines", "a\r\nb", "progress\rbar", "tab\tbed", ";=1+1"])
def test_csv_keeps_any_text_in_its_cell(text: str) -> None:
    csv = render_csv(summarize([make_record(make_failure("error", text)), make_record(resolution=512)]))
    frame = pd.read_csv(io.StringIO(csv, newline=""))
    assert list(frame["resolution"]) == [224, 512]
    assert str(frame["reason"][0]).split() == text.split()


HOSTILE = (
    "a | b",
    "a\n| injected | row |",
    "a\r\n\r\n# heading",
    "a\u2028| b |",
    "\\| b",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](https://example.org/x.png)",
    "[x](javascript:alert(1))",
    "`code` *bold* __bold__",
)


def cells_of(line: str) -> list[str]:
    """Split a row at the bars that Markdown sees: those without a backslash before them."""
    return re.split(r"(?<!\\)(?:\\\\)*\|", line)


def assert_harmless(markdown: str, cells: int = 17) -> None:
    # An empty comment is ours: it keeps what follows from being read as a name or an address.
    markdown = markdown.replace("<!-- -->", "")
    assert not re.search(r"(?<!\\)[<>\[\]*]", markdown)
    for line in markdown.splitlines():
        if line.startswith("|"):
            assert len(cells_of(line)) == cells


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "place", ["mechanism", "implementation", "config", "flags", "reason", "options", "run", "energy", "doubt"]
)
def test_names_from_elsewhere_can_neither_break_the_table_nor_smuggle_html(place: str, text: str) -> None:
    record = make_record()
    match place:
        case "flags":
            record = make_record(make_measurement(flags=(text,)))
        case "energy":
            record = make_record(make_measurement(energy=make_no_energy(text, text)))
        case "doubt":
            record = make_record(make_measurement(energy=make_energy(doubts=(text,), detail=text)))
        case "reason":
            record = make_record(make_failure("error", text))
        case "options":
            record = make_record(options=((text, text),))
        case "mechanism" | "implementation" | "config":
            record = make_record(**{place: text})
    run = make_run([record], Path("results") / text.replace("/", "") if place == "run" else Path("results/example"))
    harmless = render_markdown(make_run([make_record()]), summarize([make_record()]))
    markdown = render_markdown(run, summarize([record]))
    # Of a failed case no rate is known, and there is no column for it.
    assert_harmless(markdown, 16 if place == "reason" else 17)
    assert sum(line.startswith("|") for line in markdown.splitlines()) == 3
    headings = [line for line in markdown.splitlines() if line.startswith("#")]
    assert len(headings) == sum(line.startswith("#") for line in harmless.splitlines()) + (
        # The section that says why.
        place in ("reason", "doubt")
    )


@pytest.mark.parametrize("field", ["device_name", "torch_version", "git_commit"])
def test_an_environment_from_elsewhere_cannot_smuggle_anything_either(field: str) -> None:
    run = make_example([make_record()])
    for text in HOSTILE:
        hostile = dataclasses.replace(ENVIRONMENT, **{field: text})
        manifest = dataclasses.replace(run.manifest, environments={"env0": hostile})
        markdown = render_markdown(dataclasses.replace(run, manifest=manifest), summarize(run.records))
        assert_harmless(markdown)
        assert sum(line.startswith("|") for line in markdown.splitlines()) == 3
        assert sum(line.startswith("#") for line in markdown.splitlines()) == 3


def test_mechanisms_that_are_not_installed_here_have_no_footnote() -> None:
    records = [make_record(mechanism="gone"), make_record(mechanism="some.package:Mixer")]
    footnotes = render_markdown(make_run(records), summarize(records)).partition("departs from")[2]
    assert "gone" not in footnotes
    assert "some.package:Mixer: no departure" in footnotes


def shown(records: Sequence[Record], title: str = "example", width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(render_terminal(title, summarize(records)))
    output = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in output.splitlines()]


def test_the_terminal_table_on_a_wide_screen() -> None:
    title, _, first, second, third, fourth = [" ".join(line.split()) for line in shown(FIXED, width=120)]
    assert title == "example"
    assert first == "softmax 224 11.7 ms 11.4 .. 12.1 ms 85.3 300 MiB ok"
    assert second == "infsa-linear 224 8.79 ms n = 3 114 300 MiB ok*"
    assert third == "softmax 1024 oom"
    assert fourth == "infsa-linear 1024 skipped"


def test_the_terminal_table_with_energy() -> None:
    assert shown(WITH_ENERGY) == [
        "example",
        "mechanism    side latency     95 % interval images/s J/image  memory status",
        "softmax       224 10.1 ms 10.09 .. 10.14 ms      101  3.00 J 300 MiB ok",
        "infsa-linear  224 5.05 ms             n = 3      202 ~1.50 J 300 MiB ok*",
        "softmax      1024  303 ms             n = 3     3.37       - 300 MiB ok",
        "infsa-linear 1024                                                    oom",
    ]


KINDS: tuple[FailureKind, ...] = ("oom", "host_oom", "timeout", "crash", "killed", "unsupported", "skipped", "error")


@pytest.mark.parametrize("energy", [make_no_energy(), make_energy([123_456.0] * 3, doubts=("shared",))], ids=["", "J"])
@pytest.mark.parametrize("implementations", [("reference",), ("reference", "fast")], ids="+".join)
def test_the_terminal_table_fits_80_columns(implementations: tuple[str, ...], energy: EnergyReading) -> None:
    """The longest mechanism, resolution, interval, throughput and memory that a real run may show."""
    long = [
        make_measurement([0.1234 + 0.0001 * (7 * i % 30) for i in range(30)], peak_memory_bytes=round(1.25 * 2**30)),
        make_measurement([0.001234] * 30, peak_memory_bytes=999 * 2**20, flags=("time_limited",), energy=energy),
        make_measurement([12.34, 56.7, 75.2], flags=("non_finite_output", "time_limited")),
        make_measurement([0.0000123] * 30, peak_memory_bytes=None),
        make_measurement([0.01 + 0.001 * i for i in range(12)]),
    ]
    records = [
        make_record(outcome, mechanism="infsa-linear", implementation=implementation, resolution=9216 - 16 * i)
        for implementation in implementations
        for i, outcome in enumerate([*long, *[make_failure(kind) for kind in KINDS]])
    ]
    lines = shown(records)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "\u2026" not in text
    words = "infsa-linear 9216 125 ms 1.23 ms 12.3 us 1.25 GiB 999 MiB ok"
    if len(implementations) == 1:
        words += " correlated"
    for word in [*words.split(), *KINDS]:
        assert re.search(rf"(?<![\w]){re.escape(word)}(?![\w])", text), f"{word} is cut"
    assert ("~617" in text) == bool(energy.trials)


@pytest.mark.parametrize("name", ["x[red]y", "[/red]", "[link=https://example.org]z", "\\[x]"])
def test_the_terminal_table_shows_names_as_they_are(name: str) -> None:
    assert name in "\n".join(shown([make_record(mechanism=name)], title=name, width=120)[1:])
    assert name in shown([make_record()], title=name, width=120)[0]


def test_environments_are_never_mixed_in_a_block() -> None:
    records = [make_record(environment=key, resolution=side) for side in (224, 512) for key in ("here", "there")]
    found = blocks(summarize(records))
    assert [title for title, _ in found] == [
        "4L-64H, infer, fp32, eager, batch 1, environment here",
        "4L-64H, infer, fp32, eager, batch 1, environment there",
    ]
    assert [{row.environment for row in rows} for _, rows in found] == [{"here"}, {"there"}]


@pytest.mark.parametrize(
    "changes",
    [
        {"config": "24L-16H"},
        {"phase": "train"},
        {"precision": "bf16"},
        {"execution": "compile"},
        {"batch_size": 8},
        {"environment": "elsewhere"},
    ],
    ids=str,
)
def test_what_is_not_comparable_stands_in_blocks_of_its_own(changes: dict[str, str]) -> None:
    rows = summarize([make_record(), make_record(**changes)])
    found = blocks(rows)
    assert len(found) == len({title for title, _ in found}) == 2
    assert [row for _, block in found for row in block] == rows
    assert len(blocks(summarize([make_record(), make_record(mechanism="soft", resolution=512)]))) == 1


def test_whole_numbers_of_63_bits_keep_their_digits_beside_a_failed_cell() -> None:
    """As floats they would not even be whole numbers any more."""
    most = 2**63 - 1
    records = [
        make_record(make_measurement(model_bytes=most, parameters=2**53 + 1)),
        make_record(make_failure(), resolution=512),
    ]
    lines = list(csv.DictReader(io.StringIO(render_csv(summarize(records)))))
    assert [(line["model_bytes"], line["parameters"]) for line in lines] == [(str(most), str(2**53 + 1)), ("", "")]


HOSTILE_TEXT = "\x1b[2J\x1b]0;title\x07\u202egnp.\ud800"


def test_no_text_of_a_record_commands_a_terminal() -> None:
    hostile = {"mechanism": f"os:{HOSTILE_TEXT}", "implementation": HOSTILE_TEXT, "config": HOSTILE_TEXT}
    records = [
        make_record(make_measurement(flags=(HOSTILE_TEXT,)), options=((HOSTILE_TEXT, "1"),), **hostile),
        make_record(make_failure(message=HOSTILE_TEXT), resolution=512, **hostile),
        make_record(make_measurement(energy=make_no_energy(HOSTILE_TEXT, HOSTILE_TEXT)), resolution=768, **hostile),
    ]
    run = make_run(records)
    rows = summarize(records)
    console = Console(file=io.StringIO(), width=80, color_system=None)
    with console.capture() as captured:
        for title, block in blocks(rows):
            console.print(render_terminal(title, block))
    for text in (render_markdown(run, rows), render_csv(rows), captured.get(), *flag_remarks(rows)):
        assert text.isascii()
        assert all(line.isprintable() for line in text.split("\n"))
    assert r"\x1b[2J" in render_csv(rows)


def test_one_timed_call_is_called_a_single_run() -> None:
    (line,) = [line for line in shown([make_record(make_measurement([0.5]))]) if line.startswith("softmax")]
    assert "single run" in line
    assert "n = 1" not in line


SIDE_BY_SIDE = [
    make_record(make_measurement([0.300] * 30), mechanism="softmax"),
    make_record(
        make_measurement([0.100] * 30, choices={"backend": "flash", "host": "lean"}),
        mechanism="softmax",
        implementation="fast",
        options=(("cls_prune", "0"),),
    ),
    make_record(make_measurement([0.100] * 30), mechanism="softmax", implementation="fast"),
]


def test_implementations_side_by_side() -> None:
    """The ratio stands where both were measured alike; options and choices stand beside the implementation."""
    run = make_run(SIDE_BY_SIDE)
    table = render_markdown(run, summarize(SIDE_BY_SIDE))
    header = next(line for line in table.splitlines() if line.startswith("| mechanism"))
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| softmax")]
    ratio = header.split(" | ").index("vs reference")
    assert [row[ratio] for row in rows] == ["", "", "3.00x"]
    assert [row[1] for row in rows] == ["reference", "fast cls\\_prune=0 (backend: flash, host: lean)", "fast"]
    tools = table.partition("## How `fast` computes the same")[2]
    assert "- softmax: PyTorch's fused attention (softmax with backend=math: its written-out one); inference: " in tools
    alone = render_markdown(run, summarize(SIDE_BY_SIDE[:1]))
    assert "vs reference" not in alone
    assert "How `fast`" not in alone
    assert any("3.00x" in line for line in shown(SIDE_BY_SIDE))
