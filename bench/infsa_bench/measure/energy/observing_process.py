"""An observer in a process of its own: a thread would take the interpreter's lock from the launches of the load.

Run as ``python -m infsa_bench.measure.energy.observing_process UUID WORKER_PID``; started by ProcessObserver only.
Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass

from infsa_bench.codec import decode, encode
from infsa_bench.errors import MeterUnavailableError
from infsa_bench.measure.energy.clock import Clock, MonotonicClock
from infsa_bench.measure.energy.observer import (
    NEVER_NS,
    POLL_NS,
    PROCESS_CHECK_NS,
    DirectObserver,
    Edge,
    Sample,
)
from infsa_bench.measure.nvml import Gpu

START_SECONDS = 30.0
END_SECONDS = 1.0
PIPE_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The counter or the GPU does not answer."""

    reason: str
    detail: str


class ProcessObserver:
    """A :class:`DirectObserver` in a process of its own."""

    def __init__(self, gpu: Gpu, clock: Clock) -> None:
        """Start it and wait until it has found the GPU.

        Raises:
            MeterUnavailableError: it did not start (``observer_lost``), or NVML fails there.
        """
        self._clock = clock
        self._pending = b""
        self._samples: list[Sample] = []
        self._trace_ns = 0
        self._edges: deque[Edge] = deque()
        self._armed_ns = 0
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "infsa_bench.measure.energy.observing_process",
                    gpu.facts.uuid,
                    str(os.getpid()),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # What is found while the worker is busy elsewhere waits here: half a minute of it at the least.
                pipesize=PIPE_BYTES,
            )
        except OSError as error:
            detail = f"the process that watches the energy counter did not start: {error}"
            raise MeterUnavailableError("observer_lost", detail) from None
        try:
            self._receive_until(b"ready", START_SECONDS)
        except MeterUnavailableError:
            self.close()
            raise

    @property
    def due_ns(self) -> int:
        """When :meth:`edge` should be called next: the other process reads, here is only a look at its answers."""
        return self._clock.now_ns() + POLL_NS

    def arm(self, from_ns: int, *, every: bool = False) -> None:
        """Look for the first update after that moment, or for every one."""
        self._edges.clear()
        self._armed_ns = from_ns
        self._send(f"{'every' if every else 'arm'} {from_ns}")

    def edge(self) -> Edge | None:
        """Return the earliest update that was found since, each once.

        Raises:
            MeterUnavailableError: the counter, or the observing process, is gone.
        """
        self._receive(0.0)
        return self._edges.popleft() if self._edges else None

    def start_trace(self, period_seconds: float) -> None:
        """Sample power, clock, temperature and what throttles, once a period."""
        self._samples = []
        self._trace_ns = self._clock.now_ns()
        self._send(f"trace {period_seconds}")

    def stop_trace(self) -> tuple[Sample, ...]:
        """Return the samples since :meth:`start_trace`, the last one taken now."""
        self._send("stop")
        self._receive_until(b"stopped", START_SECONDS)
        return tuple(self._samples)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # It ends with its standard input, unless it hangs in the driver, where it might outlive a kill for a while.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        for _ in range(2):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
                break
            self._process.kill()
        self._process.stdout.close()

    def _send(self, command: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._lost() from None

    def _receive_until(self, word: bytes, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while word not in self._receive(max(0.0, deadline - time.monotonic())):
            if time.monotonic() >= deadline:
                raise self._lost()

    def _receive(self, seconds: float) -> list[bytes]:
        """Wait for words for so long, then take in all there is; return the lines that are no edges or samples."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        words: list[bytes] = []
        while select.select([pipe], [], [], seconds)[0]:
            seconds = 0.0
            chunk = os.read(pipe, 2**16)
            if not chunk:
                raise self._lost()
            *lines, self._pending = (self._pending + chunk).split(b"\n")
            for line in lines:
                name, _, body = line.partition(b" ")
                if name == b"sample":
                    # Of an earlier trace that nobody stopped, or of the last arm(), some may still be on their way.
                    sample = decode(Sample, body)
                    if sample.ns >= self._trace_ns:
                        self._samples.append(sample)
                elif name == b"edge":
                    edge = decode(Edge, body)
                    if edge.after_ns >= self._armed_ns:
                        self._edges.append(edge)
                elif name == b"lost":
                    lost = decode(Lost, body)
                    raise MeterUnavailableError(lost.reason, lost.detail)
                else:
                    words.append(line)
        return words

    def _lost(self) -> MeterUnavailableError:
        state = "does not answer" if self._process.poll() is None else f"ended with {self._process.returncode}"
        return MeterUnavailableError("observer_lost", f"the process that watches the energy counter {state}")


def main() -> None:
    """Watch the GPU named on the command line until standard input ends."""
    uuid, worker_pid = sys.argv[1], int(sys.argv[2])
    # Nobody is left to tell once the worker is gone.
    with contextlib.suppress(BrokenPipeError):
        try:
            observer = DirectObserver(Gpu.find(uuid, None), MonotonicClock(), worker_pid)
        except MeterUnavailableError as error:
            _say(f"lost {encode(Lost(reason=error.reason, detail=error.detail))}")
            return
        _say("ready")
        _serve(observer, worker_pid)


def _serve(observer: DirectObserver, worker_pid: int) -> None:
    clock = MonotonicClock()
    pending = b""
    # A fork of the worker may hold standard input open after the worker's death.
    while os.getppid() == worker_pid:
        wait_ns = max(0, min(observer.due_ns - clock.now_ns(), PROCESS_CHECK_NS))
        if select.select([0], [], [], wait_ns / 1e9)[0]:
            chunk = os.read(0, 4096)
            if not chunk:
                return
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                _obey(observer, line.decode())
        try:
            edge = observer.edge()
        except MeterUnavailableError as error:
            # Power may still be told: go on.
            observer.arm(NEVER_NS)
            _say(f"lost {encode(Lost(reason=error.reason, detail=error.detail))}")
            continue
        if edge is not None:
            _say(f"edge {encode(edge)}")
        for sample in observer.take_samples():
            _say(f"sample {encode(sample)}")


def _obey(observer: DirectObserver, command: str) -> None:
    name, _, argument = command.partition(" ")
    if name in ("arm", "every"):
        observer.arm(int(argument), every=name == "every")
    elif name == "trace":
        observer.start_trace(float(argument))
    elif name == "stop":
        for sample in observer.stop_trace():
            _say(f"sample {encode(sample)}")
        _say("stopped")


def _say(line: str) -> None:
    # Not through sys.stdout: what could not be written would be tried again, loudly, at the interpreter's end.
    os.write(1, line.encode() + b"\n")


if __name__ == "__main__":
    main()
