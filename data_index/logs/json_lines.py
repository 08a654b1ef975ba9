"""JSON lines: one object a line, as most training loops and `wandb.Api().run(…).scan_history()` give them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_index.errors import CorruptFile, UnsafeFile
from data_index.files import open_existing, parse_json
from data_index.logs.points import Notes, Points, Wanted
from data_index.logs.records import points_of_records

# The largest lines list the instances of a batch.
MAX_LINE_BYTES = 64 * 2**20


def read(path: Path, wanted: Wanted, notes: Notes) -> Iterator[Points]:
    """
    Raises:
        MissingFile, UnsafeFile
        CorruptFile: a line is no object or has no step; a last one that was cut off is left out instead.
    """
    yield from points_of_records(_records(path, notes), wanted, notes)


def _records(path: Path, notes: Notes) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in lines_of(path):
        where = f"{path} line {number}"
        if not line.endswith(b"\n") and _is_cut_off(line):
            notes.messages.append(f"{where} was cut off and is left out; the {number - 1:,} lines before it are whole")
            return
        yield where, parsed(line, where)


def _is_cut_off(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


def parsed(line: bytes, where: str) -> dict[str, Any]:
    """
    Raises:
        CorruptFile: it is not an object.
    """
    value = parse_json(line, where)
    if not isinstance(value, dict):
        raise CorruptFile(f"{where} is not an object")
    return value


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, numbered from 1.

    Raises:
        MissingFile
        UnsafeFile: a line longer than any in a log.
    """
    with open_existing(path) as file:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_LINE_BYTES:
                raise UnsafeFile(f"{path} line {number} has more than {MAX_LINE_BYTES:,} bytes, as no record has")
            if line.strip():
                yield number, line
