"""Packing and unpacking: everything comes back, nothing is larger than it may be, and nothing foreign gets out."""

from __future__ import annotations

import io
import random
import subprocess
import tarfile
from pathlib import Path

import pytest
from sample_reference import reference_run

from infsa_bench.errors import SpecError
from infsa_bench.reference.parts import pack, parts_in, unpack
from infsa_bench.reference.state import STATE, write_reference_run

NOISE = random.Random(0)


def write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "gpu-x"
    folder.mkdir()
    write_reference_run(folder, reference_run())
    write(folder / "table1" / "records.jsonl", NOISE.randbytes(50_000))
    write(folder / "table1" / "traces" / "a.csv", NOISE.randbytes(20_000))
    write(folder / "logs" / "probe.doctor.log", b"well\n" * 1000)
    # What stays behind.
    write(folder / ".lock", b"")
    write(folder / "table1" / "manifest.json.new", b"{")
    write(folder / "parts" / "old", b"old")
    write(folder / "ablation" / "report" / "index.html", b"page")
    (folder / "link").symlink_to("/etc/hostname")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_there_and_back(run: Path, tmp_path: Path) -> None:
    packed = pack(run, tmp_path / "sent", part_bytes=30_000)
    assert packed.left_out == ()
    assert [file.name for file in packed.parts] == [f"gpu-x.tar.gz.{number}" for number in range(3)]
    assert all(file.stat().st_size <= 30_000 for file in packed.parts)
    assert sorted(packed.parts) == sorted((tmp_path / "sent").iterdir())
    unpack(tmp_path / "sent", tmp_path / "home" / "results" / "h100")
    expected = contents(run)
    for left in (".lock", "table1/manifest.json.new", "parts/old", "ablation/report/index.html", "link"):
        del expected[left]
    assert contents(tmp_path / "home" / "results" / "h100") == expected
    assert [entry.name for entry in (tmp_path / "home" / "results").iterdir()] == ["h100"]


def test_anybody_can_unpack_it(run: Path, tmp_path: Path) -> None:
    pack(run, tmp_path / "sent", part_bytes=30_000)
    subprocess.run("cat gpu-x.tar.gz.* | tar xz", shell=True, cwd=tmp_path / "sent", check=True)
    assert (tmp_path / "sent" / "gpu-x" / STATE).read_bytes() == (run / STATE).read_bytes()


def test_traces_have_no_room_first_and_the_number_of_parts_holds(run: Path, tmp_path: Path) -> None:
    packed = pack(run, tmp_path / "sent", part_bytes=20_000, max_parts=3)
    assert packed.left_out == ("table1/traces/a.csv",)
    assert len(packed.parts) == 3
    unpack(tmp_path / "sent", tmp_path / "home")
    assert (tmp_path / "home" / "table1" / "records.jsonl").read_bytes() == (run / "table1/records.jsonl").read_bytes()


def test_packing_again_leaves_nothing_of_the_last_time(run: Path, tmp_path: Path) -> None:
    pack(run, tmp_path / "sent", part_bytes=10_000)
    (run / "table1" / "records.jsonl").write_bytes(b"little\n")
    packed = pack(run, tmp_path / "sent", part_bytes=10_000)
    assert sorted(packed.parts) == sorted((tmp_path / "sent").iterdir())
    unpack(tmp_path / "sent", tmp_path / "home")
    assert (tmp_path / "home" / "table1" / "records.jsonl").read_bytes() == b"little\n"


def test_a_later_state_replaces_an_earlier_one_and_nothing_else_does(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "home"
    pack(run, tmp_path / "first")
    unpack(tmp_path / "first", out)
    write(out / "table1" / "traces" / "kept.csv", b"of the first time")
    write_reference_run(run, reference_run(updated="2026-11-27T08:00:00+00:00"))
    write(run / "ladder" / "records.jsonl", b"more\n")
    pack(run, tmp_path / "second")
    unpack(tmp_path / "second", out)
    assert (out / "ladder" / "records.jsonl").is_file()
    assert (out / "table1" / "traces" / "kept.csv").is_file()
    with pytest.raises(SpecError, match="newer"):
        unpack(tmp_path / "first", out)
    other = tmp_path / "other"
    write(other / "mine.txt", b"mine")
    with pytest.raises(SpecError, match="no reference run"):
        unpack(tmp_path / "first", other)
    assert contents(other) == {"mine.txt": b"mine"}


def test_what_is_missing_or_broken_is_said(run: Path, tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    with pytest.raises(SpecError, match="no parts"):
        unpack(sent, tmp_path / "home")
    parts = pack(run, sent, part_bytes=30_000).parts
    whole = parts[1].read_bytes()
    parts[1].unlink()
    with pytest.raises(SpecError, match="lacks a part"):
        unpack(sent, tmp_path / "home")
    parts[1].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(SpecError, match="cannot be unpacked"):
        unpack(sent, tmp_path / "home")
    parts[1].write_bytes(whole)
    parts[-1].unlink()
    with pytest.raises(SpecError, match="cannot be unpacked"):
        unpack(sent, tmp_path / "home")
    write(sent / "other.tar.gz.0", b"")
    with pytest.raises(SpecError, match="of gpu-x, other"):
        parts_in(sent)
    assert not (tmp_path / "home").exists()
    assert not list(tmp_path.glob(".unpacked-*"))


@pytest.mark.parametrize("kind", ["outside", "absolute", "link", "device"])
def test_what_somebody_else_packed_stays_inside(kind: str, tmp_path: Path) -> None:
    entry = tarfile.TarInfo({"outside": "../../evil", "absolute": "/tmp/infsa-evil"}.get(kind, "gpu-x/evil"))
    if kind == "link":
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
    elif kind == "device":
        entry.type = tarfile.FIFOTYPE
    else:
        entry.size = 4
    (tmp_path / "sent").mkdir()
    with tarfile.open(tmp_path / "sent" / "gpu-x.tar.gz.0", "w:gz") as archive:
        archive.addfile(entry, io.BytesIO(b"evil"))
    with pytest.raises(SpecError):
        unpack(tmp_path / "sent", tmp_path / "deep" / "home")
    assert not (tmp_path / "evil").exists()
    assert not Path("/tmp/infsa-evil").exists()
    assert not (tmp_path / "deep" / "home").exists()
