"""The command line: parses, calls, prints, sets the exit code; no logic.

Exit codes: 0 done; 1 a check failed; 2 bad input; 5 the sweep had to stop early (device, disk); 130 interrupted; of
comparisons 3 and 4 as well, see cli_regressions.py.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infsa_bench import __version__, cli_reference, cli_regressions, cli_shards
from infsa_bench.cli_options import (
    Accelerator,
    Device,
    Devices,
    DryRun,
    Dtype,
    Energy,
    Engine,
    Execution,
    Impl,
    Options,
    Out,
    PerAccelerator,
    ProtocolName,
    RayAddress,
    Replicates,
    Seed,
    Shard,
)
from infsa_bench.errors import InfsaBenchError, SweepStoppedError

# Wrong options and arguments. Of its usage errors typer names only this subclass under one name in all versions.
UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    add_completion=False,
    invoke_without_command=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure how attention mechanisms scale: latency, throughput and memory against image resolution.",
)


def _program() -> tuple[str, ...]:
    """Return how this program was called, for commands that it tells the user to type."""
    called = Path(sys.argv[0])
    return (sys.executable, "-m", "infsa_bench") if called.name == "__main__.py" else (str(called),)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"infsa-bench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("sweep")
def _sweep(
    res: Annotated[
        str | None,
        typer.Option(help="Image sides: 224,1024 or 224..9216 (steps of the ladder). GPU: 224..9216, CPU: 224..1024."),
    ] = None,
    mechanisms: Annotated[
        str, typer.Option(help="Names, or package.module:Class, with commas; all for every one.")
    ] = "all",
    impl: Impl = None,
    config: Annotated[str | None, typer.Option(help="4L-64H, 24L-16H. GPU: both, CPU: 4L-64H.")] = None,
    phase: Annotated[str, typer.Option(help="infer, train.")] = "infer",
    dtype: Dtype = None,
    batch_size: Annotated[str, typer.Option(help="Images per batch; never changed silently.")] = "1",
    device: Devices = "auto",
    engine: Engine = "local",
    ray_address: RayAddress = None,
    accelerator: Accelerator = None,
    per_accelerator: PerAccelerator = False,
    execution: Execution = "eager",
    option: Options = None,
    protocol: ProtocolName = "quick",
    warmup: Annotated[int | None, typer.Option(help="Exact number of warm-up calls.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Exact number of timed calls.")] = None,
    replicates: Replicates = None,
    energy: Energy = "auto",
    time_budget: Annotated[
        str | None, typer.Option(help="For the whole sweep: 240, 90s, 4m, 2h or none. GPU: none, CPU: 4m.")
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Measure only what the run has no record of.")] = False,
    retry: Annotated[
        str | None, typer.Option(help="With --resume: again what ended so: killed,timeout,crash,skipped,...")
    ] = None,
    cell_timeout: Annotated[
        str | None, typer.Option(help="For each cell and replicate: 60, 5m or none. Default: 20 times the predicted.")
    ] = None,
    cell_budget: Annotated[
        str | None, typer.Option(help="For warming up and timing each cell: 15, 1m. Default: as long as they need.")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(help="Emulate a smaller device: 40GiB, 24GB, a number of bytes.")
    ] = None,
    no_prune: Annotated[
        bool, typer.Option("--no-prune", help="Try sizes above one that ran out of memory, too.")
    ] = False,
    allow_shared: Annotated[
        bool, typer.Option("--allow-shared", help="Measure on a GPU that another sweep is using, flagged.")
    ] = False,
    no_peaks: Annotated[
        bool, typer.Option("--no-peaks", help="Do not measure first what the device can do at its best.")
    ] = False,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Record only; infsa-bench report renders the run later.")
    ] = False,
    shard: Shard = None,
    dry_run: DryRun = False,
) -> None:
    """Measure mechanisms across resolutions; every planned cell ends as one record."""
    from infsa_bench.commands.options import SweepRequest
    from infsa_bench.commands.sweep import sweep

    request = SweepRequest(
        res=res,
        mechanisms=mechanisms,
        impl=impl,
        config=config,
        phase=phase,
        dtype=dtype,
        batch_size=batch_size,
        device=device,
        engine=engine,
        ray_address=ray_address,
        accelerator=accelerator,
        per_accelerator=per_accelerator,
        execution=execution,
        option=tuple(option or ()),
        protocol=protocol,
        warmup=warmup,
        iterations=iterations,
        replicates=replicates,
        energy=energy,
        time_budget=time_budget,
        seed=seed,
        out=out,
        resume=resume,
        retry=retry,
        cell_timeout=cell_timeout,
        cell_budget=cell_budget,
        memory_limit=memory_limit,
        prune=not no_prune,
        peaks=not no_peaks,
        report=not no_report,
        allow_shared=allow_shared,
        shard=shard,
        dry_run=dry_run,
        program=_program(),
        words=tuple(sys.argv[1:]),
    )
    raise typer.Exit(sweep(request, Console()))


@app.command("maxres")
def _maxres(
    mechanism: Annotated[str, typer.Option(help="Names, or package.module:Class, with commas; all for every one.")],
    impl: Impl = None,
    config: Annotated[str, typer.Option(help="4L-64H, 24L-16H.")] = "4L-64H",
    phase: Annotated[str, typer.Option(help="infer (one forward), train (one step).")] = "infer",
    dtype: Dtype = None,
    batch_size: Annotated[str, typer.Option(help="Images per batch.")] = "1",
    execution: Execution = "eager",
    option: Options = None,
    device: Device = "auto",
    memory_limit: Annotated[
        str | None,
        typer.Option(help="Emulate a smaller device: 40GiB, 24GB. Default: none; CPU: 60 % of the free memory."),
    ] = None,
    max_res: Annotated[int, typer.Option(help="Largest image side to try.")] = 9216,
    step: Annotated[int, typer.Option(help="The answer is exact to so many pixels; a multiple of 16.")] = 64,
    cell_timeout: Annotated[str, typer.Option(help="For each probe: 60, 5m.")] = "60",
    seed: Seed = 0,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search in --out.")] = False,
    allow_shared: Annotated[
        bool, typer.Option("--allow-shared", help="Probe on a GPU that another sweep is using.")
    ] = False,
) -> None:
    """Search the largest image that fits, and confirm it; every probe ends as one record."""
    from infsa_bench.commands.maxres import MaxresRequest, maxres

    request = MaxresRequest(
        mechanism=mechanism,
        impl=impl,
        config=config,
        phase=phase,
        dtype=dtype,
        batch_size=batch_size,
        execution=execution,
        option=tuple(option or ()),
        device=device,
        memory_limit=memory_limit,
        max_res=max_res,
        step=step,
        cell_timeout=cell_timeout,
        seed=seed,
        out=out,
        resume=resume,
        allow_shared=allow_shared,
        program=_program(),
        words=tuple(sys.argv[1:]),
    )
    raise typer.Exit(maxres(request, Console()))


@app.command("layers")
def _layers(
    device: Device = "cpu",
    mechanisms: Annotated[str, typer.Option(help="Names with commas; all for every one.")] = "all",
    heads: Annotated[str, typer.Option(help="Numbers of heads of the width of 1024.")] = "64,16",
    tokens: Annotated[str, typer.Option(help="A square grid and a class token each.")] = "197,1025,4097",
    rounds: Annotated[int, typer.Option(help="Calls of either implementation, in turns.")] = 9,
    out: Annotated[Path | None, typer.Option(help="New folder for times and table.")] = None,
) -> None:
    """Time single attention layers, reference beside fast, in one process; on a CPU in ten minutes."""
    from infsa_bench.commands.layers import layers

    layers(device, mechanisms, heads, tokens, rounds, out, Console())


@app.command("table1")
def _table1(
    run: Annotated[str | None, typer.Argument(help="Folder of a run, or paper for the published numbers.")] = None,
    against: Annotated[str, typer.Option(help="What to set it beside: paper, or the folder of another run.")] = "paper",
    form: Annotated[str, typer.Option("--format", help="term, md, csv, tex, json.")] = "term",
    ablation: Annotated[
        bool, typer.Option("--ablation", help="The latency row of the ablation (rho, activation) instead.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure exactly the cells that it needs first, into RUN.")
    ] = False,
    impl: Impl = None,
    phase: Annotated[str, typer.Option(help="infer, train.")] = "infer,train",
    dtype: Dtype = None,
    execution: Execution = "eager",
    device: Devices = "auto",
    engine: Engine = "local",
    ray_address: RayAddress = None,
    accelerator: Accelerator = None,
    per_accelerator: PerAccelerator = False,
    protocol: ProtocolName = "quick",
    replicates: Replicates = None,
    energy: Energy = "auto",
    time_budget: Annotated[
        str | None, typer.Option(help="For all cells: 240, 90s, 4m, 2h or none. GPU: none, CPU: 4m.")
    ] = None,
    memory_limit: Annotated[str | None, typer.Option(help="Emulate a smaller device: 40GiB, 24GB.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Measure only what RUN has no record of.")] = False,
    shard: Shard = None,
    dry_run: DryRun = False,
) -> None:
    """Set the paper's Table 1 beside a run, measured if asked for, with what of it carries over."""
    from infsa_bench.commands.options import SweepRequest
    from infsa_bench.commands.table1 import Table1Request, print_table

    request = SweepRequest(
        impl=impl,
        phase=phase,
        dtype=dtype,
        execution=execution,
        device=device,
        engine=engine,
        ray_address=ray_address,
        accelerator=accelerator,
        per_accelerator=per_accelerator,
        protocol=protocol,
        replicates=replicates,
        energy=energy,
        time_budget=time_budget,
        memory_limit=memory_limit,
        resume=resume,
        shard=shard,
        dry_run=dry_run,
        program=_program(),
        words=tuple(sys.argv[1:]),
    )
    table_request = Table1Request(
        run=run,
        against=against,
        form=form,
        is_ablation=ablation,
        is_measured=measure,
        sweep=request,
    )
    raise typer.Exit(print_table(table_request, Console()))


