from __future__ import annotations

import csv
from importlib.resources import files

import pytest

from infsa_bench.paper import TABLES, PublishedCell, as_printed, parameters_millions, published_cells
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


def test_every_printed_cell_is_a_published_one() -> None:
    cells = published_cells()
    assert len(cells) == 2 * len(rows("table1.csv")) + len(rows("stress_test.csv")) == 39
    assert len({(cell.config, cell.mechanism, cell.phase, cell.resolution) for cell in cells}) == 39
    assert {(cell.kind, cell.energy_kind, cell.batch_size) for cell in cells} == {
        ("paper", "assumed_constant_power", 1)
    }


def test_published_cells_are_in_si_units() -> None:
    cells = published_cells()
    assert cells[0] == PublishedCell(
        config="24L-16H",
        mechanism="softmax",
        phase="train",
        resolution=1024,
        latency_seconds=0.06018,
        images_per_second=16.62,
        joules_per_image=18.05,
    )
    assert cells[-1] == PublishedCell(
        config="24L-16H",
        mechanism="infsa-linear",
        phase="infer",
        resolution=9216,
        latency_seconds=1.78317,
        images_per_second=0.56,
        joules_per_image=356.63,
    )


def test_published_energies_imply_the_same_power_in_every_cell() -> None:
    """The largest deviation is that of 0.87 J at 4.33 ms: 0.5 % of rounding."""
    watts = {"train": 300.0, "infer": 200.0}
    for cell in published_cells():
        assert cell.implied_watts == pytest.approx(watts[cell.phase], rel=0.005)


def test_tables_keep_the_digits_of_print() -> None:
    assert ",42.80," in as_printed("table1.csv")
    assert [as_printed(name).splitlines()[0].split(",")[0] for name in TABLES] == ["config", "config"]


def rows(name: str) -> list[dict[str, str]]:
    with (files("infsa_bench.paper") / name).open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))
