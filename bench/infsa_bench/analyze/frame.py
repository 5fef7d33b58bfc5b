"""Summary rows as a tidy table of pandas: one line a cell, SI units in the names of the columns."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence

import pandas as pd

from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.quoting import one_line
from infsa_bench.spec import Case

WHOLE_NUMBERS = (
    "processes",
    "timed_iterations",
    "emulated_memory_bytes",
    "base_parameters",
    "parameters",
    "model_bytes",
    "peak_memory_bytes",
    "peak_reserved_bytes",
    "nvml_process_bytes",
    "matmul_flops",
    "elementwise_flops",
    "operator_bytes",
    "energy_trials",
    "temperature_low_celsius",
    "temperature_high_celsius",
)

# Once: reading annotations compiles them.
FLOATS = tuple(name for name, kind in typing.get_type_hints(SummaryRow).items() if kind == float | None)


def to_frame(rows: Sequence[SummaryRow]) -> pd.DataFrame:
    """Return one line a cell: the axes of its case, then the fields of :class:`SummaryRow`.

    What there is no number for is missing, never zero; whole numbers have the dtype ``Int64``.
    """
    case_fields = [field.name for field in dataclasses.fields(Case) if field.name not in ("options", "replicate")]
    row_fields = [field.name for field in dataclasses.fields(SummaryRow) if field.name not in ("case", "flags")]
    records = [
        {"cell": row.case.cell}
        | {name: getattr(row.case, name) for name in case_fields}
        | {"options": ",".join(f"{key}={value}" for key, value in row.case.options), "tokens": row.case.tokens}
        | {name: getattr(row, name) for name in row_fields}
        | {"flags": " ".join(row.flags), "stage_seconds": _stages(row), "choices": _choices(row)}
        for row in rows
    ]
    records = [
        {name: one_line(value) if isinstance(value, str) else value for name, value in record.items()}
        for record in records
    ]
    columns = ["cell", *case_fields, "options", "tokens", *row_fields, "flags"]
    frame = pd.DataFrame(records, columns=columns)
    for name in FLOATS:
        # Where no cell has such a number, too.
        frame[name] = frame[name].astype("float64")
    for name in WHOLE_NUMBERS:
        # Nullable integers: a column with a failed cell would turn into floats otherwise, and lose digits.
        frame[name] = pd.array([getattr(row, name) for row in rows], dtype="Int64")
    return frame


def _choices(row: SummaryRow) -> str | None:
    return None if row.choices is None else ",".join(f"{key}={value}" for key, value in row.choices)


def _stages(row: SummaryRow) -> str | None:
    if row.stage_seconds is None:
        return None
    return " ".join(f"{stage}={seconds:.3f}" for stage, seconds in row.stage_seconds)
