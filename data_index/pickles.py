"""The only unpickler: torch zip archives and DCP metadata, read without torch and without running anything.

`find_class` knows a short list of names and answers each with an inert stand-in of ours; nothing that a pickle names is
ever imported or called. Tensors become `TensorRecord`s: where their bytes lie, their dtype, shape and strides, all
checked against the archive before anything is allocated. `dcp` reads distributed checkpoints with it.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from data_index.errors import CorruptFile, MissingFile, UnsafeFile

MAX_PICKLE_BYTES = 512 * 2**20

ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageRecord:
    """A stretch of bytes in a torch archive: key names the zip entry data/<key>."""

    key: str
    dtype: str
    num_elements: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecord:
    """A tensor as the pickle describes it. Offset, shape and strides are in elements of the storage."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        if min((*self.shape, *self.strides, self.offset, 0)) < 0 or len(self.shape) != len(self.strides):
            raise UnsafeFile(f"a tensor claims shape {self.shape}, strides {self.strides}, offset {self.offset}")
        extent = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)) if self.num_elements else 0
        if self.offset + extent > self.storage.num_elements or self.num_elements > self.storage.num_elements:
            raise UnsafeFile(f"a tensor of shape {self.shape} reaches past its storage of {self.storage.num_elements}")

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


class Inert:
    """An object that only remembers what the pickle gave it."""

    state: Any = None

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def get(self, name: str) -> Any:
        if not isinstance(self.state, dict) or name not in self.state:
            raise CorruptFile(f"a {type(self).__name__} record lacks {name!r}")
        return self.state[name]


class Metadata(Inert):
    pass


class TensorStorageMetadata(Inert):
    pass


class BytesStorageMetadata(Inert):
    pass


class ChunkStorageMetadata(Inert):
    pass


class TensorProperties(Inert):
    pass


class MetadataIndex(Inert):
    pass


class StorageInfo(Inert):
    pass


class StorageMeta(Inert):
    pass


