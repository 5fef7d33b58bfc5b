"""What reference runs measured and what they did not, stage by stage, from what lies in their folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infsa_bench.errors import SchemaError, SpecError
from infsa_bench.reference.sizes import FULL, REHEARSAL
from infsa_bench.reference.stages import Stage, all_stages
from infsa_bench.reference.state import ReferenceRun, StepState, is_reference_run, load_reference_run
from infsa_bench.report.reference_cells import MEASURED, describe_cells, recorded_cells
from infsa_bench.store import Manifest, is_run, load_manifest

NOT_MEASURED = "not measured: no GPU time"
INTRODUCTION = """\
# What was measured, and where

Written by `infsa-bench results` from what lies here; a test holds the two together. A reference run is what `make gpu`
leaves behind: its stages are measured, or it says why not.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLine:
    """One stage of a reference run in words: what became of it, when, by which commit."""

    name: str
    title: str
    fate: str
    date: str
    commit: str


def stage_lines(run: ReferenceRun | None, folder: Path | None = None) -> list[StageLine]:
    """Return a line for every stage there is; of None, those of a run that nobody had the time for.

    ``folder`` is that of the run, whose records are counted; without it only the journal is believed.

    Raises:
        SpecError, SchemaError: the records cannot be read.
    """
    stages = all_stages("OUT", "cuda:0", REHEARSAL if run is not None and run.is_rehearsal else FULL)
    return [_stage_line(stage, run, folder) for stage in stages.values()]


def _stage_line(stage: Stage, run: ReferenceRun | None, folder: Path | None) -> StageLine:
    states = [] if run is None else [run.steps.get(stage.key_of(step)) for step in stage.steps]
    known = [state for state in states if state is not None]
    if run is None or not known:
        return StageLine(name=stage.name, title=stage.title, fate=NOT_MEASURED, date="", commit="")
    commits = dict.fromkeys(_code(run.commits.get(state.source), state.source) for state in known)
    return StageLine(
        name=stage.name,
        title=stage.title,
        fate=_fate(stage, states, folder),
        date=max(state.started_utc for state in known).partition("T")[0],
        commit=", ".join(commits),
    )


def _code(commit: str | None, source: str) -> str:
    """Return what ran, in short: a commit, with the ``+`` of one that was changed since, or a digest of the code."""
    if commit is None:
        return f"source {source}"[:14]
    return commit[:14] + ("+" if commit.endswith("+") and len(commit) > 14 else "")


def _fate(stage: Stage, states: Sequence[StepState | None], folder: Path | None) -> str:
    recorded = {step.name: {} if folder is None else recorded_cells(folder, step) for step in stage.steps}
    by_name = {step.name: state for step, state in zip(stage.steps, states, strict=True)}
    remarks = []
    for name, state in by_name.items():
        match state:
            case None:
                remarks.append(f"{name} not started")
            case StepState(status="done"):
                pass
            case StepState(status="interrupted" | "running"):
                has_begun = folder is None or recorded[name]
                remarks.append(f"{name} in part" if has_begun else f"{name} ended before it recorded anything")
            case StepState(status="not_run", reason=reason):
                remarks.append(f"{name} not run: {reason}")
            case StepState(status="findings", reason=reason):
                remarks.append(f"{name} found a fault: {reason}")
            case StepState(reason=reason):
                remarks.append(f"{name} failed: {reason}")
    # In a search, what does not fit is no gap.
    sweeps = [recorded[step.name] for step in stage.steps if step.words[0] != "maxres"]
    cells = {cell: fate for found in sweeps for cell, fate in found.items()}
    has_gaps = any(fate != MEASURED for fate in cells.values())
    if cells:
        is_any = MEASURED in cells.values()
    else:
        is_any = any(state is not None and state.status in ("done", "findings") for state in states)
        is_any = is_any or any(recorded.values())
    verdict = "not measured" if not is_any else "measured in part" if remarks else "measured"
    return "; ".join([f"{verdict}: {describe_cells(cells)}" if has_gaps else verdict, *remarks])


def render_stages(run: ReferenceRun | None, folder: Path | None = None) -> str:
    """Return the stages as a table in Markdown; see :func:`stage_lines`."""
    lines = ["| stage | what | measured? | date | commit |", "|---|---|---|---|---|"]
    for line in stage_lines(run, folder):
        cells = (line.name, line.title, line.fate, line.date, line.commit)
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def render_results(folder: Path) -> str:
    """Return the page that says what the folders in ``folder`` hold.

    Raises:
        SpecError, SchemaError: a reference run cannot be read.
    """
    entries = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    references = [entry for entry in entries if is_reference_run(entry)]
    parts = [INTRODUCTION]
    for entry in references:
        run = load_reference_run(entry)
        kind = "A rehearsal, which measures nothing worth knowing" if run.is_rehearsal else "Reference run"
        parts.append(f"## [{entry.name}]({entry.name})\n\n{kind}, on {run.device_name}.\n\n{render_stages(run, entry)}")
    if not any(not load_reference_run(entry).is_rehearsal for entry in references):
        parts.append(f"## Reference run on a GPU\n\nThere is none yet.\n\n{render_stages(None)}")
    others = [_other_line(entry) for entry in entries if entry not in references]
    parts.append("## Other results\n\n" + "\n".join(others) + "\n")
    return "\n".join(parts)


def _other_line(entry: Path) -> str:
    page = next((file.name for name in ("README.md", "table.md") if (file := entry / name).is_file()), None)
    link = f"[{entry.name}]({entry.name}{f'/{page}' if page else ''})"
    try:
        manifest = load_manifest(entry) if is_run(entry) else None
    except (SpecError, SchemaError):
        # Folders of other kinds have files of these names, too.
        manifest = None
    return f"- {link}{'' if manifest is None else f': {_described(manifest)}'}"


def _described(manifest: Manifest) -> str:
    environments = list(manifest.environments.values())
    devices = _listed(environment.device_name for environment in environments)
    commits = _listed((environment.git_commit or "unknown")[:7] for environment in environments)
    return f"{len(manifest.plan)} cases on {devices}, {manifest.created_utc.partition('T')[0]}, commit {commits}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
