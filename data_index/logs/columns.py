"""Logs that are columns (CSV, Parquet), a batch of rows at once; the rules are those of records, in Arrow's terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as compute

from data_index.errors import CorruptFile
from data_index.logs.points import LARGEST_STEP, Notes, Points, Wanted, as_number, as_step, require_few_names
from data_index.logs.records import NAME_FIELDS, VALUE_FIELD

Where = Callable[[int], str]  # a row's place (file and line), for messages


def points_of_batches(
    batches: Iterable[pyarrow.RecordBatch], names: Sequence[str], wanted: Wanted, notes: Notes, where: Where
) -> Iterator[Points]:
    """
    Args:
        names: what the log calls its columns; two may have one name.
        where: of a row, counted from 0 over all batches.
    Raises:
        CorruptFile: a row without a step, or with one that is none.
        UnsafeFile: more names than any log has.
    """
    assert notes.step_field is not None
    require_few_names(len(names))
    step_column = list(names).index(notes.step_field)
    first = 0
    for batch in batches:
        rows = np.arange(first, first + batch.num_rows)
        first += batch.num_rows
        chosen = _chosen(batch, names, wanted)
        if chosen is not None:
            batch, rows = batch.filter(pyarrow.array(chosen)), rows[chosen]
        steps = _steps(batch.column(step_column), rows, where, notes.step_field)
        yield from _points(batch, names, step_column, steps, notes)


def _points(
    batch: pyarrow.RecordBatch, names: Sequence[str], step_column: int, steps: np.ndarray, notes: Notes
) -> Iterator[Points]:
    naming = _naming_column(batch, names)
    for number, name in enumerate(names):
        if number in (step_column, naming):
            continue
        values, numeric, num_others = numbers_of(batch.column(number))
        if num_others:
            notes.left_out[name] += num_others
        if naming is not None and name == VALUE_FIELD:
            yield from _named(batch.column(naming), steps, values, numeric)
        elif numeric.any():
            yield Points(name=name, steps=steps[numeric], values=values[numeric])


def _naming_column(batch: pyarrow.RecordBatch, names: Sequence[str]) -> int | None:
    """The column of texts that says which metric the column `value` holds."""
    for candidate in NAME_FIELDS if VALUE_FIELD in names else ():
        if candidate in names:
            number = list(names).index(candidate)
            if pyarrow.types.is_string(batch.schema.field(number).type):
                return number
    return None


def _named(column: Any, steps: np.ndarray, values: np.ndarray, numeric: np.ndarray) -> Iterator[Points]:
    encoded = column.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    for code, name in enumerate(encoded.dictionary.to_pylist()):
        rows = numeric & (codes == code)
        if rows.any():
            yield Points(name=name, steps=steps[rows], values=values[rows])


def _chosen(batch: pyarrow.RecordBatch, names: Sequence[str], wanted: Wanted) -> np.ndarray | None:
    """Which rows are wanted; None: all of them.

    Raises:
        CorruptFile: a column that is asked for is not there.
    """
    chosen = None
    for name, text in wanted.only.items():
        if name not in names:
            raise CorruptFile(f"there is no column {name!r} to choose rows by; there are {', '.join(names)}")
        texts = compute.cast(batch.column(list(names).index(name)), pyarrow.string())
        equal = compute.fill_null(compute.equal(texts, text), False).to_numpy(zero_copy_only=False)
        chosen = equal if chosen is None else chosen & equal
    return chosen


def numbers_of(column: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """(values, which of them are numbers, how many are something else that is not nothing)."""
    if pyarrow.types.is_string(column.type):
        return _numbers_of_texts(column)
    if pyarrow.types.is_boolean(column.type):
        column = compute.cast(column, pyarrow.int8())
    kind = column.type
    if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_decimal(kind)):
        nothing = np.zeros(len(column), dtype=bool)
        return np.zeros(len(column)), nothing, len(column) - column.null_count
    there = column.is_valid().to_numpy(zero_copy_only=False)
    # Counts beyond 2**53 become the nearest float.
    floats = compute.cast(column, pyarrow.float64(), safe=False)
    return floats.fill_null(0.0).to_numpy(zero_copy_only=False), there, 0


def _numbers_of_texts(column: Any) -> tuple[np.ndarray, np.ndarray, int]:
    given = compute.fill_null(compute.not_equal(column, ""), False)
    column = compute.if_else(given, column, None)
    try:
        floats = compute.cast(column, pyarrow.float64())
    except pyarrow.ArrowInvalid:
        return _numbers_one_by_one(column)
    return floats.fill_null(0.0).to_numpy(zero_copy_only=False), given.to_numpy(zero_copy_only=False), 0


def _numbers_one_by_one(column: Any) -> tuple[np.ndarray, np.ndarray, int]:
    encoded = column.dictionary_encode()
    known = [as_number(text) for text in encoded.dictionary.to_pylist()]
    values = np.array([0.0 if number is None else number for number in known] + [0.0])
    numeric = np.array([number is not None for number in known] + [False])
    codes = encoded.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)
    return values[codes], numeric[codes], int((~numeric[codes]).sum()) - column.null_count


def _steps(column: Any, rows: np.ndarray, where: Where, name: str) -> np.ndarray:
    """
    Raises:
        CorruptFile: the first row whose step is none.
    """
    try:
        steps: np.ndarray = compute.cast(column, pyarrow.int64()).to_numpy(zero_copy_only=False)
        if column.null_count == 0 and (not len(steps) or 0 <= steps.min() <= steps.max() < LARGEST_STEP):
            return steps
    except pyarrow.ArrowInvalid:
        pass  # counted as floats, or not whole: one by one
    found = [as_step(value, where(int(row)), name) for value, row in zip(column.to_pylist(), rows, strict=True)]
    return np.array(found, dtype=np.int64)
