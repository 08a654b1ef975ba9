"""What the names in a checkpoint's pickles become: records of ours that remember, and never act.

`ALLOWED` is the whole list. It holds what the trainers' files were seen to name (torch's tensors, distributed
checkpoints and sharded tensors, DeepSpeed's loss scale, paths, numpy's random state), and nothing else is found.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from data_index.errors import CorruptFile, UnsafeFile

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

    def __setstate__(self, state: Any) -> None:
        raise UnsafeFile("a pickle sets the state of a storage")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecord:
    """A tensor as the pickle describes it. Offset, shape and strides are in elements of the storage."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (*self.shape, *self.strides, self.offset, 0)
        # Without what is 0, a product beyond 64 bits would pass as nothing.
        largest = max(*numbers, 8 * math.prod(n for n in self.shape if n))
        if min(numbers) < 0 or largest >= 2**63 or len(self.shape) != len(self.strides):
            raise UnsafeFile(f"a tensor claims shape {self.shape}, strides {self.strides}, offset {self.offset}")
        if self.offset + self.extent > self.storage.num_elements or self.num_elements > self.storage.num_elements:
            raise UnsafeFile(f"a tensor of shape {self.shape} reaches past its storage of {self.storage.num_elements}")

    def __setstate__(self, state: Any) -> None:
        # Records with slots would let a pickle set their fields, past the checks above.
        raise UnsafeFile("a pickle sets the state of a tensor")

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def extent(self) -> int:
        """Elements from the tensor's first to its last in the storage, both counted."""
        if not self.num_elements:
            return 0
        return 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))


# --- objects ---------------------------------------------------------------------------------------------------------


class Inert:
    """An object that only remembers what the pickle gave it."""

    state: Any = None

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def get(self, name: str) -> Any:
        # A class with slots is pickled as a pair, its attributes in the second half.
        state = self.state[1] if isinstance(self.state, tuple) and len(self.state) == 2 else self.state
        if not isinstance(state, dict) or name not in state:
            raise CorruptFile(f"a {type(self).__name__} record lacks {name!r}")
        return state[name]


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


class ShardedTensorMetadata(Inert):
    pass


class ShardMetadata(Inert):
    pass


class Shard(Inert):
    pass


class ProcessGroupState(Inert):
    pass


class RemoteDevice(Inert):
    pass


class ShardingSpec(Inert):
    pass


class LossScaler(Inert):
    """DeepSpeed's, static or dynamic."""


class FragmentAddress(Inert):
    """Where DeepSpeed's ranks hold a parameter, of its optimizer's flat group."""


class ShardedTensor(Inert):
    """One rank's view of a tensor cut over ranks: the shards it holds, and where every rank's lie.

    Attributes:
        local: `Shard`s with `tensor` (a TensorRecord) and `metadata` (a ShardMetadata).
        metadata: a ShardedTensorMetadata with `size` and `shards_metadata`.
    """

    def __init__(self, local: Any, metadata: Any) -> None:
        if not isinstance(local, list) or not isinstance(metadata, ShardedTensorMetadata):
            raise CorruptFile("a sharded tensor in a pickle has no shards or no metadata")
        self.local, self.metadata = local, metadata


class ShardParamInfo(tuple[Any, ...]):
    """(in_shard, offset_in_shard, numel_in_shard, intra_param_start_idx, intra_param_end_idx) of FSDP."""

    def __new__(cls, *values: Any) -> ShardParamInfo:
        return super().__new__(cls, values)

    def __setstate__(self, state: Any) -> None:
        raise UnsafeFile("a pickle sets the state of a tuple")


class NumpyDtype(Inert):
    """numpy.dtype('f8', False, True) and the like; never an object dtype."""

    def resolve(self) -> np.dtype:
        code = self.args[0] if self.args else ""
        if not isinstance(code, str) or code not in {
            "u1",
            "u2",
            "u4",
            "u8",
            "i1",
            "i2",
            "i4",
            "i8",
            "f2",
            "f4",
            "f8",
            "b1",
        }:
            raise UnsafeFile(f"a numpy array of dtype {shown(code)} is not read from a pickle")
        return np.dtype(code)


class NumpyArray(Inert):
    """numpy's _reconstruct: filled from its state (version, shape, dtype, fortran, bytes)."""

    def resolve(self) -> np.ndarray:
        try:
            _, shape, dtype, fortran, raw = self.state
            if fortran or not isinstance(raw, bytes):
                raise CorruptFile("a numpy array in a pickle is not in C order")
            return np.frombuffer(raw, dtype=dtype.resolve()).reshape(shape)
        except (TypeError, ValueError, AttributeError) as error:
            raise CorruptFile(f"a numpy array in a pickle cannot be read: {error}") from error


def shown(value: Any) -> str:
    """A value for a message; what may hold others is named by its kind, because writing it out might never end."""
    return repr(value)[:80] if isinstance(value, str | bool | float | None) else f"a {type(value).__name__}"


# --- functions -------------------------------------------------------------------------------------------------------


