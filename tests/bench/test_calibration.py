"""What the gate promises, by simulation with its own decision functions; the long version is ``make calibrate``'s."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from test_cli import CommandLine, run

from infsa_bench.analyze.calibration import (
    DEVIATIONS,
    MODERATED,
    RULES,
    STORED_BASE,
    TWO_STAGES,
    CalibrationRow,
    Setup,
    calibrate,
    upper_bound,
)

__all__ = ["run"]

OURS = (TWO_STAGES, STORED_BASE, MODERATED)


def rates(suites: int, deviation: float, rules: tuple[str, ...] = OURS) -> dict[str, CalibrationRow]:
    return {row.rule: row for row in calibrate(Setup(suites=suites, seed=1), deviation, rules)}


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_unchanged_suites_pass(deviation: float) -> None:
    for row in rates(60, deviation).values():
        # More than five of sixty would be 5 % with a probability of one in a thousand.
        assert row.alarms <= 5 / 60


def test_slowdowns_are_found() -> None:
    """Bounds below the long version's by four standard deviations of so few suites."""
    assert rates(60, 0.005)[TWO_STAGES].power_10 >= 0.95
    assert rates(60, 0.01)[TWO_STAGES].power_10 >= 0.95
    assert rates(100, 0.02, (TWO_STAGES,))[TWO_STAGES].power_7 >= 0.72 - 4 * 0.045


def test_simpler_rules_visibly_fail() -> None:
    found = rates(20, 0.02, tuple(RULES))
    assert found["Mann-Whitney p < 0.002 on iterations"].flagged_cells > 0.5
    assert found["t-test p < 0.05 on iterations"].flagged_cells > 0.5
    assert found["threshold 3 %, one process a side"].alarms > 0.9
    assert found["threshold 7 %, one process a side"].alarms > 0.9


@pytest.mark.soak
@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_the_promise(deviation: float) -> None:
    found = rates(1000, deviation)
    assert all(row.alarms <= 0.05 for row in found.values())
    if deviation <= 0.01:
        assert found[TWO_STAGES].power_10 >= 0.95
    if deviation == 0.02:
        assert found[TWO_STAGES].power_7 >= 0.72


def test_the_committed_table_keeps_the_promise() -> None:
    folder = Path(__file__).parents[2] / "results" / "calibration"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["setup"]["suites"] >= 1000
    assert manifest["setup"]["cells"] == 300
    with (folder / "table.csv").open() as lines:
        rows = {(row["rule"], float(row["deviation"])): row for row in csv.DictReader(lines)}
    assert {deviation for _, deviation in rows} == set(DEVIATIONS)
    for rule in OURS:
        assert all(float(rows[rule, deviation]["alarms"]) <= 0.05 for deviation in DEVIATIONS)
    assert all(float(rows[TWO_STAGES, deviation]["power_10"]) >= 0.95 for deviation in (0.005, 0.01))
    assert float(rows[TWO_STAGES, 0.02]["power_7"]) >= 0.72


def test_the_same_seed_gives_the_same_table() -> None:
    setup = Setup(suites=3, seed=7, cells=20)
    assert calibrate(setup, 0.02) == calibrate(setup, 0.02)


def test_upper_bounds_are_exact() -> None:
    assert upper_bound(0, 100) == pytest.approx(1 - 0.05**0.01)
    assert upper_bound(100, 100) == 1.0
    assert np.all(np.diff([upper_bound(events, 50) for events in range(51)]) >= 0)


def test_the_command_writes_its_table_and_what_it_was_made_from(run: CommandLine) -> None:
    result = run("calibrate", "--suites", "1", "--out", "results/calibration")
    assert result.code == 0, result.err
    folder = run.folder / "results" / "calibration"
    assert "| two stages (gate) | 0.5 % |" in (folder / "table.md").read_text()
    assert len((folder / "table.csv").read_text().splitlines()) == 1 + len(RULES) * len(DEVIATIONS)
    assert json.loads((folder / "manifest.json").read_text())["setup"]["suites"] == 1
    assert run("calibrate", "--suites", "0").code == 2
