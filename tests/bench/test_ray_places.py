"""Nodes of a Ray cluster that live on and yet are good for nothing: what they cost. Ray itself is made up.

What a node does is chosen here: ``well`` answers, ``broken`` loses every actor, ``shaky`` has actors that become ready
and are lost over their next case, ``taken`` has none that become ready again, ``late`` has them after a moment.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import sample_records
from fake_worker import ENVIRONMENT, MEASUREMENT
from test_launcher import make_case
from test_sweep import Listener, make_plan

from infsa_bench.analyze.predict import Predictor
from infsa_bench.codec import decode, encode
from infsa_bench.errors import SpecError, SweepStoppedError
from infsa_bench.execute import ray_engine
from infsa_bench.execute.cores import divided_cores, own_cores
from infsa_bench.execute.engines import Task
from infsa_bench.execute.launcher import Patience
from infsa_bench.execute.messages import Hello
from infsa_bench.execute.ray_cluster import Cluster, Node
from infsa_bench.execute.ray_engine import RayEngine
from infsa_bench.execute.ray_station import Answer, Opened, Order, Place, RayStation, order_of
from infsa_bench.protocol import PROTOCOLS
from infsa_bench.record import Measurement
from infsa_bench.store import RunWriter, load
from infsa_bench.sweep import run_plan

MOMENT_SECONDS = 0.3
HELLO = Hello(
    environment=ENVIRONMENT,
    gpus=(),
    matmul_flops_per_second={"fp32": 1e12},
    available_bytes=None,
    energy_source=None,
    no_energy_reason="no meter",
)

PLACE = Place(device="cpu", node="a", accelerator=None, allow_shared=False, part=0, parts=1, cores=1)


class LostError(Exception):
    """What Ray raises for an actor that is no more."""


class Ref:
    """What a call will have returned, or raised, from a moment on."""

    def __init__(self, result: str | Exception, after_seconds: float = 0.0) -> None:
        self.result = result
        self.ready_at = time.monotonic() + after_seconds


class StubActor:
    """An actor on a node; ``is_first`` before its node goes wrong."""

    def __init__(self, cluster: StubCluster, node: Node, *, is_first: bool) -> None:
        self._cluster, self._node, self._is_first = cluster, node, is_first
        self.is_ready = is_first
        self.open = SimpleNamespace(remote=self._open)
        self.run = SimpleNamespace(remote=self._run)
        self.close = SimpleNamespace(remote=lambda: Ref(""))
        self.calibrate = SimpleNamespace(remote=lambda: Ref(LostError("no meter")))

    def _open(self) -> Ref:
        if self._is_first and self._node.name in self._cluster.openings:
            return self._cluster.openings[self._node.name]
        opened = encode(Opened(hello=self._cluster.hellos.get(self._node.name, HELLO)))
        match "well" if self._is_first else self._cluster.ways[self._node.name]:
            case "broken":
                return Ref(LostError("no space left on device"))
            case "taken":
                return Ref(opened, after_seconds=1e6)
            case "late":
                return Ref(opened, after_seconds=MOMENT_SECONDS)
        return Ref(opened)

    def _run(self, order: str) -> Ref:
        self._cluster.orders.append(decode(Order, order))
        way = self._cluster.ways[self._node.name]
        if way in ("broken", "shaky") or (self._is_first and way != "well"):
            return Ref(LostError("the actor died"))
        return Ref(encode(Answer(environment=ENVIRONMENT, seconds=1.0, outcome=MEASUREMENT)), after_seconds=0.01)


class StubCluster:
    """Nodes by name, and all that the engine asks of Ray."""

    exceptions = SimpleNamespace(RayError=LostError, RayTaskError=ZeroDivisionError)

    def __init__(self, **ways: str) -> None:
        self.ways = ways
        self.ray = self
        self.orders: list[Order] = []
        self.queries = 0
        self.is_headless = False
        self.hellos: dict[str, Hello] = {}
        self.openings: dict[str, Ref] = {}
        self.killed: list[StubActor] = []
        self._known: set[str] = set()

    def nodes(self) -> list[Node]:
        assert not self.is_headless, "waits for ever"
        self.queries += 1
        return [Node(id=name, name=name, gpus=0, cores=1, accelerators=frozenset()) for name in self.ways]

    def answers(self) -> bool:
        return not self.is_headless

    def start(self, node: Node, place: str) -> StubActor:
        is_first = node.id not in self._known
        self._known.add(node.id)
        return StubActor(self, node, is_first=is_first)

    def wait(self, refs: Sequence[Ref], num_returns: int, timeout: float | None = None) -> tuple[list[Ref], list[Ref]]:
        end = time.monotonic() + (60.0 if timeout is None else timeout)
        while True:
            now = time.monotonic()
            ready = [ref for ref in refs if ref.ready_at <= now][:num_returns]
            assert ready or timeout is not None or now < end, "waits for ever"
            if len(ready) == num_returns or now >= end:
                return ready, [ref for ref in refs if ref not in ready]
            time.sleep(0.002)

    def get(self, ref: Ref) -> str:
        if isinstance(ref.result, Exception):
            raise ref.result
        return ref.result

    def kill(self, actor: StubActor) -> None:
        assert actor.is_ready or not self.is_headless, "waits for ever"
        self.killed.append(actor)


@pytest.fixture
def engine_on(monkeypatch: pytest.MonkeyPatch) -> Callable[[StubCluster], RayEngine]:
    def opened(cluster: StubCluster) -> RayEngine:
        monkeypatch.setattr(ray_engine, "_starting", lambda ray, **resources: cluster.start)
        return RayEngine(cast(Cluster, cluster), "cpu", None)

    return opened


def make_task(name: str, *, until: float | None = None, avoided: Sequence[str] = ()) -> Task:
    return Task(
        case=make_case(n=name),
        protocol=PROTOCOLS["quick"],
        patience=Patience(timeout_seconds=30.0, silence_seconds=30.0, until=until),
        limit_seconds=None,
        energy=None,
        avoided=frozenset(avoided),
    )


EngineOn = Callable[[StubCluster], RayEngine]


@pytest.mark.parametrize("way", ["broken", "shaky"])
def test_nodes_that_lose_every_actor_do_not_cost_the_sweep_its_cells(
    engine_on: EngineOn, tmp_path: Path, way: str
) -> None:
    cases = [make_case(n=str(number)) for number in range(40)]
    cluster = StubCluster(a="well", b=way, c=way)
    with engine_on(cluster) as engine, RunWriter(tmp_path / "run", sample_records.make_manifest()) as writer:
        run_plan(make_plan(cases), engine, writer, Predictor({"fp32": 1e15}), Listener())
        assert engine.places == 1
    records = [record for record in load(tmp_path / "run").records if record.case in cases]
    assert len(records) == 40
    failed = [record for record in records if not isinstance(record.outcome, Measurement)]
    # Either node loses its device over its second case.
    assert len(failed) <= 2
    assert 2 <= sum(bool(record.attempts) for record in records) <= 4


def test_an_answer_makes_good_an_earlier_loss(engine_on: EngineOn) -> None:
    cluster = StubCluster(a="well")
    with engine_on(cluster) as engine:
        for number in range(3):
            cluster.ways["a"] = "shaky"
            engine.start(make_task(f"lost-{number}"))
            lost = engine.wait()
            assert (lost.run, lost.lost, engine.places) == (None, "a: LostError: the actor died", 1)
            cluster.ways["a"] = "well"
            engine.start(make_task(f"measured-{number}"))
            assert engine.wait().lost is None
        cluster.ways["a"] = "shaky"
        for number, places in enumerate((1, 0)):
            engine.start(make_task(f"last-{number}"))
            assert engine.wait().lost is not None
            assert engine.places == places
        assert not engine.has_room()


def test_a_device_that_others_took_is_not_waited_for(engine_on: EngineOn, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = StubCluster(a="taken", b="well")
    with engine_on(cluster) as engine:
        monkeypatch.setattr(ray_engine, "OPEN_SECONDS", 1.0)
        engine.start(make_task("0", avoided="b"))
        assert engine.wait().lost == "a: LostError: the actor died"
        assert engine.places == 2
        engine.start(make_task("1", avoided="b"))
        engine.start(make_task("2"))
        assert not engine.has_room()
        started = time.monotonic()
        # What runs elsewhere ends meanwhile.
        assert engine.wait().place == "b"
        late = engine.wait()
        assert late.task.case == make_case(n="1")
        assert (late.run, late.lost) == (None, "a: no other worker was ready within 1 s")
        assert 0.5 < time.monotonic() - started < 5.0
        assert (engine.places, len(cluster.killed)) == (1, 2)


def test_what_is_left_of_the_time_is_counted_when_the_actor_is_ready(engine_on: EngineOn) -> None:
    cluster = StubCluster(a="late")
    with engine_on(cluster) as engine:
        until = time.monotonic() + 100.0
        engine.start(make_task("0", until=until))
        assert engine.wait().lost is not None
        begun = time.monotonic()
        engine.start(make_task("1", until=until))
        assert engine.wait().lost is None
        left_seconds = cluster.orders[-1].left_seconds
        assert left_seconds is not None
        assert left_seconds <= until - begun - MOMENT_SECONDS


def test_a_node_without_room_is_lost_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("infsa_bench.execute.process.tempfile.TemporaryFile", full)
    station = RayStation(encode(PLACE))
    expected = "the worker for cpu did not start: [Errno 28] No space left on device"
    assert decode(Opened, station.open()).problem == expected
    assert station.check(["module:Class"]) == station.limit_memory(2**30) == expected
    answer = decode(Answer, station.run(encode(order_of(make_task("0"), None))))
    assert (answer.outcome, answer.lost) == (None, expected)


@pytest.mark.skipif(len(own_cores()) < 2, reason="needs two cores")
def test_actors_of_one_node_share_its_cores_and_threads() -> None:
    """In processes of their own, as those of Ray are."""
    program = (
        "import os, sys; from infsa_bench.execute.ray_station import RayStation; RayStation(sys.argv[1]);"
        "print(sorted(os.sched_getaffinity(0)), os.environ.get('OMP_NUM_THREADS'), os.environ.get('MKL_NUM_THREADS'))"
    )

    def told(part: int, parts: int) -> str:
        words = [sys.executable, "-c", program, encode(replace(PLACE, part=part, parts=parts, cores=8))]
        environment = {**os.environ, "OMP_NUM_THREADS": "32", "MKL_NUM_THREADS": "32"}
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    assert told(0, 1) == f"{own_cores()} 32 32"
    for part, share in enumerate(divided_cores(own_cores(), 2)):
        assert share is not None
        assert told(part, 2) == f"{sorted(share)} {len(share)} {len(share)}"


def test_nodes_are_asked_for_once_a_case(engine_on: EngineOn, tmp_path: Path) -> None:
    cases = [make_case(n=str(number)) for number in range(20)]
    cluster = StubCluster(a="well", b="well", c="well")
    with engine_on(cluster) as engine, RunWriter(tmp_path / "run", sample_records.make_manifest()) as writer:
        opening = cluster.queries
        run_plan(make_plan(cases), engine, writer, Predictor({"fp32": 1e15}), Listener())
        assert cluster.queries - opening == 20


def test_a_node_that_is_gone_is_a_place_no_more(engine_on: EngineOn) -> None:
    cluster = StubCluster(a="well", b="well")
    with engine_on(cluster) as engine:
        engine.start(make_task("0"))
        del cluster.ways["b"]
        engine.wait()
        assert engine.places == 1
        engine.start(make_task("1"))
        assert not engine.has_room()
        assert engine.wait().place == "a"


def test_the_least_memory_of_any_node_is_what_a_case_can_take(engine_on: EngineOn) -> None:
    cluster = StubCluster(a="well", b="well", c="well")
    for name, size in (("a", 2**34), ("b", 2**32), ("c", None)):
        cluster.hellos[name] = replace(HELLO, available_bytes=size)
    with engine_on(cluster) as engine:
        assert engine.available_bytes == 2**32


def test_a_node_that_cannot_be_used_says_what_it_needs(engine_on: EngineOn) -> None:
    cluster = StubCluster(a="well", b="well")
    cluster.openings["b"] = Ref(LostError("No module named 'infsa_bench'\nand more"))
    expected = "b cannot be used: LostError: No module named 'infsa_bench'; every node needs this very infsa-bench"
    with pytest.raises(SpecError) as refused:
        engine_on(cluster)
    assert str(refused.value) == expected
    # Nothing is left that holds a device.
    assert len(cluster.killed) == 2


def test_devices_that_others_keep_are_left_out_and_one_at_least_is_needed(
    engine_on: EngineOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "OPEN_SECONDS", 0.3)
    cluster = StubCluster(a="well", b="well")
    cluster.openings["a"] = Ref("", after_seconds=1e6)
    with engine_on(cluster) as engine:
        assert (engine.places, len(engine.hellos), len(cluster.killed)) == (1, 1, 1)
    cluster = StubCluster(a="well")
    cluster.openings["a"] = Ref("", after_seconds=1e6)
    with pytest.raises(SpecError, match=r"^no device of the Ray cluster was free within 0 s$"):
        engine_on(cluster)
    assert len(cluster.killed) == 1


def test_without_the_head_nothing_is_asked_that_only_it_knows(
    engine_on: EngineOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has ended is told all the same; what waits for another actor is not waited for."""
    monkeypatch.setattr(ray_engine, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(ray_engine, "HEAD_SECONDS", 3.0)
    cluster = StubCluster(a="well", b="taken", c="shaky")
    with engine_on(cluster) as engine:
        for number in range(3):
            engine.start(make_task(str(number)))
        assert {engine.wait().place for _ in range(3)} == {"a", "b", "c"}
        engine.start(make_task("3", avoided=("a", "c")))
        cluster.is_headless = True
        engine.start(make_task("4", avoided=("b", "c")))
        assert engine.wait().place == "a"
        # The actor of c is lost, and there is no other.
        assert engine.has_room(frozenset("bc"))
        engine.start(make_task("5"))
        assert not engine.has_room()
        assert engine.wait().place == "a"
        started = time.monotonic()
        with pytest.raises(SweepStoppedError, match="the head of the Ray cluster is gone"):
            engine.wait()
        assert time.monotonic() - started < 10.0
    # A head that is back in time is none the worse for it.
    monkeypatch.setattr(ray_engine, "HEAD_SECONDS", 5.0)
    cluster = StubCluster(a="late")
    with engine_on(cluster) as engine:
        engine.start(make_task("0"))
        engine.wait()
        engine.start(make_task("1"))
        cluster.is_headless = True
        engine._look_around()
        cluster.is_headless = False
        assert engine.wait().place == "a"
        monkeypatch.setattr(ray_engine, "HEAD_SECONDS", 0.0)
        engine.start(make_task("2"))
        assert engine.wait().place == "a"


def test_whether_the_only_place_is_lost_the_head_has_its_time_to_say(
    engine_on: EngineOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(ray_engine, "HEAD_SECONDS", 20.0)
    cluster = StubCluster(a="late")
    with engine_on(cluster) as engine:
        engine.start(make_task("0"))
        cluster.is_headless = True
        back = threading.Timer(0.5, lambda: setattr(cluster, "is_headless", False))
        back.start()
        assert engine.wait().lost is not None
        assert engine.has_room()
        back.join()
    monkeypatch.setattr(ray_engine, "HEAD_SECONDS", 0.5)
    cluster = StubCluster(a="late")
    with engine_on(cluster) as engine:
        engine.start(make_task("0"))
        cluster.is_headless = True
        started = time.monotonic()
        assert engine.wait().lost is not None
        assert time.monotonic() - started >= 0.5
        assert not engine.has_room()


def test_a_late_actor_is_not_waited_for_in_circles_while_the_head_is_silent(
    engine_on: EngineOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(ray_engine, "HEAD_SECONDS", 1.0)
    cluster = StubCluster(a="taken")
    with engine_on(cluster) as engine:
        engine.start(make_task("0"))
        assert engine.wait().lost is not None
        monkeypatch.setattr(ray_engine, "OPEN_SECONDS", 0.0)
        engine.start(make_task("1"))
        cluster.is_headless = True
        engine._look_around()
        looks = 0
        answers = cluster.answers

        def counted() -> bool:
            nonlocal looks
            looks += 1
            return answers()

        monkeypatch.setattr(cluster, "answers", counted)
        with pytest.raises(SweepStoppedError, match="the head of the Ray cluster is gone"):
            engine.wait()
    assert 1 <= looks <= 15
