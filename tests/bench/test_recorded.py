"""A writer knows every record without holding the samples of any."""

from __future__ import annotations

import sys
from pathlib import Path

from sample_records import make_failure, make_manifest, make_measurement, make_record

from infsa_bench.record import Failure, Fit, Record
from infsa_bench.store import RECORDS, RunWriter

SAMPLES = [0.01 + 1e-6 * number for number in range(2000)]
FIT = Fit(
    model_bytes=1,
    peak_memory_bytes=None,
    peak_reserved_bytes=None,
    nvml_process_bytes=None,
    memory_source="process_rss",
    first_call_seconds=1.0,
)


def records_of(count: int) -> list[Record]:
    outcomes = (make_measurement(SAMPLES), make_failure("oom", message="é" * 50), FIT, make_measurement(SAMPLES[:3]))
    return [make_record(outcomes[number % 4], replicate=number) for number in range(count)]


def test_every_record_is_there_as_it_was_appended_and_as_it_is_read_again(tmp_path: Path) -> None:
    records = records_of(12)
    manifest = make_manifest([record.case.id for record in records])
    expected = {record.case.id: record for record in records}
    with RunWriter(tmp_path, manifest) as writer:
        for record in records:
            writer.append(record)
        assert writer.recorded == expected
    # What a killed writer left behind is cut off, and the next record takes its place.
    with (tmp_path / RECORDS).open("ab") as file:
        file.write(b'{"case":')
    later = make_record(make_measurement(SAMPLES[:5]), replicate=1)
    with RunWriter(tmp_path, manifest) as writer:
        assert writer.recorded == expected
        writer.append(later)
        assert writer.recorded == expected | {later.case.id: later}
        assert list(writer.recorded) == list(expected)
        assert len(writer.recorded) == 12
        assert "another" not in writer.recorded


def test_what_was_not_measured_is_at_hand_until_it_is(tmp_path: Path) -> None:
    records = records_of(8)
    with RunWriter(tmp_path, make_manifest([record.case.id for record in records])) as writer:
        for record in records:
            writer.append(record)
        lacking = {record.case.id: record for record in records if isinstance(record.outcome, Failure | Fit)}
        assert writer.recorded.unmeasured == lacking
        assert len(lacking) == 4
        writer.append(make_record(replicate=1))
        writer.append(make_record(make_failure("killed"), replicate=0))
    with RunWriter(tmp_path, writer.manifest) as writer:
        again = writer.recorded.unmeasured
        assert set(again) == {*lacking, records[0].case.id} - {records[1].case.id}


def test_samples_are_not_held(tmp_path: Path) -> None:
    record = records_of(1)[0]
    with RunWriter(tmp_path, make_manifest([record.case.id])) as writer:
        writer.append(record)
        references = sys.getrefcount(record)
        assert writer.recorded[record.case.id] == record
        assert writer.recorded[record.case.id] is not record
        assert sys.getrefcount(record) == references
