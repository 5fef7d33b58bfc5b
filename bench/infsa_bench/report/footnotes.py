"""What a table says below its numbers of the implementations behind them."""

from __future__ import annotations

from collections.abc import Iterable

from infsa_bench.errors import SpecError
from infsa_bench.spec import resolve_mechanisms
from infsa_models.registry import Mechanism


def departures(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return of each mechanism how its `reference` departs from the published code."""
    return [(name, "; ".join(found.departures) or "no departure") for name, found in _known(names).items()]


def tools(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return of each mechanism that has a `fast` how that computes the same."""
    return [(name, "; ".join(found.tools)) for name, found in _known(names).items() if found.tools]


def _known(names: Iterable[str]) -> dict[str, Mechanism]:
    """Return the entries of mechanisms; those of a package that is not installed here are left out."""
    found: dict[str, Mechanism] = {}
    for name in names:
        try:
            found |= resolve_mechanisms([name])
        except SpecError:
            continue
    return found
