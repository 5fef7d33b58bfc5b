"""A table of text, and its forms: Markdown, LaTeX, a terminal. What it says is decided by who fills it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from infsa_bench.quoting import one_line

LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


FOOTNOTE_MARK = "†"
"""At the end of a cell: something is said of it in words."""

LATEX_NEEDS = r"% Needs \usepackage{array,booktabs,textcomp} and T1-encoded fonts."
WIDE_SHARE = {False: 0.27, True: 0.64}
"""Share of a page's width that one column of sentences has, and that several have together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table of text. ``left`` names the columns that hold words; all others hold numbers, aligned to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Refuse a row with more or fewer cells than columns."""
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"every row of {self.title!r} has {len(self.columns)} cells")

    def only(self, columns: Sequence[str]) -> Grid:
        """Return those of these columns that the grid has, in their order here."""
        kept = [column for column in columns if column in self.columns]
        places = [self.columns.index(column) for column in kept]
        return replace(
            self, columns=tuple(kept), rows=tuple(tuple(row[place] for place in places) for row in self.rows)
        )


def escape_markdown(text: str) -> str:
    """Return ``text`` so that Markdown shows it as it is: a name may come from somebody else's file.

    On GitHub it is no mention, reference, formula, entity or link either.
    """
    text = one_line(text).replace("\\", "\\\\").replace("&", "&amp;")
    for character in ("|", "<", ">", "[", "]", "*", "_", "`", "~", "$"):
        text = text.replace(character, f"\\{character}")
    # An empty comment ends what would be read as a name, a number or an address, and shows nothing.
    text = re.sub(r"([@#])(?=\w)", r"\1<!-- -->", text)
    return re.sub(r"(?i)(://|www\.)", r"<!-- -->\1", text)


def escape_latex(text: str) -> str:
    """Return ``text`` so that LaTeX prints it as it is; what its plain fonts lack becomes a question mark."""
    return "".join(
        LATEX_SPECIAL.get(character, character if character.isascii() else "?") for character in one_line(text)
    )


def grid_markdown(grid: Grid) -> list[str]:
    """Return the lines of the table, without its title."""
    lines = ["| " + " | ".join(escape_markdown(column) for column in grid.columns) + " |"]
    lines.append("|" + "|".join("---" if column in grid.left else "---:" for column in grid.columns) + "|")
    lines += ["| " + " | ".join(escape_markdown(cell) for cell in row) + " |" for row in grid.rows]
    return lines


def grid_latex(grid: Grid, label: str, *, wide: Sequence[str] = ()) -> list[str]:
    """Return the lines of a ``table``, for ``booktabs``; columns of ``wide`` wrap, and share the width of the text."""
    # Ragged: justified narrow columns are mostly gaps.
    width = f"{WIDE_SHARE[len(wide) > 1] / max(1, len(wide)):.3f}\\textwidth"
    kinds = [
        f">{{\\raggedright\\arraybackslash}}p{{{width}}}" if column in wide else "l" if column in grid.left else "r"
        for column in grid.columns
    ]
    lines = [
        r"\begin{table}",
        r"\centering",
        r"\scriptsize",
        r"\setlength{\tabcolsep}{2.5pt}",
        f"\\caption{{{escape_latex(grid.title)}}}",
    ]
    lines += [f"\\label{{{re.sub('[^A-Za-z0-9:-]', '-', label)}}}", f"\\begin{{tabular}}{{{''.join(kinds)}}}"]
    lines.append(r"\toprule")
    lines.append(" & ".join(escape_latex(column) for column in grid.columns) + r" \\")
    lines.append(r"\midrule")
    # A row that begins with a bracket would be taken for an argument of the line break before it.
    lines += ["{}" + " & ".join(escape_latex(cell) for cell in row) + r" \\" for row in grid.rows]
    return [*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]


def grid_terminal(grid: Grid) -> Table:
    """Return the table for a terminal."""
    # Text, not str: names come from files, and rich would read brackets in them as markup.
    table = Table(
        title=Text(one_line(grid.title)), title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False
    )
    for column in grid.columns:
        justify: JustifyMethod = "left" if column in grid.left else "right"
        # The first one names the row: never cut into pieces while others can give way.
        table.add_column(Text(one_line(column)), justify=justify, overflow="fold", no_wrap=column == grid.columns[0])
    for row in grid.rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    return table
