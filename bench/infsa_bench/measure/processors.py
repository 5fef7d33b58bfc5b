"""Who else uses the machine's processors: their load beside this process's own. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

STAT = Path("/proc/stat")

SHARED_CORES = 0.05
"""Share of all cores that other processes may use before a number is doubted."""

LEAST_SECONDS = 0.25
"""Time of all cores together that must pass: the system counts in hundredths of a second."""


class OtherLoad:
    """The share of the cores that other processes use, from when this is made until it is asked.

    ``cores`` are those that count, None for all: a process that is kept to some of them cares for nobody on the others.
    """

    def __init__(self, stat: Path = STAT, cores: frozenset[int] | None = None) -> None:
        self._stat = stat
        self._names = frozenset({"cpu"} if cores is None else {f"cpu{core}" for core in cores})
        self._begin = self._machine_seconds()
        self._begin_own = own_seconds()

    def share(self) -> float | None:
        """Return the share of the cores, 0 to 1; None where the system does not tell, or too little time has passed."""
        end, own = self._machine_seconds(), own_seconds() - self._begin_own
        if self._begin is None or end is None or end[1] - self._begin[1] < LEAST_SECONDS:
            return None
        others = (end[0] - self._begin[0]) - own
        return max(0.0, others / (end[1] - self._begin[1]))

    def is_shared(self) -> bool:
        """Tell whether others use more than :data:`SHARED_CORES`; not where nobody knows."""
        share = self.share()
        return share is not None and share > SHARED_CORES

    def _machine_seconds(self) -> tuple[float, float] | None:
        """Busy and all seconds of the cores that count since the machine started."""
        try:
            lines = [line.split() for line in self._stat.read_text().splitlines()]
            found = [[int(field) for field in words[1:9]] for words in lines if words and words[0] in self._names]
            user, nice, system, idle, iowait, irq, softirq, steal = map(sum, zip(*found, strict=True))
        except (OSError, ValueError):
            return None
        if len(found) != len(self._names):
            return None
        hertz = os.sysconf("SC_CLK_TCK")
        # What a hypervisor gives to other machines is somebody else's use, too.
        busy = user + nice + system + irq + softirq + steal
        return busy / hertz, (busy + idle + iowait) / hertz


def own_cores() -> frozenset[int]:
    """Return the cores that this process may run on."""
    return frozenset(os.sched_getaffinity(0))


def own_seconds() -> float:
    """Return the processor time of this process, all its threads together."""
    times = os.times()
    return times.user + times.system
