"""Limits of containers and schedulers, on a made-up tree of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from infsa_bench.measure import cgroup
from infsa_bench.measure.cgroup import memory_kills, memory_left_bytes


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Files by path below /sys/fs/cgroup, and where this process is."""
    files = {"self": "0::/job/step"}

    def read(file: Path) -> str:
        if file == Path("/proc/self/cgroup"):
            return files["self"]
        return files.get(str(file.relative_to(cgroup.ROOT)), "")

    monkeypatch.setattr(cgroup, "_read", read)
    return files


def test_no_limit_is_none(tree: dict[str, str]) -> None:
    assert memory_left_bytes() is None
    assert memory_kills() == 0
    tree["job/memory.max"], tree["job/memory.current"] = "max\n", "5\n"
    assert memory_left_bytes() is None


def test_the_tightest_limit_above_counts(tree: dict[str, str]) -> None:
    tree["job/step/memory.max"], tree["job/step/memory.current"] = "1000\n", "400\n"
    tree["job/memory.max"], tree["job/memory.current"] = "900\n", "500\n"
    assert memory_left_bytes() == 400


def test_a_limit_at_the_root_counts_inside_a_container(tree: dict[str, str]) -> None:
    tree["self"] = "0::/\n"
    tree["memory.max"], tree["memory.current"] = "1000\n", "999\n"
    tree["memory.events"] = "oom 3\noom_kill 2\noom_group_kill 0\n"
    assert memory_left_bytes() == 1
    assert memory_kills() == 2


def test_kills_are_seen_from_the_group_above(tree: dict[str, str]) -> None:
    tree["job/step/memory.events"] = "oom_kill 1\n"
    tree["job/memory.events"] = "oom_kill 4\n"
    assert memory_kills() == 4


@pytest.mark.parametrize("text", ["", "1:name=systemd:/x\n", "0::/../outside\n", "garbage"])
def test_unreadable_membership_is_no_error(tree: dict[str, str], text: str) -> None:
    tree["self"] = text
    assert memory_left_bytes() is None
    assert memory_kills() == 0
