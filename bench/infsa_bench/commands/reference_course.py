"""A reference run under way: which step is next, how long it may take, what became of it, packed now and then."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from infsa_bench.commands.measuring import PYTHON
from infsa_bench.commands.step_process import StepEnd, run_step
from infsa_bench.execute.process import environment_for_python
from infsa_bench.machine import Environment
from infsa_bench.reference.parts import pack
from infsa_bench.reference.stages import KERNELS_CHECK, KERNELS_STAGE, PROBE, Stage, Step, in_order
from infsa_bench.reference.state import FINAL, ReferenceRun, StepState, StepStatus, write_reference_run
from infsa_bench.report.units import format_duration
from infsa_bench.store import MANIFEST
from infsa_bench.sweep import utc_now
from infsa_models.options import KERNELS_VARIABLE

LEAST_STEP_SECONDS = 20.0
"""Less is not worth starting a step for: it would spend it on starting."""

PACK_AGAIN_SECONDS = 60.0
"""Whoever kills the machine should not take more than this along; a step may run for many times as long."""

LOGS = "logs"


@dataclass(slots=True, kw_only=True)
class Course:
    """A reference run under way. ``stops`` holds the signals that came; ``end`` is on the monotonic clock."""

    out: Path
    parts: Path
    journal: ReferenceRun
    console: Console
    end: float
    stops: Sequence[int]
    packed_at: float = 0.0

    def run(self, stages: Sequence[Stage]) -> None:
        """Run what is still to be run of the stages, until the time is over, and pack; raises OSError."""
        left_seconds = {stage.name: stage.seconds for stage in stages}
        self.packed_at = time.monotonic()
        try:
            for stage, step in self._todo(stages):
                if self.stops:
                    break
                reason = _reason_not_to_run(step, self._environment)
                if reason is not None:
                    self._note(stage, step, "not_run", reason=reason)
                    self._say(stage, step, f"not run: {reason}")
                    continue
                seconds = min(step.seconds, self.end - time.monotonic())
                if not step.comes_last:
                    seconds = min(seconds, left_seconds[stage.name])
                if seconds < min(LEAST_STEP_SECONDS, step.seconds):
                    continue
                left_seconds[stage.name] -= self._run_step(stage, step, seconds)
                self._pack_if_due()
        finally:
            self._pack()

    def _todo(self, stages: Sequence[Stage]) -> list[tuple[Stage, Step]]:
        """Return what is not done; what has had its turn comes last, lest it takes the time of others again."""
        found = [(stage, step) for stage, step in in_order(stages) if not self._is_over(stage, step)]
        return sorted(found, key=lambda pair: self._has_had_its_turn(*pair))

    def _has_had_its_turn(self, stage: Stage, step: Step) -> bool:
        """Tell whether a step failed before, or was cut off and would begin anew: a sweep goes on where it was."""
        state = self.journal.steps.get(stage.key_of(step))
        if state is None:
            return False
        if state.status == "failed" or step.run is not None:
            return state.status == "failed"
        # All others depend on the check of the kernels: once may be bad luck.
        return step.name != KERNELS_CHECK or state.starts > 1

    def _is_over(self, stage: Stage, step: Step) -> bool:
        state = self.journal.steps.get(stage.key_of(step))
        if state is None or state.status not in FINAL:
            return False
        # What another device can do is no reason for this one; what was deleted is to be measured again.
        is_there = step.run is None or (self.out / step.run / MANIFEST).is_file()
        return state.status == "not_run" or is_there

    @property
    def _environment(self) -> Environment:
        return list(self.journal.environments.values())[-1]

    def _run_step(self, stage: Stage, step: Step, seconds: float) -> float:
        """Run one step for so long at most; return how long it took."""
        command, shown = command_of(step)
        self._note(stage, step, "running", command=shown)
        self._say(stage, step, f"at most {format_duration(seconds)}")
        log = self.out / LOGS / f"{stage.name}.{step.name}.log"
        ended = run_step(
            command, self._environment_of(stage, step), log, seconds, lambda: bool(self.stops), self._pack_if_due
        )
        status, reason = _judge(step, ended, is_stopped=bool(self.stops))
        self._note(stage, step, status, reason=reason, exit_code=ended.exit_code, seconds=ended.seconds)
        self._say(stage, step, f"{status} after {format_duration(ended.seconds)}{f': {reason}' if reason else ''}")
        return ended.seconds

    def _environment_of(self, stage: Stage, step: Step) -> dict[str, str]:
        """Return the environment of a step; without hand-written kernels where these did not stand the test.

        Every record says which kernels ran.
        """
        environment = _environment_of_steps()
        checked = self.journal.steps.get(f"{PROBE}/{KERNELS_CHECK}")
        is_about_them = stage.name == KERNELS_STAGE or step.name == KERNELS_CHECK
        if checked is not None and checked.status not in ("done", "not_run") and not is_about_them:
            environment[KERNELS_VARIABLE] = "torch"
        return environment

    def _note(
        self,
        stage: Stage,
        step: Step,
        status: StepStatus,
        *,
        reason: str | None = None,
        command: tuple[str, ...] | None = None,
        exit_code: int | None = None,
        seconds: float = 0.0,
    ) -> None:
        """Write down what is known of a step now; one that begins counts a start."""
        key, now = stage.key_of(step), utc_now()
        known = self.journal.steps.get(key)
        state = StepState(
            status=status,
            reason=reason,
            command=command or (known.command if known else ()),
            exit_code=exit_code,
            started_utc=now if known is None or status == "running" else known.started_utc,
            seconds=seconds + (known.seconds if known else 0.0),
            starts=(known.starts if known else 0) + (status == "running"),
            source=list(self.journal.commits)[-1],
            environment=self._environment.key,
        )
        self.journal = self.journal.with_step(key, state, now)
        write_reference_run(self.out, self.journal)

    def _pack_if_due(self) -> None:
        """Pack again where that is some time ago. What cannot be packed just now does not end what is measured."""
        if time.monotonic() - self.packed_at <= PACK_AGAIN_SECONDS:
            return
        try:
            self._pack()
        except OSError as error:
            self.packed_at = time.monotonic()
            self.console.print(f"not packed: {error}", markup=False, highlight=False, soft_wrap=True)

    def _pack(self) -> None:
        packed = pack(self.out, self.parts)
        self.packed_at = time.monotonic()
        sizes = sum(file.stat().st_size for file in packed.parts)
        count = f"{len(packed.parts)} file{'' if len(packed.parts) == 1 else 's'}"
        line = f"packed: {count} of {sizes / 1e6:.1f} MB in {self.parts}"
        line += f"; {len(packed.left_out)} files had no room" if packed.left_out else ""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _say(self, stage: Stage, step: Step, text: str) -> None:
        left = format_duration(max(0.0, self.end - time.monotonic()))
        line = f"{stage.key_of(step)}: {text} ({left} left)"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _reason_not_to_run(step: Step, environment: Environment) -> str | None:
    if step.needs_cuda and environment.device_type != "cuda":
        return "needs CUDA"
    if step.program == "pytest" and not Path("tests").is_dir():
        return "there is no folder tests here"
    return None


def command_of(step: Step) -> tuple[list[str], tuple[str, ...]]:
    """Return what is run for a step, and what one would type for it."""
    if step.program != "infsa-bench":
        words = ("-m", "pytest", *step.words) if step.program == "pytest" else step.words
        return [sys.executable, *words], ("python3", *words)
    return [*PYTHON, *step.words], ("infsa-bench", *step.words)


def _environment_of_steps() -> dict[str, str]:
    """Return the environment of the steps: tests among them run in other folders, where relative paths lead nowhere."""
    environment = environment_for_python()
    paths = [str(Path(path).resolve()) for path in environment["PYTHONPATH"].split(os.pathsep)]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _judge(step: Step, ended: StepEnd, *, is_stopped: bool) -> tuple[StepStatus, str | None]:
    """Return what became of a step, and why it is not simply done."""
    if ended.exit_code == 0:
        return "done", None
    if ended.is_interrupted:
        return "interrupted", "stopped from outside" if is_stopped else "its time was over"
    if ended.exit_code in step.findings:
        return "findings", ended.last_line or f"exit code {ended.exit_code}"
    if ended.exit_code < 0:
        with contextlib.suppress(ValueError):
            return "failed", f"killed by {signal.Signals(-ended.exit_code).name}"
    return "failed", ended.last_line or f"exit code {ended.exit_code}"
