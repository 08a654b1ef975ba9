"""Tables as files in memory, and as cells that a screen shows as text."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_index.exports import write_table
from forensics.step_text import readable_text


def table_file(table: Any, suffix: str) -> bytes:
    """An Arrow table as the content of a file.

    Args:
        suffix: .csv, .parquet or .jsonl.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"table{suffix}"
        write_table(path, table)
        return path.read_bytes()


def table_of_dicts(rows: Sequence[Mapping[str, Any]]) -> Any:
    import pyarrow

    return pyarrow.Table.from_pylist([dict(row) for row in rows])


def table_of_any_rows(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows that may come from others: any columns, any values; a column of several types becomes text."""
    import pyarrow

    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    columns = {}
    for name in names:
        values = [_flat(row.get(name)) for row in rows]
        try:
            columns[name] = pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError, TypeError, ValueError):
            columns[name] = pyarrow.array([None if value is None else str(value) for value in values], pyarrow.string())
    return pyarrow.table(columns)


def _flat(value: Any) -> Any:
    """Lists of numbers and words as they are read, what is nested as JSON."""
    if isinstance(value, list | tuple) and all(isinstance(one, str | int | float) for one in value):
        return ", ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, Mapping | list | tuple) else value


def shown_columns(table: Any, most: int) -> dict[str, list[Any]]:
    """The first rows of an Arrow table as columns of numbers and text: names once each, lists as JSON.

    Text from data is escaped where a screen would obey it.
    """
    names: list[str] = []
    for name in table.column_names:
        text = readable_text(name)
        names.append(text if text not in names else f"{text}_{len(names) + 1}")
    columns = [table.column(n).slice(0, most).to_pylist() for n in range(table.num_columns)]
    return dict(zip(names, ([shown_cell(value) for value in column] for column in columns), strict=True))


def shown_cell(value: Any) -> Any:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)  # a browser's numbers are no larger
    if isinstance(value, list | tuple | dict):
        return readable_text(json.dumps(value, ensure_ascii=False, default=str))
    return readable_text(str(value))
