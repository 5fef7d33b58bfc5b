"""Frozen dataclasses as JSON, and back with every field checked. Imports no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import types
import typing
from typing import Any, Literal, TypeVar

from infsa_bench.errors import SchemaError

T = TypeVar("T")


def encode(value: Any, *, indent: int | None = None) -> str:
    """Return a dataclass as JSON, on one line without ``indent``. NaN and infinities are refused: JSON has none."""
    separators = (",", ": ") if indent else (",", ":")
    return json.dumps(_plain(value), allow_nan=False, separators=separators, indent=indent)


def decode(kind: type[T], text: str | bytes) -> T:
    """Return the dataclass that ``text`` (JSON) holds, every field checked.

    Raises:
        SchemaError: not JSON, another schema version, an unknown or missing field, or a value of the wrong type.
    """
    try:
        raw = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"not JSON: {error}") from None
    ours = _schema_version(kind)
    if isinstance(raw, dict) and ours is not None and raw.get("schema_version") != ours:
        raise SchemaError(f"schema version {raw.get('schema_version')!r}; this infsa-bench reads version {ours}")
    return typing.cast(T, _typed(kind, raw, kind.__name__))


def _schema_version(kind: type) -> object:
    """The version that ``kind`` writes of itself, None for a kind that has none."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    return defaults.get("schema_version")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


@functools.cache
def _field_types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _typed(kind: Any, raw: Any, where: str) -> Any:
    """Return ``raw`` as ``kind``, a dataclass, a tuple, a dict, a literal, a union or a plain type."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _typed_dataclass(kind, raw, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _typed_union(arguments, raw, where)
    if origin is tuple and isinstance(raw, list):
        items = [arguments[0]] * len(raw) if arguments[-1] is Ellipsis else arguments
        if len(items) == len(raw):
            return tuple(
                _typed(item, value, f"{where}[{i}]") for i, (item, value) in enumerate(zip(items, raw, strict=True))
            )
    elif origin is dict and isinstance(raw, dict):
        return {key: _typed(arguments[1], value, f"{where}[{key!r}]") for key, value in raw.items()}
    elif origin is Literal:
        if raw in arguments and isinstance(raw, str):
            return raw
    elif kind is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        # Numbers beyond the range of a float: 1e999 is read as infinity, an integer of 400 digits overflows.
        with contextlib.suppress(OverflowError):
            if math.isfinite(raw):
                return float(raw)
    elif isinstance(kind, type) and type(raw) is kind:
        return raw
    raise SchemaError(f"{where}: {str(raw)[:60]!r} is not of type {getattr(kind, '__name__', kind)}")


def _typed_dataclass(kind: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise SchemaError(f"{where}: not an object")
    hints = _field_types(kind)
    unknown, missing = sorted(raw.keys() - hints.keys()), sorted(hints.keys() - raw.keys())
    if unknown or missing:
        raise SchemaError(f"{where}: unknown fields {unknown}, missing fields {missing}")
    values = {name: _typed(hint, raw[name], f"{where}.{name}") for name, hint in hints.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise SchemaError(f"{where}: {error}") from None


def _typed_union(members: tuple[Any, ...], raw: Any, where: str) -> Any:
    if raw is None and type(None) in members:
        return None
    members = tuple(member for member in members if member is not type(None))
    if len(members) > 1 and isinstance(raw, dict):
        # Dataclasses of a union (Measurement | Failure) are told apart by the fields that they must have.
        members = tuple(member for member in members if raw.keys() <= _field_types(member).keys())
    if len(members) != 1:
        raise SchemaError(f"{where}: neither of the possible kinds")
    return _typed(members[0], raw, where)
