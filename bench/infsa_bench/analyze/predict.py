"""How long a case will take and how much memory it needs, from its FLOPs and from the cases finished so far."""

from __future__ import annotations

import bisect
import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from infsa_bench.analyze.experience import Experience, Finding
from infsa_bench.energy_plan import EnergyPreset, energy_seconds, trials_of_replicate
from infsa_bench.protocol import Protocol
from infsa_bench.record import Measurement
from infsa_bench.spec import INPUT_BUFFERS, Case
from infsa_models.cost import CHANNELS, Cost, vit_cost
from infsa_models.options import formulas_hold
from infsa_models.registry import CONFIGS

UNKNOWN_SETUP_SECONDS = {"eager": 1.0, "compile": 60.0, "cuda-graph": 3.0}
"""Building a model, and compiling or capturing it, by mode of execution, before any experience."""

MAX_GROWTH = 4.0
"""Most that the ratio of real to predicted time is extrapolated to grow from one resolution to the next."""

TIMED_PASSES = {"cpu": 1.0, "cuda": 2.0}
"""By device type: time spent on timing over that for the latencies. A GPU is timed by its own events as well, and with
its queue kept full; without an empty queue before every iteration the two take about as long as the first together.
"""

IMAGE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "amp-bf16": 4, "amp-fp16": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Predicted seconds of a whole case, and bytes at its peak, model included (None: no formula for it).

    ``least_seconds`` is the shortest that the case may be cut to under a time budget, ``fixed_seconds`` the part of
    both that is neither warm-up nor timing: building the model, and watching its energy. ``step_seconds`` is the
    longest that goes by at once: building it, or an iteration.
    """

    seconds: float
    least_seconds: float
    fixed_seconds: float
    step_seconds: float
    peak_bytes: int | None


class Predictor:
    """Predicts from FLOPs over the rate of a matrix product, rescaled by every finished case.

    The ratio of real to computed time is that of the same mechanism at its previous resolution, extrapolated as a
    power of the tokens from the last two: quadratic mechanisms slow down faster than their FLOPs grow. A mechanism
    without experience takes the median ratio of the others; before any experience it is 1. A mechanism without
    formulas counts as the products of its host alone.
    """

    def __init__(
        self, matmul_flops_per_second: Mapping[str, float], *, passes: float = 1.0, energy: EnergyPreset | None = None
    ) -> None:
        """Take the rates by precision (``fp32``, ``bf16``, ``fp16``) as the worker measured them.

        ``passes`` is that of :data:`TIMED_PASSES`; ``energy`` how energy is watched, None where it is not.
        """
        self._rates = dict(matmul_flops_per_second)
        self._passes = passes
        self._energy = energy
        self._experience = Experience()

    def predict(self, case: Case, protocol: Protocol) -> Prediction:
        """Return what ``case`` will take under ``protocol``."""
        cost = _cost(case)
        ratio, setup_seconds = self._experienced(case)
        iteration_seconds = self._computed_seconds(case, cost) * ratio
        fixed_seconds = setup_seconds + self._energy_seconds(case, protocol, iteration_seconds)
        expected_seconds = protocol.expected_seconds(iteration_seconds)
        least_seconds = protocol.least_seconds(iteration_seconds)
        warmup_seconds = protocol.expected_warmup_seconds(iteration_seconds)
        # Under a time budget a single call warms up, unless the protocol's counts are exact.
        least_warmup_seconds = iteration_seconds if least_seconds < expected_seconds else warmup_seconds
        further_passes = self._passes - 1.0
        return Prediction(
            seconds=fixed_seconds + expected_seconds + further_passes * (expected_seconds - warmup_seconds),
            least_seconds=fixed_seconds + least_seconds + further_passes * (least_seconds - least_warmup_seconds),
            fixed_seconds=fixed_seconds,
            step_seconds=max(setup_seconds, iteration_seconds),
            peak_bytes=None if cost is None else cost.model_bytes + cost.peak_activation_bytes,
        )

    def _energy_seconds(self, case: Case, protocol: Protocol, iteration_seconds: float) -> float:
        if self._energy is None:
            return 0.0
        share = trials_of_replicate(self._energy, case.replicate, protocol.replicates)
        return energy_seconds(self._energy, share, iteration_seconds)

    def observe(self, case: Case, measurement: Measurement) -> None:
        """Learn from a finished case."""
        seconds = statistics.median(measurement.latencies_seconds)
        first_seconds = (measurement.warmup_seconds or measurement.latencies_seconds)[0]
        finding = Finding(
            tokens=case.tokens,
            ratio=seconds / self._computed_seconds(case, _cost(case)),
            # The first call compiles; what it takes beyond a later one is setting up.
            setup_seconds=measurement.build_seconds + max(0.0, first_seconds - seconds),
        )
        self._experience.add(case, finding)

    def _experienced(self, case: Case) -> tuple[float, float]:
        """Return the ratio of real to computed time, and the seconds for setting up, that experience lets expect."""
        own = self._experience.own(case)
        if own:
            return _extrapolated_ratio(own, case.tokens), max(item.setup_seconds for item in own)
        others = self._experience.others(case)
        if others.ratio is None or others.setup_seconds is None:
            return 1.0, UNKNOWN_SETUP_SECONDS[case.execution]
        return others.ratio, others.setup_seconds

    def _computed_seconds(self, case: Case, cost: Cost | None) -> float:
        backbone = CONFIGS[case.config]
        # Projections and MLP of the host, forward; a step of training is three times that.
        host_flops = 24 * backbone.depth * case.batch_size * case.tokens * backbone.embed_dim**2
        flops = cost.matmul_flops if cost else host_flops * (3 if case.phase == "train" else 1)
        half = case.precision.removeprefix("amp-")
        return flops / self._rates.get(half, self._rates["fp32"])


def _extrapolated_ratio(own: Sequence[Finding], tokens: int) -> float:
    """Return the ratio of a model at its previous resolution, grown as a power of the tokens from its last two."""
    smaller = [item for item in own if item.tokens <= tokens] or own[:1]
    last = smaller[-1]
    if len(smaller) == 1:
        return last.ratio
    before = smaller[-2]
    power = math.log(last.ratio / before.ratio) / math.log(last.tokens / before.tokens)
    # Falling ratios are overheads that fade; they do not go on falling.
    growth = math.pow(tokens / last.tokens, max(0.0, power))
    return last.ratio * min(growth, MAX_GROWTH)


def predict_limit(model: Case, resolutions: Sequence[int], available_bytes: int) -> int | None:
    """Return the largest of ascending ``resolutions`` at which ``model`` should fit into so many bytes.

    The smallest of them where none should; None for a mechanism without formulas.
    """
    if _cost(replace(model, resolution=resolutions[0])) is None:
        return None

    def needed_bytes(resolution: int) -> int:
        cost = _cost(replace(model, resolution=resolution))
        assert cost is not None
        images = INPUT_BUFFERS * model.batch_size * CHANNELS * resolution**2 * IMAGE_BYTES[model.precision]
        return cost.model_bytes + cost.peak_activation_bytes + images

    index = bisect.bisect_right(resolutions, available_bytes, key=needed_bytes)
    return resolutions[max(0, index - 1)]


@functools.cache
def _cost(case: Case) -> Cost | None:
    """Return what the case costs by formula; None where there is none, or its options are beyond it."""
    options = dict(case.options)
    if not formulas_hold(case.mechanism, case.implementation, options):
        return None
    # The one kernel that writes N x N costs what the written-out form does.
    implementation = "reference" if options.get("backend") == "math" else case.implementation
    try:
        return vit_cost(
            case.mechanism,
            case.config,
            case.resolution,
            implementation=implementation,
            batch_size=case.batch_size,
            phase=case.phase,
            precision=case.precision,
            cls_prune=options.get("cls_prune") == "1",
        )
    except KeyError:
        return None
