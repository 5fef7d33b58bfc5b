from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_records import make_energy, make_failure, make_measurement, make_record
from scipy import stats
from table1_records import GIB, H200, measured, run_of, table1_records

from infsa_bench.analyze.claims import Claim, Shown, claims, kendall_tau, ratio
from infsa_bench.analyze.sides import Estimate, Side, paper_side, sides_of
from infsa_bench.record import Record
from infsa_bench.spec import LADDER
from infsa_models.registry import CONFIGS, MECHANISMS

PAPER = paper_side()


def side_of(records: Sequence[Record]) -> Side:
    (side,) = sides_of(run_of(records))
    return side


def the_claim(kind: str, records: Sequence[Record], config: str = "4L-64H", mechanism: str | None = None) -> Claim:
    (found,) = (
        claim
        for claim in claims(side_of(records), PAPER)
        if (claim.kind, claim.config) == (kind, config) and mechanism in (None, claim.mechanism)
    )
    return found


def inferred(seconds: dict[str, float], **changes: object) -> list[Record]:
    return [
        measured(value, mechanism=name, resolution=1024, precision="bf16", **changes) for name, value in seconds.items()
    ]


def test_the_paper_against_itself() -> None:
    """Everything that its numbers can show is reproduced; exponents of one size they cannot show."""
    found = claims(PAPER, PAPER)
    assert {claim.verdict for claim in found if claim.kind != "exponent"} == {"reproduced"}
    assert {claim.verdict for claim in found if claim.kind == "exponent"} == {"not testable"}
    assert len(found) == 2 * (6 + 9)


def test_four_rows_of_the_paper_infer_slower_than_they_train() -> None:
    rows = [(claim.config, claim.ours) for claim in claims(PAPER, PAPER) if claim.kind == "slower in inference"]
    assert rows == [(config, Shown(names=("softmax", "infsa-pure"))) for config in CONFIGS]


def test_headline_speed_ups_of_the_paper() -> None:
    values = {
        claim.config: claim.theirs.estimate.value
        for claim in claims(PAPER, PAPER)
        if claim.kind == "speedup" and claim.theirs is not None and claim.theirs.estimate is not None
    }
    assert values == {"4L-64H": pytest.approx(13.43, abs=0.01), "24L-16H": pytest.approx(4.475, abs=0.001)}


@pytest.mark.parametrize(
    ("softmax", "verdict"), [(0.134, "reproduced"), (0.122, "reproduced"), (0.110, "not reproduced"), (9, None)]
)
def test_a_speed_up_is_reproduced_within_ten_percent(softmax: float, verdict: str | None) -> None:
    claim = the_claim("speedup", inferred({"softmax": softmax, "infsa-linear": 0.010}))
    assert claim.verdict == (verdict or "not reproduced")
    assert claim.ours is not None
    assert claim.ours.estimate is not None
    assert claim.ours.estimate.value == pytest.approx(100 * softmax)
    assert claim.ours.estimate.low is not None
    assert claim.ours.estimate.low < 100 * softmax


def test_without_both_latencies_there_is_no_speed_up() -> None:
    claim = the_claim("speedup", inferred({"softmax": 0.1}))
    assert (claim.verdict, claim.ours) == ("not testable", None)
    assert claim.remark == "needs inference of both at 1024 x 1024"


def test_orders() -> None:
    of_paper = next(claim for claim in claims(PAPER, PAPER) if claim.kind == "rank order")
    assert of_paper.theirs is not None
    published = of_paper.theirs.names or ()
    assert (len(published), published[0], published[-1]) == (9, "infsa-linear", "softmax")
    same = the_claim("rank order", inferred({name: 0.01 * (1 + place) for place, name in enumerate(published)}))
    assert (same.verdict, same.tau) == ("reproduced", 1)
    assert same.ours == same.theirs == Shown(names=tuple(published))
    reverse = the_claim("rank order", inferred({name: 1 / (1 + place) for place, name in enumerate(published)}))
    assert (reverse.verdict, reverse.tau) == ("not reproduced", -1)
    some = the_claim("rank order", inferred({name: 0.01 * (1 + place) for place, name in enumerate(published[:5])}))
    assert (some.verdict, some.tau, some.remark) == ("reproduced", 1, "of 5 mechanisms")
    few = the_claim("rank order", inferred(dict.fromkeys(published[:4], 0.01)))
    assert (few.verdict, few.tau, few.ours) == ("not testable", None, None)


