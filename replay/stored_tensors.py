"""Tensors that are still on disk: how large they are, and how to read one without the rest.

Every checkpoint format comes down to this: a tensor is made of pieces, each a block of it or a stretch of its
flattened elements, and each piece is bytes that are there. Sizes are compared before anything is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from data_index.dcp import DcpEntry, DcpPiece, read_dcp_metadata, tile
from data_index.errors import CorruptFile, MissingFile, UnsafeFile
from data_index.files import read_into, require_file
from data_index.pickles import TorchArchive
from data_index.stand_ins import TensorRecord

if TYPE_CHECKING:
    from data_index.remote.path import Place, RemotePath

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,  # of layers; their models' embeddings are bf16
    "F8_E5M2": torch.float8_e5m2,
}
MAX_HEADER_BYTES = 100_000_000  # of a file of safetensors: the format's own limit
_LENGTH_BYTES = 8  # it begins with the header's length


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A block of a tensor that begins at `starts` and has shape `sizes`. `read` gives it; nothing is read before.

    Attributes:
        elements: which of what `read` gives are the piece's; None means all. Pieces with the same `read` share it.
    """

    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    read: Callable[[], torch.Tensor]
    elements: slice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor on disk. Where it is `flat`, its pieces are stretches of its elements in C order.

    Attributes:
        place: of one on a server whose elements lie there one after another: the file, and the byte of the first.
    Raises:
        CorruptFile: the pieces overlap, leave a gap, or lie outside.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    flat: bool = False
    place: tuple[RemotePath, int] | None = None

    def __post_init__(self) -> None:
        # Without what is 0, a product beyond 64 bits would pass as nothing.
        largest = math.prod(n for n in self.shape if n) * self.dtype.itemsize
        if not all(isinstance(n, int) and n >= 0 for n in self.shape) or largest >= 2**63:
            raise CorruptFile(f"{self.name} cannot have the shape {self.shape}")
        sizes = {piece.starts: piece.sizes for piece in self.pieces if 0 not in piece.sizes}
        if len(sizes) != sum(0 not in piece.sizes for piece in self.pieces) or not tile(self._space, sizes):
            raise CorruptFile(f"the pieces of {self.name} do not make up its shape {self.shape}")

    @property
    def _space(self) -> tuple[int, ...]:
        return (math.prod(self.shape),) if self.flat else self.shape

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """The tensor, put together from its pieces; nothing else is read.

        Raises:
            MissingFile, CorruptFile, UnsafeFile
        """
        whole: torch.Tensor | None = None
        last, source = None, torch.empty(0)
        for piece in self.pieces:
            if 0 in piece.sizes:
                continue
            if piece.read is not last:
                last, source = piece.read, piece.read()
            tensor = source if piece.elements is None else source[piece.elements]
            if tuple(tensor.shape) != piece.sizes or tensor.dtype != self.dtype:
                raise CorruptFile(f"{self.name} is {tensor.dtype} {tuple(tensor.shape)} on disk, not as declared")
            if piece.sizes == self._space:
                return tensor.reshape(self.shape)
            # Whoever makes a piece compares its size with the bytes there; so this allocation is backed by bytes.
            whole = torch.empty(self._space, dtype=self.dtype) if whole is None else whole
            whole[tuple(slice(a, a + n) for a, n in zip(piece.starts, piece.sizes, strict=True))] = tensor
        return torch.empty(self.shape, dtype=self.dtype) if whole is None else whole.reshape(self.shape)


def whole_tensor(
    name: str, dtype: torch.dtype, shape: tuple[int, ...], read: Callable[[], torch.Tensor]
) -> StoredTensor:
    """A tensor that lies in one piece."""
    return StoredTensor(
        name=name, dtype=dtype, shape=shape, pieces=(Piece(starts=(0,) * len(shape), sizes=shape, read=read),)
    )


def check_total(tensors: Mapping[str, StoredTensor], num_bytes: int, source: str) -> None:
    """Refuse tensors that together claim more than files can hold: many may share the same bytes.

    Twice the bytes are allowed, because tied parameters are stored once.

    Raises:
        UnsafeFile
    """
    claimed = sum(tensor.num_bytes for tensor in tensors.values())
    if claimed > 2 * num_bytes:
        raise UnsafeFile(f"{source}: its {len(tensors)} tensors claim {claimed} bytes of {num_bytes}")


# --- torch archives --------------------------------------------------------------------------------------------------


def of_archive(archive: TorchArchive, record: Any, name: str) -> StoredTensor:
    """A tensor of a .pt file.

    Raises:
        CorruptFile, UnsafeFile
    """
    if not isinstance(record, TensorRecord):
        raise UnsafeFile(f"{archive.source} holds no tensor where {name} was expected")
    archive.check_storage(record.storage)
    return whole_tensor(
        name, getattr(torch, record.storage.dtype), record.shape, lambda: tensor_of_archive(archive, record)
    )


