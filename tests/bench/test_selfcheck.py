"""The checks of the instruments: each verdict from its numbers, and all of them on a fake board in virtual time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pynvml
import pytest
import torch
from fake_nvml import DeviceControl, FakeNvml
from sample_records import CALIBRATION
from virtual_board import SquareWave, make_meter

from infsa_bench.execute import selfcheck
from infsa_bench.execute.instruments import Instruments
from infsa_bench.execute.messages import Finding
from infsa_bench.execute.selfcheck import (
    ALLOCATED_BYTES,
    Work,
    check_instruments,
    judge_clock,
    judge_edges,
    judge_idle,
    judge_linearity,
    judge_memory,
    judge_polling,
    judge_repeat,
    judge_sampler,
    judge_throttling,
)
from infsa_bench.measure.energy.load import Load
from infsa_bench.measure.energy.meter import EnergyMeter
from infsa_bench.measure.memory import Peak, PeakMemory
from infsa_bench.measure.nvml import Gpu
from infsa_bench.record import EnergyWindow

CPU = torch.device("cpu")
ITERATION_SECONDS = 0.004
TIMING = ["clock", "memory", "repeat"]
ENERGY = ["idle power", "linearity", "edges", "polling", "sampler", "throttling"]


def window(joules: float = 100.0, seconds: float = 10.0, edge_seconds: float = 0.2) -> EnergyWindow:
    """100 iterations, at 1 J and 0.1 s each."""
    return EnergyWindow(joules=joules, iterations=100.0, seconds=seconds, edge_seconds=edge_seconds, power_joules=None)


# What each judge says just inside and just outside of its tolerance.
VERDICTS: list[tuple[Finding, bool]] = [
    (judge_clock(0.004951), True),
    (judge_clock(0.004949), False),
    (judge_clock(0.005049), True),
    (judge_clock(0.005051), False),
    (judge_memory(7 * 2**20, (7 + 256) * 2**20), True),
    (judge_memory(0, round(1.049 * ALLOCATED_BYTES)), True),
    (judge_memory(0, round(1.051 * ALLOCATED_BYTES)), False),
    (judge_memory(0, round(0.951 * ALLOCATED_BYTES)), True),
    (judge_memory(0, round(0.949 * ALLOCATED_BYTES)), False),
    (judge_memory(None, ALLOCATED_BYTES), False),
    (judge_memory(0, None), False),
    (judge_repeat(0.0199), True),
    (judge_repeat(0.0201), False),
    (judge_repeat(-0.0199), True),
    (judge_repeat(-0.0201), False),
    (judge_idle(CALIBRATION), True),
    (judge_idle(dataclasses.replace(CALIBRATION, doubts=("sampled_power",))), True),
    (judge_idle(dataclasses.replace(CALIBRATION, doubts=("sampled_power", "shared"))), False),
    (judge_idle(dataclasses.replace(CALIBRATION, doubts=("restless_idle",))), False),
    (judge_idle(dataclasses.replace(CALIBRATION, idle_watts=None)), False),
    (judge_linearity(3.0, 3.0 * 1.0199), True),
    (judge_linearity(3.0, 3.0 * 1.0201), False),
    (judge_linearity(3.0, 3.0 * 0.9801), True),
    (judge_linearity(3.0, 3.0 * 0.9799), False),
    # 1 % beside the counter's steps, 0.2 of 10 s.
    (judge_edges(1.0, window(102.99)), True),
    (judge_edges(1.0, window(103.01)), False),
    (judge_edges(1.0, window(97.01)), True),
    (judge_edges(1.0, window(96.99)), False),
    (judge_edges(1.0, window(100.99, edge_seconds=0.0)), True),
    (judge_edges(1.0, window(101.01, edge_seconds=0.0)), False),
    # 1 % beside the steps of both windows.
    (judge_polling(window(), window(104.99)), True),
    (judge_polling(window(), window(105.01)), False),
    (judge_polling(window(), window(95.01)), True),
    (judge_polling(window(), window(94.99)), False),
    (judge_polling(window(edge_seconds=0.0), window(102.99)), True),
    (judge_polling(window(edge_seconds=0.0), window(103.01)), False),
    (judge_polling(window(), window(102.99, edge_seconds=0.0)), True),
    (judge_polling(window(), window(103.01, edge_seconds=0.0)), False),
    # The time has no steps.
    (judge_polling(window(), window(seconds=10.099)), True),
    (judge_polling(window(), window(seconds=10.101)), False),
    (judge_polling(window(), window(seconds=9.901)), True),
    (judge_polling(window(), window(seconds=9.899)), False),
    (judge_sampler(0.0099), True),
    (judge_sampler(0.0101), False),
    (judge_sampler(-0.0099), True),
    (judge_sampler(-0.0101), False),
    (judge_throttling(()), True),
    (judge_throttling({"sw_power_cap", "gpu_idle"}), True),
    (judge_throttling({"sw_power_cap", "hw_slowdown"}), False),
]


@pytest.mark.parametrize(("finding", "is_passed"), VERDICTS, ids=[str(finding.name) for finding, _ in VERDICTS])
def test_verdicts(finding: Finding, is_passed: bool) -> None:
    assert finding.verdict == ("pass" if is_passed else "fail"), finding


@pytest.mark.parametrize(
    ("finding", "name", "detail"),
    [
        (judge_clock(0.0051), "clock", "a call of 5 ms takes 5.100 ms"),
        (judge_memory(0, 300 * 2**20), "memory", "a block of 256.0 MiB adds 300.0 MiB"),
        (judge_memory(None, None), "memory", "the peak cannot be read"),
        (judge_repeat(0.0123), "repeat", "the same work again: +1.23%"),
        (judge_idle(CALIBRATION), "idle power", "75.0 W over 10 s; doubts: none"),
        (
            judge_idle(dataclasses.replace(CALIBRATION, idle_watts=None, doubts=("shared", "mig"))),
            "idle power",
            "unknown over 10 s; doubts: shared, mig",
        ),
        (judge_linearity(2.0, 2.02), "linearity", "twice the iterations take 2.020 times the energy"),
        (judge_edges(1.0, window(98.0)), "edges", "two plain readings 10 s apart differ by -2.00%, allowed 3.00%"),
        (
            judge_polling(window(), window(101.0, 10.05)),
            "polling",
            # A longer window has less of its steps.
            "reading the counter all the time changes an iteration's energy by +1.00%, allowed 4.99%, "
            "and its time by +0.50%",
        ),
        (judge_sampler(-0.001), "sampler", "watching changes the work's time by -0.10%"),
        (judge_throttling(()), "throttling", "none seen under load"),
        (
            judge_throttling(["sw_thermal_slowdown", "sw_power_cap", "hw_slowdown"]),
            "throttling",
            "hw_slowdown, sw_thermal_slowdown",
        ),
    ],
)
def test_findings_name_their_check_and_their_numbers(finding: Finding, name: str, detail: str) -> None:
    assert (finding.name, finding.detail) == (f"check: {name}", detail)


class Board:
    """A fake board with a meter on it, and work of 4 ms on virtual time; ``defect`` changes one thing of it.

    ``calls`` and ``results`` tell what the meter was asked, and what it answered.
    """

    def __init__(self, fake: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake = fake
        self.control: DeviceControl = fake.device(0)
        self.meter: EnergyMeter = make_meter(fake)
        self.calls: list[str] = []
        self.results: list[Any] = []
        self.is_observing = False
        self.clock_gain = 1.0
        self.work_seconds: Callable[[], float] = lambda: ITERATION_SECONDS
        self.peak_memory = PeakMemory(CPU)
        self._ns = 0
        self._monkeypatch = monkeypatch
        observing = self.meter.observing

        @contextmanager
        def noted() -> Iterator[None]:
            with observing():
                self.is_observing = True
                yield
            self.is_observing = False

        monkeypatch.setattr(self.meter, "observing", noted)
        for name in ("read", "watch_unaligned"):
            monkeypatch.setattr(self.meter, name, self._noting(name, getattr(self.meter, name)))

    def on_call(self, number: int, name: str, begin: Callable[[], None], end: Callable[[], None]) -> None:
        """Do one thing before and another after the call with that number of a method of the meter."""
        usual = getattr(self.meter, name)

        def tampered(*arguments: Any, **options: Any) -> Any:
            is_it = self.calls.count(name) == number
            if is_it:
                begin()
            result = usual(*arguments, **options)
            if is_it:
                end()
            return result

        self._monkeypatch.setattr(self.meter, name, tampered)

    def check(self) -> list[Finding]:
        board = self

        class VirtualInstruments(Instruments):
            def load(self, call: Callable[[], object], iteration_seconds: float) -> Load:
                return SquareWave(board.fake, ITERATION_SECONDS)

        instruments = VirtualInstruments(
            device=CPU,
            peak_memory=self.peak_memory,
            gpu=Gpu.find(self.control.uuid, None),
            meter=self.meter,
            energy_source="nvml_counter",
            no_energy=None,
        )
        work = Work(call=lambda: torch.zeros(1), seconds=lambda: self.work_seconds())
        return list(
            check_instruments(
                instruments, work, clock=lambda: round(self._tick() * self.clock_gain), other_clock=self._tick
            )
        )

    def failed(self) -> list[str]:
        return [finding.name.removeprefix("check: ") for finding in self.check() if finding.verdict == "fail"]

    def _tick(self) -> int:
        # Ten microseconds for each look at the clock.
        self._ns += 10_000
        return self._ns

    def _noting(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*arguments: Any, **options: Any) -> Any:
            self.calls.append(name)
            self.results.append(method(*arguments, **options))
            return self.results[-1]

        return noting


@pytest.fixture
def board(fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> Board:
    return Board(fake_nvml, monkeypatch)


def test_instruments_in_order(board: Board) -> None:
    findings = board.check()
    assert [finding.name for finding in findings] == [f"check: {name}" for name in TIMING + ENERGY]
    assert {finding.verdict for finding in findings} == {"pass"}, findings
    assert board.calls == ["read", "read", "watch_unaligned", "watch_unaligned"]
    for result, seconds in zip(board.results[:2], (2.0, 4.0), strict=True):
        assert len(result.reading.trials) == 3
        for trial in result.reading.trials:
            assert sum(window.seconds for window in trial.windows) == pytest.approx(seconds, abs=0.05)
    assert [window.seconds for window in board.results[2:]] == pytest.approx([10.0, 10.0], abs=0.05)


def test_a_call_is_timed_on_both_clocks(board: Board) -> None:
    """A call of 5 ms on the one is 5 ms on the other, but for a look or two at them."""
    assert 4.99 < float(board.check()[0].detail.split()[-2]) < 5.05
    board.clock_gain = 1.02
    assert board.failed() == ["clock"]


def test_memory_that_is_not_seen(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of half the size, as a meter that misses half would show it."""
    half = torch.ones(ALLOCATED_BYTES // 2, dtype=torch.uint8)
    monkeypatch.setattr(selfcheck.torch, "ones", lambda *size, **options: half.clone())
    assert board.failed() == ["memory"]


def test_memory_that_cannot_be_read(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = Peak(allocated_bytes=None, reserved_bytes=None, source="process_rss")
    monkeypatch.setattr(board.peak_memory, "read", lambda: unknown)
    assert board.failed() == ["memory"]


def test_work_that_never_repeats(board: Board) -> None:
    """Every second time it takes 2.5 % longer: the second one of each pair, observed or not."""
    times = iter([ITERATION_SECONDS, 1.025 * ITERATION_SECONDS] * 3)
    board.work_seconds = lambda: next(times, ITERATION_SECONDS)
    assert board.failed() == ["repeat"]


def test_single_outliers_are_no_change(board: Board) -> None:
    """One of the alternations alone decides nothing."""
    times = iter([ITERATION_SECONDS] * 3 + [2 * ITERATION_SECONDS])
    board.work_seconds = lambda: next(times, ITERATION_SECONDS)
    assert board.failed() == []


def test_a_restless_idle(board: Board) -> None:
    """Every 0.3 s the board draws 100 W in place of 60, for the first 10 s."""
    for index in range(34):
        board.fake.set_power(100.0 if index % 2 == 0 else 60.0, at_ns=index * 300_000_000)
    findings = {finding.name: finding for finding in board.check()}
    assert findings["check: idle power"].verdict == "fail"
    assert "doubts: restless_idle" in findings["check: idle power"].detail


def test_a_shared_board(board: Board) -> None:
    board.control.compute_processes = [*board.control.compute_processes, (1, 2**30)]
    assert board.failed() == ["idle power"]


def test_a_gain_that_changes_between_short_and_long(board: Board) -> None:
    def change() -> None:
        board.control.gain = 1.03

    board.on_call(1, "read", change, lambda: None)
    assert board.failed() == ["linearity"]


@pytest.mark.parametrize(("gain", "failed"), [(0.985, []), (0.95, ["edges"])])
def test_a_counter_that_loses_ticks_between_its_updates(board: Board, gain: float, failed: list[str]) -> None:
    """In both long windows alike: then reading it all the time has changed nothing."""

    def lose() -> None:
        board.control.gain = gain

    def restore() -> None:
        board.control.gain = 1.0

    board.on_call(0, "watch_unaligned", lose, lambda: None)
    board.on_call(1, "watch_unaligned", lambda: None, restore)
    assert board.failed() == failed


def test_a_counter_that_polling_changes(board: Board) -> None:
    def more() -> None:
        board.control.gain = 1.06 if board.is_observing else 1.0

    def restore() -> None:
        board.control.gain = 1.0

    board.on_call(1, "watch_unaligned", more, restore)
    assert board.failed() == ["polling"]


@pytest.mark.parametrize(("factor", "failed"), [(1.008, []), (1.012, ["sampler"]), (0.985, ["sampler"])])
def test_a_sampler_that_changes_the_work(board: Board, factor: float, failed: list[str]) -> None:
    board.work_seconds = lambda: ITERATION_SECONDS * (factor if board.is_observing else 1.0)
    assert board.failed() == failed


@pytest.mark.parametrize("number", [0, 1])
def test_throttling_in_a_trial(board: Board, number: int) -> None:
    def hot() -> None:
        board.control.event_reasons = 0x20

    def cool() -> None:
        board.control.event_reasons = 0

    board.on_call(number, "read", hot, cool)
    assert board.failed() == ["throttling"]


def test_throttling_in_the_end(board: Board) -> None:
    def hot() -> None:
        board.control.event_reasons = 0x40

    board.on_call(1, "watch_unaligned", lambda: None, hot)
    findings = board.check()
    assert (findings[-1].verdict, findings[-1].detail) == ("fail", "hw_thermal_slowdown")


def test_a_power_cap_is_normal(board: Board) -> None:
    board.control.event_reasons = 0x4
    assert board.failed() == []


def lose_the_counter(board: Board) -> None:
    board.fake.fail("nvmlDeviceGetTotalEnergyConsumption", pynvml.NVML_ERROR_GPU_IS_LOST)


@pytest.mark.parametrize(
    ("number", "name", "passed"),
    [
        (0, "read", ["idle power"]),
        (1, "read", ["idle power"]),
        (0, "watch_unaligned", ["idle power", "linearity"]),
        (1, "watch_unaligned", ["idle power", "linearity", "edges"]),
    ],
)
def test_a_meter_that_dies(board: Board, number: int, name: str, passed: list[str]) -> None:
    """What was found before stands; then there is one more line."""
    board.on_call(number, name, lambda: lose_the_counter(board), lambda: None)
    *before, last = board.check()
    assert [finding.name.removeprefix("check: ") for finding in before] == TIMING + passed
    assert {finding.verdict for finding in before} == {"pass"}
    assert (last.name, last.verdict) == ("check: energy meter", "fail")
    assert last.detail.startswith("counter_unsupported: ")


def test_a_meter_that_is_dead_from_the_beginning(board: Board) -> None:
    lose_the_counter(board)
    board.fake.fail("nvmlDeviceGetFieldValues", pynvml.NVML_ERROR_GPU_IS_LOST)
    board.fake.fail("nvmlDeviceGetPowerUsage", pynvml.NVML_ERROR_GPU_IS_LOST)
    findings = board.check()
    assert [finding.name.removeprefix("check: ") for finding in findings] == [*TIMING, "energy meter"]
    assert findings[-1].verdict == "fail"


def test_sampled_power_has_no_edges(board: Board) -> None:
    lose_the_counter(board)
    findings = board.check()
    without = [name for name in ENERGY if name not in ("edges", "polling")]
    assert [finding.name.removeprefix("check: ") for finding in findings] == TIMING + without
    assert {finding.verdict for finding in findings} == {"pass"}, findings
    assert "doubts: counter_unsupported" in findings[3].detail


def test_a_slow_counter_is_given_the_time_it_needs(board: Board) -> None:
    """10 s are too few for updates every 0.8 s."""
    board.control.period_ns = board.control.window_ns = 800_000_000
    findings = {finding.name: finding for finding in board.check()}
    assert {finding.verdict for finding in findings.values()} == {"pass"}, findings
    assert "readings 16 s apart" in findings["check: edges"].detail


def test_no_meter_no_energy() -> None:
    instruments = Instruments(
        device=CPU, peak_memory=PeakMemory(CPU), gpu=None, meter=None, energy_source=None, no_energy=None
    )
    work = Work(call=lambda: torch.zeros(1), seconds=lambda: ITERATION_SECONDS)
    findings = list(check_instruments(instruments, work))
    assert [finding.name.removeprefix("check: ") for finding in findings] == TIMING


@pytest.mark.soak
def test_this_machine_in_real_time() -> None:
    """The real clocks, memory and matrix product of a machine that does nothing else."""
    instruments = Instruments(
        device=CPU, peak_memory=PeakMemory(CPU), gpu=None, meter=None, energy_source=None, no_energy=None
    )
    assert [finding for finding in check_instruments(instruments) if finding.verdict == "fail"] == []
