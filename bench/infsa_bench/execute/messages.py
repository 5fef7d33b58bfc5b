"""What parent and worker say to each other: one dataclass a line of JSON, after its name. Imports no torch.

The worker reads commands on its standard input and ends when that does; it answers on a pipe of its own, because
libraries may print what they like.
"""

from __future__ import annotations

from dataclasses import dataclass

from infsa_bench.errors import SchemaError
from infsa_bench.record import Environment, Failure, Measurement, Stage, decode, encode
from infsa_bench.spec import Case, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckCommand:
    """Try ``package.module:Class`` mechanisms out; answered by Checked."""

    mechanisms: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCommand:
    """Run one case; answered by any number of StageReached, then Finished. The limit is for its timed iterations."""

    case: Case
    protocol: Protocol
    limit_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The worker is ready. Rates of a matrix product by dtype name, in FLOP/s; host memory it could still take."""

    environment: Environment
    matmul_flops_per_second: dict[str, float]
    available_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The device cannot be used; the worker ends."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """By mechanism, what is wrong with it; empty when all is well."""

    problems: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReached:
    """The case has got as far as ``stage``."""

    stage: Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The case's outcome; ``reusable`` says that the worker is as good as new."""

    outcome: Measurement | Failure
    reusable: bool


Command = CheckCommand | RunCommand
Message = Hello | Refused | Checked | StageReached | Finished

_KINDS: dict[str, type] = {
    kind.__name__: kind for kind in (CheckCommand, RunCommand, Hello, Refused, Checked, StageReached, Finished)
}


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
