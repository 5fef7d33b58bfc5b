"""``peaks.json`` in a run's folder: there and back, and whatever else may lie there."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_worker import ENVIRONMENT, PEAKS
from hypothesis import given
from hypothesis import strategies as st
from sample_records import make_manifest, make_record

from infsa_bench.errors import SchemaError
from infsa_bench.peaks import MAX_PEAKS_BYTES, MeasuredPeaks, load_peaks, write_peaks
from infsa_bench.store import RunWriter, load

RATES = st.floats(1e-3, 1e18)


def test_there_and_back(tmp_path: Path) -> None:
    assert load_peaks(tmp_path) is None
    write_peaks(tmp_path, PEAKS)
    assert load_peaks(tmp_path) == PEAKS
    assert [path.name for path in tmp_path.iterdir()] == ["peaks.json"]


@given(rate=RATES, copied=RATES, spread=st.floats(1e-9, 0.99))
def test_every_digit_is_kept(
    tmp_path_factory: pytest.TempPathFactory, rate: float, copied: float, spread: float
) -> None:
    product = dataclasses.replace(PEAKS.flops_per_second["fp32"], per_second=rate, spread=spread)
    copy = dataclasses.replace(PEAKS.copied_bytes_per_second, per_second=copied)
    peaks = dataclasses.replace(PEAKS, flops_per_second={"fp32": product}, copied_bytes_per_second=copy)
    folder = tmp_path_factory.mktemp("run")
    write_peaks(folder, peaks)
    assert load_peaks(folder) == peaks


def test_a_run_has_them_or_not(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", make_manifest()) as writer:
        writer.append(make_record())
        assert writer.peaks is None
        assert load(tmp_path / "run").peaks is None
        writer.set_peaks(PEAKS)
        assert writer.peaks == PEAKS
    assert load(tmp_path / "run").peaks == PEAKS
    with RunWriter(tmp_path / "run", make_manifest()) as writer:
        assert writer.peaks == PEAKS


def test_which_device_they_are_of() -> None:
    assert PEAKS.are_of(ENVIRONMENT)
    assert not PEAKS.are_of(dataclasses.replace(ENVIRONMENT, torch_threads=2))
    gpu = dataclasses.replace(PEAKS, device="cuda:0")
    assert gpu.are_of(dataclasses.replace(ENVIRONMENT, device="cuda:0", torch_threads=2))
    assert (PEAKS.flops_of("fp32"), PEAKS.flops_of("amp-bf16")) == (2.0**37, None)


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another version": (lambda raw: raw.update(schema_version=3), "schema version 3; this infsa-bench reads version 4"),
    "unknown field": (lambda raw: raw.update(extra=1), "unknown fields"),
    "missing field": (lambda raw: raw.pop("seconds"), "missing fields"),
    "wrong type": (lambda raw: raw.update(seconds="3"), "is not of type float"),
    "no rate": (lambda raw: raw["copied_bytes_per_second"].update(per_second=0), "a measured rate is above zero"),
    "negative": (lambda raw: raw["copied_bytes_per_second"].update(per_second=-1.0), "a measured rate is above zero"),
    "beyond all measure": (lambda raw: raw["copied_bytes_per_second"].update(per_second=1e60), "beyond all measure"),
    "spread": (lambda raw: raw["copied_bytes_per_second"].update(spread=1.5), "its spread below 1"),
    "no precision": (
        lambda raw: raw["flops_per_second"].update(fp8=raw["flops_per_second"]["fp32"]),
        "no precision of a matrix product: 'fp8'",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_refused_with_its_name(tmp_path: Path, name: str) -> None:
    change, expected = BROKEN[name]
    write_peaks(tmp_path, PEAKS)
    raw = json.loads((tmp_path / "peaks.json").read_text())
    change(raw)
    (tmp_path / "peaks.json").write_text(json.dumps(raw))
    with pytest.raises(SchemaError) as refused:
        load_peaks(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / 'peaks.json'}: ")
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[]", "not an object"),
        (b'{"schema_version": NaN}', "NaN is no number"),
        (b"[" * 100_000, "nested too deeply"),
        (b" " * (MAX_PEAKS_BYTES + 1), "more than the"),
    ],
    ids=["empty", "utf16", "list", "nan", "deep", "large"],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "peaks.json").write_bytes(content)
    with pytest.raises(SchemaError, match=expected) as refused:
        load_peaks(tmp_path)
    assert str(refused.value).count("peaks.json") == 1


def test_links_and_special_files_are_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_peaks(elsewhere, PEAKS)
    file = tmp_path / "peaks.json"
    for make in (
        lambda: file.symlink_to(elsewhere / "peaks.json"),
        lambda: os.mkfifo(file),
        file.mkdir,
    ):
        make()
        with pytest.raises(SchemaError, match="where a regular file should be"):
            load_peaks(tmp_path)
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()


def test_a_corrupted_file_keeps_a_writer_out_before_it_changes_anything(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", make_manifest()) as writer:
        writer.append(make_record())
    (tmp_path / "run" / "peaks.json").write_text("{")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(SchemaError, match=r"peaks\.json: not JSON"):
        RunWriter(tmp_path / "run", make_manifest())
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    with pytest.raises(SchemaError, match=r"peaks\.json: not JSON"):
        load(tmp_path / "run")


def test_no_type_is_made_but_that_of_peaks() -> None:
    assert isinstance(PEAKS, MeasuredPeaks)
    with pytest.raises(ValueError, match="no precision"):
        dataclasses.replace(PEAKS, flops_per_second={"fp64": PEAKS.flops_per_second["fp32"]})
