"""Updates and samples from a process of its own, in real time."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import fake_nvml as fake
import pytest
from fake_nvml import CounterMode, FakeNvml
from virtual_board import OWN_PID

from infsa_bench.errors import MeterUnavailableError
from infsa_bench.measure.energy import observing_process as observing
from infsa_bench.measure.energy.clock import MonotonicClock
from infsa_bench.measure.energy.observer import (
    NEVER_NS,
    Edge,
)
from infsa_bench.measure.energy.observing_process import ProcessObserver
from infsa_bench.measure.nvml import Gpu

SECOND_NS = 1_000_000_000
REAL_PERIOD_NS = 40_000_000


@pytest.fixture
def real_board(fake_nvml: FakeNvml, fake_nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """The fake on the machine's clock, where child processes find it, too."""
    fake_nvml.reset(virtual=False)
    board = fake_nvml.device(0)
    board.period_ns = board.window_ns = REAL_PERIOD_NS
    board.compute_processes = [(OWN_PID, 2**20)]
    for name, value in fake_nvml.environment(fake_nvml_library).items():
        monkeypatch.setenv(name, value)
    return fake_nvml


@contextlib.contextmanager
def process_observer(board: FakeNvml) -> Iterator[ProcessObserver]:
    observer = ProcessObserver(Gpu.find(board.device(0).uuid, None), MonotonicClock())
    try:
        yield observer
    finally:
        observer.close()
        assert children(os.getpid()) == []


def children(parent: int) -> list[int]:
    """The observers that this process started, dead ones that nobody waited for included."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes()
            if int(fields[1]) == parent and (b"energy.observing_process" in command or fields[0] == "Z"):
                found.append(int(folder.name))
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until_gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_running(pid)


def next_edge(observer: ProcessObserver, seconds: float = 5.0) -> Edge:
    deadline = time.monotonic() + seconds
    while (edge := observer.edge()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return edge


def true_tick_of(edge: Edge, first_tick_ns: int) -> int:
    """The tick nearest to an edge: on the real clock, too, this sensor ticks exactly once a period."""
    return first_tick_ns + round((edge.ns - first_tick_ns) / REAL_PERIOD_NS) * REAL_PERIOD_NS


def test_a_process_of_its_own_finds_updates_and_samples(real_board: FakeNvml) -> None:
    first_tick_ns = real_board.device(0).phase_ns
    with process_observer(real_board) as observer:
        observer.start_trace(0.02)
        begin_ns = time.perf_counter_ns()
        # One at a time, armed ahead.
        singles = []
        for _ in range(5):
            from_ns = time.perf_counter_ns() + REAL_PERIOD_NS // 2
            observer.arm(from_ns)
            singles.append(next_edge(observer))
            assert singles[-1].after_ns > from_ns
            assert observer.edge() is None
        # All of them, while this process looks away: nothing is missed.
        real_board.set_power(500.0)
        observer.arm(time.perf_counter_ns(), every=True)
        time.sleep(0.4)
        rows = [next_edge(observer)]
        while (edge := observer.edge()) is not None:
            rows.append(edge)
        observer.arm(NEVER_NS)
        samples = observer.stop_trace()
        end_ns = time.perf_counter_ns()
        time.sleep(0.1)
        assert observer.edge() is None
    for edge in singles + rows:
        tick_ns = true_tick_of(edge, first_tick_ns)
        assert edge.before_ns <= tick_ns <= edge.after_ns
    # Two cores shared with other tests: a reading may now and then be late, and says so.
    assert statistics.median(edge.uncertainty_ns for edge in singles + rows) < 3_000_000
    ticks = [round((edge.ns - first_tick_ns) / REAL_PERIOD_NS) for edge in rows]
    assert len(ticks) >= 5
    assert statistics.median(last - first for first, last in pairwise(ticks)) == 1
    joules = 500 * (ticks[-1] - ticks[1]) * REAL_PERIOD_NS / 1e9
    assert rows[-1].joules - rows[1].joules == pytest.approx(joules, rel=1e-3)
    times = [sample.ns for sample in samples]
    assert times == sorted(times)
    assert begin_ns <= times[0] <= singles[0].after_ns
    assert rows[-1].after_ns <= times[-1] <= end_ns
    gaps = [last - first for first, last in pairwise(times)]
    assert statistics.median(gaps) == pytest.approx(20_000_000, rel=0.3)
    assert {sample.power_watts for sample in samples} >= {60.0, 500.0}
    assert samples[0].foreign_processes == 0


def test_a_process_that_is_killed_is_lost_at_once(real_board: FakeNvml) -> None:
    with process_observer(real_board) as observer:
        observer.start_trace(0.02)
        (pid,) = children(OWN_PID)
        os.kill(pid, signal.SIGKILL)
        assert wait_until_gone(pid, 5)
        begin = time.monotonic()
        for ask in (observer.edge, observer.stop_trace, lambda: observer.arm(0), lambda: observer.start_trace(0.1)):
            with pytest.raises(MeterUnavailableError, match="ended with -9") as caught:
                ask()
            assert caught.value.reason == "observer_lost"
        assert time.monotonic() - begin < 1


def test_a_process_that_hangs_keeps_nobody_waiting(real_board: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    # No start is as fast as that.
    monkeypatch.setattr(observing, "START_SECONDS", 0.001)
    monkeypatch.setattr(observing, "END_SECONDS", 0.1)
    with pytest.raises(MeterUnavailableError, match="does not answer"):
        ProcessObserver(Gpu.find(real_board.device(0).uuid, None), MonotonicClock())
    assert children(OWN_PID) == []
    monkeypatch.setattr(observing, "START_SECONDS", 30.0)
    with process_observer(real_board) as observer:
        (pid,) = children(OWN_PID)
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(observing, "START_SECONDS", 0.2)
        begin = time.monotonic()
        observer.arm(0)
        assert observer.edge() is None
        assert observer.edge() is None
        with pytest.raises(MeterUnavailableError, match="does not answer") as caught:
            observer.stop_trace()
        assert caught.value.reason == "observer_lost"
        assert 0.2 <= time.monotonic() - begin < 2
        begin = time.monotonic()
    assert time.monotonic() - begin < 2


def test_a_counter_that_goes_away_is_told_by_the_process_which_goes_on(real_board: FakeNvml) -> None:
    board = real_board.device(0)
    with process_observer(real_board) as observer:
        observer.start_trace(0.02)
        board.counter_mode = CounterMode.NOT_SUPPORTED
        observer.arm(time.perf_counter_ns())
        with pytest.raises(MeterUnavailableError, match="Not Supported") as caught:
            next_edge(observer)
        assert caught.value.reason == "counter_unsupported"
        assert len(observer.stop_trace()) >= 1
        board.counter_mode = CounterMode.NORMAL
        observer.arm(time.perf_counter_ns())
        next_edge(observer)


def test_what_nobody_fetched_does_not_turn_up_later(real_board: FakeNvml) -> None:
    """A meter that gave up leaves a trace that runs on, and perhaps an update that was found."""
    with process_observer(real_board) as observer:
        observer.start_trace(0.01)
        observer.arm(time.perf_counter_ns(), every=True)
        time.sleep(0.15)
        begin_ns = time.perf_counter_ns()
        observer.start_trace(0.01)
        from_ns = time.perf_counter_ns()
        observer.arm(from_ns)
        assert next_edge(observer).after_ns >= from_ns
        assert observer.edge() is None
        assert min(sample.ns for sample in observer.stop_trace()) >= begin_ns


def test_a_gpu_that_the_process_does_not_find(real_board: FakeNvml) -> None:
    gpu = Gpu.find(real_board.device(0).uuid, None)
    real_board.device(0).uuid = "GPU-00000000-0000-0000-0000-000000000000"
    with pytest.raises(MeterUnavailableError, match=r"knows no GPU GPU-fa4e0000") as caught:
        ProcessObserver(gpu, MonotonicClock())
    assert caught.value.reason == "identity"
    assert children(OWN_PID) == []


def test_a_process_that_cannot_be_started(real_board: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu.find(real_board.device(0).uuid, None)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(MeterUnavailableError, match="did not start") as caught:
        ProcessObserver(gpu, MonotonicClock())
    assert caught.value.reason == "observer_lost"


WORKER = """
import os, sys, time
from infsa_bench.measure.energy.clock import MonotonicClock
from infsa_bench.measure.energy.observing_process import ProcessObserver
from infsa_bench.measure.nvml import Gpu

