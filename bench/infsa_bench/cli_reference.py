"""The part of the command line that is about reference runs: reference-run, instruments, unpack, results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("reference-run")(_reference_run)
    app.command("instruments")(_instruments)
    app.command("unpack")(_unpack)
    app.command("results")(_results)


def _reference_run(
    device: Annotated[str, typer.Option(help="cuda:N; cpu rehearses in small.")] = "cuda:0",
    stage: Annotated[
        str | None, typer.Option(help="Names with commas. Default: probe,table1-4l,table1-24l,ladder.")
    ] = None,
    deadline: Annotated[str, typer.Option(help="For all of it: 24 (minutes), 540s, 9m, 1.5h.")] = "24",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run, gone on with if it exists. Default: results/gpu-...")
    ] = None,
    parts: Annotated[
        Path | None, typer.Option(help="Folder for the packed files. Default: parts in the run's.")
    ] = None,
    commit: Annotated[
        str | None, typer.Option(help="The commit of this code, where its repository is not here: git rev-parse HEAD.")
    ] = None,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Every stage in small, on any device.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print every step as one would type it.")] = False,
) -> None:
    """Measure what is worth knowing of a GPU, the best of it first, until a deadline; goes on where it stopped."""
    from infsa_bench.commands.reference_run import ReferenceRequest, reference_run

    request = ReferenceRequest(
        device=device,
        stage=stage,
        deadline=deadline,
        out=out,
        parts=parts,
        commit=commit,
        is_rehearsal=rehearse,
        is_dry_run=dry_run,
    )
    raise typer.Exit(reference_run(request, Console()))


def _instruments(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:N.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="File to keep it in: results/mine/instruments.json.")] = None,
) -> None:
    """Say what this machine's instruments see and cost: sensor, counter, events, a fresh process; a minute on a GPU."""
    from infsa_bench.commands.instruments import instruments

    instruments(device, out, Console())


def _unpack(
    parts: Annotated[Path, typer.Argument(help="Folder with the packed files of a reference run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: results/h100-20261126.")],
) -> None:
    """Lay down a reference run that came in parts, and render it beside results, in reports; needs no torch."""
    from infsa_bench.commands.unpack import unpack_run

    unpack_run(parts, out, Console())


def _results(
    folder: Annotated[Path, typer.Argument(help="Folder of all results.")] = Path("results"),
) -> None:
    """Write README.md of a folder of results: every stage measured, or not measured."""
    from infsa_bench.commands.results import results

    results(folder, Console())
