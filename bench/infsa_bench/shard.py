"""One of several parts of a plan, each run by itself: an array job on a cluster, a machine of a fleet."""

from __future__ import annotations

import re
from dataclasses import dataclass

from infsa_bench.errors import SpecError

MAX_SHARDS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The ``index``-th of ``count`` parts, counted from zero."""

    index: int
    count: int

    def __post_init__(self) -> None:
        """Refuse a part that none of them is."""
        if not 0 <= self.index < self.count <= MAX_SHARDS:
            raise ValueError(f"a part is one of at most {MAX_SHARDS}, counted from zero")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What a run is a part of; ``whole`` holds the case ids of the plan that was dealt out."""

    part: Part
    whole: tuple[str, ...]


def parse_part(text: str) -> Part:
    """Parse ``i/n``, counted from zero.

    Raises:
        SpecError: anything else.
    """
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None:
        raise SpecError(f"--shard {text!r} is no shard: write i/n, e.g. 0/4 for the first of four")
    index, count = int(found[1]), int(found[2])
    if not 1 <= count <= MAX_SHARDS:
        raise SpecError(f"--shard {text}: there may be 1 to {MAX_SHARDS} shards")
    if index >= count:
        raise SpecError(f"--shard {text}: shards count from zero, the last of {count} is {count - 1}/{count}")
    return Part(index=index, count=count)
