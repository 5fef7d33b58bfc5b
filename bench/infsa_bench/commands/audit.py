"""``infsa-bench audit``: whether a table of results agrees with itself."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from rich.console import Console

from infsa_bench.analyze.audit import AuditRow, run_checks
from infsa_bench.analyze.summary import summarize
from infsa_bench.errors import SchemaError, SpecError
from infsa_bench.paper import TABLES, as_printed, published_cells
from infsa_bench.report.table import render_csv
from infsa_bench.spec import PHASES, Phase
from infsa_bench.store import load

# More digits than these are no rounding for print: the number came out of a program as it was.
PRINTED_DIGITS = 11
NUMBER = re.compile(r"[+-]?([0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?", re.ASCII)


def audit(path: Path | None, paper: bool, console: Console) -> int:
    """Print what is inconsistent in the table in ``path``, or in the published one; 1 where something is, else 0.

    Raises:
        SpecError: none or both of the two asked for, no such file, no run, or a table of another layout.
        SchemaError: a table that cannot be read.
    """
    if (path is not None) == paper:
        raise SpecError("give the file or folder of a table, or --paper for the published one; one of the two")
    if path is not None:
        cells = _read(path)
        lines = [f"{path}: {_counted(cells)}"]
    else:
        cells = [cell for name in TABLES for cell in parse_table(as_printed(name), name)]
        lines = [f"published numbers ({', '.join(TABLES)}), none of them ours: {_counted(cells)}"]
    code, findings = _findings([cell for cell in cells if cell is not None])
    lines += findings
    if paper:
        lines.append(f"implied power (energy / latency) of the published numbers: {_implied_power()}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return code


def _findings(rows: Sequence[AuditRow]) -> tuple[int, list[str]]:
    results = run_checks(rows)
    made = {check: result for check, result in results.items() if not isinstance(result, str)}
    findings = [finding for result in made.values() for finding in result]
    faults = sum(finding.severity == "fault" for finding in findings)
    lines = [f"{finding.severity}: {finding.message}" for finding in findings]
    if not made:
        lines.append(f"nothing could be checked in {len(rows)} cells")
    elif not faults:
        lines.append(f"no inconsistency found in {len(rows)} cells (checked: {', '.join(made)})")
    lines += [f"not checked: {check}: {result}" for check, result in results.items() if isinstance(result, str)]
    return min(faults, 1), lines


def _counted(cells: Sequence[AuditRow | None]) -> str:
    rows = [cell for cell in cells if cell is not None]
    counts = [f"{sum(row.phase == phase for row in rows)} {phase}" for phase in PHASES]
    configs = ", ".join(dict.fromkeys(row.config for row in rows))
    left_out = f"; {len(cells) - len(rows)} without a latency left out" if len(cells) > len(rows) else ""
    return f"{len(rows)} cells read ({', '.join(counts)}) of {configs}{left_out}"


def _implied_power() -> str:
    cells = published_cells()
    words = {"train": "in training", "infer": "in inference"}
    watts = {phase: statistics.median(cell.implied_watts for cell in cells if cell.phase == phase) for phase in words}
    return ", ".join(f"{watts[phase]:.0f} W {text}" for phase, text in words.items())


def _read(path: Path) -> list[AuditRow | None]:
    """Return the cells of a CSV file, or of a run by way of the CSV that is reported of it."""
    try:
        if path.is_dir():
            run = load(path)
            if run.manifest.search is not None:
                raise SpecError(f"{path} holds a search of maxres, which measures nothing that could be audited")
            return parse_table(render_csv(summarize(run.records)), str(path))
        if not path.is_file():
            raise SpecError(f"{path} is neither a file nor a run")
        # Spreadsheets begin their UTF-8 with a mark.
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise SchemaError(f"{path} is no CSV: its bytes are not UTF-8 text") from None
    return parse_table(text, str(path))


def parse_table(text: str, source: str) -> list[AuditRow | None]:
    """Return the cells of a table in CSV, None for each without a latency.

    Raises:
        SpecError: an empty table, or columns that are not understood.
        SchemaError: a line or a number that cannot be read.
    """
    lines = _lines(text, source)
    columns = next(lines, None)
    if columns is None:
        raise SpecError(f"{source} is empty")
    read = next((read for needed, read in LAYOUTS.items() if set(needed) <= set(columns.cells)), None)
    if read is None:
        known = "; or ".join(map(", ".join, LAYOUTS))
        raise SpecError(f"{source} has no columns that are understood, which are {known}")
    cells: list[AuditRow | None] = []
    for line in lines:
        try:
            cells += read(line)
        except ValueError as error:
            raise SchemaError(f"{line.where}: {error}") from None
    if not any(cells):
        raise SpecError(f"{source} has no cell with a latency")
    return cells


@dataclass(frozen=True, slots=True, kw_only=True)
class _Number:
    """A number and half a unit of its last printed digit, None where it has all its digits."""

    value: float | None = None
    half_unit: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """One line of a table: its cells by column, and where it is."""

    where: str
    cells: dict[str, str]

    def label(self, *columns: str) -> str:
        return " ".join(self.cells[column] for column in columns if self.cells.get(column))

    def phase(self, column: str) -> Phase:
        for phase in PHASES:
            if self.cells[column] == phase:
                return phase
        raise ValueError(f"{column} {self.cells[column][:60]!r} is neither of {', '.join(PHASES)}")

    def batch_size(self) -> int:
        text = self.cells.get("batch_size", "1")
        if not re.fullmatch("[0-9]{1,9}", text, re.ASCII):
            raise ValueError(f"batch_size {text[:60]!r} is not a whole number")
        return int(text)

    def number(self, column: str, *, exponent: int = 0, is_exact: bool = False) -> _Number:
        """Return the number times ten to the ``exponent``; of an empty or missing cell, none."""
        text = self.cells.get(column, "")
        if not text:
            return _Number()
        if not NUMBER.fullmatch(text):
            raise ValueError(f"{column} {text[:60]!r} is not a number")
        number = Decimal(text).scaleb(exponent)
        _, digits, last = number.as_tuple()
        is_exact = is_exact or len(digits) > PRINTED_DIGITS
        return _Number(value=float(number), half_unit=None if is_exact else float(Decimal(5).scaleb(int(last) - 1)))


def _cell(
    line: _Line, phase: Phase, *, label: str, pair: str, prefix: str = "", is_own: bool = False
) -> AuditRow | None:
    throughput, energy = (
        line.number(f"{prefix}{name}", is_exact=is_own) for name in ("images_per_second", "joules_per_image")
    )
    if is_own:
        latency = line.number("latency_seconds", is_exact=True)
    else:
        latency = line.number(f"{prefix}latency_ms", exponent=-3)
    if latency.value is None:
        return None
    batch_size, window = line.batch_size(), line.number(f"{prefix}window_images_per_second")
    return AuditRow(
        label=label,
        phase=phase,
        pair=pair,
        config=line.cells["config"],
        batch_size=batch_size,
        latency_seconds=latency.value,
        images_per_second=throughput.value,
        joules_per_image=energy.value,
        latency_half_unit_seconds=latency.half_unit,
        images_per_second_half_unit=throughput.half_unit,
        joules_per_image_half_unit=energy.half_unit,
        # Energy and single batches are timed in windows of their own.
        window_seconds=None if not window.value else batch_size / window.value,
        power_limit_watts=line.number("power_limit_watts").value,
        idle_watts=line.number("idle_power_watts").value,
        average_power_watts=line.number(f"{prefix}average_power_watts").value,
        power_capped_fraction=line.number(f"{prefix}power_capped_fraction").value,
    )


def _read_wide(line: _Line) -> list[AuditRow | None]:
    label = line.label("config", "mechanism", "resolution")
    return [_cell(line, phase, label=label, pair=line.where, prefix=f"{phase}_") for phase in PHASES]


def _read_long(line: _Line) -> list[AuditRow | None]:
    label = line.label("config", "mechanism", "resolution")
    return [_cell(line, line.phase("mode"), label=label, pair=f"{label} {line.batch_size()}")]


def _read_own(line: _Line) -> list[AuditRow | None]:
    phase = line.phase("phase")
    if line.cells.get("status", "ok") != "ok":
        return [None]
    label = "/".join(part for part in line.cells["cell"].split("/") if part != phase)
    return [_cell(line, phase, label=label, pair=f"{label} {line.label('environment')}", is_own=True)]


# What a table must have at least, and how a line of it is read.
LAYOUTS: dict[tuple[str, ...], Callable[[_Line], list[AuditRow | None]]] = {
    ("config", "mechanism", "train_latency_ms", "infer_latency_ms"): _read_wide,
    ("config", "mechanism", "mode", "latency_ms"): _read_long,
    ("cell", "config", "phase", "batch_size", "latency_seconds"): _read_own,
}


def _lines(text: str, source: str) -> Iterator[_Line]:
    """Yield the header as a line of its own, then every line that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""))
    columns: list[str] = []
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            where = f"{source}, line {reader.line_num}"
            if not any(cells):
                continue
            columns = columns or cells
            if len(set(columns)) < len(columns):
                raise SchemaError(f"{where}: a column name stands there twice")
            if len(cells) != len(columns):
                raise SchemaError(f"{where}: {len(cells)} cells under {len(columns)} columns")
            yield _Line(where=where, cells=dict(zip(columns, cells, strict=True)))
    except csv.Error as error:
        raise SchemaError(f"{source}, line {reader.line_num}: {error}") from None
