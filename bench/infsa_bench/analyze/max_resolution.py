"""Records of a search to the largest resolution that fits. Pure functions; nothing is probed here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from infsa_bench.analyze.dominance import resolution_family
from infsa_bench.analyze.predict import predict_limit
from infsa_bench.analyze.resolution_search import Probe, ProbeOutcome, SearchResult, SearchSpace, search_result
from infsa_bench.record import MEMORY_KINDS, Failure, Fit, Outcome, Record
from infsa_bench.search_plan import Search
from infsa_bench.spec import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxResolutionRow:
    """What is known of the largest resolution of one model.

    Attributes:
        model: its case, at the largest resolution that fits, or the smallest of the grid where none does.
        result: of the search.
        predicted: where the formulas expected the limit; None for a mechanism without any.
        peak_memory_bytes: at the largest resolution that fits, largest of its probes; None where that is unknown.
        failure: the first one at the smallest resolution that failed; None where none did.
        is_by_design: the model cannot run at any size, which ``failure`` explains.
        shared_probes: number of probes made while another sweep ran on the device, which may have held its memory.
        probes: number of probes, those that confirm included.
        seconds: time that the probes took, those that confirm included.
    """

    model: Case
    environment: str | None
    result: SearchResult
    predicted: int | None
    peak_memory_bytes: int | None
    failure: Failure | None
    is_by_design: bool
    shared_probes: int
    probes: int
    seconds: float


def search_space(search: Search, model: Case) -> SearchSpace:
    """Return the grid of a search, with the limit that the formulas predict for ``model``.

    Raises:
        SpecError: no resolution in it.
    """
    space = SearchSpace(smallest=search.smallest, largest=search.largest, step=search.step)
    return replace(space, predicted=predict_limit(model, space.resolutions, search.available_bytes))


def probes_of(model: Case, records: Iterable[Record]) -> list[Record]:
    """Return the records of one search, in the order in which they were made."""
    family = resolution_family(model)
    return [record for record in records if resolution_family(record.case) == family]


def probe_of(record: Record) -> Probe:
    """Return what a record says in the terms of the search."""
    peak_bytes = record.outcome.peak_memory_bytes if isinstance(record.outcome, Fit) else None
    return Probe(resolution=record.case.resolution, outcome=_outcome(record), peak_bytes=peak_bytes)


def _outcome(record: Record) -> ProbeOutcome:
    match record.outcome:
        case Failure(kind=kind) if kind in MEMORY_KINDS:
            return "memory"
        case Failure(kind="timeout"):
            return "time"
        case Failure(cause="index_limit" | "launch_limit"):
            return "index"
        case Failure():
            return "other"
    return "ok"


def is_by_design(outcome: Outcome) -> bool:
    """Tell whether a model cannot run at any size: nothing was built to find that out."""
    return isinstance(outcome, Failure) and outcome.kind == "unsupported" and outcome.cause is None


def summarize_search(search: Search, records: Sequence[Record]) -> list[MaxResolutionRow]:
    """Return one row a model, in the order of the search; of one that was not probed yet, too."""
    return [_row(search, model, probes_of(model, records)) for model in search.models]


def _row(search: Search, model: Case, records: Sequence[Record]) -> MaxResolutionRow:
    space = search_space(search, model)
    result = search_result(space, [probe_of(record) for record in records])
    peaks = [
        record.outcome.peak_memory_bytes
        for record in records
        if isinstance(record.outcome, Fit)
        and record.case.resolution == result.largest_ok
        and record.outcome.peak_memory_bytes is not None
    ]
    failures = [
        record.outcome
        for record in records
        if isinstance(record.outcome, Failure)
        and (record.case.resolution == result.smallest_failing or is_by_design(record.outcome))
    ]
    return MaxResolutionRow(
        model=replace(model, resolution=result.largest_ok or space.resolutions[0]),
        environment=records[0].environment if records else None,
        result=result,
        predicted=space.predicted,
        peak_memory_bytes=max(peaks, default=None),
        failure=failures[0] if failures else None,
        is_by_design=any(is_by_design(record.outcome) for record in records),
        shared_probes=sum("shared" in record.outcome.flags for record in records),
        probes=len(records),
        seconds=sum(record.seconds for record in records),
    )
