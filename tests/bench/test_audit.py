"""The audit: what arithmetic must find is found, what was measured is left alone, and bad tables are one line."""

from __future__ import annotations

import io
import math
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from sample_records import make_failure, make_manifest, make_measurement, make_record

from infsa_bench.analyze.audit import AuditRow, Finding, run_checks
from infsa_bench.analyze.summary import summarize
from infsa_bench.commands.audit import audit, parse_table
from infsa_bench.errors import InfsaBenchError, SchemaError, SpecError
from infsa_bench.paper import TABLES, as_printed
from infsa_bench.report.table import render_csv
from infsa_bench.spec import Phase
from infsa_bench.store import RunWriter

LATENCIES = (0.010, 0.013, 0.021, 0.034, 0.055, 0.089)


def find(rows: Iterable[AuditRow]) -> list[Finding]:
    """What all checks find together."""
    return [finding for result in run_checks(rows).values() if not isinstance(result, str) for finding in result]


def make_row(latency_seconds: float = 0.01, phase: Phase = "infer", **changes: Any) -> AuditRow:
    label = f"{latency_seconds:g}"
    row = AuditRow(label=label, phase=phase, pair=label, config="4L-64H", batch_size=1, latency_seconds=latency_seconds)
    return replace(row, **changes)


def rows_of_power(watts: Sequence[float], latencies: Sequence[float] = LATENCIES, **changes: Any) -> list[AuditRow]:
    pairs = zip(latencies, watts, strict=True)
    return [make_row(latency, joules_per_image=power * latency, **changes) for latency, power in pairs]


def read(*lines: str) -> list[AuditRow]:
    return [row for row in parse_table("\n".join(lines) + "\n", "table.csv") if row is not None]


def kinds(rows: Sequence[AuditRow]) -> list[tuple[str, str]]:
    return [(finding.kind, finding.severity) for finding in find(rows)]


def only(rows: Sequence[AuditRow]) -> Finding:
    (finding,) = find(rows)
    return finding


def printed(path: Path | None, paper: bool = False) -> tuple[int, list[str]]:
    console = Console(file=io.StringIO(), record=True, width=80)
    code = audit(path, paper, console)
    return code, console.export_text().splitlines()


def published() -> list[AuditRow]:
    return [row for name in TABLES for row in parse_table(as_printed(name), name) if row is not None]


# The published table.


def test_published_energies_are_two_constants() -> None:
    infer, train, *_ = find(published())
    assert infer.message == (
        "all 20 energies with phase infer equal latency x 200.0 W (any constant from 199.994 to 200.001 W fits): "
        "as if assumed, not measured"
    )
    assert train.message == (
        "all 19 energies with phase train equal latency x 300.0 W (any constant from 299.987 to 300.042 W fits): "
        "as if assumed, not measured"
    )
    assert [(finding.kind, finding.severity) for finding in (infer, train)] == [("constant power", "fault")] * 2
    assert (len(infer.rows), len(train.rows)) == (20, 19)


def test_published_throughputs_are_reciprocals_but_one() -> None:
    (finding,) = (finding for finding in find(published()) if finding.kind == "throughput")
    assert finding.severity == "fault"
    assert len(finding.rows) == 38
    assert finding.message == (
        "throughput is the reciprocal of latency (x batch size) in 38 of 39 cells of both phases "
        "(except 24L-16H infsa-pure train: 16.59, not 16.5975): it adds nothing to latency"
    )


def test_published_training_is_faster_than_inference_four_times() -> None:
    (finding,) = (finding for finding in find(published()) if finding.kind == "training and inference")
    assert finding.severity == "fault"
    assert [(row.label, row.phase) for row in finding.rows[::2]] == [
        ("24L-16H softmax", "train"),
        ("24L-16H infsa-pure", "train"),
        ("4L-64H softmax", "train"),
        ("4L-64H infsa-pure", "train"),
    ]
    assert finding.message == (
        "training takes no longer than inference alone in 4 of 18 cells: "
        "24L-16H softmax (train 60.18 ms, infer 113.13 ms); 24L-16H infsa-pure (train 60.25 ms, infer 110.2 ms); "
        "4L-64H softmax (train 19.26 ms, infer 58.16 ms); 4L-64H infsa-pure (train 19.55 ms, infer 56.27 ms)"
    )


