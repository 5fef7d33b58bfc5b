from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sample_records import make_energy, make_failure, make_measurement, make_no_energy, make_record
from sample_runs import HOSTILE_TEXTS, hostile_run, run_of, times

from infsa_bench.record import Record
from infsa_bench.report.headline import Finding, caveats, headline, headline_sentences


def measured(mechanism: str, seconds: Sequence[float], resolution: int = 512, **changes: Any) -> Record:
    axes = {"implementation": "fast", "mechanism": mechanism, "resolution": resolution}
    return make_record(make_measurement(seconds, energy=changes.pop("energy", make_no_energy())), **(axes | changes))


def finding(*records: Record) -> Finding:
    (found,) = headline(run_of(records))
    return found


def text(found: Finding) -> str:
    return " ".join(found.sentences)


def test_infsa_linear_is_compared_with_softmax_at_the_largest_size_of_both() -> None:
    found = finding(
        measured("softmax", times(1 / 64), 224),
        measured("infsa-linear", times(1 / 64), 224),
        measured("softmax", times(1 / 8)),
        measured("infsa-linear", times(1 / 32)),
        measured("infsa-linear", times(1 / 8), 1024),
        make_record(make_failure("oom", "no memory"), implementation="fast", resolution=1024),
    )
    assert found.subject == "4L-64H, infer, fp32, eager, batch 1, fast"
    assert (found.figure, found.figure_meaning) == ("4.00x", "as fast as softmax: infsa-linear at 512 x 512 pixels")
    assert found.figure_range == "3.91 .. 4.09 with both 95 % intervals at their ends"
    assert found.sentences == (
        "At 512 x 512 (1,025 tokens) infsa-linear takes 31.2 ms for one image "
        "(95 % interval 30.9 .. 31.6 ms within one process).",
        "That is 4.00 times as fast as softmax (125 ms; 95 % interval 124 .. 126 ms within one process).",
        "At 224 x 224 it is 1.00 times as fast.",
        "Fastest of the 2 with a number there: infsa-linear, 31.2 ms, before softmax, 125 ms; "
        "their intervals do not overlap.",
        "Energy was not measured: rapl_absent: no counter here.",
        "Largest side with a number: 1024 for infsa-linear; 512 for softmax.",
        "Without a number: out of memory: softmax from 1024 on.",
    )


def test_without_an_interval_it_says_why_and_gives_the_range() -> None:
    found = finding(measured("softmax", (0.12, 0.125, 0.13)), measured("infsa-linear", (0.03, 0.031, 0.0325)))
    assert (
        "infsa-linear takes 31.0 ms for one image (3 samples in one process: no interval; range 30.0 .. 32.5 ms)"
        in (text(found))
    )
    assert found.figure_range == "3.69 .. 4.33 over all times of both; one of them or both have no 95 % interval"
    assert "their ranges, for want of intervals, do not overlap" in text(found)
    assert "one sample: no interval" in text(finding(measured("softmax", (0.12,)), measured("infsa-linear", (0.03,))))


def test_an_interval_and_a_range_are_never_mixed() -> None:
    """Of one an interval of 10.2 to 10.4 ms among times up to 50, of the other three times: only their ranges count."""
    sure = [0.0102, 0.0103, 0.0104] * 12 + [0.010, 0.050]
    found = finding(measured("softmax", (0.020, 0.021, 0.022)), measured("infsa-linear", sure))
    assert found.figure_range == "0.400 .. 2.20 over all times of both; one of them or both have no 95 % interval"
    assert "but that is no lead: its range, for want of an interval, overlaps with those of softmax" in text(found)


def test_few_processes_are_a_caveat_of_their_own() -> None:
    records = [measured("softmax", times(0.1), replicate=index) for index in range(3)]
    assert caveats(run_of(records)) == []
    records += [measured("mlla", times(0.1), replicate=index) for index in range(2)]
    assert caveats(run_of(records)) == [
        "Some cells ran in fewer than 3 processes: how processes differ is not known there."
    ]


def test_replicates_have_an_interval_between_processes_from_three_on() -> None:
    def run(replicates: int) -> str:
        records = [
            measured(name, [seconds * (1 + index / 64)] * 3, replicate=index)
            for name, seconds in (("softmax", 0.5), ("infsa-linear", 0.125))
            for index in range(replicates)
        ]
        return text(finding(*records))

    assert "95 % interval 122 .. 132 ms over 3 processes" in run(3)
    assert "2 processes: no interval; range 125 .. 127 ms" in run(2)


def test_a_slower_candidate_is_called_so() -> None:
    found = finding(measured("softmax", times(1 / 32)), measured("infsa-linear", times(1 / 16)))
    assert found.figure == "0.500x"
    assert "That is 2.00 times as long as with softmax" in text(found)
    assert "Fastest of the 2 with a number there: softmax" in text(found)


