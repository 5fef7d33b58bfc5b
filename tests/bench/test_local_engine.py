"""Several devices on one machine: real worker processes, one a device; only torch is left out, and not everywhere."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sample_records
from fake_worker import CALIBRATION, CALIBRATION_LATER
from test_launcher import fake_command_of, make_case, wait_until_gone
from test_sweep import Listener, fake_launcher, make_plan, run_with_fake_worker

from infsa_bench.analyze.predict import Predictor
from infsa_bench.codec import decode
from infsa_bench.energy_plan import ENERGY_PRESETS
from infsa_bench.errors import SpecError, SweepStoppedError
from infsa_bench.execute.cores import own_cores
from infsa_bench.execute.device_lock import DeviceLock
from infsa_bench.execute.engines import Task
from infsa_bench.execute.launcher import Launcher, Patience
from infsa_bench.execute.local_engine import LocalEngine
from infsa_bench.execute.messages import RunCommand
from infsa_bench.execute.process import Abandonment
from infsa_bench.protocol import PROTOCOLS
from infsa_bench.record import Failure, Measurement, Record
from infsa_bench.spec import Case
from infsa_bench.store import RECORDS, RunWriter, load, load_manifest
from infsa_bench.sweep import run_plan

TWO = ("cuda:0", "cuda:1")
PATIENCE = Patience(timeout_seconds=30.0, silence_seconds=30.0)


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Devices of the same name that are used elsewhere at the same time are others."""
    folder = tmp_path / "locks"
    folder.mkdir()
    monkeypatch.setattr("infsa_bench.execute.device_lock.LOCKS", folder)
    return folder


def make_task(case: Case) -> Task:
    return Task(case=case, protocol=PROTOCOLS["quick"], patience=PATIENCE, limit_seconds=None, energy=None)


def places_of(records: Sequence[Record]) -> list[tuple[str, int, str]]:
    """Device, process and cores as the workers told them in place of a measurement."""
    found = []
    for record in records:
        assert isinstance(record.outcome, Failure)
        device, pid, cores = record.outcome.message.split(" ", 2)
        found.append((device, int(pid), cores))
    return found


def test_two_devices_halve_the_time(tmp_path: Path) -> None:
    """Equal cells that sleep, on one worker and on two; starting them is left out on both sides."""
    seconds = {}
    for count in (1, 2):
        cases = [make_case(sleep="0.25", n=str(number)) for number in range(16)]
        with LocalEngine(("cpu", "cpu")[:count], fake_launcher()) as engine:
            started = time.monotonic()
            for case in cases:
                while not engine.has_room():
                    engine.wait()
                engine.start(make_task(case))
            for _ in range(count):
                engine.wait()
            seconds[count] = time.monotonic() - started
    assert seconds[2] == pytest.approx(seconds[1] / 2, rel=0.15)


def test_two_devices_halve_the_time_of_a_plan(tmp_path: Path) -> None:
    """All of a sweep but the start and the end of its workers: what is stored and chosen costs next to nothing."""
    seconds = {}
    for count in (1, 2):
        plan = make_plan([make_case(sleep="0.5", n=str(number)) for number in range(16)])
        manifest = sample_records.make_manifest()
        folder = tmp_path / str(count)
        with LocalEngine(TWO[:count], fake_launcher()) as engine, RunWriter(folder, manifest) as writer:
            started = time.monotonic()
            run_plan(plan, engine, writer, Predictor({"fp32": 1e15}), Listener())
            seconds[count] = time.monotonic() - started
        records = load(folder).records
        assert [isinstance(record.outcome, Measurement) for record in records] == [True] * 16
    assert seconds[2] == pytest.approx(seconds[1] / 2, rel=0.15)


def test_a_plan_is_shared_by_devices_and_every_case_is_recorded_once(tmp_path: Path) -> None:
    cases = [make_case(behave="place", sleep="0.1", n=str(number)) for number in range(10)]
    records = run_with_fake_worker(tmp_path / "run", make_plan(cases), devices=TWO)
    lines = (tmp_path / "run" / RECORDS).read_text().splitlines()
    assert len(lines) == len(records) == 10
    assert {record.case for record in records} == set(cases)
    found = places_of(records)
    # A worker each, which is used again, on cores of its own where there are enough.
    assert len(set(found)) == 2
    assert all(count >= 3 for count in Counter(device for device, _, _ in found).values())
    assert len({cores for _, _, cores in found}) == min(2, len(own_cores()))
    environments = load_manifest(tmp_path / "run").environments
    assert {environments[record.environment].device for record in records} == set(TWO)
    for record, (device, _, _) in zip(records, found, strict=True):
        assert environments[record.environment].device == device


