"""The search for the largest resolution, against simulated devices: every limit, steady or not, monotone or not."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infsa_bench.analyze.resolution_search import (
    MAX_UNSTEADY,
    Probe,
    ProbeOutcome,
    SearchResult,
    SearchSpace,
    next_probe,
    search_result,
)
from infsa_bench.errors import SpecError

Device = Callable[[int], ProbeOutcome]

COARSE = SearchSpace(smallest=224, largest=9216, step=64)
FINE = SearchSpace(smallest=224, largest=9216, step=16)
PREDICTIONS = (None, -5, 0, 1, 224, 250, 700, 1500, 3000, 7000, 9000, 9216, 12000, 10**9)

outcomes = st.sampled_from(["ok", "memory", "index", "time", "other"])
small_spaces = st.builds(
    lambda smallest, points, step, predicted: SearchSpace(
        smallest=smallest, largest=smallest + points * step, step=step, predicted=predicted
    ),
    st.integers(1, 400),
    st.integers(1, 200),
    st.sampled_from([1, 16, 64]),
    st.none() | st.integers(0, 10_000),
)


def space_with(space: SearchSpace, predicted: int | None) -> SearchSpace:
    return SearchSpace(smallest=space.smallest, largest=space.largest, step=space.step, predicted=predicted)


def allocator(limit: int, failure: ProbeOutcome = "memory") -> Device:
    """A device on which everything up to ``limit`` pixels fits."""
    return lambda resolution: "ok" if resolution <= limit else failure


def scripted(device: Device, script: dict[int, list[ProbeOutcome]]) -> Device:
    """A device that answers at some sizes from a list first."""
    rest = {resolution: list(answers) for resolution, answers in script.items()}
    return lambda resolution: rest[resolution].pop(0) if rest.get(resolution) else device(resolution)


def probes(space: SearchSpace, device: Device, known: Iterable[Probe] = ()) -> Iterator[tuple[Probe, bool]]:
    """Search to the end; each probe beyond the known ones, and whether it was to be in a fresh process."""
    path = list(known)
    # A search that never ends is to fail, not to hang.
    while len(path) < 1000 and (asked := next_probe(space, path)) is not None:
        path.append(Probe(resolution=asked.resolution, outcome=device(asked.resolution)))
        yield path[-1], asked.fresh


def search(space: SearchSpace, device: Device) -> tuple[list[Probe], SearchResult]:
    path = [probe for probe, _ in probes(space, device)]
    result = search_result(space, path)
    assert result.is_finished
    return path, result


def bracketing(space: SearchSpace, device: Device, known: Iterable[Probe] = ()) -> list[Probe]:
    """The probes before the first confirmation."""
    return [probe for probe, _ in itertools.takewhile(lambda item: not item[1], probes(space, device, known))]


def doublings(space: SearchSpace) -> float:
    """``log2(range / step)``, of the range that the grid covers; 0 for a grid of one point."""
    grid = space.resolutions
    return math.log2(max(1, len(grid) - 1))


def assert_exact(space: SearchSpace, limit: int) -> None:
    path, result = search(space, allocator(limit))
    grid = space.resolutions
    fits = [resolution for resolution in grid if resolution <= limit]
    fails = [resolution for resolution in grid if resolution > limit]
    assert result == SearchResult(
        largest_ok=fits[-1] if fits else None,
        smallest_failing=fails[0] if fails else None,
        limit="memory" if fails else None,
        unsteady=(),
        fits_again=(),
        is_confirmed=True,
        is_finished=True,
        reached_largest=not fails,
    )
    before = bracketing(space, allocator(limit))
    assert len(before) <= 4 + doublings(space)
    assert len({probe.resolution for probe in before}) == len(before)
    assert len(path) <= 4 + doublings(space) + 4 + 3
    counts = Counter(probe.resolution for probe in path)
    ends = {*fits[-1:], *fails[:1]}
    assert {resolution: count for resolution, count in counts.items() if count > 1} == dict.fromkeys(ends, 3)


@pytest.mark.parametrize("predicted", PREDICTIONS)
def test_every_limit_is_found_exactly_within_the_bound(predicted: int | None) -> None:
    space = space_with(COARSE, predicted)
    for limit in (0, *space.resolutions):
        assert_exact(space, limit)


@pytest.mark.parametrize("predicted", [None, 900, 2000, 10**9])
def test_every_limit_of_a_fine_grid_is_bracketed_within_the_bound(predicted: int | None) -> None:
    space = space_with(FINE, predicted)
    for limit in (0, *space.resolutions):
        path = bracketing(space, allocator(limit))
        assert len(path) <= 4 + doublings(space)
        result = search_result(space, path)
        assert result.largest_ok == (limit if limit else None)
        assert result.smallest_failing == (limit + 16 if limit else 224) or result.reached_largest


@pytest.mark.parametrize("points", range(1, 18))
def test_every_limit_and_prediction_of_small_grids(points: int) -> None:
    for first in (1, 7):
        grid = range(first, first + points)
        for predicted in (None, *range(0, 2 * grid[-1] + 2)):
            space = SearchSpace(smallest=grid[0], largest=grid[-1], step=1, predicted=predicted)
            for limit in range(grid[0] - 1, grid[-1] + 1):
                assert_exact(space, limit)


@given(space=small_spaces, data=st.data())
@settings(deadline=None)
def test_any_grid_any_prediction(space: SearchSpace, data: st.DataObject) -> None:
    assert_exact(space, data.draw(st.sampled_from([0, *space.resolutions])))


def test_an_absurd_prediction_costs_little() -> None:
    """The bound of the issue, in numbers, on the default grid."""
    longest = max(
        len(bracketing(space_with(COARSE, predicted), allocator(limit)))
        for predicted in PREDICTIONS
        for limit in (0, *COARSE.resolutions)
    )
    assert longest <= math.floor(4 + math.log2((9216 - 224) / 64)) == 11


def sizes(path: Iterable[Probe]) -> list[int]:
    return [probe.resolution for probe in path]


def test_the_path_by_hand() -> None:
    space = SearchSpace(smallest=64, largest=1024, step=64, predicted=640)
    path, _ = search(space, allocator(640))
    assert sizes(path) == [576, 704, 640, 640, 640, 704, 704, 768, 832, 896]
    fresh = [fresh for _, fresh in probes(space, allocator(640))]
    assert fresh == [False] * 3 + [True] * 4 + [False] * 3


@pytest.mark.parametrize(
    ("limit", "first"),
    [
        (1920, [1792, 2176, 1984, 1856, 1920]),  # about right
        (3000, [1792, 2176, 3008]),  # the second fits as well: one larger step up
        (1500, [1792, 1216]),  # the first fails: no second, one larger step down
        (2600, [1792, 2176, 3008, 2560]),  # off by 30 %: nothing larger than half as much again
        (9216, [1792, 2176, 3008, 5312, 7040]),  # off by much: well below the middle of what is left
        (256, [1792, 1216, 512]),
    ],
)
def test_the_search_starts_around_the_prediction(limit: int, first: list[int]) -> None:
    assert sizes(bracketing(space_with(COARSE, 2000), allocator(limit)))[: len(first)] == first


@pytest.mark.parametrize(("predicted", "first"), [(-5, 256), (100, 256), (20_000, 9216)])
def test_a_prediction_outside_the_grid_starts_at_its_end(predicted: int, first: int) -> None:
    assert bracketing(space_with(COARSE, predicted), allocator(700))[0].resolution == first


def test_without_a_prediction_large_images_are_not_probed_first() -> None:
    path = bracketing(COARSE, allocator(700))
    assert max(sizes(path)) == path[0].resolution == 1344
    assert sizes(bracketing(SearchSpace(smallest=1, largest=1024, step=1), allocator(0)))[:2] == [32, 6]


def test_a_spent_budget_leaves_plain_bisection() -> None:
    """However many sizes were probed, a bracket of n steps takes no more than log2 n of them, rounded up."""
    grid = COARSE.resolutions
    spent = [Probe(resolution=resolution, outcome="memory") for resolution in grid[-20:]]
    for limit in (0, *grid[:-20]):
        further = bracketing(COARSE, allocator(limit), known=spent)
        assert len(further) <= math.ceil(math.log2(len(grid) - 20 + 1))


@pytest.mark.parametrize("failure", ["memory", "index", "other"])
def test_the_limit_is_the_way_of_failing(failure: ProbeOutcome) -> None:
    path, result = search(space_with(COARSE, 2000), allocator(2000, failure))
    assert (result.largest_ok, result.smallest_failing, result.limit) == (1984, 2048, failure)
    assert result.is_confirmed
    assert {2112, 2176, 2560} <= set(sizes(path))


def test_no_looks_beyond_a_limit_of_time() -> None:
    path, result = search(COARSE, allocator(2000, "time"))
    assert (result.limit, result.is_confirmed) == ("time", True)
    assert path[-1].resolution == result.smallest_failing
    assert 2112 not in sizes(path)


@pytest.mark.parametrize(
    ("failures", "limit"),
    [
        (["memory", "memory", "time"], "memory"),
        (["time", "index", "index"], "index"),
        (["time", "index", "memory"], "memory"),
        (["time", "index", "time"], "time"),
        (["other", "time", "other", "index"], "index"),
        (["other", "other", "other", "time"], "other"),
    ],
)
def test_the_most_frequent_way_of_failing_is_the_limit(failures: list[ProbeOutcome], limit: str) -> None:
    space = SearchSpace(smallest=1, largest=1, step=1)
    path, result = search(space, scripted(allocator(0), {1: failures}))
    assert [probe.outcome for probe in path] == failures
    assert (result.limit, result.is_confirmed, result.unsteady) == (limit, True, ())


@pytest.mark.parametrize("predicted", PREDICTIONS)
def test_sizes_that_fit_again_are_reported(predicted: int | None) -> None:
    def padded(resolution: int) -> ProbeOutcome:
        return "ok" if resolution <= 640 or resolution in (768, 896) else "memory"

    space = SearchSpace(smallest=64, largest=1024, step=64, predicted=predicted)
    _, result = search(space, padded)
    # Where the first failure found is the one at 832 or 960, larger sizes fail as they should.
    assert (result.largest_ok, result.fits_again) in [(640, (768, 896)), (768, (896,)), (896, ())]
    assert result.smallest_failing == result.largest_ok + 64
    assert result.is_monotone == (result.largest_ok == 896)
    assert result.is_confirmed


@pytest.mark.parametrize(
    ("hole", "again"), [(704, (768,)), (704, (832,)), (704, (896,)), (704, (768, 896)), (576, (640, 704)), (64, (192,))]
)
def test_what_fits_above_the_first_failure_is_reported(hole: int, again: tuple[int, ...]) -> None:
    space = SearchSpace(smallest=64, largest=9216, step=64, predicted=640)
    path, result = search(space, lambda size: "ok" if size < hole or size in again else "memory")
    assert (result.largest_ok, result.smallest_failing) == (hole - 64 or None, hole)
    assert result.fits_again == again
    assert result.is_confirmed
    assert not result.is_monotone
    assert not result.reached_largest
    # Before the last stage nothing is known of it.
    assert search_result(space, path[:-3]).is_monotone


def test_looks_beyond_stay_on_the_grid() -> None:
    space = SearchSpace(smallest=64, largest=1024, step=64)
    for limit, beyond in ((832, {960, 1024}), (896, {1024}), (960, set())):
        path, result = search(space, allocator(limit))
        assert {size for size in sizes(path) if size > limit + 64} >= beyond
        assert max(sizes(path)) <= 1024
        assert result.is_monotone


def test_nothing_fits() -> None:
    path, result = search(space_with(COARSE, 300), allocator(0, "index"))
    assert (result.largest_ok, result.smallest_failing, result.limit) == (None, 256, "index")
    assert (result.is_confirmed, result.reached_largest) == (True, False)
    assert Counter(sizes(path))[256] == 3


def test_everything_fits() -> None:
    path, result = search(COARSE, allocator(10**6))
    assert (result.largest_ok, result.smallest_failing, result.limit) == (9216, None, None)
    assert (result.is_confirmed, result.reached_largest) == (True, True)
    assert sizes(path)[-3:] == [9216] * 3


@pytest.mark.parametrize("predicted", [None, 1, 10**9])
def test_a_grid_of_one_point(predicted: int | None) -> None:
    space = SearchSpace(smallest=200, largest=300, step=256, predicted=predicted)
    assert list(space.resolutions) == [256]
    for limit in (0, 256):
        path, result = search(space, allocator(limit))
        assert sizes(path) == [256] * 3
        assert (result.largest_ok, result.is_confirmed) == (limit or None, True)


def test_ends_that_are_no_multiples_are_left_out() -> None:
    grid = SearchSpace(smallest=224, largest=1000, step=64).resolutions
    assert (grid[0], grid[-1]) == (256, 960)
    _, result = search(SearchSpace(smallest=224, largest=1000, step=64), allocator(1000))
    assert (result.largest_ok, result.reached_largest) == (960, True)


@pytest.mark.parametrize(
    ("smallest", "largest", "step"), [(224, 9216, 0), (224, 9216, -64), (0, 9216, 64), (512, 256, 64), (65, 127, 64)]
)
def test_a_space_without_a_grid_is_refused(smallest: int, largest: int, step: int) -> None:
    with pytest.raises(SpecError):
        SearchSpace(smallest=smallest, largest=largest, step=step)


def test_probes_of_another_grid_are_refused() -> None:
    with pytest.raises(SpecError, match="240"):
        next_probe(COARSE, [Probe(resolution=240, outcome="ok")])


def test_an_unsteady_success_counts_as_failing_and_the_search_goes_on_below() -> None:
    space = SearchSpace(smallest=64, largest=1024, step=64, predicted=640)
    path, result = search(space, scripted(allocator(640), {640: ["ok", "ok", "memory"]}))
    assert sizes(path) == [576, 704, 640, 640, 640, 576, 576, 768]
    assert (result.largest_ok, result.smallest_failing, result.unsteady) == (576, 640, (640,))
    assert result.limit == "memory"
    assert result.is_monotone
    assert not result.is_confirmed


def test_an_unsteady_failure_stays_one() -> None:
    space = SearchSpace(smallest=64, largest=1024, step=64, predicted=640)
    path, result = search(space, scripted(allocator(640), {704: ["memory", "ok"]}))
    assert sizes(path) == [576, 704, 640, 640, 640, 704, 768, 832, 896]
    assert (result.largest_ok, result.smallest_failing, result.unsteady) == (640, 704, (704,))
    assert (result.limit, result.is_confirmed) == ("memory", False)


def test_an_unsteady_largest_is_not_reached() -> None:
    space = SearchSpace(smallest=64, largest=1024, step=64)
    _, result = search(space, scripted(allocator(1024), {1024: ["ok", "memory"]}))
    assert (result.largest_ok, result.smallest_failing, result.reached_largest) == (960, 1024, False)


def test_too_many_unsteady_sizes_end_the_search() -> None:
    seen: Counter[int] = Counter()

    def fails_the_second_time(resolution: int) -> ProbeOutcome:
        seen[resolution] += 1
        return "ok" if seen[resolution] == 1 else "memory"

    path, result = search(space_with(COARSE, 2000), fails_the_second_time)
    assert len(result.unsteady) == MAX_UNSTEADY == 4
    assert (result.is_confirmed, result.is_finished) == (False, True)
    assert sum(count > 1 for count in seen.values()) == MAX_UNSTEADY
    assert path[-1].resolution == result.smallest_failing == min(result.unsteady)


def test_a_crash_is_tried_again_once_in_a_fresh_process() -> None:
    space = SearchSpace(smallest=64, largest=1024, step=64, predicted=640)
    device = scripted(allocator(640), {576: ["other"], 640: ["ok", "other"], 704: ["memory", "other"], 768: ["other"]})
    path = list(probes(space, device))
    undisturbed, clean = search(space, allocator(640))
    assert sizes(probe for probe, _ in path[:4]) == [576, 576, 704, 640]
    assert [fresh for _, fresh in path[:4]] == [False, True, False, False]
    assert len(path) == len(undisturbed) + 4
    assert search_result(space, [probe for probe, _ in path]) == clean


def test_a_second_crash_counts_as_failing() -> None:
    space = SearchSpace(smallest=64, largest=1024, step=64, predicted=640)
    path, result = search(space, scripted(allocator(640), {640: ["other"] * 4}))
    assert (result.largest_ok, result.smallest_failing, result.limit) == (576, 640, "other")
    assert result.is_confirmed
    assert Counter(sizes(path))[640] == 4


def assert_within_the_whole_bound(space: SearchSpace, path: list[Probe], result: SearchResult) -> None:
    forgiven = len({probe.resolution for probe in path if probe.outcome == "other"})
    retreats = min(len(result.unsteady), MAX_UNSTEADY - 1)
    assert len(path) <= 4 + doublings(space) + 7 + retreats * (doublings(space) + 3) + forgiven


@given(space=small_spaces, answers=st.lists(outcomes, max_size=80), rest=outcomes)
@settings(max_examples=300, deadline=None)
def test_any_answers_end_within_the_whole_bound(
    space: SearchSpace, answers: list[ProbeOutcome], rest: ProbeOutcome
) -> None:
    remaining = iter(answers)
    path, result = search(space, lambda resolution: next(remaining, rest))
    assert_within_the_whole_bound(space, path, result)
    assert_consistent(space, path, result)


def assert_consistent(space: SearchSpace, path: list[Probe], result: SearchResult) -> None:
    """What the result says, said again from the probes without the search's own reading of them."""
    seen: dict[int, list[str]] = {}
    for probe in path:
        seen.setdefault(probe.resolution, []).append(probe.outcome)
    for answers in seen.values():
        if "other" in answers:
            answers.remove("other")
    works = {size for size, answers in seen.items() if answers and set(answers) == {"ok"}}
    fails = {size for size, answers in seen.items() if set(answers) - {"ok"}}
    assert result.smallest_failing == min(fails, default=None)
    below = [size for size in works if not fails or size < min(fails)]
    assert result.largest_ok == max(below, default=None)
    assert set(result.fits_again) == works - set(below)
    assert set(result.unsteady) == {size for size in fails if "ok" in seen[size]}
    assert max(map(len, seen.values())) <= 3
    if result.is_confirmed:
        assert result.largest_ok is None or seen[result.largest_ok] == ["ok"] * 3
        assert result.smallest_failing is None or len(seen[result.smallest_failing]) == 3
        assert result.smallest_failing not in result.unsteady
    elif len(result.unsteady) < MAX_UNSTEADY:
        # Nothing but an unsteady first failure is left unconfirmed.
        assert result.smallest_failing in result.unsteady
    if len(result.unsteady) < MAX_UNSTEADY:
        low = space.resolutions[0] - space.step if result.largest_ok is None else result.largest_ok
        high = space.resolutions[-1] + space.step if result.smallest_failing is None else result.smallest_failing
        assert high - low == space.step


