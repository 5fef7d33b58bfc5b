"""What a GPU's power sensor sees: how fast it follows, how long it averages, whether the counter agrees with it.

The window is found without an instrument outside, from how much of a square wave is left in the readings. A sensor
that averages over W shows all of a wave longer than 2 W, and of one between W and 2 W, half of it on, the part
``(wave - W) / W``: the shortest stretch of load that a window can hold grows with W. Readings come once a period, so
the waves are parts of it by the golden ratio: successive readings then see all phases evenly. Imports no torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise

from infsa_bench.errors import MeterUnavailableError
from infsa_bench.measure.energy.clock import Clock
from infsa_bench.measure.energy.observer import NEVER_NS, POLL_NS, Edge, Observer, Sample
from infsa_bench.measure.energy.trace import power_joules
from infsa_bench.reference.facts import LoadPower, WaveResponse

GOLDEN_PARTS = (0.382, 0.618)
WAVES_A_PART = 5
SHORTEST_WAVE_SECONDS = 0.005
"""Shorter ones than a few pieces of work are no square waves."""

DUTIES = (0.25, 0.5, 0.75, 1.0)
MIX_SECONDS = 0.0097
"""Wave in which loads below full are mixed: shorter than every known sensor's window."""

LEAST_RESPONSE, MOST_RESPONSE = 0.1, 0.9
"""Between these a response tells the window."""

RISEN_SHARE = 0.9
SAMPLE_SECONDS = 0.005
LEAST_SAMPLES = 10
LEAST_CHANGES = 5


class SensorBench:
    """A device that can be switched on and off, with an observer of its counter and power.

    ``work`` keeps the device busy for a moment, a millisecond or two, and returns when it is done.
    """

    def __init__(self, work: Callable[[], object], clock: Clock, observer: Observer) -> None:
        self._work, self._clock, self._observer = work, clock, observer

    def watch(self, wave_seconds: float, duty: float, seconds: float) -> tuple[list[Edge], tuple[Sample, ...]]:
        """Run a square wave for so long; return the counter's updates and the samples of power meanwhile.

        Raises:
            MeterUnavailableError: the observer is lost.
        """
        edges: list[Edge] = []
        self._observer.start_trace(SAMPLE_SECONDS)
        begin_ns = self._clock.now_ns()
        self._observer.arm(begin_ns, every=True)
        end_ns = begin_ns + round(seconds * 1e9)
        wave_ns, on_ns = wave_seconds * 1e9, duty * wave_seconds * 1e9
        while (now_ns := self._clock.now_ns()) < end_ns:
            phase_ns = (now_ns - begin_ns) % wave_ns
            if phase_ns < on_ns:
                self._work()
            else:
                # At least a nanosecond: the next wave may begin within the rounding of this one's end.
                self._clock.sleep_until(now_ns + max(1, round(min(POLL_NS, wave_ns - phase_ns))))
            if (edge := self._observer.edge()) is not None:
                edges.append(edge)
        self._observer.arm(NEVER_NS)
        return edges, self._observer.stop_trace()

    def counter_rise_seconds(self, seconds: float) -> float | None:
        """Return how long after the begin of a load the counter rises at RISEN_SHARE of its rate, from idle on."""
        edges, _ = self.watch(2 * seconds, 0.0, seconds / 2)
        idle_watts = _mean_watts(edges)
        begin_ns = self._clock.now_ns()
        edges, _ = self.watch(seconds, 1.0, seconds)
        rates = [(last.ns, _watts(first, last)) for first, last in pairwise(edges)]
        if idle_watts is None or len(rates) < 3:
            return None
        final_watts = statistics.median(watts for _, watts in rates[-(len(rates) // 3) :])
        wanted = idle_watts + RISEN_SHARE * (final_watts - idle_watts)
        reached_ns = next((ns for ns, watts in rates if watts >= wanted), None)
        return None if reached_ns is None else (reached_ns - begin_ns) / 1e9

    def loads(self, seconds: float) -> tuple[LoadPower, ...]:
        """Return power at idle and at several loads, the first part of each left out: the sensor follows slowly."""
        found = []
        for duty in (0.0, *DUTIES):
            edges, samples = self.watch(MIX_SECONDS, duty, seconds)
            settled = [edge for edge in edges if edge.ns >= edges[0].ns + seconds * 1e9 / 3]
            power = None
            if len(settled) >= 2:
                joules = power_joules(samples, settled[0].ns, settled[-1].ns)
                power = None if joules is None else joules / (settled[-1].ns - settled[0].ns) * 1e9
            found.append(LoadPower(duty=duty, counter_watts=_mean_watts(settled), power_watts=power))
        return tuple(found)

    def waves(
        self, swing_watts: float, period_seconds: float, seconds: float
    ) -> tuple[tuple[WaveResponse, ...], float | None]:
        """Return the sensor's response to each of the waves, half of each with load, and its own period by them.

        ``period_seconds`` is the counter's, ``swing_watts`` the power of full load above that of none.
        """
        found, periods = [], []
        for wave_seconds in wave_lengths(period_seconds):
            _, samples = self.watch(wave_seconds, 0.5, seconds)
            samples = samples[len(samples) // 5 :]
            watts = [sample.power_watts for sample in samples if sample.power_watts is not None]
            if len(watts) >= LEAST_SAMPLES:
                response = (max(watts) - min(watts)) / swing_watts
                found.append(WaveResponse(wave_seconds=wave_seconds, response=response))
            periods += [period for period in (power_period_seconds(samples),) if period is not None]
        # Two readings in a row may be alike; none is ever between two.
        return tuple(found), min(periods, default=None)


def wave_lengths(period_seconds: float) -> list[float]:
    """Return the waves for a sensor of that period, the longest first."""
    waves = [period_seconds / (count + part) for count in range(WAVES_A_PART) for part in GOLDEN_PARTS]
    return sorted((wave for wave in waves if wave >= SHORTEST_WAVE_SECONDS), reverse=True)


def window_seconds(waves: Sequence[WaveResponse]) -> float | None:
    """Return the window over which the sensor averages, None where no wave tells it.

    The longest wave of which only a part is seen tells it: shorter ones may fit several times into the window.
    """
    for wave in sorted(waves, key=lambda wave: wave.wave_seconds, reverse=True):
        if wave.response < LEAST_RESPONSE:
            return None
        if wave.response < MOST_RESPONSE:
            return wave.wave_seconds / (1 + wave.response)
    return None


def power_period_seconds(samples: Sequence[Sample]) -> float | None:
    """Return the median time between two changes of the sampled power; None where it hardly changed."""
    changes = [last.ns for first, last in pairwise(samples) if first.power_watts != last.power_watts]
    periods = [(last - first) / 1e9 for first, last in pairwise(changes)]
    return statistics.median(periods) if len(periods) >= LEAST_CHANGES else None


def _watts(first: Edge, last: Edge) -> float:
    if last.joules < first.joules:
        raise MeterUnavailableError("counter_reset", "the energy counter fell: the driver was reloaded")
    return (last.joules - first.joules) / (last.ns - first.ns) * 1e9


def _mean_watts(edges: Sequence[Edge]) -> float | None:
    return _watts(edges[0], edges[-1]) if len(edges) >= 2 else None