def test_the_published_table_as_printed() -> None:
    code, lines = printed(None, paper=True)
    assert code == 1
    assert lines[0] == (
        "published numbers (table1.csv, stress_test.csv), none of them ours: 39 cells read (20 infer, 19 train) of "
        "24L-16H, 4L-64H"
    )
    assert [line.partition(":")[0] for line in lines[1:5]] == ["fault"] * 4
    assert lines[5:] == [
        "not checked: power limit: no energies with a known power limit",
        "not checked: idle power: no energies with a known idle power",
        "implied power (energy / latency) of the published numbers: 300 W in training, 200 W in inference",
    ]


def test_a_table_in_the_layout_of_the_paper_is_read_like_it(tmp_path: Path) -> None:
    table = tmp_path / "table1.csv"
    table.write_text(as_printed("table1.csv"))
    code, lines = printed(table)
    assert code == 1
    assert lines[0] == f"{table}: 36 cells read (18 infer, 18 train) of 24L-16H, 4L-64H"
    assert "in 35 of 36 cells of both phases" in lines[3]
    assert not any("implied" in line for line in lines)


# Constant power.


@given(
    st.floats(300, 1000),
    st.lists(st.integers(1000, 30_000), min_size=5, max_size=30).filter(lambda x: max(x) >= 3 * min(x)),
    st.integers(2, 9),
)
@settings(max_examples=80, deadline=None)
def test_latency_times_a_power_is_found_at_any_rounding(watts: float, hundredths: list[int], digits: int) -> None:
    """From 3 J and 10 ms on, two digits after the point tell powers apart."""
    lines = [f"4L,m{i},infer,{n / 100:.2f},{watts * n / 1e5:.{digits}f}" for i, n in enumerate(hundredths)]
    rows = read("config,mechanism,mode,latency_ms,joules_per_image", *lines)
    finding = only(rows)
    assert (finding.kind, finding.severity, finding.rows) == ("constant power", "fault", tuple(rows))


