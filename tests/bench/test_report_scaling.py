from __future__ import annotations

import dataclasses

from sample_records import make_run
from test_scaling import series

from infsa_bench.analyze.summary import summarize
from infsa_bench.record import Measurement, Record
from infsa_bench.report.scaling import describe_scaling, scaling_grid
from infsa_bench.report.table import render_markdown
from infsa_bench.spec import LADDER


def with_memory(record: Record) -> Record:
    """The same with 100 bytes a token beside the model."""
    assert isinstance(record.outcome, Measurement)
    peak = record.outcome.model_bytes + 100 * record.case.tokens
    return dataclasses.replace(record, outcome=dataclasses.replace(record.outcome, peak_memory_bytes=peak))


def test_measured_beside_claimed() -> None:
    records = [with_memory(record) for record in series(lambda tokens: 1e-9 * tokens**2)]
    records += series(lambda tokens: 1e-6 * tokens, LADDER[:4], mechanism="infsa-linear", phase="train")
    records += series(float, LADDER[:2], mechanism="mlla")
    grid = scaling_grid(summarize(records))
    assert [dict(zip(grid.columns, row, strict=True)) for row in grid.rows] == [
        {
            "mechanism": "softmax",
            "implementation": "reference",
            "model": "4L-64H, infer, fp32, eager, batch 1",
            "time: claimed": "2",
            "latency": "2.00",
            "95 % interval": "2.00 .. 2.00",
            "tokens": "36,865 .. 331,777",
            "FLOPs, by formula": "1.93",
            "verdict": "as claimed",
            "memory": "1.00",
            "95 % interval (memory)": "1.00 .. 1.00",
        },
        {
            "mechanism": "infsa-linear",
            "implementation": "reference",
            "model": "4L-64H, train, fp32, eager, batch 1",
            "time: claimed": "1",
            "latency": "1.00",
            "95 % interval": "1.00 .. 1.00",
            "tokens": "197 .. 2,305",
            "FLOPs, by formula": "1.00",
            "verdict": "range too short",
            "memory": "0.00",
            "95 % interval (memory)": "0.00 .. 0.00",
        },
    ]


def test_it_stands_in_the_table_with_its_rules() -> None:
    records = series(lambda tokens: 1e-9 * tokens**2)
    text = render_markdown(make_run(records), summarize(records))
    assert "## Exponent of the tokens with which latency and memory grow" in text
    assert all(f"- {line}" in text.replace("\\", "") for line in describe_scaling())
    alone = render_markdown(make_run(records[:2]), summarize(records[:2]))
    assert "Exponent" not in alone
