"""How a sweep shows where it is: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import statistics
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from infsa_bench.record import Failure, Fit, Measurement, Record
from infsa_bench.report.units import format_bytes, format_duration, format_seconds
from infsa_bench.spec import Case


def case_name(case: Case) -> str:
    """Return the name of a case's cell, and from the second pass over the plan on which pass it is."""
    return f"{case.cell} (replicate {case.replicate + 1})" if case.replicate else case.cell


def describe_outcome(record: Record) -> str:
    """Return what came of a case, on one line."""
    match record.outcome:
        case Measurement(latencies_seconds=latencies):
            flags = "".join(f" [{flag}]" for flag in record.outcome.flags)
            return f"{format_seconds(statistics.median(latencies))} (median of {len(latencies)}){flags}"
        case Fit(peak_memory_bytes=peak_bytes):
            return "fits" if peak_bytes is None else f"fits, with {format_bytes(peak_bytes)} at the peak"
        case Failure(kind=kind, message=message):
            return f"{kind}: {message}"


class PlainProgress:
    """One line a finished case: for logs, pipes and continuous integration."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        """Count from ``done`` to ``total``."""
        self._console = console
        self._total = total
        self._done = done

    def started(self, case: Case, seconds: float, remaining_seconds: float) -> None:
        """A line is printed once it has ended."""

    def finished(self, record: Record, remaining_seconds: float) -> None:
        """Print the case and what came of it."""
        self._done += 1
        line = f"[{self._done}/{self._total}] {case_name(record.case)}: {describe_outcome(record)}"
        if self._done < self._total:
            line += f"; about {format_duration(remaining_seconds)} to go"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


class BarProgress:
    """A bar with the running case, done/total and the predicted time to go."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        """Count from ``done`` to ``total``."""
        self._progress = Progress(
            TextColumn("{task.fields[cell]}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._console = console
        self._task = self._progress.add_task("sweep", total=total, completed=done, cell="", left="")

    def started(self, case: Case, seconds: float, remaining_seconds: float) -> None:
        """Show the case that runs."""
        left = f"about {format_duration(remaining_seconds)} to go"
        self._progress.update(self._task, cell=case_name(case).removeprefix("infsa/"), left=left)

    def finished(self, record: Record, remaining_seconds: float) -> None:
        """Advance the bar; print above it what came of the case."""
        self._progress.update(self._task, advance=1, left=f"about {format_duration(remaining_seconds)} to go")
        line = f"{case_name(record.case)}: {describe_outcome(record)}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
