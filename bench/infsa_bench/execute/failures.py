"""What an exception in a case becomes: a failure with everything that explains it. The worker's side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

import torch

from infsa_bench.execute.instruments import Instruments
from infsa_bench.execute.modes import UnsupportedError
from infsa_bench.measure.memory import ErrorKind, classify_error
from infsa_bench.record import MEMORY_KINDS, Failure, Stage

MAX_MESSAGE_LENGTH = 300

Result = TypeVar("Result")

FRAGMENTED_SHARE = 0.1
"""Share of a GPU's memory that the allocator holds free, in pieces, above which it is to blame."""


def attempt(work: Callable[[], Result]) -> Result | Exception:
    """Return what ``work`` returns or raises: the one place that catches everything.

    A failed case is a record, not an exception, and a mechanism from elsewhere may raise anything.
    """
    try:
        return work()
    except Exception as error:  # noqa: BLE001
        return error


def describe_failure(error: Exception, stage: Stage, instruments: Instruments) -> Failure:
    """Return the failure that ``error`` is. What its traceback keeps alive is still there: it is what was held."""
    is_unsupported = isinstance(error, UnsupportedError | NotImplementedError)
    found = ErrorKind(kind="unsupported") if is_unsupported else classify_error(error)
    cause, allocated_bytes, reserved_bytes, free_bytes = found.cause, None, None, None
    if found.kind in MEMORY_KINDS:
        # A device that met an error may answer nothing any more.
        with contextlib.suppress(RuntimeError):
            allocated_bytes = instruments.peak_memory.held_bytes()
            reserved_bytes = instruments.peak_memory.reserved_bytes()
            free_bytes = instruments.available_bytes()
        if cause == "allocation" and _is_fragmented(instruments.device, allocated_bytes, reserved_bytes):
            cause = "fragmentation"
    return Failure(
        kind=found.kind,
        stage=stage,
        message=first_line(error),
        cause=cause,
        exception=type(error).__name__,
        requested_bytes=found.requested_bytes,
        allocated_bytes=allocated_bytes,
        reserved_bytes=reserved_bytes,
        free_bytes=free_bytes,
    )


def _is_fragmented(device: torch.device, allocated_bytes: int | None, reserved_bytes: int | None) -> bool:
    if allocated_bytes is None or reserved_bytes is None:
        return False
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    return reserved_bytes - allocated_bytes > FRAGMENTED_SHARE * total_bytes


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, printable and of bounded length, or its name if it has none."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    # Somebody else's text: no control characters for terminals, no lone surrogates, which no file can hold.
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
    return line if len(line) <= MAX_MESSAGE_LENGTH else line[:MAX_MESSAGE_LENGTH] + "..."
