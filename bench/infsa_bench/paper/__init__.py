"""The published numbers (Roffo et al. 2026, Table 1 and its stress test), as printed; none of them is ours."""

from __future__ import annotations

import csv
from importlib.resources import files


def parameters_millions(mechanism: str, config: str) -> float | None:
    """Return the parameter count of Table 1 in millions, as printed, or None for a mechanism it does not have."""
    with (files(__name__) / "table1.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if row["mechanism"] == mechanism and row["config"] == config:
                return float(row["params_millions"])
    return None
