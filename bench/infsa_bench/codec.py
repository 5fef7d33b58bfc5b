"""Frozen dataclasses as JSON, and back with every field checked. Imports no torch.

A file may come from anywhere. Reading one makes the dataclasses that were asked for out of plain values and nothing
else: no name in it is looked up, imported or opened. Messages show what was found in quotes of bounded length.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from infsa_bench.errors import SchemaError
from infsa_bench.quoting import listed, quoted

T = TypeVar("T")

OMITTED_IF_NONE = {"omitted_if_none": True}
"""Metadata of a field that is younger than its dataclass and None by default: it is written where it has a value, so
that everything else is written as ever, digests included.
"""

INTEGER_LIMIT = 2**63
LARGEST_FLOAT = 1e50
SMALLEST_FLOAT = 1e-50
"""No instrument reads a number beyond these, and within them sums, ratios and squares do not overflow either."""


def encode(value: Any, *, indent: int | None = None) -> str:
    """Return a dataclass as JSON, on one line without ``indent``. NaN and infinities are refused: JSON has none."""
    separators = (",", ": ") if indent else (",", ":")
    return json.dumps(_plain(value), allow_nan=False, separators=separators, indent=indent)


def decode(kind: type[T], text: str | bytes) -> T:
    """Return the dataclass that ``text`` (JSON, UTF-8 without a byte order mark) holds, every field checked.

    Raises:
        SchemaError: not JSON, another schema version, an unknown, repeated or missing field, or a value of the wrong
            type or beyond all bounds.
    """
    try:
        raw = _parsed(text)
        ours = _schema_version(kind)
        if isinstance(raw, dict) and ours is not None and raw.get("schema_version") != ours:
            theirs = _shown(raw.get("schema_version"))
            raise SchemaError(f"schema version {theirs}; this infsa-bench reads version {ours}")
        try:
            return typing.cast(T, _reader(typing.cast(Any, kind))(raw))
        except _UnusualError:
            return typing.cast(T, _typed(kind, raw, kind.__name__))
    except RecursionError:
        raise SchemaError("not JSON as infsa-bench writes it: nested too deeply") from None


def _parsed(text: str | bytes) -> Any:
    try:
        # Not json.loads of bytes: that would take UTF-16 and surrogates as well.
        text = text if isinstance(text, str) else text.decode()
        raw = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except ValueError as error:
        raise SchemaError(f"not JSON: {error}") from None
    if "\r" in text:
        raise SchemaError("not JSON as infsa-bench writes it: a carriage return, as of CRLF line ends")
    return raw


def _schema_version(kind: type) -> object:
    """The version that ``kind`` writes of itself, None for a kind that has none."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    return defaults.get("schema_version")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse names that stand twice: readers differ in which of them counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise SchemaError(f"the field {quoted(repeated)} stands twice in one object")
    return found


