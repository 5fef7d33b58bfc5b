"""A reference run on its way: packed into few files of bounded size, and unpacked again.

The parts are one ``tar.gz`` cut into pieces, so that ``cat NAME.tar.gz.* | tar xz`` unpacks it anywhere. What matters
most comes first; traces of power, the largest files, come last and are left out where there is no room for them.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from infsa_bench.errors import SpecError
from infsa_bench.files import sync_folder
from infsa_bench.reference.state import STATE, load_reference_run
from infsa_bench.traces import TRACES

MAX_PARTS = 6
PART_BYTES = 16 * 10**6
MAX_UNPACKED_BYTES = 4 * 2**30
LEFT_BEHIND = ("report", "parts")
"""Folders of a run that are not packed: reports are rendered again from what is."""

LINES = ".jsonl"
"""Suffix of files that grow by a line at a time, each written at once."""

LINE_SECONDS = 0.05
"""More than the writing of a line takes."""

ROOM_SHARE = 0.98
"""Share of all parts that files may fill, each compressed by itself; the rest is for headers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """The files that were written, in order, and what had no room in them."""

    parts: tuple[Path, ...]
    left_out: tuple[str, ...]


def pack(folder: Path, into: Path, *, part_bytes: int = PART_BYTES, max_parts: int = MAX_PARTS) -> Packed:
    """Pack the reference run in ``folder`` into ``into``, in the place of what was packed there before.

    Raises:
        OSError: it cannot be written.
    """
    into.mkdir(parents=True, exist_ok=True)
    name = folder.resolve().name
    earlier = parts_in(into, name)
    room_bytes = int(ROOM_SHARE * part_bytes * max_parts)
    left_out: list[str] = []
    with tempfile.TemporaryFile(dir=into) as whole:
        with (
            gzip.GzipFile(fileobj=whole, mode="wb", compresslevel=6, mtime=0, filename="") as compressed,
            tarfile.open(fileobj=compressed, mode="w|") as archive,
        ):
            for file in _files(folder):
                try:
                    content, modified = _content(file), int(file.stat().st_mtime)
                except FileNotFoundError:
                    # A sweep that runs meanwhile may take a file back.
                    continue
                size = len(zlib.compress(content, 6)) + 1024
                if size > room_bytes:
                    left_out.append(file.relative_to(folder).as_posix())
                    continue
                room_bytes -= size
                entry = tarfile.TarInfo(f"{name}/{file.relative_to(folder).as_posix()}")
                entry.size, entry.mode, entry.mtime = len(content), 0o644, modified
                archive.addfile(entry, io.BytesIO(content))
        parts = _cut(whole, into, name, part_bytes)
    for file in earlier:
        if file not in parts:
            file.unlink(missing_ok=True)
    sync_folder(into)
    return Packed(parts=parts, left_out=tuple(left_out))


def parts_in(folder: Path, name: str | None = None) -> list[Path]:
    """Return the parts that lie in ``folder``, in order; of one run, if it is named.

    Raises:
        SpecError: there are parts of several runs, or one of them is missing.
    """
    found: dict[str, dict[int, Path]] = {}
    for file in folder.iterdir() if folder.is_dir() else ():
        match = re.fullmatch(r"(.+)\.tar\.gz\.([0-9]+)", file.name)
        if match and name in (None, match[1]):
            found.setdefault(match[1], {})[int(match[2])] = file
    if len(found) > 1:
        raise SpecError(f"{folder} holds parts of {', '.join(sorted(found))}; keep those of one run in a folder")
    parts = next(iter(found.values()), {})
    if name is None and sorted(parts) != list(range(len(parts))):
        raise SpecError(f"{folder} lacks a part: there are {', '.join(parts[number].name for number in sorted(parts))}")
    return [parts[number] for number in sorted(parts)]