@given(st.permutations(range(9)))
def test_kendalls_tau_is_the_textbooks(order: list[int]) -> None:
    names = [str(value) for value in range(9)]
    mine = [names[value] for value in order]
    place = {name: index for index, name in enumerate(mine)}
    expected = stats.kendalltau(range(9), [place[name] for name in names]).statistic
    assert kendall_tau(names, mine) == pytest.approx(expected)


def largest(names: dict[str, str], **changes: object) -> list[Record]:
    """Cells at 9216 with an ending each, one more in an emulated 40 GiB or not."""
    records: list[Record] = []
    for name, ending in names.items():
        axes = {"mechanism": name, "resolution": 9216, "precision": "bf16"}
        if ending == "ok":
            records.append(measured(1.0, **axes, **changes))
        else:
            records.append(make_record(make_failure(ending), **axes))  # type: ignore[arg-type]
    return records


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(12.0, 14.0, "reproduced"), (15.0, 17.0, "not reproduced"), (5.0, 20.0, "not testable")],
)
def test_an_interval_that_holds_everything_shows_nothing(low: float, high: float, verdict: str) -> None:
    """Either side's: swapping them changes no verdict."""
    side = side_of(inferred({"softmax": 0.134, "infsa-linear": 0.010}))
    key = ("4L-64H", "softmax", "infer", 1024)
    softmax = dataclasses.replace(
        side.cells[key], latency_seconds=Estimate(value=0.01 * (low + high) / 2, low=0.01 * low, high=0.01 * high)
    )
    linear_key = ("4L-64H", "infsa-linear", "infer", 1024)
    linear = dataclasses.replace(side.cells[linear_key], latency_seconds=Estimate(value=0.01))
    side = dataclasses.replace(side, cells={key: softmax, linear_key: linear})
    for ours, theirs in ((side, PAPER), (PAPER, side)):
        (claim,) = (each for each in claims(ours, theirs) if (each.kind, each.config) == ("speedup", "4L-64H"))
        assert claim.verdict == verdict
        assert claim.remark == ("the interval is too wide to tell" if verdict == "not testable" else "")


def test_a_number_without_an_interval_says_so() -> None:
    records = [
        make_record(make_measurement([seconds] * 3), mechanism=name, resolution=1024)
        for name, seconds in (("softmax", 0.134), ("infsa-linear", 0.01))
    ]
    claim = the_claim("speedup", records)
    assert (claim.verdict, claim.remark) == ("reproduced", "ours has no interval")


def test_running_out_of_less_memory_shows_nothing() -> None:
    """Nine failures on a card of 8 GiB, or in 2 GiB emulated, say nothing of one of 40 GB; fitting there does."""
    failed = [record for name in MECHANISMS for record in largest({name: "oom"})]
    small = dataclasses.replace(H200, device_memory_bytes=8 * GIB)
    a40 = dataclasses.replace(H200, device_memory_bytes=42_505_273_344)
    for kind in ("completes", "completes in 40 GiB"):
        for environment, verdict in ((small, "not testable"), (a40, "not reproduced"), (H200, "not reproduced")):
            (side,) = sides_of(run_of(failed, environment))
            (claim,) = (each for each in claims(side, PAPER) if (each.kind, each.config) == (kind, "4L-64H"))
            assert claim.verdict == verdict
        (side,) = sides_of(run_of(failed))
        emulated = dataclasses.replace(side, emulated_memory_bytes=2 * GIB)
        (claim,) = (each for each in claims(emulated, PAPER) if (each.kind, each.config) == (kind, "4L-64H"))
        assert (claim.verdict, claim.remark) == ("not testable", "unknown for all")
    (fits,) = sides_of(run_of(largest({"softmax": "ok"}, nvml_process_bytes=50 * GIB), small))
    (claim,) = (each for each in claims(fits, PAPER) if (each.kind, each.config) == ("completes in 40 GiB", "4L-64H"))
    assert claim.ours == Shown(names=("softmax",))


