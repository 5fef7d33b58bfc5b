"""The nodes of a Ray cluster: each case is a task with one GPU of a node or, without GPUs, with the whole node.

The tasks are those of an actor for each device, not free ones: a worker can then be used again as it is on one machine,
what is known of an energy counter stays with its GPU, and which device a task was on is known even if it never comes
back. Free tasks, each with a worker of its own, took six times as long for a sweep of small cells. The actors hold
their devices until the sweep ends.

This process hands the cases out and is the only one that writes; Ray reserves the devices and carries the texts.
Imports no torch.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from infsa_bench.codec import decode, encode
from infsa_bench.errors import PeaksUnavailableError, SpecError, SweepStoppedError
from infsa_bench.execute.engines import Ended, Task
from infsa_bench.execute.messages import Hello, PeaksMeasured
from infsa_bench.execute.ray_cluster import Cluster, Node, accelerator_types, nodes_with, refuse_several_types
from infsa_bench.execute.ray_station import Answer, Opened, Place, RayStation, order_of
from infsa_bench.peaks import MeasuredPeaks
from infsa_bench.record import EnergyCalibration

OPEN_SECONDS = 240.0
"""How long devices have to become ready; those that others keep busy for longer are left out."""

MAX_LOSSES = 2
"""So many actors of a device may be lost in a row, without an answer between them, before the device itself is."""

CLOSE_SECONDS = 10.0
"""How long workers have to end by themselves, before they are killed."""

LOOK_SECONDS = 5.0
"""So often it is seen, while nothing ends, whether the head of the cluster is still there."""

HEAD_SECONDS = 15.0
"""How long the head may be silent. After 60 s Ray ends this process, and leaves nobody to say how to go on."""


class RayEngine:
    """Runs tasks on the nodes of a cluster that have the device and, if one is named, the accelerator type."""

    def __init__(self, cluster: Cluster, device: str, accelerator: str | None, *, allow_shared: bool = False) -> None:
        """Start a worker on every device of the type ``device``: ``auto``, ``cuda`` or ``cpu``.

        Raises:
            SpecError: there is none, one of them cannot be used, or they are of several accelerator types.
        """
        self._cluster, self._ray = cluster, cluster.ray
        self._accelerator = accelerator
        self._memory_limit_bytes: int | None = None
        self._running: dict[Any, tuple[Task, _RayPlace]] = {}
        self._opening: dict[Any, tuple[Task, _RayPlace, float]] = {}
        self._silent_since: float | None = None
        self._places: list[_RayPlace] = []
        device, nodes = nodes_with(cluster, device)
        self._device = device
        self._alive = frozenset(node.id for node in nodes)
        types = accelerator_types(nodes)
        nodes = [node for node in nodes if accelerator is None or accelerator in node.accelerators]
        if not nodes:
            what = "a GPU" if device == "cuda" else "a core"
            what += "" if accelerator is None else f" of accelerator type {accelerator}"
            there = "" if accelerator is None or not types else f"; there are {', '.join(types)}"
            raise SpecError(f"no node of the Ray cluster has {what} to lend{there}")
        refuse_several_types(nodes, accelerator)
        # As many for every worker, so that no two nodes differ in their threads.
        cores = min(node.cores // node.slots(device) for node in nodes)
        start = _starting(self._ray, num_gpus=1 if device == "cuda" else 0, num_cpus=cores)
        places = [
            _RayPlace(
                node,
                Place(
                    device=device,
                    node=node.name,
                    accelerator=accelerator or min(node.accelerators, default=None),
                    allow_shared=allow_shared,
                    part=part,
                    parts=node.slots(device),
                    cores=cores,
                ),
                start,
            )
            for node in nodes
            for part in range(node.slots(device))
        ]
        try:
            self._places = self._open(places)
        except BaseException:
            self._end(places)
            raise

    @property
    def hello(self) -> Hello:
        """What the worker of the first device said."""
        return self._places[0].hello

    @property
    def hellos(self) -> tuple[Hello, ...]:
        """What the first worker of each device said."""
        return tuple(place.hello for place in self._places)

    @property
    def devices(self) -> str:
        """The type of device: which ones they are, is Ray's to choose."""
        return self._device

    @property
    def available_bytes(self) -> int | None:
        """The least of the host memory that a case could still take on any node."""
        known = [hello.available_bytes for hello in self.hellos if hello.available_bytes is not None]
        return min(known, default=None)

    def describe_places(self) -> str:
        """Return one line: how much the cluster lends, and what each worker has of its node."""
        count, nodes = len(self._places), len({place.node.id for place in self._places})
        threads = self.hello.environment.torch_threads
        line = f"{count} {'GPU' if self._device == 'cuda' else 'processor'}{'' if count == 1 else 's'}"
        line += f" of {nodes} node{'' if nodes == 1 else 's'}"
        line += "" if self._accelerator is None else f" of accelerator type {self._accelerator}"
        return f"{line}; each worker has {threads} thread{'' if threads == 1 else 's'}"

    def check(self, mechanisms: tuple[str, ...]) -> None:
        """Try out ``package.module:Class`` mechanisms on every device; raises as :meth:`Launcher.check`."""
        if mechanisms:
            self._refuse_problems((place, place.actor.check.remote(list(mechanisms))) for place in self._places)

    def limit_memory(self, limit_bytes: int) -> None:
        """Limit the memory of every device; raises as :meth:`Launcher.limit_memory`."""
        self._refuse_problems((place, place.actor.limit_memory.remote(limit_bytes)) for place in self._places)
        self._memory_limit_bytes = limit_bytes

    def measure_peaks(self) -> MeasuredPeaks:
        """Measure what the first device can do, while the others do nothing; raises as Launcher.measure_peaks."""
        try:
            found = decode(PeaksMeasured, self._ray.get(self._places[0].actor.measure_peaks.remote()))
        except self._ray.exceptions.RayError as error:
            raise PeaksUnavailableError(f"the peaks cannot be measured: {_reason(error)}") from None
        if found.peaks is None:
            raise PeaksUnavailableError(found.problem or "the peaks cannot be measured")
        return found.peaks

    def is_shared(self) -> bool:
        """Tell whether another sweep runs on one of the devices just now."""
        try:
            return any(self._ray.get([place.actor.is_shared.remote() for place in self._places]))
        except self._ray.exceptions.RayError:
            return False

    @property
    def places(self) -> int:
        """How many devices are not lost."""
        return len(self._usable())

    def has_room(self, avoided: frozenset[str] = frozenset()) -> bool:
        """Tell whether a device is free; as :meth:`Engine.has_room`."""
        return self._free(avoided) is not None

    def start(self, task: Task) -> None:
        """Begin a task on a free device, which first gets another actor if it has lost its own."""
        place = self._free(task.avoided)
        assert place is not None
        if place.actor is None:
            place.actor = place.start()
            self._opening[place.actor.open.remote()] = (task, place, time.monotonic() + OPEN_SECONDS)
        else:
            self._order(task, place)

    def wait(self) -> Ended:
        """Wait for a task to end; raises as :meth:`Engine.wait`."""
        ended = None
        while ended is None:
            if self._is_headless():
                raise SweepStoppedError(
                    f"the head of the Ray cluster is gone, no answer for {HEAD_SECONDS:.0f} s; what is recorded is "
                    "kept, and the same command goes on with --resume and --out, once there is a cluster again"
                )
            now = time.monotonic()
            # Without the head no place is given up that is late, see _late(): nothing is to be woken for.
            ends = [until for _, _, until in self._opening.values()] if self._silent_since is None else []
            seconds = max(0.0, min([now + LOOK_SECONDS, *ends]) - now)
            ready, _ = self._ray.wait([*self._running, *self._opening], num_returns=1, timeout=seconds)
            if not ready:
                ended = self._late()
            elif ready[0] in self._opening:
                ended = self._opened(ready[0])
            else:
                ended = self._answered(ready[0])
            self._look_around()
        if ended.lost is not None and not self._running and not self._opening:
            # Only the head can give the place another actor: it has its time to answer.
            while self._silent_since is not None and not self._is_headless():
                time.sleep(LOOK_SECONDS / 5)
                self._look_around()
        return ended

    def _is_headless(self) -> bool:
        """Tell whether the head has been silent for too long, and still is."""
        if self._silent_since is None or time.monotonic() - self._silent_since < HEAD_SECONDS:
            return False
        self._look_around()
        return self._silent_since is not None

    def _look_around(self) -> None:
        """See which nodes are alive, if there is a head to tell."""
        begun = time.monotonic()
        if self._cluster.answers():
            self._silent_since = None
            self._alive = frozenset(node.id for node in self._cluster.nodes())
        elif self._silent_since is None:
            self._silent_since = begun

    def _order(self, task: Task, place: _RayPlace) -> None:
        """Have the actor of a place, which is ready, run a task."""
        order = order_of(task, self._memory_limit_bytes)
        self._running[place.actor.run.remote(encode(order))] = (task, place)

    def _answered(self, ref: Any) -> Ended:
        """Return how a task ended."""
        task, place = self._running.pop(ref)
        try:
            answer = decode(Answer, self._ray.get(ref))
        except self._ray.exceptions.RayTaskError:
            # Nothing was lost: the fault is ours.
            raise
        except self._ray.exceptions.RayError as error:
            # If its node lives on, the next task there has another actor.
            self._end([place])
            place.losses += 1
            place.is_lost = place.losses >= MAX_LOSSES
            return _lost(task, place, _reason(error))
        place.losses = 0
        place.is_lost = answer.lost is not None
        return Ended(
            task=task,
            place=place.node.name,
            environment=answer.environment or place.hello.environment,
            seconds=answer.seconds,
            run=answer.run,
            lost=None if answer.lost is None else f"{place.node.name}: {answer.lost}",
            is_shared=answer.is_shared,
        )

    def _opened(self, ref: Any) -> Ended | None:
        """Begin the task that waited for another actor; return its end where there is none to be had."""
        task, place, _ = self._opening.pop(ref)
        try:
            problem = decode(Opened, self._ray.get(ref)).problem
        except self._ray.exceptions.RayError as error:
            problem = _reason(error)
        if problem is None:
            self._order(task, place)
            return None
        return self._given_up(task, place, problem)

    def _late(self) -> Ended | None:
        """Give up the place whose other actor has had its time to become ready; others may hold its device."""
        for ref, (task, place, until) in self._opening.items():
            # Without the head no other actor can be ended.
            if time.monotonic() >= until and self._silent_since is None:
                del self._opening[ref]
                return self._given_up(task, place, f"no other worker was ready within {OPEN_SECONDS:.0f} s")
        return None

    def _given_up(self, task: Task, place: _RayPlace, reason: str) -> Ended:
        self._end([place])
        place.is_lost = True
        return _lost(task, place, reason)

    def calibrate(self) -> list[EnergyCalibration]:
        """Watch each idle device whose energy was measured once more."""
        found = []
        for ref in [place.actor.calibrate.remote() for place in self._usable() if place.actor is not None]:
            # Every case is on disk already.
            with contextlib.suppress(self._ray.exceptions.RayError):
                text = self._ray.get(ref)
                found += [] if text is None else [decode(EnergyCalibration, text)]
        return found

    def _open(self, places: Sequence[_RayPlace]) -> list[_RayPlace]:
        """Return the places that are ready, and say what is wrong with one that is not."""
        refs = {place.actor.open.remote(): place for place in places}
        ready, late = self._ray.wait(list(refs), num_returns=len(refs), timeout=OPEN_SECONDS)
        self._end(refs[ref] for ref in late)
        for ref in ready:
            place = refs[ref]
            try:
                answer = decode(Opened, self._ray.get(ref))
            except self._ray.exceptions.RayError as error:
                raise SpecError(
                    f"{place.node.name} cannot be used: {_reason(error)}; every node needs this very infsa-bench"
                ) from None
            if answer.hello is None:
                raise SpecError(f"{place.node.name}: {answer.problem}")
            place.hello = answer.hello
        found = [place for place in places if hasattr(place, "hello")]
        if not found:
            raise SpecError(f"no device of the Ray cluster was free within {OPEN_SECONDS:.0f} s")
        return found

    def _refuse_problems(self, refs: Iterable[tuple[_RayPlace, Any]]) -> None:
        """Raise the first problem that an actor answers with."""
        for place, ref in list(refs):
            try:
                problem = self._ray.get(ref)
            except self._ray.exceptions.RayError as error:
                problem = _reason(error)
            if problem is not None:
                raise SpecError(f"{place.node.name}: {problem}")

    def _usable(self) -> list[_RayPlace]:
        return [place for place in self._places if not place.is_lost and place.node.id in self._alive]

    def _free(self, avoided: frozenset[str]) -> _RayPlace | None:
        # Without the head there are no other actors.
        usable = [place for place in self._usable() if place.actor is not None or self._silent_since is None]
        usable = [place for place in usable if place.node.name not in avoided] or usable
        busy = {place for _, place in self._running.values()} | {place for _, place, _ in self._opening.values()}
        return next((place for place in usable if place not in busy), None)

    def _end(self, places: Iterable[_RayPlace]) -> None:
        awaited = {place for _, place, _ in self._opening.values()}
        for place in places:
            if place.actor is not None:
                # Of one that is not ready only the head knows, and Ray would wait for that.
                if self._silent_since is None or place not in awaited:
                    # Its worker dies with it.
                    self._ray.kill(place.actor)
                place.actor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._running and not self._opening:
            refs = [place.actor.close.remote() for place in self._usable() if place.actor is not None]
            if refs:
                self._ray.wait(refs, num_returns=len(refs), timeout=CLOSE_SECONDS)
        self._end(self._places)


