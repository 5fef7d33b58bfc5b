"""Ratios to ``reference`` within a run."""

from __future__ import annotations

from dataclasses import replace

from infsa_bench.analyze.speedup import with_speedups
from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.spec import Case


def row(implementation: str, latency: float | None, environment: str = "e", **changes: object) -> SummaryRow:
    case = Case(
        mechanism="softmax",
        implementation=implementation,
        config="4L-64H",
        resolution=224,
        batch_size=1,
        precision="fp32",
        phase="infer",
        execution="eager",
    )
    status = "oom" if latency is None else "ok"
    return SummaryRow(
        case=replace(case, **changes),  # type: ignore[arg-type]
        environment=environment,
        status=status,
        reason="",
        latency_seconds=latency,
    )


def speedups(*rows: SummaryRow) -> list[float | None]:
    return [compared.speedup_over_reference for compared in with_speedups(rows)]


def test_a_pair() -> None:
    assert speedups(row("reference", 6.0), row("fast", 2.0)) == [None, 3.0]


def test_order_does_not_matter() -> None:
    assert speedups(row("fast", 2.0), row("reference", 6.0)) == [3.0, None]


def test_options_that_reference_lacks_do_not_matter() -> None:
    backend = row("fast", 2.0, options=(("backend", "flash"),))
    assert speedups(row("reference", 6.0), backend) == [None, 3.0]


def test_options_that_reference_has_do() -> None:
    pruned = row("fast", 2.0, options=(("cls_prune", "1"),))
    assert speedups(row("reference", 6.0), pruned) == [None, None]
    assert speedups(row("reference", 5.0, options=(("cls_prune", "1"),)), pruned) == [None, 2.5]


def test_nothing_to_compare_with() -> None:
    assert speedups(row("fast", 2.0)) == [None]
    assert speedups(row("reference", None), row("fast", 2.0)) == [None, None]
    assert speedups(row("reference", 6.0), row("fast", None)) == [None, None]
    assert speedups(row("reference", 6.0), row("fast", 2.0, resolution=512)) == [None, None]
    assert speedups(row("reference", 6.0, environment="other"), row("fast", 2.0)) == [None, None]
