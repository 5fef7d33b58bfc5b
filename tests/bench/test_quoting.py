from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infsa_bench.quoting import LONGEST_QUOTE, MOST_QUOTES, listed, one_line, quoted

ANY_TEXT = st.text(alphabet=st.characters(), max_size=200)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("softmax", "softmax"),
        (" a\r\n\tb  c ", "a b c"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("caf\udce9", r"caf\udce9"),
        ("\u00fcber \u03c1", "\u00fcber \u03c1"),
        ("\U000e0041", r"\U000e0041"),
        ("", ""),
    ],
)
def test_one_line(text: str, shown: str) -> None:
    assert one_line(text) == shown


@given(ANY_TEXT)
def test_one_line_is_printable(text: str) -> None:
    assert one_line(text).isprintable()
    assert one_line(one_line(text)) == one_line(text)


@given(ANY_TEXT)
def test_quotes_are_printable_and_bounded(text: str) -> None:
    assert quoted(text).isprintable()
    assert len(quoted(text)) <= 10 * LONGEST_QUOTE + 5


def test_quoted() -> None:
    assert quoted("a" * LONGEST_QUOTE) == f"'{'a' * LONGEST_QUOTE}'"
    assert quoted("a" * 10**6) == f"'{'a' * LONGEST_QUOTE}'..."


def test_listed() -> None:
    assert listed([]) == "[]"
    assert listed(["a", "b\n"]) == r"['a', 'b\n']"
    assert listed(map(str, range(MOST_QUOTES))) == "['0', '1', '2', '3', '4']"
    assert listed(map(str, range(MOST_QUOTES + 1))) == "['0', '1', '2', '3', '4', and 1 more]"
