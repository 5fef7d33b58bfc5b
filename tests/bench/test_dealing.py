"""Shards are parts of one plan: together all of it, each about as much work, and the same wherever they are dealt."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sample_records import make_case

from infsa_bench.analyze.predict import TIMED_PASSES, Predictor
from infsa_bench.dealing import NOMINAL_FLOPS_PER_SECOND, deal, shards_with_cases
from infsa_bench.energy_plan import ENERGY_PRESETS
from infsa_bench.errors import SpecError
from infsa_bench.protocol import PROTOCOLS
from infsa_bench.shard import MAX_SHARDS, Part, parse_part
from infsa_bench.spec import LADDER, Case, Sweep
from infsa_models.registry import CONFIGS, MECHANISMS

QUICK = PROTOCOLS["quick"]


def cases_of(replicates: int = 1) -> tuple[Case, ...]:
    axes = Sweep(
        mechanisms=tuple(MECHANISMS),
        implementations=("reference", "fast"),
        configs=tuple(CONFIGS),
        resolutions=LADDER,
        phases=("infer",),
        precisions=("bf16", "fp32"),
        executions=("eager",),
        batch_sizes=(1,),
        replicates=replicates,
    )
    return tuple(axes.cases("cuda"))


def parts_of(cases: tuple[Case, ...], count: int, device_type: str = "cuda") -> list[tuple[Case, ...]]:
    protocol = replace(QUICK, replicates=1 + max(case.replicate for case in cases))
    parts = [Part(index=index, count=count) for index in range(count)]
    return [deal(cases, part, protocol, device_type, ENERGY_PRESETS["quick"]) for part in parts]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
def test_each_case_is_in_exactly_one_part_and_in_the_order_of_the_plan(count: int) -> None:
    cases = cases_of(replicates=2)
    parts = parts_of(cases, count)
    assert sorted(case.id for part in parts for case in part) == sorted(case.id for case in cases)
    position = {case: index for index, case in enumerate(cases)}
    for part in parts:
        assert part
        assert [position[case] for case in part] == sorted(position[case] for case in part)


def test_what_is_read_side_by_side_is_in_one_part() -> None:
    cells = [
        make_case(mechanism=mechanism, resolution=resolution, implementation=implementation, options=options)
        for mechanism in ("softmax", "infsa-linear")
        for resolution in LADDER[:4]
        for implementation, options in (("reference", ()), ("fast", ()), ("fast", (("backend", "math"),)))
    ]
    cases = tuple(replace(cell, replicate=replicate) for replicate in range(3) for cell in cells)
    where = {case: index for index, part in enumerate(parts_of(cases, 3, "cpu")) for case in part}
    for case in cases:
        first = replace(case, implementation="reference", options=(), replicate=0)
        assert where[case] == where[first]
    assert set(where.values()) == {0, 1, 2}


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_parts_are_about_equal_in_predicted_work(count: int, device_type: str) -> None:
    rates = {"fp32": NOMINAL_FLOPS_PER_SECOND[device_type]}
    predictor = Predictor(rates, passes=TIMED_PASSES[device_type])

    def seconds(part: tuple[Case, ...]) -> float:
        return sum(predictor.predict(case, QUICK).seconds for case in part)

    cases = cases_of()
    loads = [seconds(part) for part in parts_of(cases, count, device_type)]
    # Without the largest image alone no part has more than its share.
    longest = max(seconds((case,)) for case in cases)
    assert max(loads) <= max(1.1 * sum(loads) / count, 2 * longest)
    assert min(loads) > 0


def test_more_replicates_leave_every_cell_where_it_is() -> None:
    once, thrice = (parts_of(cases_of(replicates), 5) for replicates in (1, 3))
    for few, many in zip(once, thrice, strict=True):
        assert [case.cell for case in few] == [case.cell for case in many if case.replicate == 0]


def test_names_of_no_form_that_a_case_has_are_taken_for_groups() -> None:
    assert shards_with_cases(["", "a", "a", "infsa", "infsa/softmax", "//"], 9) > 0


IN_ANOTHER_PROCESS = """
from test_dealing import cases_of, parts_of
print([[case.id for case in part] for part in parts_of(cases_of(), 7)])
"""


def test_nothing_but_the_plan_decides() -> None:
    """Hashes of text differ from process to process."""
    found = set()
    for seed in ("1", "2"):
        search = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        environment = {**os.environ, "PYTHONPATH": search, "PYTHONHASHSEED": seed}
        program = [sys.executable, "-c", IN_ANOTHER_PROCESS]
        found.add(subprocess.run(program, check=True, capture_output=True, text=True, env=environment).stdout)
    assert found == {f"{[[case.id for case in part] for part in parts_of(cases_of(), 7)]}\n"}


def test_there_may_be_more_parts_than_cells() -> None:
    cases = (make_case(), make_case(resolution=384))
    assert [len(part) for part in parts_of(cases, 4, "cpu")] == [1, 1, 0, 0]
    assert parts_of(cases, 4, "cpu")[0] == cases[1:]


def test_which_shards_have_cases_follows_from_the_names_of_the_cases() -> None:
    """Also where a mechanism has dots in its name, or a value of an option has what else stands between parts."""
    cells = [
        make_case(mechanism=mechanism, resolution=resolution, implementation=implementation, options=options)
        for mechanism in ("softmax", "package.module:Class")
        for resolution in LADDER[:2]
        for implementation, options in (("reference", ()), ("fast", ()), ("fast", (("backend", "a/b"),)))
    ]
    cells = [cell for cell in cells if ":" not in cell.mechanism or cell.resolution == LADDER[0]]
    cases = tuple(replace(cell, replicate=replicate) for replicate in range(2) for cell in cells)
    for count, having in ((1, 1), (2, 2), (3, 3), (4, 3), (9, 3)):
        assert shards_with_cases([case.id for case in cases], count) == having
        assert [bool(part) for part in parts_of(cases, count)] == [index < having for index in range(count)]


@pytest.mark.parametrize(("text", "part"), [("0/1", (0, 1)), ("2/3", (2, 3)), ("07/10", (7, 10))])
def test_a_part_is_written_as_index_and_number(text: str, part: tuple[int, int]) -> None:
    assert parse_part(text) == Part(index=part[0], count=part[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3/3", "--shard 3/3: shards count from zero, the last of 3 is 2/3"),
        ("0/0", f"--shard 0/0: there may be 1 to {MAX_SHARDS} shards"),
        ("0/999999999", f"--shard 0/999999999: there may be 1 to {MAX_SHARDS} shards"),
        *((text, f"--shard {text!r} is no shard") for text in ("", "1", "1/", "/2", "a/b", "-1/2", "1/2/3", "1 / 2")),
        ("٣/٤", "is no shard"),
        (f"0/{10**10}", "is no shard"),
    ],
)
def test_anything_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_part(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(("index", "count"), [(-1, 2), (2, 2), (0, 0), (0, MAX_SHARDS + 1)])
def test_a_file_cannot_name_a_part_that_is_none(index: int, count: int) -> None:
    with pytest.raises(ValueError, match="a part is one of"):
        Part(index=index, count=count)
