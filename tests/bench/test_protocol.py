from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infsa_bench.energy_plan import (
    ENERGY_PRESETS,
    EnergyChoice,
    energy_preset,
)
from infsa_bench.errors import SpecError
from infsa_bench.protocol import LEAST_TIMED_ITERATIONS, PROTOCOLS, Protocol

LIMITED = Protocol(
    name="limited",
    warmup_iterations=3,
    warmup_seconds=1.0,
    max_warmup_seconds=20.0,
    timed_iterations=30,
    timed_seconds=3.0,
    max_timed_seconds=12.0,
)

protocols = st.one_of(
    st.sampled_from([*PROTOCOLS.values(), LIMITED]),
    st.builds(
        Protocol,
        name=st.just("any"),
        warmup_iterations=st.integers(0, 50),
        warmup_seconds=st.floats(0, 10),
        max_warmup_seconds=st.one_of(st.none(), st.floats(0.1, 60)),
        timed_iterations=st.integers(1, 300),
        timed_seconds=st.floats(0, 10),
        max_timed_seconds=st.one_of(st.none(), st.floats(0.1, 60)),
    ),
)


@pytest.mark.parametrize(
    ("protocol", "iteration_seconds", "warmup", "timed"),
    [
        # Exact counts.
        (PROTOCOLS["paper"], 1e-3, 0.050, 0.300),
        (PROTOCOLS["paper"], 1e3, 50e3, 300e3),
        # 101 calls for a second after the first one, in whole blocks of 8.
        (LIMITED, 0.01, 1.04, 3.0),
        # Two blocks at least; as many as fit into 12 s, 30 wanted.
        (LIMITED, 0.25, 4.0, 7.5),
        (LIMITED, 0.75, 12.0, 12.0),
        # Above 1 s: 7 iterations are enough, 60 s may pass.
        (LIMITED, 2.0, 11 * 2.0, 14.0),
        (LIMITED, 1.25, 16 * 1.25, 8.75),
        (LIMITED, 10.0, 30.0, 60.0),
        (LIMITED, 25.0, 50.0, 75.0),
        (LIMITED, 1e6, 2e6, 3e6),
    ],
)
def test_expected_seconds(protocol: Protocol, iteration_seconds: float, warmup: float, timed: float) -> None:
    assert protocol.expected_warmup_seconds(iteration_seconds) == pytest.approx(warmup)
    assert protocol.expected_seconds(iteration_seconds) == pytest.approx(warmup + timed)


def test_slow_iterations_are_warmed_up_twenty_times_at_most() -> None:
    patient = dataclasses.replace(LIMITED, warmup_iterations=100, max_warmup_seconds=1e6)
    assert patient.expected_warmup_seconds(1.0) == 104.0
    assert patient.expected_warmup_seconds(1.01) == pytest.approx(20 * 1.01)


@pytest.mark.parametrize(
    ("protocol", "iteration_seconds", "limits"),
    [
        (PROTOCOLS["quick"], 1e-6, (30, 10.0)),
        (PROTOCOLS["quick"], 1.0, (30, 10.0)),
        (PROTOCOLS["quick"], 1.001, (7, 60.0)),
        (PROTOCOLS["quick"], 1e6, (7, 60.0)),
        (dataclasses.replace(LIMITED, timed_iterations=5), 2.0, (5, 60.0)),
        (PROTOCOLS["paper"], 1e-6, (300, None)),
        (PROTOCOLS["paper"], 1e6, (300, None)),
    ],
)
def test_limits_of_timing(protocol: Protocol, iteration_seconds: float, limits: tuple[int, float | None]) -> None:
    assert protocol.timed_limits(iteration_seconds) == limits


def test_least_seconds_under_a_time_budget() -> None:
    assert LIMITED.least_seconds(2.0) == (1 + LEAST_TIMED_ITERATIONS) * 2.0
    # Exact counts are not cut.
    for exact in (
        PROTOCOLS["paper"],
        LIMITED.customized(warmup=2, iterations=None, replicates=None),
        LIMITED.customized(warmup=None, iterations=2, replicates=None),
    ):
        assert exact.least_seconds(2.0) == exact.expected_seconds(2.0)


