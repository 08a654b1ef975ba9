"""Tensors on servers: one is read by its own bytes; all of a checkpoint are fetched at once.

Source: the format's description in huggingface/safetensors @ 24b0b28, README.md
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from data_index.dcp import read_dcp_metadata
from data_index.errors import CorruptFile, UnsafeFile
from data_index.remote.path import RemotePath
from data_index.remote.progress import Progress
from data_index.remote.ranges import Stretch, fetch_ranges
from replay.stored_tensors import SAFETENSORS_DTYPES, StoredTensor, stored_safetensors, whole_tensor

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_LENGTH_BYTES = 8


def stored_remote_safetensors(path: RemotePath) -> dict[str, StoredTensor]:
    """All tensors of a file, in the order of their bytes; read from disk where the whole file is there.

    Raises:
        MissingFile, AccessDenied, Unreachable, Offline
        CorruptFile, UnsafeFile: the header does not fit the file.
    """
    if (copy := path.copy()) is not None:
        return stored_safetensors(copy)
    size = path.size()
    first = _LENGTH_BYTES + _header_length(path, size)
    try:
        header = json.loads(path.read(_LENGTH_BYTES, first))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        placed = sorted(entries.items(), key=lambda item: (item[1]["data_offsets"], item[0]))
        tensors = {name: _tensor(path, name, entry, first) for name, entry in placed}
    except CorruptFile:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise CorruptFile(f"{path} has no header of safetensors ({error!r})") from error
    _require_filled(path, [entry["data_offsets"] for _, entry in placed], size - first)
    return tensors


def _header_length(path: RemotePath, size: int) -> int:
    if size < _LENGTH_BYTES:
        raise CorruptFile(f"{path} has {size} bytes: it is no safetensors file")
    length = int.from_bytes(path.read(0, _LENGTH_BYTES), "little")
    if length > min(MAX_HEADER_BYTES, size - _LENGTH_BYTES):
        raise UnsafeFile(f"{path} claims a header of {length:,} bytes in a file of {size:,}: it is no safetensors file")
    return length


def _tensor(path: RemotePath, name: str, entry: Mapping[str, Any], first: int) -> StoredTensor:
    dtype = SAFETENSORS_DTYPES.get(entry["dtype"])
    if dtype is None:
        raise CorruptFile(f"{path}: {name} is of dtype {entry['dtype']!r}, which no checkpoint uses")
    shape, (start, stop) = tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
        raise CorruptFile(f"{path}: {name} has the shape {shape} at {start}..{stop}")
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise CorruptFile(f"{path}: {name} of shape {shape} has {stop - start} bytes, not {dtype.itemsize} an element")
    tensor = whole_tensor(name, dtype, shape, partial(_read, path, dtype, shape, first + start, first + stop))
    return replace(tensor, place=(path, first + start))


def _require_filled(path: RemotePath, offsets: list[list[int]], num_bytes: int) -> None:
    """Tensors lie end to end and fill the file, as the format demands."""
    at = 0
    for start, stop in offsets:
        if start != at:
            raise CorruptFile(f"{path}: its tensors overlap or leave a hole at byte {at}")
        at = stop
    if at != num_bytes:
        raise CorruptFile(f"{path} has {num_bytes:,} bytes for tensors that need {at:,}: it was truncated or changed")


def _read(path: RemotePath, dtype: torch.dtype, shape: tuple[int, ...], start: int, stop: int) -> torch.Tensor:
    if start == stop:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(path.read(start, stop)), dtype=dtype).reshape(shape)


def read_stretches(wanted: Sequence[tuple[StoredTensor, int, int]]) -> list[torch.Tensor]:
    """Elements [start, stop) of flattened tensors that have a `place`; fetched side by side, and nothing besides.

    Raises:
        MissingFile, AccessDenied, Unreachable, Offline, ChangedFile, CorruptFile, DiskFull
    """
    places = []
    for tensor, start, stop in wanted:
        assert tensor.place is not None
        path, at = tensor.place
        places.append((path, at + start * tensor.dtype.itemsize, at + stop * tensor.dtype.itemsize))
    fetch_ranges(places)
    return [
        _read(path, tensor.dtype, (stop - start,), first, last)
        for (tensor, start, stop), (path, first, last) in zip(wanted, places, strict=True)
    ]


# --- all at once -----------------------------------------------------------------------------------------------------


def fetch_dcp(folder: RemotePath, prefix: str, progress: Progress | None = None) -> None:
    """Fetch the tensors of a distributed checkpoint whose names begin with `prefix`, and nothing else of its files.

    Raises:
        MissingFile, AccessDenied, Unreachable, Offline, ChangedFile, CorruptFile, UnsafeFile, DiskFull
    """
    fetch_ranges(dcp_stretches(folder, prefix), progress)


def dcp_stretches(folder: RemotePath, prefix: str) -> list[Stretch]:
    """The bytes on servers of a distributed checkpoint's tensors whose names begin with `prefix`.

    Raises:
        MissingFile, AccessDenied, Unreachable, Offline, CorruptFile, UnsafeFile
    """
    return [(piece.path, piece.offset, piece.offset + piece.length) for piece in _pieces(folder, prefix)]


def dcp_files(folder: RemotePath, prefix: str) -> list[RemotePath]:
    """The files on servers in which the tensors of a distributed checkpoint lie whose names begin with `prefix`.

    Raises:
        MissingFile, AccessDenied, Unreachable, Offline, CorruptFile, UnsafeFile
    """
    return list(dict.fromkeys(piece.path for piece in _pieces(folder, prefix)))


def _pieces(folder: RemotePath, prefix: str) -> list[Any]:
    entries = [entry for name, entry in read_dcp_metadata(folder).items() if name.startswith(prefix)]
    pieces = [piece for entry in entries if entry.dtype is not None for piece in entry.pieces]
    return [piece for piece in pieces if isinstance(piece.path, RemotePath)]
