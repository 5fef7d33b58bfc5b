"""The claims of Table 1 as grids and lines of text, and by which rules they are judged."""

from __future__ import annotations

from infsa_bench.analyze.claims import MIN_TAU, PAPER_MEMORY_BYTES, RATIO_TOLERANCE, Claim, Shown
from infsa_bench.analyze.scaling import ASYMPTOTIC_TOKENS, FORMULA_TOLERANCE, TOLERANCE
from infsa_bench.analyze.sides import Estimate
from infsa_bench.analyze.table1 import Table1
from infsa_bench.report.grid import Grid
from infsa_bench.report.units import format_bytes, significant

EXPONENT_COLUMNS = ("mechanism", "model", "claimed", "exponent", "95 % interval", "verdict", "sizes and remarks")


def claims_grid(table: Table1) -> Grid:
    """Return the claims with both sides' numbers and the verdict, exponents left out."""
    rows = tuple(
        (claim_words(claim), claim.config, _shown(claim.theirs), _shown(claim.ours), claim.verdict, claim.remark)
        for claim in table.claims
        if claim.kind != "exponent"
    )
    columns = (
        "claim",
        "model",
        table.theirs.title,
        f"{table.ours.title}, {table.ours.implementation}",
        "verdict",
        "remark",
    )
    return Grid(title="Claims", columns=columns, rows=rows, left=frozenset(columns))


def exponents_grid(table: Table1, *, is_short: bool = False) -> Grid:
    """Return how the latency of every mechanism grows with its tokens, beside what its complexity states.

    In short only those that were measured.
    """
    rows = []
    for claim in table.claims:
        if claim.kind != "exponent" or (is_short and claim.ours is None):
            continue
        found = None if claim.ours is None else claim.ours.estimate
        interval = "" if found is None or found.low is None else interval_ends(found)
        exponent = "-" if found is None else f"{found.value:.2f}"
        rows.append(
            (claim.mechanism, claim.config, _shown(claim.theirs), exponent, interval, claim.verdict, claim.remark)
        )
    return Grid(
        title="Exponent of the tokens with which the latency of inference grows",
        columns=EXPONENT_COLUMNS,
        rows=tuple(rows),
        left=frozenset({"mechanism", "model", "verdict", "sizes and remarks"}),
    )


def claim_lines(table: Table1) -> list[str]:
    """Return the claims a line each, for where a table of sentences has no room."""
    return [
        f"{claim.verdict}: {claim.config}: {claim_words(claim)}: {table.theirs.title} {_shown(claim.theirs)}; "
        f"ours {_shown(claim.ours)}" + (f" ({claim.remark})" if claim.remark else "")
        for claim in table.claims
        if claim.kind != "exponent"
    ]


def describe_claims() -> list[str]:
    """Return by which rules the verdicts were reached."""
    return [
        f"A ratio is reproduced if its interval comes within {100 * RATIO_TOLERANCE:g} % of theirs; an order if "
        f"Kendall's tau is {MIN_TAU:g} or more; a set of mechanisms if it is the same, all nine being known",
        f"An exponent is reproduced if its interval comes within {TOLERANCE:g} of the claimed one and tells 1 from 2; "
        f"the range is too short where it ends below {ASYMPTOTIC_TOKENS:,} tokens, or where the FLOPs by formula grow "
        f"with an exponent more than {FORMULA_TOLERANCE:g} off",
        f"Within {format_bytes(PAPER_MEMORY_BYTES)}: under that limit, emulated, or by what the process held on a "
        "larger device",
    ]


def claim_words(claim: Claim) -> str:
    """Return what a claim states, in plain words."""
    return {
        "speedup": f"{claim.mechanism} is so many times faster than softmax, inference at 1024 x 1024",
        "rank order": "order of the mechanisms in inference at 1024 x 1024, fastest first"
        + ("" if claim.tau is None else f" (Kendall's tau {claim.tau:.2f})"),
        "completes": "complete inference at 9216 x 9216",
        "completes in 40 GiB": "complete inference at 9216 x 9216 within 40 GiB",
        "slower in inference": "take longer to infer than to train at 1024 x 1024",
        "exponent": f"the latency of {claim.mechanism} grows with its tokens to a power of",
        "energy": f"softmax over {claim.mechanism}: ratio of J/image over ratio of latencies",
    }[claim.kind]


def interval_ends(estimate: Estimate) -> str:
    """Return both ends of an interval."""
    assert estimate.low is not None
    assert estimate.high is not None
    return f"{significant(estimate.low)} .. {significant(estimate.high)}"


def _shown(shown: Shown | None) -> str:
    if shown is None:
        return "-"
    if shown.names is not None:
        return ", ".join(shown.names) or "none"
    assert shown.estimate is not None
    found = shown.estimate
    return significant(found.value) + ("" if found.low is None else f" ({interval_ends(found)})")