def test_one_device_is_not_pinned(tmp_path: Path) -> None:
    records = run_with_fake_worker(tmp_path / "run", make_plan([make_case(behave="place")]))
    assert places_of(records)[0][2] == str(own_cores())


@pytest.mark.skipif(len(own_cores()) < 2, reason="needs two cores")
def test_only_workers_with_a_share_of_the_cores_are_limited_in_their_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "32")
    share = len(own_cores()) // 2
    for devices, threads in ((TWO[:1], 32), (TWO, share)):
        with LocalEngine(devices, fake_launcher("cores")) as engine:
            assert {hello.environment.torch_threads for hello in engine.hellos} == {threads}


def test_a_replicate_begins_with_a_fresh_worker_on_every_device(tmp_path: Path) -> None:
    cases = [
        dataclasses.replace(make_case(behave="place", sleep="0.1", n=str(number)), replicate=replicate)
        for replicate in range(3)
        for number in range(4)
    ]
    records = run_with_fake_worker(tmp_path / "run", make_plan(cases), devices=TWO)
    replicates: dict[int, set[int]] = {}
    for record, (_, pid, _) in zip(records, places_of(records), strict=True):
        replicates.setdefault(pid, set()).add(record.case.replicate)
    assert all(len(found) == 1 for found in replicates.values())


def test_the_longest_come_first_and_passes_follow_each_other(tmp_path: Path) -> None:
    """In the order in which they are handed out: cells of no length end in any."""
    sides = (224, 384, 512, 1024)
    cases = [sample_records.make_case(resolution=side, replicate=replicate) for replicate in range(2) for side in sides]
    order = {}
    for devices in (TWO[:1], TWO):
        listener = Listener()
        folder = tmp_path / str(len(devices))
        run_with_fake_worker(folder, make_plan(cases), rate=1e12, devices=devices, listener=listener)
        order[len(devices)] = [(case.replicate, case.resolution) for case in listener.begun]
    assert order[1] == [(replicate, side) for replicate in range(2) for side in sides]
    # What the first pass has shown, which took no time at all, decides about the second.
    assert order[2][:4] == [(0, side) for side in sides[::-1]]
    assert [replicate for replicate, _ in order[2]] == [0] * 4 + [1] * 4


def test_a_lost_device_costs_its_cell_one_more_try(tmp_path: Path) -> None:
    file = tmp_path / "lost"
    cases = [make_case(behave="lose-once", file=str(file)), *(make_case(sleep="0.05", n=str(n)) for n in range(6))]
    records = run_with_fake_worker(tmp_path / "run", make_plan(cases), traits=(f"lost={file}",), devices=TWO)
    assert all(isinstance(record.outcome, Measurement) for record in records)
    lost, *others = records
    (attempt,) = lost.attempts
    (name,) = file.read_text().split()
    assert attempt.stage == "start"
    assert attempt.message.startswith(f"lost on {name}: {name} is lost: device '{name}' cannot be used")
    environments = load_manifest(tmp_path / "run").environments
    assert environments[lost.environment].device != name
    assert all(record.attempts == () for record in others)


def test_a_cell_that_loses_two_devices_has_failed_and_the_others_go_on(tmp_path: Path) -> None:
    file = tmp_path / "lost"
    cases = [make_case(behave="lose", file=str(file)), *(make_case(sleep="0.05", n=str(n)) for n in range(6))]
    devices = (*TWO, "cuda:2")
    records = run_with_fake_worker(tmp_path / "run", make_plan(cases), traits=(f"lost={file}",), devices=devices)
    assert len(file.read_text().split()) == 2
    failure = records[0].outcome
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.stage, len(records[0].attempts)) == ("killed", "start", 1)
    assert "lost with its device: cuda:" in failure.message
    assert all(isinstance(record.outcome, Measurement) for record in records[1:])
    assert len(records) == 7


def test_without_a_device_the_sweep_stops_and_can_be_resumed(tmp_path: Path) -> None:
    file = tmp_path / "lost"
    cases = [make_case(behave="lose", file=str(file)), *(make_case(sleep="0.5", n=str(n)) for n in range(6))]
    with pytest.raises(SweepStoppedError, match=r"is lost: device 'cuda:.' cannot be used"):
        run_with_fake_worker(tmp_path / "run", make_plan(cases), traits=(f"lost={file}",), devices=TWO)
    stored = load(tmp_path / "run").records
    assert isinstance(stored[0].outcome, Failure)
    assert 0 < len(stored) < 7
    file.write_text("")
    records = run_with_fake_worker(tmp_path / "run", make_plan(cases[1:]), traits=(f"lost={file}",), devices=TWO)
    assert len(records) == 7
    assert {record.case for record in records} == set(cases)


