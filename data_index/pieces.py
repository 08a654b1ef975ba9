"""Instances that are put together from pieces of token files, as arrays.

Most runs cut their files at fixed lengths, and arithmetic tells where an instance lies (`TokenFile`). Others pad, pack
or run documents together in a shuffled order; the rules in `data_index.instances` compute their pieces once, at `add`,
and everything after that (reader, index, forks) reads the arrays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_index.errors import CorruptFile, MissingFile
from data_index.files import require_file, sha256_of_file, write_npy
from data_index.run import StoredPieces

HASH_ALWAYS_BYTES = 2**30
ARRAYS: Mapping[str, type] = {"first": np.int64, "file": np.int32, "start": np.int64, "stop": np.int64}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pieces:
    """Instance i is made of pieces first[i] .. first[i + 1], laid end to end; what they leave of the row is padding.

    Attributes:
        first: int64 of shape [instances + 1], from 0, never falling.
        file: int32 of shape [pieces]; the number of a token file, in the run's order.
        start, stop: int64 of shape [pieces]; tokens of that file, half-open.
    """

    first: np.ndarray
    file: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    @property
    def num_instances(self) -> int:
        return len(self.first) - 1

    def of_instance(self, instance: int) -> list[tuple[int, int, int]]:
        """(file, start, stop) of each piece of an instance, in row order."""
        rows = slice(int(self.first[instance]), int(self.first[instance + 1]))
        columns = (self.file[rows], self.start[rows], self.stop[rows])
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def of_instances(self, instances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows, pieces): the pieces of instances one after another, and which of `instances` each belongs to."""
        first = self.first[instances]
        counts = self.first[instances + 1] - first
        rows = np.repeat(np.arange(len(instances)), counts)
        return rows, np.arange(len(rows)) + np.repeat(first - (np.cumsum(counts) - counts), counts)

    def lengths_of(self, instances: np.ndarray) -> np.ndarray:
        """Tokens of some instances, padding not counted; int64 of shape [len(instances)]."""
        rows, pieces = self.of_instances(instances)
        lengths = np.zeros(len(instances), dtype=np.int64)
        np.add.at(lengths, rows, self.stop[pieces] - self.start[pieces])
        return lengths

    def lengths(self) -> np.ndarray:
        """Tokens of each instance, padding not counted; int64 of shape [instances]."""
        ends = np.append(0, np.cumsum(self.stop - self.start))
        return ends[self.first[1:]] - ends[self.first[:-1]]


def write_pieces(pieces: Pieces, folder: Path) -> StoredPieces:
    """Write each array as an .npy file of the folder, and describe them."""
    for name, dtype in ARRAYS.items():
        write_npy(folder / f"{name}.npy", np.asarray(getattr(pieces, name), dtype))
    return StoredPieces(
        path=folder,
        num_instances=pieces.num_instances,
        num_pieces=len(pieces.file),
        sha256=_hash_of(folder),
    )


def _hash_of(folder: Path) -> str:
    """sha256 over the hashes of the files, in the order of ARRAYS."""
    return hashlib.sha256("".join(sha256_of_file(folder / f"{name}.npy") for name in ARRAYS).encode()).hexdigest()


def read_pieces(stored: StoredPieces, *, verify: bool | None = None) -> Pieces:
    """The arrays of a folder of pieces, mapped.

    Args:
        verify: compare with the hash; None: where that takes less than a second or so (`audit --deep` always does).
    Raises:
        MissingFile, CorruptFile: they are not the pieces that were described.
    """
    if verify is None:
        verify = 16 * stored.num_pieces < HASH_ALWAYS_BYTES
    if verify and (actual := _hash_of(stored.path)) != stored.sha256:
        raise CorruptFile(
            f"{stored.path} does not hold the pieces that run.toml names (sha256 {actual[:12]}… instead of "
            f"{stored.sha256[:12]}…): register the run again"
        )
    arrays = {name: _mapped(stored.path / f"{name}.npy", dtype) for name, dtype in ARRAYS.items()}
    pieces = Pieces(**arrays)
    counts = {len(arrays[name]) for name in ("file", "start", "stop")}
    if (pieces.num_instances, counts) != (stored.num_instances, {stored.num_pieces}):
        raise CorruptFile(f"{stored.path} holds {pieces.num_instances} instances, not {stored.num_instances}")
    return pieces


def _mapped(path: Path, dtype: type) -> np.ndarray:
    try:
        require_file(path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except MissingFile as error:
        raise MissingFile(f"{path} is not there: register the run again") from error
    except Exception as error:  # numpy evaluates the header, which fails in many ways
        raise CorruptFile(f"{path} is not a whole .npy file: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != dtype:
        raise CorruptFile(f"{path} is not a row of {np.dtype(dtype).name}")
    return array
