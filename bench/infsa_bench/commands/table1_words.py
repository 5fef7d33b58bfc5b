"""What was typed after ``table1``, its run told from its options: the same table is measured in other folders, too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

FLAGS_OF_TABLE1 = ("--ablation", "--dry-run", "--measure", "--per-accelerator", "--resume")
"""Its options that no value follows."""


def with_run(words: Sequence[str], run: Path) -> list[str]:
    """Return ``words``, all that stand after ``table1``, with ``run`` in the place of theirs or, without one, added."""
    place = _place_of_run(words)
    return [*words[:place], str(run), *words[place + 1 :]]


def _place_of_run(words: Sequence[str]) -> int:
    """Return where the run stands, which is an argument by itself; its name may be that of an option's value."""
    is_value = False
    for place, word in enumerate(words):
        if word == "--" and not is_value:
            return place + 1
        if not is_value and not word.startswith("-"):
            return place
        is_value = not is_value and "=" not in word and word not in FLAGS_OF_TABLE1
    return len(words)
