from __future__ import annotations

from dataclasses import replace

import pytest
from sample_records import make_case, make_measurement

from infsa_bench.analyze import predict
from infsa_bench.analyze.predict import MAX_GROWTH, TIMED_PASSES, UNKNOWN_SETUP_SECONDS, Prediction, Predictor
from infsa_bench.energy_plan import ENERGY_PRESETS, energy_seconds, trials_of_replicate
from infsa_bench.protocol import PROTOCOLS, Protocol
from infsa_bench.record import Measurement
from infsa_bench.spec import Case
from infsa_models.cost import Cost, vit_cost

RATES = {"fp32": 1000.0, "bf16": 4000.0}
PROTOCOL = Protocol(
    name="two",
    warmup_iterations=1,
    warmup_seconds=0.0,
    max_warmup_seconds=None,
    timed_iterations=1,
    timed_seconds=0.0,
    max_timed_seconds=None,
)
"""Two iterations a case, whatever they take."""

TOKENS = {224: 197, 384: 577, 512: 1025, 9216: 331_777}


def one_second_a_token(case: Case) -> Cost | None:
    """A made-up cost: at 1000 FLOP/s an iteration takes as many seconds as there are tokens."""
    if ":" in case.mechanism:
        return None
    return Cost(
        parameters=1,
        base_parameters=1,
        model_bytes=4000,
        matmul_flops=1000 * case.tokens,
        peak_activation_bytes=7 * case.tokens,
    )


formula_cost = predict._cost


@pytest.fixture(autouse=True)
def _made_up_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "_cost", one_second_a_token)


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(RATES)


def took(seconds: float, build_seconds: float = 0.5) -> Measurement:
    return make_measurement([seconds / 2, seconds, seconds * 10], build_seconds=build_seconds)


def seconds_of(predictor: Predictor, case: Case) -> float:
    return predictor.predict(case, PROTOCOL).seconds


def test_without_experience_the_rate_of_the_product_counts(predictor: Predictor) -> None:
    prediction = predictor.predict(make_case(), PROTOCOL)
    setup_seconds = UNKNOWN_SETUP_SECONDS["eager"]
    # Exact counts leave no choice.
    seconds = setup_seconds + 2 * 197
    assert prediction == Prediction(
        seconds=seconds,
        least_seconds=seconds,
        fixed_seconds=setup_seconds,
        step_seconds=197.0,
        peak_bytes=4000 + 7 * 197,
    )


@pytest.mark.parametrize(
    ("precision", "rate"), [("fp32", 1000), ("bf16", 4000), ("amp-bf16", 4000), ("fp16", 1000), ("amp-fp16", 1000)]
)
def test_rates_go_by_precision_and_fall_back_to_float32(predictor: Predictor, precision: str, rate: int) -> None:
    case = make_case(precision=precision)
    assert seconds_of(predictor, case) == pytest.approx(UNKNOWN_SETUP_SECONDS["eager"] + 2 * 197_000 / rate)


def test_limits_of_the_protocol_count(predictor: Predictor) -> None:
    # 197 s an iteration: the second of two passes the 30 s of the warm-up, and three are timed, the least there is.
    prediction = predictor.predict(make_case(), PROTOCOLS["quick"])
    setup_seconds = UNKNOWN_SETUP_SECONDS["eager"]
    assert prediction.seconds == setup_seconds + (2 + 3) * 197
    assert prediction.least_seconds == setup_seconds + (1 + 3) * 197
    predictor.observe(make_case(), took(0.01))
    # 10 ms an iteration: a second of timing after the warm-up. Of the first call, 0.5 s, all but 10 ms is setting up.
    prediction = predictor.predict(make_case(), PROTOCOLS["quick"])
    fixed_seconds = 0.5 + 0.49
    warmup_seconds = PROTOCOLS["quick"].expected_warmup_seconds(0.01)
    assert prediction.fixed_seconds == pytest.approx(fixed_seconds)
    assert prediction.seconds == pytest.approx(fixed_seconds + warmup_seconds + 1.0)
    assert prediction.least_seconds == pytest.approx(fixed_seconds + 4 * 0.01)


def test_every_pass_counts_what_is_timed_again() -> None:
    twice = Predictor(RATES, passes=2.0)
    setup_seconds = UNKNOWN_SETUP_SECONDS["eager"]
    prediction = twice.predict(make_case(), PROTOCOLS["quick"])
    assert prediction.seconds == setup_seconds + (2 + 2 * 3) * 197
    assert prediction.least_seconds == setup_seconds + (1 + 2 * 3) * 197
    exact = twice.predict(make_case(), PROTOCOL)
    assert exact.seconds == exact.least_seconds == setup_seconds + (1 + 2) * 197
    assert exact.fixed_seconds == setup_seconds
    assert TIMED_PASSES["cpu"] == 1.0


