from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infsa_bench.traces import TRACES, trace_path


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
