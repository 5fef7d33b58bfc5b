"""What to measure: a case, and the sweep that spans the cases. Imports no torch."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

from infsa_bench.errors import SpecError, UnknownNameError
from infsa_models.options import options_of
from infsa_models.registry import CONFIGS, PATCH_SIZE, Mechanism, available, external

LADDER = (224, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 9216)
"""The resolutions (image side, pixels) that ``A..B`` picks from."""

INPUT_BUFFERS = 2
"""Inputs rotate: a result that a cache could keep from one call to the next would not be a forward pass."""

MAX_RESOLUTION = 32768
MAX_BATCH_SIZE = 65536

Precision = Literal["fp32", "bf16", "fp16", "amp-bf16", "amp-fp16"]
Phase = Literal["infer", "train"]
Execution = Literal["eager", "compile", "cuda-graph"]

Name = TypeVar("Name", bound=str)

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
PHASES: tuple[Phase, ...] = get_args(Phase)
EXECUTIONS: tuple[Execution, ...] = get_args(Execution)

DEFAULT_PRECISION: Mapping[tuple[str, str], Precision] = {
    ("cuda", "infer"): "bf16",
    ("cuda", "train"): "amp-bf16",
    ("cpu", "infer"): "fp32",
    ("cpu", "train"): "fp32",
}
"""Precision by (device type, phase) where none is asked for."""

DEFAULT_IMPLEMENTATIONS: Mapping[str, tuple[str, ...]] = {"cpu": ("reference", "fast"), "cuda": ("fast",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One point of a sweep: everything that decides what is run, except settings of the whole run.

    ``resolution`` is the image side in pixels, ``precision`` one of :data:`PRECISIONS`: ``fp32``, ``bf16`` and
    ``fp16`` hold parameters and activations in that dtype; ``amp-*`` hold float32 parameters and enter autocast in
    every call. ``options`` are departures from the mechanism's defaults, ``replicate`` counts repeats of a cell.
    """

    mechanism: str
    implementation: str
    config: str
    resolution: int
    batch_size: int
    precision: Precision
    phase: Phase
    execution: Execution
    options: tuple[tuple[str, str], ...] = ()
    replicate: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no sweep plans, and what has no place on a logarithmic axis or below a fraction's line."""
        if min(self.resolution, self.batch_size) < 1 or min(self.replicate, self.seed) < 0:
            raise ValueError("a case has at least one pixel and one image, and counts from zero")

    @property
    def tokens(self) -> int:
        """Tokens that a layer sees, the class token included."""
        return (self.resolution // PATCH_SIZE) ** 2 + 1

    @property
    def cell(self) -> str:
        """The id without its replicate: what tables, comparisons and exports join on."""
        parts = [
            "infsa",
            f"{self.mechanism}.{self.implementation}",
            self.config,
            f"r{self.resolution}",
            f"b{self.batch_size}",
            self.precision,
            self.phase,
            self.execution,
        ]
        if self.options:
            parts.append(",".join(f"{name}={value}" for name, value in self.options))
        return "/".join(parts)

    @property
    def id(self) -> str:
        """Stable name of the case; resuming joins on it."""
        return f"{self.cell}/p{self.replicate}"


PAPER_PRECISION: Precision = "amp-fp16"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionAxis:
    """An option and its values: of one mechanism, or of every one that knows it."""

    mechanism: str | None
    name: str
    values: tuple[str, ...]

    def concerns(self, mechanism: str, implementation: str) -> bool:
        """Tell whether an implementation has the option."""
        return self.mechanism in (None, mechanism) and self.name in options_of(mechanism, implementation)


def option_choices(
    axes: Iterable[OptionAxis], mechanism: str, implementation: str
) -> list[tuple[tuple[str, str], ...]]:
    """Return every combination of options for an implementation; one without any where no axis concerns it."""
    concerned = [axis for axis in axes if axis.concerns(mechanism, implementation)]
    pairs = [[(axis.name, value) for value in axis.values] for axis in sorted(concerned, key=lambda axis: axis.name)]
    return list(itertools.product(*pairs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The axes of a sweep.

    Empty ``precisions`` stands for the default of device and phase, empty ``implementations`` for that of the device.
    """

    mechanisms: tuple[str, ...]
    implementations: tuple[str, ...]
    configs: tuple[str, ...]
    resolutions: tuple[int, ...]
    phases: tuple[Phase, ...]
    precisions: tuple[Precision, ...]
    executions: tuple[Execution, ...]
    batch_sizes: tuple[int, ...]
    options: tuple[OptionAxis, ...] = ()
    replicates: int = 1
    seed: int = 0

    def cases(self, device_type: str) -> Iterator[Case]:
        """Yield every case once, pass after pass over the plan, small resolutions first, in a fixed order.

        Inside a pass resolution is the outermost axis: whatever stops a sweep, each mechanism has been measured up
        to about the same size. Each pass begins a resolution one cell later than the one before, so that what a cell
        inherits from its predecessor (heat, clocks) differs from pass to pass. A mechanism that lacks an
        implementation has no case for it.
        """
        once = list(self._one_pass(device_type))
        for replicate in range(self.replicates):
            for _, group in itertools.groupby(once, key=lambda case: case.resolution):
                cells = list(group)
                first = replicate % len(cells)
                for case in cells[first:] + cells[:first]:
                    yield replace(case, replicate=replicate)

    def _one_pass(self, device_type: str) -> Iterator[Case]:
        known = resolve_mechanisms(self.mechanisms)
        axes = itertools.product(
            self.resolutions,
            self.configs,
            self.phases,
            self.batch_sizes,
            self.executions,
            (
                (mechanism, implementation)
                for mechanism in self.mechanisms
                for implementation in implementations_of(known[mechanism], self.implementations, device_type)
            ),
        )
        for resolution, config, phase, batch_size, execution, (mechanism, implementation) in axes:
            precisions = self.precisions or (DEFAULT_PRECISION[device_type, phase],)
            choices = option_choices(self.options, mechanism, implementation)
            for precision, options in itertools.product(precisions, choices):
                yield Case(
                    mechanism=mechanism,
                    implementation=implementation,
                    config=config,
                    resolution=resolution,
                    batch_size=batch_size,
                    precision=precision,
                    phase=phase,
                    execution=execution,
                    options=options,
                    seed=self.seed,
                )


def implementations_of(mechanism: Mechanism, asked: Sequence[str], device_type: str) -> list[str]:
    """Return which of the implementations asked for a mechanism has; asked for none, the default of the device.

    One that has nothing of that default, because it comes from elsewhere, runs as it is.
    """
    known = mechanism.implementations
    if asked:
        return [implementation for implementation in asked if implementation in known]
    default = [implementation for implementation in DEFAULT_IMPLEMENTATIONS[device_type] if implementation in known]
    return default or list(known)


def known_mechanisms() -> dict[str, Mechanism]:
    """Return the built-in and the installed mechanisms by name.

    Raises:
        SpecError: an installed package takes a name that exists already.
    """
    try:
        return available()
    except ValueError as error:
        raise SpecError(str(error)) from None


def resolve_mechanisms(names: Iterable[str]) -> dict[str, Mechanism]:
    """Return the entries of built-in, installed or ``package.module:Class`` mechanisms, by the name given.

    Raises:
        UnknownNameError: no such mechanism.
        SpecError: a malformed target, or as :func:`known_mechanisms`.
    """
    known = known_mechanisms()
    try:
        return {name: external(name) if ":" in name else known[name] for name in names}
    except KeyError as error:
        raise UnknownNameError("mechanism", error.args[0], known) from None
    except ValueError as error:
        raise SpecError(str(error)) from None


def parse_resolutions(text: str) -> tuple[int, ...]:
    """Parse ``224,1024`` and ``224..9216`` (the points of :data:`LADDER` in that range), sorted, without repeats.

    Raises:
        SpecError: not a number, not a positive multiple of the patch size, too large, a reversed or empty range.
    """
    found: set[int] = set()
    for item in _items(text, "resolution"):
        low, dots, high = item.partition("..")
        if not dots:
            found.add(_resolution(item))
            continue
        first, last = _resolution(low), _resolution(high)
        if first > last:
            raise SpecError(f"resolution range {item!r} is reversed: write {last}..{first}")
        steps = [step for step in LADDER if first <= step <= last]
        if not steps:
            raise SpecError(f"no step of the ladder {', '.join(map(str, LADDER))} lies in {item!r}")
        found.update(steps)
    return tuple(sorted(found))


def _resolution(text: str) -> int:
    value = _whole_number(text, "resolution")
    if value <= 0 or value % PATCH_SIZE:
        raise SpecError(f"resolution {value} is not a positive multiple of {PATCH_SIZE} (the patch size)")
    if value > MAX_RESOLUTION:
        raise SpecError(f"resolution {value} is above {MAX_RESOLUTION}, the largest that infsa-bench plans")
    return value


def parse_batch_sizes(text: str) -> tuple[int, ...]:
    """Parse ``1`` or ``1,8``.

    Raises:
        SpecError: not a number, below 1, or absurdly large.
    """
    sizes = tuple(dict.fromkeys(_whole_number(item, "batch size") for item in _items(text, "batch size")))
    for size in sizes:
        if not 1 <= size <= MAX_BATCH_SIZE:
            raise SpecError(f"batch size {size} is not between 1 and {MAX_BATCH_SIZE}")
    return sizes


def parse_whole_numbers(text: str, what: str) -> tuple[int, ...]:
    """Parse a comma-separated list of whole numbers, without repeats.

    Raises:
        SpecError: not a number.
    """
    return tuple(dict.fromkeys(_whole_number(item, what) for item in _items(text, what)))


def parse_names(text: str, what: str, known: Sequence[Name]) -> tuple[Name, ...]:
    """Parse a comma-separated list of names out of ``known``, in the order given, without repeats.

    Raises:
        UnknownNameError: a name that is not known.
        SpecError: an empty list.
    """
    by_name = {str(name): name for name in known}
    names = _items(text, what)
    for name in names:
        if name not in by_name:
            raise UnknownNameError(what, name, by_name)
    return tuple(dict.fromkeys(by_name[name] for name in names))


def parse_mechanisms(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of mechanisms: names, or ``package.module:Class``; ``all`` is every known one.

    Raises:
        UnknownNameError, SpecError: as :func:`resolve_mechanisms`.
    """
    typed = _items(text, "mechanism")
    names = tuple(dict.fromkeys([*(known_mechanisms() if "all" in typed else ()), *typed]))
    names = tuple(name for name in names if name != "all")
    resolve_mechanisms(names)
    return names


def parse_configs(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of configs, e.g. ``4L-64H``."""
    return parse_names(text, "config", tuple(CONFIGS))


def parse_options(
    texts: Iterable[str], mechanisms: Sequence[str], implementations: Sequence[str]
) -> tuple[OptionAxis, ...]:
    """Parse ``[MECHANISM.]NAME=VALUE[,VALUE...]`` for each of the options of a sweep over mechanisms.

    Raises:
        UnknownNameError: none of the mechanisms and implementations has such an option.
        SpecError: another form, a value that the option cannot have, or the same option twice.
    """
    axes = tuple(_option_axis(text, mechanisms, implementations) for text in texts)
    for mechanism in mechanisms:
        concerned = [axis.name for axis in axes if any(axis.concerns(mechanism, one) for one in implementations)]
        if twice := [name for name in concerned if concerned.count(name) > 1]:
            raise SpecError(f"option {twice[0]} of {mechanism} is given twice; write its values with commas")
    return axes


def _option_axis(text: str, mechanisms: Sequence[str], implementations: Sequence[str]) -> OptionAxis:
    target, equals, values_text = text.partition("=")
    owner, dot, name = target.rpartition(".")
    if not equals or not name or (dot and not owner):
        raise SpecError(f"{text!r} is no option: write NAME=VALUE or MECHANISM.NAME=VALUE")
    if owner and owner not in mechanisms:
        raise UnknownNameError("mechanism", owner, mechanisms)
    pairs = list(itertools.product([owner] if owner else mechanisms, implementations))
    known = {option: entry for pair in pairs for option, entry in options_of(*pair).items()}
    if name not in known:
        raise UnknownNameError("option", name, known)
    values = tuple(dict.fromkeys(_items(values_text, "value")))
    for value in values:
        try:
            known[name].parse(value)
        except ValueError as error:
            raise SpecError(f"option {name}: {error}") from None
    return OptionAxis(mechanism=owner or None, name=name, values=values)


def parse_duration(text: str) -> float | None:
    """Parse ``240``, ``240s``, ``4m`` or ``1.5h`` into seconds; ``none`` is no limit.

    Raises:
        SpecError: anything else, zero and negative times included.
    """
    if text == "none":
        return None
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smh]?)", text)
    if found is None:
        raise SpecError(f"{text!r} is no duration: write 240, 90s, 4m, 1.5h or none")
    seconds = float(found[1]) * {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}[found[2]]
    if seconds == 0:
        raise SpecError(f"a duration must be above zero, not {text!r}")
    return seconds


SIZE_UNITS: Mapping[str, int] = {
    "": 1,
    **{f"{prefix}iB": 2 ** (10 * power) for power, prefix in enumerate("KMGT", start=1)},
    **{f"{prefix}B": 10 ** (3 * power) for power, prefix in enumerate("KMGT", start=1)},
}


def parse_size(text: str) -> int:
    """Parse ``40GiB``, ``2.5GB``, ``512MiB`` or a number of bytes.

    Raises:
        SpecError: anything else, zero and negative sizes included.
    """
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([KMGT]i?B)?", text)
    if found is None:
        raise SpecError(f"{text!r} is no size: write 40GiB, 2.5GB, 512MiB or a number of bytes")
    size = round(float(found[1]) * SIZE_UNITS[found[2] or ""])
    if size == 0:
        raise SpecError(f"a size must be above zero, not {text!r}")
    return size


def _items(text: str, what: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise SpecError(f"empty {what} in {text!r}")
    return items


def _whole_number(text: str, what: str) -> int:
    # int() would also take underscores, signs and other scripts' digits; a resolution is plain digits.
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 12):
        raise SpecError(f"{what} {text!r} is not a whole number")
    return sign * int(digits)