@given(
    space=st.sampled_from([space_with(COARSE, predicted) for predicted in PREDICTIONS]),
    limits=st.lists(st.integers(0, 9216), min_size=2, max_size=4),
)
@settings(max_examples=200, deadline=None)
def test_a_limit_that_falls_whenever_it_was_found(space: SearchSpace, limits: list[int]) -> None:
    """Another tenant takes memory: the confirmation fails, and what fitted below may not fit any more either."""
    falling = sorted(limits)
    path: list[Probe] = []
    while (asked := next_probe(space, path)) is not None:
        if asked.fresh and len(falling) > 1 and asked.resolution <= falling[-1]:
            falling.pop()
        path.append(Probe(resolution=asked.resolution, outcome=allocator(falling[-1])(asked.resolution)))
    result = search_result(space, path)
    assert_within_the_whole_bound(space, path, result)
    assert_consistent(space, path, result)


@pytest.mark.parametrize("predicted", [None, 1, 4, 100])
@pytest.mark.parametrize("points", range(1, 6))
def test_every_sequence_of_answers_ends_within_the_whole_bound(points: int, predicted: int | None) -> None:
    """An adversary that may say anything, all of its games on small grids."""
    space = SearchSpace(smallest=1, largest=points, step=1, predicted=predicted)
    unfinished: list[list[Probe]] = [[]]
    games = 0
    while unfinished:
        path = unfinished.pop()
        asked = next_probe(space, path)
        if asked is None:
            games += 1
            assert_within_the_whole_bound(space, path, search_result(space, path))
            continue
        answers: tuple[ProbeOutcome, ...] = ("ok", "memory")
        unfinished += [[*path, Probe(resolution=asked.resolution, outcome=answer)] for answer in answers]
    assert games > points