def tensor_of_archive(archive: TorchArchive, record: Any) -> torch.Tensor:
    """The tensor that a record of the archive describes; of its storage, only the bytes it spans are read.

    Raises:
        CorruptFile, UnsafeFile
    """
    if not isinstance(record, TensorRecord):
        raise UnsafeFile(f"{archive.source} holds no tensor where one was expected")
    dtype = getattr(torch, record.storage.dtype)
    if not record.num_elements:
        return torch.empty(record.shape, dtype=dtype)
    spanned = torch.frombuffer(archive.tensor_bytes(record), dtype=dtype)
    return spanned.as_strided(record.shape, record.strides).contiguous()


def of_dcp(entry: DcpEntry) -> StoredTensor:
    """A tensor of a distributed checkpoint."""
    if entry.dtype is None:
        raise UnsafeFile(f"{entry.name} is no tensor: the checkpoint holds a pickled value of that name")
    pieces = [Piece(starts=p.starts, sizes=p.sizes, read=partial(_read_item, p)) for p in entry.pieces]
    return StoredTensor(name=entry.name, dtype=getattr(torch, entry.dtype), shape=entry.shape, pieces=tuple(pieces))


def stored_dcp(folder: Place, prefix: str, suffix: str) -> dict[str, StoredTensor]:
    """The tensors of a distributed checkpoint between a prefix and a suffix, by what stands between.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    found = {
        name[len(prefix) : len(name) - len(suffix)]: entry
        for name, entry in read_dcp_metadata(folder).items()
        if name.startswith(prefix) and name.endswith(suffix) and entry.dtype is not None
    }
    paths = {piece.path for entry in found.values() for piece in entry.pieces}
    tensors = {name: of_dcp(entry) for name, entry in found.items()}
    if isinstance(folder, Path):  # on a server, a tensor's bytes come before it is allocated
        for path in sorted(map(str, paths)):
            if not Path(path).is_file():
                raise MissingFile(f"{path} is not there: the checkpoint is incomplete")
        check_total(tensors, sum(require_file(path) for path in paths), str(folder))
    return tensors


def _read_item(piece: DcpPiece) -> torch.Tensor:
    archive = piece.open()
    return tensor_of_archive(archive, archive.value)


# --- safetensors -----------------------------------------------------------------------------------------------------


def open_safetensors(path: Path) -> Any:
    """The library's handle of a file, its header checked; tensors stay on disk.

    Raises:
        MissingFile, CorruptFile
    """
    require_file(path)
    _read_header(path)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptFile(f"{path} is not a whole safetensors file ({error}): it was truncated or changed") from error


def stored_safetensors(path: Place) -> dict[str, StoredTensor]:
    """All tensors of a file, in the file's order.

    Raises:
        MissingFile, CorruptFile
        UnsafeFile, AccessDenied, Unreachable, Offline: it is on a server.
    """
    if not isinstance(path, Path):
        from replay.stored_remote import stored_remote_safetensors

        return stored_remote_safetensors(path)
    return {tensor.name: tensor for tensor in _tensors_of(path, open_safetensors(path))}


def _tensors_of(path: Path, file: Any) -> Iterator[StoredTensor]:
    """The library has checked that tensors follow one another after the header, and fill the file."""
    at = _read_header(path)
    for name in file.offset_keys():
        described = file.get_slice(name)
        dtype = SAFETENSORS_DTYPES.get(described.get_dtype())
        if dtype is None:
            raise CorruptFile(f"{path}: {name} is of dtype {described.get_dtype()}, which no checkpoint uses")
        shape = tuple(described.get_shape())
        try:
            tensor = whole_tensor(name, dtype, shape, partial(_read_stretch, path, at, dtype, shape))
        except CorruptFile as error:
            raise CorruptFile(f"{path}: {error}") from error
        yield tensor
        at += tensor.num_bytes


def _read_header(path: Path) -> int:
    """The first byte after it. Once it is in memory, to map the file brings no more of it."""
    size, length = require_file(path), bytearray(_LENGTH_BYTES)
    read_into(path, 0, memoryview(length)[:size])
    end = _LENGTH_BYTES + int.from_bytes(length, "little")
    read_into(path, 0, memoryview(bytearray(min(end, size, MAX_HEADER_BYTES))))
    return end


def _read_stretch(path: Path, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Not mapped, as the library would have it, for then the kernel reads on into the neighbours."""
    content = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
    read_into(path, start, content.numpy().data)
    return content.view(dtype).reshape(shape)


# --- lists of tensors ------------------------------------------------------------------------------------------------


def inside(folder: Place, name: Any, source: str) -> Place:
    """A file that an index in `folder` names; it must lie in the folder itself.

    Raises:
        UnsafeFile
    """
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or PurePosixPath(name).name != name
        or {"\\", "\0"} & set(name)
    ):
        raise UnsafeFile(f"{folder}/{source} names {name!r}, outside its folder")
    return folder / name
