"""Every exception that infsa-bench raises on purpose. A failed *case* is a record, not an exception.

::

    InfsaBenchError
    |-- SpecError            the axes or options of a sweep make no sense
    |   |-- UnknownNameError a mechanism, config, precision ... that does not exist
    |   `-- EmptyShardError  a shard for which the plan has no cells
    |-- SchemaError          a results file that cannot be read
    |-- RunLockedError       another process is writing to this run
    |-- MeterUnavailableError energy cannot be measured here, and why; becomes a reading's reason, never a crash
    `-- SweepStoppedError    the sweep had to stop early: the device or the disk gave up
        `-- PeaksUnavailableError the device's peaks cannot be measured; a sweep goes on without them

The first three are the user's to mend: the command line prints one line and exits 2. A stopped sweep exits 5. An empty
shard is nobody's fault: the command line says so and exits 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class InfsaBenchError(Exception):
    """Base of all deliberate errors; its text is one line for the user."""


class SpecError(InfsaBenchError):
    """The axes or options of a sweep make no sense."""


class UnknownNameError(SpecError):
    """A name that does not exist, with the nearest one that does."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        known = list(known)
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        super().__init__(f"unknown {what} {name!r}; {hint}")


class EmptyShardError(SpecError):
    """There is nothing to do for a shard: the plan has too few cells for so many."""


class SchemaError(InfsaBenchError):
    """A results file that cannot be read: another schema version, a torn line, a wrong type."""


class RunLockedError(InfsaBenchError):
    """Another process is writing to this run."""


class MeterUnavailableError(InfsaBenchError):
    """Energy cannot be measured. ``reason`` is a word for records, the text is for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class SweepStoppedError(InfsaBenchError):
    """The sweep had to stop early; what is recorded is intact."""


class PeaksUnavailableError(SweepStoppedError):
    """What the device can do at its best cannot be measured. A sweep goes on without."""
