"""GGUF files: what they say of themselves and where their tensors lie, without reading a tensor.

The header is read in blocks from its start, from disk or from a server; every count and length is held against the
bytes that are left before anything is allocated for it.

Source: ggml-org/ggml docs/gguf.md; Python package gguf 0.19.0 (gguf/constants.py)
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data_index.errors import CorruptFile, UnknownLayout, UnsafeFile
from data_index.files import read_range, require_file

if TYPE_CHECKING:
    from data_index.remote.path import Place

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 256 * 2**20
MAX_KEY_BYTES = 2**16 - 1
MAX_DIMENSIONS = 4
_BLOCK_BYTES = 2**20
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "|b1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """Where a tensor lies.

    Attributes:
        shape: slowest dimension first, as in torch; the file states them the other way round.
        type_number: ggml's number of its storage type: 0 F32, 1 F16, 3 Q4_1, 8 Q8_0, 30 BF16 …
        offset: bytes from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    type_number: int
    offset: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """A file's header. `metadata`: numbers, texts, and lists of either, by key."""

    place: Place
    num_bytes: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_gguf(place: Place) -> GgufFile:
    """
    Raises:
        MissingFile
        CorruptFile, UnsafeFile: the header does not fit the file.
        UnknownLayout: a version, or a byte order, that is not read.
        AccessDenied, Unreachable, Offline: it is on a server.
    """
    cursor = _Cursor(place, require_file(place))
    if cursor.take(4) != MAGIC:
        raise CorruptFile(f"{place} is no GGUF file: it does not begin with {MAGIC.decode()}")
    version = cursor.number("<u4")
    if version not in (2, 3):
        raise UnknownLayout(f"{place} is GGUF of version {version} or of the other byte order; 2 and 3 are read")
    num_tensors, num_keys = cursor.number("<u8"), cursor.number("<u8")
    cursor.require(num_keys, 8 + 4 + 1, "metadata keys")
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = cursor.text(MAX_KEY_BYTES)
        if key in metadata:
            raise CorruptFile(f"{place} states {key[:100]!r} twice")
        metadata[key] = cursor.value(cursor.number("<u4"))
    cursor.require(num_tensors, 8 + 4 + 4 + 8, "tensors")
    stated = [cursor.tensor() for _ in range(num_tensors)]
    return GgufFile(
        place=place, num_bytes=cursor.num_bytes, metadata=metadata, tensors=_placed(stated, cursor, metadata)
    )


def _placed(stated: list[GgufTensor], cursor: _Cursor, metadata: Mapping[str, Any]) -> dict[str, GgufTensor]:
    """Tensors with offsets from the start of the file; their data begin where the header ends, aligned."""
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
        raise CorruptFile(f"{cursor.place} states the alignment {alignment!r:.40}")
    first = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for tensor in stated:
        if tensor.name in tensors:
            raise CorruptFile(f"{cursor.place} holds the tensor {tensor.name[:100]!r} twice")
        if first + tensor.offset > cursor.num_bytes:
            raise CorruptFile(
                f"{cursor.place} places {tensor.name[:100]!r} behind its end; it was truncated or changed"
            )
        tensors[tensor.name] = GgufTensor(
            name=tensor.name, shape=tensor.shape, type_number=tensor.type_number, offset=first + tensor.offset
        )
    return tensors


class _Cursor:
    """Reads on from the start of a file, a block at a time."""

    def __init__(self, place: Place, num_bytes: int) -> None:
        self.place, self.num_bytes = place, num_bytes
        self.at = 0
        self._block, self._block_at = b"", 0

    def take(self, count: int) -> bytes:
        if count > self.num_bytes - self.at:
            raise CorruptFile(f"{self.place} ends inside its header; it was truncated or changed")
        if self.at + count > MAX_HEADER_BYTES:
            raise UnsafeFile(f"{self.place} claims a header of more than {MAX_HEADER_BYTES:,} bytes")
        inside = self.at - self._block_at
        if inside + count > len(self._block):
            stop = min(self.at + max(count, _BLOCK_BYTES), self.num_bytes)
            self._block, self._block_at, inside = read_range(self.place, self.at, stop), self.at, 0
        self.at += count
        return self._block[inside : inside + count]

    def require(self, count: int, least_bytes: int, what: str) -> None:
        """So many things of at least so many bytes each can still come."""
        if count > (self.num_bytes - self.at) // least_bytes:
            left = self.num_bytes - self.at
            raise UnsafeFile(f"{self.place} claims {count:,} {what} in the {left:,} bytes that are left of it")

    def number(self, kind: str) -> int:
        return int(np.frombuffer(self.take(np.dtype(kind).itemsize), kind)[0])

    def text(self, most: int | None = None) -> str:
        (count,) = struct.unpack("<Q", self.take(8))
        self.require(count, 1, "bytes of text")
        if most is not None and count > most:
            raise UnsafeFile(f"{self.place} has a name of {count:,} bytes")
        return self.take(count).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array(self.number("<u4"), self.number("<u8"))
        return np.frombuffer(self.take(self._scalar(kind).itemsize), self._scalar(kind))[0].item()

    def _array(self, kind: int, count: int) -> list[Any]:
        if kind == _ARRAY:
            raise UnsafeFile(f"{self.place} has lists of lists, which no model needs")
        if kind == _STRING:
            self.require(count, 8, "texts")
            return [self.text() for _ in range(count)]
        scalar = self._scalar(kind)
        self.require(count, scalar.itemsize, "numbers")
        values: list[Any] = np.frombuffer(self.take(count * scalar.itemsize), scalar).tolist()
        return values

    def _scalar(self, kind: int) -> np.dtype[Any]:
        if kind not in _SCALARS:
            raise CorruptFile(f"{self.place} has a value of the unknown type {kind}")
        return np.dtype(_SCALARS[kind])

    def tensor(self) -> GgufTensor:
        name, dimensions = self.text(MAX_KEY_BYTES), self.number("<u4")
        if not 0 < dimensions <= MAX_DIMENSIONS:
            raise CorruptFile(f"{self.place}: {name[:100]!r} has {dimensions} dimensions")
        shape = tuple(self.number("<u8") for _ in range(dimensions))[::-1]
        if math.prod(n for n in shape if n) >= 2**63:
            raise UnsafeFile(f"{self.place}: {name[:100]!r} cannot have the shape {shape}")
        return GgufTensor(name=name, shape=shape, type_number=self.number("<u4"), offset=self.number("<u8"))
