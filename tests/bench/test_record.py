from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from sample_records import (
    ENVIRONMENT,
    GPU,
    make_energy,
    make_measurement,
    make_no_energy,
    make_record,
    make_trial,
    make_window,
    values_of,
)

from infsa_bench.codec import decode, encode
from infsa_bench.errors import SchemaError
from infsa_bench.machine import Environment
from infsa_bench.record import EnergyReading, Record


@given(values_of(Environment))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_environment_key_is_that_of_its_content(environment: Environment) -> None:
    assert decode(Environment, encode(environment)).key == environment.key
    assert len(environment.key) == 12


@pytest.mark.parametrize(
    "changes", [{"torch_threads": 1}, {"gpu": GPU}, {"tf32_convolutions": True}, {"git_dirty": None}], ids=str
)
def test_environment_keys_tell_environments_apart(changes: dict[str, Any]) -> None:
    other = dataclasses.replace(ENVIRONMENT, **changes)
    assert decode(Environment, encode(other)).key == other.key != ENVIRONMENT.key


def test_gpus_with_other_settings_are_other_environments() -> None:
    capped = dataclasses.replace(ENVIRONMENT, gpu=dataclasses.replace(GPU, power_limit_watts=500.0))
    assert capped.key != dataclasses.replace(ENVIRONMENT, gpu=GPU).key


def test_the_type_of_a_device() -> None:
    assert ENVIRONMENT.device_type == "cpu"
    assert dataclasses.replace(ENVIRONMENT, device="cuda:3").device_type == "cuda"


@pytest.mark.parametrize(
    ("changes", "fake"),
    [
        ({}, False),
        ({"name": "FAKE H200"}, True),
        ({"driver_version": "999.fake"}, True),
        ({"name": "Quadro FAKE"}, False),
    ],
    ids=str,
)
def test_the_library_of_the_tests_is_known_by_its_answers(changes: dict[str, Any], fake: bool) -> None:
    assert dataclasses.replace(GPU, **changes).is_fake is fake


@pytest.mark.parametrize("times", ["[]", "[0.0]", "[0.01,-1]"])
@pytest.mark.parametrize("field", ["latencies_seconds", "seconds_per_iteration"])
def test_times_that_no_clock_can_have_measured_are_refused(field: str, times: str) -> None:
    line = encode(make_record(make_measurement([0.01, 0.02])))
    hostile = line.replace(f'"{field}":[0.01,0.02]', f'"{field}":{times}')
    assert hostile != line
    with pytest.raises(SchemaError, match=field):
        decode(Record, hostile)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reason": "shared"}, "reason if and only if"),
        ({"status": "measured_low_confidence"}, "reason if and only if"),
        ({"status": "not_measured", "trials": ()}, "reason if and only if"),
        ({"status": "not_measured", "reason": "mig"}, "trials if and only if"),
        ({"trials": ()}, "trials if and only if"),
        ({"status": "measured_low_confidence", "reason": "shared", "trials": ()}, "trials if and only if"),
        ({"calibration": None}, "calibration"),
        ({"relative_bias": None}, "bound of their bias"),
    ],
    ids=str,
)
def test_a_number_has_a_source_and_a_missing_one_a_reason(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make_energy(), **changes)


@pytest.mark.parametrize("reading", [make_energy(), make_energy(doubts=("shared", "drift")), make_no_energy()])
def test_readings_come_back_as_they_were_written(reading: EnergyReading) -> None:
    record = make_record(make_measurement(energy=reading))
    assert decode(Record, encode(record)) == record


def test_the_energy_of_an_iteration_is_total_over_total() -> None:
    """Not the mean of the windows' ratios: a long window counts for more."""
    trial = make_trial(make_window(100.0, iterations=10.0), make_window(900.0, iterations=30.5))
    assert trial.joules_per_iteration == 1000 / 40.5


@pytest.mark.parametrize("changes", [{"seconds": 0.0}, {"seconds": -1.0}, {"iterations": -0.5}])
def test_an_energy_window_takes_time(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="energy window"):
        dataclasses.replace(make_window(), **changes)


def test_an_energy_trial_ran_something() -> None:
    for windows in ((), (dataclasses.replace(make_window(), iterations=0.0),)):
        with pytest.raises(ValueError, match="energy trial"):
            dataclasses.replace(make_trial(), windows=windows)
