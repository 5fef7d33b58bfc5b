"""An agenda hands out what planning everything anew for each case would, in constant time a case."""

from __future__ import annotations

import dataclasses
import gc
import time
import types
from collections.abc import Callable, Sequence

import pytest
from sample_records import make_failure, make_measurement, make_record
from test_sweep import CountingPredictor, make_plan, predicted

from infsa_bench.agenda import FEW_CASES, PLANS_A_CASE, Agenda
from infsa_bench.analyze.dominance import Dominance
from infsa_bench.analyze.predict import Prediction, Predictor
from infsa_bench.protocol import Protocol
from infsa_bench.record import Failure, Outcome
from infsa_bench.schedule import Crew, Plan, Share, Step, schedule, share_out
from infsa_bench.spec import LADDER, PHASES, Case, Sweep
from infsa_models.registry import MECHANISMS

Next = Callable[[], Step | None]
Clock = types.SimpleNamespace


def cases_of(resolutions: Sequence[int], replicates: int = 1) -> list[Case]:
    axes = Sweep(
        mechanisms=tuple(MECHANISMS),
        implementations=(),
        configs=("4L-64H",),
        resolutions=tuple(resolutions),
        phases=PHASES,
        precisions=(),
        executions=("eager",),
        batch_sizes=(1,),
        replicates=replicates,
    )
    return list(axes.cases("cpu"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("infsa_bench.schedule.time", clock)
    monkeypatch.setattr("infsa_bench.agenda.time", clock)
    return clock


def ending(step: Step) -> Outcome:
    """How a case ends on a machine that is slower than predicted, and has no memory for large quadratic ones."""
    case = step.case
    if case.mechanism in ("softmax", "infsa-pure") and case.resolution >= 1536:
        return make_failure("oom")
    pace = {"softmax": 3.0, "linformer": 2.0}.get(case.mechanism, 1.5)
    return make_measurement([pace * (case.resolution / 224) ** 2.2 / 50], build_seconds=0.5, warmup_seconds=(0.1,))


def run(next_of: Next, predictor: Predictor, dominance: Dominance, clock: Clock) -> list[Step]:
    """Hand out everything on a virtual clock, and learn from it as a sweep does."""
    steps = []
    while (step := next_of()) is not None:
        steps.append(step)
        outcome: Outcome = make_failure("skipped")
        if step.share is not None:
            clock.now += step.share.seconds
            outcome = ending(step)
        if not isinstance(outcome, Failure):
            predictor.observe(step.case, outcome)  # type: ignore[arg-type]
        dominance.observe(dataclasses.replace(make_record(outcome), case=step.case))
    return steps


def planning_everything(plan: Plan, predictor: Predictor, cases: Sequence[Case], dominance: Dominance) -> Next:
    """The obvious way to hand out cases, which takes quadratic time."""
    left = list(cases)

    def take() -> Step | None:
        if not left:
            return None
        step = schedule(plan, predictor, left, dominance)[0]
        left.remove(step.case)
        return step

    return take


def both(plan: Plan, clock: Clock) -> tuple[list[Step], list[Step]]:
    found = []
    for is_obvious in (True, False):
        clock.now, predictor, dominance = 0.0, Predictor({"fp32": 1e12}), Dominance()
        if is_obvious:
            next_of = planning_everything(plan, predictor, plan.cases, dominance)
        else:
            next_of = Agenda(plan, predictor, plan.cases, dominance).next
        found.append(run(next_of, predictor, dominance, clock))
    return found[0], found[1]


def test_few_cases_are_handed_out_exactly_as_if_everything_was_planned_for_each(clock: Clock) -> None:
    cases = cases_of((224, 384, 512), replicates=2)[:99]
    plan = dataclasses.replace(make_plan(cases), deadline=60.0)
    obvious, handed_out = both(plan, clock)
    assert handed_out == obvious
    assert 0 < sum(step.share is None for step in obvious) < len(obvious)


def test_without_a_budget_that_holds_for_any_number(clock: Clock) -> None:
    cases = cases_of(LADDER[3:9])
    assert len(cases) > 2 * FEW_CASES
    obvious, handed_out = both(make_plan(cases, memory_bytes=2**37), clock)
    assert handed_out == obvious
    assert any(step.dominated_by is not None for step in obvious)
    assert any(step.share is None and step.dominated_by is None for step in obvious)


@pytest.mark.parametrize("budget_seconds", [60.0, 1000.0, 10000.0])
def test_a_budget_measures_as_much_of_many_cases_as_if_everything_was_planned_for_each(
    clock: Clock, budget_seconds: float
) -> None:
    cases = cases_of(LADDER[:6])
    assert len(cases) > 2 * FEW_CASES
    plan = dataclasses.replace(make_plan(cases), deadline=budget_seconds)
    obvious, handed_out = both(plan, clock)
    assert sorted(step.case.id for step in handed_out) == sorted(case.id for case in cases)
    assert clock.now <= budget_seconds
    measured = [sum(step.share is not None for step in steps) for steps in (obvious, handed_out)]
    assert measured[1] == pytest.approx(measured[0], rel=0.03, abs=2)
    # A share may be another than with everything planned, but never less than makes a measurement.
    shares = [(step.share, step.prediction) for step in handed_out if step.share is not None]
    assert all(share.seconds >= prediction.least_seconds for share, prediction in shares)


@pytest.mark.parametrize(
    ("mechanism", "factor", "budget_seconds"), [("infsa-linear", 100.0, 300.0), ("soft", 1e3, 3e3)]
)
def test_a_mechanism_far_slower_than_predicted_costs_the_others_no_cells(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, mechanism: str, factor: float, budget_seconds: float
) -> None:
    guess, protocol = Predictor({"fp32": 1e12}), make_plan([]).protocol

    def slow_ending(step: Step) -> Outcome:
        prediction = guess.predict(step.case, protocol)
        seconds = (prediction.least_seconds - prediction.fixed_seconds) / 2
        pace = factor if step.case.mechanism == mechanism else 1.0
        return make_measurement([pace * seconds], build_seconds=0.5, warmup_seconds=(0.1,))

    monkeypatch.setitem(globals(), "ending", slow_ending)
    cases = cases_of(LADDER[:4], replicates=4)
    assert len(cases) > 5 * FEW_CASES
    plan = dataclasses.replace(make_plan(cases), deadline=budget_seconds)
    obvious, handed_out = both(plan, clock)
    measured = [sum(step.share is not None for step in steps) for steps in (obvious, handed_out)]
    assert 0 < measured[0] < len(cases)
    assert measured[1] >= 0.9 * measured[0]
    assert clock.now <= budget_seconds


def test_planning_leaves_the_garbage_collector_as_it_was() -> None:
    cases = cases_of(LADDER[:2])
    assert gc.isenabled()
    Agenda(make_plan(cases), Predictor({"fp32": 1e12}), cases, Dominance()).next()
    assert gc.isenabled()

    class Failing(Predictor):
        def predict(self, case: Case, protocol: Protocol) -> Prediction:
            assert not gc.isenabled()
            raise OverflowError

    with pytest.raises(OverflowError):
        Agenda(make_plan(cases), Failing({"fp32": 1e12}), cases, Dominance()).next()
    assert gc.isenabled()


def test_a_case_that_was_lost_gets_what_is_left_of_its_time_and_keeps_its_device_busy(clock: Clock) -> None:
    (case,) = cases = cases_of((224,))[:1]
    predictor = Predictor({"fp32": 1e9})
    plan = dataclasses.replace(make_plan(cases), deadline=1000.0)
    least_seconds = predictor.predict(case, plan.protocol).least_seconds
    agenda = Agenda(plan, predictor, cases, Dominance())
    agenda.devices = 2
    first = agenda.next()
    assert first is not None
    assert first.share is not None
    agenda.ended(case)
    assert agenda.remaining_seconds() == 0.0
    clock.now = 999.0 - least_seconds
    share = agenda.again(first).share
    assert share is not None
    assert share.seconds == pytest.approx(min(first.share.seconds, least_seconds + 1.0))
    assert agenda.remaining_seconds() == pytest.approx(share.seconds)
    agenda.ended(case)
    clock.now = 1001.0 - least_seconds
    assert agenda.again(first).share is None
    assert agenda.remaining_seconds() == 0.0


def test_the_seconds_that_remain_are_at_least_those_of_the_longest_case_under_way(clock: Clock) -> None:
    large, *small = cases_of((4096,))[:1] + cases_of((224,))[:3]
    predictor = Predictor({"fp32": 1e11})
    plan = make_plan([large, *small])
    agenda = Agenda(plan, predictor, plan.cases, Dominance())
    agenda.devices = 2
    first = agenda.next()
    assert first is not None
    assert first.case == large
    long_seconds = predictor.predict(large, plan.protocol).seconds
    while (step := agenda.next()) is not None:
        agenda.ended(step.case)
    clock.now = 2.0
    assert agenda.remaining_seconds() == pytest.approx(long_seconds - 2.0)
    agenda.ended(large)
    assert agenda.remaining_seconds() == 0.0


def test_what_becomes_known_is_seen_by_the_very_next_case() -> None:
    cases = [case for case in cases_of(LADDER) if case.phase == "infer"]
    cases.sort(key=lambda case: (case.mechanism, case.implementation, case.resolution))
    assert len(cases) > FEW_CASES
    for deadline in (None, time.monotonic() + 1e12):
        plan = dataclasses.replace(make_plan(cases), deadline=deadline)
        predictor, dominance = Predictor({"fp32": 1e12}), Dominance()
        agenda = Agenda(plan, predictor, cases, dominance)
        known: set[tuple[str, str]] = set()
        for number in range(len(cases)):
            step = agenda.next()
            assert step is not None
            model = (step.case.mechanism, step.case.implementation)
            assert (step.share is None) == (step.dominated_by is not None) == (model in known)
            assert step.prediction == predictor.predict(step.case, plan.protocol)
            predictor.observe(step.case, make_measurement([0.1 + number % 7], warmup_seconds=(0.1,)))
            # The next one is of the same model or of the same size.
            if number % 5 == 0:
                dominance.observe(dataclasses.replace(make_record(make_failure("oom")), case=step.case))
                known.add(model)
        assert agenda.next() is None


def test_a_case_is_planned_a_constant_number_of_times() -> None:
    for count in (500, 1_500):
        template = cases_of((224,))[0]
        cases = [dataclasses.replace(template, replicate=number) for number in range(count)]
        for deadline in (None, time.monotonic() + 1e9):
            predictor = CountingPredictor({"fp32": 1e12})
            agenda = Agenda(dataclasses.replace(make_plan(cases), deadline=deadline), predictor, cases, Dominance())
            while agenda.next() is not None:
                pass
            assert predictor.asked <= (PLANS_A_CASE + 2) * count + FEW_CASES * FEW_CASES / 2


def test_the_seconds_that_remain_are_of_the_case_handed_out_and_all_behind_it(clock: Clock) -> None:
    cases = cases_of(LADDER[:4])
    for deadline in (None, 500.0):
        clock.now = 0.0
        plan = dataclasses.replace(make_plan(cases), deadline=deadline)
        predictor = Predictor({"fp32": 1e12})
        agenda = Agenda(plan, predictor, cases, Dominance())
        seconds = [step.share.seconds for step in schedule(plan, predictor, cases) if step.share]
        remaining = sum(seconds)
        assert agenda.remaining_seconds() == pytest.approx(remaining, abs=1e-6)
        while (step := agenda.next()) is not None:
            assert agenda.remaining_seconds() == pytest.approx(remaining, abs=1e-6)
            if step.share is not None:
                clock.now += step.share.seconds
                remaining -= step.share.seconds
        assert agenda.remaining_seconds() == 0.0
    assert Agenda(plan, predictor, [], Dominance()).remaining_seconds() == 0.0
    assert Agenda(plan, predictor, [], Dominance()).next() is None


def test_several_devices_have_the_time_of_all_and_no_case_more_than_is_left(clock: Clock) -> None:
    clock.now = 1000.0
    plan = make_plan([], seconds=None)
    wants = [predicted(80.0, 60.0), predicted(80.0, 60.0), predicted(80.0, 60.0)]
    assert [bool(share) for share in share_out(plan, wants, 100.0)] == [True, False, False]
    # Whether two remainders hold a third case shows only when it is handed out.
    two = Crew(devices=2)
    assert [bool(share) for share in share_out(plan, wants, 100.0, two)] == [True, True, True]
    assert two.device_seconds(100.0) == 200.0
    # One device is at work for 70 s more, the other should have had done with it already.
    late = Crew(devices=2, busy_until=(1070.0, 990.0))
    assert late.device_seconds(100.0) == 130.0
    assert [bool(share) for share in share_out(plan, wants, 100.0, late)] == [True, True, False]
    # What takes longer than is left has no room, whatever all devices together have.
    (share,) = share_out(plan, [predicted(300.0, 120.0)], 100.0, Crew(devices=8))
    assert share is None
    (share,) = share_out(plan, [predicted(300.0, 50.0)], 100.0, Crew(devices=8))
    assert share == Share(seconds=100.0, limit_seconds=100.0)


def test_several_devices_begin_with_the_longest_and_end_with_what_should_not_fit(clock: Clock) -> None:
    cases = cases_of((224, 1024, 3072, 4096), replicates=2)
    predictor = Predictor({"fp32": 1e12})
    plan = dataclasses.replace(make_plan(cases), device_memory_bytes=8 * 2**30)
    agenda = Agenda(plan, predictor, cases, Dominance())
    agenda.devices = 3
    steps = []
    while (step := agenda.next()) is not None:
        steps.append(step)
    assert {step.case for step in steps} == set(cases)
    assert [step.case.replicate for step in steps] == [0] * (len(cases) // 2) + [1] * (len(cases) // 2)

    def fits(step: Step) -> bool:
        return step.prediction.peak_bytes is None or step.prediction.peak_bytes <= 8 * 2**30

    first_pass = steps[: len(cases) // 2]
    fitting = [step for step in first_pass if fits(step)]
    others = first_pass[len(fitting) :]
    assert fitting == first_pass[: len(fitting)]
    assert 0 < len(others) < len(fitting)
    seconds = [step.prediction.seconds for step in fitting]
    assert seconds == sorted(seconds, reverse=True)
    # Of those the smallest first: if it runs out of memory, the larger ones need not be tried.
    sides = [step.case.resolution for step in others]
    assert sides == sorted(sides)
    assert sides[0] < sides[-1]


@pytest.mark.parametrize("count", [10, 4 * FEW_CASES])
def test_what_devices_are_at_work_on_is_known_until_it_has_ended(clock: Clock, count: int) -> None:
    """Two devices, a budget of 100 s a cell: what a case may take depends on what the other has to do yet."""
    cases = [dataclasses.replace(case, options=(("n", str(n)),)) for n, case in enumerate(cases_of((224,))[:1] * count)]

    def limit_of_second(*, has_ended: bool) -> float:
        plan = dataclasses.replace(make_plan(cases), deadline=100.0 * count)
        agenda = Agenda(plan, Predictor({"fp32": 1e9}), cases, Dominance())
        agenda.devices = 2
        first = agenda.next()
        assert first is not None
        if has_ended:
            agenda.ended(first.case)
        second = agenda.next()
        assert second is not None
        assert second.share is not None
        assert second.share.limit_seconds is not None
        return second.share.limit_seconds

    assert limit_of_second(has_ended=True) > limit_of_second(has_ended=False) + 100.0 / count
