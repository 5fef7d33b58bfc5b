"""Runs of one plan become one run; what does not go together is refused, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from fake_worker import CALIBRATION, CALIBRATION_LATER, PEAKS, TRACE
from sample_records import (
    ENVIRONMENT,
    GPU,
    SETTINGS,
    make_energy,
    make_failure,
    make_manifest,
    make_measurement,
    make_record,
)

from infsa_bench import cli, merging
from infsa_bench.analyze.run import summarized
from infsa_bench.commands.merge import describe_merged, whole_command
from infsa_bench.commands.table1_words import FLAGS_OF_TABLE1
from infsa_bench.errors import RunLockedError, SchemaError, SpecError
from infsa_bench.merging import Merged, merge_runs
from infsa_bench.peaks import FURTHER_PEAKS, MeasuredPeaks
from infsa_bench.protocol import PROTOCOLS
from infsa_bench.record import EnergyCalibration, EnergySource, OperationCount, Record
from infsa_bench.report.table import blocks, render_markdown
from infsa_bench.search_plan import Search
from infsa_bench.shard import Part, Shard
from infsa_bench.store import LOCK, MANIFEST, RECORDS, Manifest, RunWriter, load
from infsa_bench.traces import TRACES, trace_path

MECHANISMS = ("softmax", "agent", "soft", "mlla", "performer", "linformer")
COUNTED = OperationCount(matmul_flops=2**30, elementwise_flops=2**20, operator_bytes=2**28)
RECORDED = tuple(
    make_record(make_measurement([0.01 * (1 + index)], operations=COUNTED), mechanism=mechanism)
    for index, mechanism in enumerate(MECHANISMS)
)
WHOLE = tuple(record.case.id for record in RECORDED)
OTHER = replace(
    ENVIRONMENT, device="cuda:1", device_name=GPU.name, device_uuid=GPU.uuid, gpu=GPU, cpu_name="another processor"
)
COMMAND = ("infsa-bench", "sweep", "--out", "whole")


def manifest_of(index: int, count: int = 3, **changes: object) -> Manifest:
    shard = Shard(part=Part(index=index, count=count), whole=WHOLE)
    manifest = replace(make_manifest(WHOLE[index::count]), shard=shard)
    return replace(manifest, **changes)  # type: ignore[arg-type]


def write(
    path: Path,
    manifest: Manifest,
    records: Sequence[Record] | None = None,
    *,
    calibrations: Sequence[EnergyCalibration] = (),
    peaks: MeasuredPeaks | None = None,
) -> Path:
    """Write a run of what of the plan is in the manifest."""
    with RunWriter(path, manifest) as writer:
        for record in (
            [record for record in RECORDED if record.case.id in manifest.plan] if records is None else records
        ):
            writer.append(record, TRACE if record.case.mechanism == "softmax" else ())
        for calibration in calibrations:
            writer.add_calibration(calibration)
        if peaks is not None:
            writer.set_peaks(peaks)
    return path


def shards(folder: Path, count: int = 3) -> list[Path]:
    return [write(folder / f"shard-{index}", manifest_of(index, count)) for index in range(count)]


def merge(paths: Sequence[Path], out: Path) -> Merged:
    return merge_runs(paths, out, COMMAND)


def test_shards_become_the_whole_run(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    merged = merge(paths[::-1], tmp_path / "results" / "whole")
    run = load(tmp_path / "results" / "whole")
    assert run.records == RECORDED
    assert run.manifest == replace(make_manifest(WHOLE), command=COMMAND)
    assert merged == Merged(
        manifest=run.manifest, recorded=6, repeated=0, traces=1, missing_traces=0, missing_shards=()
    )
    assert trace_path(run.path, WHOLE[0]).read_bytes() == trace_path(paths[0], WHOLE[0]).read_bytes()
    assert [file.name for file in (run.path / TRACES).iterdir()] == [trace_path(run.path, WHOLE[0]).name]
    # It is a run like any other: it can be gone on with.
    again = replace(RECORDED[0], seconds=9.0)
    with RunWriter(run.path, run.manifest) as writer:
        writer.append(again)
    assert load(run.path).records == (again, *RECORDED[1:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results", "shard-0", "shard-1", "shard-2"]
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["whole"]


def test_the_folder_is_for_the_same_eyes_as_the_one_that_it_is_in(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir(mode=0o750)
    merge(shards(tmp_path), tmp_path / "results" / "whole")
    assert (tmp_path / "results" / "whole").stat().st_mode & 0o777 == 0o750


def test_what_is_missing_is_known_and_can_be_merged_later(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    merged = merge(paths[:2], tmp_path / "part")
    assert merged.missing_shards == (Part(index=2, count=3),)
    assert load(tmp_path / "part").manifest.plan == WHOLE
    assert merged.recorded == 4
    assert describe_merged(merged, 2, Path("part")) == [
        "2 runs merged: 4 of 6 cases are recorded",
        "power traces: 1 came along",
        "missing: shard 2/3",
        "2 cases have no record. To measure them here: infsa-bench sweep --out whole --resume",
        "records: part",
    ]
    # The same record in both is no conflict: a merged run takes in what came late, or all of its shards once more.
    for others, repeated in (([paths[2]], 0), (paths, 4)):
        out = tmp_path / f"later-{repeated}"
        merged = merge([tmp_path / "part", *others], out)
        assert (merged.recorded, merged.repeated) == (6, repeated)
        assert load(out).records == RECORDED
        assert len((out / RECORDS).read_bytes().splitlines()) == 6
    assert "4 records were in several runs, and the same" in describe_merged(merged, 4, Path("x"))[0]


def dealt(folder: Path, index: int, count: int) -> Path:
    """A shard as it is dealt out where no two cases have a cell in common: one each, or more of fewer shards."""
    return write(folder / f"shard-{index}-of-{count}", manifest_of(index, count))


def test_a_shard_for_which_there_were_no_cases_is_not_missing(tmp_path: Path) -> None:
    paths = [dealt(tmp_path, index, 8) for index in range(6)]
    merged = merge(paths, tmp_path / "all")
    assert (merged.recorded, merged.missing_shards) == (6, ())
    merged = merge([*paths[:2], *paths[3:]], tmp_path / "some")
    assert (merged.recorded, merged.missing_shards) == (5, (Part(index=2, count=8),))


def test_replicates_and_implementations_do_not_make_more_shards(tmp_path: Path) -> None:
    """They stay with their cell: of two cells there are two shards that have cases."""
    cases = [
        make_record(mechanism=mechanism, implementation=implementation, options=options, replicate=replicate).case
        for replicate in (0, 1)
        for mechanism in ("softmax", "agent", "package.module:Class")
        for implementation, options in (("reference", ()), ("fast", ()), ("fast", (("backend", "math"),)))
    ]
    whole = tuple(case.id for case in cases)
    paths = []
    for index, mechanism in enumerate(("softmax", "agent")):
        plan = tuple(case.id for case in cases if case.mechanism == mechanism)
        shard = Shard(part=Part(index=index, count=9), whole=whole)
        paths.append(write(tmp_path / mechanism, replace(make_manifest(plan), shard=shard), []))
    assert merge(paths, tmp_path / "out").missing_shards == (Part(index=2, count=9),)


def test_no_shard_is_missing_whose_cases_came_with_another_run(tmp_path: Path) -> None:
    paths = shards(tmp_path, 6)
    merge(paths[:2], tmp_path / "part")
    merged = merge([tmp_path / "part", *paths[2:]], tmp_path / "all")
    assert (merged.recorded, merged.missing_shards) == (6, ())
    # Of which shards the other run's cases were is not known, so that none is named.
    merged = merge([tmp_path / "part", *paths[3:]], tmp_path / "some")
    assert (merged.recorded, merged.missing_shards) == (5, ())
    assert describe_merged(merged, 4, Path("some"))[2].startswith("1 cases have no record.")


def test_a_single_shard_that_has_all_cases_becomes_the_whole_run(tmp_path: Path) -> None:
    """What an array job leaves behind where its plan was of one cell."""
    shard = Shard(part=Part(index=0, count=2), whole=WHOLE[:1])
    only = write(tmp_path / "only", replace(make_manifest(WHOLE[:1]), shard=shard))
    merged = merge([only], tmp_path / "out")
    assert (merged.recorded, merged.missing_shards) == (1, ())
    assert load(tmp_path / "out").manifest == replace(make_manifest(WHOLE[:1]), command=COMMAND)
    assert describe_merged(merged, 1, Path("out"))[0] == "1 run merged: 1 of 1 cases are recorded"
    with pytest.raises(SpecError, match="joins two runs or more"):
        merge([tmp_path / "out"], tmp_path / "again")


def test_a_shard_that_was_interrupted(tmp_path: Path) -> None:
    paths = shards(tmp_path)[:2]
    paths.append(write(tmp_path / "interrupted", manifest_of(2), RECORDED[2:3]))
    merged = merge(paths, tmp_path / "out")
    assert (merged.recorded, merged.missing_shards) == (5, ())
    assert describe_merged(merged, 3, Path("out"))[2].startswith("1 cases have no record.")


def test_of_superseded_records_only_the_last_one_comes_along(tmp_path: Path) -> None:
    first, *others = shards(tmp_path)
    with RunWriter(first, manifest_of(0)) as writer:
        writer.append(RECORDED[0], TRACE[:2])
        writer.append(replace(RECORDED[3], outcome=make_failure("killed")))
    merge([first, *others], tmp_path / "out")
    run = load(tmp_path / "out")
    assert run.superseded == 0
    assert run.records[3].outcome == make_failure("killed")
    assert trace_path(run.path, WHOLE[0]).read_bytes() == trace_path(first, WHOLE[0]).read_bytes()


def there(record: Record) -> Record:
    return replace(record, environment=OTHER.key)


def peaks_of(flops_per_second: float, **changes: object) -> MeasuredPeaks:
    rate = replace(PEAKS.copied_bytes_per_second, per_second=flops_per_second)
    return replace(PEAKS, flops_per_second={"fp32": rate}, copied_bytes_per_second=rate, **changes)  # type: ignore[arg-type]


HERE = peaks_of(
    2.0**40, device=ENVIRONMENT.device, device_name=ENVIRONMENT.device_name, torch_threads=ENVIRONMENT.torch_threads
)
THERE = peaks_of(
    2.0**41,
    device=OTHER.device,
    device_name=OTHER.device_name,
    device_uuid=OTHER.device_uuid,
    torch_threads=OTHER.torch_threads,
)


def fleet(tmp_path: Path) -> list[Path]:
    """Two shards, one of each of two machines that share nothing."""
    settings = replace(SETTINGS, device="cuda:0")
    one = manifest_of(0, 2, settings=settings)
    other = manifest_of(
        1, 2, settings=replace(settings, device="cuda:1", time_budget_seconds=60.0), environments={OTHER.key: OTHER}
    )
    return [
        write(tmp_path / "one", one, calibrations=[CALIBRATION], peaks=HERE),
        write(
            tmp_path / "other",
            replace(other, created_utc="2025-12-31T00:00:00+00:00"),
            [there(record) for record in RECORDED[1::2]],
            calibrations=[CALIBRATION_LATER, CALIBRATION],
            peaks=THERE,
        ),
    ]


def test_of_different_machines_everything_comes_along(tmp_path: Path) -> None:
    merge(fleet(tmp_path), tmp_path / "out")
    run = load(tmp_path / "out")
    assert run.manifest.environments == {ENVIRONMENT.key: ENVIRONMENT, OTHER.key: OTHER}
    assert run.manifest.calibrations == (CALIBRATION, CALIBRATION_LATER)
    assert run.all_peaks == (HERE, THERE)
    assert run.manifest.created_utc == "2025-12-31T00:00:00+00:00"
    assert run.manifest.settings.time_budget_seconds == 240.0


def test_of_runs_of_which_one_had_no_budget_the_whole_has_none(tmp_path: Path) -> None:
    without = manifest_of(1, settings=replace(SETTINGS, time_budget_seconds=None))
    paths = [write(tmp_path / "one", manifest_of(0)), write(tmp_path / "two", without)]
    for index, order in enumerate((paths, paths[::-1])):
        assert merge(order, tmp_path / f"out-{index}").manifest.settings.time_budget_seconds is None


def test_no_row_mixes_machines_and_each_is_named_where_its_rows_stand(tmp_path: Path) -> None:
    """Also where the replicates of one cell come from two."""
    replicates = [replace(record, case=replace(record.case, replicate=1)) for record in RECORDED]
    manifest = make_manifest([record.case.id for record in (*RECORDED, *replicates)])
    one = write(tmp_path / "one", manifest, RECORDED, peaks=HERE)
    two = [there(record) for record in replicates]
    other = write(tmp_path / "two", replace(manifest, environments={OTHER.key: OTHER}), two, peaks=THERE)
    merge([one, other], tmp_path / "out")
    run = summarized(load(tmp_path / "out"))
    assert len(run.rows) == 12
    assert {row.processes for row in run.rows} == {1}
    for title, block in blocks(run.rows):
        (environment,) = {row.environment for row in block}
        assert title.endswith(f"environment {environment}")
    # Each row is set against the peaks of its own device.
    peaks = {ENVIRONMENT.key: 2.0**40, OTHER.key: 2.0**41}
    for row in run.rows:
        assert row.seconds_per_iteration is not None
        assert row.roofline_fraction == pytest.approx(2**30 / peaks[row.environment] / row.seconds_per_iteration)
    text = render_markdown(run, run.rows)
    for key, name in ((ENVIRONMENT.key, ENVIRONMENT.device_name), (OTHER.key, OTHER.device_name)):
        assert f"environment {key}\n" in text
        assert f"- Environment {key}: " in text
        assert name in text
    assert text.count("- Peaks of ") == 2


def test_peaks_of_one_device_are_kept_once(tmp_path: Path) -> None:
    paths = [write(path, manifest_of(index), peaks=HERE) for index, path in enumerate(shards(tmp_path))]
    merge(paths, tmp_path / "out")
    assert load(tmp_path / "out").all_peaks == (HERE,)
    assert not (tmp_path / "out" / FURTHER_PEAKS).exists()


def test_traces_that_should_be_there_are_counted_as_missing(tmp_path: Path) -> None:
    """Of energy that was read from a GPU there is one; RAPL has none, and a case that failed neither."""

    def watched(index: int, source: EnergySource) -> Record:
        energy = make_energy(calibration=replace(CALIBRATION, source=source))
        return replace(RECORDED[index], outcome=make_measurement(energy=energy))

    records = [
        watched(0, "nvml_counter"),
        watched(1, "nvml_power"),
        watched(2, "nvml_counter"),
        watched(3, "rapl"),
        replace(RECORDED[4], outcome=make_failure("oom")),
        RECORDED[5],
    ]
    one = write(tmp_path / "one", manifest_of(0), records[::3])
    two = write(tmp_path / "two", manifest_of(1), records[1::3])
    three = write(tmp_path / "three", manifest_of(2), records[2::3])
    merged = merge([one, two, three], tmp_path / "out")
    assert (merged.traces, merged.missing_traces) == (1, 2)
    assert describe_merged(merged, 3, Path("out"))[1] == (
        "power traces: 1 came along; 2 are missing: energy was measured, but its trace was not in the run"
    )
    # Cut off before its first line is as good as not copied.
    trace_path(one, WHOLE[0]).write_bytes(b"")
    merged = merge([one, two, three], tmp_path / "again")
    assert (merged.traces, merged.missing_traces) == (0, 3)
    assert not (tmp_path / "again" / TRACES).exists()


Spoil = Callable[[list[Path], Path], object]


def rewrite(path: Path, manifest: Manifest, records: Sequence[Record] | None = None) -> None:
    for name in (MANIFEST, RECORDS):
        (path / name).unlink(missing_ok=True)
    write(path, manifest, records)


def with_settings(**changes: object) -> Spoil:
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    return lambda paths, out: rewrite(paths[1], manifest_of(1, settings=settings))


def of_another_plan(paths: list[Path], out: Path) -> None:
    shard = Shard(part=Part(index=1, count=3), whole=WHOLE[:5])
    rewrite(paths[1], replace(manifest_of(1), shard=shard))


def search_of(paths: list[Path], out: Path) -> None:
    search = Search(
        models=(RECORDED[0].case,), smallest=64, largest=512, step=64, timeout_seconds=1.0, available_bytes=1
    )
    rewrite(paths[1], manifest_of(1, search=search))


def two_results(paths: list[Path], out: Path) -> None:
    another = make_manifest(WHOLE)
    paths.append(write(out.parent / "again", another, [replace(RECORDED[4], seconds=99.0)]))


def torn(paths: list[Path], out: Path) -> None:
    with (paths[2] / RECORDS).open("ab") as file:
        file.write(b"{")


def trace_cut_off(paths: list[Path], out: Path) -> None:
    file = trace_path(paths[0], WHOLE[0])
    file.write_bytes(file.read_bytes()[:-5])


def one_environment_twice(paths: list[Path], out: Path) -> None:
    rewrite(paths[1], manifest_of(1, environments={ENVIRONMENT.key: OTHER}))


REFUSED: dict[str, tuple[Spoil, type[Exception], str]] = {
    "another protocol": (
        with_settings(protocol=PROTOCOLS["paper"]),
        SpecError,
        "shard-1 was made with another protocol",
    ),
    "another seed": (with_settings(seed=7), SpecError, "another seed than"),
    "another energy": (with_settings(energy="none"), SpecError, "another energy"),
    "another memory": (with_settings(memory_limit_bytes=2**34), SpecError, "another memory limit"),
    "another type of device": (with_settings(device="cuda:0"), SpecError, "another device"),
    "another plan": (of_another_plan, SpecError, "different plans"),
    "a whole plan that is another": (
        lambda paths, out: rewrite(paths[1], make_manifest(WHOLE[:5])),
        SpecError,
        f"different plans, of 5 and 6 cases: {WHOLE[5]} is only in that of .*shard-0",
    ),
    "a plan of as many cases that is another": (
        lambda paths, out: rewrite(paths[1], make_manifest((*WHOLE[:5], make_record(resolution=512).case.id)), []),
        SpecError,
        f"different plans, of 6 and 6 cases: {make_record(resolution=512).case.id} is only in that of .*shard-1",
    ),
    "the same shard": (
        lambda paths, out: paths.append(write(out.parent / "again", manifest_of(1))),
        SpecError,
        "are both shard 1/3",
    ),
    "dealt among others": (
        lambda paths, out: rewrite(paths[1], manifest_of(1, 2)),
        SpecError,
        "is shard 0/3, .*shard-1 is shard 1/2: dealt out differently",
    ),
    "shards that overlap": (
        lambda paths, out: rewrite(paths[1], manifest_of(1, plan=WHOLE[:3]), []),
        SpecError,
        f"shards overlap: {WHOLE[0]} is in .*shard-0 and in .*shard-1",
    ),
    "two results": (two_results, SpecError, f"{WHOLE[4]} has different records in .*shard-1 and in .*again"),
    "a search": (search_of, SpecError, "is a search for the largest resolution"),
    "twice the same": (lambda paths, out: paths.append(paths[0].parent / "." / "shard-0"), SpecError, "is given twice"),
    "another name of the same": (
        lambda paths, out: paths.append(paths[0] / ".." / "shard-0"),
        SpecError,
        "is given twice",
    ),
    "the same by one name": (lambda paths, out: paths.append(paths[0]), SpecError, "is given twice"),
    "only one": (lambda paths, out: paths.__delitem__(slice(1, None)), SpecError, "joins two runs or more"),
    "no run": (lambda paths, out: paths.append(out.with_name("nothing")), SpecError, "nothing is no run"),
    "torn": (torn, SchemaError, "the last line is torn"),
    "copied without its records": (
        lambda paths, out: (paths[1] / RECORDS).unlink(),
        SchemaError,
        "shard-1 has no records.jsonl: only a part of the run was copied",
    ),
    "a trace that was copied in part": (trace_cut_off, SchemaError, "traces/.*, line 4: torn: no end of line"),
    "what was never planned": (
        lambda paths, out: rewrite(paths[1], manifest_of(1), [make_record(resolution=512)]),
        SpecError,
        "has a record, but no place in the plan",
    ),
    "from nowhere": (
        lambda paths, out: rewrite(paths[1], manifest_of(1), [there(RECORDED[1])]),
        SchemaError,
        "ran in an environment that the manifest lacks",
    ),
    "one environment twice": (one_environment_twice, SpecError, "is another one in a run before it"),
    "onto a run": (lambda paths, out: write(out, make_manifest(WHOLE)), SpecError, "exists already"),
    "onto an empty folder": (lambda paths, out: out.mkdir(), SpecError, "exists already"),
    "onto a file": (lambda paths, out: out.write_text("mine"), SpecError, "exists already"),
    "onto a link that leads nowhere": (lambda paths, out: out.symlink_to("nowhere"), SpecError, "exists already"),
    "traces elsewhere": (
        lambda paths, out: (paths[1] / TRACES).symlink_to(paths[0] / TRACES),
        SchemaError,
        "a symbolic link where a folder should be",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_go_together_is_refused_and_leaves_nothing(tmp_path: Path, what: str) -> None:
    spoil, error, message = REFUSED[what]
    paths, out = shards(tmp_path), tmp_path / "out"
    spoil(paths, out)
    before = sorted(tmp_path.rglob("*"))
    # Nor do folders that were made for it.
    places = [out] if what.startswith("onto") else [out, tmp_path / "new" / "deep" / "out"]
    for place in places:
        with pytest.raises(error, match=message) as caught:
            merge(paths, place)
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_is_being_written_is_refused(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    with RunWriter(paths[1], manifest_of(1)), pytest.raises(RunLockedError, match="shard-1 is being written"):
        merge(paths, tmp_path / "out")
    for path in paths:
        (path / LOCK).unlink()
    merge(paths, tmp_path / "out")
    assert load(tmp_path / "out").records == RECORDED


def test_more_than_one_run_may_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum((path / RECORDS).stat().st_size for path in shards(tmp_path))
    monkeypatch.setattr(merging, "MAX_RECORDS_BYTES", size - 1)
    with pytest.raises(SpecError, match="more than the"):
        merge([tmp_path / f"shard-{index}" for index in range(3)], tmp_path / "out")
    monkeypatch.setattr(merging, "MAX_RECORDS_BYTES", size)
    merge([tmp_path / f"shard-{index}" for index in range(3)], tmp_path / "out")


KILLED = """
import os, signal, sys
from pathlib import Path
from infsa_bench.merging import merge_runs
calls, limit = 0, int(sys.argv[1])
def spy(name, do):
    def count(*arguments, **options):
        global calls
        calls += 1
        if calls == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return do(*arguments, **options)
    return count
