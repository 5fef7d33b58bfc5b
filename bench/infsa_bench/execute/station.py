"""A device with its launcher and its lock, where cases run one after the other: the same under every engine."""

from __future__ import annotations

import contextlib
import time
from types import TracebackType
from typing import Protocol as Interface
from typing import Self

from infsa_bench.errors import SweepStoppedError
from infsa_bench.execute.device_lock import DeviceLock
from infsa_bench.execute.engines import Ended, Task
from infsa_bench.execute.launcher import CaseRun, Launcher
from infsa_bench.execute.process import Abandonment


class StartLauncher(Interface):
    """Makes the launcher of a device, as the class does."""

    def __call__(self, device: str, *, abandonment: Abandonment | None = None) -> Launcher: ...  # noqa: D102


class Station:
    """Runs tasks on one device, each replicate beginning with a fresh worker, for as long as the device is not lost.

    Attributes:
        launcher: of the device.
        lock: of the device.
    """

    def __init__(
        self,
        device: str,
        start_launcher: StartLauncher,
        *,
        allow_shared: bool,
        abandonment: Abandonment | None = None,
    ) -> None:
        """Start the first worker and take the lock; raises as both do. ``abandonment`` is the launcher's."""
        self._replicate: int | None = None
        with contextlib.ExitStack() as opened:
            self.launcher = opened.enter_context(start_launcher(device, abandonment=abandonment))
            self.lock = opened.enter_context(DeviceLock(self.launcher.hello.environment, allow_shared=allow_shared))
            self._opened = opened.pop_all()

    def run(self, task: Task) -> Ended:
        """Run a task to its end, or to that of the device."""
        started = time.monotonic()
        run: CaseRun | None = None
        lost: Exception | None = None
        was_shared = self.lock.is_shared()
        try:
            if task.case.replicate != self._replicate:
                self.launcher.renew()
                self._replicate = task.case.replicate
            run = self.launcher.run(
                task.case, task.protocol, task.patience, limit_seconds=task.limit_seconds, energy=task.energy
            )
            lost = run.stopped
        except (SweepStoppedError, OSError) as error:
            lost = error
        environment = self.launcher.hello.environment
        return Ended(
            task=task,
            place=environment.device,
            environment=environment,
            seconds=time.monotonic() - started,
            run=run,
            lost=None if lost is None else str(lost),
            is_shared=was_shared or self.lock.is_shared(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened.close()
