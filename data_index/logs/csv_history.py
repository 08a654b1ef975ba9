"""CSV and TSV: a row a step, as loggers write them and as W&B exports a chart or a table.

A chart of W&B names its columns `<run> - <metric>`, with `…__MIN` and `…__MAX` beside. Where they are all of one run,
the run's name is not part of the metric's.

Source: https://docs.wandb.ai, "Export chart data"; TensorBoard's "Download CSV" has the columns Wall time, Step, Value
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv

from data_index.errors import CorruptFile, UnsafeFile
from data_index.files import open_existing
from data_index.logs.columns import points_of_batches
from data_index.logs.points import Notes, Points, Wanted, step_field_of

BLOCK_BYTES = 8 * 2**20  # the longest row
_OF_RUN = " - "
_BOUNDS = ("__MIN", "__MAX")


def read(path: Path, wanted: Wanted, notes: Notes) -> Iterator[Points]:
    """
    Raises:
        MissingFile, UnsafeFile
        CorruptFile: a row has too many or too few columns, or no step; a last one that was cut off is left out instead.
    """
    names, delimiter = header_of(path)
    notes.step_field = step_field_of(names, wanted, f"{path} line 1")
    names = _without_run(names, notes.step_field, notes)
    wrong: list[pyarrow.csv.InvalidRow] = []
    try:
        yield from points_of_batches(
            _batches(path, len(names), delimiter, wrong), names, wanted, notes, lambda row: _place(path, row)
        )
    except pyarrow.ArrowException as error:
        raise CorruptFile(f"{path} cannot be read as CSV: {error}") from error
    _tell_end(path, wrong, notes)


def header_of(path: Path) -> tuple[list[str], str]:
    """The names of the columns, and what parts them.

    Raises:
        MissingFile, UnsafeFile
        CorruptFile: the first line is not text.
    """
    with open_existing(path) as file:
        line = file.readline(BLOCK_BYTES + 1)
    if len(line) > BLOCK_BYTES:
        raise UnsafeFile(f"{path} line 1 has more than {BLOCK_BYTES:,} bytes, as no header has")
    try:
        text = line.decode("utf-8-sig").rstrip("\r\n")
        delimiter = max("\t;,", key=lambda mark: (text.count(mark), mark == ","))
        return next(csv.reader([text], delimiter=delimiter), []), delimiter
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorruptFile(f"{path} line 1 is no header of columns ({error})") from error


def _batches(path: Path, num_columns: int, delimiter: str, wrong: list[Any]) -> Iterator[pyarrow.RecordBatch]:
    """All columns as text, so that no number is guessed to be of another type; `wrong` gets rows that do not fit.

    Raises:
        CorruptFile: a row that is not the last does not fit.
    """

    def skip(row: pyarrow.csv.InvalidRow) -> str:
        if wrong:
            return "error"
        wrong.append(row)
        return "skip"

    columns = [str(number) for number in range(num_columns)]
    texts = dict.fromkeys(columns, pyarrow.string())
    with open_existing(path) as file:
        yield from pyarrow.csv.open_csv(
            file,
            pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, skip_rows=1, column_names=columns),
            pyarrow.csv.ParseOptions(delimiter=delimiter, invalid_row_handler=skip),
            pyarrow.csv.ConvertOptions(column_types=texts, strings_can_be_null=False),
        )


def _tell_end(path: Path, wrong: list[Any], notes: Notes) -> None:
    """
    Raises:
        CorruptFile: a row that is not the last does not fit.
    """
    with open_existing(path) as file:
        size = file.seek(0, 2)
        file.seek(max(size - BLOCK_BYTES, 0))
        last = file.read().rpartition(b"\n")[2]
    if wrong and (not last or wrong[0].text != last.decode(errors="replace").rstrip("\r")):
        row = wrong[0]
        raise CorruptFile(
            f"{path} line {row.number} has {row.actual_columns} columns, and the header {row.expected_columns}: "
            f"{row.text[:80]!r}"
        )
    if wrong:
        notes.messages.append(f"{path}: the last line was cut off and is left out; what is before it is whole")
    elif last:
        notes.messages.append(f"{path}: the last line has no end; if the file was cut off there, so was its last value")


def _place(path: Path, row: int) -> str:
    """Where a row is; empty lines are no rows."""
    with open_existing(path) as file:
        lines = (number for number, line in enumerate(file, 1) if line.strip(b"\r\n"))
        return f"{path} line {next(islice(lines, row + 1, None), row + 2)}"


def _without_run(names: list[str], step_field: str, notes: Notes) -> list[str]:
    """Columns of a chart of W&B without the name of the run, where all of them are of one."""
    parted = [name.rpartition(_OF_RUN) if name != step_field else ("", "", name) for name in names]
    runs = {run for run, mark, _ in parted if mark}
    if len(runs) > 1:
        notes.unclear.update(names)
        notes.messages.append(
            f"this chart holds {len(runs)} runs ({', '.join(sorted(runs))[:200]}): their metrics keep the runs' names"
        )
    if len(runs) != 1 or not all(mark or name == step_field for (_, mark, _), name in zip(parted, names, strict=True)):
        return names
    notes.unclear.update(metric for _, _, metric in parted if metric.endswith(_BOUNDS))
    return [metric for _, _, metric in parted]