def unpack(folder: Path, out: Path) -> None:
    """Make ``out`` the reference run whose parts lie in ``folder``; an earlier state of the same run is replaced.

    Files that only the earlier state has are kept: its reports, and traces that were left out this time.

    Raises:
        SpecError: no parts, broken ones, or ``out`` holds something else, or a later state.
        SchemaError: a state cannot be read.
    """
    parts = parts_in(folder)
    if not parts:
        raise SpecError(f"{folder} holds no parts of a reference run (NAME.tar.gz.0, ...)")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=out.parent) as draft:
        try:
            _extract(parts, Path(draft))
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
            raise SpecError(f"the parts in {folder} cannot be unpacked: {error}") from None
        tops = list(Path(draft).iterdir())
        if len(tops) != 1:
            raise SpecError(f"the parts in {folder} hold no single reference run")
        packed = load_reference_run(tops[0])
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            earlier = load_reference_run(out)
            if earlier.created_utc != packed.created_utc or earlier.device_name != packed.device_name:
                raise SpecError(f"{out} holds another reference run; choose another folder")
            if earlier.updated_utc > packed.updated_utc:
                raise SpecError(f"{out} is newer ({earlier.updated_utc}) than the parts ({packed.updated_utc})")
        _move_over(tops[0], out)


def _files(folder: Path) -> Iterator[Path]:
    """Yield what is to be packed: the state first, traces last, no locks and drafts.

    A sweep may be writing meanwhile: its records come before its manifest, which then knows all that they refer to.
    """
    found = [
        file
        for file in folder.rglob("*")
        if file.is_file()
        and not file.is_symlink()
        and not file.name.startswith(".")
        and not file.name.endswith(".new")
        and not set(file.relative_to(folder).parts[:-1]).intersection(LEFT_BEHIND)
    ]
    yield from sorted(found, key=lambda file: (file.name != STATE, TRACES in file.parts, file.suffix != LINES, file))


def _content(file: Path) -> bytes:
    """Return what is in a file, a last line that is just being written with all of it."""
    content = file.read_bytes()
    if file.suffix != LINES or not content or content.endswith(b"\n"):
        return content
    time.sleep(LINE_SECONDS)
    return file.read_bytes()


def _cut(whole: IO[bytes], into: Path, name: str, part_bytes: int) -> tuple[Path, ...]:
    """Write the archive as parts, all of them before the first takes the place of an earlier one."""
    whole.seek(0)
    drafts: list[tuple[Path, Path]] = []
    while chunk := whole.read(part_bytes):
        file = into / f"{name}.tar.gz.{len(drafts)}"
        draft = into / f".{file.name}"
        with draft.open("wb") as handle:
            handle.write(chunk)
            handle.flush()
            os.fsync(handle.fileno())
        drafts.append((draft, file))
    for draft, file in drafts:
        draft.replace(file)
    return tuple(file for _, file in drafts)


def _extract(parts: Sequence[Path], into: Path) -> None:
    left_bytes = MAX_UNPACKED_BYTES
    # By gzip itself: tarfile's own reading of it compares no checksum.
    with _Joined(parts) as joined, gzip.GzipFile(fileobj=joined) as whole:
        with tarfile.open(fileobj=whole, mode="r|") as archive:
            for entry in archive:
                left_bytes -= entry.size
                if not entry.isfile() or left_bytes < 0:
                    raise tarfile.TarError(f"{entry.name} is no regular file, or there is more than can be read")
                archive.extract(entry, into, filter="data")
        while whole.read(2**20):
            pass


class _Joined(io.RawIOBase):
    """The parts as one stream of bytes."""

    def __init__(self, parts: Sequence[Path]) -> None:
        self._stack = contextlib.ExitStack()
        self._handles = [self._stack.enter_context(part.open("rb")) for part in parts]

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, fewer where a part ends, none at the end of the last."""
        while self._handles:
            chunk = self._handles[0].read(size)
            if chunk:
                return chunk
            self._handles.pop(0).close()
        return b""

    def close(self) -> None:
        """Close the parts."""
        self._stack.close()
        super().close()


def _move_over(source: Path, target: Path) -> None:
    """Move every file of ``source`` to its place in ``target``; the state last."""
    files = sorted((file for file in source.rglob("*") if file.is_file()), key=lambda file: file.name == STATE)
    for file in files:
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, place)
