"""A build of infsa-bench whose worker measures nothing: ``python fake_build.py sweep ...`` is a real sweep otherwise.

``FAKE_TIMES`` in the environment says how many times longer than the usual 0.5 s its iterations take, with half a
percent of noise between processes; ``FAKE_MECHANISM`` names the mechanism that this is about, all if it is not there;
``FAKE_OOM`` names one that runs out of memory, ``FAKE_UNKNOWN`` one that this build does not have.
"""

from __future__ import annotations

import dataclasses
import os
import random
import sys

import fake_worker

from infsa_bench.execute.launcher import Launcher
from infsa_bench.execute.messages import Finished, ProbeCommand, RunCommand
from infsa_bench.execute.process import Abandonment
from infsa_bench.record import Failure


def command(device: str, message_fd: int, parent_pid: int) -> list[str]:
    return [sys.executable, __file__, "worker", device, str(message_fd), str(parent_pid)]


def behave(run: ProbeCommand | RunCommand, message_fd: int, default: str) -> Finished:
    mechanism = run.case.mechanism
    if os.environ.get("FAKE_OOM") == mechanism:
        outcome = Failure(kind="oom", stage="build", message="out of memory", cause="allocation")
        return Finished(outcome=outcome, reusable=False, trace=(), calibration=None)
    concerned = os.environ.get("FAKE_MECHANISM", mechanism) == mechanism
    factor = float(os.environ.get("FAKE_TIMES", "1")) if concerned else 1.0
    times = (0.5 * factor * random.gauss(1.0, 0.005),) * 3
    measurement = dataclasses.replace(
        fake_worker.MEASUREMENT,
        latencies_seconds=times,
        seconds_per_iteration=times,
        memory_source="cuda_allocator",
        peak_memory_bytes=2**30,
    )
    return Finished(outcome=measurement, reusable=True, trace=(), calibration=None)


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        del sys.argv[1]
        fake_worker.behave = behave
        fake_worker.main()
    else:
        import infsa_bench.commands.sweep
        from infsa_models.registry import MECHANISMS

        MECHANISMS.pop(os.environ.get("FAKE_UNKNOWN", ""), None)  # type: ignore[attr-defined]
        from infsa_bench.cli import main

        def start_launcher(device: str, *, abandonment: Abandonment | None = None) -> Launcher:
            return Launcher(device, command, abandonment)

        infsa_bench.commands.sweep.Launcher = start_launcher  # type: ignore[assignment, misc]
        # Nobody looks at the reports of these, and drawing takes longer than all the rest.
        infsa_bench.commands.sweep.report_run = lambda path, console: ()
        main()
