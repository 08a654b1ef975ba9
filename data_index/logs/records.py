"""Logs that are records of fields (JSON lines, W&B): which field is the step, which are numbers, which are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from data_index.errors import ForensicsError, UnsafeFile
from data_index.logs.points import Notes, Points, Wanted, as_number_or_nan, as_step, flattened, gathered, step_field_of

# In a log with one value a record, which field names the metric whose value it is.
NAME_FIELDS = ("kind", "name", "metric", "tag")
VALUE_FIELD = "value"


def points_of_records(
    records: Iterable[tuple[str, Mapping[str, Any]]], wanted: Wanted, notes: Notes
) -> Iterator[Points]:
    """
    Args:
        records: in the order of the log; each with its place (file and line), for messages.
    Raises:
        CorruptFile: a record without a step, or with one that is none.
    """
    yield from gathered(_numbers(records, wanted, notes))


def _numbers(
    records: Iterable[tuple[str, Mapping[str, Any]]], wanted: Wanted, notes: Notes
) -> Iterator[tuple[int, Iterable[tuple[str, float]]]]:
    for where, record in records:
        fields = _fields(record, where)
        if wanted.only and any(_text(fields.get(name)) != text for name, text in wanted.only.items()):
            continue
        if notes.step_field is None:
            notes.step_field = step_field_of(list(fields), wanted, where)
        step = as_step(fields.pop(notes.step_field, None), where, notes.step_field)
        yield step, _values(fields, notes)


def _fields(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Flat fields; floats that stand beside in hexadecimal (`hex`: name -> float.hex) win over their decimal form."""
    exact = record.get("hex")
    try:
        if not isinstance(exact, dict):
            return dict(flattened(record))
        fields = dict(flattened({name: value for name, value in record.items() if name != "hex"}))
        return fields | {name: float.fromhex(text) for name, text in exact.items()}
    except ForensicsError as error:
        raise type(error)(f"{where}: {error}") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise UnsafeFile(f"{where}: a number in `hex` is none ({error})") from error


def _values(fields: dict[str, Any], notes: Notes) -> Iterator[tuple[str, float]]:
    named = next((name for name in NAME_FIELDS if VALUE_FIELD in fields and isinstance(fields.get(name), str)), None)
    called = fields.pop(named) if named else VALUE_FIELD
    for name, value in fields.items():
        number = value if type(value) is float else as_number_or_nan(value)
        if number is not None:
            yield (called if name == VALUE_FIELD else name), number
        elif value is not None and value != "":
            notes.left_out[name] += 1


def _text(value: Any) -> str:
    return "" if value is None else str(value)
