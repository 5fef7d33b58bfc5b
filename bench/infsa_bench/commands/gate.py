"""``infsa-bench gate``: measure what a baseline holds, measure suspects again, decide."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from infsa_bench.analyze.baseline import Baseline, load_side
from infsa_bench.analyze.comparability import differences
from infsa_bench.analyze.compare import Comparison
from infsa_bench.analyze.gate import Suspect, decide, measurable, restricted, suspects
from infsa_bench.analyze.noise import FEWEST_CONFIRMING, SCREENING_REPLICATES, Noise
from infsa_bench.codec import encode
from infsa_bench.commands.compare import FORMATS, find_noise, print_comparison
from infsa_bench.commands.measuring import Build, build_called, build_in, measure, this_build
from infsa_bench.commands.options import check_device
from infsa_bench.commands.repository import HERE, worktree
from infsa_bench.errors import SpecError, UnknownNameError
from infsa_bench.execute.launcher import Launcher
from infsa_bench.report.comparison import render_comparison_json, render_comparison_markdown
from infsa_bench.spec import Case
from infsa_bench.store import Settings
from infsa_bench.sweep import utc_now

MOST_REPLICATES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRequest:
    """The options of the command line as typed."""

    baseline: Path
    base_cmd: str | None = None
    base_ref: str | None = None
    device: str | None = None
    noise: Path | None = None
    screening: int = SCREENING_REPLICATES
    confirming: int | None = None
    out: Path | None = None
    resume: bool = False
    allow_mismatch: bool = False
    allow_shared: bool = False
    strict: bool = False
    form: str = "term"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateManifest:
    """What a gate did. ``base_command`` is None where the baseline's stored numbers stand for the other build."""

    created_utc: str
    baseline: str
    base_command: tuple[str, ...] | None
    base_ref: str | None
    screening_replicates: int
    confirming_replicates: int
    suspects: tuple[Suspect, ...]
    exit_code: int


def gate(request: GateRequest, console: Console) -> int:
    """Run the gate and print what came of it; return the exit code of a comparison.

    Raises:
        SpecError: an option makes no sense, the baseline holds nothing to measure, or a build refuses.
        SchemaError: a file cannot be read.
        SweepStoppedError: the device or the disk gave up.
    """
    stored = _checked(request)
    noise = find_noise(request.noise, {request.baseline: stored})
    out = request.out or Path("results") / f"gate-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    if out.exists() and not (out.is_dir() and (request.resume or not any(out.iterdir()))):
        raise SpecError(f"{out} holds something already: add --resume to finish a gate, or choose another folder")
    try:
        return _run(request, stored, noise, out, console)
    except KeyboardInterrupt:
        line = f"interrupted; what is recorded is kept. To go on: the same command with --resume --out {out}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        return 130


def _run(request: GateRequest, stored: Baseline, noise: Noise | None, out: Path, console: Console) -> int:
    # What is read by a program stands alone.
    progress = Console(stderr=True) if request.form == "json" else console
    confirming = request.confirming or (noise.confirming_replicates if noise else FEWEST_CONFIRMING)
    settings = stored.settings if request.device is None else replace(stored.settings, device=request.device)
    with _base_build(request) as other:
        if other is None and not _is_comparable_here(stored, settings, request, progress):
            return 3
        measured = _Gate(
            builds=(this_build(), other),
            settings=settings,
            out=out,
            console=progress,
            allow_shared=request.allow_shared,
            name=stored.name,
        )
        cases = [cell.case for cell in stored.cells]
        new, base = measured.stage(1, cases, request.screening)
        base = stored if base is None else base
        suspected = suspects(base, new, noise)
        cells = {suspect.cell for suspect in suspected}
        progress.print(_said(suspected, confirming, other), markup=False, highlight=False, soft_wrap=True)
        second_new = second_base = None
        if suspected:
            second_new, second_base = measured.stage(2, [case for case in cases if case.cell in cells], confirming)
            second_base = restricted(stored, cells) if second_base is None else second_base
    comparison = decide(
        base, new, suspected, second_base, second_new, noise, is_base_stored=other is None, confirming=confirming
    )
    code = comparison.exit_code(is_strict=request.strict, is_mismatch_allowed=request.allow_mismatch)
    manifest = GateManifest(
        created_utc=utc_now(),
        baseline=stored.name,
        base_command=None if other is None else other.command,
        base_ref=request.base_ref,
        screening_replicates=request.screening,
        confirming_replicates=confirming,
        suspects=suspected,
        exit_code=code,
    )
    _write(out, comparison, manifest)
    print_comparison(comparison, code, request.form, console)
    return code


