"""What a device can do at its best, as measured on it: ``results/<run>/peaks.json``. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeVar

from infsa_bench.codec import decode, encode
from infsa_bench.errors import SchemaError
from infsa_bench.files import read_file, replace_file
from infsa_bench.machine import Environment
from infsa_bench.record import SCHEMA_VERSION

T = TypeVar("T")

PEAKS = "peaks.json"
PEAKS_DRAFT = f"{PEAKS}.new"
FURTHER_PEAKS = "peaks-further.json"
FURTHER_PEAKS_DRAFT = f"{FURTHER_PEAKS}.new"
MAX_PEAKS_BYTES = 2**24

PEAK_OF_PRECISION: Mapping[str, str] = {
    "fp32": "fp32",
    "bf16": "bf16",
    "fp16": "fp16",
    "amp-bf16": "bf16",
    "amp-fp16": "fp16",
}
"""Under autocast the matrix products run in half precision, whatever the parameters are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRate:
    """A rate that was reached: the best of several rounds.

    Attributes:
        per_second: FLOP or bytes, of the round with the best median.
        what: the operation that reached it, e.g. ``4096 x 1024 x 4096``.
        rounds: how many medians it is the best of, those of other operations not counted.
        repetitions: timed samples in each round.
        spread: by how much the best of the rounds exceeds the worst, relative to the best.
    """

    per_second: float
    what: str
    rounds: int
    repetitions: int
    spread: float

    def __post_init__(self) -> None:
        """Refuse what nobody can have measured."""
        if self.per_second <= 0 or self.rounds < 1 or self.repetitions < 1 or not 0 <= self.spread < 1:
            raise ValueError("a measured rate is above zero, from at least one round, its spread below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPeaks:
    """What a device reached in matrix products and in copying.

    Attributes:
        device: name, identity and settings that the rates hold for; so are the following three.
        measured_utc: when.
        seconds: how long it took.
        is_shared: whether others used the device meanwhile, so that the rates may be too low.
        flops_per_second: by the precision of the product: ``fp32``, and on a GPU ``bf16`` and ``fp16``.
        copied_bytes_per_second: read and written together.
    """

    device: str
    device_name: str
    device_uuid: str | None
    torch_threads: int
    measured_utc: str
    seconds: float
    is_shared: bool
    flops_per_second: dict[str, MeasuredRate]
    copied_bytes_per_second: MeasuredRate
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse precisions that no product has."""
        unknown = self.flops_per_second.keys() - set(PEAK_OF_PRECISION.values())
        if unknown:
            raise ValueError(f"no precision of a matrix product: {', '.join(sorted(map(repr, unknown)))}")

    def are_of(self, device: Environment | MeasuredPeaks) -> bool:
        """Tell whether they are of this very device, a CPU with as many threads; or of the same one as other peaks."""
        if self.device == "cpu" and self.torch_threads != device.torch_threads:
            return False
        return (self.device, self.device_name, self.device_uuid) == (
            device.device,
            device.device_name,
            device.device_uuid,
        )

    def flops_of(self, precision: str) -> float | None:
        """Return the rate of matrix products in a case's precision; None where it was not measured."""
        found = self.flops_per_second.get(PEAK_OF_PRECISION[precision])
        return None if found is None else found.per_second


@dataclass(frozen=True, slots=True, kw_only=True)
class FurtherPeaks:
    """Peaks of the other devices of a run that was merged from several."""

    devices: tuple[MeasuredPeaks, ...]
    schema_version: int = SCHEMA_VERSION


def peaks_of(environment: Environment, measured: Iterable[MeasuredPeaks]) -> MeasuredPeaks | None:
    """Return the peaks that were measured on the device of an environment; None where there are none."""
    return next((peaks for peaks in measured if peaks.are_of(environment)), None)


def measured_device(devices: Sequence[Environment], measured: Sequence[MeasuredPeaks]) -> Environment:
    """Return the first of like devices whose peaks were measured; where there is none, the first."""
    return next((device for device in devices if peaks_of(device, measured) is not None), devices[0])


def load_peaks(path: Path) -> MeasuredPeaks | None:
    """Return the peaks of the run in ``path``, None where none were measured.

    Raises:
        SchemaError: the file is unreadable, too large, no regular file, or of another schema version.
    """
    return _load(MeasuredPeaks, path / PEAKS)


def load_further_peaks(path: Path) -> tuple[MeasuredPeaks, ...]:
    """Return the peaks of the other devices of a merged run; raises as :func:`load_peaks`."""
    found = _load(FurtherPeaks, path / FURTHER_PEAKS)
    return () if found is None else found.devices


def _load(kind: type[T], file: Path) -> T | None:
    try:
        return decode(kind, read_file(file, MAX_PEAKS_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SchemaError(f"{file}: {error.strerror or error}") from None
    except SchemaError as error:
        text = str(error)
        raise SchemaError(text if text.startswith(str(file)) else f"{file}: {text}") from None


def write_peaks(path: Path, peaks: MeasuredPeaks) -> None:
    """Make ``peaks`` those of the run in ``path``, and return once that is on disk.

    Raises:
        OSError: they cannot be written.
    """

    _write(peaks, path / PEAKS_DRAFT, path / PEAKS)


def write_further_peaks(path: Path, peaks: Sequence[MeasuredPeaks]) -> None:
    """Make ``peaks`` those of the other devices of the run in ``path``; raises as :func:`write_peaks`."""
    _write(FurtherPeaks(devices=tuple(peaks)), path / FURTHER_PEAKS_DRAFT, path / FURTHER_PEAKS)


def _write(value: MeasuredPeaks | FurtherPeaks, draft: Path, file: Path) -> None:
    def write(handle: TextIO) -> None:
        handle.write(encode(value, indent=1) + "\n")

    replace_file(draft, file, write)
