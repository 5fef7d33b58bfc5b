"""Memory limits that a container or a job scheduler sets on this process (cgroup v2). Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


def memory_left_bytes() -> int | None:
    """Return what the tightest limit on this process leaves; None without any."""
    left = []
    for group in _groups():
        maximum, current = _read(group / "memory.max").strip(), _read(group / "memory.current").strip()
        if maximum.isdigit() and current.isdigit():
            left.append(int(maximum) - int(current))
    return min(left, default=None)


def memory_kills() -> int:
    """Return how many processes under these limits the kernel has killed for memory, as far as it tells."""
    counts = [re.search(r"^oom_kill (\d+)$", _read(group / "memory.events"), re.MULTILINE) for group in _groups()]
    return max((int(count[1]) for count in counts if count), default=0)


def _groups() -> Iterator[Path]:
    """The cgroup of this process and all above it: inside a container the root, under a scheduler a deep one."""
    found = re.search(r"^0::/(.*)$", _read(Path("/proc/self/cgroup")), re.MULTILINE)
    group = ROOT / (found[1].strip() if found else "")
    yield group
    while group != ROOT and ROOT in group.parents:
        group = group.parent
        yield group


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
