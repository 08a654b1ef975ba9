"""The only unpickler: torch zip archives and DCP metadata, read without torch and without running anything.

`find_class` knows a short list of names and answers each with an inert stand-in of ours (`stand_ins`); nothing that a
pickle names is ever imported or called. Tensors become `TensorRecord`s: where their bytes lie, their dtype, shape and
strides, all checked against the archive before anything is allocated. `dcp` reads distributed checkpoints with it.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from data_index.errors import CorruptFile, UnsafeFile
from data_index.files import open_existing, require_file
from data_index.stand_ins import ALLOWED, ITEM_BYTES, Inert, NumpyArray, StorageRecord, TensorRecord

if TYPE_CHECKING:
    from data_index.remote.path import Place

MAX_PICKLE_BYTES = 512 * 2**20
# Values that a pickle may unfold into: these, and so many for each of its bytes (trainers' have one in seven bytes).
MAX_UNFOLDED, UNFOLDED_RATIO = 2**16, 4
MAX_HUGE_INTEGERS = 1000
_LOCAL_HEADER_BYTES = 30
# Encrypted, patched, strongly encrypted: nothing of the kind is read.
_REFUSED_FLAGS = 0x01 | 0x20 | 0x40


class _Reader(pickle.Unpickler):
    def __init__(self, file: BinaryIO, source: str) -> None:
        super().__init__(file)
        self.source = source

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise UnsafeFile(
                f"{self.source} names {module}.{name}, which a checkpoint has no need of: refused, nothing was run"
            ) from None

    def persistent_load(self, pid: Any) -> StorageRecord:
        match pid:
            case ("storage", str(dtype), str(key) | int(key), _, int(num_elements), *_) if dtype in ITEM_BYTES:
                if num_elements >= 2**63:
                    raise UnsafeFile(f"{self.source} has a tensor storage of an impossible size")
                return StorageRecord(key=str(key), dtype=dtype, num_elements=num_elements)
        raise UnsafeFile(f"{self.source} has a persistent id that is no tensor storage")


def read_pickle(content: bytes, source: str) -> Any:
    """Unpickle with the allow-list.

    Raises:
        UnsafeFile: it names anything else, or asks for absurd memory.
        CorruptFile: it is not a whole pickle.
    """
    _check_opcodes(content, source)
    try:
        value, count = _resolve_arrays(_Reader(io.BytesIO(content), source).load(), {})
        if count > MAX_UNFOLDED + UNFOLDED_RATIO * len(content):
            raise UnsafeFile(f"{source} unfolds into {count} values, by sharing some inside others again and again")
        return value
    except CorruptFile as error:  # UnsafeFile too; what a stand-in says does not know the file
        if str(error).startswith(source):
            raise
        raise type(error)(f"{source}: {error}") from error
    except Exception as error:  # a damaged pickle fails in any way that Python can
        raise CorruptFile(f"{source} is not a whole pickle: {error}") from error


def _check_opcodes(content: bytes, source: str) -> None:
    """Refuse what costs before it is noticed: unpicklers allocate up to a memo index; huge integers share hashes."""
    num_huge = 0
    try:
        for opcode, argument, _ in pickletools.genops(content):
            num_huge += isinstance(argument, int) and argument.bit_length() > 64
            if num_huge > MAX_HUGE_INTEGERS:
                raise UnsafeFile(f"{source} holds more than {MAX_HUGE_INTEGERS} integers of more than 64 bits")
            if (
                opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
                and isinstance(argument, int)
                and argument > len(content)
            ):
                raise UnsafeFile(f"{source} claims a memo of {argument} entries")
            if opcode.name.startswith("EXT") or opcode.name in ("INST", "OBJ"):
                raise UnsafeFile(f"{source} uses the pickle opcode {opcode.name}")
    except UnsafeFile:
        raise
    except Exception as error:
        raise CorruptFile(f"{source} is not a whole pickle: {error}") from error


def _resolve_arrays(value: Any, done: dict[int, tuple[Any, int]]) -> tuple[Any, int]:
    """Arrays in place of their records, each object once however often a pickle shares it; and how many values that
    would be if nothing were shared.
    """
    if id(value) in done:
        return done[id(value)]
    resolved, inner = value, list[tuple[Any, int]]()
    if isinstance(value, NumpyArray):
        resolved = value.resolve()
    elif isinstance(value, dict):
        inner = [_resolve_arrays(item, done) for pair in value.items() for item in pair]
        # Keys stay as they are: arrays cannot be keys.
        resolved = {key: item for key, (item, _) in zip(value, inner[1::2], strict=True)}
    elif isinstance(value, list | tuple):
        inner = [_resolve_arrays(item, done) for item in value]
        resolved = (
            type(value)(item for item, _ in inner) if type(value) in (list, tuple) else tuple(i for i, _ in inner)
        )
    elif isinstance(value, Inert):
        inner = [_resolve_arrays(item, done) for item in vars(value).values()]
    else:
        return value, 1
    done[id(value)] = resolved, 1 + sum(count for _, count in inner)
    return done[id(value)]


def _why(file: BinaryIO) -> str:
    """What a file that is no zip may be."""
    file.seek(0)
    start = file.read(2)
    if start == b"PK":
        return "; it was truncated or changed"
    return "; it may be in the format before torch 1.6, which is not read" if start == b"\x80\x02" else ""


class TorchArchive:
    """A torch.save zip: its pickled value with `TensorRecord`s, and the bytes behind each.

    Only the zip's directory and the pickle are read at first; a storage is read when it is asked for. A file given by
    its path is open only while it is read, so that any number of archives can be held.
    """

    def __init__(self, file: io.BytesIO | Place, source: str, num_bytes: int) -> None:
        self.source = source
        self._file = file
        self._num_bytes = num_bytes
        with self._opened() as opened:
            try:
                archive = zipfile.ZipFile(opened)
            except (zipfile.BadZipFile, ValueError, OSError, RuntimeError, struct.error) as error:
                raise CorruptFile(f"{source} is not a torch archive: {error}{_why(opened)}") from error
            self._entries = {entry.filename: entry for entry in archive.infolist()}
            names = [name for name in archive.namelist() if PurePosixPath(name).name == "data.pkl"]
            if len(names) != 1:
                raise CorruptFile(f"{source} is not a torch archive: it holds {len(names)} data.pkl")
            self._prefix = names[0][: -len("data.pkl")]
            self._check_entries()
            pickled = self._read_entry(archive, "data.pkl")
            if self._prefix + "byteorder" in self._entries and self._read_entry(archive, "byteorder") != b"little":
                raise CorruptFile(f"{source} was written in another byte order than little; convert it first")
        self.value = read_pickle(pickled, source)

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        if isinstance(self._file, io.IOBase):
            yield self._file
            return
        with open_existing(self._file) as file:
            yield file

    def _check_entries(self) -> None:
        total = 0
        for entry in self._entries.values():
            packed = entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size
            if packed or entry.file_size > self._num_bytes:
                raise UnsafeFile(
                    f"{self.source}: entry {entry.filename} is compressed or claims {entry.file_size} bytes"
                )
            if entry.flag_bits & _REFUSED_FLAGS:
                raise UnsafeFile(f"{self.source}: entry {entry.filename} is encrypted or patched")
            total += entry.file_size
        if total > self._num_bytes:
            raise UnsafeFile(f"{self.source}: its entries claim {total} bytes, more than the file's {self._num_bytes}")
        if self._entries[self._prefix + "data.pkl"].file_size > MAX_PICKLE_BYTES:
            raise UnsafeFile(f"{self.source}: a pickle of more than {MAX_PICKLE_BYTES} bytes")

    def _read_entry(self, archive: zipfile.ZipFile, name: str) -> bytes:
        try:
            return archive.read(self._prefix + name)
        except (KeyError, zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, struct.error) as error:
            raise CorruptFile(f"{self.source}: entry {name} is missing or damaged: {error}") from error

    def storage_bytes(self, tensor: TensorRecord) -> bytearray:
        """All bytes of the tensor's storage; size and checksum are compared with what the archive declares.

        Raises:
            CorruptFile
        """
        return self._read_storage(tensor.storage, 0, tensor.storage.num_elements)

    def tensor_bytes(self, tensor: TensorRecord) -> bytearray:
        """The bytes of the storage from the tensor's first element to its last, and none besides.

        The checksum covers a whole storage: it is compared where the tensor fills its storage.

        Raises:
            CorruptFile
        """
        return self._read_storage(tensor.storage, tensor.offset, tensor.offset + tensor.extent)

    def check_storage(self, storage: StorageRecord) -> None:
        """Are the bytes that a tensor needs there, as many as it says? Nothing is read.

        Raises:
            CorruptFile
        """
        self._entry_of(storage)

    def _entry_of(self, storage: StorageRecord) -> zipfile.ZipInfo:
        entry = self._entries.get(f"{self._prefix}data/{storage.key}")
        if entry is None:
            raise CorruptFile(f"{self.source}: entry data/{storage.key} is missing")
        declared = storage.num_elements * ITEM_BYTES[storage.dtype]
        if entry.file_size != declared:
            raise CorruptFile(f"{self.source}: storage {storage.key} has {entry.file_size} bytes, not {declared}")
        return entry

    def _read_storage(self, storage: StorageRecord, start: int, stop: int) -> bytearray:
        entry, item, name = self._entry_of(storage), ITEM_BYTES[storage.dtype], f"data/{storage.key}"
        first, num_bytes = start * item, (stop - start) * item
        with self._opened() as file:
            at = self._start_of_entry(file, entry)
            content = bytearray(num_bytes)
            file.seek(at + first)
            if file.readinto(content) != num_bytes:  # type: ignore[attr-defined]
                raise CorruptFile(f"{self.source}: entry {name} ends early; the file was truncated")
        if num_bytes == entry.file_size and zlib.crc32(content) != entry.CRC:
            raise CorruptFile(f"{self.source}: entry {name} is damaged: its checksum differs")
        return content

    def _start_of_entry(self, file: BinaryIO, entry: zipfile.ZipInfo) -> int:
        """Where the bytes of a stored entry begin: behind a header with a name and a field of its own length."""
        file.seek(max(entry.header_offset, 0))
        header = file.read(_LOCAL_HEADER_BYTES)
        if entry.header_offset < 0 or len(header) != _LOCAL_HEADER_BYTES or header[:4] != b"PK\x03\x04":
            raise CorruptFile(f"{self.source}: entry {entry.filename} is not where the zip's directory places it")
        name, extra = struct.unpack("<HH", header[26:30])
        if file.read(name) != entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437"):
            raise CorruptFile(f"{self.source}: entry {entry.filename} has another name at its place")
        return entry.header_offset + _LOCAL_HEADER_BYTES + int(name) + int(extra)


def read_torch_archive(path: Place) -> TorchArchive:
    """Open a .pt file; its tensors stay on disk.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    return TorchArchive(path, str(path), require_file(path))
