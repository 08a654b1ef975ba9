"""Records of ours as JSON and back; what comes from a file is held against their types before it is one.

A record is an object of its fields, and a union of records names its class beside them. Numbers that JSON lacks are
strings: "nan", "inf", "-inf".
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import numpy as np

from data_index.errors import CorruptFile

CLASS = "class"  # beside the fields of a record that may be of several classes
_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def to_plain(value: Any) -> Any:
    """What JSON can say of a record, of arrays and of mappings of them."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {CLASS: type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)


def from_plain(value: Any, kind: Any, where: str = "it") -> Any:
    """A record again.

    Args:
        kind: its class, or any type of a field: plain ones, unions, literals, sequences, tuples, mappings, arrays.
        where: what the value is called in an error.
    Raises:
        CorruptFile: a field has a value of another type, is missing, or is not known.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _record(value, kind, where)
    if origin in (Union, types.UnionType):
        return _one_of(value, arguments, where)
    if origin is Literal:
        if value not in arguments:
            _refused(value, f"one of {', '.join(map(repr, arguments))}", where)
        return value
    if kind is np.ndarray:
        return np.array(from_plain(value, tuple[float, ...], where), dtype=np.float64)
    if origin in (tuple, Sequence):
        return _items(value, arguments, where)
    if origin is Mapping:
        if not isinstance(value, dict):
            _refused(value, "an object", where)
        return {key: from_plain(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    return _simple(value, kind, where)


def _items(value: Any, kinds: Sequence[Any], where: str) -> tuple[Any, ...]:
    """Of a tuple of several types each its own; else all of the first."""
    several = len(kinds) > 1 and kinds[1] is not Ellipsis
    if not isinstance(value, list) or (several and len(value) != len(kinds)):
        _refused(value, f"a list of {len(kinds)}" if several else "a list", where)
    of = kinds if several else [kinds[0]] * len(value)
    return tuple(from_plain(item, kind, where) for item, kind in zip(value, of, strict=True))


def _record(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, dict):
        _refused(value, f"a {kind.__name__}", where)
    given = dict(value)
    if given.pop(CLASS, kind.__name__) != kind.__name__:
        _refused(value[CLASS], f"a {kind.__name__}", where)
    types_of, fields = _hints(kind), {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(given.keys() - fields.keys()):
        raise CorruptFile(f"{where} has a field {unknown[0][:60]!r}, which no {kind.__name__} has")
    no_default = dataclasses.MISSING
    needed = {n for n, f in fields.items() if f.default is no_default and f.default_factory is no_default}
    if missing := sorted(needed - given.keys()):
        raise CorruptFile(f"{where} lacks {', '.join(missing)}, which every {kind.__name__} has")
    return kind(**{name: from_plain(item, types_of[name], f"{where}.{name}") for name, item in given.items()})


def _one_of(value: Any, kinds: Sequence[Any], where: str) -> Any:
    """The record whose class is named; else the first type that fits."""
    if isinstance(value, dict) and CLASS in value:
        named = [kind for kind in kinds if getattr(kind, "__name__", "") == value[CLASS]]
        return from_plain(value, named[0], where) if named else _refused(value[CLASS], "a class known here", where)
    for kind in kinds:
        try:
            return from_plain(value, kind, where)
        except CorruptFile:
            continue
    _refused(value, " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds), where)


def _simple(value: Any, kind: Any, where: str) -> Any:
    if kind in (None, type(None)):
        return value if value is None else _refused(value, "null", where)
    if kind is float:
        value = _NUMBERS.get(value, value) if isinstance(value, str) else value
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return value if is_number else _refused(value, "a number", where)
    if kind not in (str, int, bool):
        raise TypeError(f"{kind} is no type of a plain field")
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    return value if fits else _refused(value, kind.__name__, where)


def _refused(value: Any, wanted: str, where: str) -> NoReturn:
    raise CorruptFile(f"{where} should be {wanted}, not {repr(value)[:60]}")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
