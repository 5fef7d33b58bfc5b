"""What a disk does to a run: real file systems that are full or read-only, under a real process."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fake_worker import TRACE
from sample_records import make_manifest, make_measurement, make_record

from infsa_bench.codec import encode
from infsa_bench.record import Record
from infsa_bench.store import MANIFEST, RECORDS, RunWriter, load, load_manifest
from infsa_bench.traces import TRACES, trace_path

RECORDED = [make_record(make_measurement([0.01] * 200), resolution=side) for side in range(100, 200)]
PLAN = make_manifest([record.case.id for record in RECORDED])
LINE_BYTES = len(encode(RECORDED[0])) + 1


@contextlib.contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[None]:
    """A file system of its own at ``folder``."""
    if shutil.which("mount") is None:
        pytest.skip("needs the command mount")
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def append_until_it_fails(writer: RunWriter, records: Sequence[Record]) -> tuple[int, OSError]:
    """Return how many records could be appended, and why no more."""
    for count, record in enumerate(records):
        try:
            writer.append(record)
        except OSError as error:
            return count, error
    pytest.fail("every record could be appended")


def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    ballast = disk / "ballast"
    with mounted(disk, "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
        run = disk / "run"
        with RunWriter(run, PLAN) as writer:
            ballast.write_bytes(b"x" * 4096)
            count, error = append_until_it_fails(writer, RECORDED)
            assert "No space left on device" in str(error) or "bytes of a record could be written" in str(error)
            assert "\n" not in str(error)
            assert 0 < count < len(RECORDED)
            # What could not be written whole is not there at all, and what was there still is.
            assert (run / RECORDS).stat().st_size == count * LINE_BYTES
            assert load(run).records == tuple(RECORDED[:count])
            with pytest.raises(OSError, match="No space left on device"):
                writer.append(RECORDED[count], TRACE * 1000)
            assert load(run).records == tuple(RECORDED[:count])
            assert list((run / TRACES).iterdir()) == []
            # The same writer goes on as soon as there is space.
            ballast.unlink()
            writer.append(RECORDED[count])
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        with RunWriter(run, load_manifest(run)) as writer:
            assert writer.torn_bytes == 0
            assert set(writer.recorded) == {record.case.id for record in RECORDED[: count + 1]}
            for record in RECORDED[count + 1 :]:
                writer.append(record)
        assert load(run).records == tuple(RECORDED)


def test_a_disk_too_full_for_a_manifest(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
        run = disk / "run"
        with RunWriter(run, make_manifest()) as writer:
            writer.append(RECORDED[0])
        before = (run / MANIFEST).read_bytes()
        with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
            while ballast.write(b"x" * 4096):
                pass
        for _ in range(2):
            with pytest.raises(OSError, match="No space left on device"):
                RunWriter(run, PLAN)
            assert (run / MANIFEST).read_bytes() == before
            assert load(run).records == (RECORDED[0],)
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        with RunWriter(run, PLAN) as writer:
            writer.append(RECORDED[1])
        assert load(run).records == tuple(RECORDED[:2])


def test_a_disk_that_turns_read_only(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        run = disk / "run"
        with RunWriter(run, PLAN) as writer:
            writer.append(RECORDED[0])
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert load(run).records == (RECORDED[0],)
        for place in (run, disk / "new"):
            with pytest.raises(OSError, match=r"Read-only file system: '.*/disk/(run/\.lock|new)'"):
                RunWriter(place, PLAN)
        assert load(run).records == (RECORDED[0],)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        with RunWriter(run, PLAN) as writer:
            assert set(writer.recorded) == {RECORDED[0].case.id}
            writer.append(RECORDED[1])
        assert load(run).records == tuple(RECORDED[:2])


AS_NOBODY = """
import os, sys
from pathlib import Path
from infsa_bench.codec import decode
from infsa_bench.record import Record
from infsa_bench.store import RunWriter, load, load_manifest
path, line = Path(sys.argv[1]), sys.argv[2]
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
print(len(load(path).records))
try:
    with RunWriter(path, load_manifest(path)) as writer:
        writer.append(decode(Record, line))
except OSError as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize("what", ["folder", "lock", "records"])
def test_a_folder_of_somebody_else(tmp_path: Path, what: str) -> None:
    """Without mounting: a process without rights is told by the name of the file, and the run stays as it is."""
    # Not in the tests' own folder, which nobody else may enter.
    run = Path("/tmp") / f"infsa-bench-test-{os.getpid()}-{what}"
    try:
        with RunWriter(run, PLAN) as writer:
            writer.append(RECORDED[0])
        run.chmod(0o555 if what == "folder" else 0o777)
        (run / ".lock").chmod(0o444 if what == "lock" else 0o666)
        (run / RECORDS).chmod(0o444)
        before = (run / MANIFEST).read_bytes()
        program = [sys.executable, "-c", AS_NOBODY, str(run), encode(RECORDED[1])]
        done = subprocess.run(program, capture_output=True, text=True)
        if "ModuleNotFoundError" in done.stderr or "PermissionError: [Errno 13]" in done.stderr:
            pytest.skip("needs a checkout and a Python that everybody may read")
        assert done.stderr == ""
        refused = {"folder": "manifest.json.new", "lock": ".lock", "records": RECORDS}[what]
        assert done.stdout == f"1\nPermissionError: [Errno 13] Permission denied: '{run / refused}'\n"
        assert (run / MANIFEST).read_bytes() == before
        assert load(run).records == (RECORDED[0],)
        run.chmod(0o755)
        for file in (run / RECORDS, run / ".lock"):
            file.chmod(0o644)
        with RunWriter(run, PLAN) as writer:
            writer.append(RECORDED[1])
        assert load(run).records == tuple(RECORDED[:2])
    finally:
        shutil.rmtree(run, ignore_errors=True)


QUOTA = """
import resource, sys
from pathlib import Path
from fake_worker import TRACE
from infsa_bench.codec import decode
from infsa_bench.record import Record
from infsa_bench.store import RECORDS, RunWriter, load, load_manifest
path, line, what = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
record = decode(Record, line)
with RunWriter(path, load_manifest(path)) as writer:
    size = (path / RECORDS).stat().st_size
    more = {"nothing": 0, "a byte": 1, "all but a byte": len(line), "trace": len(line) + 1}[what]
    limit = size + more
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for _ in range(2):
        try:
            writer.append(record, TRACE * 10000 if what == "trace" else ())
        except OSError as error:
            print(error)
        assert len(load(path).records) == 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    writer.append(record, TRACE)
"""


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing", "[Errno 27] File too large"),
        ("a byte", f"only 1 of {LINE_BYTES} bytes of a record could be written"),
        ("all but a byte", f"only {LINE_BYTES - 1} of {LINE_BYTES} bytes of a record could be written"),
        ("trace", "[Errno 27] File too large"),
    ],
)
def test_a_quota(tmp_path: Path, what: str, message: str) -> None:
    """A file that may not grow any further; the same writer goes on once it may."""
    run = tmp_path / "run"
    with RunWriter(run, PLAN) as writer:
        writer.append(RECORDED[0])
    program = [sys.executable, "-c", QUOTA, str(run), encode(RECORDED[1]), what]
    search = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(program, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": search})
    assert done.stderr == ""
    assert done.stdout.splitlines() == [message] * 2
    assert load(run).records == tuple(RECORDED[:2])
    assert trace_path(run, RECORDED[1].case.id).is_file()
