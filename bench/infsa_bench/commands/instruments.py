"""``infsa-bench instruments``: what the instruments of this machine see and cost, to be known once."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from infsa_bench.codec import decode
from infsa_bench.commands.options import check_device
from infsa_bench.errors import SchemaError, SweepStoppedError
from infsa_bench.execute.device_lock import DeviceLock
from infsa_bench.execute.launcher import Launcher
from infsa_bench.execute.process import environment_for_python
from infsa_bench.quoting import one_line
from infsa_bench.reference.facts import InstrumentFacts, refuse_folder, write_facts
from infsa_bench.report.instruments import describe_instruments

MOST_SECONDS = 180.0


def instruments(device: str, out: Path | None, console: Console) -> None:
    """Find out and print it, one line each; keep it in ``out``.

    Raises:
        SpecError: the device cannot be used, or ``out`` not be written.
        SweepStoppedError: the process that finds out ended before its time.
    """
    check_device(device)
    if out is not None:
        refuse_folder(out)
    begin = time.monotonic()
    launcher = Launcher(device)
    ready_seconds = time.monotonic() - begin
    environment = launcher.hello.environment
    # It would hold memory on the device, and be seen as a stranger.
    launcher.close()
    with DeviceLock(environment, allow_shared=False):
        facts = replace(_found(environment.device), ready_seconds=ready_seconds)
    if out is not None:
        write_facts(out, facts)
    for name, finding in describe_instruments(facts):
        console.print(f"{name}: {finding}", markup=False, highlight=False, soft_wrap=True)
    if out is not None:
        console.print(f"instruments: {out}", markup=False, highlight=False, soft_wrap=True)


def _found(device: str) -> InstrumentFacts:
    command = [sys.executable, "-P", "-m", "infsa_bench.execute.instrument_facts", device]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment_for_python(), timeout=MOST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise SweepStoppedError(f"the instruments were not known after {MOST_SECONDS:.0f} s") from None
    # Libraries may print what they like before it.
    last = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        return decode(InstrumentFacts, last)
    except SchemaError:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise SweepStoppedError(f"finding out ended before its time: {one_line(said)}") from None