def test_another_ending_before_9216_shows_nothing() -> None:
    axes = {"mechanism": "softmax", "precision": "bf16"}
    for ending in ("timeout", "skipped"):
        records = [measured(1.0, resolution=1024, **axes), make_record(make_failure(ending), resolution=4096, **axes)]  # type: ignore[arg-type]
        assert the_claim("completes", records).ours is None


def test_training_and_inference_that_cannot_be_told_apart() -> None:
    """A hundredth of a percent is no order; without intervals the numbers decide."""
    for factor, expected in ((1.0001, None), (1.1, ()), (0.9, ("softmax",))):
        records = [
            measured(0.010, resolution=1024, precision="fp32"),
            measured(0.010 * factor, resolution=1024, precision="fp32", phase="train"),
        ]
        shown = the_claim("slower in inference", records).ours
        assert (None if shown is None else shown.names) == expected


def test_energy_of_low_confidence_is_said() -> None:
    energies = [make_energy(doubts=("shared",)), make_energy()]
    records = [
        make_record(make_measurement([seconds] * 30, energy=energy), mechanism=name, resolution=1024)
        for name, seconds, energy in zip(("softmax", "infsa-linear"), (0.1, 0.01), energies, strict=True)
    ]
    assert the_claim("energy", records).remark.startswith("energy of low confidence; published")


def test_who_completes_the_largest_size() -> None:
    as_published = {name: "ok" if name == "infsa-linear" else "oom" for name in MECHANISMS}
    assert the_claim("completes", largest(as_published)).verdict == "reproduced"
    all_do = the_claim("completes", largest(dict.fromkeys(MECHANISMS, "ok")))
    assert (all_do.verdict, all_do.ours) == ("not reproduced", Shown(names=tuple(MECHANISMS)))
    one_more = the_claim("completes", largest({"softmax": "ok"}))
    assert (one_more.verdict, one_more.ours) == ("not reproduced", Shown(names=("softmax",)))
    assert one_more.remark.startswith("unknown for linformer, ")


@pytest.mark.parametrize("ending", ["timeout", "skipped", "crash", "unsupported"])
def test_another_ending_than_memory_shows_nothing(ending: str) -> None:
    claim = the_claim("completes", largest({"softmax": ending}))
    assert (claim.verdict, claim.ours, claim.remark) == ("not testable", None, "unknown for all")


def test_a_smaller_size_that_ran_out_of_memory_is_enough() -> None:
    axes = {"mechanism": "softmax", "precision": "bf16"}
    records = [measured(1.0, resolution=1024, **axes), make_record(make_failure("oom"), resolution=4096, **axes)]
    skipped = make_record(make_failure("skipped", "dominated"), resolution=9216, **axes)
    for found in (records, [*records, skipped]):
        assert the_claim("completes", found).ours == Shown(names=())


def test_within_forty_gib_by_what_was_held() -> None:
    fits = largest({"softmax": "ok"}, nvml_process_bytes=40 * GIB)
    assert the_claim("completes in 40 GiB", fits).ours == Shown(names=("softmax",))
    too_large = largest({"softmax": "ok"}, nvml_process_bytes=40 * GIB + 1)
    assert the_claim("completes in 40 GiB", too_large).ours == Shown(names=())
    unknown = largest({"softmax": "ok"}, peak_memory_bytes=None)
    assert the_claim("completes in 40 GiB", unknown).ours is None
    failed = largest({"softmax": "oom"})
    assert the_claim("completes in 40 GiB", failed).ours == Shown(names=())


