"""Runs in short, as GitHub-flavoured Markdown for a pull request; the page and the table have the rest."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence

from infsa_bench.analyze.run import Run
from infsa_bench.analyze.summary import SummaryRow
from infsa_bench.report.describe import describe_environment
from infsa_bench.report.flags import STATUSES, explain_flags
from infsa_bench.report.grid import escape_markdown
from infsa_bench.report.headline import caveats, headline
from infsa_bench.report.table import blocks, row_cells

MAX_CHARACTERS = 60_000
"""GitHub takes 65,536 in a comment."""

LONGEST_CELL = 100
LONGEST_LINE = 1000
MOST_ROWS = 40

COLUMNS = (
    "mechanism",
    "implementation",
    "latency",
    "95 % interval",
    "vs reference",
    "J/image",
    "peak memory",
    "status",
)
LEFT_ALIGNED = frozenset({"mechanism", "implementation", "status"})


def render_pull_request(runs: Sequence[Run]) -> str:
    """Return the runs in short, one after the other, shorter than GitHub's limit whatever they hold."""
    parts = [part for run in runs for part in _parts(run)]
    kept: list[str] = []
    length = 0
    for part in parts:
        if length + len(part) > MAX_CHARACTERS - 200:
            kept.append("More stands in the page and the tables of the report: this is as much as a comment holds.\n")
            break
        kept.append(part)
        length += len(part) + 1
    return "\n".join(kept)


def _parts(run: Run) -> Iterable[str]:
    """The pieces of a run's text, each of which may be the last one that there is room for."""
    yield f"# {_escape(run.name)}\n"
    where = [f"- {_escape(describe_environment(found))}" for found in run.manifest.environments.values()]
    statuses = Counter(row.status for row in run.rows)
    endings = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    yield "\n".join([*where, f"- {run.manifest.created_utc}; {len(run.rows)} cells: {_escape(endings)}", ""])
    for finding in headline(run):
        figure = f"**{finding.figure}** {_escape(finding.figure_meaning)} ({_escape(finding.figure_range)})"
        lines = [f"## {_escape(finding.subject)}", "", *([figure, ""] if finding.figure else [])]
        yield "\n".join([*lines, *(f"- {_escape(sentence)}" for sentence in finding.sentences), ""])
    if held := caveats(run):
        yield "\n".join(["## What holds for all of them", "", *(f"- {_escape(caveat)}" for caveat in held), ""])
    for title, block in blocks(run.rows):
        yield _block(title, block)
    yield _flags(run)
    yield _lacking(run)
    yield _reproduction(run)


def _block(title: str, block: Sequence[SummaryRow]) -> str:
    """The rows of the largest resolution at which most have a number, as a table."""
    planned = Counter(row.case.resolution for row in block)
    measured = Counter(row.case.resolution for row in block if row.status == "ok")
    side = max((side for side in planned if 2 * measured[side] >= planned[side]), default=min(planned))
    rows = [row for row in block if row.case.resolution == side]
    columns = [
        name
        for name in COLUMNS
        if (name != "J/image" or any(row.joules_per_image is not None for row in block))
        and (name != "vs reference" or any(row.speedup_over_reference is not None for row in block))
    ]
    lines = [f"### {_escape(title)}, {side} x {side} pixels", "", f"| {' | '.join(columns)} |"]
    lines.append("|" + "|".join("---" if name in LEFT_ALIGNED else "---:" for name in columns) + "|")
    for row in rows[:MOST_ROWS]:
        cells = row_cells(row)
        lines.append(f"| {' | '.join(_escape(cells[name], LONGEST_CELL) for name in columns)} |")
    if len(rows) > MOST_ROWS:
        lines += ["", f"{len(rows) - MOST_ROWS} more rows stand in the report's table."]
    return "\n".join([*lines, ""])


def _flags(run: Run) -> str:
    flagged = explain_flags(run.rows)
    if not flagged:
        return "## Flags\n\nNone.\n"
    lines = [
        f"- {_escape(flag)} ({len(rows)} of {len(run.rows)} cells): {_escape(meaning)}"
        for flag, meaning, rows in flagged[:MOST_ROWS]
    ]
    return "\n".join(["## Flags", "", *lines, ""])


def _lacking(run: Run) -> str:
    counted = Counter(row.status for row in run.rows if row.status != "ok")
    if not counted:
        return "## Cells without a number\n\nNone.\n"
    lines = [f"- {status} ({STATUSES.get(status, 'unknown')}): {count}" for status, count in counted.most_common()]
    return "\n".join(["## Cells without a number", "", *lines, ""])


def _reproduction(run: Run) -> str:
    lines = ["## How to reproduce", ""]
    for found in run.manifest.environments.values():
        changed = " with uncommitted changes" if found.git_dirty else ""
        versions = f"torch {found.torch_version}, timm {found.timm_version}, Python {found.python_version}"
        lines.append(f"- commit {_escape(found.git_commit or 'unknown')}{changed}; {_escape(versions)}")
    lines.append(f"- {_escape(shlex.join(run.manifest.command))}")
    return "\n".join([*lines, ""])


def _escape(text: str, longest: int = LONGEST_LINE) -> str:
    """Text that Markdown shows as it is, of bounded length."""
    return escape_markdown(text if len(text) <= longest else f"{text[:longest]}...")
