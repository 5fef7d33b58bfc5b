"""What parent and worker say to each other: one dataclass a line of JSON, after its name. Imports no torch.

The worker reads commands on its standard input and ends when that does; it answers on a pipe of its own, because
libraries may print what they like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from infsa_bench.codec import decode, encode
from infsa_bench.energy_plan import EnergyPreset, TrialShare
from infsa_bench.errors import SchemaError
from infsa_bench.machine import Environment
from infsa_bench.peaks import MeasuredPeaks
from infsa_bench.protocol import Protocol
from infsa_bench.record import EnergyCalibration, EnergySource, Outcome, Stage, TracePoint
from infsa_bench.spec import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckCommand:
    """Try ``package.module:Class`` mechanisms out; answered by Checked."""

    mechanisms: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnoseCommand:
    """Find out what this machine can measure; answered by Diagnosed. ``selfcheck`` also tries the meters out."""

    selfcheck: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateCommand:
    """Watch the idle device once more; answered by Calibrated. ``calibration`` is what is known of its counter."""

    calibration: EnergyCalibration


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurePeaksCommand:
    """Measure what the device can do at its best; answered by PeaksMeasured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitMemoryCommand:
    """Take no more than so many bytes from now on, as on a smaller device; answered by MemoryLimited.

    ``is_tried_out``: also see whether that is so, with two allocations that would spoil the worker for measuring.
    """

    limit_bytes: int
    is_tried_out: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeCommand:
    """Build a case and run it once; answered as RunCommand."""

    case: Case


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCommand:
    """Measure one case; answered by any number of StageReached, then Finished.

    ``limit_seconds`` is for its warm-up and timing, None for as long as the protocol takes; ``energy`` is how its
    energy is watched, None for not at all, ``share`` the trials that fall to this process, None for all of them;
    ``calibration`` is what an earlier worker of the run found out about the energy counter, None for find out yourself.
    """

    case: Case
    protocol: Protocol
    limit_seconds: float | None
    energy: EnergyPreset | None = None
    share: TrialShare | None = None
    calibration: EnergyCalibration | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The worker is ready. Rates of a matrix product by dtype name, in FLOP/s; host memory it could still take.

    ``gpus`` are the CUDA devices that it sees, its own among them. ``energy_source`` is None where no energy can be
    measured; ``no_energy_reason`` then says why.
    """

    environment: Environment
    gpus: tuple[str, ...]
    matmul_flops_per_second: dict[str, float]
    available_bytes: int | None
    energy_source: EnergySource | None
    no_energy_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The device cannot be used; the worker ends."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """By mechanism, what is wrong with it; empty when all is well."""

    problems: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of a diagnosis: is it measured (``yes``, ``limited``, ``no``), or did a check ``pass`` or ``fail``."""

    name: str
    verdict: Literal["yes", "limited", "no", "pass", "fail"]
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosed:
    """What this machine can measure."""

    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """What was found out about the energy counter; None where there is none."""

    calibration: EnergyCalibration | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeaksMeasured:
    """What the device can do, or why that could not be measured."""

    peaks: MeasuredPeaks | None
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimited:
    """The limit holds, or what is wrong with it."""

    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReached:
    """The case has got as far as ``stage``. Said again, it is a sign of life."""

    stage: Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The case's outcome; ``reusable`` says that the worker is as good as new.

    ``trace`` is the power over the case's energy trials, ``calibration`` what the worker knows about the counter.
    """

    outcome: Outcome
    reusable: bool
    trace: tuple[TracePoint, ...] = ()
    calibration: EnergyCalibration | None = None


Command = (
    CheckCommand
    | DiagnoseCommand
    | CalibrateCommand
    | MeasurePeaksCommand
    | LimitMemoryCommand
    | ProbeCommand
    | RunCommand
)
Message = Hello | Refused | Checked | Diagnosed | Calibrated | PeaksMeasured | MemoryLimited | StageReached | Finished

_KINDS: dict[str, type] = {kind.__name__: kind for kind in (*get_args(Command), *get_args(Message))}


def to_line(message: Command | Message) -> bytes:
    """Return ``message`` as one line, its newline included."""
    return f"{type(message).__name__} {encode(message)}\n".encode()


def from_line(line: bytes) -> Command | Message:
    """Return the message of one line.

    Raises:
        SchemaError: it is none.
    """
    name, _, body = line.partition(b" ")
    kind = _KINDS.get(name.decode(errors="replace"))
    if kind is None:
        raise SchemaError(f"not a message: {line[:60]!r}")
    message: Command | Message = decode(kind, body)
    return message
