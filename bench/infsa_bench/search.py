"""Look for the largest resolution that fits, one model after the other: ask what to probe, probe it, append."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from infsa_bench.analyze.max_resolution import is_by_design, probe_of, probes_of, search_space
from infsa_bench.analyze.resolution_search import next_probe
from infsa_bench.execute.launcher import Launcher, Patience
from infsa_bench.record import Record, with_flag
from infsa_bench.search_plan import Search
from infsa_bench.store import RunWriter
from infsa_bench.sweep import utc_now, writing_to


def run_search(
    search: Search,
    launcher: Launcher,
    writer: RunWriter,
    finished: Callable[[Record], None],
    is_shared: Callable[[], bool] = bool,
) -> None:
    """Make the probes that the records in ``writer`` still lack; tell of each one that is on disk.

    A model that cannot run by design is probed once. ``is_shared`` tells whether another sweep runs on the device.

    Raises:
        SweepStoppedError: the device or the disk gave up; the records so far are intact.
    """
    patience = Patience(timeout_seconds=search.timeout_seconds, silence_seconds=search.timeout_seconds)
    for model in search.models:
        space = search_space(search, model)
        records = probes_of(model, writer.recorded.unmeasured.values())
        while (probe := next_probe(space, [probe_of(record) for record in records])) is not None:
            if any(is_by_design(record.outcome) for record in records):
                break
            # Probes of one size are told apart as replicates are.
            repeat = sum(record.case.resolution == probe.resolution for record in records)
            case = replace(model, resolution=probe.resolution, replicate=repeat)
            started_utc, started = utc_now(), time.monotonic()
            was_shared = is_shared()
            run = launcher.probe(case, patience, is_fresh=probe.fresh)
            record = Record(
                case=case,
                environment=launcher.hello.environment.key,
                started_utc=started_utc,
                seconds=time.monotonic() - started,
                attempts=run.attempts,
                outcome=with_flag(run.outcome, "shared") if was_shared or is_shared() else run.outcome,
            )
            with writing_to(writer):
                writer.append(record)
            records.append(record)
            finished(record)
            if run.stopped is not None:
                raise run.stopped
