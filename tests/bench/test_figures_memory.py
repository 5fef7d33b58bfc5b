from __future__ import annotations

import dataclasses

from drawn import curves, draw, letters, notes, overlapping, run_of, tick_labels
from sample_records import ENVIRONMENT, make_failure, make_measurement, make_record

from infsa_bench.analyze.run import Run
from infsa_bench.report.figures.memory import describe_memory_vs_tokens, memory_lines, render_memory_vs_tokens

GIB = 2**30


def run_with(*gibs: float | None, device_gib: float = 16) -> Run:
    """Softmax at one resolution after the other with such peaks; None for out of memory."""
    sides = (224, 512, 1024, 2048)
    records = [
        make_record(
            make_failure() if gib is None else make_measurement(peak_memory_bytes=round(gib * GIB)), resolution=side
        )
        for side, gib in zip(sides, gibs, strict=False)
    ]
    run = run_of(records)
    device = dataclasses.replace(ENVIRONMENT, device_memory_bytes=round(device_gib * GIB))
    return dataclasses.replace(run, manifest=dataclasses.replace(run.manifest, environments={ENVIRONMENT.key: device}))


def test_memory_over_tokens() -> None:
    figure = draw(render_memory_vs_tokens, run_with(1, 4, 12, None))
    (axes,) = figure.axes
    (line,) = curves(axes)
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([197, 1025, 4097], [1, 4, 12])
    assert tick_labels(axes.xaxis) == ["197", "1025", "4097", "16385"]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [(letter, tokens) for letter, tokens, _ in letters(axes)] == [("O", 16385)]
    assert notes(axes) == ["this device 16.0 GiB", "4 GiB", "8 GiB", "no number: O = out of memory"]
    assert overlapping(figure) == []


def test_cards_near_the_peaks_are_lines() -> None:
    def lines(*gibs: float, device_gib: float) -> dict[str, float]:
        return memory_lines(run_with(*gibs).rows, {ENVIRONMENT.key: round(device_gib * GIB)})

    assert lines(3, 10, device_gib=12) == {"this device": 12, "4 GiB": 4, "8 GiB": 8, "16 GiB": 16}
    # The smallest that would hold everything is there, and what is the device itself only once.
    names = ["this device", "4 GiB", "8 GiB", "16 GiB", "24 GiB", "40 GiB"]
    assert list(lines(1, 60, device_gib=79.6)) == names
    # Far from everything there would be no room for the data.
    assert lines(0.25, 0.5, device_gib=64) == {}


def test_an_emulated_device_is_called_so() -> None:
    (row,) = run_with(3).rows
    emulated = dataclasses.replace(row, emulated_memory_bytes=5 * GIB)
    assert memory_lines([emulated], {ENVIRONMENT.key: 16 * GIB}) == {"emulated": 5, "4 GiB": 4}


def test_without_a_peak_there_is_no_figure() -> None:
    assert render_memory_vs_tokens(run_with(None)) is None
    run = run_of([make_record(make_measurement(peak_memory_bytes=None))])
    assert render_memory_vs_tokens(run) is None
    run = run_of([make_record(make_measurement(peak_memory_bytes=None)), make_record(resolution=512)])
    (axes,) = draw(render_memory_vs_tokens, run).axes
    assert [letter for letter, *_ in letters(axes)] == ["N"]


def test_words() -> None:
    assert describe_memory_vs_tokens(run_with(1, 4, 12, None)) == (
        "Peak memory against tokens, with the memory of cards as lines: 1 panel, lines of 1 mechanism. 4L-64H, infer, "
        "fp32, eager, batch 1, at 1024 x 1024 pixels softmax: 12.0 GiB."
    )