def _shown(raw: Any) -> str:
    """A value for messages; what is in arrays and objects would be too much, or too deep."""
    if isinstance(raw, dict | list):
        return "an object" if isinstance(raw, dict) else "an array"
    return quoted(raw) if isinstance(raw, str) else str(raw)[:60]


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind is float or kind is str or kind is int:
        return value
    if dataclasses.is_dataclass(kind):
        items = [(name, getattr(value, name)) for name in _field_types(kind)]
        return {name: _plain(item) for name, item in items if item is not None or name not in _omitted(kind)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


@functools.cache
def _field_types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


@functools.cache
def _omitted(kind: type) -> frozenset[str]:
    """The fields that are not there where they are None."""
    return frozenset(field.name for field in dataclasses.fields(kind) if "omitted_if_none" in field.metadata)


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
        return {key: _typed(arguments[1], value, f"{where}[{quoted(key)}]") for key, value in raw.items()}
    elif origin is Literal:
        if raw in arguments and isinstance(raw, str):
            return raw
    elif kind is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        # 1e999 is read as infinity, and an integer of 400 digits is none the less compared exactly.
        if raw == 0 or SMALLEST_FLOAT <= abs(raw) <= LARGEST_FLOAT:
            return float(raw)
        raise SchemaError(f"{where}: {_shown(raw)} is beyond all measure")
    elif kind is int and type(raw) is int:
        if -INTEGER_LIMIT <= raw < INTEGER_LIMIT:
            return raw
        raise SchemaError(f"{where}: {_shown(raw)} has more than 64 bits")
    elif isinstance(kind, type) and type(raw) is kind:
        return raw
    found = _shown(raw) if isinstance(raw, dict | list) else quoted(str(raw))
    raise SchemaError(f"{where}: {found} is not of type {getattr(kind, '__name__', kind)}")


def _typed_dataclass(kind: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise SchemaError(f"{where}: not an object")
    hints = _field_types(kind)
    unknown, missing = sorted(raw.keys() - hints.keys()), sorted(hints.keys() - raw.keys() - _omitted(kind))
    if unknown or missing:
        raise SchemaError(f"{where}: unknown fields {listed(unknown)}, missing fields {listed(missing)}")
    values = {name: _typed(hint, raw[name], f"{where}.{name}") for name, hint in hints.items() if name in raw}
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


class _UnusualError(Exception):
    """A value is not as it is mostly written; whether it may be so, and what is wrong with it, is for _typed to say."""


Reader = Callable[[Any], Any]


@functools.cache
def _reader(kind: Any) -> Reader:
    """Return what turns a raw value into ``kind`` as :func:`_typed` does, in a fraction of the time.

    It knows what is common, and raises _UnusualError where anything else comes: it never takes what _typed refuses.
    """
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass_reader(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _union_reader(arguments)
    if origin is tuple:
        return _floats if arguments == (float, ...) else _tuple_reader(arguments)
    if origin is dict:
        return _dict_reader(_reader(arguments[1]))
    if origin is Literal:
        return _checked(lambda raw: type(raw) is str and raw in arguments)
    if kind is float:
        return _checked(_is_usual_float)
    if kind is int:
        return _checked(lambda raw: type(raw) is int and -INTEGER_LIMIT <= raw < INTEGER_LIMIT)
    return _checked(lambda raw: type(raw) is kind)


def _checked(is_usual: Callable[[Any], bool]) -> Reader:
    def read(raw: Any) -> Any:
        if is_usual(raw):
            return raw
        raise _UnusualError

    return read


def _is_usual_float(raw: Any) -> bool:
    return type(raw) is float and (raw == 0.0 or SMALLEST_FLOAT <= abs(raw) <= LARGEST_FLOAT)


def _floats(raw: Any) -> tuple[float, ...]:
    """Read samples, which are most of a record."""
    if type(raw) is list and all(type(value) is float and SMALLEST_FLOAT <= value <= LARGEST_FLOAT for value in raw):
        return tuple(raw)
    raise _UnusualError


def _tuple_reader(arguments: tuple[Any, ...]) -> Reader:
    is_any_length = arguments[-1:] == (Ellipsis,)
    readers = [_reader(item) for item in arguments if item is not Ellipsis]

    def read(raw: Any) -> Any:
        if type(raw) is not list or not (is_any_length or len(raw) == len(readers)):
            raise _UnusualError
        each = readers * len(raw) if is_any_length else readers
        return tuple([read_item(item) for read_item, item in zip(each, raw, strict=True)])

    return read


def _dict_reader(read_item: Reader) -> Reader:
    def read(raw: Any) -> Any:
        if type(raw) is not dict:
            raise _UnusualError
        return {key: read_item(item) for key, item in raw.items()}

    return read


def _union_reader(members: tuple[Any, ...]) -> Reader:
    kinds = [member for member in members if member is not type(None)]
    may_be_none = len(kinds) < len(members)
    fields = [frozenset(_field_types(member)) if len(kinds) > 1 else frozenset() for member in kinds]
    readers = [_reader(member) for member in kinds]

    def read(raw: Any) -> Any:
        if raw is None and may_be_none:
            return None
        if len(readers) == 1:
            return readers[0](raw)
        found = [index for index, names in enumerate(fields) if type(raw) is dict and raw.keys() <= names]
        if len(found) != 1:
            raise _UnusualError
        return readers[found[0]](raw)

    return read


def _dataclass_reader(kind: type) -> Reader:
    readers = {name: _reader(hint) for name, hint in _field_types(kind).items()}
    needed = readers.keys() - _omitted(kind)

    def read(raw: Any) -> Any:
        if type(raw) is not dict or not needed <= raw.keys():
            raise _UnusualError
        try:
            return kind(**{name: readers[name](item) for name, item in raw.items()})
        except (KeyError, ValueError):
            raise _UnusualError from None

    return read
