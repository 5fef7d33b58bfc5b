"""The command of each accelerator type: what is typed for it, and how several of them end. No cluster is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from infsa_bench.commands.fleet import words_for_sweep, words_for_table


def test_words_are_those_that_were_typed_but_for_the_folder() -> None:
    words = ["sweep", "--out", "results/x", "--engine", "ray", "--per-accelerator", "--res=32"]
    expected = ["sweep", "--engine", "ray", "--res=32", "--out", "a"]
    assert words_for_sweep(words)(Path("a")) == expected
    assert words_for_sweep(["sweep", "--out=results/x", *expected[1:4]])(Path("a")) == expected


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--against results/x results/x --per-accelerator --measure", "--against results/x OUT --measure"),
        ("results/table/ --measure --engine ray --per-accelerator", "OUT --measure --engine ray"),
        ("./x --measure --engine ray --per-accelerator", "OUT --measure --engine ray"),
        ("--measure --engine ray --per-accelerator a//b", "--measure --engine ray OUT"),
        # Runs that are called as the command, an option's value or an option are.
        ("--measure --per-accelerator table1", "--measure OUT"),
        ("--engine ray --phase infer --measure --per-accelerator ray", "--engine ray --phase infer --measure OUT"),
        ("--engine=ray --phase infer infer --measure --per-accelerator", "--engine=ray --phase infer OUT --measure"),
        ("--engine ray --per-accelerator --measure -- -x", "--engine ray --measure -- OUT"),
    ],
)
def test_the_run_of_a_table_is_found_however_it_is_written(typed: str, expected: str) -> None:
    words_of = words_for_table(["table1", *typed.split()])
    assert words_of(Path("OUT")) == ["table1", *expected.split()]
    assert words_of(Path("other"))[1:] == expected.replace("OUT", "other").split()
