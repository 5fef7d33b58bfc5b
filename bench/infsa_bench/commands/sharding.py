"""``--shard``: which cases a run has of a larger plan, and whether an earlier run was of the same part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from infsa_bench.commands.options import SweepOptions
from infsa_bench.dealing import deal
from infsa_bench.energy_plan import EnergyPreset
from infsa_bench.errors import SpecError
from infsa_bench.shard import Part, Shard
from infsa_bench.spec import Case
from infsa_bench.store import Manifest


def cases_of_part(
    whole: tuple[Case, ...], options: SweepOptions, device_type: str, energy: EnergyPreset | None
) -> tuple[Case, ...]:
    """Return the cases of a plan that this very run is to measure: all of them without ``--shard``.

    Raises:
        SpecError: there are none.
    """
    if options.part is None:
        return whole
    cases = deal(whole, options.part, options.protocol, device_type, energy)
    if not cases:
        raise SpecError(f"nothing is left for --shard {options.part}: the plan has too few cells for so many shards")
    return cases


def shard_of(whole: tuple[Case, ...], part: Part | None) -> Shard | None:
    """Return what the manifest says of the part; None for a run by itself."""
    return None if part is None else Shard(part=part, whole=tuple(case.id for case in whole))


def refuse_another_part(out: Path, earlier: Manifest, part: Part | None) -> None:
    """Refuse to go on with a run of another part.

    Raises:
        SpecError: it is one.
    """
    if part != (earlier.shard and earlier.shard.part):
        what = "of a whole plan" if earlier.shard is None else f"of shard {earlier.shard.part}"
        raise SpecError(f"{out} holds a run {what}; go on with the same --shard, or choose another folder")


def resumed_shard(out: Path, earlier: Shard | None, shard: Shard | None) -> Shard | None:
    """Return the shard of a run to be resumed, replicates that are new among its cases.

    Raises:
        SpecError: its plan has other cells: they would have been dealt out otherwise.
    """
    if earlier is None or shard is None:
        return None
    cells, wanted = ({case_id.rpartition("/")[0] for case_id in found.whole} for found in (earlier, shard))
    if cells != wanted:
        raise SpecError(f"{out} holds a shard of a plan of other cells; choose another folder")
    return replace(shard, whole=tuple(dict.fromkeys([*earlier.whole, *shard.whole])))