def test_an_emulated_device_of_forty_gib_needs_no_sizes() -> None:
    (side,) = sides_of(run_of(largest({"softmax": "ok"}, nvml_process_bytes=None, peak_memory_bytes=None)))
    emulated = dataclasses.replace(side, emulated_memory_bytes=40 * GIB)
    (found,) = (
        each for each in claims(emulated, PAPER) if (each.kind, each.config) == ("completes in 40 GiB", "4L-64H")
    )
    assert found.ours == Shown(names=("softmax",))


def test_training_is_slower_here() -> None:
    claim = the_claim("slower in inference", table1_records())
    assert (claim.verdict, claim.ours, claim.remark) == ("not reproduced", Shown(names=()), "")
    deep = the_claim("slower in inference", table1_records(), config="24L-16H")
    assert (deep.verdict, deep.ours) == ("not testable", None)


def test_energy_against_latency() -> None:
    """Energies 5 : 1 at latencies 10 : 1: half as much as if energy followed latency."""
    records = [
        measured(seconds, joules, mechanism=name, resolution=1024, precision="bf16")
        for name, seconds, joules in (("softmax", 0.1, 5.0), ("infsa-linear", 0.01, 1.0))
    ]
    claim = the_claim("energy", records)
    assert claim.ours is not None
    assert claim.ours.estimate is not None
    assert claim.ours.estimate.value == pytest.approx(0.5)
    assert claim.verdict == "not reproduced"
    assert claim.remark == "published energy is assumed, latency times a constant: 1 by construction"
    without = the_claim("energy", inferred({"softmax": 0.1, "infsa-linear": 0.01}))
    assert (without.verdict, without.ours) == ("not testable", None)
    assert without.remark.startswith("needs energy of both at 1024 x 1024; published")


def test_exponents() -> None:
    def growing(mechanism: str, exponent: float, sides: Sequence[int] = LADDER) -> list[Record]:
        cases = [make_record(resolution=side).case for side in sides]
        return [
            measured(1e-9 * case.tokens**exponent, mechanism=mechanism, resolution=case.resolution) for case in cases
        ]

    linear = the_claim("exponent", growing("infsa-linear", 1), mechanism="infsa-linear")
    assert linear.verdict == "reproduced"
    assert linear.remark == "5 sizes, 36,865 to 331,777 tokens"
    assert linear.ours is not None
    assert linear.ours.estimate is not None
    assert linear.ours.estimate.value == pytest.approx(1)
    other = the_claim("exponent", growing("infsa-linear", 2), mechanism="infsa-linear")
    assert other.verdict == "not reproduced"
    short = the_claim("exponent", growing("softmax", 2, LADDER[:4]), mechanism="softmax")
    assert short.verdict == "not testable"
    assert short.remark.startswith("range too short: 4 sizes, 197 to 2,305 tokens, over which the FLOPs grow with")
    none = the_claim("exponent", growing("softmax", 2), mechanism="mlla")
    assert (none.verdict, none.ours, none.remark) == ("not testable", None, "needs 3 sizes that are not launch-bound")


def test_ratios_take_both_intervals() -> None:
    wide, printed = Estimate(value=2, low=1.9, high=2.2), Estimate(value=4)
    assert ratio(wide, printed) == Estimate(value=0.5, low=0.475, high=0.55)
    assert ratio(printed, wide) == Estimate(value=2, low=4 / 2.2, high=4 / 1.9)
    assert ratio(wide, wide) == Estimate(value=1, low=1.9 / 2.2, high=2.2 / 1.9)
    assert ratio(printed, printed) == Estimate(value=1)


def test_swapping_the_sides_swaps_what_they_show() -> None:
    side = side_of(table1_records())
    there, back = claims(side, PAPER), claims(PAPER, side)
    for claim, swapped in zip(there, back, strict=True):
        if claim.kind != "exponent":
            assert (claim.ours, claim.theirs, claim.verdict) == (swapped.theirs, swapped.ours, swapped.verdict)
    assert len({(claim.kind, claim.config, claim.mechanism) for claim in there}) == len(there)
    assert all(claim.config in CONFIGS for claim in itertools.chain(there, back))