class Function:
    """One of our functions as a pickle may call it; a pickle cannot change anything on it."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: Any) -> None:
        raise UnsafeFile("a pickle sets the state of a function")


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise UnsafeFile(f"a pickle encodes bytes as {shown(encoding)}")
    return text.encode("latin-1")


def _default_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _path(*parts: str) -> str:
    return str(PurePosixPath(*parts))


def _rebuild_tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> TensorRecord:
    if not isinstance(storage, StorageRecord):
        raise UnsafeFile("a tensor in a pickle has no storage")
    return TensorRecord(storage=storage, offset=index(offset), shape=_size(shape), strides=_size(strides))


def _rebuild_parameter(data: TensorRecord, *_: Any) -> TensorRecord:
    return data


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """Tensors with attributes of their own, and sharded tensors, whose state holds all there is."""
    if function is REBUILD_TENSOR and kind == TENSOR:
        return function(*arguments)
    if function is REBUILD_WRAPPER and kind is ShardedTensor and isinstance(state, tuple) and len(state) == 5:
        return ShardedTensor(state[0], state[1])
    raise UnsafeFile("a pickle rebuilds something that is neither a tensor nor a sharded tensor")


def _nested_class(owner: Any, name: Any) -> Any:
    """getattr, which protocol 2 needs to name a class inside another; this one inside that one only."""
    if owner is ShardedTensor and name == "ProcessGroupState":
        return ProcessGroupState
    raise UnsafeFile(f"a pickle asks for the attribute {shown(name)}: refused, nothing was run")


def _size(values: Any = ()) -> tuple[int, ...]:
    return tuple(index(value) for value in values)


def _text(*args: Any) -> str:
    return args[0] if args and isinstance(args[0], str) else ""


def _number(value: Any) -> int:
    """A member of an enumeration of numbers, as its number."""
    return index(value)


def _members(values: Any = ()) -> list[Any]:
    """A set's members; what they are is of no matter here."""
    return list(values)


def _constant(*args: Any) -> None:
    return None


TENSOR = "torch.Tensor"
REBUILD_TENSOR = Function(_rebuild_tensor)
REBUILD_WRAPPER = Function(_constant)

_DCP = "torch.distributed.checkpoint.metadata"
_SHARD = "torch.distributed._shard"
ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): Function(_default_dict),  # the trainer's unshard script saves one
    ("__builtin__", "dict"): "dict",
    ("_codecs", "encode"): Function(_encode),
    ("pathlib", "PosixPath"): Function(_path),
    ("pathlib._local", "PosixPath"): Function(_path),  # as Python 3.13 names it
    ("torch", "Size"): Function(_size),
    ("torch", "Tensor"): TENSOR,
    ("torch", "device"): Function(_text),
    ("torch._utils", "_rebuild_tensor_v2"): REBUILD_TENSOR,
    ("torch._utils", "_rebuild_parameter"): Function(_rebuild_parameter),
    ("torch._utils", "_rebuild_wrapper_subclass"): REBUILD_WRAPPER,
    ("torch._tensor", "_rebuild_from_type_v2"): Function(_rebuild_from_type),
    ("torch.serialization", "_get_layout"): Function(_constant),
    ("numpy", "dtype"): NumpyDtype,
    ("numpy", "ndarray"): "numpy.ndarray",
    ("numpy._core.multiarray", "_reconstruct"): NumpyArray,
    ("numpy.core.multiarray", "_reconstruct"): NumpyArray,
    (_DCP, "Metadata"): Metadata,
    (_DCP, "TensorStorageMetadata"): TensorStorageMetadata,
    (_DCP, "BytesStorageMetadata"): BytesStorageMetadata,
    (_DCP, "ChunkStorageMetadata"): ChunkStorageMetadata,
    (_DCP, "TensorProperties"): TensorProperties,
    (_DCP, "MetadataIndex"): MetadataIndex,
    (_DCP, "StorageMeta"): StorageMeta,
    (_DCP, "_MEM_FORMAT_ENCODING"): Function(_constant),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): StorageInfo,
    ("olmo_core.distributed.checkpoint.filesystem", "_StorageInfo"): StorageInfo,
    ("__builtin__", "getattr"): Function(_nested_class),
    (f"{_SHARD}.sharded_tensor.api", "ShardedTensor"): ShardedTensor,
    (f"{_SHARD}.sharded_tensor.shard", "Shard"): Shard,
    (f"{_SHARD}.sharded_tensor.metadata", "ShardedTensorMetadata"): ShardedTensorMetadata,
    (f"{_SHARD}.sharded_tensor.metadata", "TensorProperties"): TensorProperties,
    (f"{_SHARD}.sharded_tensor.metadata", "MEM_FORMAT_ENCODING"): Function(_constant),
    (f"{_SHARD}.metadata", "ShardMetadata"): ShardMetadata,
    (f"{_SHARD}.sharding_spec.chunk_sharding_spec", "ChunkShardingSpec"): ShardingSpec,
    (f"{_SHARD}.sharding_spec.api", "EnumerableShardingSpec"): ShardingSpec,
    ("torch.distributed.remote_device", "_remote_device"): RemoteDevice,
    # FSDP's flat parameters, as torch before and since 2.2 names them.
    ("torch.distributed.fsdp.flat_param", "_ShardParamInfo"): ShardParamInfo,
    ("torch.distributed.fsdp._flat_param", "_ShardParamInfo"): ShardParamInfo,
    # DeepSpeed's checkpoints, as GPT-NeoX has them.
    ("__builtin__", "set"): Function(_members),
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"): LossScaler,
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"): LossScaler,
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"): Function(_number),
    ("deepspeed.utils.tensor_fragment", "fragment_address"): FragmentAddress,
    **{("torch", name): dtype for name, dtype in STORAGE_DTYPES.items()},
    **{("torch", dtype): dtype for dtype in ITEM_BYTES},
}