def test_overlapping_intervals_are_no_difference() -> None:
    found = finding(measured("softmax", times(1 / 32)), measured("infsa-linear", times(1 / 32 - 1 / 8192)))
    assert "but the two intervals overlap: no difference is shown." in text(found)
    assert "but that is no lead: its interval overlaps with those of softmax." in text(found)


def test_energy_is_given_with_its_interval_or_the_reason_why_not() -> None:
    softmax = measured("softmax", times(1 / 8), energy=make_energy([2400.0, 2412.0, 2388.0]))
    found = finding(softmax, measured("infsa-linear", times(1 / 32), energy=make_energy()))
    assert "infsa-linear needs 3.000 ± 0.037 J an image, softmax 12.00 ± 0.15 J an image: 4.00 times as much." in text(
        found
    )
    doubtful = make_energy(doubts=("throttled",))
    found = finding(softmax, measured("infsa-linear", times(1 / 32), energy=doubtful))
    assert "3.000 ± 0.037 J an image (low confidence: throttled)" in text(found)
    found = finding(measured("softmax", times(1 / 8)), measured("infsa-linear", times(1 / 32), energy=make_energy()))
    assert "that of softmax was not measured (rapl_absent)" in text(found)


def test_other_mechanisms_are_compared_where_the_two_are_not_there() -> None:
    found = finding(measured("mlla", times(1 / 16)), measured("agent", times(1 / 32)), measured("soft", times(1 / 8)))
    assert found.figure_meaning == "as fast as soft: agent at 512 x 512 pixels"
    found = finding(measured("softmax", times(1 / 16)), measured("agent", times(1 / 8)))
    assert found.figure_meaning == "as fast as softmax: agent at 512 x 512 pixels"
    assert found.figure == "0.500x"
    found = finding(measured("infsa-linear", times(1 / 16)), measured("agent", times(1 / 8)))
    assert found.figure_meaning == "as fast as agent: infsa-linear at 512 x 512 pixels"


def test_where_there_is_nothing_to_compare_it_says_so() -> None:
    alone = finding(measured("mlla", times(1 / 16)))
    assert alone.figure == ""
    assert alone.sentences == ("Only mlla has a number: there is nothing to compare.",)
    none = finding(
        make_record(make_failure("crash", "died")), make_record(make_failure("skipped", ""), mechanism="mlla")
    )
    assert none.sentences == (
        "No cell has a number: there is nothing to compare.",
        "Without a number: crash: softmax from 224 on; 1 of 2 cells skipped.",
    )


def test_a_failure_below_a_size_that_went_well_is_named_alone() -> None:
    crash = make_record(make_failure("crash", "died"), implementation="fast", resolution=224)
    found = finding(crash, measured("softmax", times(1 / 8)), measured("infsa-linear", times(1 / 8)))
    assert found.sentences[-1] == "Without a number: crash: softmax at 224."


def test_options_are_named_and_those_without_go_first() -> None:
    records = [
        measured("softmax", times(1 / 4), options=(("backend", "math"),)),
        measured("softmax", times(1 / 8)),
        measured("infsa-linear", times(1 / 32), options=(("rho", "0.5"),)),
    ]
    assert finding(*records).figure_meaning == "as fast as softmax: infsa-linear rho=0.5 at 512 x 512 pixels"
    assert finding(*records).figure == "4.00x"


def test_fast_comes_before_reference_and_phases_stay_apart() -> None:
    records = [
        measured(name, times(1 / 8), implementation=implementation, phase=phase, batch_size=2)
        for phase in ("infer", "train")
        for implementation in ("reference", "fast")
        for name in ("softmax", "infsa-linear")
    ]
    found = headline(run_of(records))
    assert [item.subject.split(", ")[1::4] for item in found] == [
        ["infer", "fast"],
        ["train", "fast"],
        ["infer", "reference"],
        ["train", "reference"],
    ]
    assert "for a batch of 2 images" in found[0].sentences[0]
    assert "for a training step with a batch of 2 images" in found[1].sentences[0]


def test_flags_and_single_processes_are_caveats() -> None:
    flagged = make_measurement(times(1 / 8), flags=("throttled",))
    run = run_of([make_record(flagged, mechanism="infsa-linear"), make_record(make_measurement(times(1 / 4)))])
    assert "Flagged there: infsa-linear throttled." in headline(run)[0].sentences
    (caveat,) = caveats(run)
    assert caveat.startswith("Every number comes from one process; another process may differ by more")
    assert headline_sentences(run)[-1] == caveat
    thrice = run_of([make_record(replicate=index) for index in range(3)])
    assert caveats(thrice) == []


def test_hostile_names_stay_on_their_line() -> None:
    run = hostile_run()
    sentences = headline_sentences(run)
    assert all(sentence.isprintable() for sentence in sentences)
    assert any(HOSTILE_TEXTS[1] in sentence for sentence in sentences)
