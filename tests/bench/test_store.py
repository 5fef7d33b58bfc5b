from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TextIO

import pytest
from fake_worker import CALIBRATION, CALIBRATION_LATER, TRACE
from sample_records import ENVIRONMENT, SETTINGS, make_failure, make_manifest, make_measurement, make_record

from infsa_bench import store
from infsa_bench.codec import encode
from infsa_bench.errors import RunLockedError, SchemaError, SpecError
from infsa_bench.files import replace_file
from infsa_bench.protocol import PROTOCOLS
from infsa_bench.record import Record, TracePoint
from infsa_bench.store import (
    LOCK,
    MANIFEST,
    RECORDS,
    RunWriter,
    StoredRun,
    is_run,
    load,
    load_manifest,
)
from infsa_bench.traces import TRACES, trace_path

RESOLUTIONS = (224, 384, 512)
RECORDED = tuple(make_record(resolution=resolution) for resolution in RESOLUTIONS)
PLAN = make_manifest([record.case.id for record in RECORDED])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results" / "example"


def write(path: Path, records: tuple[Record, ...] = RECORDED) -> None:
    with RunWriter(path, PLAN) as writer:
        for record in records:
            writer.append(record)


def test_what_is_appended_is_loaded_in_the_order_of_the_plan(path: Path) -> None:
    unplanned = make_record(make_failure(), resolution=768)
    write(path, (unplanned, *RECORDED[::-1]))
    assert load(path) == StoredRun(path=path, manifest=PLAN, records=(*RECORDED, unplanned))
    assert load_manifest(path) == PLAN


def test_a_run_without_records_yet(path: Path) -> None:
    write(path, ())
    assert load(path).records == ()
    (path / RECORDS).unlink()
    assert load(path).records == ()


def test_each_record_is_one_line_and_is_there_at_once(path: Path) -> None:
    with RunWriter(path, PLAN) as writer:
        for count, record in enumerate(RECORDED, start=1):
            writer.append(record)
            assert len((path / RECORDS).read_text().splitlines()) == count
            assert load(path).records == RECORDED[:count]


def test_a_second_writer_goes_on_where_the_first_ended(path: Path) -> None:
    write(path, RECORDED[:2])
    with RunWriter(path, PLAN) as writer:
        assert set(writer.recorded) == {record.case.id for record in RECORDED[:2]}
        assert writer.torn_bytes == 0
        writer.append(RECORDED[2])
    assert load(path).records == RECORDED


LAST_LINE = encode(RECORDED[2]).encode()


@pytest.mark.parametrize(
    "torn",
    [LAST_LINE[:1], LAST_LINE[:100], LAST_LINE[:-1], LAST_LINE, b"\x00" * 4096, b"\xff\xfe", b" ", b"{}"],
    ids=["one byte", "some bytes", "all but a byte", "all but the newline", "zeros", "no text", "space", "other JSON"],
)
def test_a_torn_last_line_is_dropped_by_the_next_writer_only(path: Path, torn: bytes) -> None:
    write(path, RECORDED[:2])
    whole = (path / RECORDS).read_bytes()
    (path / RECORDS).write_bytes(whole + torn)
    for _ in range(2):
        with pytest.raises(SchemaError, match="the last line is torn; sweep --resume drops it") as caught:
            load(path)
        assert "\n" not in str(caught.value)
        assert str(path / RECORDS) in str(caught.value)
    with RunWriter(path, PLAN) as writer:
        assert writer.torn_bytes == len(torn)
        assert set(writer.recorded) == {record.case.id for record in RECORDED[:2]}
        assert (path / RECORDS).read_bytes() == whole
        writer.append(RECORDED[2])
    assert load(path).records == RECORDED


LATER = [
    replace(RECORDED[1], seconds=seconds, outcome=make_failure("killed", message=f"after {seconds:g} s"))
    for seconds in (2.0, 3.0)
]


def test_the_last_record_of_a_case_counts(path: Path) -> None:
    write(path, (*RECORDED[:2], LATER[0], RECORDED[2], LATER[1]))
    assert len((path / RECORDS).read_bytes().splitlines()) == 5
    expected = (RECORDED[0], LATER[1], RECORDED[2])
    assert load(path) == StoredRun(path=path, manifest=PLAN, records=expected, superseded=2)
    with RunWriter(path, PLAN) as writer:
        assert writer.recorded == {record.case.id: record for record in expected}
        writer.append(RECORDED[1])
        assert writer.recorded[RECORDED[1].case.id] == RECORDED[1]
    assert load(path) == StoredRun(path=path, manifest=PLAN, records=RECORDED, superseded=3)


