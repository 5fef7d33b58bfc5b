"""Other processes' use of the cores, from a made-up /proc/stat and from this machine's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infsa_bench.measure.processors import SHARED_CORES, OtherLoad, own_seconds

HERTZ = os.sysconf("SC_CLK_TCK")


def write(file: Path, *, busy: float, idle: float) -> None:
    user = round(busy * HERTZ)
    file.write_text(f"cpu  {user} 0 0 {round(idle * HERTZ)} 0 0 0 0 0 0\ncpu0 1 2 3 4\n")


@pytest.mark.parametrize(("busy", "is_shared"), [(0.0, False), (4.0, False), (6.0, True), (100.0, True)])
def test_share_of_all_cores(tmp_path: Path, busy: float, is_shared: bool) -> None:
    stat = tmp_path / "stat"
    write(stat, busy=1000, idle=5000)
    others = OtherLoad(stat)
    own = own_seconds()
    write(stat, busy=1000 + busy, idle=5000 + 100 - busy)
    share = others.share()
    assert share == pytest.approx(busy / 100, abs=(own_seconds() - own) / 100 + 1e-6)
    assert others.is_shared() == is_shared
    assert SHARED_CORES == 0.05


def test_our_own_work_is_not_others(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    write(stat, busy=0, idle=0)
    others, begin = OtherLoad(stat), own_seconds()
    while own_seconds() - begin < 0.2:
        pass
    write(stat, busy=own_seconds() - begin, idle=1)
    assert others.share() == pytest.approx(0.0, abs=0.03)


def test_only_the_cores_that_count_are_looked_at(tmp_path: Path) -> None:
    """A worker that is kept to one core is not disturbed by what runs on the other."""
    stat = tmp_path / "stat"

    def write_seconds(*busy_and_idle: tuple[int, int]) -> None:
        both = [("", tuple(map(sum, zip(*busy_and_idle, strict=True)))), *enumerate(busy_and_idle)]
        lines = [f"cpu{name} {busy * HERTZ} 0 0 {idle * HERTZ} 0 0 0 0 0 0" for name, (busy, idle) in both]
        stat.write_text("\n".join(lines))

    write_seconds((0, 100), (0, 100))
    chosen: tuple[tuple[int, ...] | None, ...] = ((0,), (1,), (0, 1), None)
    loads = {cores: OtherLoad(stat, None if cores is None else frozenset(cores)) for cores in chosen}
    begin = own_seconds()
    write_seconds((0, 200), (50, 150))
    slack = (own_seconds() - begin) / 100 + 0.01
    expected = {(0,): 0.0, (1,): 0.5, (0, 1): 0.25, None: 0.25}
    for cores, load in loads.items():
        assert load.share() == pytest.approx(expected[cores], abs=slack)


def test_a_core_that_the_system_does_not_list(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    write(stat, busy=0, idle=0)
    others = OtherLoad(stat, frozenset({0, 7}))
    write(stat, busy=0, idle=100)
    assert others.share() is None


@pytest.mark.parametrize("text", [None, "", "cpu", "cpu 1 2 3\n", "cpu a b c d e f g h\n"])
def test_a_system_that_does_not_tell(tmp_path: Path, text: str | None) -> None:
    stat = tmp_path / "stat"
    if text is not None:
        stat.write_text(text)
    others = OtherLoad(stat)
    assert others.share() is None
    assert not others.is_shared()


def test_too_short_a_time_tells_nothing(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    write(stat, busy=0, idle=0)
    others = OtherLoad(stat)
    write(stat, busy=0.2, idle=0)
    assert others.share() is None


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/stat (Linux)")
def test_another_process_of_this_machine_is_seen() -> None:
    others = OtherLoad()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        time.sleep(0.6)
        share = others.share()
        busy.kill()
    assert share is not None
    assert share > 0.5 / (os.cpu_count() or 1)
