"""Are the token files those that the tokenizer's list of documents describes? X.csv.gz beside X.npy.

Each row is a document: its first token, the one after its last, its id, the file and the line that it came from.
Documents are written whole, one after another, with an end token each, so that the list must tile the file and name
where end tokens are.

Source: allenai/OLMo#728 (the five columns); dolma's writer of token files, which writes a document whole or not at all
"""

from __future__ import annotations

import csv
import gzip
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_index.errors import CorruptFile, OrderMismatch, UnsafeFile
from data_index.files import require_file
from data_index.run import Run, TokenFile
from data_index.run_check import LINES
from data_index.tokens import TokenReader

MAX_ROW_BYTES = 2**16
ROWS_AT_ONCE = 2**16
# A few seconds a gigabyte; where there is more, it is not read at `add`.
MAX_LISTS_BYTES = 2**30


def prove_provenance(run: Run) -> Run:
    """Compare token files with the lists of documents beside them; returns the run with its trust.

    Raises:
        CorruptFile, UnsafeFile: a list is damaged.
        OrderMismatch: it is not of the token file.
    """
    lists = {file.name: (file, path) for file in run.files if (path := _list_of(file)) is not None}
    if not lists or sum(require_file(path) for _, path in lists.values()) > MAX_LISTS_BYTES:
        return run
    reader = TokenReader(run, block_hashes=None)
    documents = sum(_check(reader, file, path) for file, path in lists.values())
    ends = "" if run.eos_token_id is None else ", each with an end token"
    said = f"lists of {documents:,} documents tile {len(lists)} of {len(run.files)} token files{ends}"
    return replace(run, trust=replace(run.trust, witness=f"{run.trust.witness}; {said}"))


def _list_of(file: TokenFile) -> Path | None:
    if not isinstance(file.path, Path) or file.path.suffix != ".npy" or file.dtype == LINES:
        return None
    path = file.path.with_suffix(".csv.gz")
    return path if path.is_file() else None


def _check(reader: TokenReader, file: TokenFile, path: Path) -> int:
    """Documents of a list that tiles its file."""
    num_tokens = file.num_bytes // np.dtype(file.dtype).itemsize
    end, count, end_token = 0, 0, reader.run.eos_token_id
    rows = _rows_of(path)
    while borders := list(itertools.islice(rows, ROWS_AT_ONCE)):
        starts, stops = np.array(borders, dtype=np.int64).T
        expected = np.append(end, stops[:-1])
        if (odd := np.flatnonzero((starts != expected) | (stops <= starts) | (stops > num_tokens))).size:
            row = int(odd[0])
            raise OrderMismatch(
                f"{path} row {count + row + 1} is a document of tokens {starts[row]:,}..{stops[row]:,}, after one that "
                f"ends at {expected[row]:,} of {num_tokens:,}: the list or {file.path} is another, or damaged"
            )
        if end_token is not None:
            last = reader.read(file, end, int(stops[-1]))[stops - 1 - end]
            if (odd := np.flatnonzero(last != end_token)).size:
                row = int(odd[0])
                raise OrderMismatch(
                    f"{path} row {count + row + 1} ends before token {stops[row]:,}; the token there "
                    f"in {file.path} is {int(last[row])}, not the end token {end_token}: the token file is another, or "
                    "was changed"
                )
        end, count = int(stops[-1]), count + len(stops)
    if end != num_tokens:
        raise OrderMismatch(
            f"{path} lists documents up to token {end:,}; {file.path} has {num_tokens:,}: one of them is another's, or "
            "truncated"
        )
    return count


def _rows_of(path: Path) -> Iterator[tuple[int, int]]:
    """First token and the one after the last, of each row. A row has a token at least, so the file bounds them."""

    def lines(file: gzip.GzipFile) -> Iterator[str]:
        while line := file.readline(MAX_ROW_BYTES + 1):
            if len(line) > MAX_ROW_BYTES:
                raise UnsafeFile(f"{path} has a row of more than {MAX_ROW_BYTES:,} bytes, as no list of documents has")
            yield line.decode(errors="replace")

    try:
        with gzip.open(path, "rb") as file:
            for row in csv.reader(lines(file)):
                start, stop = int(row[0]), int(row[1])
                if not 0 <= start < 2**62 or not 0 <= stop < 2**62:
                    raise ValueError(f"a document of tokens {start}..{stop}")
                yield start, stop
    except UnsafeFile:
        raise
    except (OSError, EOFError, ValueError, IndexError, csv.Error, zlib.error) as error:
        raise CorruptFile(f"{path} is not a whole list of documents: {error}") from error
