"""A comparison as people and programs read it."""

from __future__ import annotations

import json
from typing import Any

from infsa_bench.analyze.comparability import Difference
from infsa_bench.analyze.compare import Comparison, Mean
from infsa_bench.analyze.verdict import Judged
from infsa_bench.report.comparison import (
    render_comparison_json,
    render_comparison_markdown,
    render_comparison_text,
    worst,
)


def entry(**changes: Any) -> Judged:
    fields: dict[str, Any] = {"cell": "infsa/softmax.fast/r224", "mechanism": "softmax.fast", "metric": "latency"}
    fields |= {"verdict": "REGRESSED", "base_value": 0.01, "new_value": 0.011, "base_count": 5, "new_count": 5}
    fields |= {"ratio": 1.1, "low": 1.09, "high": 1.12, "p_value": 0.001, "q_value": 0.012, "tags": ("clock",)}
    return Judged(**(fields | changes))


COMPARISON = Comparison(
    base="before",
    new="after",
    differences=(
        Difference(what="power limit (W)", base="700.0", new="500.0", is_fatal=True),
        Difference(what="torch", base="2.10", new="2.11", is_fatal=False),
    ),
    judged=(
        Judged(
            cell="infsa/mlla.fast/r224",
            mechanism="mlla.fast",
            metric="status",
            verdict="STATUS_CHANGED",
            direction="worse",
            reason="ok -> oom in 1 of 5 processes",
        ),
        entry(),
        entry(cell="infsa/a|b.fast/r224", verdict="AMBIGUOUS", ratio=1.2, reason="not sure", tags=()),
        entry(cell="infsa/soft.fast/r224", verdict="SAME", ratio=1.0),
        entry(metric="throughput", ratio=0.9, low=0.89, high=0.92, base_value=100.0, new_value=90.0, q_value=1e-7),
        entry(
            metric="peak_memory", verdict="IMPROVED", base_value=2**30, new_value=2**29, ratio=0.5, low=None, high=None
        ),
    ),
    added=("infsa/new.fast/r224",),
    means=(Mean(mechanism="softmax.fast", metric="latency", ratio=1.05, cells=3),),
    detectable={"latency": 0.0812},
)

TEXT = """\
before -> after
verdicts on cells and metrics: 1 STATUS_CHANGED, 2 REGRESSED, 1 AMBIGUOUS, 1 IMPROVED, 1 SAME
latency: these data show a worsening of 8.12 % four times in five (too noisy for 7 %)
not comparable: power limit (W): 700.0 -> 500.0
differs: torch: 2.10 -> 2.11
only in after: infsa/new.fast/r224
STATUS_CHANGED (worse) status infsa/mlla.fast/r224
    [ok -> oom in 1 of 5 processes]
REGRESSED throughput infsa/softmax.fast/r224
    100 images/s -> 90.0 images/s x0.9000 (0.8900 .. 0.9200) q < 0.0001 [clock]
REGRESSED latency infsa/softmax.fast/r224
    10.0 ms -> 11.0 ms x1.100 (1.090 .. 1.120) q = 0.012 [clock]
AMBIGUOUS latency infsa/a|b.fast/r224
    10.0 ms -> 11.0 ms x1.200 (1.090 .. 1.120) q = 0.012 [not sure]
IMPROVED peak_memory infsa/softmax.fast/r224
    1.00 GiB -> 512 MiB x0.5000 q = 0.012 [clock]
geometric mean over the cells of softmax.fast: latency x1.050
"""


def test_the_text() -> None:
    assert render_comparison_text(COMPARISON) == TEXT


def test_the_markdown_is_a_table_whatever_the_names() -> None:
    lines = render_comparison_markdown(COMPARISON).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 5
    assert {line.replace("\\|", "").count("|") for line in table} == {10}
    assert "- differs: torch: 2.10 -\\> 2.11" in lines


def test_the_json_holds_everything() -> None:
    found = json.loads(render_comparison_json(COMPARISON, 3))
    assert (found["exit_code"], found["is_comparable"]) == (3, False)
    assert len(found["judged"]) == 6
    assert found["counts"] == {"STATUS_CHANGED": 1, "REGRESSED": 2, "AMBIGUOUS": 1, "SAME": 1, "IMPROVED": 1}


def test_the_worst_ten_put_regressions_first() -> None:
    many = Comparison(
        base="a",
        new="b",
        differences=(),
        judged=tuple(
            entry(cell=f"infsa/{index}", verdict="AMBIGUOUS" if index % 2 else "REGRESSED", ratio=1 + index / 100)
            for index in range(1, 31)
        ),
        added=(),
        means=(),
        detectable={},
    )
    assert [item.cell for item in worst(many)] == [f"infsa/{index}" for index in range(30, 10, -2)]
