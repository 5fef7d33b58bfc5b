"""Text from somebody else's file as it may be shown: on one line, without control characters. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST_QUOTE = 60
MOST_QUOTES = 5


def one_line(text: str) -> str:
    """Return ``text`` on one line, with escapes for what moves a cursor, colours a terminal or turns text around."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(text.split()))


def quoted(text: str) -> str:
    """Return the beginning of ``text`` in quotes, with escapes for what cannot be printed."""
    return repr(text) if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]!r}..."


def listed(names: Iterable[str]) -> str:
    """Return names, quoted, in brackets; of very many only the first and the number of the others."""
    names = list(names)
    shown = [quoted(name) for name in names[:MOST_QUOTES]]
    if len(names) > MOST_QUOTES:
        shown.append(f"and {len(names) - MOST_QUOTES} more")
    return f"[{', '.join(shown)}]"
