from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from sample_records import ENVIRONMENT, make_failure, make_manifest, make_measurement, make_record, make_run

from infsa_bench.analyze.summary import summarize
from infsa_bench.record import FailureKind, Record
from infsa_bench.report.table import blocks, describe_environment, render_csv, render_markdown, render_terminal
from infsa_bench.store import Run
from infsa_models import registry
from infsa_models.registry import Mechanism

FIXED = [
    # 21 samples, 10.0 ms to 14.0 ms; the interval of their median runs from the 6th to the 16th.
    make_record(make_measurement([(100 + 2 * i) / 10_000 for i in range(21)]), environment="env0"),
    make_record(
        make_measurement([0.009, 0.008, 0.010], parameters=53_451_756, flags=("non_finite_output", "time_limited")),
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
- Protocol quick: up to 3 warm-up and 30 timed iterations, seed 0
- 4 cells planned, 4 recorded, 2 measured
- Latency: median host time of one batch, from the call until the device is done; images/s: batch over latency
- Interval: 95 % of the median within one process; a repeated run may differ by more
- Energy: not measured (this version has no meter)

## 4L-64H, infer, fp32, eager, batch 1

| mechanism | implementation | resolution | tokens | latency | 95 % interval | images/s | peak memory | parameters at 224 | parameters | status |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|
| softmax | reference | 224 | 197 | 12.0 ms | 11.0 .. 13.0 ms | 83.3 | 300 MiB | 57,650,152 | 57,650,152 | ok |
| infsa-linear | reference | 224 | 197 | 9.00 ms | n = 3 | 111 | 300 MiB | 53,451,756 | 53,451,756 | ok (non\_finite\_output, time\_limited) |
| softmax | reference | 1024 | 4,097 |  |  |  |  |  |  | oom |
| infsa-linear | reference rho=0.5 | 1024 | 4,097 |  |  |  |  |  |  | skipped |

## Cells without a number

- infsa/softmax.reference/4L-64H/r1024/b1/fp32/infer/eager: oom: Tried to allocate 20.00 GiB
- infsa/infsa-linear.reference/4L-64H/r1024/b1/fp32/infer/eager/rho=0.5: skipped: predicted to take 5 min 00 s, more than the 10 s left

## How `reference` departs from the published code

- softmax: no departure
- infsa-linear: one departure; another
"""  # noqa: E501

CSV = """\
cell,mechanism,implementation,config,resolution,batch_size,precision,phase,execution,replicate,seed,options,tokens,\
environment,status,reason,latency_seconds,latency_low_seconds,latency_high_seconds,timed_iterations,gpu_seconds,\
images_per_second,base_parameters,parameters,model_bytes,peak_memory_bytes,flags
infsa/softmax.reference/4L-64H/r224/b1/fp32/infer/eager,softmax,reference,4L-64H,224,1,fp32,infer,eager,0,0,,197,\
env0,ok,,0.012,0.011,0.013,21,,83.33333333333333,57650152,57650152,230600608,314572800,
infsa/infsa-linear.reference/4L-64H/r224/b1/fp32/infer/eager,infsa-linear,reference,4L-64H,224,1,fp32,infer,eager,\
0,0,,197,env0,ok,,0.009,,,3,,111.11111111111111,53451756,53451756,230600608,314572800,non_finite_output time_limited
infsa/softmax.reference/4L-64H/r1024/b1/fp32/infer/eager,softmax,reference,4L-64H,1024,1,fp32,infer,eager,0,0,,4097,\
env0,oom,Tried to allocate 20.00 GiB,,,,,,,,,,,
infsa/infsa-linear.reference/4L-64H/r1024/b1/fp32/infer/eager/rho=0.5,infsa-linear,reference,4L-64H,1024,1,fp32,\
infer,eager,0,0,rho=0.5,4097,env0,skipped,"predicted to take 5 min 00 s, more than the 10 s left",,,,,,,,,,,
"""


@pytest.fixture
def _fixed_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden text is about the table, not about what this version's mechanisms depart in."""
    monkeypatch.setattr(registry, "MECHANISMS", CATALOGUE)


def make_example(records: Sequence[Record]) -> Run:
    manifest = make_manifest([record.case.id for record in records])
    return Run(
        path=Path("results/example"),
        manifest=dataclasses.replace(manifest, environments={"env0": ENVIRONMENT}),
        records=tuple(records),
    )


@pytest.mark.usefixtures("_fixed_catalogue")
def test_the_whole_markdown() -> None:
    assert render_markdown(make_example(FIXED), summarize(FIXED)) == MARKDOWN


def test_the_whole_csv() -> None:
    assert render_csv(summarize(FIXED)) == CSV


def test_csv_loads_back_with_numbers_as_numbers() -> None:
    frame = pd.read_csv(io.StringIO(render_csv(summarize(FIXED)))).convert_dtypes()
    whole = ["resolution", "batch_size", "replicate", "seed", "tokens"]
    whole += ["timed_iterations", "base_parameters", "parameters", "model_bytes", "peak_memory_bytes"]
    broken = ["latency_seconds", "latency_low_seconds", "latency_high_seconds", "images_per_second"]
    assert {str(frame[name].dtype) for name in whole} == {"Int64"}
    assert {str(frame[name].dtype) for name in broken} == {"Float64"}
    failed = frame[frame["status"] != "ok"]
    quantities = [*broken, "timed_iterations", "gpu_seconds", "parameters", "model_bytes", "peak_memory_bytes"]
    assert len(failed) == 2
    assert failed[quantities].isna().all(axis=None)
    measured = frame[frame["status"] == "ok"]
    assert list(measured["latency_seconds"]) == [0.012, 0.009]
    assert list(measured["parameters"]) == [57_650_152, 53_451_756]


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


def assert_harmless(markdown: str) -> None:
    assert not re.search(r"(?<!\\)[<>\[\]*]", markdown)
    for line in markdown.splitlines():
        if line.startswith("|"):
            assert len(cells_of(line)) == 13


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("place", ["mechanism", "implementation", "config", "flags", "reason", "options", "run"])
def test_names_from_elsewhere_can_neither_break_the_table_nor_smuggle_html(place: str, text: str) -> None:
    record = make_record()
    match place:
        case "flags":
            record = make_record(make_measurement(flags=(text,)))
        case "reason":
            record = make_record(make_failure("error", text))
        case "options":
            record = make_record(options=((text, text),))
        case "mechanism" | "implementation" | "config":
            record = make_record(**{place: text})
    run = make_run([record], Path("results") / text.replace("/", "") if place == "run" else Path("results/example"))
    harmless = render_markdown(make_run([make_record()]), summarize([make_record()]))
    markdown = render_markdown(run, summarize([record]))
    assert_harmless(markdown)
    assert sum(line.startswith("|") for line in markdown.splitlines()) == 3
    headings = [line for line in markdown.splitlines() if line.startswith("#")]
    assert len(headings) == sum(line.startswith("#") for line in harmless.splitlines()) + (place == "reason")


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
    assert first == "softmax 224 12.0 ms 11.0 .. 13.0 ms 83.3 300 MiB ok"
    assert second == "infsa-linear 224 9.00 ms n = 3 111 300 MiB ok*"
    assert third == "softmax 1024 oom"
    assert fourth == "infsa-linear 1024 skipped"


KINDS: tuple[FailureKind, ...] = ("oom", "host_oom", "timeout", "crash", "killed", "unsupported", "skipped", "error")


@pytest.mark.parametrize("implementations", [("reference",), ("reference", "fast")], ids="+".join)
def test_the_terminal_table_fits_80_columns(implementations: tuple[str, ...]) -> None:
    """The longest mechanism, resolution, interval, throughput and memory that a real run may show."""
    long = [
        make_measurement([0.1234 + 0.0001 * i for i in range(30)], peak_memory_bytes=round(1.25 * 2**30)),
        make_measurement([0.001234] * 30, peak_memory_bytes=999 * 2**20, flags=("time_limited",)),
        make_measurement([12.34, 56.7, 75.2], flags=("non_finite_output", "time_limited")),
        make_measurement([0.0000123] * 30, peak_memory_bytes=None),
    ]
    records = [
        make_record(outcome, mechanism="infsa-linear", implementation=implementation, resolution=9216, replicate=i)
        for implementation in implementations
        for i, outcome in enumerate([*long, *[make_failure(kind) for kind in KINDS]])
    ]
    lines = shown(records)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "\u2026" not in text
    words = "infsa-linear 9216 125 ms 1.23 ms 12.3 us 1.25 GiB 999 MiB ok"
    for word in [*words.split(), *KINDS]:
        assert re.search(rf"(?<![\w]){re.escape(word)}(?![\w])", text), f"{word} is cut"


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


def test_a_gpu_environment() -> None:
    environment = dataclasses.replace(
        ENVIRONMENT,
        device="cuda:0",
        device_name="NVIDIA H200",
        device_memory_bytes=141 * 2**30,
        driver_version="570.1",
        cuda_version="12.8",
        git_dirty=True,
    )
    assert describe_environment(environment) == (
        "cuda:0 (NVIDIA H200, 141 GiB); driver 570.1, CUDA 12.8; torch 2.10.0, timm 1.0.22; "
        "infsa-bench 0.1.0, commit 0123456789ab with uncommitted changes"
    )
    unknown = dataclasses.replace(environment, driver_version=None, git_commit=None, git_dirty=None)
    assert "driver unknown, CUDA 12.8" in describe_environment(unknown)
    assert describe_environment(unknown).endswith("commit unknown")
