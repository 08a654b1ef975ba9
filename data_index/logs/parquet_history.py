"""Parquet: a row a step, as `scan_history()` of W&B is often kept, and as Python's table libraries write it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from data_index.errors import UNFORESEEN, CorruptFile, ForensicsError, UnsafeFile
from data_index.files import is_absurd, require_file
from data_index.logs.columns import points_of_batches
from data_index.logs.points import Notes, Points, Wanted, step_field_of

ROWS_AT_ONCE = 65_536


def read(path: Path, wanted: Wanted, notes: Notes) -> Iterator[Points]:
    """
    Raises:
        MissingFile, UnsafeFile
        CorruptFile: it is not whole, or a row has no step.
    """
    size = require_file(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            groups = range(file.metadata.num_row_groups)
            if is_absurd(sum(file.metadata.row_group(group).total_byte_size for group in groups), size):
                raise UnsafeFile(f"{path} has {size:,} bytes and claims to hold far more than they can")
            names = [name for name in file.schema_arrow.names]
            notes.step_field = step_field_of(names, wanted, str(path))
            batches = (_with_plain_texts(batch) for batch in file.iter_batches(ROWS_AT_ONCE))
            yield from points_of_batches(batches, names, wanted, notes, lambda row: f"{path} row {row + 1}")
    except ForensicsError:
        raise
    except (*UNFORESEEN, pyarrow.ArrowException) as error:
        raise CorruptFile(f"{path} is not a whole Parquet file: {error}") from error


def _with_plain_texts(batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
    """Texts in one form, whether they were written as they are, as large ones, or as numbers of a dictionary."""
    columns = []
    for column in batch.columns:
        kind = column.type
        value = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        texts = pyarrow.types.is_string(value) or pyarrow.types.is_large_string(value)
        columns.append(column.cast(pyarrow.string() if texts else value) if texts or value != kind else column)
    return pyarrow.RecordBatch.from_arrays(columns, names=[str(number) for number in range(len(columns))])
