"""The options of ``infsa-bench sweep``, as typed and as understood, and those that other commands share with it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from infsa_bench.energy_plan import EnergyChoice
from infsa_bench.errors import SpecError, UnknownNameError
from infsa_bench.execute.cores import own_cores
from infsa_bench.execute.local_engine import ALL
from infsa_bench.protocol import PROTOCOLS, Protocol
from infsa_bench.record import FailureKind
from infsa_bench.report.units import format_bytes
from infsa_bench.shard import Part, parse_part
from infsa_bench.spec import (
    DEFAULT_IMPLEMENTATIONS,
    EXECUTIONS,
    PAPER_PRECISION,
    PHASES,
    PRECISIONS,
    Sweep,
    known_mechanisms,
    parse_batch_sizes,
    parse_configs,
    parse_duration,
    parse_mechanisms,
    parse_names,
    parse_options,
    parse_resolutions,
    parse_size,
)

CPU_TIME_BUDGET = "4m"
CLOSING_SECONDS = 15.0
"""Share of the time budget kept back for ending the worker and rendering the report."""

ENGINES = ("local", "ray")
RAY_DEVICES = ("auto", "cpu", "cuda")
RAY_ADDRESS = "auto"

ENERGY_CHOICES: tuple[EnergyChoice, ...] = get_args(EnergyChoice)
FAILURE_KINDS: tuple[FailureKind, ...] = get_args(FailureKind)
LEAST_MEMORY_LIMIT_BYTES = 256 * 2**20

CPU_DEFAULTS = {"res": "224..1024", "config": "4L-64H"}
CUDA_DEFAULTS = {"res": "224..9216", "config": "4L-64H,24L-16H"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRequest:
    """The options of the command line as typed; None where the default depends on the device."""

    res: str | None = None
    mechanisms: str = "all"
    impl: str | None = None
    config: str | None = None
    phase: str = "infer"
    dtype: str | None = None
    batch_size: str = "1"
    device: str = "auto"
    engine: str = "local"
    ray_address: str | None = None
    accelerator: str | None = None
    per_accelerator: bool = False
    execution: str = "eager"
    option: tuple[str, ...] = ()
    protocol: str = "quick"
    warmup: int | None = None
    iterations: int | None = None
    replicates: int | None = None
    energy: str = "auto"
    time_budget: str | None = None
    seed: int = 0
    out: Path | None = None
    resume: bool = False
    retry: str | None = None
    cell_timeout: str | None = None
    cell_budget: str | None = None
    memory_limit: str | None = None
    prune: bool = True
    peaks: bool = True
    report: bool = True
    allow_shared: bool = False
    dry_run: bool = False
    shard: str | None = None
    program: tuple[str, ...] = ("infsa-bench",)
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions:
    """What the words of the command line stand for, where that does not depend on the device."""

    protocol: Protocol
    energy: EnergyChoice
    case_timeout_seconds: float | None
    case_budget_seconds: float | None
    memory_limit_bytes: int | None
    devices: tuple[str, ...]
    retried: frozenset[FailureKind]
    part: Part | None


def check_options(request: SweepRequest) -> SweepOptions:
    """Check all that can be checked without a worker."""
    sweep_axes(request, "cpu", 1)
    budget_seconds = time_budget(request, "cpu")
    if budget_seconds is not None and budget_seconds <= CLOSING_SECONDS:
        raise SpecError(f"--time-budget must be above {CLOSING_SECONDS:.0f} s, which ending and rendering may take")
    if not 0 <= request.seed < 2**63:
        raise SpecError(f"--seed must be between 0 and 2^63 - 1, not {request.seed}")
    if request.retry is not None and not request.resume:
        raise SpecError("--retry needs --resume: it measures again what a run has a record of")
    devices = _devices_of_engine(request)
    if request.protocol not in PROTOCOLS:
        raise UnknownNameError("protocol", request.protocol, PROTOCOLS)
    return SweepOptions(
        protocol=PROTOCOLS[request.protocol].customized(
            warmup=request.warmup, iterations=request.iterations, replicates=request.replicates
        ),
        energy=_energy_choice(request.energy),
        case_timeout_seconds=None if request.cell_timeout is None else parse_case_timeout(request.cell_timeout),
        case_budget_seconds=None if request.cell_budget is None else parse_duration(request.cell_budget),
        memory_limit_bytes=None if request.memory_limit is None else parse_memory_limit(request.memory_limit),
        devices=devices,
        retried=frozenset(() if request.retry is None else parse_names(request.retry, "failure", FAILURE_KINDS)),
        part=None if request.shard is None else parse_part(request.shard),
    )


def _devices_of_engine(request: SweepRequest) -> tuple[str, ...]:
    if request.engine not in ENGINES:
        raise UnknownNameError("engine", request.engine, ENGINES)
    if request.engine == "ray":
        if request.device not in RAY_DEVICES:
            raise SpecError(
                f"--device {request.device}: with --engine ray write auto, cpu or cuda; Ray decides which of them"
            )
        if request.accelerator == "":
            raise SpecError("--accelerator is empty; write the name of an accelerator type, e.g. A100")
        if request.ray_address == "":
            raise SpecError("--ray-address is empty; write auto or the address of the cluster, e.g. head:6379")
        if request.accelerator is not None and request.per_accelerator:
            raise SpecError("--accelerator and --per-accelerator: one or all of them, not both")
        return (request.device,)
    for name in ("ray_address", "accelerator", "per_accelerator"):
        # An empty word was typed, too.
        if getattr(request, name) not in (None, False):
            raise SpecError(f"--{name.replace('_', '-')}: only together with --engine ray")
    return parse_devices(request.device)


def _energy_choice(text: str) -> EnergyChoice:
    for choice in ENERGY_CHOICES:
        if text == choice:
            return choice
    raise UnknownNameError("energy", text, ENERGY_CHOICES)


def parse_devices(text: str) -> tuple[str, ...]:
    """Parse the devices that share a sweep: names with commas between them, or ``all`` for every GPU.

    ``cpu`` can stand there several times, for as many workers.

    Raises:
        SpecError: one of them is none, or they do not go together.
    """
    if text == ALL:
        return (ALL,)
    names = tuple(text.split(","))
    for name in names:
        check_device(name, "auto, cpu, cuda:N, several with commas, or all")
    # One GPU has one name, which torch understands: cuda:00 is cuda:0.
    names = tuple(f"cuda:{int(name[5:])}" if name.startswith("cuda:") else name for name in names)
    if len(names) == 1:
        return names
    if "auto" in names or ("cpu" in names and set(names) != {"cpu"}):
        raise SpecError(f"--device {text}: several devices are GPUs, or workers on the processor (cpu,cpu)")
    names = tuple("cuda:0" if name == "cuda" else name for name in names)
    twice = [name for name in dict.fromkeys(names) if name != "cpu" and names.count(name) > 1]
    if twice:
        raise SpecError(f"--device {text}: {twice[0]} stands there twice; a GPU measures one case at a time")
    cores = len(own_cores())
    if names[0] == "cpu" and len(names) > cores:
        raise SpecError(f"--device {text}: {len(names)} workers on {cores} cores would disturb each other")
    return names


def check_device(name: str, known: str = "auto, cpu or cuda:N") -> None:
    """Refuse what is no name of a device.

    Raises:
        SpecError: it is none.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", name):
        raise SpecError(f"unknown device {name!r}; write {known}")


