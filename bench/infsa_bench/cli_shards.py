"""The part of the command line that is about runs made in parts: merge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("merge")(_merge)


def _merge(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs of one plan, e.g. its shards.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for all of them.")],
) -> None:
    """Join runs of one plan into one; refuses what does not go together."""
    from infsa_bench.commands.merge import merge

    merge(runs, out, Console())