@pytest.mark.parametrize(("replicate", "replicates", "trials"), [(0, 1, 5), (0, 3, 2), (2, 3, 1)])
def test_energy_takes_its_time_too(replicate: int, replicates: int, trials: int) -> None:
    protocol = PROTOCOLS["quick"].customized(warmup=None, iterations=None, replicates=replicates)
    case = make_case(replicate=replicate)
    without = Predictor(RATES).predict(case, protocol)
    preset = ENERGY_PRESETS["full"]
    watched = Predictor(RATES, energy=preset).predict(case, protocol)
    share = trials_of_replicate(preset, replicate, replicates)
    assert share.count == trials
    extra = energy_seconds(preset, share, 197.0)
    assert extra > trials * 197
    assert watched.seconds - without.seconds == pytest.approx(extra)
    assert watched.least_seconds - without.least_seconds == pytest.approx(extra)
    assert watched.fixed_seconds - without.fixed_seconds == pytest.approx(extra)


@pytest.mark.parametrize("resolution", [224, 384, 512, 9216])
def test_own_experience_at_one_resolution_rescales_all(predictor: Predictor, resolution: int) -> None:
    predictor.observe(make_case(resolution=384), took(3 * 577))
    case = make_case(resolution=resolution)
    assert seconds_of(predictor, case) == pytest.approx(0.5 + 2 * 3 * TOKENS[resolution])


def test_own_experience_at_two_resolutions_grows_as_a_power(predictor: Predictor) -> None:
    predictor.observe(make_case(resolution=224), took(2 * 197))
    # Twice as slow as computed at 197 tokens, and as much slower again as tokens^0.5 at 577.
    ratio = 2 * (577 / 197) ** 0.5
    predictor.observe(make_case(resolution=384), took(ratio * 577, build_seconds=0.25))
    expected_ratio = 2 * (1025 / 197) ** 0.5
    case = make_case(resolution=512)
    assert seconds_of(predictor, case) == pytest.approx(0.5 + 2 * expected_ratio * 1025)
    # Back inside what is known, the experience there counts.
    assert seconds_of(predictor, make_case(resolution=384)) == pytest.approx(0.5 + 2 * ratio * 577)
    assert seconds_of(predictor, make_case(resolution=224)) == pytest.approx(0.5 + 2 * 2 * 197)


def test_growth_is_clipped(predictor: Predictor) -> None:
    predictor.observe(make_case(resolution=224), took(1 * 197))
    predictor.observe(make_case(resolution=384), took(9 * 577))
    case = make_case(resolution=9216)
    assert seconds_of(predictor, case) == pytest.approx(0.5 + 2 * 9 * MAX_GROWTH * 331_777)


def test_falling_ratios_do_not_go_on_falling(predictor: Predictor) -> None:
    predictor.observe(make_case(resolution=224), took(9 * 197))
    predictor.observe(make_case(resolution=384), took(3 * 577))
    assert seconds_of(predictor, make_case(resolution=512)) == pytest.approx(0.5 + 2 * 3 * 1025)


def test_below_all_experience_the_smallest_counts(predictor: Predictor) -> None:
    predictor.observe(make_case(resolution=512), took(5 * 1025))
    predictor.observe(make_case(resolution=384), took(3 * 577))
    assert seconds_of(predictor, make_case(resolution=224)) == pytest.approx(0.5 + 2 * 3 * 197)


def test_a_case_measured_again_replaces_what_was_known(predictor: Predictor) -> None:
    predictor.observe(make_case(), took(100 * 197))
    predictor.observe(make_case(replicate=1, seed=3), took(2 * 197))
    assert seconds_of(predictor, make_case(resolution=512)) == pytest.approx(0.5 + 2 * 2 * 1025)


def test_a_mechanism_without_experience_takes_the_median_of_the_others(predictor: Predictor) -> None:
    for mechanism, ratio, build_seconds in (("softmax", 2.0, 0.1), ("agent", 3.0, 0.7), ("mlla", 50.0, 0.2)):
        case = make_case(mechanism=mechanism)
        predictor.observe(case, took(ratio * case.tokens, build_seconds))
    assert seconds_of(predictor, make_case(mechanism="soft")) == pytest.approx(0.7 + 2 * 3 * 197)