def _checked(request: GateRequest) -> Baseline:
    """Return what is to be measured, once every option has been looked at."""
    if request.form not in FORMATS:
        raise UnknownNameError("format", request.form, FORMATS)
    if request.base_cmd is not None and request.base_ref is not None:
        raise SpecError("give the other build by --base-cmd or by --base-ref, not by both")
    if request.device is not None:
        check_device(request.device)
    for name, count in (("--screening", request.screening), ("--confirming", request.confirming)):
        if count is not None and not 3 <= count <= MOST_REPLICATES:
            raise SpecError(f"{name} must be between 3 and {MOST_REPLICATES}, not {count}")
    stored = measurable(load_side(request.baseline))
    if not stored.cells:
        raise SpecError(f"{request.baseline} holds no cell that a gate could measure")
    return stored


def _said(suspected: Sequence[Suspect], confirming: int, other: Build | None) -> str:
    """What stage 1 found, in words."""
    if not suspected:
        return "stage 1: nothing suspected"
    cells = len({suspect.cell for suspect in suspected})
    side = "either build" if other else "the new build only: the base's stored numbers stand in both stages"
    found = f"{cells} cell{'' if cells == 1 else 's'}"
    return f"stage 1: {found} suspected; measuring again in {confirming} fresh processes of {side}"


@contextlib.contextmanager
def _base_build(request: GateRequest) -> Iterator[Build | None]:
    """Lend the other build, if there is one."""
    if request.base_ref is not None:
        with worktree(request.base_ref, HERE.parent) as folder:
            yield build_in(folder)
    elif request.base_cmd is not None:
        yield build_called(request.base_cmd)
    else:
        yield None


def _is_comparable_here(stored: Baseline, settings: Settings, request: GateRequest, console: Console) -> bool:
    """Tell whether stored numbers say anything about this machine, before hours are spent on it."""
    with Launcher(settings.first_device) as launcher:
        environment = launcher.hello.environment
    here = replace(stored, environments={environment.key: environment}, cells=())
    fatal = [difference for difference in differences(stored, here) if difference.is_fatal]
    for difference in fatal:
        line = f"not comparable: {difference.what}: {difference.base} -> {difference.new}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return not fatal or request.allow_mismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gate:
    """Two builds, the second of which may be missing, and where what they measure goes."""

    builds: tuple[Build, Build | None]
    settings: Settings
    out: Path
    console: Console
    allow_shared: bool
    name: str

    def stage(self, number: int, cases: Sequence[Case], replicates: int) -> tuple[Baseline, Baseline | None]:
        """Measure cells in fresh processes, either build's in turns, and return both sides."""
        new, other = self.builds
        if other is None:
            self._measure(new, number, cases, replicates)
            return load_side(self._folder(new, number)), None
        known = cases
        for count in range(1, replicates + 1):
            # Who comes first takes turns, too: what the one leaves behind (heat, caches) the other meets.
            for build in (new, other) if count % 2 else (other, new):
                if build is new:
                    self._measure(new, number, cases, count)
                else:
                    known = self._measure(other, number, known, count)
        return load_side(self._folder(new, number)), load_side(self._folder(other, number))

    def _measure(self, build: Build, number: int, cases: Sequence[Case], replicates: int) -> Sequence[Case]:
        folder = self._folder(build, number)
        found = measure(build, cases, self.settings, replicates, folder, self.console, allow_shared=self.allow_shared)
        if build is self.builds[0] and len(found) < len(cases):
            raise SpecError(f"this infsa-bench does not know all that {self.name} holds; see {folder}.log")
        return found

    def _folder(self, build: Build, number: int) -> Path:
        return self.out / f"{build.name}-{number}"


def _write(out: Path, comparison: Comparison, manifest: GateManifest) -> None:
    files = {
        "gate.json": encode(manifest, indent=1) + "\n",
        "comparison.json": render_comparison_json(comparison, manifest.exit_code),
        "comparison.md": render_comparison_markdown(comparison),
    }
    try:
        for name, text in files.items():
            (out / name).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise SpecError(f"cannot write to {out}: {error.strerror or error}") from error
