"""Reader of Megatron's `.idx` files: where each sequence of a `.bin` file lies, and where documents start.

Little endian: magic, uint64 version, uint8 dtype code, uint64 number of sequences, uint64 number of document starts,
then int32 sizes and int64 byte pointers of the sequences, int64 document starts. The numbers are hostile until they
agree with the sizes of both files; nothing is allocated before.

Source: megatron/data/indexed_dataset.py, MMapIndexedDataset, of EleutherAI/gpt-neox @ ea7aefd8 and of
bigscience-workshop/Megatron-DeepSpeed @ 8387ae17
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_index.errors import CorruptFile, UnknownLayout, UnsafeFile
from data_index.files import read_range, require_file

if TYPE_CHECKING:
    from data_index.remote.path import Place

MAGIC = b"MMIDIDX\0\0"
OLD_MAGIC = b"TNTIDX\0\0"
HEADER = struct.Struct("<9sQBQQ")
BYTES_PER_SEQUENCE = 4 + 8  # size and pointer

# Codes 6 and 7 mean float32 and float64 to GPT-NeoX, float64 and float32 to Megatron-core, float64 twice to
# Megatron-DeepSpeed; the .bin file's size decides.
DTYPES: dict[int, tuple[str, ...]] = {
    1: ("uint8",),
    2: ("int8",),
    3: ("int16",),
    4: ("int32",),
    5: ("int64",),
    6: ("float32", "float64"),
    7: ("float32", "float64"),
    8: ("uint16",),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MegatronIndex:
    """Where the sequences of a `.bin` file lie.

    Attributes:
        dtype: numpy name of one token's type.
        sizes: int32 of shape [sequences]; tokens of each.
        pointers: int64 of shape [sequences]; bytes from the start of the `.bin` file.
        document_starts: int64; the sequence at which each document starts, and the number of sequences at the end. 0
            alone where the trainer's tools kept no documents.
    """

    path: Path
    dtype: str
    sizes: np.ndarray
    pointers: np.ndarray
    document_starts: np.ndarray

    @property
    def num_sequences(self) -> int:
        return len(self.sizes)

    @property
    def num_tokens(self) -> int:
        return int(self.sizes.sum(dtype=np.int64))

    def starts(self) -> np.ndarray:
        """First token of each sequence, counted from the start of the `.bin` file; int64 of shape [sequences]."""
        return self.pointers // np.dtype(self.dtype).itemsize


def read_megatron_index(path: Path, bin_bytes: int) -> MegatronIndex:
    """Read an `.idx` file and prove that it fits a `.bin` file of `bin_bytes` bytes (all its shards together).

    Raises:
        MissingFile
        UnknownLayout: the old TNTIDX format, or another version.
        CorruptFile: not an index, truncated, or at odds with the `.bin` file.
        UnsafeFile: it claims more than it holds, or points outside the `.bin` file.
    """
    code, num_sequences, num_starts = _read_header(path)
    expected = HEADER.size + BYTES_PER_SEQUENCE * num_sequences + 8 * num_starts
    size = require_file(path)
    if expected > size:
        raise UnsafeFile(
            f"{path} claims {num_sequences:,} sequences and {num_starts:,} document starts, {expected:,} bytes in all, "
            f"and has {size:,}: it is truncated or not an index; get it again"
        )
    if expected < size:
        raise CorruptFile(f"{path} has {size - expected:,} bytes more than its header accounts for; get it again")
    raw = np.memmap(path, dtype=np.uint8, mode="r", offset=HEADER.size) if size > HEADER.size else np.empty(0, np.uint8)
    sizes = raw[: 4 * num_sequences].view("<i4")
    pointers = raw[4 * num_sequences : BYTES_PER_SEQUENCE * num_sequences].view("<i8")
    document_starts = raw[BYTES_PER_SEQUENCE * num_sequences :].view("<i8")
    if len(sizes) and int(sizes.min()) < 0:
        raise UnsafeFile(f"{path} has a sequence of {int(sizes.min())} tokens; get it again")
    dtype = _dtype_of(path, code, sizes, pointers, bin_bytes)
    _check_pointers(path, np.dtype(dtype).itemsize, sizes, pointers, bin_bytes)
    _check_document_starts(path, document_starts, num_sequences)
    return MegatronIndex(path=path, dtype=dtype, sizes=sizes, pointers=pointers, document_starts=document_starts)


def read_index_header(path: Place) -> tuple[str, int]:
    """The dtype of the tokens and the number of sequences, from the first bytes of an index.

    Raises:
        MissingFile, UnknownLayout, CorruptFile
        AccessDenied, Unreachable, Offline: it is on a server.
    """
    code, num_sequences, _ = _read_header(path)
    if len(DTYPES[code]) > 1:
        raise CorruptFile(f"{path} names dtype code {code}, which is no whole number")
    return DTYPES[code][0], num_sequences


def _read_header(path: Place) -> tuple[int, int, int]:
    header = read_range(path, 0, min(HEADER.size, require_file(path)))
    if header.startswith(OLD_MAGIC):
        raise UnknownLayout(
            f"{path} is an index of Megatron's old format (TNTIDX), which is not read: convert the data with the "
            "trainer's own tools to the memory-mapped format (MMIDIDX)"
        )
    if not header.startswith(MAGIC):
        raise CorruptFile(f"{path} is not a Megatron index: it starts with {header[:9]!r} instead of {MAGIC!r}")
    if len(header) < HEADER.size:
        raise CorruptFile(f"{path} ends inside its header ({len(header)} of {HEADER.size} bytes); get it again")
    _, version, code, num_sequences, num_starts = HEADER.unpack(header)
    if version != 1:
        raise UnknownLayout(f"{path} is a Megatron index of version {version}; version 1 is read")
    if code not in DTYPES:
        raise CorruptFile(f"{path} names dtype code {code}; known are {', '.join(map(str, DTYPES))}")
    return code, num_sequences, num_starts


def _dtype_of(path: Path, code: int, sizes: np.ndarray, pointers: np.ndarray, bin_bytes: int) -> str:
    """The dtype of a code; where trainers disagree about it, the one that the pointers and the .bin file prove."""
    candidates = DTYPES[code]
    if len(candidates) == 1:
        return candidates[0]
    num_tokens = int(sizes.sum(dtype=np.int64))
    fitting = []
    for name in candidates:
        itemsize = np.dtype(name).itemsize
        follow_one_another = len(sizes) > 1 and (np.diff(pointers) == sizes[:-1].astype(np.int64) * itemsize).all()
        if num_tokens * itemsize == bin_bytes or follow_one_another:
            fitting.append(name)
    if len(fitting) != 1:
        raise CorruptFile(
            f"{path} names dtype code {code}, which is {' or '.join(candidates)} by trainer; neither the .bin file's "
            f"{bin_bytes:,} bytes for {num_tokens:,} tokens nor the pointers tell which: convert it to integer tokens"
        )
    return fitting[0]


def _check_pointers(path: Path, itemsize: int, sizes: np.ndarray, pointers: np.ndarray, bin_bytes: int) -> None:
    """Every sequence lies whole inside the .bin file. They need not follow one another."""
    if not len(pointers):
        return
    # Compared as a difference, because pointer + length may overflow.
    if int(pointers.min()) < 0 or (sizes.astype(np.int64) * itemsize > bin_bytes - pointers).any():
        outside = (pointers < 0) | (sizes.astype(np.int64) * itemsize > bin_bytes - pointers)
        first = int(np.flatnonzero(outside)[0])
        raise UnsafeFile(
            f"{path} puts sequence {first} ({int(sizes[first]):,} tokens of {itemsize} bytes) at byte "
            f"{int(pointers[first]):,}, outside the .bin file of {bin_bytes:,} bytes: the two files do not belong "
            "together, or one is truncated"
        )
    if (pointers % itemsize).any():
        raise CorruptFile(f"{path} has pointers that are no multiple of {itemsize} bytes, one token; get it again")


def _check_document_starts(path: Path, document_starts: np.ndarray, num_sequences: int) -> None:
    # GPT-NeoX leaves 0 alone when it merges files.
    whole = len(document_starts) > 0 and document_starts[0] == 0 and document_starts[-1] in (num_sequences, 0)
    if not whole or (np.diff(document_starts) < 0).any():
        raise CorruptFile(f"{path} has document starts that do not run from 0 to {num_sequences:,}; get it again")