def test_a_device_whose_worker_has_no_room_is_lost_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first worker to be replaced finds a full disk, and the others do not."""
    cases = [
        make_case(behave="sigsegv"),
        *(make_case(sleep="0.05", n=str(n)) for n in range(2)),
        *(dataclasses.replace(make_case(sleep="0.05", n=str(n)), replicate=1) for n in range(4)),
    ]
    temporary_file, opened = tempfile.TemporaryFile, itertools.count()

    def full_for_the_third(*arguments: Any) -> Any:
        if next(opened) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return temporary_file(*arguments)

    monkeypatch.setattr("infsa_bench.execute.process.tempfile.TemporaryFile", full_for_the_third)
    records = run_with_fake_worker(tmp_path / "run", make_plan(cases), devices=TWO)
    assert len(records) == 7
    assert sum(isinstance(record.outcome, Measurement) for record in records) == 6
    (attempt,) = [attempt for record in records for attempt in record.attempts]
    assert "did not start: [Errno 28] No space left on device" in attempt.message


def test_a_full_disk_ends_a_sweep_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("infsa_bench.execute.process.tempfile.TemporaryFile", full)
    with pytest.raises(SweepStoppedError, match=r"worker for cpu did not start: .*No space left on device"):
        LocalEngine(["cpu"], fake_launcher())


def test_one_device_alone_stops_without_a_record_as_ever(tmp_path: Path) -> None:
    file = tmp_path / "lost"
    case = make_case(behave="lose", file=str(file))
    with pytest.raises(SweepStoppedError, match="cpu is lost"):
        run_with_fake_worker(tmp_path / "run", make_plan([case]), traits=(f"lost={file}",))
    assert load(tmp_path / "run").records == ()


def test_each_device_has_its_own_calibration(tmp_path: Path) -> None:
    cases = [make_case(sleep="0.1", watts="70", n=str(number)) for number in range(6)]
    plan = make_plan(cases, energy=ENERGY_PRESETS["quick"])
    run_with_fake_worker(tmp_path / "run", plan, traits=("meter",), devices=TWO)
    calibration = dataclasses.replace(CALIBRATION, idle_watts=70.0)
    assert load_manifest(tmp_path / "run").calibrations == (calibration,) * 2 + (CALIBRATION_LATER,) * 2


def test_a_budget_is_shared_by_all_devices(tmp_path: Path) -> None:
    """Four cells within 2000 s, of which each could use a share that none does: two devices have twice the time.

    No cell has more than what is left until the end.
    """
    for devices, expected in ((TWO[:1], (500, 667, 1000, 2000)), (TWO, (1000, 1333, 2000, 2000))):
        cases = [make_case(behave="echo", sleep="0.3", n=str(number)) for number in range(4)]
        plan = make_plan(cases, seconds=2001.0)
        records = run_with_fake_worker(tmp_path / str(len(devices)), plan, devices=devices)
        limits = []
        for record in records:
            assert isinstance(record.outcome, Failure)
            limit_seconds = decode(RunCommand, record.outcome.message).limit_seconds
            assert limit_seconds is not None
            limits.append(limit_seconds)
        assert sorted(limits) == pytest.approx(expected, abs=10.0)


def test_unlike_devices_are_refused() -> None:
    expected = "cuda:0 and cuda:1 are not alike (they differ in device name): what they measure"
    with pytest.raises(SpecError) as refused:
        LocalEngine(TWO, fake_launcher("model=cuda:1:NVIDIA L4"))
    assert str(refused.value).startswith(expected)


def test_a_device_that_cannot_be_used_is_told_and_nothing_is_left_running() -> None:
    pids: list[int] = []

    class Telling(Launcher):
        def __init__(self, device: str, *, abandonment: Abandonment | None = None) -> None:
            command = fake_command_of("lost=/nowhere" if device == "cuda:0" else "refused")
            super().__init__(device, command, abandonment)
            pids.append(self._worker._process.pid)  # type: ignore[union-attr]

    with pytest.raises(SpecError, match="device 'cuda:1' cannot be used"):
        LocalEngine(TWO, Telling)
    (pid,) = pids
    wait_until_gone(pid)


def test_a_device_that_another_sweep_uses_is_refused() -> None:
    with LocalEngine(["cuda:1"], fake_launcher()) as engine:
        assert not engine.is_shared()
        with pytest.raises(SpecError, match="another sweep runs on cuda:1"):
            LocalEngine(TWO, fake_launcher())
        with LocalEngine(TWO, fake_launcher(), allow_shared=True) as both:
            assert both.is_shared()
            assert engine.is_shared()
        assert not engine.is_shared()


def test_all_gpus_that_a_worker_sees() -> None:
    with LocalEngine(["all"], fake_launcher("gpus=3")) as engine:
        assert (engine.devices, engine.places) == ("cuda:0,cuda:1,cuda:2", 3)
    with pytest.raises(SpecError, match="device 'cuda' cannot be used"):
        LocalEngine(["all"], fake_launcher("refused"))


def test_a_memory_limit_is_every_devices() -> None:
    with LocalEngine(TWO, fake_launcher()) as engine:
        engine.limit_memory(2**30)
        engine.start(make_task(make_case(behave="limit", n="0")))
        engine.start(make_task(make_case(behave="limit", n="1")))
        for ended in (engine.wait(), engine.wait()):
            assert ended.run is not None
            assert isinstance(ended.run.outcome, Failure)
            assert ended.run.outcome.message == str(2**30)
    with LocalEngine(TWO, fake_launcher("leaky")) as engine, pytest.raises(SpecError, match="it leaks"):
        engine.limit_memory(2**30)


def test_an_interrupt_ends_all_workers(tmp_path: Path) -> None:
    started, pids = time.monotonic(), []
    with LocalEngine(TWO, fake_launcher()) as engine:
        for number in range(2):
            engine.start(make_task(make_case(behave="place", n=str(number))))
        for ended in (engine.wait(), engine.wait()):
            assert ended.run is not None
            assert isinstance(ended.run.outcome, Failure)
            pids.append(int(ended.run.outcome.message.split()[1]))
        for number in range(2):
            engine.start(make_task(make_case(behave="hang", n=str(number))))
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            engine.wait()
    assert len(set(pids)) == 2
    for pid in pids:
        wait_until_gone(pid)
    assert time.monotonic() - started < 20.0


def test_an_interrupt_ends_workers_that_are_still_starting(tmp_path: Path) -> None:
    """They would be waited for, minutes where a GPU is slow to answer."""
    pids = tmp_path / "pids"
    started = time.monotonic()
    threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        LocalEngine(TWO, fake_launcher(f"asleep={pids}"))
    assert time.monotonic() - started < 20.0
    found = [int(pid) for pid in pids.read_text().split()]
    assert len(found) == 2
    for pid in found:
        wait_until_gone(pid)


@pytest.mark.skipif(len(own_cores()) < 2, reason="needs two cores")
@pytest.mark.parametrize("threads", [None, "32"])
def test_real_workers_have_their_own_cores_and_as_many_threads(
    monkeypatch: pytest.MonkeyPatch, threads: str | None
) -> None:
    """Also where a cluster wants more of every process."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
        if threads is not None:
            monkeypatch.setenv(name, threads)
    with LocalEngine(["cpu", "cpu"]) as engine:
        share = len(own_cores()) // 2
        for hello in engine.hellos:
            assert (hello.environment.cpu_count, hello.environment.torch_threads) == (share, share)
        plural = "" if share == 1 else "s"
        assert engine.describe_places() == (
            f"cpu, cpu; each worker has {share} core{plural} and {share} thread{plural}"
        )
        assert engine.hello.available_bytes is not None
        assert engine.available_bytes == engine.hello.available_bytes // 2


def test_locks_are_given_back() -> None:
    with LocalEngine(TWO, fake_launcher()) as engine:
        environments = [hello.environment for hello in engine.hellos]
    for environment in environments:
        with DeviceLock(environment, allow_shared=False) as lock:
            assert not lock.is_shared()


def test_devices_that_are_lost_while_nothing_runs_stop_the_sweep(tmp_path: Path) -> None:
    """As nodes of a cluster can be: nobody is waited for, and what is left must not be taken for done."""

    class Vanishing(LocalEngine):
        @property
        def places(self) -> int:
            return 0

        def has_room(self, avoided: frozenset[str] = frozenset()) -> bool:
            return False

    manifest = sample_records.make_manifest()
    with Vanishing(["cpu"], fake_launcher()) as engine, RunWriter(tmp_path / "run", manifest) as writer:
        with pytest.raises(SweepStoppedError, match="every device is lost"):
            run_plan(make_plan([make_case()]), engine, writer, Predictor({"fp32": 1e12}), Listener())
        # With nothing left to do it is none the worse.
        run_plan(make_plan([]), engine, writer, Predictor({"fp32": 1e12}), Listener())
