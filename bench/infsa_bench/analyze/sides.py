"""One side of a table like the paper's: its own published numbers, or a run under one implementation. Pure functions.

Both have the same form, so that either can stand on either side, and say of every number whether it was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from infsa_bench.analyze.run import Run
from infsa_bench.analyze.scaling import Scaling, scaling
from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.errors import SpecError
from infsa_bench.paper import max_resolution, parameters_millions, published_cells
from infsa_bench.spec import PAPER_PRECISION, PHASES
from infsa_models.registry import CONFIGS, FUSED, MECHANISMS

PAPER_DEVICE = "NVIDIA A100 40 GB"
PAPER_IMPLEMENTATION = "as published"
ABSENT = "absent"

EnergyKind = Literal["measured", "measured_low_confidence", "not_measured", "assumed"]
CellKey = tuple[str, str, str, int]
"""Config, mechanism, phase, resolution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number, and both ends of its 95 % interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SideCell:
    """What one side says of one cell, of one image a batch.

    Attributes:
        status: ``ok``, a kind of failure, or ``absent`` where the side has no such cell.
        reason: why there is no number; empty for ``ok``.
        energy_kind: ``assumed`` is a latency times a power that nobody measured.
        energy_reason: why it is not simply measured; None where it is.
        average_power_watts: as measured; None where it was not.
        device_memory_bytes: the most that is known to have been held: NVML's number for the process, else the
            allocator's reserve, else its peak.
        kernels: what its mixing step ran on, e.g. ``vendor kernel (flash)``.
    """

    status: str
    reason: str = ""
    precision: str = ""
    latency_seconds: Estimate | None = None
    images_per_second: float | None = None
    joules_per_image: Estimate | None = None
    energy_kind: EnergyKind = "not_measured"
    energy_reason: str | None = None
    average_power_watts: float | None = None
    device_memory_bytes: int | None = None
    processes: int | None = None
    kernels: str = ""
    flags: tuple[str, ...] = ()

    @property
    def implied_watts(self) -> float | None:
        """Joules of an image over its latency: the power that the two numbers together state."""
        if self.joules_per_image is None or self.latency_seconds is None:
            return None
        return self.joules_per_image.value / self.latency_seconds.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """The largest resolution that a model was inferred at, and what became of the next larger one that was tried."""

    resolution: int | None
    next_resolution: int | None = None
    next_status: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Everything that one side has for the table.

    Attributes:
        title: ``paper``, or the name of a run.
        is_paper: whether its numbers are the published ones.
        precisions: those of inference and of training, as far as there are any.
        emulated_memory_bytes: as of the run; None for none.
        device_memory_bytes: of the device; None where it is not known exactly.
        cells: what it has, by config, mechanism, phase and resolution; :meth:`cell` fills in what it has not.
        parameters: at 224 x 224, by config and mechanism; published ones are rounded to 100,000.
        scaling: exponents of its series in inference, by config and mechanism.
    """

    title: str
    is_paper: bool = False
    device: str
    implementation: str
    execution: str
    precisions: tuple[str, ...]
    emulated_memory_bytes: int | None
    device_memory_bytes: int | None
    cells: Mapping[CellKey, SideCell]
    parameters: Mapping[tuple[str, str], int]
    reach: Mapping[tuple[str, str], Reach]
    scaling: Mapping[tuple[str, str], Scaling]

    @property
    def available_bytes(self) -> int | None:
        """The memory that its models had: emulated, or the device's."""
        return self.device_memory_bytes if self.emulated_memory_bytes is None else self.emulated_memory_bytes

    def cell(self, config: str, mechanism: str, phase: str, resolution: int) -> SideCell:
        """Return what it says of a cell."""
        reason = "not in the paper" if self.is_paper else "not in this run"
        return self.cells.get((config, mechanism, phase, resolution), SideCell(status=ABSENT, reason=reason))


def paper_side() -> Side:
    """Return the published numbers."""
    models = [(config, mechanism) for config in CONFIGS for mechanism in MECHANISMS]
    parameters = {model: parameters_millions(model[1], model[0]) for model in models}
    reach = {model: max_resolution(model[1], model[0]) for model in models}
    return Side(
        title="paper",
        is_paper=True,
        device=PAPER_DEVICE,
        implementation=PAPER_IMPLEMENTATION,
        execution="eager",
        precisions=(PAPER_PRECISION,),
        emulated_memory_bytes=None,
        device_memory_bytes=None,
        cells={
            (cell.config, cell.mechanism, cell.phase, cell.resolution): SideCell(
                status="ok",
                precision=PAPER_PRECISION,
                latency_seconds=Estimate(value=cell.latency_seconds),
                images_per_second=cell.images_per_second,
                joules_per_image=Estimate(value=cell.joules_per_image),
                energy_kind="assumed",
                energy_reason="latency times a constant power",
            )
            for cell in published_cells()
        },
        parameters={model: round(1e6 * count) for model, count in parameters.items() if count is not None},
        reach={model: Reach(resolution=side) for model, side in reach.items() if side is not None},
        scaling={},
    )


