"""The records of a run that is being written, by case. Measurements, which are most of them, stay on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import BinaryIO

from infsa_bench.codec import decode
from infsa_bench.record import Measurement, Record


@dataclass(frozen=True, slots=True)
class Span:
    """Where the line of a record lies in its file, in bytes, without its newline."""

    begin: int
    length: int


class Recorded(Mapping[str, Record]):
    """The record of each case that counts, by case id, in the order in which the cases were first recorded.

    A measurement is read from the file each time that it is asked for: the samples of all of them need not fit into
    memory. Everything else, from which follows what is still to be run, is at hand in ``unmeasured``.
    """

    def __init__(self) -> None:
        self._found: dict[str, Record | Span] = {}
        self._unmeasured: dict[str, Record] = {}
        self._file: BinaryIO | None = None

    @property
    def unmeasured(self) -> Mapping[str, Record]:
        """The records of cases that failed or were only probed."""
        return MappingProxyType(self._unmeasured)

    def read_from(self, file: BinaryIO) -> None:
        """Read measurements from ``file``, which its owner keeps open."""
        self._file = file

    def add(self, record: Record, span: Span) -> None:
        """Take in a record that is on disk; it takes the place of an earlier one of its case."""
        case_id = record.case.id
        if isinstance(record.outcome, Measurement):
            self._found[case_id] = span
            self._unmeasured.pop(case_id, None)
        else:
            self._found[case_id] = self._unmeasured[case_id] = record

    def __getitem__(self, case_id: str) -> Record:
        found = self._found[case_id]
        if isinstance(found, Record):
            return found
        assert self._file is not None
        return decode(Record, os.pread(self._file.fileno(), found.length, found.begin))

    def __contains__(self, case_id: object) -> bool:
        return case_id in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
