"""The workflows: least permissions, actions pinned by commit, and commands that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from infsa_bench.cli import app

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
README = ROOT / "README.md"


def commands(file: Path) -> list[list[str]]:
    """The words of each call of infsa-bench, folded lines joined; of the README, of its code alone."""
    text = file.read_text()
    if file == README:
        text = "\n".join(re.findall(r"^```(?:bash|yaml)\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    joined = re.sub(r"\s*\n\s+(?=--)", " ", text)
    found = re.findall(r"^\s*(?:- run: )?(?:\.venv/bin/)?infsa-bench (.*)$", joined, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in found]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_actions_are_pinned_by_commit(file: Path) -> None:
    uses = re.findall(r"uses: (.*)", file.read_text())
    assert uses
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[0-9.]+", one) for one in uses)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_permissions_are_to_read(file: Path) -> None:
    text = file.read_text()
    assert re.findall(r"permissions:\n((?: +.*\n)+)", text) == ["  contents: read\n"]
    assert "pull_request_target" not in text
    # What somebody else can name is not pasted into a shell.
    # Also in what is folded over several lines: a step's shell words end where the next key or step begins.
    assert not re.search(r"run:(?:(?!\n\s*(?:- )?[a-z-]+:).)*\$\{\{", text, re.DOTALL)


def test_a_fork_does_not_run_on_ones_own_machine() -> None:
    text = (ROOT / ".github/workflows/perf.yml").read_text()
    job = text[text.index("  gpu:") :]
    assert "github.event.pull_request.head.repo.full_name == github.repository" in job
    assert "vars.PERF_RUNNER != ''" in job
    assert text.count("persist-credentials: false") == text.count("actions/checkout@")
    assert "continue-on-error" not in text
    assert "|| true" not in text


@pytest.mark.parametrize("file", [*WORKFLOWS, README], ids=lambda file: file.name)
def test_their_commands_are_understood(file: Path) -> None:
    """Every option exists, and what is needed is there."""
    group = typer.main.get_command(app)
    found = commands(file)
    if file.name in ("perf.yml", "README.md"):
        assert {"sweep", "gate", "export"} <= {words[0] for words in found}
    for name, *words in found:
        command = group.commands[name]  # type: ignore[attr-defined]
        command.make_context(name, words)


def test_the_job_of_the_readme_is_pinned_alike() -> None:
    pinned = set(re.findall(r"uses: (.*)", README.read_text()))
    assert pinned
    assert pinned <= set(re.findall(r"uses: (.*)", (ROOT / ".github/workflows/perf.yml").read_text()))
