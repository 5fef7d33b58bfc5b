"""``infsa-bench aa``: how much this machine's numbers scatter while nothing changes."""

from __future__ import annotations

import datetime
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from infsa_bench.analyze.baseline import Baseline, load_side
from infsa_bench.analyze.compare import compare
from infsa_bench.analyze.metrics import MIN_REPLICATES
from infsa_bench.analyze.noise import NOISE, Noise, noise_of, write_noise
from infsa_bench.commands.measuring import NO_REPORT, this_build
from infsa_bench.errors import SpecError, SweepStoppedError
from infsa_bench.execute.process import environment_for_python
from infsa_bench.report.units import format_percent
from infsa_bench.store import is_run
from infsa_bench.sweep import utc_now

OWN_OPTIONS = ("--replicates", "--out", "--resume", "--time-budget", "--dry-run")


def aa(words: Sequence[str], replicates: int, run: Path | None, out: Path | None, console: Console) -> int:
    """Measure one build in so many processes, or take ``run``; write its noise into the run and print it.

    ``words`` are options of ``sweep``. Returns the exit code of the sweep, 0 if all went well.

    Raises:
        SpecError: an option makes no sense, or there are too few processes.
        SchemaError: a file cannot be read.
        SweepStoppedError: the sweep stopped early.
    """
    if run is None:
        run = out or Path("results") / f"aa-{datetime.datetime.now():%Y%m%d-%H%M%S}"
        _sweep(words, replicates, run)
    elif words or out is not None:
        raise SpecError("--from takes a run as it is: no other options go with it")
    side = load_side(run)
    noise = noise_of(side, utc_now())
    write_noise(run / NOISE, noise)
    for line in [*describe_noise(noise), *describe_halves(side), f"noise: {run / NOISE}"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def _sweep(words: Sequence[str], replicates: int, out: Path) -> None:
    if not MIN_REPLICATES <= replicates <= 100:
        raise SpecError(f"--replicates must be between {MIN_REPLICATES} and 100, not {replicates}")
    if taken := [word for word in words if word.partition("=")[0] in OWN_OPTIONS]:
        raise SpecError(f"{taken[0]} is no option of aa, whose sweep has its own")
    if is_run(out):
        raise SpecError(f"{out} holds a run already: take it with --from, or choose another folder")
    command = [*this_build().command, "sweep", *([] if "--protocol" in words else ["--protocol", "gate"]), *words]
    command += ["--replicates", str(replicates), "--time-budget", "none", "--no-peaks", NO_REPORT]
    command += ["--out", str(out)]
    code = subprocess.run(command, env=environment_for_python(), check=False).returncode
    if code in (130, -2):
        raise KeyboardInterrupt
    if code == 2:
        raise SpecError("the sweep refused its options, see above")
    if code:
        raise SweepStoppedError(f"the sweep ended with exit code {code}, see above")


def describe_noise(noise: Noise) -> list[str]:
    """Return a machine's noise in words, a line each."""
    lines = []
    for metric in dict.fromkeys(cell.metric for cell in noise.cells):
        deviations = sorted(cell.deviation for cell in noise.cells if cell.metric == metric)
        lines.append(
            f"{metric}: between processes {format_percent(statistics.median(deviations))} in the median cell, "
            f"{format_percent(deviations[0])} to {format_percent(deviations[-1])} in {len(deviations)} cells"
        )
    lines.append(
        f"a gate here confirms suspects in {noise.confirming_replicates} processes a side, which find a slowdown of "
        f"{format_percent(noise.detectable_effect)} four times in five"
    )
    return lines


def describe_halves(side: Baseline) -> list[str]:
    """Return what a comparison says of every other process against the rest: nothing, if all is well."""
    halves = [
        replace(
            side,
            name=name,
            cells=tuple(
                replace(cell, replicates=tuple(one for one in cell.replicates if one.index % 2 == odd))
                for cell in side.cells
            ),
        )
        for name, odd in (("even processes", 0), ("odd processes", 1))
    ]
    if any(len(cell.replicates) < MIN_REPLICATES for half in halves for cell in half.cells):
        return []
    comparison = compare(halves[0], halves[1])
    found = [f"{item.metric} of {item.cell}" for item in comparison.judged if item.verdict in ("REGRESSED", "IMPROVED")]
    found += [f"status of {item.cell}" for item in comparison.judged if item.verdict == "STATUS_CHANGED"]
    return [f"even against odd processes: {', '.join(found) if found else 'no difference found, as it should be'}"]
