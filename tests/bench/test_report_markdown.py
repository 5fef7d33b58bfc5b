"""report.md, the report of runs as a pull request shows it."""

from __future__ import annotations

import dataclasses
import re

from sample_records import ENVIRONMENT, make_failure, make_measurement, make_record
from sample_runs import HOSTILE, hostile_run, ordinary_records, run_of, times

from infsa_bench.report.pull_request import MAX_CHARACTERS, render_pull_request

RUN = run_of([record for record in ordinary_records() if record.case.phase == "infer"])

GOLDEN = r"""
# example

- cpu (Xeon 8481C, 16.0 GiB); 2 threads; torch 2.10.0, timm 1.0.22; infsa-bench 0.1.0, commit 0123456789ab
- 2026-01-02T03:04:05+00:00; 18 cells: 17 ok, 1 oom

## 4L-64H, infer, fp32, eager, batch 1, fast

**4.00x** as fast as softmax: infsa-linear at 1024 x 1024 pixels (3.91 .. 4.09 with both 95 % intervals at their ends)

- At 1024 x 1024 (4,097 tokens) infsa-linear takes 500 ms for one image (95 % interval 494 .. 506 ms within one process).
- That is 4.00 times as fast as softmax (2.00 s; 95 % interval 1.98 .. 2.02 s within one process).
- At 224 x 224 it is 1.00 times as fast.
- Fastest of the 3 with a number there: infsa-linear, 500 ms, before linformer, 625 ms; their intervals do not overlap.
- infsa-linear needs 150.0 ± 1.9 J an image, softmax 600.0 ± 7.5 J an image: 4.00 times as much.
- Flagged there: infsa-linear energy\_throughput\_gap; softmax energy\_throughput\_gap.

## 4L-64H, infer, fp32, eager, batch 1, reference

**4.00x** as fast as softmax: infsa-linear at 512 x 512 pixels (3.91 .. 4.09 with both 95 % intervals at their ends)

- At 512 x 512 (1,025 tokens) infsa-linear takes 62.5 ms for one image (95 % interval 61.8 .. 63.2 ms within one process).
- That is 4.00 times as fast as softmax (250 ms; 95 % interval 247 .. 253 ms within one process).
- At 224 x 224 it is 1.00 times as fast.
- Fastest of the 3 with a number there: infsa-linear, 62.5 ms, before linformer, 78.1 ms; their intervals do not overlap.
- infsa-linear needs 18.75 ± 0.23 J an image, softmax 75.00 ± 0.93 J an image: 4.00 times as much.
- Flagged there: infsa-linear energy\_throughput\_gap; softmax energy\_throughput\_gap.
- Largest side with a number: 1024 for linformer, infsa-linear; 512 for softmax.
- Without a number: out of memory: softmax from 1024 on.

## What holds for all of them

- Every number comes from one process; another process may differ by more than an interval within it. Three processes and more (--replicates 3) show by how much.
- The board's power sensor may be off by 5 % as a whole: in no interval of an energy, and cancelled in ratios on one board.

### 4L-64H, infer, fp32, eager, batch 1, 1024 x 1024 pixels

| mechanism | implementation | latency | 95 % interval | vs reference | J/image | peak memory | status |
|---|---|---:|---:|---:|---:|---:|---|
| softmax | reference |  |  |  |  |  | oom |
| softmax | fast | 2.00 s | 1.98 .. 2.02 s |  | 600.0 ± 7.5 J | 300 MiB | ok (energy\_throughput\_gap) |
| linformer | reference | 1.25 s | 1.24 .. 1.26 s |  | 375.0 ± 4.7 J | 300 MiB | ok (energy\_throughput\_gap) |
| linformer | fast | 625 ms | 618 .. 632 ms | 2.00x | 187.5 ± 2.3 J | 300 MiB | ok (energy\_throughput\_gap) |
| infsa-linear | reference | 1.00 s | 0.988 .. 1.01 s |  | 300.0 ± 3.7 J | 300 MiB | ok (energy\_throughput\_gap) |
| infsa-linear | fast | 500 ms | 494 .. 506 ms | 2.00x | 150.0 ± 1.9 J | 300 MiB | ok (energy\_throughput\_gap) |

## Flags

- energy\_throughput\_gap (17 of 18 cells): throughput while energy was watched differs by more than 5 % from that timed
- not\_converged (2 of 18 cells): the median was not known to 1 % when its time was up

## Cells without a number

- oom (out of device memory): 1

## How to reproduce

- commit 0123456789abcdef0123456789abcdef01234567; torch 2.10.0, timm 1.0.22, Python 3
- infsa-bench sweep --out results/example
"""  # noqa: E501


def test_the_report_of_fixed_records() -> None:
    assert render_pull_request([RUN]) == GOLDEN.removeprefix("\n")


def test_several_runs_follow_each_other() -> None:
    assert render_pull_request([RUN, RUN]) == f"{GOLDEN}\n{GOLDEN}".replace("\n", "", 1).replace("\n\n\n#", "\n\n#", 1)


def test_no_markup_of_a_results_file_takes_effect() -> None:
    text = render_pull_request([hostile_run()])
    assert HOSTILE not in text
    assert "\\<img src=x onerror=alert(1)\\>" in text
    bare = re.sub(r"\\.", "", text)
    assert re.findall(r"<(?!!-- -->)", bare) == []
    rows = [line for line in bare.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} <= {7, 8}, "two optional columns that not every block has"


def test_nobody_is_mentioned_and_nothing_is_linked() -> None:
    environment = dataclasses.replace(
        ENVIRONMENT, device_name="@somebody fixes #12, see https://a.example &lt; ~x~ $y$"
    )
    text = render_pull_request([run_of([make_record()], environment=environment)])
    assert "@<!-- -->somebody fixes #<!-- -->12, see https<!-- -->://a.example &amp;lt; \\~x\\~ \\$y\\$" in text


def test_the_report_fits_into_a_comment_whatever_the_runs_hold() -> None:
    long = "x" * 5000
    records = [
        make_record(
            make_failure("error", long) if index % 3 else make_measurement(times(0.01), flags=(f"{long}{index}",)),
            mechanism=f"{index}{long}",
            config=f"{index // 100}{long}",
        )
        for index in range(2000)
    ]
    text = render_pull_request([run_of(records), RUN])
    assert MAX_CHARACTERS / 2 < len(text) <= MAX_CHARACTERS
    assert text.endswith("More stands in the page and the tables of the report: this is as much as a comment holds.\n")


def test_a_large_run_shows_the_largest_size_that_most_completed() -> None:
    records = [
        make_record(make_measurement(times(0.01)), mechanism=f"m{i}", resolution=r)
        for r in (224, 512)
        for i in range(50)
    ]
    records += [make_record(make_failure(), mechanism=f"m{i}", resolution=1024) for i in range(50)]
    text = render_pull_request([run_of(records)])
    assert "### 4L-64H, infer, fp32, eager, batch 1, 512 x 512 pixels" in text
    assert sum(line.startswith("| m") for line in text.splitlines()) == 41  # and the header
    assert "10 more rows stand in the report's table." in text
    assert "- oom (out of device memory): 50" in text


def test_without_flags_and_failures_it_says_so() -> None:
    text = render_pull_request([run_of([make_record()])])
    assert "## Flags\n\nNone.\n" in text
    assert "## Cells without a number\n\nNone.\n" in text
