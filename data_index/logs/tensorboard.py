"""TensorBoard event files: length-framed protobuf records; values of tags, written as they are or as tensors of one.

A record is its length (8 bytes), a checksum of that, the event, and a checksum of the event (CRC-32C, masked). Several
files of one folder are one log, in the order of the times in their names; tags of a folder below it get its name before
theirs, as TensorBoard shows them.

Source: tensorflow/core/lib/io/record_writer.h; tensorboard/compat/proto/{event,summary,tensor}.proto 2.21
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import CorruptFile
from data_index.files import open_existing, require_file
from data_index.logs.points import Notes, Points, Wanted, as_step, gathered

_NAME = re.compile(r"tfevents\.(\d{1,18})")
_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
# Graphs and pictures are larger; their content is not read.
MAX_EVENT_BYTES = 16 * 2**20
_SCALARS = b"scalars"
# Source: tensorflow/core/framework/types.proto
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "<u1", 5: "<i2", 6: "<i1", 9: "<i8", 10: "?", 19: "<f2", 22: "<u4"}
_HALF, _BFLOAT16 = 19, 14
_LISTS = ("float_val", "double_val", "int_val", "int64_val", "bool_val")


def read(path: Path, wanted: Wanted, notes: Notes) -> Iterator[Points]:
    """One event file, or all of a folder and its folders.

    Raises:
        MissingFile, UnsafeFile
        CorruptFile: a checksum is wrong; a last record that was cut off is left out instead.
    """
    notes.step_field = "step"
    files = event_files(path) if path.is_dir() else [path]
    yield from gathered(point for file in files for point in _points(file, _prefix(file, path), notes))


def event_files(folder: Path) -> list[Path]:
    """The event files of a folder and its folders, those of one folder in the order in which they were begun."""

    def began(path: Path) -> tuple[str, int, str]:
        match = _NAME.search(path.name)
        return path.parent.as_posix(), int(match[1]) if match else 0, path.name

    return sorted((path for path in folder.rglob("*tfevents*") if path.is_file()), key=began)


def is_event_file(head: bytes) -> bool:
    if len(head) < _HEADER.size:
        return False
    length, checksum = _HEADER.unpack_from(head)
    return bool(length) and checksum == masked(crc32c(head[:8]))


def _prefix(file: Path, given: Path) -> str:
    below = file.parent.relative_to(given).as_posix() if given.is_dir() else "."
    return "" if below == "." else f"{below}/"


def _points(path: Path, prefix: str, notes: Notes) -> Iterator[tuple[int, Iterable[tuple[str, float]]]]:
    from google.protobuf.message import DecodeError

    from data_index.logs.messages import Event

    plugins: dict[bytes, bytes] = {}
    for place, content in _records(path, notes):
        try:
            event = Event.FromString(content)
        except DecodeError as error:
            raise CorruptFile(f"{path} at byte {place:,}: no event of TensorBoard ({error})") from error
        pairs = list(_values(event.summary.value, prefix, plugins, notes))
        if pairs:
            yield as_step(event.step, f"{path} at byte {place:,}", "step"), pairs


def _values(
    values: Iterable[Any], prefix: str, plugins: dict[bytes, bytes], notes: Notes
) -> Iterator[tuple[str, float]]:
    for value in values:
        name = prefix + value.tag.decode(errors="replace")
        # Only the first value of a tag needs to say what shows it.
        plugin = plugins.setdefault(value.tag, value.metadata.plugin_data.plugin_name)
        if value.HasField("simple_value"):
            yield name, value.simple_value
        elif value.HasField("tensor") and plugin in (_SCALARS, b"") and (number := _scalar(value.tensor)) is not None:
            yield name, number
        else:
            notes.left_out[name] += 1


def _scalar(tensor: Any) -> float | None:
    """The one number that a tensor holds; None where it holds another count of them, or something else."""
    if tensor.tensor_content:
        content = tensor.tensor_content
        if tensor.dtype == _BFLOAT16 and len(content) == 2:
            return float(np.frombuffer(b"\0\0" + content, "<f4")[0])
        dtype = np.dtype(_DTYPES.get(tensor.dtype, "V1"))
        whole = dtype.kind != "V" and len(content) == dtype.itemsize
        return float(np.frombuffer(content, dtype)[0]) if whole else None
    if len(tensor.half_val) == 1:
        bits = np.uint32(tensor.half_val[0] & 0xFFFF)
        if tensor.dtype == _BFLOAT16:
            return float((bits << np.uint32(16)).view(np.float32))
        return float(bits.astype(np.uint16).view(np.float16)) if tensor.dtype == _HALF else None
    numbers = [number for name in _LISTS for number in getattr(tensor, name)]
    return float(numbers[0]) if len(numbers) == 1 else None


# --- the frame of records --------------------------------------------------------------------------------------------


def _records(path: Path, notes: Notes) -> Iterator[tuple[int, bytes]]:
    """Whole records with the byte they begin at, without those too large to be metrics."""
    size = require_file(path)
    with open_existing(path) as file:
        place = 0
        while place < size:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                break
            length, checksum = _HEADER.unpack(header)
            if checksum != masked(crc32c(header[:8])):
                raise CorruptFile(f"{path} at byte {place:,}: the checksum of a record's length is wrong")
            end = place + _HEADER.size + length + _CHECKSUM.size
            if end > size:
                break
            if length <= MAX_EVENT_BYTES:
                content = file.read(length)
                if _CHECKSUM.unpack(file.read(_CHECKSUM.size))[0] != masked(crc32c(content)):
                    raise CorruptFile(f"{path} at byte {place:,}: the checksum of a record is wrong")
                yield place, content
            else:
                file.seek(end)
            place = end
    if place < size:
        notes.messages.append(f"{path} ends inside a record, at byte {place:,}; what is before it is whole")


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _table()


def crc32c(content: bytes) -> int:
    """CRC-32C (Castagnoli), RFC 3720."""
    found = 0xFFFFFFFF
    for byte in content:
        found = _TABLE[(found ^ byte) & 0xFF] ^ found >> 8
    return found ^ 0xFFFFFFFF


def masked(checksum: int) -> int:
    """Source: tensorflow/core/lib/hash/crc32c.h"""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