def test_others_count_at_the_nearest_resolution(predictor: Predictor) -> None:
    predictor.observe(make_case(resolution=224), took(2 * 197))
    predictor.observe(make_case(resolution=512), took(6 * 1025))
    assert seconds_of(predictor, make_case(mechanism="soft", resolution=9216)) == pytest.approx(0.5 + 2 * 6 * 331_777)
    assert seconds_of(predictor, make_case(mechanism="soft", resolution=224)) == pytest.approx(0.5 + 2 * 2 * 197)


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": "train"},
        {"config": "24L-16H"},
        {"execution": "compile"},
        {"batch_size": 2},
        {"implementation": "fast"},
        {"options": (("rho", "0.5"),)},
    ],
    ids=str,
)
def test_own_experience_is_that_of_the_same_cell_at_other_resolutions(
    predictor: Predictor, changes: dict[str, object]
) -> None:
    predictor.observe(make_case(), took(2 * 197))
    predictor.observe(make_case(**changes), took(4 * 197))
    assert seconds_of(predictor, make_case(resolution=512)) == pytest.approx(0.5 + 2 * 2 * 1025)
    assert seconds_of(predictor, make_case(resolution=512, **changes)) == pytest.approx(0.5 + 2 * 4 * 1025)


@pytest.mark.parametrize(("phase", "factor"), [("infer", 1), ("train", 3)])
def test_an_unknown_mechanism_counts_as_its_host(predictor: Predictor, phase: str, factor: int) -> None:
    case = make_case(mechanism="some.package:Mixer", phase=phase, batch_size=2)
    host_flops = 24 * 4 * 2 * 197 * 1024**2 * factor
    prediction = predictor.predict(case, PROTOCOL)
    assert prediction.seconds == pytest.approx(UNKNOWN_SETUP_SECONDS["eager"] + 2 * host_flops / 1000)
    assert prediction.peak_bytes is None
    predictor.observe(case, took(0.5 * host_flops / 1000))
    assert seconds_of(predictor, case) == pytest.approx(0.5 + 2 * 0.5 * host_flops / 1000)


def test_real_formulas_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    case = make_case(mechanism="infsa-linear", resolution=1024, precision="bf16")
    cost = vit_cost(
        "infsa-linear", "4L-64H", 1024, implementation="reference", batch_size=1, phase="infer", precision="bf16"
    )
    prediction = Predictor({"fp32": 1e9, "bf16": 1e10}).predict(case, PROTOCOL)
    assert prediction.seconds == pytest.approx(UNKNOWN_SETUP_SECONDS["eager"] + 2 * cost.matmul_flops / 1e10)
    assert prediction.peak_bytes == cost.model_bytes + cost.peak_activation_bytes
    unknown = replace(case, mechanism="some.package:Mixer")
    assert Predictor({"fp32": 1e9}).predict(unknown, PROTOCOL).peak_bytes is None


def test_compiling_counts_as_setting_up_and_only_among_compiled_cases(predictor: Predictor) -> None:
    compiled = replace(make_case(), execution="compile")
    unknown = predictor.predict(compiled, PROTOCOL)
    eager = predictor.predict(make_case(), PROTOCOL)
    extra = UNKNOWN_SETUP_SECONDS["compile"] - UNKNOWN_SETUP_SECONDS["eager"]
    assert unknown.seconds - eager.seconds == pytest.approx(extra)
    slow_start = make_measurement([2.0, 2.0, 2.0], warmup_seconds=(42.0, 2.0), build_seconds=0.5)
    predictor.observe(compiled, slow_start)
    assert predictor.predict(compiled, PROTOCOL).seconds == pytest.approx(0.5 + 40.0 + 2 * 2.0)
    assert predictor.predict(make_case(), PROTOCOL) == eager


def test_options_count() -> None:
    """What writes N x N is known to; where formulas do not hold, there is none."""
    softmax = make_case(implementation="fast", resolution=2048)
    reference = formula_cost(replace(softmax, implementation="reference"))
    assert formula_cost(replace(softmax, options=(("backend", "math"),))) == reference
    assert formula_cost(replace(softmax, options=(("backend", "flash"),))) == formula_cost(softmax)
    whole, pruned = formula_cost(softmax), formula_cost(replace(softmax, options=(("cls_prune", "1"),)))
    assert whole is not None
    assert pruned is not None
    assert pruned.matmul_flops < whole.matmul_flops
    assert formula_cost(replace(softmax, options=(("cls_prune", "0"),))) == whole
    assert formula_cost(make_case(mechanism="soft", options=(("ratio", "2"),))) is None
    assert formula_cost(make_case(mechanism="infsa-linear", options=(("tie_qk", "0"),))) is None
    assert formula_cost(make_case(mechanism="infsa-linear", options=(("rho", "0.5"),))) is not None