def sides_of(run: Run) -> list[Side]:
    """Return the sides of a run: one for each implementation, execution and environment, and pair of precisions.

    Only cells of one image a batch without options count: those are what the table is of.

    Raises:
        SpecError: the run has none.
    """
    groups: dict[tuple[str, str, str], list[SummaryRow]] = {}
    for row in run.rows:
        if row.case.batch_size == 1 and not row.case.options and row.case.mechanism in MECHANISMS:
            groups.setdefault((row.environment, row.case.implementation, row.case.execution), []).append(row)
    if not groups:
        raise SpecError(f"{run.path} has no cell of the nine mechanisms, with one image a batch and no options")
    return [
        _side(run, environment, [row for row in rows if row.case.precision in pair[row.case.phase]])
        for (environment, _, _), rows in groups.items()
        for pair in precision_pairs(rows)
    ]


def precision_pairs(rows: Sequence[SummaryRow]) -> list[dict[str, set[str]]]:
    """Return by phase the precisions that belong together: autocast trains what is inferred in its half precision."""
    infer, train = (
        list(dict.fromkeys(str(row.case.precision) for row in rows if row.case.phase == phase)) for phase in PHASES
    )
    pairs: list[dict[str, set[str]]] = []
    for precision in infer:
        partner = next((name for name in (precision, f"amp-{precision}") if name in train), None)
        if partner is not None:
            train.remove(partner)
        pairs.append({"infer": {precision}, "train": set() if partner is None else {partner}})
    return pairs + [{"infer": set(), "train": {name}} for name in train]


def _side(run: Run, environment: str, rows: Sequence[SummaryRow]) -> Side:
    case = rows[0].case
    inferred = [row for row in rows if row.case.phase == "infer"]
    series = [found for found in scaling(inferred) if found.environment == environment]
    return Side(
        title=run.name,
        device=run.manifest.environments[environment].device_name,
        device_memory_bytes=run.manifest.environments[environment].device_memory_bytes,
        implementation=case.implementation,
        execution=case.execution,
        precisions=tuple(dict.fromkeys(row.case.precision for row in rows)),
        emulated_memory_bytes=rows[0].emulated_memory_bytes,
        cells={(row.case.config, row.case.mechanism, row.case.phase, row.case.resolution): _cell(row) for row in rows},
        parameters={
            (row.case.config, row.case.mechanism): row.base_parameters
            for row in rows
            if row.base_parameters is not None
        },
        reach=_reaches(inferred),
        scaling={(found.case.config, found.case.mechanism): found for found in series},
    )


def _cell(row: SummaryRow) -> SideCell:
    held = (row.nvml_process_bytes, row.peak_reserved_bytes, row.peak_memory_bytes)
    return SideCell(
        status=row.status,
        reason=row.reason,
        precision=row.case.precision,
        latency_seconds=_estimate(row.latency_seconds, row.latency_low_seconds, row.latency_high_seconds),
        images_per_second=row.images_per_second,
        joules_per_image=_estimate(row.joules_per_image, row.joules_per_image_low, row.joules_per_image_high),
        energy_kind=row.energy_status or "not_measured",
        energy_reason=row.energy_reason,
        average_power_watts=row.average_power_watts,
        device_memory_bytes=next((size for size in held if size is not None), None),
        processes=row.processes,
        kernels=_kernels(row),
        flags=row.flags,
    )


def _estimate(value: float | None, low: float | None, high: float | None) -> Estimate | None:
    return None if value is None else Estimate(value=value, low=low, high=high)


def _kernels(row: SummaryRow) -> str:
    """Return what the mixing step ran on: who wrote its kernel decides part of every difference."""
    if row.status != "ok":
        return ""
    chosen = dict(row.choices or ())
    if "kernel" in chosen:
        kernels = f"hand-written kernel ({chosen['kernel']})"
    elif chosen.get("backend", "math") != "math":
        kernels = f"vendor kernel ({chosen['backend']})"
    elif (
        "backend" not in chosen and row.case.implementation == "fast" and FUSED in MECHANISMS[row.case.mechanism].tools
    ):
        kernels = "vendor kernel"
    else:
        kernels = "PyTorch operators"
    words = {"compile": ", compiled", "cuda-graph": ", CUDA graph"}
    return kernels + words.get(row.case.execution, "")


def _reaches(rows: Iterable[SummaryRow]) -> dict[tuple[str, str], Reach]:
    models: dict[tuple[str, str], list[SummaryRow]] = {}
    for row in rows:
        models.setdefault((row.case.config, row.case.mechanism), []).append(row)
    return {model: _reach(tried) for model, tried in models.items()}


def _reach(rows: Sequence[SummaryRow]) -> Reach:
    ordered = sorted(rows, key=lambda row: row.case.resolution)
    largest = max((row.case.resolution for row in ordered if row.status == "ok"), default=None)
    beyond = next((row for row in ordered if row.case.resolution > (largest or 0)), None)
    if beyond is None:
        return Reach(resolution=largest)
    return Reach(resolution=largest, next_resolution=beyond.case.resolution, next_status=beyond.status)
