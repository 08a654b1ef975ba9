"""Token rows from raw little-endian files; the only token IO.

Files of every trainer read here are headerless arrays, also where they are called .npy. Instance i of a run lies in
the file that holds it, `(i - first_instance) * sequence_length` tokens from the file's start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from data_index.errors import CorruptFile, MissingFile, UnknownInstance
from data_index.files import BLOCK_BYTES
from data_index.run import Run, TokenFile

BlockHashes = Mapping[tuple[str, int], str]


class TokenReader:
    """Reads instances of a run; checks every block it touches against recorded hashes.

    Args:
        block_hashes: (file name, block number) -> sha256 of that 4 MiB block. None reads without checking.

    A block with no recorded hash is remembered in `first_seen`, so that the caller can say so and record it.
    """

    def __init__(self, run: Run, block_hashes: BlockHashes | None) -> None:
        self._starts = np.array([file.first_instance for file in run.files], dtype=np.int64)
        self._length = run.sequence_length
        self._run = run
        self._maps: dict[str, np.ndarray] = {}
        self._hashes = block_hashes
        self._checked: set[tuple[str, int]] = set()
        self.first_seen: dict[tuple[str, int], str] = {}

    def place_of(self, instance: int) -> tuple[TokenFile, int]:
        """The file of an instance and its offset in tokens from the file's start.

        Raises:
            UnknownInstance
        """
        if not 0 <= instance < self._run.num_instances:
            raise UnknownInstance(f"{self._run.name} has instances 0..{self._run.num_instances - 1}, not {instance}")
        file = self._run.files[int(np.searchsorted(self._starts, instance, side="right")) - 1]
        return file, (instance - file.first_instance) * self._length

    def rows(self, instances: Sequence[int] | np.ndarray) -> np.ndarray:
        """Token ids of instances, int64 of shape [len(instances), sequence_length].

        Raises:
            UnknownInstance, MissingFile, CorruptFile
        """
        rows = np.empty((len(instances), self._length), dtype=np.int64)
        for row, instance in enumerate(instances):
            file, offset = self.place_of(int(instance))
            rows[row] = self.read(file, offset, offset + self._length)
        return rows

    def read(self, file: TokenFile, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of a file, in the file's own dtype; a copy-free view where it can be."""
        tokens = self._map(file)
        if self._hashes is not None:
            item = tokens.dtype.itemsize
            for block in range(start * item // BLOCK_BYTES, max(stop * item - 1, 0) // BLOCK_BYTES + 1):
                self._check(file, block)
        return tokens[start:stop]

    def _map(self, file: TokenFile) -> np.ndarray:
        if file.name not in self._maps:
            try:
                size = file.path.stat().st_size
            except FileNotFoundError as error:
                raise MissingFile(f"{file.path}, a token file of {self._run.name}, is not there") from error
            if size != file.num_bytes:
                raise CorruptFile(
                    f"{file.path} has {size:,} bytes; {self._run.name} was indexed with {file.num_bytes:,}: it was "
                    "truncated or replaced; restore the file"
                )
            dtype = np.dtype(file.dtype).newbyteorder("<")
            whole = size // dtype.itemsize
            self._maps[file.name] = (
                np.memmap(file.path, dtype=dtype, mode="r", shape=(whole,)) if whole else np.empty(0, dtype)
            )
        return self._maps[file.name]

    def _check(self, file: TokenFile, block: int) -> None:
        key = (file.name, block)
        if key in self._checked:
            return
        raw = self._map(file).view(np.uint8)[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        actual = hashlib.sha256(raw.tobytes()).hexdigest()
        expected = self._hashes.get(key) if self._hashes else None
        if expected is None:
            self.first_seen[key] = actual
        elif expected != actual:
            raise CorruptFile(
                f"{file.path} changed: block {block} (bytes {block * BLOCK_BYTES:,}.."
                f"{min((block + 1) * BLOCK_BYTES, file.num_bytes):,}) of {file.name} has sha256 {actual[:12]}… instead "
                f"of {expected[:12]}…; restore the file, or read it as it is with --no-verify"
            )
        self._checked.add(key)
