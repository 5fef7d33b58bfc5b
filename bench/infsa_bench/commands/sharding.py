"""``--shard``: which cases a run has of a larger plan, and whether an earlier run was of the same part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from infsa_bench.commands.options import SweepOptions
from infsa_bench.dealing import deal
from infsa_bench.energy_plan import EnergyPreset
from infsa_bench.errors import EmptyShardError, SpecError
from infsa_bench.shard import Part, Shard
from infsa_bench.spec import Case
from infsa_bench.store import Manifest


def cases_of_part(
    whole: tuple[Case, ...],
    options: SweepOptions,
    device_type: str,
    energy: EnergyPreset | None,
    earlier: Manifest | None,
) -> tuple[Case, ...]:
    """Return the cases of a plan that this very run is to measure: all of them without ``--shard``.

    Raises:
        EmptyShardError: there are none, nor is there an ``earlier`` run of the shard, which had some.
    """
    if options.part is None:
        return whole
    cases = deal(whole, options.part, options.protocol, device_type, energy)
    if not cases and earlier is None:
        raise EmptyShardError(
            f"--shard {options.part} has nothing to do: the plan has too few cells for so many shards"
        )
    return cases


def say_nothing_to_do(console: Console, error: EmptyShardError) -> int:
    """Say that a shard has no cases; return the exit code, that of success: a task of an array job did all it had."""
    console.print(str(error), highlight=False, markup=False, soft_wrap=True)
    return 0


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


def resumed_shard(out: Path, earlier: Manifest, shard: Shard | None, case_ids: Iterable[str]) -> Shard | None:
    """Return the shard of a run to be resumed, replicates that are new among its cases.

    ``case_ids`` are those that it would have by itself.

    Raises:
        SpecError: its plan has other cells, which would have been dealt out otherwise; or the same ones are dealt out
            otherwise than they were: what it measured now would be another shard's as well.
    """
    if earlier.shard is None or shard is None:
        return None
    if _cells(earlier.shard.whole) != _cells(shard.whole):
        raise SpecError(f"{out} holds a shard of a plan of other cells; choose another folder")
    if _cells(earlier.plan) != _cells(case_ids):
        raise SpecError(
            f"{out} holds shard {shard.part} with other cells than it would have now: another version, or another "
            "order of the options, dealt them out. Merge the shards that there are, and go on with the merged run"
        )
    return replace(shard, whole=tuple(dict.fromkeys([*earlier.shard.whole, *shard.whole])))


def _cells(case_ids: Iterable[str]) -> set[str]:
    return {case_id.rpartition("/")[0] for case_id in case_ids}
