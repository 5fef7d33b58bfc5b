"""What the sweeps of a reference run recorded: several stages may write to one folder, each cells of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from infsa_bench.record import Failure, Record
from infsa_bench.reference.stages import Step
from infsa_bench.spec import Case, parse_resolutions
from infsa_bench.store import MANIFEST, load

MEASURED = "measured"

AXES: Mapping[str, Callable[[Case], str]] = {
    "--mechanisms": lambda case: case.mechanism,
    "--impl": lambda case: case.implementation,
    "--config": lambda case: case.config,
    "--phase": lambda case: case.phase,
    "--execution": lambda case: case.execution,
}
SWEEP_DEFAULTS = {"--phase": "infer", "--execution": "eager"}


def recorded_cells(folder: Path, step: Step) -> dict[str, str]:
    """Return what became of every cell that a step has recorded: measured, or the kind of its first failure.

    Raises:
        SpecError, SchemaError: the records cannot be read.
    """
    if step.run is None or not (folder / step.run / MANIFEST).is_file():
        return {}
    cells: dict[str, str] = {}
    for record in load(folder / step.run).records:
        if is_of(step, record.case) and cells.get(record.case.cell, MEASURED) == MEASURED:
            cells[record.case.cell] = _fate(record)
    return cells


def is_of(step: Step, case: Case) -> bool:
    """Tell whether a step asks for a case, by the options of its command line."""
    words = step.words
    asked = {option: words[index + 1] for index, option in enumerate(words[:-1]) if option.startswith("--")}
    if words[0] == "sweep":
        asked = {**SWEEP_DEFAULTS, **asked}
    if "--res" in asked and case.resolution not in parse_resolutions(asked["--res"]):
        return False
    return all(axis(case) in asked[option].split(",") for option, axis in AXES.items() if option in asked)


def describe_cells(cells: Mapping[str, str]) -> str:
    """Return how many cells were measured, and what became of the others: ``14 of 18 cells; 4 unsupported``."""
    counts = Counter(cells.values())
    count = counts.pop(MEASURED, 0)
    others = "".join(f"; {count} {kind}" for kind, count in sorted(counts.items()))
    return f"{count} of {len(cells)} cell{'' if len(cells) == 1 else 's'}{others}"


def _fate(record: Record) -> str:
    return record.outcome.kind if isinstance(record.outcome, Failure) else MEASURED