@given(space=small_spaces, answers=st.lists(outcomes, max_size=30), data=st.data())
@settings(deadline=None)
def test_a_search_goes_on_from_its_path(space: SearchSpace, answers: list[ProbeOutcome], data: st.DataObject) -> None:
    """A prefix, in whatever order, asks for what was probed next; nothing is remembered outside of it."""
    remaining = iter(answers)
    path, _ = search(space, lambda resolution: next(remaining, "memory"))
    cut = data.draw(st.integers(0, len(path)))
    prefix = data.draw(st.permutations(path[:cut]))
    asked = next_probe(space, prefix)
    assert (asked.resolution if asked else None) == (path[cut].resolution if cut < len(path) else None)
    result = search_result(space, prefix)
    assert result == search_result(space, path[:cut])
    assert result.is_finished == (cut == len(path))


def test_a_path_that_has_only_begun() -> None:
    path, _ = search(space_with(COARSE, 2000), allocator(1920))
    empty = search_result(COARSE, [])
    assert (empty.largest_ok, empty.smallest_failing, empty.limit) == (None, None, None)
    assert (empty.is_confirmed, empty.is_finished, empty.reached_largest) == (False, False, False)
    begun = search_result(COARSE, path[:2])
    assert (begun.largest_ok, begun.smallest_failing, begun.limit) == (1792, 2176, "memory")
    assert (begun.is_confirmed, begun.is_finished) == (False, False)
