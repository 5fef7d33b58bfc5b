"""How far a reference run has got: ``stages.json`` in its folder, written anew whenever a step begins or ends.

What was measured lies in the runs themselves, which their sweeps go on with case by case; this only says which steps
need not be started again, and why others were not run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TextIO

import infsa_bench
import infsa_models
from infsa_bench.codec import decode, encode
from infsa_bench.errors import SchemaError, SpecError
from infsa_bench.files import read_file, replace_file
from infsa_bench.machine import Environment

STATE = "stages.json"
MAX_STATE_BYTES = 2**22

StepStatus = Literal["running", "done", "findings", "interrupted", "failed", "not_run"]

FINAL: frozenset[StepStatus] = frozenset({"done", "findings", "not_run"})
"""What need not be run again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepState:
    """What became of a step.

    Attributes:
        status: ``findings`` where a check failed, which is a result; ``interrupted`` where its time was over;
            ``not_run`` where the device has nothing to do for it; ``running`` is left behind by a run that was killed.
        reason: one line for people, where it is not simply done.
        command: as it was typed, the program first.
        exit_code: the last one; negative is a signal.
        seconds: all its starts together.
        source: digest of the code that ran it, a key of ``commits``.
        environment: a key of ``environments``.
    """

    status: StepStatus
    reason: str | None = None
    command: tuple[str, ...] = ()
    exit_code: int | None = None
    started_utc: str
    seconds: float = 0.0
    starts: int = 0
    source: str
    environment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceRun:
    """A reference run. ``steps`` is keyed by ``stage/step``, ``commits`` by the digest of the code, None if unknown."""

    created_utc: str
    updated_utc: str
    is_rehearsal: bool
    environments: dict[str, Environment]
    commits: dict[str, str | None]
    steps: dict[str, StepState]
    schema_version: int = 1

    @property
    def device_name(self) -> str:
        """The device of all its steps: other boards of the same name may have taken turns."""
        return next(iter(self.environments.values())).device_name

    def with_step(self, key: str, step: StepState, now_utc: str) -> ReferenceRun:
        """Return the run with what is now known of one step."""
        return replace(self, steps={**self.steps, key: step}, updated_utc=now_utc)


def is_reference_run(folder: Path) -> bool:
    """Tell whether ``folder`` holds a reference run."""
    return (folder / STATE).is_file()


def load_reference_run(folder: Path) -> ReferenceRun:
    """Read how far the reference run in ``folder`` has got.

    Raises:
        SpecError: there is none.
        SchemaError: its state cannot be read.
    """
    file = folder / STATE
    try:
        found = decode(ReferenceRun, read_file(file, MAX_STATE_BYTES))
    except FileNotFoundError:
        raise SpecError(f"{folder} holds no reference run: it has no {STATE}") from None
    except OSError as error:
        raise SchemaError(f"{file}: {error.strerror or error}") from None
    except SchemaError as error:
        raise SchemaError(f"{file}: {error}") from None
    if not found.environments:
        raise SchemaError(f"{file}: no environment")
    return found


def write_reference_run(folder: Path, run: ReferenceRun) -> None:
    """Make ``run`` the state in ``folder``, and return once that is on disk.

    Raises:
        OSError: it cannot be written.
    """

    def write(handle: TextIO) -> None:
        handle.write(encode(run, indent=1) + "\n")

    replace_file(folder / f"{STATE}.new", folder / STATE, write)


def source_digest(packages: Iterable[Path] | None = None) -> str:
    """Return a digest of the code that runs: a GPU machine may have the files without their repository."""
    if packages is None:
        packages = [Path(package.__file__ or "").parent for package in (infsa_bench, infsa_models)]
    digest = hashlib.sha256()
    for package in packages:
        for file in sorted(package.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{package.name}/{file.relative_to(package).as_posix()}\0".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
