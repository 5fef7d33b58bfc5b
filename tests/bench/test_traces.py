from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infsa_bench.errors import SchemaError
from infsa_bench.record import TracePoint
from infsa_bench.traces import MAX_TRACE_BYTES, TRACES, load_trace, trace_path, write_trace


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results" / "example"


TRACE_IDS = [
    "infsa/softmax.reference/4L-64H/r224/b1/fp32/infer/eager/p0",
    "infsa/softmax.reference/4L-64H/r224/b1/fp32/infer/eager/rho=0.5,gamma=1e-3/p10",
    "infsa/some.package:Mixer.reference/4L-64H/r224/b1/fp32/infer/eager/p0",
    "infsa/some.package;Mixer.reference/4L-64H/r224/b1/fp32/infer/eager/p0",
    "infsa/some_package/p0",
    "infsa/some/package/p0",
    "infsa_some/package/p0",
    "a" * 5000,
    "a" * 5000 + "/p1",
    "\u00fc" * 300,
    "\udcff/p0",
    "../../etc/passwd",
    "a\nb\x00c",
    "",
    "..",
]


def test_every_case_has_a_trace_of_its_own_with_a_name_that_any_disk_takes(path: Path) -> None:
    names = [trace_path(path, case_id).name for case_id in TRACE_IDS]
    assert len({name.lower() for name in names}) == len(TRACE_IDS)
    (path / TRACES).mkdir(parents=True)
    for case_id, name in zip(TRACE_IDS, names, strict=True):
        file = trace_path(path, case_id)
        assert file.parent == path / TRACES
        assert len(name.encode()) < 200
        assert re.fullmatch(r"[A-Za-z0-9_.,=+~-]+\.csv", name)
        file.touch()
    # A name that says it all needs no digest.
    assert ["~" in name for name in names[:3]] == [False, False, True]


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_two_cases_share_a_trace(one: str, other: str) -> None:
    assert (trace_path(Path(), one) == trace_path(Path(), other)) == (one == other)


@given(st.lists(st.text(alphabet="a/_~-", max_size=6), min_size=2, max_size=2, unique=True))
def test_no_two_similar_cases_share_a_trace(pair: list[str]) -> None:
    one, other = pair
    assert trace_path(Path(), one) != trace_path(Path(), other)


def point(seconds: float, **changes: object) -> TracePoint:
    values = {"power_watts": 300.5, "sm_clock_mhz": 1980, "temperature_celsius": 41, "event_reasons": ()}
    return TracePoint(seconds=seconds, **(values | changes))  # type: ignore[arg-type]


NUMBERS = st.none() | st.floats(-1e50, 1e50, exclude_min=True, exclude_max=True)
INTEGERS = st.none() | st.integers(-(2**63) + 1, 2**63 - 1)
POINTS = st.builds(
    TracePoint,
    seconds=st.floats(0, 1e6),
    power_watts=NUMBERS,
    sm_clock_mhz=INTEGERS,
    temperature_celsius=INTEGERS,
    event_reasons=st.lists(st.sampled_from(["sw_power_cap", "hw_slowdown", "gpu_idle"]), max_size=3).map(tuple),
)


@given(st.lists(POINTS, max_size=5))
def test_there_and_back(tmp_path_factory: pytest.TempPathFactory, points: list[TracePoint]) -> None:
    trace = tuple(sorted(points, key=lambda point: point.seconds))
    file = trace_path(tmp_path_factory.mktemp("run"), "infsa/x/p0")
    write_trace(file, trace)
    assert load_trace(file) == trace


def test_no_file_is_no_trace(path: Path) -> None:
    assert load_trace(trace_path(path, TRACE_IDS[0])) == ()
    path.mkdir(parents=True)
    (path / TRACES).touch()
    assert load_trace(trace_path(path, TRACE_IDS[0])) == ()


HEADER = "seconds,power_watts,sm_clock_mhz,temperature_celsius,event_reasons\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", None),
        ("garbage\n", "line 1: 1 fields where a trace has 5"),
        ("a,b,c,d,e\n", "line 1: not the columns of a trace"),
        (HEADER + "0.0,1.0,1,1\n", "line 2: 4 fields"),
        (HEADER + "0.0,1.0,1,1,", "line 2: torn"),
        (HEADER + "\n", "line 2: .*a trace has 5"),
        (HEADER + ",1.0,1,1,\n", "line 2: seconds '' after 0.0"),
        (HEADER + "-1.0,1.0,1,1,\n", "line 2: seconds '-1.0' after 0.0"),
        (HEADER + "1.0,1.0,1,1,\n0.5,1.0,1,1,\n", "line 3: seconds '0.5' after 1.0"),
        (HEADER + "0.0,nan,1,1,\n", "line 2: no number: 'nan'"),
        (HEADER + "0.0,inf,1,1,\n", "line 2: no number: 'inf'"),
        (HEADER + "0.0,1e999,1,1,\n", "line 2: beyond all bounds: '1e999'"),
        (HEADER + "0.0,1.0.0,1,1,\n", "line 2: no number"),
        (HEADER + "0.0,1.0,1.5,1,\n", "line 2: no number: '1.5'"),
        (HEADER + "0.0,1.0,1_000,1,\n", "line 2: no number: '1_000'"),
        (HEADER + "0.0,1.0, 1,1,\n", "line 2: no number"),
        (HEADER + "0.0,1.0,\u0661,1,\n", "line 2: no number"),
        (HEADER + f"0.0,1.0,{'9' * 30},1,\n", "line 2: beyond all bounds"),
        (HEADER + f"0.0,1.0,{'9' * 5000},1,\n", "line 2: more than the 4096 bytes"),
        (HEADER + '0.0,1.0,1,1,"a"b\n', "line 2: not CSV"),
        (HEADER + '0.0,1.0,1,1,"a\nb"\n', "line 2: not CSV"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str, message: str | None) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text, encoding="utf-8")
    if message is None:
        assert load_trace(file) == ()
        return
    with pytest.raises(SchemaError, match=message):
        load_trace(file)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_bytes(HEADER.encode() + b"\xff,1.0,1,1,\n")
    with pytest.raises(SchemaError, match="line 2: not CSV"):
        load_trace(file)


def test_links_folders_and_giants_are_refused(tmp_path: Path) -> None:
    write_trace(tmp_path / TRACES / "real.csv", [point(0.0)])
    link = tmp_path / TRACES / "link.csv"
    link.symlink_to(tmp_path / TRACES / "real.csv")
    with pytest.raises(SchemaError, match="a symbolic link where a regular file should be"):
        load_trace(link)
    (tmp_path / "linked").symlink_to(tmp_path / TRACES)
    with pytest.raises(SchemaError, match="a symbolic link where a folder should be"):
        load_trace(tmp_path / "linked" / "real.csv")
    (tmp_path / TRACES / "folder.csv").mkdir()
    with pytest.raises(SchemaError, match="a folder where a regular file should be"):
        load_trace(tmp_path / TRACES / "folder.csv")
    os.mkfifo(tmp_path / TRACES / "fifo.csv")
    with pytest.raises(SchemaError, match="a FIFO"):
        load_trace(tmp_path / TRACES / "fifo.csv")
    giant = tmp_path / TRACES / "giant.csv"
    with giant.open("wb") as handle:
        handle.truncate(MAX_TRACE_BYTES + 1)
    with pytest.raises(SchemaError, match="more than the"):
        load_trace(giant)
