"""Reader of the `X.csv.gz` that lies beside a token file `X.npy`: which document each stretch of tokens came from.

No header; a row a document, in file order: start, end (tokens, half-open), document id, source path, line in it (from
1). OLMo-core writes start and end alone, and leaves out what follows the last end token.

Source: python/dolma/tokenizer/memmap_writer.py and docs/tokenize.md of allenai/dolma @ 669f534; write_document_indices
in olmo_core/data/utils.py (Python package ai2-olmo-core 3.0.0).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import UNFORESEEN, CorruptFile, ForensicsError, MissingFile, UnsafeFile
from data_index.files import require_file
from data_index.run import Run

ENDING = ".csv.gz"
BLOCK_BYTES = 4 * 2**20  # of text, in memory at once
MAX_TEXT_BYTES = 2**14  # of an id or a source
# Rows of real files pack some ten times; gzip packs nothing a thousand times that says anything.
PACKED_AT_MOST = 200
ALWAYS_PLAUSIBLE_BYTES = 2**28


def provenance_files(run: Run, folder: Path | None = None) -> dict[str, Path]:
    """Provenance files that are there, by the names of the token files on disk: beside them, or in a folder.

    In a folder, the longest end of the token file's name counts: a/b/X.npy is described by a/b/X.csv.gz, else
    b/X.csv.gz, else X.csv.gz.
    """
    found: dict[str, Path] = {}
    for file in run.files:
        if folder is not None:
            parts = Path(file.name).with_suffix(ENDING).parts
            there = [folder.joinpath(*parts[first:]) for first in range(len(parts)) if parts[first] not in ("/", "..")]
        else:
            there = [file.path.with_suffix(ENDING)] if isinstance(file.path, Path) else []
        if path := next((path for path in there if path.is_file()), None):
            found[file.name] = path
    return found


def require_all(run: Run, folder: Path) -> dict[str, Path]:
    """The provenance of every token file, in a folder.

    Raises:
        MissingFile: of some there is none, or one file would describe several.
    """
    found = provenance_files(run, folder)
    without = [file.name for file in run.files if file.name not in found]
    if without:
        raise MissingFile(
            f"{folder} holds no provenance of {len(without)} of {len(run.files)} token files of {run.name}; the first "
            f"is {without[0]}, described by {Path(without[0]).with_suffix(ENDING).name}"
        )
    named: dict[Path, str] = {}
    for name, path in found.items():
        if named.setdefault(path, name) != name:
            raise MissingFile(
                f"{path} would describe both {named[path]} and {name}: lay out {folder} like the token files' names"
            )
    return found


def read_provenance(path: Path, num_tokens: int) -> Iterator[Any]:
    """The documents of one token file, as Arrow tables of `start, end, external_id, source, line`, block after block.

    They tile the file.

    Args:
        num_tokens: of the token file.
    Raises:
        MissingFile
        CorruptFile: it does not tile the file, or is damaged; the message names the row.
        UnsafeFile: it unpacks into far more than it can hold.
    """
    import pyarrow

    stored, unpacked, row, at, num_columns = require_file(path), 0, 0, 0, 0
    try:
        for block in _blocks(path):
            unpacked += block.nbytes
            if unpacked > ALWAYS_PLAUSIBLE_BYTES and unpacked > PACKED_AT_MOST * stored:
                raise UnsafeFile(
                    f"{path} has {stored:,} bytes and unpacks into more than {unpacked:,}; reading stopped"
                )
            num_columns = block.num_columns
            if num_columns not in (2, 5):
                raise CorruptFile(
                    f"{path} has {num_columns} columns; provenance has start, end, document id, source and line, or "
                    "start and end alone"
                )
            table = _typed(block, path, row)
            _require_tiles(table, path, row, at, num_tokens)
            row += table.num_rows
            at = table.column("end")[-1].as_py() if table.num_rows else at
            yield table
    except ForensicsError:
        raise
    except (*UNFORESEEN, pyarrow.ArrowException) as error:
        raise CorruptFile(f"{path} is not whole provenance, after row {row:,}: {error}") from error
    if at < num_tokens and num_columns == 2:
        yield _described(np.array([at]), np.array([num_tokens]), {})  # what follows the last end token
    elif at < num_tokens:
        raise CorruptFile(
            f"{path} ends with row {row:,} at token {at:,}; its token file has {num_tokens:,}: it was truncated, or is "
            "of another file"
        )


def _blocks(path: Path) -> Iterator[Any]:
    """The rows as they stand, all text."""
    import pyarrow
    from pyarrow import csv

    def nothing() -> bool:
        with pyarrow.input_stream(path, compression="gzip") as unpacked:
            return not unpacked.read(1)

    if nothing():
        return
    names = [f"f{number}" for number in range(5)]
    with pyarrow.input_stream(path, compression="gzip") as unpacked:
        yield from csv.open_csv(
            unpacked,
            read_options=csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES, autogenerate_column_names=True),
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False
            ),
        )


def _typed(block: Any, path: Path, row: int) -> Any:
    """A block as `start, end, external_id, source, line`."""
    columns = [_numbers(block.column(number), path, row) for number in range(2)]
    described: Mapping[str, Any] = {}
    if block.num_columns == 5:
        texts = [_texts(block.column(number), path, row) for number in (2, 3)]
        lines = _numbers(block.column(4), path, row, may_lack=True)
        described = dict(zip(("external_id", "source", "line"), (*texts, lines), strict=True))
    start, end = (column.to_numpy(zero_copy_only=False) for column in columns)
    return _described(start, end, described)


def _described(start: np.ndarray, end: np.ndarray, columns: Mapping[str, Any]) -> Any:
    import pyarrow

    empty = {
        name: pyarrow.nulls(len(start), kind)
        for name, kind in (("external_id", pyarrow.string()), ("source", pyarrow.string()), ("line", pyarrow.int64()))
    }
    return pyarrow.table({"start": start, "end": end} | empty | dict(columns))


def _numbers(column: Any, path: Path, row: int, *, may_lack: bool = False) -> Any:
    import pyarrow
    from pyarrow import compute

    pattern = r"^[0-9]{0,18}$" if may_lack else r"^[0-9]{1,18}$"
    right = compute.match_substring_regex(column, pattern)
    if (wrong := compute.index(right, False).as_py()) >= 0:
        raise CorruptFile(f"{path} row {row + wrong + 1:,} has {column[wrong].as_py()[:80]!r} where a number belongs")
    lacking = compute.equal(column, "")
    return compute.if_else(lacking, None, compute.if_else(lacking, "0", column).cast(pyarrow.int64()))


def _texts(column: Any, path: Path, row: int) -> Any:
    from pyarrow import compute

    long = compute.greater(compute.binary_length(column), MAX_TEXT_BYTES)
    if (wrong := compute.index(long, True).as_py()) >= 0:
        raise CorruptFile(f"{path} row {row + wrong + 1:,} has an id or a source of more than {MAX_TEXT_BYTES:,} bytes")
    return compute.if_else(compute.equal(column, ""), None, column)


def _require_tiles(table: Any, path: Path, row: int, at: int, num_tokens: int) -> None:
    """
    Raises:
        CorruptFile: documents leave a gap, overlap, are empty, or reach past the file.
    """
    start, end = (table.column(name).to_numpy() for name in ("start", "end"))
    before = np.append(at, end[:-1])
    wrong = np.flatnonzero((start != before[: len(start)]) | (end <= start) | (end > num_tokens))
    if not len(wrong):
        return
    first = int(wrong[0])
    place = f"{path} row {row + first + 1:,} is tokens {start[first]:,}..{end[first]:,}"
    if start[first] != before[first]:
        how = "leaves a gap" if start[first] > before[first] else "overlaps"
        raise CorruptFile(f"{place}, which {how}: the document before it ends at {before[first]:,}")
    if end[first] <= start[first]:
        raise CorruptFile(f"{place}, which is no document")
    raise CorruptFile(f"{place}; its token file has {num_tokens:,}: it is of another file, or that one was truncated")