class _NumpyDtype(Inert):
    """numpy.dtype('f8', False, True) and the like; never an object dtype."""

    def resolve(self) -> np.dtype:
        code = str(self.args[0]) if self.args else ""
        if code not in {"u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "b1"}:
            raise UnsafeFile(f"a numpy array of dtype {code!r} is not read from a pickle")
        return np.dtype(code)


class _NumpyArray(Inert):
    """numpy's _reconstruct: filled from its state (version, shape, dtype, fortran, bytes)."""

    def resolve(self) -> np.ndarray:
        try:
            _, shape, dtype, fortran, raw = self.state
            if fortran or not isinstance(raw, bytes):
                raise CorruptFile("a numpy array in a pickle is not in C order")
            return np.frombuffer(raw, dtype=dtype.resolve()).reshape(shape)
        except (TypeError, ValueError, AttributeError) as error:
            raise CorruptFile(f"a numpy array in a pickle cannot be read: {error}") from error


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise UnsafeFile(f"a pickle encodes bytes as {encoding!r}")
    return text.encode("latin-1")


def _rebuild_tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> TensorRecord:
    if not isinstance(storage, StorageRecord):
        raise UnsafeFile("a tensor in a pickle has no storage")
    return TensorRecord(storage=storage, offset=int(offset), shape=tuple(shape), strides=tuple(strides))


def _rebuild_parameter(data: TensorRecord, *_: Any) -> TensorRecord:
    return data


def _size(values: Any = ()) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _constant(*args: Any) -> None:
    return None


class _Function:
    """One of our functions as a pickle may call it; a pickle cannot change anything on it."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: Any) -> None:
        raise UnsafeFile("a pickle sets the state of a function")


_DCP = "torch.distributed.checkpoint.metadata"
ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _Function(_encode),
    ("torch", "Size"): _Function(_size),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_rebuild_parameter),
    ("torch.serialization", "_get_layout"): _Function(_constant),
    ("numpy", "dtype"): _NumpyDtype,
    ("numpy", "ndarray"): "numpy.ndarray",
    ("numpy._core.multiarray", "_reconstruct"): _NumpyArray,
    ("numpy.core.multiarray", "_reconstruct"): _NumpyArray,
    (_DCP, "Metadata"): Metadata,
    (_DCP, "TensorStorageMetadata"): TensorStorageMetadata,
    (_DCP, "BytesStorageMetadata"): BytesStorageMetadata,
    (_DCP, "ChunkStorageMetadata"): ChunkStorageMetadata,
    (_DCP, "TensorProperties"): TensorProperties,
    (_DCP, "MetadataIndex"): MetadataIndex,
    (_DCP, "StorageMeta"): StorageMeta,
    (_DCP, "_MEM_FORMAT_ENCODING"): _Function(_constant),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): StorageInfo,
    ("olmo_core.distributed.checkpoint.filesystem", "_StorageInfo"): StorageInfo,
    **{("torch", name): dtype for name, dtype in STORAGE_DTYPES.items()},
    **{("torch", dtype): dtype for dtype in ITEM_BYTES},
}


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
        if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and pid[1] in ITEM_BYTES):
            raise UnsafeFile(f"{self.source} has a persistent id that is no tensor storage")
        return StorageRecord(key=str(pid[2]), dtype=pid[1], num_elements=int(pid[4]))


def read_pickle(content: bytes, source: str) -> Any:
    """Unpickle with the allow-list.

    Raises:
        UnsafeFile: it names anything else, or asks for absurd memory.
        CorruptFile: it is not a whole pickle.
    """
    _check_opcodes(content, source)
    try:
        return _resolve_arrays(_Reader(io.BytesIO(content), source).load())
    except (UnsafeFile, CorruptFile):
        raise
    except Exception as error:  # a damaged pickle fails in any way that Python can
        raise CorruptFile(f"{source} is not a whole pickle: {error}") from error


def _check_opcodes(content: bytes, source: str) -> None:
    """Refuse memo indices beyond the number of bytes: unpicklers allocate up to the index before noticing."""
    try:
        for opcode, argument, _ in pickletools.genops(content):
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


def _resolve_arrays(value: Any, done: dict[int, Any] | None = None) -> Any:
    """Arrays in place of their records; each object once, however often a pickle shares it."""
    done = {} if done is None else done
    if id(value) not in done:
        if isinstance(value, _NumpyArray):
            done[id(value)] = value.resolve()
        elif isinstance(value, dict):
            done[id(value)] = {key: _resolve_arrays(item, done) for key, item in value.items()}
        elif isinstance(value, list | tuple):
            done[id(value)] = type(value)(_resolve_arrays(item, done) for item in value)
        else:
            return value
    return done[id(value)]


class TorchArchive:
    """A torch.save zip: its pickled value with `TensorRecord`s, and the bytes behind each."""

    def __init__(self, file: BinaryIO, source: str, num_bytes: int) -> None:
        self.source = source
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, OSError) as error:
            raise CorruptFile(f"{source} is not a torch archive: {error}") from error
        names = [name for name in self._zip.namelist() if PurePosixPath(name).name == "data.pkl"]
        if len(names) != 1:
            raise CorruptFile(f"{source} is not a torch archive: it holds {len(names)} data.pkl")
        self._prefix = names[0][: -len("data.pkl")]
        for info in self._zip.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > num_bytes:
                raise UnsafeFile(f"{source}: entry {info.filename} is compressed or claims {info.file_size} bytes")
        pickled = self._read("data.pkl")
        if len(pickled) > MAX_PICKLE_BYTES:
            raise UnsafeFile(f"{source}: a pickle of {len(pickled)} bytes")
        self.value = read_pickle(pickled, source)

    def _read(self, name: str) -> bytes:
        try:
            return self._zip.read(self._prefix + name)
        except (KeyError, zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError) as error:
            raise CorruptFile(f"{self.source}: entry {name} is missing or damaged: {error}") from error

    def storage_bytes(self, tensor: TensorRecord) -> bytes:
        """All bytes of the tensor's storage; its size is checked against what the pickle declares."""
        raw = self._read(f"data/{tensor.storage.key}")
        declared = tensor.storage.num_elements * ITEM_BYTES[tensor.storage.dtype]
        if len(raw) != declared:
            raise CorruptFile(f"{self.source}: storage {tensor.storage.key} has {len(raw)} bytes, not {declared}")
        return raw


def read_torch_archive(path: Path) -> TorchArchive:
    """Open a .pt file.

    Raises:
        MissingFile, CorruptFile, UnsafeFile
    """
    try:
        return TorchArchive(io.BytesIO(path.read_bytes()), str(path), path.stat().st_size)
    except FileNotFoundError as error:
        raise MissingFile(f"{path} is not there") from error
