"""The latency row of the paper's ablation of Linear-InfSA beside a run's. Pure functions.

Its claim is that neither rho nor the activation costs measurable time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infsa_bench.analyze.claims import PROPOSED
from infsa_bench.analyze.run import Run
from infsa_bench.analyze.sides import Estimate, precision_pairs
from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.errors import SpecError
from infsa_bench.paper import ABLATION_BATCH_SIZE, ABLATION_CONFIG, ABLATION_RESOLUTION, published_ablation
from infsa_bench.spec import PHASES

DEFAULT = ("activation", "relu")
OTHER = "other"
OTHER_CHOICE = "silu"
"""Ours in the place of the second alternative, which the paper does not name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationCell:
    """The latency of one value in one phase; None where there is none, ``status`` says why."""

    latency_seconds: Estimate | None
    theirs_seconds: float
    status: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationRow:
    """One value of a parameter. ``value`` is ours where the paper names none.

    ``conditions`` are what the rows of one table have in common: implementation, precisions, execution, machine.
    """

    conditions: str
    parameter: str
    value: str
    train: AblationCell
    infer: AblationCell


def ablation(run: Run) -> list[AblationRow]:
    """Return the row of every value that the paper varies, for each implementation of the run.

    Raises:
        SpecError: the run has no cell of the ablation.
    """
    groups: dict[tuple[str, str, str], list[SummaryRow]] = {}
    for row in run.rows:
        if _is_part(row):
            groups.setdefault((row.environment, row.case.implementation, row.case.execution), []).append(row)
    if not groups:
        raise SpecError(f"{run.path} has no cell of the ablation; measure them with: table1 --ablation --measure")
    found = []
    for (environment, implementation, execution), rows in groups.items():
        for pair in precision_pairs(rows):
            precisions = " and ".join(sorted(pair["infer"] | pair["train"]))
            conditions = f"{implementation}, {precisions}, {execution}"
            if len({key for key, _, _ in groups}) > 1:
                conditions += f", {run.manifest.environments[environment].device_name}"
            found += _rows(conditions, [row for row in rows if row.case.precision in pair[row.case.phase]])
    return found


def _rows(conditions: str, measured: Sequence[SummaryRow]) -> list[AblationRow]:
    """Return a row for each value that the paper varies."""
    cells = {(row.case.options, row.case.phase): row for row in measured}
    found = []
    for published in published_ablation():
        value = OTHER_CHOICE if published.value == OTHER else published.value
        options = () if (published.parameter, value) == DEFAULT else ((published.parameter, value),)
        train, infer = (cells.get((options, phase)) for phase in reversed(PHASES))
        found.append(
            AblationRow(
                conditions=conditions,
                parameter=published.parameter,
                value=value,
                train=_cell(train, published.train_latency_seconds),
                infer=_cell(infer, published.infer_latency_seconds),
            )
        )
    return found


def spreads(rows: Sequence[AblationRow], phase: str) -> tuple[float | None, float]:
    """Return the largest over the smallest latency of one table, ours (None without two) and the paper's."""
    cells = [row.train if phase == "train" else row.infer for row in rows]
    ours = [cell.latency_seconds.value for cell in cells if cell.latency_seconds is not None]
    theirs = [cell.theirs_seconds for cell in cells]
    return (max(ours) / min(ours) if len(ours) > 1 else None), max(theirs) / min(theirs)


def _is_part(row: SummaryRow) -> bool:
    case = row.case
    model = (case.mechanism, case.config, case.resolution, case.batch_size)
    return model == (PROPOSED, ABLATION_CONFIG, ABLATION_RESOLUTION, ABLATION_BATCH_SIZE)


def _cell(row: SummaryRow | None, theirs_seconds: float) -> AblationCell:
    if row is None:
        return AblationCell(
            latency_seconds=None, theirs_seconds=theirs_seconds, status="absent", reason="not in this run"
        )
    latency = row.latency_seconds
    estimate = (
        None if latency is None else Estimate(value=latency, low=row.latency_low_seconds, high=row.latency_high_seconds)
    )
    return AblationCell(latency_seconds=estimate, theirs_seconds=theirs_seconds, status=row.status, reason=row.reason)
