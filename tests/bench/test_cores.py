"""Shares of the cores, with made-up machines in place of this one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from infsa_bench.execute.cores import divided_cores, limited_threads, physical_cores


def machine(folder: Path, *packages: dict[int, str]) -> Path:
    """Write what Linux says of a machine: for each package the siblings of every core."""
    for package, cores in enumerate(packages):
        for core, siblings in cores.items():
            topology = folder / f"cpu{core}" / "topology"
            topology.mkdir(parents=True)
            (topology / "physical_package_id").write_text(f"{package}\n")
            (topology / "thread_siblings_list").write_text(f"{siblings}\n")
    return folder


def two_packages(folder: Path) -> Path:
    """Two packages of four physical cores; siblings are eight apart, as on most servers."""
    packages = [
        {core: f"{core % 8},{core % 8 + 8}" for core in range(16) if core % 8 // 4 == which} for which in (0, 1)
    ]
    return machine(folder, *packages)


def neighbours(folder: Path) -> Path:
    """One package of three physical cores whose siblings are neighbours."""
    return machine(folder, {core: f"{core // 2 * 2}-{core // 2 * 2 + 1}" for core in range(6)})


def untold(folder: Path) -> Path:
    """Nothing is known, as in some containers."""
    return folder


@pytest.mark.parametrize(
    ("made", "cores", "expected"),
    [
        (two_packages, range(16), [(0, 8), (1, 9), (2, 10), (3, 11), (4, 12), (5, 13), (6, 14), (7, 15)]),
        # One of two siblings is not ours.
        (two_packages, [3, 4, 8, 12], [(8,), (3,), (4, 12)]),
        (neighbours, range(6), [(0, 1), (2, 3), (4, 5)]),
        (untold, [2, 5], [(2,), (5,)]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_hyperthreads_of_one_core_stay_together(
    tmp_path: Path, made: Callable[[Path], Path], cores: Sequence[int], expected: list[tuple[int, ...]]
) -> None:
    assert physical_cores(cores, made(tmp_path)) == expected


def test_no_two_workers_share_a_physical_core(tmp_path: Path) -> None:
    cpus = two_packages(tmp_path)
    cores = range(16)
    assert divided_cores(cores, 2, cpus) == [{0, 1, 2, 3, 8, 9, 10, 11}, {4, 5, 6, 7, 12, 13, 14, 15}]
    for parts in range(2, 9):
        shares = [share for share in divided_cores(cores, parts, cpus) if share is not None]
        assert len(shares) == parts
        assert len({len(share) for share in shares}) == 1
        physical = [{core % 8 for core in share} for share in shares]
        assert sum(map(len, physical)) == len(set().union(*physical))
        assert all(len(share) == 2 * len(of) for share, of in zip(shares, physical, strict=True))


def test_more_workers_than_physical_cores_have_a_hyperthread_each(tmp_path: Path) -> None:
    assert divided_cores(range(6), 5, neighbours(tmp_path)) == [{0}, {1}, {2}, {3}, {4}]


def test_without_hyperthreads_cores_are_divided_equally(tmp_path: Path) -> None:
    cores = [2, 3, 5, 7, 8, 9]
    assert divided_cores(cores, 1, tmp_path) == [None]
    assert divided_cores(cores, 2, tmp_path) == [{2, 3, 5}, {7, 8, 9}]
    assert divided_cores(cores, 4, tmp_path) == [{2}, {3}, {5}, {7}]
    assert divided_cores([0, 1], 3, tmp_path) == [{0}, {1}, {0}]


def test_a_worker_has_no_more_threads_than_cores() -> None:
    assert limited_threads({}, 4) == {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4"}
    assert limited_threads({"OMP_NUM_THREADS": "32"}, 4)["OMP_NUM_THREADS"] == "4"
    assert limited_threads({"OMP_NUM_THREADS": "1"}, 4) == {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "4"}
    assert limited_threads({"OMP_NUM_THREADS": "32,2"}, 4)["OMP_NUM_THREADS"] == "4"
