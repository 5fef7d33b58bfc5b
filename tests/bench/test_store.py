from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sample_records import ENVIRONMENT, SETTINGS, make_failure, make_manifest, make_record

from infsa_bench.errors import RunLockedError, SchemaError, SpecError
from infsa_bench.record import Record, encode
from infsa_bench.spec import PROTOCOLS
from infsa_bench.store import LOCK, MANIFEST, RECORDS, Run, RunWriter, is_run, load, load_manifest

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
    assert load(path) == Run(path=path, manifest=PLAN, records=(*RECORDED, unplanned))
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
        assert writer.finished == {record.case.id for record in RECORDED[:2]}
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
        assert writer.finished == {record.case.id for record in RECORDED[:2]}
        assert (path / RECORDS).read_bytes() == whole
        writer.append(RECORDED[2])
    assert load(path).records == RECORDED


def test_a_file_that_is_one_torn_line(path: Path) -> None:
    write(path, ())
    (path / RECORDS).write_bytes(LAST_LINE)
    with RunWriter(path, PLAN) as writer:
        assert writer.torn_bytes == len(LAST_LINE)
        assert writer.finished == frozenset()


LINES = [encode(record) for record in RECORDED]


@pytest.mark.parametrize(
    ("lines", "part_of_message"),
    [
        ([LINES[0], LINES[1][:50], LINES[2]], "line 2: not JSON"),
        ([LINES[0], "", LINES[2]], "line 2: not JSON"),
        ([LINES[0], "{}", LINES[2]], "line 2: schema version None"),
        ([LINES[0], LINES[1], LINES[2], LINES[1]], f"line 4: a second record of {RECORDED[1].case.id}"),
        ([LINES[0], LINES[1].replace('"schema_version":1', '"schema_version":2')], "line 2: schema version 2"),
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
    assert (path / RECORDS).read_text() == content
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
        (b'{"schema_version": 2}', "schema version 2; this infsa-bench reads version 1"),
        (b'{"schema_version": 1}', "Manifest: unknown fields [], missing fields"),
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
        with pytest.raises(SpecError, match=r"exists and is no run of infsa-bench; choose another --out"):
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


def test_environments_are_added_once(path: Path) -> None:
    other = replace(ENVIRONMENT, device_name="another")
    with RunWriter(path, replace(PLAN, environments={})) as writer:
        assert writer.add_environment(ENVIRONMENT) == ENVIRONMENT.key
        assert writer.add_environment(ENVIRONMENT) == ENVIRONMENT.key
        assert writer.add_environment(other) == other.key
    assert load_manifest(path).environments == {ENVIRONMENT.key: ENVIRONMENT, other.key: other}


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
from infsa_bench.record import Record, decode
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


def test_a_line_that_the_disk_took_in_part_is_torn(path: Path) -> None:
    """A real short write: the file may grow by 100 bytes, less than a record has."""
    write(path, RECORDED[:1])
    line = encode(RECORDED[1])
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path), line], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"only 100 of {len(line) + 1} bytes of a record could be written\n"
    with pytest.raises(SchemaError, match="--resume"):
        load(path)
    write_rest(path, torn_bytes=100)


def write_rest(path: Path, *, torn_bytes: int) -> None:
    with RunWriter(path, PLAN) as writer:
        assert writer.torn_bytes == torn_bytes
        assert writer.finished == {RECORDED[0].case.id}
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
    counts = SETTINGS.protocol.with_counts(warmup=1, iterations=None)
    assert SETTINGS.differences(replace(SETTINGS, protocol=counts)) == ["protocol"]
    other = replace(SETTINGS, device="cuda:0", protocol=PROTOCOLS["full"], seed=1)
    assert SETTINGS.differences(other) == ["device", "protocol", "seed"]


def test_reports_stand_beside_results(tmp_path: Path) -> None:
    for path, reports in (
        (tmp_path / "results" / "x", tmp_path / "reports" / "x"),
        (tmp_path / "elsewhere" / "x", tmp_path / "elsewhere" / "x" / "report"),
    ):
        run = Run(path=path, manifest=PLAN, records=())
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