class _RayPlace:
    """A device of a node, and the actor that has it; None where it was lost. ``losses`` are those in a row."""

    hello: Hello

    def __init__(self, node: Node, place: Place, start: Callable[[Node, str], Any]) -> None:
        self.node = node
        self.is_lost = False
        self.losses = 0
        self.start: Callable[[], Any] = functools.partial(start, node, encode(place))
        self.actor: Any = self.start()


def _lost(task: Task, place: _RayPlace, reason: str) -> Ended:
    return Ended(
        task=task,
        place=place.node.name,
        environment=place.hello.environment,
        seconds=0.0,
        run=None,
        lost=f"{place.node.name}: {reason}",
    )


def _starting(ray: Any, *, num_gpus: int, num_cpus: int) -> Callable[[Node, str], Any]:
    """Return what starts an actor on a node, with so much of it."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # A case that comes to nothing is ours to repeat, and to record.
    actor = ray.remote(num_gpus=num_gpus, num_cpus=num_cpus, max_restarts=0, max_task_retries=0)(RayStation)
    affinity: Any = NodeAffinitySchedulingStrategy

    def start(node: Node, place: str) -> Any:
        strategy = affinity(node_id=node.id, soft=False)
        return actor.options(scheduling_strategy=strategy).remote(place)

    return start


def _reason(error: BaseException) -> str:
    """The first line of what Ray says, which has many, or of what was raised on the node."""
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__
