"""Single attention layers, ``reference`` beside ``fast``, as timed in one process: ``results/<run>/layers.json``.

A layer is the mixer and the host's dense after it: both output projections, nothing else of the block. Imports no
torch.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from infsa_bench.codec import decode, encode
from infsa_bench.errors import SchemaError
from infsa_bench.files import read_file, replace_file
from infsa_bench.machine import Environment
from infsa_bench.record import SCHEMA_VERSION

LAYERS = "layers.json"
MAX_LAYERS_BYTES = 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """One layer's forward, as two implementations of it that took turns.

    Attributes:
        options: of both.
        reference_seconds: of each round; so is the following.
        reference_peak_bytes: what a forward creates at its peak, as the process grew; None where that is unknown.
    """

    mechanism: str
    options: tuple[tuple[str, str], ...]
    num_heads: int
    tokens: int
    reference_seconds: tuple[float, ...]
    fast_seconds: tuple[float, ...]
    reference_peak_bytes: int | None
    fast_peak_bytes: int | None

    def __post_init__(self) -> None:
        """Refuse what no clock can have measured."""
        if len(self.reference_seconds) != len(self.fast_seconds) or not self.fast_seconds:
            raise ValueError("both implementations have a time in every round, and there is a round")
        if min(*self.reference_seconds, *self.fast_seconds) <= 0:
            raise ValueError("times are above zero")

    @property
    def speedup(self) -> float:
        """Median time of ``reference`` over that of ``fast``."""
        return statistics.median(self.reference_seconds) / statistics.median(self.fast_seconds)

    @property
    def speedups(self) -> tuple[float, ...]:
        """The same of each round alone."""
        pairs = zip(self.reference_seconds, self.fast_seconds, strict=True)
        return tuple(reference / fast for reference, fast in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRun:
    """The layers of one process: batch 1, inference, in ``precision``."""

    created_utc: str
    environment: Environment
    embed_dim: int
    precision: str
    rounds: int
    layers: tuple[LayerTimes, ...]
    schema_version: int = SCHEMA_VERSION


def load_layers(path: Path) -> LayerRun:
    """Return the run in the folder ``path``.

    Raises:
        SchemaError: there is none, or it is unreadable, too large, no regular file, or of another schema version.
    """
    file = path / LAYERS
    try:
        return decode(LayerRun, read_file(file, MAX_LAYERS_BYTES))
    except OSError as error:
        raise SchemaError(f"{file}: {error.strerror or error}") from None
    except SchemaError as error:
        text = str(error)
        raise SchemaError(text if text.startswith(str(file)) else f"{file}: {text}") from None


def write_layers(path: Path, run: LayerRun) -> None:
    """Write the run into the new folder ``path``.

    Raises:
        OSError: it cannot be written.
    """

    def write(handle: TextIO) -> None:
        handle.write(encode(run, indent=1) + "\n")

    replace_file(path / f"{LAYERS}.new", path / LAYERS, write)
