"""Tables as files for other programs: CSV, JSON lines or Parquet, by the file's name. Whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_index.errors import InvalidRange
from data_index.files import atomic_file, write_parquet

SUFFIXES = (".parquet", ".csv", ".jsonl")
ROWS_TOGETHER = 65_536


def require_known_suffix(path: Path) -> None:
    """
    Raises:
        InvalidRange: its name does not say in which form to write.
    """
    if path.suffix not in SUFFIXES:
        raise InvalidRange(f"{path} does not say what to write: its name ends in none of {', '.join(SUFFIXES)}")


def write_table(path: Path, table: Any) -> None:
    """Write an Arrow table in the form that the name of the file says.

    Lists in CSV are JSON; numbers that JSON does not know (NaN, infinity) are null in JSON lines, and `nan`, `inf` in
    CSV. Parquet keeps everything.

    Raises:
        InvalidRange: the name says no form.
        DiskFull, NotWritable
    """
    require_known_suffix(path)
    if path.suffix == ".parquet":
        write_parquet(path, table)
    elif path.suffix == ".csv":
        _write_csv(path, table)
    else:
        with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            for row in _rows(table):
                file.write(json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n")


def _write_csv(path: Path, table: Any) -> None:
    import pyarrow
    import pyarrow.csv

    for number, field in enumerate(table.schema):
        if pyarrow.types.is_nested(field.type):
            texts = [None if value is None else json.dumps(_plain(value)) for value in table.column(number).to_pylist()]
            table = table.set_column(number, field.name, pyarrow.array(texts, pyarrow.string()))
    with atomic_file(path) as temporary:
        pyarrow.csv.write_csv(table, temporary)


def _rows(table: Any) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=ROWS_TOGETHER):
        yield from batch.to_pylist()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
