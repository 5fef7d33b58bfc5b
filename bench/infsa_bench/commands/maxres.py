"""``infsa-bench maxres``: the largest image that fits, searched and confirmed."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from infsa_bench.commands.options import check_device, parse_implementations, parse_memory_limit
from infsa_bench.commands.report import report_run
from infsa_bench.commands.resuming import earlier_manifest, refuse_differences, say_how_to_go_on
from infsa_bench.errors import SpecError, SweepStoppedError
from infsa_bench.execute.device_lock import DeviceLock
from infsa_bench.execute.launcher import Launcher
from infsa_bench.execute.messages import Hello
from infsa_bench.protocol import PROTOCOLS
from infsa_bench.record import Record
from infsa_bench.report.max_resolution import describe_fate
from infsa_bench.report.units import format_bytes, format_duration
from infsa_bench.schedule import MEMORY_SHARE
from infsa_bench.search import run_search
from infsa_bench.search_plan import Search
from infsa_bench.spec import (
    DEFAULT_IMPLEMENTATIONS,
    DEFAULT_PRECISION,
    EXECUTIONS,
    MAX_RESOLUTION,
    PHASES,
    PRECISIONS,
    Case,
    implementations_of,
    option_choices,
    parse_batch_sizes,
    parse_configs,
    parse_duration,
    parse_mechanisms,
    parse_names,
    parse_options,
    resolve_mechanisms,
)
from infsa_bench.store import Manifest, RunWriter, Settings
from infsa_bench.sweep import utc_now
from infsa_models.registry import PATCH_SIZE

PROBE = replace(PROTOCOLS["quick"].customized(warmup=0, iterations=1, replicates=None), name="probe")
"""Stands in the settings of a search: a probe is one call, and nothing of it is timed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxresRequest:
    """The options of the command line as typed; None where the default depends on the device."""

    mechanism: str
    impl: str | None = None
    config: str = "4L-64H"
    phase: str = "infer"
    dtype: str | None = None
    batch_size: str = "1"
    execution: str = "eager"
    option: tuple[str, ...] = ()
    device: str = "auto"
    memory_limit: str | None = None
    max_res: int = 9216
    step: int = 64
    cell_timeout: str = "60"
    seed: int = 0
    out: Path | None = None
    resume: bool = False
    allow_shared: bool = False
    program: tuple[str, ...] = ("infsa-bench",)
    words: tuple[str, ...] = ()