def test_a_writer_knows_what_is_recorded(path: Path) -> None:
    with RunWriter(path, PLAN) as writer:
        assert writer.recorded == {}
        for count, record in enumerate(RECORDED, start=1):
            writer.append(record)
            assert list(writer.recorded.values()) == list(RECORDED[:count])
        with pytest.raises(TypeError):
            writer.recorded["another"] = RECORDED[0]  # type: ignore[index]


def test_a_torn_line_supersedes_nothing(path: Path) -> None:
    write(path)
    with (path / RECORDS).open("ab") as file:
        file.write(encode(LATER[0]).encode())
    with RunWriter(path, PLAN) as writer:
        assert writer.recorded[RECORDED[1].case.id] == RECORDED[1]
    assert load(path) == StoredRun(path=path, manifest=PLAN, records=RECORDED)


def test_a_file_that_is_one_torn_line(path: Path) -> None:
    write(path, ())
    (path / RECORDS).write_bytes(LAST_LINE)
    with RunWriter(path, PLAN) as writer:
        assert writer.torn_bytes == len(LAST_LINE)
        assert not writer.recorded


LINES = [encode(record) for record in RECORDED]


@pytest.mark.parametrize(
    ("lines", "part_of_message"),
    [
        ([LINES[0], LINES[1][:50], LINES[2]], "line 2: not JSON"),
        ([LINES[0], "", LINES[2]], "line 2: not JSON"),
        ([LINES[0], "{}", LINES[2]], "line 2: schema version None"),
        ([LINES[0], LINES[1], LINES[2], LINES[1], LINES[1][:-1]], "line 5: not JSON"),
        ([f"{LINES[0]}\r"], "line 1: not JSON as infsa-bench writes it: a carriage return"),
        ([f"\ufeff{LINES[0]}"], "line 1: not JSON: Unexpected UTF-8 BOM"),
        ([LINES[0], "\x00"], "line 2: not JSON"),
        ([LINES[0], LINES[1].replace('"schema_version":4', '"schema_version":1')], "line 2: schema version 1"),
        ([LINES[0], LINES[1].replace('"seconds":1.5', '"seconds":"1.5"')], "line 2: Record.seconds: '1.5' is not"),
        ([LINES[0] + LINES[1]], "line 1: not JSON"),
    ],
)
def test_a_bad_line_is_refused_and_nothing_is_changed(path: Path, lines: list[str], part_of_message: str) -> None:
    write(path, ())
    manifest = (path / MANIFEST).read_bytes()
    content = "".join(f"{line}\n" for line in lines) + "torn"
    (path / RECORDS).write_text(content)
    for read in (load, lambda path: RunWriter(path, replace(PLAN, command=("another",)))):
        with pytest.raises(SchemaError) as caught:
            read(path)
        assert part_of_message in str(caught.value)
        assert str(path / RECORDS) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert (path / RECORDS).read_bytes().decode() == content
    assert (path / MANIFEST).read_bytes() == manifest
    # The refused writer let go of its lock.
    (path / RECORDS).unlink()
    write(path)


def test_a_records_file_that_cannot_be_read_is_a_schema_error(path: Path) -> None:
    write(path, ())
    (path / RECORDS).unlink()
    (path / RECORDS).mkdir()
    with pytest.raises(SchemaError):
        load(path)


