"""What a page is made of: sections of text, tables and pictures, all plain text until the template makes HTML of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from infsa_bench.report.grid import FOOTNOTE_MARK, Grid
from infsa_bench.report.headline import Finding

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "M": 1e6}
"""What a formatted number may be of, within one column: all that is needed to sort by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table. ``group`` is a heading above it and its neighbours of the same group.

    ``is_number``: aligned to the right, and sorted by the values of its cells. ``is_detail``: shown on request only.
    """

    title: str
    group: str = ""
    is_number: bool = False
    is_detail: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cell of a table: what is shown, and in a column of numbers what it is sorted by (None: last)."""

    text: str
    value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of a table. ``filters`` is what it has for each of the section's filters; ``marks`` stand in its last cell.

    ``is_lacking`` rows have no number, and are shown in grey.
    """

    cells: tuple[Cell, ...]
    filters: Mapping[str, str] = field(default_factory=dict)
    marks: tuple[str, ...] = ()
    is_lacking: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that readers can sort. ``is_folded``: only its caption is shown until they open it."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    is_folded: bool = False

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headings above the columns and how many columns each spans; none where no column has one."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if found and found[-1][0] == column.group:
                found[-1] = (column.group, found[-1][1] + 1)
            else:
                found.append((column.group, 1))
        return found if any(group for group, _ in found) else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A figure as an image that lies in the page; without ``source`` there is none, and ``lacking`` says why."""

    title: str
    source: str | None = None
    alternative: str = ""
    lacking: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """A file that lies in the page, as a data URI."""

    name: str
    source: str
    remark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a page, shown in the order of its fields.

    Attributes:
        facts: terms and what is said of them.
        filters: names of the filters that its rows have, each a choice of what they have; the text box comes by itself.
        remarks: as a list, below the tables.
        commands: lines to type.
        is_folded: only the title is shown until a reader opens it.
    """

    title: str
    paragraphs: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    filters: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    remarks: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    downloads: tuple[Download, ...] = ()
    is_folded: bool = False

    @property
    def choices(self) -> list[tuple[str, list[str]]]:
        """Of each filter the values to choose from, in the order in which rows have them."""
        rows = [row for table in self.tables for row in table.rows]
        return [(name, list(dict.fromkeys(row.filters[name] for row in rows))) for name in self.filters]


def text_table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, is_folded: bool = False
) -> Table:
    """Return a table of nothing but text."""
    return Table(
        caption=caption,
        columns=tuple(Column(title=title) for title in columns),
        rows=tuple(Row(cells=tuple(Cell(text=text) for text in row)) for row in rows),
        is_folded=is_folded,
    )


def grid_table(
    grid: Grid, *, is_folded: bool = False, details: tuple[str, ...] = (), filters: Mapping[str, str] | None = None
) -> Table:
    """Return a grid of text as a table.

    ``details`` are how the titles of columns begin that are shown on request only. ``filters`` are those that its
    section has, with what all rows have for each; a column of such a name says it for each row.
    """
    columns = tuple(
        Column(title=title, is_number=title not in grid.left, is_detail=title.startswith(details))
        for title in grid.columns
    )
    found = dict(filters or {})
    places = {name: grid.columns.index(name) for name in found if name in grid.columns}
    rows = tuple(
        Row(
            cells=tuple(Cell(text=text, value=sort_value(text)) for text in row),
            filters=found | {name: row[place].rstrip(FOOTNOTE_MARK) for name, place in places.items()},
        )
        for row in grid.rows
    )
    return Table(caption=grid.title, columns=columns, rows=rows, is_folded=is_folded)


def sort_value(text: str) -> float | None:
    """Return what a formatted number is sorted by: 12.3 ms before 1.20 s; None for what begins with no number.

    Of an interval that is its lower end, in the unit that stands behind the upper one.
    """
    found = re.match(r"~?(-?[0-9][0-9,]*(?:\.[0-9]+)?)x?(?: \.\. [-0-9.,]+)? ?([A-Za-z]*)", text)
    if found is None:
        return None
    return float(found[1].replace(",", "")) * UNITS.get(found[2], 1.0)
