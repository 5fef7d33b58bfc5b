"""Going on with a run that was interrupted: may it be, and what to type."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from infsa_bench.analyze.comparability import differing_hardware
from infsa_bench.errors import SpecError
from infsa_bench.machine import Environment
from infsa_bench.store import Manifest, is_run, load_manifest, reports_path

INTERRUPTED = 130


def earlier_manifest(out: Path | None, resume: bool) -> Manifest | None:
    """Return the manifest of the run in ``out`` that is to be resumed, None for a new one.

    Raises:
        SpecError: the folder is taken or not named, or the report would have no place.
        SchemaError: the manifest cannot be read.
    """
    if out is None:
        if resume:
            raise SpecError("--resume needs --out, the folder of the run to go on with")
        return None
    exists = is_run(out)
    _check_report_folder(reports_path(out))
    if not exists:
        return None
    if not resume:
        raise SpecError(f"{out} holds a run already: add --resume to finish it, or choose another folder")
    return load_manifest(out)


def _check_report_folder(folder: Path) -> None:
    """Refuse a report folder that cannot be made, before anything is measured for it."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise SpecError(f"the report would go to {folder}, but {existing} is no folder that can be written")


def refuse_differences(out: Path, differences: Sequence[str]) -> None:
    """Refuse to go on with a run that was made with other settings; ``differences`` names them.

    Raises:
        SpecError: there are some.
    """
    if differences:
        raise SpecError(f"{out} holds a run with another {', '.join(differences)}; choose another folder")


def refuse_other_hardware(out: Path, earlier: Manifest, environment: Environment) -> None:
    """Refuse to go on with a run on hardware that it was not made on: which device of a kind it is does not matter.

    Raises:
        SpecError: it is other hardware.
    """
    differing = [differing_hardware(found, environment) for found in earlier.environments.values()]
    if differing and all(differing):
        raise SpecError(
            f"{out} holds a run on other hardware than {environment.device} ({environment.device_name}): it differs in "
            f"{', '.join(differing[-1])}; choose another folder"
        )


def say_how_to_go_on(
    console: Console, program: Sequence[str], words: Sequence[str], named: Path | None, out: Path
) -> None:
    """Print the command that goes on with the run in ``out``; ``named`` is what --out said, None if nothing."""
    words = [word for word in words if word != "--resume"]
    again = shlex.join([*program, *words, *([] if named else ["--out", str(out)]), "--resume"])
    line = f"\ninterrupted; what is recorded is kept. To go on: {again}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