def parse_implementations(text: str | None) -> tuple[str, ...]:
    """Parse a comma-separated list of implementations that any mechanism has; none of them for the default.

    Raises:
        UnknownNameError, SpecError: as parse_names.
    """
    if text is None:
        return ()
    known = [implementation for entry in known_mechanisms().values() for implementation in entry.implementations]
    return parse_names(text, "implementation", tuple(dict.fromkeys(known)))


def parse_case_timeout(text: str) -> float:
    """Parse the time that a single case may take; ``none`` is no limit.

    Raises:
        SpecError: it is no time.
    """
    seconds = parse_duration(text)
    return math.inf if seconds is None else seconds


def parse_memory_limit(text: str) -> int:
    """Parse the memory of the device to be emulated.

    Raises:
        SpecError: it is no size, or one that holds no model.
    """
    limit_bytes = parse_size(text)
    if limit_bytes < LEAST_MEMORY_LIMIT_BYTES:
        raise SpecError(f"a memory limit of {text} is below {format_bytes(LEAST_MEMORY_LIMIT_BYTES)}: no model fits")
    return limit_bytes


def sweep_axes(request: SweepRequest, device_type: str, replicates: int) -> Sweep:
    """Return the axes of a sweep, with the defaults of the device.

    Raises:
        SpecError: one of them makes no sense.
    """
    defaults = CUDA_DEFAULTS if device_type == "cuda" else CPU_DEFAULTS
    mechanisms = parse_mechanisms(request.mechanisms)
    implementations = parse_implementations(request.impl)
    dtype = request.dtype
    if dtype is None and request.protocol == "paper":
        dtype = PAPER_PRECISION
    return Sweep(
        mechanisms=mechanisms,
        implementations=implementations,
        configs=parse_configs(defaults["config"] if request.config is None else request.config),
        resolutions=parse_resolutions(defaults["res"] if request.res is None else request.res),
        phases=parse_names(request.phase, "phase", PHASES),
        precisions=() if dtype is None else parse_names(dtype, "dtype", PRECISIONS),
        executions=parse_names(request.execution, "execution", EXECUTIONS),
        batch_sizes=parse_batch_sizes(request.batch_size),
        options=parse_options(request.option, mechanisms, implementations or DEFAULT_IMPLEMENTATIONS[device_type]),
        replicates=replicates,
        seed=request.seed,
    )


def time_budget(request: SweepRequest, device_type: str) -> float | None:
    """Return the seconds that the whole sweep may take, None for no limit; raises as parse_duration."""
    if request.time_budget is not None:
        return parse_duration(request.time_budget)
    return parse_duration(CPU_TIME_BUDGET) if device_type == "cpu" else None