@given(protocols, st.floats(1e-6, 1e4))
def test_the_least_is_no_more_than_what_is_expected(protocol: Protocol, iteration_seconds: float) -> None:
    expected = protocol.expected_seconds(iteration_seconds)
    assert 0 <= protocol.expected_warmup_seconds(iteration_seconds) < expected
    if protocol.timed_iterations >= LEAST_TIMED_ITERATIONS:
        assert protocol.least_seconds(iteration_seconds) <= expected * (1 + 1e-9)


@given(st.floats(1e-6, 1e4), st.floats(1e-6, 1e4))
def test_exact_counts_take_as_long_as_their_iterations(one: float, other: float) -> None:
    paper = PROTOCOLS["paper"]
    assert paper.expected_seconds(one) == pytest.approx(350 * one)
    assert (paper.expected_seconds(one) <= paper.expected_seconds(other)) == (one <= other)


def test_counts_asked_for_are_exact() -> None:
    assert LIMITED.customized(warmup=None, iterations=None, replicates=None) is LIMITED
    assert LIMITED.customized(warmup=7, iterations=None, replicates=None) == dataclasses.replace(
        LIMITED, name="limited*", warmup_iterations=7, warmup_seconds=0.0, max_warmup_seconds=None
    )
    assert LIMITED.customized(warmup=None, iterations=100, replicates=None) == dataclasses.replace(
        LIMITED, name="limited*", timed_iterations=100, timed_seconds=0.0, max_timed_seconds=None
    )
    assert LIMITED.customized(warmup=None, iterations=None, replicates=4) == dataclasses.replace(
        LIMITED, name="limited*", replicates=4
    )
    exact = LIMITED.customized(warmup=0, iterations=1, replicates=None)
    assert exact.expected_seconds(1e9) == 1e9
    assert exact.expected_warmup_seconds(1e9) == 0


def test_asking_for_what_a_protocol_says_changes_nothing() -> None:
    paper = PROTOCOLS["paper"]
    assert paper.customized(warmup=50, iterations=300, replicates=1) == paper
    assert PROTOCOLS["gate"].customized(warmup=None, iterations=None, replicates=5).name == "gate"


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"warmup": -1}, "--warmup must be 0 or more, not -1"),
        ({"iterations": 0}, "--iterations must be 1 or more, not 0"),
        ({"warmup": 1, "iterations": -5}, "--iterations must be 1 or more, not -5"),
        ({"replicates": 0}, "--replicates must be between 1 and 100, not 0"),
        ({"replicates": 101}, "--replicates must be between 1 and 100, not 101"),
    ],
)
def test_bad_counts(counts: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        LIMITED.customized(**{"warmup": None, "iterations": None, "replicates": None} | counts)
    assert str(caught.value) == message


def test_the_papers_protocol() -> None:
    paper = PROTOCOLS["paper"]
    assert (paper.warmup_iterations, paper.timed_iterations, paper.replicates) == (50, 300, 1)
    assert (paper.max_warmup_seconds, paper.max_timed_seconds) == (None, None)
    assert (paper.warmup_seconds, paper.timed_seconds) == (0.0, 0.0)


def test_protocols_go_by_their_names() -> None:
    assert {name: protocol.name for name, protocol in PROTOCOLS.items()} == {name: name for name in PROTOCOLS}
    assert {name: protocol.replicates for name, protocol in PROTOCOLS.items()} == {
        "quick": 1,
        "full": 3,
        "gate": 5,
        "paper": 1,
    }
    for protocol in PROTOCOLS.values():
        assert protocol.energy in ENERGY_PRESETS
        assert protocol.warmup_iterations >= 3
        assert protocol.timed_iterations >= 30


@pytest.mark.parametrize(
    ("choice", "protocol", "name"),
    [("auto", "quick", "quick"), ("auto", "full", "full"), ("full", "quick", "full"), ("quick", "paper", "quick")],
)
def test_energy_presets(choice: EnergyChoice, protocol: str, name: str) -> None:
    preset = energy_preset(choice, PROTOCOLS[protocol])
    assert preset is not None
    assert preset is ENERGY_PRESETS[name]
    assert preset.name == name


def test_no_energy() -> None:
    assert energy_preset("none", PROTOCOLS["full"]) is None
