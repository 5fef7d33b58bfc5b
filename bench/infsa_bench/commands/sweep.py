"""``infsa-bench sweep``: plan, measure, report."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from infsa_bench.analyze.predict import TIMED_PASSES, Predictor
from infsa_bench.commands.fleet import run_on_each, words_for_sweep
from infsa_bench.commands.opening import checked_host_memory, opened_engine, unlike_places
from infsa_bench.commands.options import (
    CLOSING_SECONDS,
    SweepOptions,
    SweepRequest,
    check_options,
    sweep_axes,
    time_budget,
)
from infsa_bench.commands.peaks import measure_before_sweep
from infsa_bench.commands.progress import BarProgress, PlainProgress
from infsa_bench.commands.report import report_run, report_runs
from infsa_bench.commands.resuming import (
    INTERRUPTED,
    earlier_manifest,
    refuse_differences,
    refuse_other_hardware,
    say_how_to_go_on,
)
from infsa_bench.commands.sharding import (
    cases_of_part,
    refuse_another_part,
    resumed_shard,
    say_nothing_to_do,
    shard_of,
)
from infsa_bench.energy_plan import EnergyPreset, energy_preset
from infsa_bench.errors import EmptyShardError, SpecError, SweepStoppedError
from infsa_bench.execute.engines import Engine
from infsa_bench.execute.launcher import Launcher
from infsa_bench.execute.messages import Hello
from infsa_bench.report.describe import describe_memory_limit, describe_shard
from infsa_bench.report.units import format_bytes, format_duration
from infsa_bench.schedule import Crew, Plan, Step, schedule, scheduled_seconds
from infsa_bench.shard import Part, Shard
from infsa_bench.spec import Case
from infsa_bench.store import Manifest, RunWriter, Settings, reports_path
from infsa_bench.sweep import run_plan, utc_now

CasesOf = Callable[[SweepRequest, str, int], tuple[Case, ...]]
"""Returns the cases of a request on a type of device, with so many replicates."""

CALIBRATION_SECONDS = 15.0
"""Share of the time budget kept back, where energy is measured, for looking at the idle device and its counter once
more.
"""


def sweep(request: SweepRequest, console: Console) -> int:
    """Run the sweep that ``request`` asks for and print its report; return the exit code.

    Raises:
        SpecError, SchemaError, RunLockedError, SweepStoppedError: as :func:`measure`.
    """
    if request.per_accelerator:
        return _sweep_fleet(request, console)
    try:
        out = measure(request, console)
    except EmptyShardError as error:
        return say_nothing_to_do(console, error)
    if request.dry_run:
        return 0
    if out is None:
        return INTERRUPTED
    if request.report:
        try:
            report_run(out, console)
        except SpecError as error:
            raise SweepStoppedError(f"all cells are recorded in {out}, but {error}") from error
    console.print(f"records: {out}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _sweep_fleet(request: SweepRequest, console: Console) -> int:
    """Sweep on every accelerator type, and set the reports side by side."""
    out = request.out or _default_out("fleet", check_options(request).part)
    words = request.words if request.out else (*request.words, "--out", str(out))
    code, folders = run_on_each(request, out, words_for_sweep(words), console)
    # A shard for which there were no cells has none.
    folders = [folder for folder in folders if folder.exists()]
    if code == INTERRUPTED:
        say_how_to_go_on(console, request.program, words, out, out)
    elif code == 0 and request.report and not request.dry_run and len(folders) > 1:
        report_runs(folders, reports_path(out), console)
    return code


def cases_of_axes(request: SweepRequest, device_type: str, replicates: int) -> tuple[Case, ...]:
    """Return every case that the axes of ``request`` span."""
    return tuple(sweep_axes(request, device_type, replicates).cases(device_type))


def measure(request: SweepRequest, console: Console, cases_of: CasesOf = cases_of_axes) -> Path | None:
    """Measure the cases that ``cases_of`` returns; return the folder of the run, None if it was interrupted.

    Nothing is written before every option has been checked, the device included.

    Raises:
        SpecError: an option makes no sense, the device cannot be used, or the output folder is taken.
        EmptyShardError: for the shard that is asked for there are no cases.
        SchemaError, RunLockedError: as :class:`~infsa_bench.store.RunWriter`.
        SweepStoppedError: the device or the disk gave up.
    """
    started = time.monotonic()
    if request.per_accelerator:
        raise SpecError("--per-accelerator makes several runs; here one is asked for: name its --accelerator")
    options = check_options(request)
    protocol, energy = options.protocol, options.energy
    earlier = _earlier_run(request, options)
    with opened_engine(request, options, Launcher) as engine:
        hello = engine.hello
        device_type = hello.environment.device_type
        whole = cases_of(request, device_type, protocol.replicates)
        preset = energy_preset(energy, protocol)
        if not whole:
            raise SpecError(f"no cell: of --mechanisms {request.mechanisms} none has --impl {request.impl}")
        cases = cases_of_part(whole, options, device_type, preset, earlier)
        engine.check(tuple(dict.fromkeys(case.mechanism for case in cases if ":" in case.mechanism)))
        if options.memory_limit_bytes is not None:
            engine.limit_memory(options.memory_limit_bytes)
        budget_seconds = time_budget(request, device_type)
        settings = Settings(
            device=engine.devices,
            protocol=protocol,
            seed=request.seed,
            time_budget_seconds=budget_seconds,
            energy=energy,
            memory_limit_bytes=options.memory_limit_bytes,
        )
        watched = None if hello.energy_source is None else preset
        closing_seconds = CLOSING_SECONDS + (CALIBRATION_SECONDS if watched else 0.0)
        plan = Plan(
            cases=cases,
            protocol=protocol,
            deadline=None if budget_seconds is None else started + budget_seconds - closing_seconds,
            host_memory_bytes=checked_host_memory(engine, options.memory_limit_bytes),
            device_memory_bytes=options.memory_limit_bytes or hello.environment.device_memory_bytes,
            # Also where it cannot be watched: every record then says why.
            energy=preset,
            case_timeout_seconds=options.case_timeout_seconds,
            case_budget_seconds=options.case_budget_seconds,
            is_pruned=request.prune,
            retried=options.retried,
        )
        predictor = Predictor(hello.matmul_flops_per_second, passes=TIMED_PASSES[device_type], energy=watched)
        out = request.out or _default_out(device_type, options.part)
        if earlier is not None:
            refuse_other_hardware(out, earlier, hello.environment)
        manifest = _manifest(request, settings, plan.cases, earlier, shard_of(whole, options.part))
        crew = Crew(devices=engine.places)
        if request.dry_run:
            steps = schedule(plan, predictor, plan.cases, crew=crew)
            _announce(console, plan, steps, engine, manifest, out)
            _print_plan(console, plan, steps)
            return out
        with _open(out, manifest) as writer:
            try:
                writer.add_environments(each.environment for each in engine.hellos)
            except OSError as error:
                raise SweepStoppedError(f"cannot write to {out}: {error}") from error
            if writer.torn_bytes:
                console.print(f"dropped a torn last line of {writer.torn_bytes} bytes", highlight=False)
            todo = plan.todo(writer.recorded)
            _announce(
                console,
                plan,
                schedule(plan, predictor, todo, plan.dominance(writer.recorded), crew),
                engine,
                manifest,
                out,
            )
            done = len(plan.cases) - len(todo)
            bar = BarProgress if console.is_terminal else PlainProgress
            try:
                if request.peaks and todo and writer.peaks is None:
                    measure_before_sweep(console, plan, engine, writer)
                with bar(console, len(plan.cases), done) as progress:
                    run_plan(plan, engine, writer, predictor, progress)
            except KeyboardInterrupt:
                say_how_to_go_on(console, request.program, request.words, request.out, out)
                return None
    return out


def _default_out(device_type: str, part: Part | None) -> Path:
    # The tasks of an array job start at the same time.
    which = "" if part is None else f"-shard-{part.index}-of-{part.count}"
    return Path("results") / f"{device_type}-{datetime.datetime.now():%Y%m%d-%H%M%S}{which}"


def _earlier_run(request: SweepRequest, options: SweepOptions) -> Manifest | None:
    """Return the manifest of the run that is to be resumed, or None for a new one.

    Raises:
        SpecError: the output folder is taken, or holds a run that was made with other settings, or the report would
            have no place.
    """
    earlier = earlier_manifest(request.out, request.resume)
    if earlier is None:
        return None
    assert request.out is not None
    if earlier.search is not None:
        raise SpecError(f"{request.out} holds a search of maxres, no sweep; choose another folder")
    asked = replace(
        earlier.settings,
        protocol=options.protocol,
        seed=request.seed,
        energy=options.energy,
        memory_limit_bytes=options.memory_limit_bytes,
    )
    refuse_differences(request.out, earlier.settings.differences(asked))
    refuse_another_part(request.out, earlier, options.part)
    return earlier


def _manifest(
    request: SweepRequest, settings: Settings, cases: Sequence[Case], earlier: Manifest | None, shard: Shard | None
) -> Manifest:
    """Return a new manifest, or that of the run to be resumed with the new cases added to its plan.

    Raises:
        SpecError: the run to be resumed has other settings, or is a shard of other cells, or of a plan of others.
    """
    ids = tuple(case.id for case in cases)
    if earlier is None:
        return Manifest(
            created_utc=utc_now(),
            command=("infsa-bench", *request.words),
            settings=settings,
            plan=ids,
            environments={},
            shard=shard,
        )
    assert request.out is not None
    refuse_differences(request.out, earlier.settings.differences(settings))
    # They can only differ in the number of replicates.
    protocol = max(earlier.settings.protocol, settings.protocol, key=lambda protocol: protocol.replicates)
    return replace(
        earlier,
        settings=replace(earlier.settings, protocol=protocol),
        plan=tuple(dict.fromkeys([*earlier.plan, *ids])),
        shard=resumed_shard(request.out, earlier, shard, ids),
    )


def _open(out: Path, manifest: Manifest) -> RunWriter:
    try:
        return RunWriter(out, manifest)
    except OSError as error:
        raise SpecError(f"cannot write to {out}: {error.strerror or error}") from error


def _announce(
    console: Console, plan: Plan, steps: Sequence[Step], engine: Engine, manifest: Manifest, out: Path
) -> None:
    """Say what is planned, how long it should take and what is measured, before anything is."""
    recorded = len(plan.cases) - len(steps)
    cells = len({case.cell for case in plan.cases})
    line = f"{cells} cell{'' if cells == 1 else 's'} planned"
    line += f", in all {len(plan.cases)} cases" if len(plan.cases) > cells else ""
    line += f", {recorded} of them recorded already" if recorded else ""
    predicted_seconds = scheduled_seconds(steps, engine.places)
    line += f"; predicted {format_duration(predicted_seconds)} from FLOPs alone, corrected as cells finish"
    if plan.deadline is not None:
        line += f"; {format_duration(max(0.0, plan.deadline - time.monotonic()))} of the time budget left for them"
    console.print(line, highlight=False, soft_wrap=True)
    if manifest.shard is not None:
        console.print(describe_shard(manifest.shard), highlight=False, soft_wrap=True)
    replicates = plan.protocol.replicates
    line = f"replicates: {replicates}{', each a pass over all cells in a fresh process' if replicates > 1 else ''}"
    line += f"; energy: {_describe_energy(plan.energy, engine.hello)}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    if engine.places > 1 or engine.hello.environment.node is not None:
        console.print(f"places: {engine.describe_places()}", highlight=False, markup=False, soft_wrap=True)
        for line in unlike_places([hello.environment for hello in engine.hellos]):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    if manifest.settings.memory_limit_bytes is not None:
        line = describe_memory_limit(manifest.settings.memory_limit_bytes)
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"records go to {out}", highlight=False, markup=False, soft_wrap=True)


def _describe_energy(preset: EnergyPreset | None, hello: Hello) -> str:
    if preset is None:
        return "not measured, as asked for"
    if hello.energy_source is None:
        return f"not measured: {hello.no_energy_reason}"
    return f"{preset.name} ({preset.trials} trials of {preset.window_seconds:g} s a cell), by {hello.energy_source}"


def _print_plan(console: Console, plan: Plan, steps: Sequence[Step]) -> None:
    by_case = {step.case: step for step in steps}
    for case in plan.cases:
        step = by_case[case]
        size = "" if step.prediction.peak_bytes is None else f", {format_bytes(step.prediction.peak_bytes)}"
        seconds = step.share.seconds if step.share else step.prediction.seconds
        skipped = "" if step.share else "; would be skipped"
        line = f"{case.id}: {format_duration(seconds)}{size}{skipped}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
