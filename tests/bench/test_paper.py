from __future__ import annotations

import csv
from importlib.resources import files

import pytest

from infsa_bench.paper import parameters_millions
from infsa_models.registry import CONFIGS, MECHANISMS


@pytest.mark.parametrize(
    ("mechanism", "config", "millions"),
    [
        ("softmax", "4L-64H", 57.7),
        ("softmax", "24L-16H", 330.6),
        ("infsa-pure", "4L-64H", 57.7),
        ("infsa-linear", "4L-64H", 53.5),
        ("infsa-linear", "24L-16H", 305.4),
        ("linformer", "24L-16H", 331.5),
    ],
)
def test_parameters_as_printed(mechanism: str, config: str, millions: float) -> None:
    assert parameters_millions(mechanism, config) == millions


def test_every_mechanism_has_a_published_number() -> None:
    assert all(parameters_millions(mechanism, config) for mechanism in MECHANISMS for config in CONFIGS)


@pytest.mark.parametrize(("mechanism", "config"), [("some.package:Mixer", "4L-64H"), ("softmax", "12L-12H"), ("", "")])
def test_what_the_paper_does_not_have_is_none(mechanism: str, config: str) -> None:
    assert parameters_millions(mechanism, config) is None


def test_tables_name_known_mechanisms_once() -> None:
    table = rows("table1.csv")
    keys = [(row["config"], row["mechanism"]) for row in table]
    assert sorted(keys) == sorted((config, mechanism) for config in CONFIGS for mechanism in MECHANISMS)
    for row in rows("stress_test.csv"):
        assert row["mechanism"] in MECHANISMS
        assert row["config"] in CONFIGS


def test_printed_numbers_are_numbers() -> None:
    words = {"config", "mechanism", "type", "mode"}
    for row in rows("table1.csv") + rows("stress_test.csv"):
        assert all(float(value) > 0 for name, value in row.items() if name not in words)


def rows(name: str) -> list[dict[str, str]]:
    with (files("infsa_bench.paper") / name).open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))
