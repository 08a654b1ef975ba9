"""Instances that are put together from pieces of token files, as arrays.

Most runs cut their files at fixed lengths, and arithmetic tells where an instance lies (`TokenFile`). Others pad, pack
or run documents together in a shuffled order; the rules in `data_index.instances` compute their pieces once, at `add`,
and everything after that (reader, index, forks) reads the arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import CorruptFile
from data_index.files import atomic_file, sha256_of_file
from data_index.run import PieceFile

ARRAYS = {"first": np.int64, "file": np.int32, "start": np.int64, "stop": np.int64}


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

    def lengths(self) -> np.ndarray:
        """Tokens of each instance, padding not counted; int64 of shape [instances]."""
        ends = np.append(0, np.cumsum(self.stop - self.start))
        return ends[self.first[1:]] - ends[self.first[:-1]]


def write_pieces(pieces: Pieces, path: Path) -> PieceFile:
    """Write the arrays as one file (numpy's .npz, uncompressed) and describe it."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        arrays: dict[str, Any] = {name: np.asarray(getattr(pieces, name), dtype) for name, dtype in ARRAYS.items()}
        np.savez(file, **arrays)
    return PieceFile(
        path=path, num_instances=pieces.num_instances, num_pieces=len(pieces.file), sha256=sha256_of_file(path)
    )


def read_pieces(described: PieceFile) -> Pieces:
    """The arrays of a piece file.

    Raises:
        MissingFile, CorruptFile: it is not the file that was described.
    """
    if (actual := sha256_of_file(described.path)) != described.sha256:
        raise CorruptFile(
            f"{described.path} is not the file of pieces that run.toml names (sha256 {actual[:12]}… instead of "
            f"{described.sha256[:12]}…): register the run again"
        )
    try:
        with np.load(described.path, allow_pickle=False) as file:
            pieces = Pieces(**{name: file[name] for name in ARRAYS})
    except Exception as error:  # numpy evaluates headers, which fails in many ways
        raise CorruptFile(f"{described.path} is not a file of pieces: {error}") from error
    if (pieces.num_instances, len(pieces.file)) != (described.num_instances, described.num_pieces):
        raise CorruptFile(f"{described.path} holds {pieces.num_instances} instances, not {described.num_instances}")
    return pieces