def maxres(request: MaxresRequest, console: Console) -> int:
    """Search what ``request`` asks for and print the result; return the exit code.

    Raises:
        SpecError: an option makes no sense, the device cannot be used, or the output folder is taken.
        SchemaError, RunLockedError: as :class:`~infsa_bench.store.RunWriter`.
        SweepStoppedError: the device or the disk gave up.
    """
    limit_bytes = None if request.memory_limit is None else parse_memory_limit(request.memory_limit)
    _check(request)
    earlier = _earlier_search(request)
    with (
        Launcher(request.device) as launcher,
        DeviceLock(launcher.hello.environment, allow_shared=request.allow_shared) as lock,
    ):
        hello = launcher.hello
        if limit_bytes is None:
            limit_bytes = earlier.settings.memory_limit_bytes if earlier else _limit_of_a_processor(hello)
        models = _models(request, hello.environment.device_type)
        launcher.check(tuple(dict.fromkeys(model.mechanism for model in models if ":" in model.mechanism)))
        manifest = _manifest(request, hello, models, limit_bytes, earlier)
        assert manifest.search is not None
        if limit_bytes is not None:
            launcher.limit_memory(limit_bytes)
        out = request.out or _default_out(hello.environment.device_type)
        try:
            writer = RunWriter(out, manifest)
        except OSError as error:
            raise SpecError(f"cannot write to {out}: {error.strerror or error}") from error
        with writer:
            if writer.torn_bytes:
                console.print(f"dropped a torn last line of {writer.torn_bytes} bytes", highlight=False)
            _announce(console, manifest, len(writer.recorded), out)

            def finished(record: Record) -> None:
                line = f"{record.case.id}: {describe_fate(record.outcome)} ({format_duration(record.seconds)})"
                console.print(line, markup=False, highlight=False, soft_wrap=True)

            try:
                writer.add_environment(hello.environment)
                run_search(manifest.search, launcher, writer, finished, lock.is_shared)
            except OSError as error:
                raise SweepStoppedError(f"cannot write to {out}: {error}") from error
            except KeyboardInterrupt:
                say_how_to_go_on(console, request.program, request.words, request.out, out)
                return 130
    report_run(out, console)
    console.print(f"records: {out}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _check(request: MaxresRequest) -> None:
    """Check all that can be checked without a worker."""
    check_device(request.device)
    if request.step < 1 or request.step % PATCH_SIZE:
        raise SpecError(f"--step must be a positive multiple of {PATCH_SIZE} (the patch size), not {request.step}")
    if not request.step <= request.max_res <= MAX_RESOLUTION:
        raise SpecError(f"--max-res must be between --step and {MAX_RESOLUTION}, not {request.max_res}")
    if not 0 <= request.seed < 2**63:
        raise SpecError(f"--seed must be between 0 and 2^63 - 1, not {request.seed}")
    if parse_duration(request.cell_timeout) is None:
        raise SpecError("--cell-timeout must be a time here: a probe that never ends would never be given up")
    # Last: a case refuses numbers that make none.
    _models(request, "cpu")


def _models(request: MaxresRequest, device_type: str) -> tuple[Case, ...]:
    """Return one case for each search, at the smallest resolution.

    Raises:
        SpecError: an axis makes no sense, or nothing is left of them.
    """
    mechanisms = parse_mechanisms(request.mechanism)
    known = resolve_mechanisms(mechanisms)
    phases = parse_names(request.phase, "phase", PHASES)
    implementations = parse_implementations(request.impl)
    axes = parse_options(request.option, mechanisms, implementations or DEFAULT_IMPLEMENTATIONS[device_type])
    models = tuple(
        Case(
            mechanism=mechanism,
            implementation=implementation,
            config=config,
            resolution=request.step,
            batch_size=batch_size,
            precision=precision,
            phase=phase,
            execution=execution,
            options=options,
            seed=request.seed,
        )
        for config, phase, batch_size, execution, mechanism in itertools.product(
            parse_configs(request.config),
            phases,
            parse_batch_sizes(request.batch_size),
            parse_names(request.execution, "execution", EXECUTIONS),
            mechanisms,
        )
        for implementation in implementations_of(known[mechanism], implementations, device_type)
        for precision in (
            (DEFAULT_PRECISION[device_type, phase],)
            if request.dtype is None
            else parse_names(request.dtype, "dtype", PRECISIONS)
        )
        for options in option_choices(axes, mechanism, implementation)
    )
    if not models:
        raise SpecError(f"no model: none of {', '.join(mechanisms)} has {' or '.join(implementations)}")
    return models


def _limit_of_a_processor(hello: Hello) -> int | None:
    """Return the limit where none is asked for: a GPU that runs out says so, a machine takes others along."""
    if hello.environment.device_type != "cpu":
        return None
    if hello.available_bytes is None:
        raise SpecError("this machine does not tell how much memory is free: say --memory-limit")
    return round(MEMORY_SHARE * hello.available_bytes)


def _default_out(device_type: str) -> Path:
    return Path("results") / f"maxres-{device_type}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def _earlier_search(request: MaxresRequest) -> Manifest | None:
    """Return the manifest of the search that is to be resumed, None for a new one; raises as earlier_manifest."""
    earlier = earlier_manifest(request.out, request.resume)
    if earlier is not None and earlier.search is None:
        raise SpecError(f"{request.out} holds a sweep, no search; choose another folder")
    return earlier


def _manifest(
    request: MaxresRequest, hello: Hello, models: Sequence[Case], limit_bytes: int | None, earlier: Manifest | None
) -> Manifest:
    """Return a new manifest, or that of the search to be resumed with the new models added to it."""
    timeout_seconds = parse_duration(request.cell_timeout)
    assert timeout_seconds is not None
    settings = Settings(
        device=hello.environment.device,
        protocol=PROBE,
        seed=request.seed,
        time_budget_seconds=None,
        energy="none",
        memory_limit_bytes=limit_bytes,
    )
    search = Search(
        models=tuple(models),
        smallest=request.step,
        largest=request.max_res,
        step=request.step,
        timeout_seconds=timeout_seconds,
        available_bytes=limit_bytes or hello.environment.device_memory_bytes,
    )
    if earlier is None or earlier.search is None:
        return Manifest(
            created_utc=utc_now(),
            command=("infsa-bench", *request.words),
            settings=settings,
            plan=(),
            environments={},
            search=search,
        )
    assert request.out is not None
    known = earlier.search
    # What was predicted from stands: the probes that are recorded followed from it.
    asked = replace(search, models=known.models, available_bytes=known.available_bytes)
    differences = earlier.settings.differences(settings) + (["grid or timeout"] if asked != known else [])
    if earlier.settings.device != settings.device and "device" not in differences:
        differences.insert(0, "device")
    refuse_differences(request.out, differences)
    return replace(earlier, search=replace(known, models=tuple(dict.fromkeys([*known.models, *models]))))


def _announce(console: Console, manifest: Manifest, recorded: int, out: Path) -> None:
    """Say what is searched, before anything is probed."""
    search, limit_bytes = manifest.search, manifest.settings.memory_limit_bytes
    assert search is not None
    count = len(search.models)
    line = f"{count} model{'' if count == 1 else 's'}, image sides up to {search.largest} in steps of {search.step}"
    if limit_bytes is not None:
        line += f", {format_bytes(limit_bytes)} of memory emulated"
    line += f"; {recorded} probe{'' if recorded == 1 else 's'} recorded already" if recorded else ""
    console.print(line, highlight=False, soft_wrap=True)
    console.print(f"records go to {out}", highlight=False, markup=False, soft_wrap=True)
