"""``infsa-bench merge``: runs of one plan, e.g. the shards of an array job, become one run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from infsa_bench.commands.table1_words import with_run
from infsa_bench.errors import SpecError
from infsa_bench.merging import Merged, merge_runs
from infsa_bench.store import load_manifest

OF_ONE_SHARD = ("--shard", "--out", "--resume")
"""Options that say which shard a run is and where it lies, not what is measured."""


def merge(paths: Sequence[Path], out: Path, console: Console) -> None:
    """Join the runs in ``paths`` into ``out``; say what came of it, and how to go on where something is missing.

    Raises:
        SpecError, SchemaError, RunLockedError: as :func:`~infsa_bench.merging.merge_runs`.
    """
    command = whole_command(load_manifest(paths[0]).command, out)
    try:
        merged = merge_runs(paths, out, command)
    except OSError as error:
        raise SpecError(f"cannot write to {out}: {error.strerror or error}") from error
    for line in describe_merged(merged, len(paths), out):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def whole_command(command: Sequence[str], out: Path) -> tuple[str, ...]:
    """Return the command that would have measured all shards in one run in ``out``, from that of one of them."""
    kept: list[str] = []
    words = iter(command)
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in OF_ONE_SHARD:
            kept.append(word)
        elif name != "--resume" and not equals:
            next(words, None)
    if "table1" in kept[1:2]:
        return (*kept[:2], *with_run(kept[2:], out))
    return (*kept, "--out", str(out))


def describe_merged(merged: Merged, runs: int, out: Path) -> list[str]:
    """Return what came of a merge, a line each."""
    planned = len(merged.manifest.plan)
    environments = len(merged.manifest.environments)
    line = f"{runs} run{'' if runs == 1 else 's'} merged: {merged.recorded} of {planned} cases are recorded"
    line += f", in {environments} environments, which no row of a table mixes" if environments > 1 else ""
    line += f"; {merged.repeated} records were in several runs, and the same" if merged.repeated else ""
    lines = [line]
    if merged.traces or merged.missing_traces:
        line = f"power traces: {merged.traces} came along"
        missing = f"; {merged.missing_traces} are missing: energy was measured, but its trace was not in the run"
        lines.append(line + (missing if merged.missing_traces else ""))
    if merged.missing_shards:
        lines.append(f"missing: shard{'' if len(merged.missing_shards) == 1 else 's'} {_listed(merged.missing_shards)}")
    if merged.recorded < planned:
        again = shlex.join([*merged.manifest.command, "--resume"])
        lines.append(f"{planned - merged.recorded} cases have no record. To measure them here: {again}")
    return [*lines, f"records: {out}"]


def _listed(parts: Sequence[object]) -> str:
    most = 10
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return ", ".join(map(str, parts[:most])) + more
