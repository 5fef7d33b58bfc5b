"""The published numbers (Roffo et al. 2026, Table 1 and its stress test), as printed; none of them is ours."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

TABLES = ("table1.csv", "stress_test.csv")
TABLE_RESOLUTION = 1024
"""Image side of Table 1, pixels; the stress test names its own."""

ABLATION_TABLE = "ablation.csv"
ABLATION_CONFIG = "4L-64H"
ABLATION_RESOLUTION = 224
ABLATION_BATCH_SIZE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedCell:
    """One cell of a published table, in SI units.

    It is marked as what it is, so that it stands beside a measurement and never in place of one: ``kind`` says where
    the numbers are from, ``energy_kind`` that the energies follow from latency by a power that was not measured.
    """

    config: str
    mechanism: str
    phase: Literal["infer", "train"]
    resolution: int
    latency_seconds: float
    images_per_second: float
    joules_per_image: float
    batch_size: int = 1
    kind: Literal["paper"] = "paper"
    energy_kind: Literal["assumed_constant_power"] = "assumed_constant_power"

    @property
    def implied_watts(self) -> float:
        """Energy of a batch over its latency."""
        return self.joules_per_image * self.batch_size / self.latency_seconds


def as_printed(name: str) -> str:
    """Return one of :data:`TABLES` as CSV, every number with the digits that the paper prints."""
    return (files(__name__) / name).read_text(encoding="utf-8")


def published_cells() -> tuple[PublishedCell, ...]:
    """Return every cell of both tables: Table 1, of each row training before inference, then the stress test."""
    cells: list[PublishedCell] = []
    for row in _rows("table1.csv"):
        cells.append(_cell(row, "train", TABLE_RESOLUTION, prefix="train_"))
        cells.append(_cell(row, "infer", TABLE_RESOLUTION, prefix="infer_"))
    for row in _rows("stress_test.csv"):
        cells.append(_cell(row, "train" if row["mode"] == "train" else "infer", int(row["resolution"])))
    return tuple(cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedAblation:
    """One cell of the paper's ablation of Linear-InfSA, in SI units; it names no more than two of its activations."""

    parameter: str
    value: str
    train_latency_seconds: float
    infer_latency_seconds: float


def published_ablation() -> tuple[PublishedAblation, ...]:
    """Return the latency row of the ablation: Linear-InfSA, 4L-64H, 224 x 224, 64 images a batch."""
    return tuple(
        PublishedAblation(
            parameter=row["parameter"],
            value=row["value"],
            train_latency_seconds=float(f"{row['train_latency_ms']}e-3"),
            infer_latency_seconds=float(f"{row['infer_latency_ms']}e-3"),
        )
        for row in _rows(ABLATION_TABLE)
    )


def parameters_millions(mechanism: str, config: str) -> float | None:
    """Return the parameter count of Table 1 in millions, as printed, or None for a mechanism it does not have."""
    for row in _rows("table1.csv"):
        if row["mechanism"] == mechanism and row["config"] == config:
            return float(row["params_millions"])
    return None


def max_resolution(mechanism: str, config: str) -> int | None:
    """Return the largest image side of Table 1 that did not run out of memory, or None as above."""
    for row in _rows("table1.csv"):
        if row["mechanism"] == mechanism and row["config"] == config:
            return int(row["max_resolution"])
    return None


def _rows(name: str) -> Iterator[dict[str, str]]:
    return csv.DictReader(as_printed(name).splitlines())


def _cell(
    row: Mapping[str, str], phase: Literal["infer", "train"], resolution: int, *, prefix: str = ""
) -> PublishedCell:
    return PublishedCell(
        config=row["config"],
        mechanism=row["mechanism"],
        phase=phase,
        resolution=resolution,
        latency_seconds=float(f"{row[f'{prefix}latency_ms']}e-3"),
        images_per_second=float(row[f"{prefix}images_per_second"]),
        joules_per_image=float(row[f"{prefix}joules_per_image"]),
    )
