"""What the instruments of a machine see and cost: ``instruments.json`` of a reference run. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from infsa_bench.codec import decode, encode
from infsa_bench.errors import SchemaError, SpecError
from infsa_bench.files import read_file, write_text
from infsa_bench.machine import Environment
from infsa_bench.record import EnergyCalibration

INSTRUMENTS = "instruments.json"
MAX_FACTS_BYTES = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class EventCosts:
    """CUDA events: what recording one costs the host, what two in a row span, and the smallest step between spans."""

    record_seconds: float
    empty_span_seconds: float
    step_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPower:
    """Average power at one load, by the energy counter and by the integral of sampled power; None where it is unknown.

    ``duty`` is the share of the time in which the device worked.
    """

    duty: float
    counter_watts: float | None
    power_watts: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveResponse:
    """How much of a square wave of power the sensor shows: its largest reading less its smallest, over the swing."""

    wave_seconds: float
    response: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InstrumentFacts:
    """What is to be known of a machine once, before its numbers are believed; None where it cannot be told here.

    Attributes:
        ready_seconds: from the start of a fresh worker until it can measure: what each replacement costs.
        import_seconds: the part of a fresh process in which Python and its libraries are loaded.
        context_seconds: until the device had done its first work, libraries loaded.
        context_bytes: of the device's memory that a process holds beside its tensors, by NVML.
        is_context_by_growth: whether ``context_bytes`` is by how much more was taken on the whole device than before
            the process used it, because the driver does not list the process: others may have a part in that.
        own_process_visible: whether the driver lists this very process; None where there is no NVML.
        listed_processes: how many it lists.
        events: on a CUDA device.
        calibration: the energy counter's period, step and cost, idle power; None where there is no counter.
        no_energy: why there is none.
        counter_rise_seconds: from the begin of a load until the counter rises at 90 % of its final rate.
        power_period_seconds: median time between two changes of the sampled power.
        sensor_window_seconds: over which the sensor averages, from ``waves``; no instrument outside was used.
        waves: the sensor's response to square waves, the longest first.
        loads: power at several loads, by both ways to read it.
    """

    environment: Environment
    measured_utc: str
    seconds: float
    ready_seconds: float | None = None
    import_seconds: float | None
    context_seconds: float
    context_bytes: int | None
    is_context_by_growth: bool = False
    own_process_visible: bool | None
    listed_processes: int | None
    events: EventCosts | None
    calibration: EnergyCalibration | None
    no_energy: str | None
    counter_rise_seconds: float | None = None
    power_period_seconds: float | None = None
    sensor_window_seconds: float | None = None
    waves: tuple[WaveResponse, ...] = ()
    loads: tuple[LoadPower, ...] = ()
    schema_version: int = 1


def load_facts(file: Path) -> InstrumentFacts | None:
    """Read what was found out of the instruments; None where nobody has looked.

    Raises:
        SchemaError: the file cannot be read.
    """
    try:
        return decode(InstrumentFacts, read_file(file, MAX_FACTS_BYTES))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SchemaError(f"{file}: {error.strerror or error}") from None
    except SchemaError as error:
        raise SchemaError(f"{file}: {error}") from None


def write_facts(file: Path, facts: InstrumentFacts) -> None:
    """Write what was found out.

    Raises:
        SpecError: the file cannot be written.
    """
    write_text(file, encode(facts, indent=1) + "\n")


def refuse_folder(file: Path) -> None:
    """Refuse a place where no file can lie, before anything is measured for it.

    Raises:
        SpecError: a folder lies there.
    """
    if file.is_dir():
        raise SpecError(f"{file} is a folder; name a file, e.g. {file / INSTRUMENTS}")
