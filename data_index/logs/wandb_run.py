"""W&B's local runs: `run-<id>.wandb`, the log of everything that a run sent or would have sent.

The file is LevelDB's log: blocks of 32 KiB, in them pieces with a checksum, a length and a kind; a record is one piece,
or several. Each record is a protobuf message; those of kind `history` hold what was logged at a step, as JSON text.

Source: wandb/wandb core/internal/leveldb, core/internal/transactionlog and wandb/proto/wandb_internal.proto 0.31;
google/leveldb doc/log_format.md
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_index.errors import CorruptFile, MissingFile, UnsafeFile
from data_index.files import open_existing, parse_json, require_file
from data_index.logs.points import Notes, Points, Wanted
from data_index.logs.records import points_of_records

MAGIC = b":W&B"
MAX_RECORD_BYTES = 64 * 2**20
_FILE_HEADER = struct.Struct("<4sHB")
_MAGIC_NUMBER, _VERSION = 0xBEE1, 0
_BLOCK_BYTES = 32768
_PIECE = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def read(path: Path, wanted: Wanted, notes: Notes) -> Iterator[Points]:
    """The file, or the folder of one run (`wandb/run-…`, `wandb/offline-run-…`).

    Raises:
        MissingFile, UnsafeFile
        CorruptFile: a checksum is wrong; a last record that was cut off is left out instead.
    """
    yield from points_of_records(_history(run_file(path), notes), wanted, notes)


def run_file(path: Path) -> Path:
    """
    Raises:
        MissingFile: a folder without a run.
        UnsafeFile: a folder with several.
    """
    if not path.is_dir():
        return path
    found = sorted(path.rglob("*.wandb"))
    if not found:
        raise MissingFile(f"{path} holds no run of W&B (run-….wandb)")
    if len(found) > 1:
        raise UnsafeFile(
            f"{path} holds {len(found)} runs of W&B: name those that are meant, the parts of one run in their order "
            f"({', '.join(str(file.relative_to(path)) for file in found[:3])}, …)"
        )
    return found[0]


def _history(path: Path, notes: Notes) -> Iterator[tuple[str, dict[str, Any]]]:
    from google.protobuf.message import DecodeError

    from data_index.logs.messages import Record

    for place, content in _records(path, notes):
        where = f"{path} at byte {place:,}"
        try:
            record = Record.FromString(content)
        except DecodeError as error:
            raise CorruptFile(f"{where}: no record of W&B ({error})") from error
        if record.HasField("history"):
            fields: dict[str, Any] = {}
            for item in record.history.item:
                _put(fields, [*item.nested_key] or [item.key], _value(item, where))
            if record.history.HasField("step"):
                fields.setdefault("_step", record.history.step.num)
            yield where, fields


def _put(fields: dict[str, Any], keys: list[bytes], value: Any) -> None:
    """Put a value of a table in a table where it was, so that tables that are media are known as such."""
    *tables, last = (key.decode(errors="replace") for key in keys)
    for name in tables:
        inner = fields.setdefault(name, {})
        fields = inner if isinstance(inner, dict) else fields.setdefault(f"{name}/", {})
    fields[last] = value


def _value(item: Any, where: str) -> Any:
    for name in ("value_json", "json"):
        if item.HasField(name):
            return parse_json(getattr(item, name), where)
    for name in ("number", "integer", "boolean"):
        if item.HasField(name):
            return getattr(item, name)
    return item.text.decode(errors="replace") if item.HasField("text") else None


# --- the frame of records --------------------------------------------------------------------------------------------


def _records(path: Path, notes: Notes) -> Iterator[tuple[int, bytes]]:
    """Whole records with the byte they begin at."""
    pieces: list[bytes] = []
    begun = size = 0
    for place, kind, content in _pieces(path, notes):
        expected = (_FULL, _FIRST) if not pieces else (_MIDDLE, _LAST)
        if kind not in expected:
            raise CorruptFile(f"{path} at byte {place:,}: a piece of a record that is not the next one")
        begun = begun if pieces else place
        pieces.append(content)
        size += len(content)
        if size > MAX_RECORD_BYTES:
            raise UnsafeFile(f"{path} at byte {begun:,}: a record of more than {MAX_RECORD_BYTES:,} bytes")
        if kind in (_FULL, _LAST):
            yield begun, b"".join(pieces)
            pieces, size = [], 0
    if pieces:
        notes.messages.append(f"{path} ends inside a record, at byte {begun:,}; what is before it is whole")


def _pieces(path: Path, notes: Notes) -> Iterator[tuple[int, int, bytes]]:
    """(byte it begins at, kind, content) of each piece."""
    size = require_file(path)
    with open_existing(path) as file:
        header = file.read(_FILE_HEADER.size)
        if len(header) < _FILE_HEADER.size or _FILE_HEADER.unpack(header) != (MAGIC, _MAGIC_NUMBER, _VERSION):
            raise CorruptFile(f"{path} is no run of W&B, or one of a version that is not known")
        place = _FILE_HEADER.size
        while place < size:
            left = _BLOCK_BYTES - place % _BLOCK_BYTES
            if left < _PIECE.size:
                place += left
                file.seek(place)
                continue
            header = file.read(_PIECE.size)
            if len(header) < _PIECE.size:
                break
            checksum, length, kind = _PIECE.unpack(header)
            if length > left - _PIECE.size:
                raise CorruptFile(f"{path} at byte {place:,}: a piece of a record that crosses a block")
            content = file.read(length)
            if len(content) < length:
                break
            if zlib.crc32(content, zlib.crc32(bytes([kind]))) != checksum:
                raise CorruptFile(f"{path} at byte {place:,}: the checksum of a record is wrong")
            yield place, kind, content
            place += _PIECE.size + length
    if place < size:
        notes.messages.append(f"{path} ends inside a record, at byte {place:,}; what is before it is whole")