@given(st.integers(0, 2**32), st.integers(8, 40), st.sampled_from([None, 0.005]))
@settings(max_examples=80, deadline=None)
def test_measured_power_is_left_alone(seed: int, count: int, half_unit: float | None) -> None:
    """Power that varies by 2 % from cell to cell, with all digits and rounded to a hundredth."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        latency = generator.uniform(0.01, 0.2)
        energy = generator.gauss(300, 6) * latency
        rows.append(
            make_row(
                latency,
                joules_per_image=energy if half_unit is None else round(energy, 2),
                joules_per_image_half_unit=half_unit,
            )
        )
    assert find(rows) == []


def test_the_message_names_power_and_interval() -> None:
    finding = only(rows_of_power([250.0] * 6))
    assert finding.message == (
        "all 6 energies with phase infer equal latency x 250.0 W (any constant from 249.875 to 250.125 W fits): "
        "as if assumed, not measured"
    )


@pytest.mark.parametrize(("deviation", "expected"), [(1e-4, 1), (4.9e-4, 1), (6e-4, 0), (0.003, 0)])
def test_numbers_with_all_digits_count_within_half_a_thousandth(deviation: float, expected: int) -> None:
    watts = [300 * (1 + deviation), 300 * (1 - deviation)] * 3
    assert len(find(rows_of_power(watts))) == expected


@pytest.mark.parametrize("power", [111.1, 123.4, 200.0, 299.9, 314.2, 777.7])
def test_one_point_in_common_is_enough(power: float) -> None:
    """The constant fits at the very end of both intervals, which rounding of the arithmetic may move apart."""
    assert len(find(rows_of_power([power / 1.0005, power / 0.9995] * 3))) == 1


def test_one_constant_for_both_phases_is_one_finding() -> None:
    train = rows_of_power([200.0] * 6, [2 * latency for latency in LATENCIES], phase="train")
    finding = only(rows_of_power([200.0] * 6) + train)
    assert finding.message.startswith("all 12 energies of both phases equal latency x 200.0 W")


def test_phases_too_small_alone_are_judged_together() -> None:
    train = rows_of_power([200.0] * 3, [0.3, 0.4, 0.5], phase="train")
    assert len(only(rows_of_power([200.0] * 3, LATENCIES[:3]) + train).rows) == 6


def test_one_phase_may_be_measured() -> None:
    train = rows_of_power([280.0, 290, 301, 270, 295, 305], [2 * latency for latency in LATENCIES], phase="train")
    finding = only(rows_of_power([200.0] * 6) + train)
    assert finding.message.startswith("all 6 energies with phase infer")


def test_energy_is_that_of_a_batch() -> None:
    sizes = (1, 2, 4, 8, 16, 32)
    rows = [
        make_row(latency, batch_size=size, joules_per_image=200 * latency / size)
        for latency, size in zip(LATENCIES, sizes, strict=True)
    ]
    assert "200.0 W" in only(rows).message


def test_a_constant_over_the_window_of_energy_is_found_too() -> None:
    rows = [replace(row, window_seconds=row.latency_seconds) for row in rows_of_power([200.0] * 6)]
    shorter = [
        replace(row, latency_seconds=row.latency_seconds * (1.02 + 0.01 * index)) for index, row in enumerate(rows)
    ]
    assert only(shorter).message.startswith("all 6 energies with phase infer equal the time in its window x 200.0 W")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([make_row()], "no energies"),
        (rows_of_power([200.0] * 4, LATENCIES[:4]), "4 energies, 5 are needed"),
        (rows_of_power([200.0] * 5, [0.010, 0.011, 0.012, 0.013, 0.029]), "latencies span less than a factor of 3"),
        (
            rows_of_power([200.0] * 6, joules_per_image_half_unit=0.5),
            "energies or latencies have too few digits",
        ),
    ],
)
def test_too_little_to_judge_power_by(rows: list[AuditRow], reason: str) -> None:
    assert find(rows) == []
    assert run_checks(rows)["constant power"] == reason


def test_a_coarse_cell_still_has_to_agree() -> None:
    rows = rows_of_power([200.0] * 6)
    coarse = make_row(0.005, joules_per_image=1.0, joules_per_image_half_unit=0.05)
    assert len(only([*rows, coarse]).rows) == 7
    assert find([*rows, replace(coarse, joules_per_image=1.2)]) == []


CAPPED = {"power_limit_watts": 700.0, "average_power_watts": 700.0, "power_capped_fraction": 0.9}


def test_a_card_at_its_power_limit_is_not_accused() -> None:
    rows = rows_of_power([698.0, 699, 700, 701, 702, 700.5], **CAPPED)
    finding = only(rows)
    assert (finding.kind, finding.severity, len(finding.rows)) == ("constant power", "information", 6)
    assert finding.message == "6 of 6 energies were measured at the power limit (700 W), where power is nearly constant"
    assert [finding.severity for finding in find(rows_of_power([700.0] * 6, **CAPPED))] == ["information"]


@pytest.mark.parametrize(
    "evidence",
    [
        {},
        {"power_limit_watts": 700.0},
        {**CAPPED, "power_capped_fraction": 0.5},
        {**CAPPED, "power_capped_fraction": None},
        {**CAPPED, "average_power_watts": 680.0},
        {**CAPPED, "average_power_watts": None},
    ],
)
def test_constant_power_without_evidence_of_a_cap_is_a_fault(evidence: dict[str, float | None]) -> None:
    watts = [700.07, 699.93, 700.0, 700.05, 699.95, 700.0]
    assert kinds(rows_of_power(watts, **evidence)) == [("constant power", "fault")]


def test_cells_beside_the_capped_ones_are_judged_alone() -> None:
    capped = rows_of_power([700.0, 701], [0.2, 0.3], **CAPPED)
    information, fault = find(capped + rows_of_power([400.0] * 6))
    assert (information.severity, len(information.rows)) == ("information", 2)
    assert fault.message.startswith("all 6 energies with phase infer equal latency x 400.0 W")
    few = only(capped + rows_of_power([400.0] * 2, LATENCIES[:2]))
    assert few.message.endswith("nearly constant; the others cannot be judged: 2 energies, 5 are needed")


# Throughput.


@given(st.lists(st.floats(1e-3, 10), min_size=5, max_size=20), st.integers(1, 64))
@settings(max_examples=50, deadline=None)
def test_reciprocals_are_found_and_others_are_not(latencies: list[float], batch_size: int) -> None:
    rows = [make_row(x, pair=str(i), batch_size=batch_size) for i, x in enumerate(latencies)]
    derived = [replace(row, images_per_second=batch_size / row.latency_seconds) for row in rows]
    assert kinds(derived) == [("throughput", "fault")]
    measured = [replace(row, images_per_second=0.997 * batch_size / row.latency_seconds) for row in rows]
    assert find(measured) == []
    # Iterations of minutes on a CPU: what the loop adds is all that tells the two apart.
    slow = [replace(row, images_per_second=(1 - 1e-8) * batch_size / row.latency_seconds) for row in rows]
    assert find(slow) == []


@pytest.mark.parametrize(
    ("exceptions", "count", "found"), [(1, 20, True), (2, 40, True), (2, 39, False), (1, 5, False)]
)
def test_a_misprint_does_not_clear_a_table(exceptions: int, count: int, found: bool) -> None:
    rows = [make_row(0.01 * (1 + index), images_per_second=100 / (1 + index)) for index in range(count)]
    rows[:exceptions] = [replace(row, images_per_second=90.0) for row in rows[:exceptions]]
    assert bool(find(rows)) == found


def test_throughput_of_one_phase_may_be_measured() -> None:
    infer = [make_row(x, images_per_second=1 / x) for x in LATENCIES]
    train = [make_row(3 * x, "train", images_per_second=0.31 / x) for x in LATENCIES]
    assert "in 6 of 6 cells with phase infer:" in only(infer + train).message


def test_too_few_digits_to_judge_throughput_by() -> None:
    rows = [make_row(x, images_per_second=round(1 / x), images_per_second_half_unit=0.5) for x in LATENCIES]
    assert find(rows) == []
    assert run_checks(rows)["throughput"] == "throughputs or latencies have too few digits"


# Training and inference; bounds of power.


@pytest.mark.parametrize(("seconds", "found"), [(0.009, True), (0.010, True), (0.011, False), (0.03, False)])
def test_training_takes_longer_than_inference(seconds: float, found: bool) -> None:
    rows = [make_row(0.010), replace(make_row(seconds, "train"), pair=make_row(0.010).pair)]
    assert kinds(rows) == ([("training and inference", "fault")] if found else [])


def test_cells_of_different_pairs_are_not_compared() -> None:
    rows = [make_row(0.010), make_row(0.005, "train")]
    assert find(rows) == []
    assert run_checks(rows)["training and inference"] == "no cell has both phases"


def test_repeats_of_a_cell_are_compared_by_their_medians() -> None:
    infer = [make_row(x, pair="one") for x in (0.010, 0.010, 0.020)]
    train = [make_row(x, "train", pair="one") for x in (0.011, 0.015, 0.016)]
    assert find(infer + train) == []


def test_a_long_list_is_cut() -> None:
    rows = [make_row(0.01, phase, pair=str(i), label=f"m{i}") for i in range(12) for phase in ("infer", "train")]
    message = only(rows).message
    assert "m9 (train 10 ms" in message
    assert message.endswith("; and 2 more")
    assert "m10" not in message


def test_energy_beyond_what_the_board_can_take_or_idles_at() -> None:
    known: dict[str, Any] = {"power_limit_watts": 400.0, "idle_watts": 60.0}
    assert find(rows_of_power([300, 320, 407, 59, 100, 200], **known)) == []
    above, below = find(rows_of_power([300, 320, 409, 58, 100, 200], **known))
    assert (above.kind, above.severity, len(above.rows)) == ("power limit", "fault", 1)
    assert above.message == "energy is above power limit x time in 1 of 6 cells: 0.021 infer (409 W, power limit 400 W)"
    assert below.message == "energy is below idle power x time in 1 of 6 cells: 0.034 infer (58 W, idle power 60 W)"
    assert (below.kind, below.severity, len(below.rows)) == ("idle power", "fault", 1)


def test_rounding_is_granted_before_a_bound_is_exceeded() -> None:
    row = make_row(0.001, joules_per_image=0.45, power_limit_watts=400.0)
    assert kinds([row]) == [("power limit", "fault")]
    assert find([replace(row, joules_per_image_half_unit=0.05)]) == []
    idle = make_row(0.001, joules_per_image=0.05, idle_watts=60.0)
    assert kinds([idle]) == [("idle power", "fault")]
    assert find([replace(idle, joules_per_image_half_unit=0.01)]) == []


def test_bounds_hold_for_the_time_in_which_energy_was_measured() -> None:
    """A full queue is faster than single batches: 1 J in 10 ms of latency is 100 W, in 2 ms of window 500 W."""
    row = make_row(0.010, joules_per_image=1.0, window_seconds=0.002, power_limit_watts=400.0, idle_watts=150.0)
    assert kinds([row]) == [("power limit", "fault")]


@pytest.mark.parametrize(
    "changes",
    [
        {"latency_seconds": 0.0},
        {"latency_seconds": -1.0},
        {"latency_seconds": math.nan},
        {"latency_seconds": math.inf},
        {"latency_half_unit_seconds": 0.01},
        {"batch_size": 0},
        {"images_per_second": -1.0},
        {"joules_per_image": math.nan},
        {"idle_watts": math.inf},
        {"power_capped_fraction": 1.5},
    ],
)
def test_impossible_rows_cannot_be_made(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="is not possible"):
        make_row(**changes)


# Reading.


@pytest.mark.parametrize(
    ("text", "value", "half_unit"),
    [
        ("60.18", 60.18, 0.005),
        ("8.84", 8.84, 0.005),
        ("59", 59, 0.5),
        ("59.", 59, 0.5),
        (".5", 0.5, 0.05),
        ("0.870", 0.87, 0.0005),
        ("1.5e3", 1500, 50),
        ("2E-2", 0.02, 0.005),
        ("12.3456789012", 12.3456789012, None),
        ("0.00012345678901", 0.00012345678901, 5e-15),
    ],
)
def test_the_resolution_of_a_printed_number(text: str, value: float, half_unit: float | None) -> None:
    (row,) = read("config,mechanism,mode,latency_ms,joules_per_image", f"4L,m,infer,{text},{text}")
    assert row.joules_per_image == value
    assert row.joules_per_image_half_unit == half_unit
    assert row.latency_seconds == pytest.approx(value / 1e3, rel=1e-15)
    assert row.latency_half_unit_seconds == (half_unit if half_unit is None else pytest.approx(half_unit / 1e3))


WIDE = "config,mechanism,train_latency_ms,infer_latency_ms,train_images_per_second,infer_images_per_second,"
WIDE += "train_joules_per_image,infer_joules_per_image"


def test_blank_cells_are_no_numbers() -> None:
    infer, train = read(WIDE, "4L,softmax,20.0,10.0,50.0,,,2.00")
    assert (infer.images_per_second, infer.joules_per_image) == (None, 2.0)
    assert (train.images_per_second, train.joules_per_image) == (50.0, None)
    assert parse_table(f"{WIDE}\n4L,softmax,,10,,,,\n", "t")[1] is None


def test_batch_size_is_one_unless_it_is_given() -> None:
    assert [row.batch_size for row in read(WIDE, "4L,m,20,10,,,,")] == [1, 1]
    assert [row.batch_size for row in read(f"batch_size,{WIDE}", "64,4L,m,20,10,,,,")] == [64, 64]


def test_pairs_of_the_long_layout() -> None:
    header = "config,mechanism,resolution,mode,latency_ms"
    rows = read(header, "4L,m,224,infer,10", "4L,m,224,train,9", "4L,m,384,infer,30", "4L,m,512,train,20")
    assert [row.label for row in only(rows).rows] == ["4L m 224"] * 2


def test_lines_of_the_same_name_are_cells_of_their_own() -> None:
    rows = read(WIDE, "4L,m,20,10,,,,", "4L,m,8,9,,,,")
    assert [row.latency_seconds for row in only(rows).rows] == [0.008, 0.009]


OWN = "cell,config,phase,batch_size,status,latency_seconds,images_per_second"


def own_line(index: int, phase: str = "infer", status: str = "ok", latency: float = 0.01, extra: str = "") -> str:
    rate = 1.01 / latency if latency else ""
    return f"infsa/m{index}/4L/r224/b1/{phase}/eager,4L,{phase},1,{status},{latency or ''},{rate}{extra}"


def test_our_own_layout_has_all_digits_and_pairs_cells_across_phases() -> None:
    rows = read(OWN, own_line(0), own_line(0, "train"), own_line(1, "train"), own_line(2, status="oom", latency=0))
    assert len(rows) == 3
    assert {row.latency_half_unit_seconds for row in rows} == {None}
    assert rows[0].pair == rows[1].pair != rows[2].pair
    assert [row.label for row in only(rows).rows] == ["infsa/m0/4L/r224/b1/eager"] * 2


def test_cells_of_two_environments_are_not_compared() -> None:
    header = f"{OWN},environment"
    assert find(read(header, own_line(0, extra=",fast"), own_line(0, "train", latency=0.009, extra=",slow"))) == []
    assert len(find(read(header, own_line(0, extra=",fast"), own_line(0, "train", extra=",fast")))) == 1


def test_our_own_layout_with_energy() -> None:
    columns = ",joules_per_image,average_power_watts,power_limit_watts,idle_power_watts,power_capped_fraction"
    columns += ",window_images_per_second"
    row, without = read(OWN + columns, own_line(0, extra=",6.98,698,700,70,0.9,102.0"), own_line(1, extra=",,,,,,"))
    assert (row.joules_per_image, row.average_power_watts, row.power_limit_watts) == (6.98, 698, 700)
    assert (row.idle_watts, row.power_capped_fraction, row.window_seconds) == (70, 0.9, 1 / 102.0)
    assert row.is_power_capped
    assert (without.joules_per_image, without.window_seconds, without.is_power_capped) == (None, None, False)


BAD_TABLES = {
    "empty": ("", SpecError, "table.csv is empty"),
    "blank lines": ("\n\n,\n", SpecError, "table.csv is empty"),
    "another layout": ("a,b\n1,2\n", SpecError, "no columns that are understood, which are config, mechanism, "),
    "header only": (WIDE, SpecError, "has no cell with a latency"),
    "no number in any row": (f"{OWN}\n{own_line(0, status='oom', latency=0)}", SpecError, "no cell with a latency"),
    "text": (f"{WIDE}\n4L,m,fast,1,,,,", SchemaError, "table.csv, line 2: train_latency_ms 'fast' is not a number"),
    "nan": (f"{WIDE}\n4L,m,nan,1,,,,", SchemaError, "'nan' is not a number"),
    "infinity": (f"{WIDE}\n4L,m,inf,1,,,,", SchemaError, "'inf' is not a number"),
    "overflow": (f"{WIDE}\n4L,m,1e999,1,,,,", SchemaError, "a latency of inf s is not possible"),
    "underscore": (f"{WIDE}\n4L,m,1_0,1,,,,", SchemaError, "'1_0' is not a number"),
    "other digits": (f"{WIDE}\n4L,m,\u0661,1,,,,", SchemaError, "is not a number"),
    "decimal comma": (f'{WIDE}\n4L,m,"1,5",1,,,,', SchemaError, "'1,5' is not a number"),
    "long junk": (f"{WIDE}\n4L,m,{'x' * 500},1,,,,", SchemaError, f"'{'x' * 60}' is not a number"),
    "zero": (f"{WIDE}\n4L,m,1,0,,,,", SchemaError, "line 2: a latency of 0 s is not possible"),
    "negative": (f"{WIDE}\n4L,m,1,-3,,,,", SchemaError, "a latency of -0.003 s is not possible"),
    "negative energy": (f"{WIDE}\n4L,m,1,3,,,,-2", SchemaError, "joules_per_image of -2 is not possible"),
    "short line": (f"{WIDE}\n4L,m", SchemaError, "line 2: 2 cells under 8 columns"),
    "long line": (f"{WIDE}\n4L,m,1,1,,,,,,", SchemaError, "line 2: 10 cells under 8 columns"),
    "column twice": (f"{WIDE},config\n", SchemaError, "line 1: a column name stands there twice"),
    "mode": ("config,mechanism,mode,latency_ms\n4L,m,eval,1", SchemaError, "mode 'eval' is neither of infer, train"),
    "batch size": (f"{WIDE},batch_size\n4L,m,1,1,,,,,1.5", SchemaError, "batch_size '1.5' is not a whole number"),
    "batch size 0": (f"{WIDE},batch_size\n4L,m,1,1,,,,,0", SchemaError, "a batch size of 0 is not possible"),
    "huge field": (f"{WIDE}\n4L,{'m' * 200_000},1,1,,,,", SchemaError, "field larger than field limit"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_are_one_line(name: str, tmp_path: Path) -> None:
    text, kind, expected = BAD_TABLES[name]
    with pytest.raises(kind) as raised:
        parse_table(text, "table.csv")
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(kind):
        printed(tmp_path / "table.csv")


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=100).map(lambda junk: f"{WIDE}\n4L,".encode() + junk)))
@settings(max_examples=100, deadline=None)
def test_junk_is_refused_or_read_but_never_a_crash(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "junk.csv"
    file.write_bytes(content)
    with pytest.raises(InfsaBenchError):
        printed(file)


# The command.


def test_a_file_or_the_paper() -> None:
    for path, paper in ((None, False), (Path("table.csv"), True)):
        with pytest.raises(SpecError, match="one of the two"):
            printed(path, paper)


def test_what_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, expected in (("none.csv", "neither a file nor a run"), ("pipe", "neither"), ("", "is no run")):
        with pytest.raises(SpecError, match=expected):
            printed(tmp_path / name)
    with pytest.raises(SpecError, match="cannot be read"):
        printed(tmp_path / ("x" * 5000))


def test_nothing_found_says_what_was_looked_at(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    lines = [own_line(index, latency=latency) for index, latency in enumerate(LATENCIES)]
    # As a spreadsheet writes it.
    table.write_bytes(("\ufeff" + "\r\n".join([OWN, *lines, own_line(9, status="oom", latency=0)])).encode())
    code, output = printed(table)
    assert code == 0
    assert output == [
        f"{table}: 6 cells read (6 infer, 0 train) of 4L; 1 without a latency left out",
        "no inconsistency found in 6 cells (checked: throughput)",
        "not checked: constant power: no energies",
        "not checked: training and inference: no cell has both phases",
        "not checked: power limit: no energies with a known power limit",
        "not checked: idle power: no energies with a known idle power",
    ]


def test_information_alone_is_no_failure(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    header = f"{OWN},joules_per_image,average_power_watts,power_limit_watts,power_capped_fraction"
    watts = (698.0, 699.0, 700.0, 701.0, 702.0, 700.5)
    lines = [
        own_line(index, latency=latency, extra=f",{power * latency},{power},700,0.9")
        for index, (latency, power) in enumerate(zip(LATENCIES, watts, strict=True))
    ]
    table.write_text("\n".join([header, *lines]))
    code, output = printed(table)
    assert code == 0
    assert output[1] == (
        "information: 6 of 6 energies were measured at the power limit (700 W), where power is nearly constant"
    )
    assert output[2] == "no inconsistency found in 6 cells (checked: constant power, throughput, power limit)"


def test_too_small_a_table_is_not_called_consistent(tmp_path: Path) -> None:
    table = tmp_path / "stress_test.csv"
    table.write_text(as_printed("stress_test.csv"))
    code, output = printed(table)
    assert code == 0
    assert output[1] == "nothing could be checked in 3 cells"


def test_names_are_not_markup(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(f"{WIDE}\n[bold]4L,[/red],5,10,,,,\n")
    code, output = printed(table)
    assert code == 1
    assert "[bold]4L [/red] (train 5 ms, infer 10 ms)" in output[1]


def test_a_run_is_read_by_way_of_its_table(tmp_path: Path) -> None:
    records = [
        make_record(make_measurement([latency] * 3), mechanism=f"m{index}", phase=phase)
        for index, latency in enumerate(LATENCIES)
        for phase in ("infer", "train")
    ]
    records.append(make_record(make_failure(), mechanism="m9"))
    folder = tmp_path / "results" / "x"
    with RunWriter(folder, make_manifest([record.case.id for record in records])) as writer:
        for record in records:
            writer.append(record)
    code, output = printed(folder)
    assert code == 1
    assert output[0] == f"{folder}: 12 cells read (6 infer, 6 train) of 4L-64H; 1 without a latency left out"
    assert any("training takes no longer than inference alone in 6 of 6 cells" in line for line in output)
    table = tmp_path / "table.csv"
    table.write_text(render_csv(summarize(records)))
    assert printed(table)[1][1:] == output[1:]


def test_a_run_without_records(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "x", make_manifest()):
        pass
    with pytest.raises(SpecError, match="has no cell with a latency"):
        printed(tmp_path / "x")
