"""The paper's Table 1 and its stress test with two sides beside each other. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

from infsa_bench.analyze.claims import Claim, claims, ratio
from infsa_bench.analyze.run import Run
from infsa_bench.analyze.scaling import claimed_exponent
from infsa_bench.analyze.sides import ABSENT, CellKey, Estimate, Side, SideCell, paper_side, sides_of
from infsa_bench.errors import SpecError
from infsa_bench.paper import TABLE_RESOLUTION, published_cells
from infsa_bench.spec import PHASES
from infsa_models.registry import CONFIGS, MECHANISMS

CLOSE = 1.5
"""Linear mechanisms that are less than so many times apart may owe their order to the effort spent on kernels."""

TABLE_CELLS: tuple[CellKey, ...] = tuple(
    (config, mechanism, phase, TABLE_RESOLUTION) for config in CONFIGS for phase in PHASES for mechanism in MECHANISMS
)
STRESS_CELLS: tuple[CellKey, ...] = tuple(
    (cell.config, cell.mechanism, cell.phase, cell.resolution)
    for cell in published_cells()
    if cell.resolution != TABLE_RESOLUTION
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One cell of the table on both sides.

    Attributes:
        difference: what makes absolute numbers of the two say nothing about each other, e.g. ``other hardware``; empty
            where GPU model and precision are the same.
        latency_ratio: ours over theirs; so are the following. None where either side has none.
        energy_ratio: of two energies of one kind only: one that was assumed is never compared with a measured one.
        is_close: whether another linear mechanism of the same table is less than 1.5 times faster or slower on our
            side, so that effort spent on kernels may decide which is first.
    """

    config: str
    mechanism: str
    phase: str
    resolution: int
    ours: SideCell
    theirs: SideCell
    difference: str
    latency_ratio: Estimate | None
    throughput_ratio: float | None
    energy_ratio: Estimate | None
    is_close: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Table1:
    """Two sides, row by row, and the claims that carry over to other hardware."""

    ours: Side
    theirs: Side
    rows: tuple[Row, ...]
    stress_rows: tuple[Row, ...]
    claims: tuple[Claim, ...]


def table1(ours: Side, theirs: Side) -> Table1:
    """Return the table of ``ours`` against ``theirs``."""
    return Table1(
        ours=ours,
        theirs=theirs,
        rows=tuple(_row(key, ours, theirs) for key in TABLE_CELLS),
        stress_rows=tuple(_row(key, ours, theirs) for key in STRESS_CELLS),
        claims=tuple(claims(ours, theirs)),
    )


def tables_beside_paper(run: Run) -> list[Table1]:
    """Return a table for each side of a run that has any cell of it, against the paper; none for other runs."""
    try:
        sides = sides_of(run)
    except SpecError:
        return []
    paper = paper_side()
    tables = [table1(side, paper) for side in sides]
    return [table for table in tables if any(row.ours.status != ABSENT for row in (*table.rows, *table.stress_rows))]


def _row(key: CellKey, ours: Side, theirs: Side) -> Row:
    config, mechanism, phase, resolution = key
    mine, other = ours.cell(*key), theirs.cell(*key)
    is_same_kind = (mine.energy_kind == "assumed") == (other.energy_kind == "assumed")
    return Row(
        config=config,
        mechanism=mechanism,
        phase=phase,
        resolution=resolution,
        ours=mine,
        theirs=other,
        difference=_difference(ours, mine, theirs, other),
        latency_ratio=_ratio(mine.latency_seconds, other.latency_seconds),
        throughput_ratio=(
            mine.images_per_second / other.images_per_second
            if mine.images_per_second is not None and other.images_per_second is not None
            else None
        ),
        energy_ratio=_ratio(mine.joules_per_image, other.joules_per_image) if is_same_kind else None,
        is_close=_is_close(key, ours),
    )


def _ratio(mine: Estimate | None, other: Estimate | None) -> Estimate | None:
    return None if mine is None or other is None else ratio(mine, other)


def _difference(ours: Side, mine: SideCell, theirs: Side, other: SideCell) -> str:
    if mine.latency_seconds is None or other.latency_seconds is None:
        return ""
    is_published = ours.is_paper or theirs.is_paper
    pairs = {
        "hardware": _is_same_device(ours, theirs),
        "precision": mine.precision == other.precision,
        # How the paper's code was run is not known so closely.
        "implementation": is_published or ours.implementation == theirs.implementation,
        "execution": is_published or ours.execution == theirs.execution,
        "memory limit": is_published or ours.emulated_memory_bytes == theirs.emulated_memory_bytes,
    }
    found = [name for name, is_same in pairs.items() if not is_same]
    return f"other {' and '.join(found)}" if found else ""


def _is_same_device(ours: Side, theirs: Side) -> bool:
    """Tell whether two sides are of one GPU model. The paper says A100 40 GB, but not which of its two variants."""
    if ours.is_paper != theirs.is_paper:
        measured = theirs if ours.is_paper else ours
        return measured.device in ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB")
    return ours.device == theirs.device


def _is_close(key: CellKey, side: Side) -> bool:
    config, mechanism, phase, resolution = key
    own = side.cell(*key).latency_seconds
    if own is None or claimed_exponent(mechanism) != 1:
        return False
    others = [
        side.cell(config, name, phase, resolution).latency_seconds
        for name in MECHANISMS
        if name != mechanism and claimed_exponent(name) == 1
    ]
    return any(other is not None and 1 / CLOSE < other.value / own.value < CLOSE for other in others)
