from __future__ import annotations

import pytest
from drawn import draw, legend_of, overlapping, run_of, tick_labels
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch
from sample_records import make_failure, make_measurement, make_record

from infsa_bench.record import FailureKind
from infsa_bench.report.figures.frontier import (
    FINE,
    MOST_RESOLUTIONS,
    OUTCOMES,
    describe_oom_frontier,
    render_oom_frontier,
)
from infsa_bench.report.figures.styles import FAILURE_LETTERS

RECORDS = [
    make_record(resolution=224),
    make_record(make_failure("oom"), resolution=512),
    make_record(make_failure("skipped"), resolution=1024),
    make_record(make_measurement(peak_memory_bytes=2**30), mechanism="infsa-linear", resolution=224),
    make_record(make_measurement(peak_memory_bytes=3 * 2**30), mechanism="infsa-linear", resolution=1024),
]


def texts(axes: Axes) -> dict[tuple[float, float], str]:
    return {text.get_position(): text.get_text() for text in axes.texts}


def cells(axes: Axes) -> dict[tuple[int, int], str]:
    """The colour of each cell, by column and row."""
    found = {}
    for patch in axes.patches:
        assert isinstance(patch, PathPatch)
        for corners in patch.get_path().to_polygons():
            centre = corners[:4].mean(axis=0)
            found[round(centre[0]), round(centre[1])] = to_hex(patch.get_facecolor())
    return found


def test_a_grid_of_mechanisms_and_resolutions() -> None:
    figure = draw(render_oom_frontier, run_of(RECORDS))
    (axes,) = figure.axes
    assert tick_labels(axes.xaxis) == ["224", "512", "1024"]
    assert tick_labels(axes.yaxis) == ["softmax", "infsa-linear"]
    assert texts(axes) == {(0, 0): "300 MiB", (1, 0): "O", (2, 0): "S", (0, 1): "1.00 GiB", (2, 1): "3.00 GiB"}
    # What was not planned is empty.
    assert cells(axes) == {
        (0, 0): FINE,
        (1, 0): OUTCOMES["O"][0],
        (2, 0): OUTCOMES["S"][0],
        (0, 1): FINE,
        (2, 1): FINE,
    }
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert legend_of(figure) == ["ran: peak memory", "O: out of memory", "S: skipped"]
    assert overlapping(figure) == []


@pytest.mark.parametrize("kind", list(FAILURE_LETTERS))
def test_every_kind_of_failure_has_a_look(kind: FailureKind) -> None:
    (axes,) = draw(render_oom_frontier, run_of([make_record(make_failure(kind))])).axes
    assert list(texts(axes).values()) == [FAILURE_LETTERS[kind]]
    assert list(cells(axes).values()) == [OUTCOMES[FAILURE_LETTERS[kind]][0]]


def test_replicates_that_failed_are_told() -> None:
    records = [make_record(replicate=0), make_record(make_failure(), replicate=1)]
    figure = draw(render_oom_frontier, run_of(records))
    assert list(texts(figure.axes[0]).values()) == ["300 MiB*"]
    assert legend_of(figure) == ["ran: peak memory", "* some replicates failed"]


def test_one_grid_a_block_and_one_row_an_implementation() -> None:
    run = run_of([*RECORDS, make_record(implementation="fast"), make_record(phase="train")])
    figure = draw(render_oom_frontier, run)
    assert [tick_labels(axes.yaxis) for axes in figure.axes] == [
        ["softmax (reference)", "softmax (fast)", "infsa-linear (reference)"],
        ["softmax"],
    ]


def test_memory_that_is_not_known_is_no_number() -> None:
    run = run_of([make_record(make_measurement(peak_memory_bytes=None))])
    assert list(texts(draw(render_oom_frontier, run).axes[0]).values()) == ["ok"]


def test_of_very_many_resolutions_the_largest_are_shown() -> None:
    run = run_of([make_record(resolution=16 * side) for side in range(1, 60)] + [make_record(resolution=2**62)])
    (axes,) = draw(render_oom_frontier, run).axes
    assert len(axes.texts) == MOST_RESOLUTIONS
    assert tick_labels(axes.xaxis)[-2:] == ["944", "5e+18"]


def test_nothing_to_show() -> None:
    assert render_oom_frontier(run_of([])) is None
    assert describe_oom_frontier(run_of([])).endswith("0 grids.")


def test_words() -> None:
    start = "How every cell ended, mechanism by resolution: 1 grid. 4L-64H, infer, fp32, eager, batch 1, at 1024 x 1024"
    assert describe_oom_frontier(run_of(RECORDS)) == f"{start} pixels 1 of 2 ran: infsa-linear."
    assert describe_oom_frontier(run_of([make_record(resolution=1024)])) == f"{start} pixels 1 of 1 ran."
    assert describe_oom_frontier(run_of(RECORDS[2:3])) == f"{start} pixels 0 of 1 ran."
    more = [make_record(mechanism="mlla", resolution=1024), *RECORDS]
    assert describe_oom_frontier(run_of(more)) == f"{start} pixels 2 of 3 ran, all but softmax."
