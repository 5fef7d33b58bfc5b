"""Files of a run's folder, which somebody else may have packed: read without trust, replaced in one step, synced.

Nothing but a regular file is opened, and no symbolic link in its place followed: what a run's folder shows is in it,
and no FIFO or device keeps a reader waiting.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from infsa_bench.errors import SchemaError, SpecError

KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(file: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file and return its descriptor, which no child process inherits.

    Raises:
        SchemaError: something else lies there.
        OSError: there is nothing, or it cannot be opened.
    """
    try:
        kind = stat.S_IFMT(file.lstat().st_mode)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
        kind = stat.S_IFREG
    if kind == stat.S_IFREG:
        # Should it have been exchanged in between, it is neither followed nor waited for.
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = os.open(file, flags, mode=0o666)
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind == stat.S_IFREG:
            return descriptor
        os.close(descriptor)
    raise SchemaError(f"{file}: {KINDS.get(kind, 'something else')} where a regular file should be")


def read_file(file: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        SchemaError: not a regular file, or larger than ``max_bytes``.
        OSError: it cannot be read.
    """
    with os.fdopen(open_regular(file), "rb") as handle:
        _refuse_above(os.fstat(handle.fileno()).st_size, max_bytes, file)
        # It may have grown since.
        content = handle.read(max_bytes + 1)
        _refuse_above(len(content), max_bytes, file)
        return content


def read_lines(file: Path, max_bytes: int, max_line_bytes: int) -> Iterator[bytes]:
    """Yield the lines of a regular file, each with its newline, which only the last one may lack.

    Raises:
        SchemaError: not a regular file, or it or a line of it is larger than it may be.
        OSError: it cannot be read.
    """
    with os.fdopen(open_regular(file), "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        _refuse_above(size, max_bytes, file)
        number = total = 0
        while line := handle.readline(max_line_bytes + 1):
            number, total = number + 1, total + len(line)
            _refuse_above(len(line), max_line_bytes, file, f", line {number}")
            _refuse_above(total, max_bytes, file)
            yield line


def _refuse_above(size: int, most: int, file: Path, where: str = "") -> None:
    if size > most:
        raise SchemaError(f"{file}{where}: more than the {most} bytes that infsa-bench reads")


def refuse_exchanged(handle: BinaryIO, file: Path) -> None:
    """Check that the open file is still the one at its path: what is written to another would be lost.

    Raises:
        OSError: it is not.
    """
    try:
        is_there = os.path.samestat(os.fstat(handle.fileno()), file.lstat())
    except (FileNotFoundError, NotADirectoryError):
        is_there = False
    if not is_there:
        raise FileNotFoundError(f"{file} was deleted or replaced while the run was being written")


def replace_file(draft: Path, file: Path, write: Callable[[TextIO], object]) -> None:
    """Replace a file in one step: a reader sees the old one or the new one, never half of one."""
    # Whatever an earlier process or somebody else left in the draft's place is not written into.
    draft.unlink(missing_ok=True)
    try:
        with draft.open("x", encoding="utf-8", newline="") as handle:
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        draft.replace(file)
    except OSError:
        # Half a draft would only take what space is left.
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    sync_folder(file.parent)


def sync_folder(path: Path) -> None:
    """Return once new names in a folder are on disk: syncing the files alone does not promise that."""
    folder = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(file: Path, text: str) -> None:
    """Make ``text`` what is in a file that a user named, in one step, with the folders that it lies in.

    Raises:
        SpecError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file.with_name(f"{file.name}.new"), file, lambda handle: handle.write(text))
    except OSError as error:
        raise SpecError(f"cannot write {file}: {error.strerror or error}") from error