os.fsync = spy("fsync", os.fsync)
Path.replace = spy("replace", Path.replace)
Path.rename = spy("rename", Path.rename)
merge_runs([Path(name) for name in sys.argv[3:]], Path(sys.argv[2]), ("infsa-bench",))
print(calls)
"""


def test_a_merge_that_is_killed_leaves_no_half_run(tmp_path: Path) -> None:
    """Killed before every single step that makes something last."""
    paths = fleet(tmp_path)
    command = [sys.executable, "-c", KILLED]
    limit, ended = 0, -signal.SIGKILL
    while ended == -signal.SIGKILL:
        limit += 1
        out = tmp_path / f"results-{limit}" / "out"
        done = subprocess.run([*command, str(limit), str(out), *map(str, paths)], capture_output=True, text=True)
        ended = done.returncode
        if out.exists():
            assert len(load(out).records) == 6
        else:
            # What was left over does not stand in the way.
            (left,) = out.parent.iterdir()
            assert left.name.startswith(".out.")
            merge_runs(paths, out, COMMAND)
            assert len(load(out).records) == 6
    assert ended == 0, done.stderr
    assert int(done.stdout) == limit - 1 > 10


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        merge(paths, tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("command", "whole"),
    [
        ("infsa-bench sweep --shard 0/3 --res 32 --out results/shard-0", "infsa-bench sweep --res 32 --out OUT"),
        ("infsa-bench sweep --shard=0/3 --out=x --resume --res 32", "infsa-bench sweep --res 32 --out OUT"),
        ("infsa-bench sweep --res 32", "infsa-bench sweep --res 32 --out OUT"),
        (
            "infsa-bench table1 results/shard-0 --measure --shard 0/3 --resume",
            "infsa-bench table1 OUT --measure",
        ),
        (
            "infsa-bench table1 results/shards/0 --measure --shard 0/8 --replicates 0",
            "infsa-bench table1 OUT --measure --replicates 0",
        ),
        (
            "infsa-bench table1 --measure --replicates 0 --against=0 --against 0 --shard 0/8 shards/0 --device 0",
            "infsa-bench table1 --measure --replicates 0 --against=0 --against 0 OUT --device 0",
        ),
        ("infsa-bench table1 --measure --shard 0/8 -- 0", "infsa-bench table1 --measure -- OUT"),
        ("infsa-bench table1 table1 --measure --shard 0/8", "infsa-bench table1 OUT --measure"),
    ],
)
def test_the_command_of_all_shards_follows_from_that_of_one(command: str, whole: str) -> None:
    assert " ".join(whole_command(command.split(), Path("OUT"))) == whole


def test_the_flags_of_table1_are_those_of_its_command_line() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    flags = {name for each in commands["table1"].params if getattr(each, "is_flag", False) for name in each.opts}
    assert flags == set(FLAGS_OF_TABLE1)


def test_many_missing_shards_are_not_all_named() -> None:
    parts = tuple(Part(index=index, count=99) for index in range(50))
    merged = Merged(
        manifest=make_manifest(WHOLE), recorded=0, repeated=0, traces=0, missing_traces=0, missing_shards=parts
    )
    assert os.linesep.join(describe_merged(merged, 2, Path("x"))).count("/99") == 10
    assert "and 40 more" in describe_merged(merged, 2, Path("x"))[1]
