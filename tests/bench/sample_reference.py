"""Reference runs for tests: what became of their steps, made up."""

from __future__ import annotations

from fake_worker import ENVIRONMENT

from infsa_bench.reference.state import ReferenceRun, StepState, StepStatus

SOURCE = "5" * 64
COMMIT = "c0ffee0" * 5 + "12345"


def step_state(status: StepStatus = "done", *, reason: str | None = None) -> StepState:
    return StepState(
        status=status,
        reason=reason,
        command=("infsa-bench", "list"),
        exit_code=0,
        started_utc="2026-11-26T12:00:00+00:00",
        seconds=1.0,
        starts=1,
        source=SOURCE,
        environment=ENVIRONMENT.key,
    )


def reference_run(
    steps: dict[str, StepState] | None = None, *, updated: str = "2026-11-26T12:30:00+00:00", rehearsal: bool = False
) -> ReferenceRun:
    return ReferenceRun(
        created_utc="2026-11-26T12:00:00+00:00",
        updated_utc=updated,
        is_rehearsal=rehearsal,
        environments={ENVIRONMENT.key: ENVIRONMENT},
        commits={SOURCE: COMMIT},
        steps=steps or {},
    )
