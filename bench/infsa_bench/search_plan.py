"""What a run of ``maxres`` has in the place of a plan: which models are searched, and among which sizes."""

from __future__ import annotations

from dataclasses import dataclass

from infsa_bench.spec import MAX_RESOLUTION, Case
from infsa_models.registry import PATCH_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A search for the largest resolution that fits, in the place of a plan: what is probed follows from the records.

    ``models`` are cases of any resolution, one for each search; the grid is the multiples of ``step`` from
    ``smallest`` to ``largest``, in pixels. A probe has ``timeout_seconds``; ``available_bytes`` is the memory from
    which limits were predicted.
    """

    models: tuple[Case, ...]
    smallest: int
    largest: int
    step: int
    timeout_seconds: float
    available_bytes: int

    def __post_init__(self) -> None:
        """Refuse a grid that no model has, or none at all."""
        if self.step < 1 or self.step % PATCH_SIZE or not 1 <= self.smallest <= self.largest <= MAX_RESOLUTION:
            raise ValueError(f"a search goes in multiples of {PATCH_SIZE} pixels up to {MAX_RESOLUTION}")
        if self.largest // self.step < -(-self.smallest // self.step):
            raise ValueError("a search has at least one size")
        if self.timeout_seconds <= 0 or self.available_bytes <= 0:
            raise ValueError("a search has time and memory")