@pytest.mark.parametrize(
    ("content", "part_of_message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "Manifest: not an object"),
        (b"\xff", "not JSON"),
        (b'{"schema_version": 1}', "schema version 1; this infsa-bench reads version 4"),
        (b'{"schema_version": 4}', "Manifest: unknown fields [], missing fields"),
    ],
)
def test_a_bad_manifest(path: Path, content: bytes, part_of_message: str) -> None:
    write(path, ())
    (path / MANIFEST).write_bytes(content)
    with pytest.raises(SchemaError) as caught:
        load(path)
    assert part_of_message in str(caught.value)
    assert str(path / MANIFEST) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_run_there(path: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is no run: it has no manifest"):
        load(path)
    path.mkdir(parents=True)
    with pytest.raises(SpecError, match="is no run: it has no manifest"):
        load_manifest(path)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises((SpecError, SchemaError)):
        load(file)


def test_is_run(path: Path) -> None:
    assert not is_run(path)
    path.mkdir(parents=True)
    assert not is_run(path)
    (path / LOCK).touch()
    assert not is_run(path)
    write(path)
    assert is_run(path)


def test_is_run_refuses_what_belongs_to_somebody_else(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.touch()
    (tmp_path / RECORDS).mkdir()
    for foreign in (file, tmp_path):
        with pytest.raises(SpecError, match=r"exists and is no run of infsa-bench; choose another folder"):
            is_run(foreign)


def test_a_run_whose_first_manifest_could_not_be_written_can_be_started_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, or out of disk, after the draft of the manifest was begun and before it took its place."""

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            RunWriter(path, PLAN)
    assert not is_run(path)
    write(path)
    assert load(path).records == RECORDED


HOLDER = """
import sys, time
from pathlib import Path
from infsa_bench.store import RunWriter, load_manifest
path = Path(sys.argv[1])
with RunWriter(path, load_manifest(path)):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def holder_of(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the run in ``path``."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_the_lock_keeps_a_second_process_out_until_the_holder_is_killed(path: Path) -> None:
    write(path, RECORDED[:1])
    before = (path / MANIFEST).read_bytes()
    with holder_of(path) as holder:
        with pytest.raises(RunLockedError, match="is being written by another process"):
            RunWriter(path, replace(PLAN, command=("another",)))
        assert (path / MANIFEST).read_bytes() == before
        # Reading needs no lock.
        assert load(path).records == RECORDED[:1]
        holder.send_signal(signal.SIGKILL)
        assert holder.wait(timeout=10) == -signal.SIGKILL
        write(path, RECORDED[1:])
    assert load(path).records == RECORDED


CHILD_OUTLIVES = """
import subprocess, sys
from pathlib import Path
from infsa_bench.store import RunWriter, load_manifest
path = Path(sys.argv[1])
with RunWriter(path, load_manifest(path)):
    # As leaky as it can be: descriptors are passed on unless they are close-on-exec.
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    print(child.pid, flush=True)
    time_to_end = sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["by itself", "by SIGKILL"])
def test_a_child_that_outlives_the_holder_does_not_hold_the_lock(path: Path, end: str) -> None:
    write(path, RECORDED[:1])
    with subprocess.Popen(
        [sys.executable, "-c", CHILD_OUTLIVES, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            with pytest.raises(RunLockedError):
                RunWriter(path, PLAN)
            if end == "by itself":
                assert holder.stdin is not None
                holder.stdin.close()
            else:
                holder.kill()
            holder.wait(timeout=10)
            os.kill(child, 0)  # it is still there
            open_files = []
            for link in Path(f"/proc/{child}/fd").iterdir():
                # What it only has for a moment, while it starts, may be gone again.
                with contextlib.suppress(FileNotFoundError):
                    open_files.append(link.readlink())
            assert not any(path in file.parents for file in open_files)
            write_rest(path, torn_bytes=0)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_lock_that_was_deleted_while_it_was_taken_is_no_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock

    def flock_too_late(file: BinaryIO, operation: int) -> None:
        (path / LOCK).unlink()
        flock(file, operation)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock_too_late)
        with pytest.raises(OSError, match=r"\.lock was deleted or replaced while the run was being written"):
            RunWriter(path, PLAN)
    write(path)


def test_the_lock_holds_within_a_process_and_ends_with_the_writer(path: Path) -> None:
    with RunWriter(path, PLAN), pytest.raises(RunLockedError):
        RunWriter(path, PLAN)
    write(path)


def test_the_manifest_is_replaced_in_one_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path)
    replaced: list[tuple[Path, Path]] = []
    original = Path.replace

    def watch(self: Path, target: Path) -> Path:
        # The draft is whole, and the old manifest is still there.
        assert json.loads(self.read_text())["command"] == ["another"]
        assert load_manifest(path) == PLAN
        replaced.append((self, target))
        return original(self, target)

    monkeypatch.setattr(Path, "replace", watch)
    another = replace(PLAN, command=("another",))
    with RunWriter(path, another):
        assert len(replaced) == 1
    assert load_manifest(path) == another
    assert sorted(item.name for item in path.iterdir()) == [LOCK, MANIFEST, RECORDS]


def test_a_reader_always_finds_a_whole_manifest(path: Path) -> None:
    write(path)
    stop = threading.Event()
    problems: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                load_manifest(path)
        except (SchemaError, SpecError) as error:
            problems.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with RunWriter(path, replace(PLAN, environments={})) as writer:
            for threads in range(40):
                writer.add_environment(replace(ENVIRONMENT, torch_threads=threads))
    finally:
        stop.set()
        reader.join()
    assert problems == []
    assert len(load_manifest(path).environments) == 40


def swap(path: Path, by: str) -> None:
    """Take the run's folder away, and put another in its place where ``by`` says so."""
    path.rename(path.with_name("moved"))
    if by == "another run":
        write(path, RECORDED[:1])
    elif by == "an empty folder":
        path.mkdir()
    elif by == "a file":
        path.touch()


@pytest.mark.parametrize("by", ["nothing", "another run", "an empty folder", "a file"])
@pytest.mark.parametrize("what", ["record", "record with trace", "manifest"])
def test_a_folder_that_was_deleted_or_replaced_ends_the_writing(path: Path, what: str, by: str) -> None:
    with RunWriter(path, PLAN) as writer:
        writer.append(RECORDED[0])
        swap(path, by)
        before = [(file, file.read_bytes()) for file in path.rglob("*")]
        add = {
            "record": lambda: writer.append(RECORDED[1]),
            "record with trace": lambda: writer.append(RECORDED[1], TRACE),
            "manifest": lambda: writer.add_calibration(CALIBRATION),
        }[what]
        with pytest.raises(OSError, match="was deleted or replaced while the run was being written") as caught:
            add()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert [(file, file.read_bytes()) for file in path.rglob("*")] == before
    moved = path.with_name("moved")
    assert load(moved).records == RECORDED[:1]
    write_rest(moved, torn_bytes=0)


@pytest.mark.parametrize("replaced", [False, True])
def test_records_that_were_deleted_or_replaced_end_the_writing(path: Path, replaced: bool) -> None:
    """Only the file of records: what went into it would go nowhere."""
    with RunWriter(path, PLAN) as writer:
        writer.append(RECORDED[0])
        content = (path / RECORDS).read_bytes()
        (path / RECORDS).unlink()
        if replaced:
            (path / RECORDS).write_bytes(content)
        with pytest.raises(OSError, match=r"records\.jsonl was deleted or replaced while the run was being written"):
            writer.append(RECORDED[1])
        assert RECORDED[1].case.id not in writer.recorded
    assert load(path).records == (RECORDED[:1] if replaced else ())


PLACES = [MANIFEST, RECORDS]
OTHERS = ["link", "broken link", "link to itself", "folder", "FIFO", "socket", "device"]


def put(file: Path, other: str, target: Path) -> str:
    """Put something in the place of a file and return what the message calls it."""
    match other:
        case "link":
            file.symlink_to(target)
        case "broken link":
            file.symlink_to(target.with_name("nowhere"))
        case "link to itself":
            file.symlink_to(file.name)
        case "folder":
            file.mkdir()
        case "FIFO":
            os.mkfifo(file)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(file))
        case "device":
            try:
                os.mknod(file, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # zeros without end
            except PermissionError:
                pytest.skip("needs the right to make a device")
    return {"link": "a symbolic link", "broken link": "a symbolic link", "link to itself": "a symbolic link"}.get(
        other, f"a {other}"
    )


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", PLACES)
def test_only_regular_files_are_read(tmp_path: Path, name: str, other: str) -> None:
    # A socket's name has to be short.
    path = Path(tempfile.mkdtemp(prefix="run", dir="/tmp"))
    try:
        write(path)
        target = (path / name).rename(tmp_path / "target")
        called = put(path / name, other, target)
        with pytest.raises(SchemaError) as caught:
            load(path)
        assert str(caught.value) == f"{path / name}: {called} where a regular file should be"
    finally:
        shutil.rmtree(path)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", [LOCK, RECORDS])
def test_only_regular_files_are_written(tmp_path: Path, name: str, other: str) -> None:
    path = Path(tempfile.mkdtemp(prefix="run", dir="/tmp"))
    try:
        write(path)
        target = (path / name).rename(tmp_path / "target")
        content, manifest = target.read_bytes(), (path / MANIFEST).read_bytes()
        called = put(path / name, other, target)
        with pytest.raises(SchemaError, match=f"{called} where a regular file should be"):
            RunWriter(path, replace(PLAN, command=("another",)))
        assert target.read_bytes() == content
        assert (path / MANIFEST).read_bytes() == manifest
    finally:
        shutil.rmtree(path)


@pytest.mark.parametrize(
    ("limit", "name", "where"),
    [
        ("MAX_MANIFEST_BYTES", MANIFEST, ""),
        ("MAX_RECORDS_BYTES", RECORDS, ""),
        ("MAX_RECORD_BYTES", RECORDS, ", line 2"),
    ],
)
def test_a_file_that_is_too_large_is_refused_unread(
    path: Path, limit: str, name: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = make_record(make_measurement([0.01] * 1000), resolution=384)
    write(path, (RECORDED[0], long))
    largest = len(encode(long)) + 1 if limit == "MAX_RECORD_BYTES" else (path / name).stat().st_size
    monkeypatch.setattr(store, limit, largest)
    assert len(load(path).records) == 2
    monkeypatch.setattr(store, limit, largest - 1)
    with pytest.raises(SchemaError) as caught:
        load(path)
    assert str(caught.value) == f"{path / name}{where}: more than the {largest - 1} bytes that infsa-bench reads"


def test_a_hole_of_terabytes_is_refused_at_once(path: Path) -> None:
    write(path)
    for name in PLACES:
        content = (path / name).read_bytes()
        os.truncate(path / name, 2**40)
        started = time.monotonic()
        with pytest.raises(SchemaError, match="bytes that infsa-bench reads"):
            load(path)
        assert time.monotonic() - started < 1
        (path / name).write_bytes(content)


def test_environments_are_added_once(path: Path) -> None:
    other = replace(ENVIRONMENT, device_name="another")
    with RunWriter(path, replace(PLAN, environments={})) as writer:
        assert writer.add_environment(ENVIRONMENT) == ENVIRONMENT.key
        assert writer.add_environment(ENVIRONMENT) == ENVIRONMENT.key
        assert writer.add_environment(other) == other.key
    assert load_manifest(path).environments == {ENVIRONMENT.key: ENVIRONMENT, other.key: other}


def count_manifests(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list that grows with each manifest that is written from now on."""
    written: list[Path] = []

    def replacing(draft: Path, file: Path, write: Callable[[TextIO], object]) -> None:
        replace_file(draft, file, write)
        if file.name == MANIFEST:
            written.append(file)

    monkeypatch.setattr("infsa_bench.store.replace_file", replacing)
    return written


def test_environments_of_many_devices_are_written_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [replace(ENVIRONMENT, device=f"cuda:{index}") for index in range(100)]
    with RunWriter(path, replace(PLAN, environments={})) as writer:
        written = count_manifests(monkeypatch)
        writer.add_environments(devices)
        assert len(written) == 1
        assert set(load_manifest(path).environments) == {device.key for device in devices}
        writer.add_environments(devices[:3])
        for device in devices:
            assert writer.add_environment(device) == device.key
        assert len(written) == 1


def test_calibrations_of_many_devices_are_written_a_few_times(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuple(replace(CALIBRATION, idle_watts=float(index)) for index in range(1000))
    with RunWriter(path, PLAN) as writer:
        written = count_manifests(monkeypatch)
        for count, calibration in enumerate(found[:100], start=1):
            writer.add_calibration(calibration)
            # Half of them at the least are on disk, whenever it is killed; the first two as soon as they are known.
            stored = load_manifest(path).calibrations
            assert stored == found[: len(stored)]
            assert len(stored) >= (count if count <= 2 else (count + 1) / 2)
        for calibration in found[100:]:
            writer.add_calibration(calibration)
        assert len(written) == 10
        writer.sync_manifest()
        assert load_manifest(path).calibrations == found
        writer.sync_manifest()
        assert len(written) == 11
        for calibration in found[:3]:
            writer.add_calibration(calibration)
    assert load_manifest(path).calibrations == (*found, *found[:3])


def test_a_command_that_is_no_unicode_can_be_stored(path: Path) -> None:
    """``--out`` with a file name that is not UTF-8 reaches the manifest with a lone surrogate."""
    manifest = replace(PLAN, command=("infsa-bench", "sweep", "--out", "results/caf\udce9"))
    with RunWriter(path, manifest):
        pass
    assert load_manifest(path) == manifest


def test_a_full_disk_ends_the_append_and_the_run_can_go_on(path: Path) -> None:
    with RunWriter(path, PLAN) as writer:
        writer.append(RECORDED[0])
        real = writer._records
        with Path("/dev/full").open("ab", buffering=0) as full:
            writer._records = full
            with pytest.raises(OSError, match="No space left on device"):
                writer.append(RECORDED[1])
        writer._records = real
    write_rest(path, torn_bytes=0)


LIMITED = """
import resource, sys
from pathlib import Path
from infsa_bench.codec import decode
from infsa_bench.record import Record
from infsa_bench.store import RECORDS, RunWriter, load_manifest
path, line = Path(sys.argv[1]), sys.argv[2]
with RunWriter(path, load_manifest(path)) as writer:
    limit = (path / RECORDS).stat().st_size + 100
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        writer.append(decode(Record, line))
    except OSError as error:
        print(error)
"""


def test_a_line_that_the_disk_took_in_part_is_taken_back(path: Path) -> None:
    """A real short write: the file may grow by 100 bytes, less than a record has."""
    write(path, RECORDED[:1])
    before = (path / RECORDS).read_bytes()
    line = encode(RECORDED[1])
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), line], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"only 100 of {len(line) + 1} bytes of a record could be written\n"
    assert (path / RECORDS).read_bytes() == before
    assert load(path).records == RECORDED[:1]
    write_rest(path, torn_bytes=0)


def test_a_line_that_cannot_be_taken_back_is_torn(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, *length: int) -> None:
        raise OSError(5, "Input/output error")

    write(path, RECORDED[:1])
    with RunWriter(path, PLAN) as writer, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        patch.setattr(os, "ftruncate", fail)
        with pytest.raises(OSError, match="Input/output error"):
            writer.append(RECORDED[1])
        assert RECORDED[1].case.id not in writer.recorded
    # Whole, as it happens; a disk that keeps only a part of it is as good as a process that was killed.
    size = (path / RECORDS).stat().st_size
    os.truncate(path / RECORDS, size - 10)
    write_rest(path, torn_bytes=len(encode(RECORDED[1])) - 9)


def test_a_sync_that_fails_takes_the_line_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, RECORDED[:1])
    fsync = os.fsync
    failures = iter([OSError(5, "Input/output error")])

    def fail_once(descriptor: int) -> None:
        for error in failures:
            raise error
        fsync(descriptor)

    with RunWriter(path, PLAN) as writer, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_once)
        with pytest.raises(OSError, match="Input/output error"):
            writer.append(RECORDED[1])
        assert load(path).records == RECORDED[:1]
        writer.append(RECORDED[1])
        writer.append(RECORDED[2])
    assert load(path) == StoredRun(path=path, manifest=PLAN, records=RECORDED)


@pytest.mark.parametrize("name", ["MAX_RECORD_BYTES", "MAX_RECORDS_BYTES"])
def test_what_could_not_be_read_again_is_not_written(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, RECORDED[:1])
    size = (path / RECORDS).stat().st_size
    with RunWriter(path, PLAN) as writer, monkeypatch.context() as patch:
        patch.setattr(store, name, size)
        with pytest.raises(OSError, match=r"a record of \d+ bytes is more than can be read again"):
            writer.append(make_record(make_measurement([0.01] * 100), resolution=384))
    assert (path / RECORDS).stat().st_size == size
    write_rest(path, torn_bytes=0)


def write_rest(path: Path, *, torn_bytes: int) -> None:
    with RunWriter(path, PLAN) as writer:
        assert writer.torn_bytes == torn_bytes
        assert set(writer.recorded) == {RECORDED[0].case.id}
        writer.append(RECORDED[1])
        writer.append(RECORDED[2])
    assert load(path).records == RECORDED


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        RunWriter(tmp_path / "file" / "run", PLAN)


def test_settings_differences() -> None:
    assert SETTINGS.differences(SETTINGS) == []
    assert SETTINGS.differences(replace(SETTINGS, time_budget_seconds=None)) == []
    assert SETTINGS.differences(replace(SETTINGS, seed=1)) == ["seed"]
    counts = SETTINGS.protocol.customized(warmup=1, iterations=None, replicates=None)
    assert SETTINGS.differences(replace(SETTINGS, protocol=counts)) == ["protocol"]
    assert SETTINGS.differences(replace(SETTINGS, energy="none")) == ["energy"]
    other = replace(SETTINGS, device="cuda:0", protocol=PROTOCOLS["full"], seed=1, energy="quick")
    assert SETTINGS.differences(other) == ["device", "protocol", "seed", "energy"]


def test_another_number_of_replicates_is_no_difference() -> None:
    more = SETTINGS.protocol.customized(warmup=None, iterations=None, replicates=3)
    assert SETTINGS.differences(replace(SETTINGS, protocol=more)) == []
    # Under --iterations as well, where that is what renames the protocol.
    counts = SETTINGS.protocol.customized(warmup=None, iterations=5, replicates=None)
    more = SETTINGS.protocol.customized(warmup=None, iterations=5, replicates=2)
    assert replace(SETTINGS, protocol=counts).differences(replace(SETTINGS, protocol=more)) == []


EXPECTED_TRACE = """\
seconds,power_watts,sm_clock_mhz,temperature_celsius,event_reasons
0.0,60.25,1980,40,
0.1,,,,
0.2,300.0,1755,52,sw_power_cap sw_thermal_slowdown
"""


def test_a_trace_is_a_table_beside_the_records(path: Path) -> None:
    with RunWriter(path, PLAN) as writer:
        writer.append(RECORDED[0])
        assert not (path / TRACES).exists()
        writer.append(RECORDED[1], TRACE)
        writer.append(RECORDED[2], ())
    file = path / TRACES / "infsa_softmax.reference_4L-64H_r384_b1_fp32_infer_eager_p0.csv"
    assert file == trace_path(path, RECORDED[1].case.id)
    assert file.read_bytes().decode() == EXPECTED_TRACE
    assert list((path / TRACES).iterdir()) == [file]
    assert load(path).records == RECORDED
    assert is_run(path)


def test_a_trace_is_on_disk_before_its_record(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, int]] = []
    fsync = os.fsync

    def spy(handle: int) -> None:
        target = Path(f"/proc/self/fd/{handle}").readlink()
        synced.append((target.name, target.stat().st_size if target.is_file() else 0))
        fsync(handle)

    with RunWriter(path, PLAN) as writer:
        monkeypatch.setattr(os, "fsync", spy)
        writer.append(RECORDED[0], TRACE)
        writer.append(RECORDED[1], TRACE)
    names = [name for name, _ in synced]
    assert names == [path.name, "trace.new", TRACES, RECORDS, "trace.new", TRACES, RECORDS]
    assert {size for name, size in synced if name == "trace.new"} == {len(EXPECTED_TRACE)}


KILLED_BEFORE_THE_RECORD = """
import os, signal, sys
from pathlib import Path
from fake_worker import TRACE
from infsa_bench.codec import decode
from infsa_bench.record import Record
from infsa_bench.store import RunWriter, load_manifest
path, line, where = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
with RunWriter(path, load_manifest(path)) as writer:
    if where == "trace":
        Path.replace = die
    else:
        import infsa_bench.store
        infsa_bench.store.encode = die
    writer.append(decode(Record, line), TRACE)
"""


@pytest.mark.parametrize("where", ["trace", "record"])
@pytest.mark.parametrize("trace", [TRACE[:2], ()], ids=["another trace", "none"])
def test_a_trace_that_has_no_record_yields_to_the_resumed_case(
    path: Path, where: str, trace: tuple[TracePoint, ...]
) -> None:
    """The process is killed in the middle of the trace, or between trace and record."""
    write(path, RECORDED[:1])
    program = [sys.executable, "-c", KILLED_BEFORE_THE_RECORD, str(path), encode(RECORDED[1]), where]
    search = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ended = subprocess.run(program, env={**os.environ, "PYTHONPATH": search})
    assert ended.returncode == -signal.SIGKILL
    file = trace_path(path, RECORDED[1].case.id)
    assert file.exists() == (where == "record")
    assert load(path).records == RECORDED[:1]
    with RunWriter(path, PLAN) as writer:
        assert set(writer.recorded) == {RECORDED[0].case.id}
        writer.append(RECORDED[1], trace)
    assert file.exists() == bool(trace)
    if trace:
        assert file.read_text() == "".join(EXPECTED_TRACE.splitlines(keepends=True)[:3])
    assert load(path).records == RECORDED[:2]


SUPERSEDED_UNTIL_KILLED = """
import os, signal, sys
from pathlib import Path
from fake_worker import TRACE
from infsa_bench import store
from infsa_bench.codec import decode
from infsa_bench.record import Record
path, line, where = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
with store.RunWriter(path, store.load_manifest(path)) as writer:
    if where == "before":
        store.encode = die
    else:
        store.write_trace = lambda file, trace, write=store.write_trace: die() if trace else write(file, trace)
    writer.append(decode(Record, line), TRACE[:2])
"""


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_record_never_has_the_trace_of_another(path: Path, where: str) -> None:
    """The process is killed right before the superseding record, or right after it."""
    with RunWriter(path, PLAN) as writer:
        writer.append(RECORDED[0])
        writer.append(RECORDED[1], TRACE)
    file = trace_path(path, RECORDED[1].case.id)
    again = replace(RECORDED[1], seconds=9.0)
    program = [sys.executable, "-c", SUPERSEDED_UNTIL_KILLED, str(path), encode(again), where]
    search = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ended = subprocess.run(program, env={**os.environ, "PYTHONPATH": search})
    assert ended.returncode == -signal.SIGKILL
    assert load(path).records[1] == (RECORDED[1] if where == "before" else again)
    assert not file.exists()
    with RunWriter(path, PLAN) as writer:
        writer.append(again, TRACE[:2])
        assert file.read_text() == "".join(EXPECTED_TRACE.splitlines(keepends=True)[:3])
        writer.append(again)
        assert not file.exists()
    assert load(path).records == (RECORDED[0], again)


def test_traces_are_never_written_or_removed_through_a_link(path: Path, tmp_path: Path) -> None:
    """A folder from elsewhere may hold a link instead of one of its own."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file = elsewhere / trace_path(path, RECORDED[1].case.id).name
    file.write_text("precious")
    write(path, RECORDED[:1])
    (path / TRACES).symlink_to(elsewhere)
    with RunWriter(path, PLAN) as writer:
        for trace in (TRACE, ()):
            with pytest.raises(OSError, match="traces: a symbolic link where a folder should be"):
                writer.append(RECORDED[1], trace)
    assert [item.name for item in elsewhere.iterdir()] == [file.name]
    assert file.read_text() == "precious"
    (path / TRACES).unlink()
    write_rest(path, torn_bytes=0)


def test_a_draft_that_is_a_link_is_not_written_through(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    write(path, RECORDED[:1])
    (path / f"{MANIFEST}.new").symlink_to(victim)
    (path / TRACES).mkdir()
    (path / TRACES / "trace.new").symlink_to(victim)
    with RunWriter(path, PLAN) as writer:
        writer.append(RECORDED[1], TRACE)
    assert victim.read_text() == "precious"
    assert trace_path(path, RECORDED[1].case.id).read_text() == EXPECTED_TRACE
    assert load(path).records == RECORDED[:2]


def test_a_full_disk_under_a_trace_writes_no_record(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, RECORDED[:1])

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with RunWriter(path, PLAN) as writer, monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            writer.append(RECORDED[1], TRACE)
    write_rest(path, torn_bytes=0)


def test_calibrations_add_up_across_resumes(path: Path) -> None:
    with RunWriter(path, PLAN) as writer:
        assert writer.manifest.calibrations == ()
        writer.add_calibration(CALIBRATION)
        assert load_manifest(path).calibrations == (CALIBRATION,)
        writer.add_environment(replace(ENVIRONMENT, device_name="another"))
    with RunWriter(path, load_manifest(path)) as writer:
        writer.add_calibration(CALIBRATION_LATER)
        writer.add_calibration(CALIBRATION_LATER)
    manifest = load_manifest(path)
    assert manifest.calibrations == (CALIBRATION, CALIBRATION_LATER, CALIBRATION_LATER)
    assert len(manifest.environments) == 2


def test_reports_stand_beside_results(tmp_path: Path) -> None:
    for path, reports in (
        (tmp_path / "results" / "x", tmp_path / "reports" / "x"),
        (tmp_path / "elsewhere" / "x", tmp_path / "elsewhere" / "x" / "report"),
    ):
        run = StoredRun(path=path, manifest=PLAN, records=())
        assert (run.name, run.reports_path) == ("x", reports)


@pytest.mark.parametrize("spelling", [".", "../example", "../example/", "../other/../example"])
def test_a_run_has_one_name_however_it_is_spelled(path: Path, spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path)
    (path.parent / "other").mkdir()
    monkeypatch.chdir(path)
    run = load(Path(spelling))
    assert run.name == "example"
    assert run.reports_path == path.parent.parent / "reports" / "example"


def test_every_record_and_the_manifest_are_synced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Synced after the write and before append returns: what a power cut must not take."""
    synced: list[tuple[str, int]] = []
    fsync = os.fsync

    def spy(handle: int) -> None:
        target = Path(f"/proc/self/fd/{handle}").readlink()
        synced.append((target.name, target.stat().st_size if target.is_file() else 0))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    with RunWriter(path, PLAN) as writer:
        assert [name for name, _ in synced] == [f"{MANIFEST}.new", path.name]
        synced.clear()
        for record in RECORDED:
            writer.append(record)
            assert synced[-1] == (RECORDS, (path / RECORDS).stat().st_size)
    assert len(synced) == len(RECORDED)
