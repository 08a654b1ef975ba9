"""Distributed checkpoints (torch.distributed.checkpoint, as OLMo-core writes them): which bytes hold which tensor.

`.metadata` is read through the allow-listed unpickler; each item in a .distcp file is a torch archive of its own, so
that one tensor can be read without the rest.
"""

from __future__ import annotations

import io
import itertools
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from data_index.errors import CorruptFile, MissingFile, UnsafeFile
from data_index.files import read_limited, read_range, require_file
from data_index.pickles import MAX_PICKLE_BYTES, TorchArchive, read_pickle
from data_index.stand_ins import ITEM_BYTES, BytesStorageMetadata, Inert, Metadata, StorageInfo

if TYPE_CHECKING:
    from data_index.remote.path import Place

# Tensors are cut along one or two axes; each more doubles the corners of a piece.
MAX_CUT_AXES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class DcpPiece:
    """One item in a .distcp file: a torch archive in bytes [offset, offset + length)."""

    path: Place
    offset: int
    length: int
    starts: tuple[int, ...]
    sizes: tuple[int, ...]

    def open(self) -> TorchArchive:
        source = f"{self.path} [{self.offset}:{self.offset + self.length}]"
        content = read_range(self.path, self.offset, self.offset + self.length)
        return TorchArchive(io.BytesIO(content), source, self.length)


@dataclass(frozen=True, slots=True, kw_only=True)
class DcpEntry:
    """One key of a distributed checkpoint. `dtype` is None for pickled bytes."""

    name: str
    dtype: str | None
    shape: tuple[int, ...]
    pieces: tuple[DcpPiece, ...]


def read_dcp_metadata(folder: Place) -> dict[str, DcpEntry]:
    """Read `folder/.metadata`: every key in the order it was written, with the place of its bytes.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    path = folder / ".metadata"
    try:
        metadata = read_pickle(read_limited(path, MAX_PICKLE_BYTES), str(path))
    except MissingFile as error:
        raise MissingFile(f"{path} is not there: the checkpoint is incomplete") from error
    if not isinstance(metadata, Metadata):
        raise CorruptFile(f"{path} holds no distributed-checkpoint metadata")
    try:
        return _dcp_entries(folder, metadata)
    except (AttributeError, TypeError, ValueError, IndexError, OSError) as error:
        if isinstance(error, CorruptFile):
            raise
        raise CorruptFile(f"{path} is not metadata as torch writes it: {error}") from error


def _dcp_entries(folder: Place, metadata: Metadata) -> dict[str, DcpEntry]:
    pieces: dict[str, list[tuple[tuple[int, ...], StorageInfo]]] = {}
    for index, info in metadata.get("storage_data").items():
        pieces.setdefault(index.get("fqn"), []).append((tuple(index.state.get("offset") or ()), info))
    return {
        name: _dcp_entry(folder, name, described, pieces.get(name, []))
        for name, described in metadata.get("state_dict_metadata").items()
    }


def _dcp_entry(folder: Place, name: str, described: Inert, places: list[Any]) -> DcpEntry:
    if isinstance(described, BytesStorageMetadata):
        return DcpEntry(name=name, dtype=None, shape=(), pieces=tuple(_piece(folder, i, (), ()) for _, i in places))
    shape = tuple(described.get("size"))
    dtype = described.get("properties").state[0]
    sizes = {tuple(c.get("offsets")): tuple(c.get("sizes")) for c in described.get("chunks")}
    if set(sizes) != {starts for starts, _ in places} or dtype not in ITEM_BYTES or not tile(shape, sizes):
        raise CorruptFile(f"{folder}/.metadata: the pieces of {name} do not make up its shape {shape}")
    pieces = tuple(_piece(folder, info, starts, sizes[starts]) for starts, info in places)
    if any(math.prod(piece.sizes) * ITEM_BYTES[dtype] > piece.length for piece in pieces):
        raise CorruptFile(f"{folder}/.metadata: a piece of {name} has fewer bytes than its sizes need")
    return DcpEntry(name=name, dtype=dtype, shape=shape, pieces=pieces)


def tile(shape: tuple[int, ...], sizes: dict[tuple[int, ...], tuple[int, ...]]) -> bool:
    """Do the pieces lie inside the shape, without overlap, and fill it?

    A piece is told by its corners with alternating signs; the pieces tile the whole if and only if their corners sum to
    those of the whole. That takes a time that grows with their number, not with its square.
    """
    for start, size in sizes.items():
        if len(start) != len(shape) or len(size) != len(shape):
            return False
        if any(a < 0 or n < 0 or a + n > whole for a, n, whole in zip(start, size, shape, strict=True)):
            return False
    filled = [(start, size) for start, size in sizes.items() if 0 not in size]
    if sum(math.prod(size) for _, size in filled) != math.prod(shape):
        return False
    cut = [axis for axis, whole in enumerate(shape) if any(size[axis] != whole for _, size in filled)]
    if not filled or len(cut) > MAX_CUT_AXES:
        return not filled
    corners: Counter[tuple[int, ...]] = Counter()
    for weight, start, size in [*((1, *piece) for piece in filled), (-1, (0,) * len(shape), shape)]:
        for ends in itertools.product((0, 1), repeat=len(cut)):
            corner = tuple(start[axis] + end * size[axis] for axis, end in zip(cut, ends, strict=True))
            corners[corner] += weight * (-1) ** sum(ends)
    return not any(corners.values())


def _piece(folder: Place, info: StorageInfo, starts: tuple[int, ...], sizes: tuple[int, ...]) -> DcpPiece:
    relative = PurePosixPath(str(info.get("relative_path")))
    if relative.is_absolute() or ".." in relative.parts:
        raise UnsafeFile(f"{folder}/.metadata names {relative}, outside its folder")
    offset, length = int(info.get("offset")), int(info.get("length"))
    path = folder / str(relative)
    # A file on a server is looked at when a piece of it is read.
    size = require_file(path) if isinstance(path, Path) and path.exists() else None
    if offset < 0 or length < 0 or (size is not None and offset + length > size):
        raise CorruptFile(f"{path} has {size} bytes; .metadata places an item at {offset}..{offset + length}")
    return DcpPiece(path=path, offset=offset, length=length, starts=starts, sizes=sizes)
