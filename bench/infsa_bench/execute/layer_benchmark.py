"""Times single layers, ``reference`` and ``fast`` in turns, in a process of its own.

Run as ``python -m infsa_bench.execute.layer_benchmark DEVICE ROUNDS MECHANISM,... HEADS,... TOKENS,...``; started by
``infsa-bench layers`` only. It writes one line of JSON for each layer to standard output, before them the environment.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from infsa_bench.codec import encode
from infsa_bench.execute.worker import resolve_device
from infsa_bench.layers import LayerTimes
from infsa_bench.measure.environment import describe_environment
from infsa_bench.measure.latency import synchronize
from infsa_bench.measure.memory import PeakMemory
from infsa_models.host import HostAttention, host_attention
from infsa_models.options import parse_options
from infsa_models.registry import EMBED_DIM, MECHANISMS, load_class

# Beside its defaults, what a mechanism is also timed with: the public code of Linear-InfSA has a key of its own.
VARIANTS: Mapping[str, tuple[dict[str, str], ...]] = {"infsa-linear": ({}, {"tie_qk": "0"})}


def main() -> None:
    """Time every layer that the command line asks for."""
    device = resolve_device(sys.argv[1])
    rounds = int(sys.argv[2])
    mechanisms, heads, tokens = (argument.split(",") for argument in sys.argv[3:6])
    print(encode(describe_environment(device)), flush=True)
    with torch.inference_mode():
        for mechanism in mechanisms:
            for options in VARIANTS.get(mechanism, ({},)):
                for num_heads in map(int, heads):
                    for count in map(int, tokens):
                        print(encode(time_layer(mechanism, options, num_heads, count, rounds, device)), flush=True)


def time_layer(
    mechanism: str, options: Mapping[str, str], num_heads: int, tokens: int, rounds: int, device: torch.device
) -> LayerTimes:
    """Return the times of both implementations: after one call each, they take turns."""
    side = math.isqrt(tokens - 1)
    layers = {name: build_layer(mechanism, name, options, num_heads, side, device) for name in ("reference", "fast")}
    torch.manual_seed(1)
    x = torch.randn(1, tokens, EMBED_DIM, device=device)
    peaks = {name: _peak_bytes(layer, x, device) for name, layer in layers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(rounds):
        for name, layer in layers.items():
            synchronize(device)
            begin = time.perf_counter()
            layer(x)
            synchronize(device)
            seconds[name].append(time.perf_counter() - begin)
    return LayerTimes(
        mechanism=mechanism,
        options=tuple(options.items()),
        num_heads=num_heads,
        tokens=tokens,
        reference_seconds=tuple(seconds["reference"]),
        fast_seconds=tuple(seconds["fast"]),
        reference_peak_bytes=peaks["reference"],
        fast_peak_bytes=peaks["fast"],
    )


def build_layer(
    mechanism: str, implementation: str, options: Mapping[str, str], num_heads: int, side: int, device: torch.device
) -> HostAttention:
    """Return mixer and dense, folded for inference where the implementation allows it."""
    mixer = load_class(MECHANISMS[mechanism].implementations[implementation])
    values = parse_options(mechanism, implementation, options)
    torch.manual_seed(0)
    layer = host_attention(mixer, (side, side), values)(EMBED_DIM, num_heads, device=device)
    layer.eval().requires_grad_(False)
    layer.fold_dense()
    return layer


def _peak_bytes(layer: nn.Module, x: Tensor, device: torch.device) -> int | None:
    """Return what one call adds to what is held before it; the first call also warms up."""
    layer(x)
    synchronize(device)
    gc.collect()
    peak = PeakMemory(device)
    held = peak.held_bytes() or 0
    peak.reset()
    layer(x)
    synchronize(device)
    found = peak.read().allocated_bytes
    return None if found is None else max(0, found - held)


if __name__ == "__main__":
    main()
