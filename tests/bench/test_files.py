from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import pytest

from infsa_bench.errors import SchemaError
from infsa_bench.files import open_regular, read_file, read_lines, refuse_exchanged, replace_file


@pytest.mark.parametrize("by", ["link", "FIFO", "folder"])
def test_what_takes_a_files_place_while_it_is_opened_is_neither_followed_nor_waited_for(
    tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, secret = tmp_path / "file", tmp_path / "secret"
    secret.write_text("secret")
    file.write_text("whole")
    lstat = Path.lstat

    def lstat_and_exchange(self: Path) -> os.stat_result:
        found = lstat(self)
        file.unlink()
        exchange: dict[str, Callable[[], object]] = {
            "link": lambda: file.symlink_to(secret),
            "FIFO": lambda: os.mkfifo(file),
            "folder": file.mkdir,
        }
        exchange[by]()
        return found

    monkeypatch.setattr(Path, "lstat", lstat_and_exchange)
    with pytest.raises((SchemaError, OSError), match=r"symbolic links|FIFO where|folder where"):
        open_regular(file)


def test_descriptors_are_not_inherited(tmp_path: Path) -> None:
    descriptor = open_regular(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


def test_limits_hold_for_what_has_grown_while_it_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"a\n" * 10)
    assert read_file(file, 20) == b"a\n" * 10
    assert list(read_lines(file, 20, 2)) == [b"a\n"] * 10
    lines = read_lines(file, 20, 2)
    assert next(lines) == b"a\n"
    with file.open("ab") as more:
        more.write(b"a\n" * 100_000)
    with pytest.raises(SchemaError, match="more than the 20 bytes that infsa-bench reads"):
        list(lines)

    def small(descriptor: int) -> os.stat_result:
        return os.stat_result((0o100644, *[0] * 9))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", small)
        with pytest.raises(SchemaError, match="more than the 20 bytes"):
            read_file(file, 20)


def test_a_long_line_is_not_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"a\n" + b"b" * 5 + b"\n")
    assert list(read_lines(file, 100, 6)) == [b"a\n", b"bbbbb\n"]
    lines = read_lines(file, 100, 5)
    assert next(lines) == b"a\n"
    with pytest.raises(SchemaError, match="line 2: more than the 5 bytes"):
        next(lines)


def test_a_file_that_is_still_at_its_path(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with file.open("wb") as handle:
        refuse_exchanged(handle, file)
        file.rename(tmp_path / "other")
        refuse_exchanged(handle, tmp_path / "other")
        with pytest.raises(FileNotFoundError, match="file was deleted or replaced"):
            refuse_exchanged(handle, file)
        file.symlink_to("other")
        with pytest.raises(FileNotFoundError, match="file was deleted or replaced"):
            refuse_exchanged(handle, file)


def test_a_draft_that_fails_is_taken_away(tmp_path: Path) -> None:
    def fail(handle: TextIO) -> None:
        handle.write("half")
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="No space left"):
        replace_file(tmp_path / "draft", tmp_path / "file", fail)
    assert [(item.name, item.read_text()) for item in tmp_path.iterdir()] == [("file", "old")]
