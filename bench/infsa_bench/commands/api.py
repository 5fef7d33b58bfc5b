"""What Python programs, notebooks among them, call in the place of the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from infsa_bench.analyze.run import Run, load_run
from infsa_bench.commands.options import SweepRequest
from infsa_bench.commands.sweep import measure

LISTS = frozenset({"res", "mechanisms", "impl", "config", "phase", "dtype", "batch_size", "device", "execution"})
"""Options that take several values: on the command line with commas between them."""


def run_sweep(*, out: str | Path | None = None, is_quiet: bool = False, **options: Any) -> Run:
    """Measure as ``infsa-bench sweep`` does, in processes of their own, and return the run.

    Args:
        out: folder of the run; by default ``results/<device>-<time>``.
        is_quiet: whether to print nothing; otherwise progress goes to the standard error.
        options: those of the command line, by name: ``res="224..1024"``, ``mechanisms="softmax,infsa-linear"``,
            ``impl``, ``config``, ``phase``, ``dtype``, ``batch_size``, ``device``, ``engine``, ``ray_address``,
            ``accelerator``, ``execution``, ``option`` (a list of ``NAME=VALUE``), ``protocol``, ``warmup``,
            ``iterations``, ``replicates``, ``energy``, ``time_budget``, ``seed``, ``resume``, ``retry``,
            ``cell_timeout``, ``cell_budget``, ``memory_limit``, ``prune``, ``peaks``, ``allow_shared``, ``shard``.
            Where several values are possible a list will do: ``res=[224, 512]``.

    Raises:
        TypeError: an option that does not exist.
        SpecError: an option that makes no sense, a device that cannot be used, or a folder that is taken.
        SweepStoppedError: the device or the disk gave up; what is recorded is kept, and ``resume=True`` goes on.
        KeyboardInterrupt: interrupted; likewise.
    """
    typed = {name: _typed(name, value) for name, value in options.items()}
    words = ["sweep", *(word for name, value in typed.items() for word in _words(name, value))]
    words += [] if out is None else [f"--out={out}"]
    request = SweepRequest(**typed, out=None if out is None else Path(out), words=tuple(words))
    console = Console(file=sys.stderr, quiet=is_quiet)
    measured = measure(request, console)
    if measured is None:
        raise KeyboardInterrupt
    return load_run(measured)


def _words(name: str, value: Any) -> list[str]:
    """Return what one would type for an option; the manifest keeps it, for who wants to do the same again."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        # The command line has only the unusual one of the two.
        unusual = {"prune": "--no-prune", "peaks": "--no-peaks", "report": "--no-report"}
        return [unusual.get(name, flag)] if value != (name in unusual) else []
    values = value if isinstance(value, tuple) else () if value is None else (value,)
    return [f"{flag}={each}" for each in values]


def _typed(name: str, value: Any) -> Any:
    """Return an option as the command line has it."""
    if name == "option":
        return (value,) if isinstance(value, str) else tuple(value)
    if name not in LISTS or value is None:
        return value
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ",".join(map(str, value))
    return str(value)