@app.command("list")
def _list() -> None:
    """Print the mechanisms: complexity, parameters (ours / paper), implementations, departures."""
    from infsa_bench.commands.list import list_mechanisms

    list_mechanisms(Console())


@app.command("report")
def _report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, e.g. results/cpu-20261120-120000.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the report. Default: reports/<run>; several runs need one."),
    ] = None,
) -> None:
    """Render runs again from their records, several side by side; needs no torch."""
    from infsa_bench.commands.report import report_runs

    report_runs(runs, out, Console())


@app.command("doctor")
def _doctor(
    device: Device = "auto",
    selfcheck: Annotated[
        bool, typer.Option("--selfcheck", help="Try the meters out as well; exit 1 if one fails. Takes minutes.")
    ] = False,
) -> None:
    """Say what can be measured on this machine, and why the rest cannot."""
    from infsa_bench.commands.doctor import doctor

    raise typer.Exit(doctor(device, selfcheck, Console()))


@app.command("peaks")
def _peaks(
    device: Device = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder of a run made on this device without them, to store them in.")
    ] = None,
) -> None:
    """Measure matrix products and copying at their best, beside the device's data sheet."""
    from infsa_bench.commands.peaks import peaks

    peaks(device, out, Console())


@app.command("audit")
def _audit(
    path: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Table in CSV, or folder of a run, e.g. results/mine.")
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help="The published table instead.")] = False,
) -> None:
    """Check whether a table of results agrees with itself; exits 1 where it does not."""
    from infsa_bench.commands.audit import audit

    raise typer.Exit(audit(path, paper, Console()))


cli_regressions.register(app)
cli_reference.register(app)
cli_shards.register(app)


def main() -> None:
    """Run the command line; the user's faults become one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        # Names and messages come from anywhere; a terminal that cannot show a character must not end a sweep.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False)
    except UsageError as error:
        _fail(error.format_message(), 2)
    except SweepStoppedError as error:
        _fail(f"stopped early: {error}", 5)
    except InfsaBenchError as error:
        _fail(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    print(f"infsa-bench: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
