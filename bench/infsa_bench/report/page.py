"""Runs as one self-contained HTML page: no network, no other file, and nothing of a results file but text."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from infsa_bench.analyze.run import Run
from infsa_bench.quoting import one_line
from infsa_bench.report.figures import Drawing, draw_figures
from infsa_bench.report.run_sections import RESULTS, run_sections
from infsa_bench.report.sections import Section
from infsa_bench.report.side_by_side import comparison_sections, run_letter

LONGEST_TEXT = 2000
"""A name may be of any length in a results file; a page shows the beginning of it."""

EMBEDDED = re.compile(r"data:[a-z0-9/+;=-]+;base64,[A-Za-z0-9+/=]*")


def render_page(
    runs: Sequence[Run],
    extra_sections: Sequence[Section] = (),
    *,
    drawings: Sequence[Mapping[str, Drawing | None]] | None = None,
) -> str:
    """Return the page of one run, or of several side by side; ratios are to the first one.

    ``extra_sections`` follow the results of one run, and the comparison of several. The same runs give the same page.
    ``drawings`` are the figures of each run, where they are drawn already.
    """
    drawings = [draw_figures(run) for run in runs] if drawings is None else drawings
    if len(runs) == 1:
        own = run_sections(runs[0], drawings[0])
        place = 1 + [section.title for section in own].index(RESULTS)
        parts = [_part("", "", (*own[:place], *extra_sections, *own[place:]), prefix="s")]
        title = runs[0].name
    else:
        parts = [_part("", "", (*comparison_sections(runs), *extra_sections), prefix="s")]
        for index, (run, drawn) in enumerate(zip(runs, drawings, strict=True)):
            letter = run_letter(index)
            own = run_sections(run, drawn)
            parts.append(_part(f"{letter}: {run.name}", f"run-{letter}", own, prefix=f"run-{letter}-s"))
        title = " and ".join(run.name for run in runs)
    style, script = _asset("page.css"), _asset("page.js")
    return _template().render(
        title=title,
        subtitle=[_subtitle(run) for run in runs],
        parts=parts,
        style=Markup(style),
        script=Markup(script),
        policy=Markup(_policy(style, script)),
    )


def _part(title: str, anchor: str, sections: Sequence[Section], prefix: str) -> dict[str, Any]:
    """A part of the page: its sections with their anchors, one heading level below its own."""
    numbered = [(f"{prefix}{index}", section) for index, section in enumerate(sections, start=1)]
    return {"title": title, "anchor": anchor, "sections": numbered, "level": 3 if title else 2}


def _subtitle(run: Run) -> str:
    devices = dict.fromkeys(found.device_name for found in run.manifest.environments.values())
    measured = sum(row.status == "ok" for row in run.rows)
    day = run.manifest.created_utc.partition("T")[0]
    return f"{', '.join(devices)} · {day} · {measured} of {len(run.rows)} cells have a number"


def _policy(style: str, script: str) -> str:
    """The browser's own guard: this style, this script, images that lie in the page; nothing from outside."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    environment.filters["embedded"] = _embedded
    return environment.from_string(_asset("page.html.jinja"))


def _shown(value: Any) -> Any:
    """Text as it may be shown: on one line, of bounded length."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    text = one_line(value)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."


def _embedded(source: str) -> Markup:
    """The address of a file that lies in the page, whole; nothing else is an address there."""
    assert EMBEDDED.fullmatch(source)
    return Markup(source)
