from __future__ import annotations

from drawn import run_of
from sample_records import make_failure, make_measurement, make_record

from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.record import Record
from infsa_bench.report.figures.selection import (
    blocks_with,
    by_series,
    chosen_resolution,
    has_several_implementations,
    name_of,
)
from infsa_bench.report.figures.styles import MOST_PANELS, MOST_SERIES


def rows_of(*records: Record) -> tuple[SummaryRow, ...]:
    return run_of(records).rows


def ran(row: SummaryRow) -> bool:
    return row.latency_seconds is not None


def test_series_stand_in_the_order_of_the_registry() -> None:
    rows = rows_of(
        make_record(mechanism="zzz:Mine"),
        make_record(mechanism="infsa-linear"),
        make_record(mechanism="softmax", implementation="fast"),
        make_record(mechanism="softmax", implementation="fast", options=(("backend", "flash"),)),
        make_record(mechanism="softmax", resolution=512),
        make_record(mechanism="softmax"),
    )
    names = [series.label(with_implementation=has_several_implementations(rows)) for series in by_series(rows)]
    assert names == [
        "softmax (reference)",
        "softmax (fast)",
        "softmax (fast) backend=flash",
        "infsa-linear (reference)",
        "zzz:Mine (reference)",
    ]
    assert [len(items) for items in by_series(rows).values()] == [2, 1, 1, 1, 1]


def test_an_implementation_is_named_only_where_there_are_several() -> None:
    rows = rows_of(make_record(implementation="fast"))
    assert name_of(rows[0], rows) == "softmax"
    more = rows_of(make_record(implementation="fast"), make_record())
    assert {name_of(row, more) for row in more} == {"softmax (fast)", "softmax (reference)"}


def test_1024_where_most_have_it_else_the_largest_that_most_have() -> None:
    at = {side: make_record(resolution=side) for side in (224, 1024, 4096)}
    assert chosen_resolution(rows_of(*at.values()), ran) == 1024
    other = {side: make_record(mechanism="agent", resolution=side) for side in (224, 512, 4096)}
    # One of two is not most of them.
    assert chosen_resolution(rows_of(*at.values(), *other.values()), ran) == 4096
    assert chosen_resolution(rows_of(at[224], at[1024], other[224], other[512]), ran) == 224
    assert chosen_resolution(rows_of(at[224], make_record(make_failure(), resolution=1024)), ran) == 224
    assert chosen_resolution(rows_of(make_record(make_failure())), ran) is None
    assert chosen_resolution([], ran) is None


def test_blocks_are_those_that_have_something() -> None:
    rows = rows_of(make_record(), make_record(make_failure(), phase="train"))
    assert len(blocks_with(rows)) == 2
    ((title, block),) = blocks_with(rows, ran)
    assert title == "4L-64H, infer, fp32, eager, batch 1"
    assert [row.status for row in block] == ["ok"]


def test_there_is_an_end_to_panels_and_lines() -> None:
    rows = rows_of(*(make_record(make_measurement(), batch_size=size) for size in range(1, 40)))
    titles = [title for title, _ in blocks_with(rows)]
    assert len(titles) == MOST_PANELS
    assert titles[-1] == "4L-64H, infer, fp32, eager, batch 12 (and 27 more blocks in the table)"
    assert not any("more blocks" in title for title in titles[:-1])
    rows = rows_of(*(make_record(make_measurement(), mechanism=f"m{index:03}") for index in range(99)))
    assert len(by_series(rows)) == MOST_SERIES
