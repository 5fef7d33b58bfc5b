"""``infsa-bench peaks``, and the same before a sweep: what the device can do, beside what its maker states."""

from __future__ import annotations

import math
import time
from pathlib import Path

from rich.console import Console

from infsa_bench.analyze.roofline import data_sheet
from infsa_bench.commands.options import check_device
from infsa_bench.errors import PeaksUnavailableError, SpecError, SweepStoppedError
from infsa_bench.execute.device_lock import DeviceLock
from infsa_bench.execute.engines import Engine
from infsa_bench.execute.launcher import Launcher
from infsa_bench.machine import Environment
from infsa_bench.peaks import PEAKS, MeasuredPeaks
from infsa_bench.report.peaks import describe_peaks, peaks_lines
from infsa_bench.schedule import Plan
from infsa_bench.store import RunWriter, load, load_manifest
from infsa_bench.sweep import writing_to

PEAKS_SECONDS = 10.0
"""What measuring the device's peaks takes on two cores, with the start of the next worker."""

PEAKS_SHARE = 0.1
"""Share of the time left that they may take."""


def peaks(device: str, out: Path | None, console: Console) -> None:
    """Print the rates, and store them in the run ``out``, which has none yet and was measured on this device.

    Raises:
        SpecError: the device cannot be used, or ``out`` is no such run.
        SchemaError, RunLockedError: as :class:`~infsa_bench.store.RunWriter`.
        SweepStoppedError: the worker did not start, or the rates cannot be measured or stored.
    """
    check_device(device)
    if out is not None:
        _check_run(out)
    with Launcher(device) as launcher, DeviceLock(launcher.hello.environment, allow_shared=False):
        environment = launcher.hello.environment
        measured = launcher.measure_peaks() if out is None else _measure_into(out, launcher, environment)
    for line in peaks_lines(measured, data_sheet(environment)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if out is not None:
        line = f"peaks: {out / PEAKS}; infsa-bench report renders the run with them"
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _check_run(out: Path) -> None:
    # All of it: a writer would cut off what is torn.
    run = load(out)
    if run.manifest.search is not None:
        raise SpecError(f"{out} holds a search of maxres, which times nothing")
    if run.peaks is not None:
        raise SpecError(f"{out} has its {PEAKS} already")


def _measure_into(out: Path, launcher: Launcher, environment: Environment) -> MeasuredPeaks:
    manifest = load_manifest(out)
    ours = (environment.device, environment.device_name, environment.device_uuid)
    known = [(found.device, found.device_name, found.device_uuid) for found in manifest.environments.values()]
    if ours not in known:
        raise SpecError(f"{out} was not measured on this device, {environment.device} ({environment.device_name})")
    try:
        # Held meanwhile: a sweep that goes on with the run would be in the way.
        writer = RunWriter(out, manifest)
    except OSError as error:
        raise SpecError(f"cannot write to {out}: {error.strerror or error}") from error
    with writer:
        measured = launcher.measure_peaks()
        try:
            writer.set_peaks(measured)
        except OSError as error:
            raise SweepStoppedError(f"cannot write to {out}: {error}") from error
    return measured


def measure_before_sweep(console: Console, plan: Plan, engine: Engine, writer: RunWriter) -> None:
    """Measure and store what the device can do at its best, or say why not: no case depends on it."""
    left_seconds = math.inf if plan.deadline is None else plan.deadline - time.monotonic()
    if engine.is_shared():
        line = "peaks: not measured: another sweep uses the device"
    elif PEAKS_SHARE * left_seconds < PEAKS_SECONDS:
        line = "peaks: not measured: they would take too much of the time budget"
    else:
        try:
            measured = engine.measure_peaks()
            with writing_to(writer):
                writer.add_environments(hello.environment for hello in engine.hellos)
                writer.set_peaks(measured)
            line = describe_peaks(measured, data_sheet(engine.hello.environment))
        except PeaksUnavailableError as error:
            line = f"peaks: not measured: {error}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