observer = ProcessObserver(Gpu.find(sys.argv[1], None), MonotonicClock())
observer.start_trace(0.01)
fork = os.fork() if sys.argv[2] == "fork" else None
if fork == 0:
    os.close(1)
    time.sleep(60)
print(observer._process.pid, fork or 0, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("fork", ["no fork", "fork"])
def test_no_orphan_outlives_a_worker_that_dies(real_board: FakeNvml, fork: str) -> None:
    """Killed, a worker cleans nothing up; a fork of it may even hold the observer's standard input open."""
    arguments = [sys.executable, "-c", WORKER, real_board.device(0).uuid, fork]
    worker = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert worker.stdout is not None
    assert worker.stderr is not None
    forked = 0
    try:
        pid, forked = map(int, worker.stdout.readline().split())
        assert is_running(pid)
        # Samples keep coming, as with a worker whose iteration takes long.
        time.sleep(0.1)
        assert is_running(pid)
        worker.kill()
        worker.wait()
        assert wait_until_gone(pid, 5)
    finally:
        worker.kill()
        if forked:
            os.kill(forked, signal.SIGKILL)
    # It ends in silence.
    assert worker.stderr.read() == b""
    worker.stdout.close()
    worker.stderr.close()


def test_words_and_lines_are_put_together_from_any_pieces(real_board: FakeNvml) -> None:
    """By hand, as the meter's process is spoken to: commands in pieces, several in one."""
    process = subprocess.Popen(
        [sys.executable, "-m", "infsa_bench.measure.energy.observing_process", real_board.device(0).uuid, str(OWN_PID)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        for piece in (b"tra", b"ce 0.0", b"1\nst", b"op\narm 0\nstop\n"):
            process.stdin.write(piece)
            process.stdin.flush()
            time.sleep(0.02)
        names = [process.stdout.readline().split()[0] for _ in range(5)]
        assert names[0] == b"sample"
        assert names.count(b"stopped") >= 1
        process.stdin.close()
        while process.stdout.read(4096):
            pass
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_process_imports_no_torch() -> None:
    program = (
        "import sys, infsa_bench.measure.energy.observing_process; "
        "print(sorted(name for name in sys.modules if name in ('torch', 'timm', 'infsa_bench.measure.energy.load')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_fake_s_clock_is_the_observer_s() -> None:
    """Both are CLOCK_MONOTONIC: the comparisons above mean something."""
    assert fake.time.monotonic_ns() == pytest.approx(MonotonicClock().now_ns(), abs=50_000_000)
