"""Token rows from files; the only token IO.

Files of every trainer read here are headerless arrays, also where they are called .npy, or lines of JSON. Most
instances lie in one file, `(i - first_instance) * sequence_length` tokens from its first one; some are put together
from pieces. Of files on servers, the rows that are asked for are fetched, and kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_index.errors import CorruptFile, MissingFile, UnknownInstance
from data_index.files import BLOCK_BYTES, require_file
from data_index.pieces import Pieces, read_pieces
from data_index.run import Run, TokenFile
from data_index.run_check import LINES

if TYPE_CHECKING:
    from data_index.remote.ranges import Stretch

BlockHashes = Mapping[tuple[str, int], str]


class TokenReader:
    """Reads instances of a run; checks every block it touches against recorded hashes.

    Args:
        block_hashes: (name, block number) -> sha256 of that 4 MiB block; names as `hashed_files` gives them. None reads
            without checking.

    A block with no recorded hash is remembered in `first_seen`, so that the caller can say so and record it.
    """

    def __init__(self, run: Run, block_hashes: BlockHashes | None) -> None:
        self.run = run
        self._cut = [number for number, file in enumerate(run.files) if file.num_instances]
        self._starts = np.array([run.files[number].first_instance for number in self._cut], dtype=np.int64)
        self._length = run.sequence_length
        self._num_instances = run.num_instances  # a sum over all files
        self._maps: dict[str, np.ndarray] = {}
        self._hashes = block_hashes
        self._remote = any(not isinstance(file.path, Path) for file in run.files)
        self._checked: set[tuple[str, int]] = set()
        self.first_seen: dict[tuple[str, int], str] = {}

    @cached_property
    def pieces(self) -> Pieces | None:
        return read_pieces(self.run.pieces) if self.run.pieces else None

    def pieces_of(self, instance: int) -> list[tuple[int, int, int]]:
        """(file number, start, stop) of the stretches of tokens that an instance is made of, in row order.

        Raises:
            UnknownInstance
        """
        if not 0 <= instance < self._num_instances:
            raise UnknownInstance(f"{self.run.name} has instances 0..{self._num_instances - 1}, not {instance}")
        if self.pieces is not None and instance < self.pieces.num_instances:
            return self.pieces.of_instance(instance)
        number = self._cut[int(np.searchsorted(self._starts, instance, side="right")) - 1]
        file = self.run.files[number]
        start = file.first_token + (instance - file.first_instance) * self._length
        found, missing = [], self._length
        while missing:
            stop = min(start + missing, self.num_tokens_in(number))
            if stop > start:  # a file may be empty
                found.append((number, start, stop))
            number, missing, start = number + 1, missing - (stop - start), 0
        return found

    def num_tokens_in(self, number: int) -> int:
        """Tokens of a file, by its number."""
        file = self.run.files[number]
        if file.dtype == LINES:
            return file.num_instances * self._length
        return file.num_bytes // np.dtype(file.dtype).itemsize

    def place_of(self, instance: int) -> tuple[TokenFile, int]:
        """The file that an instance begins in, and its offset in tokens from the file's start.

        Raises:
            UnknownInstance
        """
        pieces = self.pieces_of(instance)
        number, start, _ = pieces[0] if pieces else (0, 0, 0)
        return self.run.files[number], start

    def rows(self, instances: Sequence[int] | range | np.ndarray) -> np.ndarray:
        """Token ids of instances, int64 of shape [len(instances), sequence_length]; short ones are padded.

        Raises:
            UnknownInstance, MissingFile, CorruptFile
        """
        padding = self.run.pad_token_id or 0
        rows = np.full((len(instances), self._length), padding, dtype=np.int64)
        placed = [self.pieces_of(int(instance)) for instance in instances]
        self.fetch([piece for pieces in placed for piece in pieces])
        for row, pieces in enumerate(placed):
            filled = 0
            for number, start, stop in pieces:
                rows[row, filled : filled + stop - start] = self.read(self.run.files[number], start, stop)
                filled += stop - start
        return rows

    def stretches(self, pieces: Iterable[tuple[int, int, int]]) -> list[Stretch]:
        """The bytes of pieces (file number, start, stop) that lie in files on servers."""
        found: list[Stretch] = []
        for number, start, stop in pieces:
            file = self.run.files[number]
            if not isinstance(file.path, Path):
                item = np.dtype(file.dtype).itemsize
                found.append((file.path, start * item, stop * item))
        return found

    def fetch(self, pieces: Iterable[tuple[int, int, int]]) -> None:
        """Fetch at once what lies on servers; nothing for files on disk.

        Raises:
            MissingFile, AccessDenied, Unreachable, Offline, ChangedFile, CorruptFile, DiskFull
        """
        if self._remote and (stretches := self.stretches(pieces)):
            from data_index.remote.ranges import fetch_ranges

            fetch_ranges(stretches)

    def counts_as_target(self, instances: Sequence[int] | np.ndarray) -> np.ndarray:
        """What padding and label-mask files leave in the loss: bool of shape [len(instances), sequence_length].

        Raises:
            UnknownInstance, MissingFile, CorruptFile
        """
        counts = np.ones((len(instances), self._length), dtype=bool)
        if self.run.pieces is None and not any(file.label_mask for file in self.run.files):
            return counts
        for row, instance in enumerate(instances):
            filled = 0
            for number, start, stop in self.pieces_of(int(instance)):
                file = self.run.files[number]
                if file.label_mask is not None:
                    counts[row, filled : filled + stop - start] = self._label_mask(file, start, stop)
                filled += stop - start
            counts[row, filled:] = False
        return counts

    def num_tokens_of(self, instances: Sequence[int] | np.ndarray) -> np.ndarray:
        """Tokens of each instance before its padding, int64 of shape [len(instances)]."""
        if self.run.pieces is None:
            return np.full(len(instances), self._length)
        assert self.pieces is not None
        if len(instances) and 0 <= np.min(instances) <= np.max(instances) < self.pieces.num_instances:
            return self.pieces.lengths_of(np.asarray(instances))
        return np.array([sum(stop - start for _, start, stop in self.pieces_of(int(i))) for i in instances])

    def read(self, file: TokenFile, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of a file, in the file's own dtype; a copy-free view where it can be."""
        if file.dtype == LINES:
            return self._read_line(file, start, stop)
        dtype = np.dtype(file.dtype).newbyteorder("<")
        first, last = start * dtype.itemsize, stop * dtype.itemsize
        if not isinstance(file.path, Path):
            return self._plausible(file, start, np.frombuffer(file.path.read(first, last), dtype))
        raw = self._map(file)
        self._check_bytes(file.name, file.on_disk, raw, first, last)
        return raw[first:last].view(dtype)

    def mapped(self, number: int) -> np.ndarray | None:
        """All tokens of a file by its number, in its own dtype; None where that is no array on disk.

        Nothing is read yet: `check` what you take of it.

        Raises:
            MissingFile, CorruptFile
        """
        file = self.run.files[number]
        if file.dtype == LINES or not isinstance(file.path, Path):
            return None
        dtype = np.dtype(file.dtype).newbyteorder("<")
        raw = np.asarray(self._map(file))
        return raw[: len(raw) // dtype.itemsize * dtype.itemsize].view(dtype)

    def check(self, number: int, starts: np.ndarray, stops: np.ndarray) -> None:
        """Check the blocks of stretches of tokens of a file on disk against their hashes.

        Raises:
            CorruptFile
        """
        if self._hashes is not None and len(starts):
            file = self.run.files[number]
            item = np.dtype(file.dtype).itemsize
            ends = np.stack([starts * item, stops * item - 1], axis=1) // BLOCK_BYTES
            raw = self._map(file)
            for first, last in np.unique(ends, axis=0).tolist():
                self._check_bytes(file.name, file.on_disk, raw, first * BLOCK_BYTES, last * BLOCK_BYTES + 1)

    def cut_from(self, instances: np.ndarray) -> np.ndarray:
        """Numbers of the files that instances are cut from, shape [len(instances)]; -1 for those made of pieces."""
        numbers = np.append(-1, self._cut)[np.searchsorted(self._starts, instances, side="right")]
        in_pieces = self.pieces.num_instances if self.pieces is not None else 0
        return np.where(instances < in_pieces, -1, numbers)

    def _plausible(self, file: TokenFile, start: int, tokens: np.ndarray) -> np.ndarray:
        """Of a file on a server no hash of a stretch is known; what can be told is that these are no token ids.

        Raises:
            CorruptFile
        """
        limit = self.run.vocabulary_size
        if limit is not None and tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < limit:
            place = int(np.argmax((tokens < 0) | (tokens >= limit)))
            raise CorruptFile(
                f"{file.path} holds the token id {int(tokens[place])} at token {start + place:,}; {self.run.name} has "
                f"{limit:,} ids: these are not its data, or the server sent wrong content"
            )
        return tokens

    def _read_line(self, file: TokenFile, start: int, stop: int) -> np.ndarray:
        """Tokens of a file with one instance a line; all lines have `sequence_length` tokens."""
        line, within = divmod(start, self._length)
        first, last = (int(offset) for offset in self._line_offsets(file)[line : line + 2])
        if not 0 <= first <= last <= file.num_bytes:
            raise CorruptFile(f"{file.lines} places line {line + 1} at bytes {first}..{last} of {file.num_bytes}")
        raw = self._map(file)
        self._check_bytes(file.name, file.on_disk, raw, first, last)
        try:
            values = json.loads(raw[first:last].tobytes())["token_ids"]
            ids = np.array(values)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise CorruptFile(f"{file.path} line {line + 1} is no object with token_ids: {error}") from error
        if ids.size and (ids.dtype.kind != "i" or not 0 <= int(ids.min()) <= int(ids.max()) < 2**31):
            raise CorruptFile(f"{file.path} line {line + 1} holds what is no token id, such as {_odd_one(values)}")
        if ids.shape != (self._length,):
            raise CorruptFile(
                f"{file.path} line {line + 1} has {ids.size} token ids; the run's rows have {self._length}"
            )
        return ids[within : within + stop - start]

    def _line_offsets(self, file: TokenFile) -> np.ndarray:
        key = f"{file.name} lines"
        if key not in self._maps:
            if file.lines is None:
                raise CorruptFile(f"run.toml of {self.run.name} names no line offsets for {file.name}")
            try:
                raw = (
                    np.memmap(file.lines, dtype=np.uint8, mode="r")
                    if require_file(file.lines)
                    else np.empty(0, np.uint8)
                )
                self._check_bytes(key, file.lines, raw, 0, len(raw))
                offsets = np.load(file.lines, mmap_mode="r", allow_pickle=False)
            except MissingFile as error:
                raise MissingFile(f"{file.lines} is not there: register {self.run.name} again") from error
            except CorruptFile:
                raise
            except Exception as error:  # numpy evaluates the header, which fails in many ways
                raise CorruptFile(f"{file.lines} is not a whole .npy file: {error}") from error
            if offsets.shape != (file.num_instances + 1,) or offsets.dtype != np.int64:
                raise CorruptFile(f"{file.lines} does not hold the offsets of {file.num_instances} lines")
            self._maps[key] = offsets
        return self._maps[key]

    def _map(self, file: TokenFile) -> np.ndarray:
        """The bytes of a file, mapped."""
        if file.name not in self._maps:
            size = self._size(file)
            self._maps[file.name] = np.memmap(file.on_disk, dtype=np.uint8, mode="r") if size else np.empty(0, np.uint8)
        return self._maps[file.name]

    def _size(self, file: TokenFile) -> int:
        try:
            size = require_file(file.path)
        except MissingFile as error:
            raise MissingFile(f"{file.path}, a token file of {self.run.name}, is not there") from error
        if size != file.num_bytes:
            raise CorruptFile(
                f"{file.path} has {size:,} bytes; {self.run.name} was indexed with {file.num_bytes:,}: it was "
                "truncated or replaced; restore the file"
            )
        return size

    def _label_mask(self, file: TokenFile, start: int, stop: int) -> np.ndarray:
        key, path = f"{file.name} label mask", file.label_mask
        assert path is not None
        if key not in self._maps:
            wanted = file.num_bytes // np.dtype(file.dtype).itemsize
            try:
                size = require_file(path)
            except MissingFile as error:
                raise MissingFile(f"{path}, a label mask of {self.run.name}, is not there") from error
            if size != wanted:
                raise CorruptFile(f"{path} has {size:,} booleans; {file.name} has {wanted:,} tokens")
            self._maps[key] = np.memmap(path, dtype=np.uint8, mode="r") if size else np.empty(0, np.uint8)
        raw = self._maps[key]
        self._check_bytes(key, path, raw, start, stop)
        return raw[start:stop] != 0

    def _check_bytes(self, name: str, path: Path, raw: np.ndarray, start: int, stop: int) -> None:
        if self._hashes is not None:
            for block in range(start // BLOCK_BYTES, max(stop - 1, 0) // BLOCK_BYTES + 1):
                self._check(name, path, block, raw[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])

    def _check(self, name: str, path: Path, block: int, raw: np.ndarray) -> None:
        key = (name, block)
        if key in self._checked:
            return
        actual = hashlib.sha256(raw.data).hexdigest()
        expected = self._hashes.get(key) if self._hashes else None
        if expected is None:
            self.first_seen[key] = actual
        elif expected != actual:
            raise CorruptFile(
                f"{path} changed: block {block} (bytes {block * BLOCK_BYTES:,}.."
                f"{block * BLOCK_BYTES + len(raw):,}) of {name} has sha256 {actual[:12]}… instead of {expected[:12]}…; "
                "restore the file, or read it as it is with --no-verify"
            )
        self._checked.add(key)


def _odd_one(values: Any) -> str:
    """A value of a JSON list that is no token id, as far as it can be shown."""
    odd = (
        (v for v in values if type(v) is not int or not 0 <= v < 2**31) if isinstance(values, list) else iter([values])
    )
    return str(next(odd, values))[:80]


def hashed_files(run: Run) -> dict[str, Path]:
    """What rows are made of, on disk, with hashes by block: token files, label masks, line offsets."""
    found: dict[str, Path] = {}
    for file in (*run.files, *run.heldout):
        found |= {file.name: file.path} if isinstance(file.path, Path) else {}
        found |= {f"{file.name} label mask": file.label_mask} if file.label_mask else {}
        found |= {f"{file.name} lines": file.lines} if file.lines else {}
    return found


def pieces_of_instances(run: Run, instances: Sequence[int]) -> Pieces:
    """The pieces of some instances, as arrays."""
    reader = TokenReader(run, None)
    found = [reader.pieces_of(instance) for instance in instances]
    flat = [piece for pieces in found for piece in pieces]
    file, start, stop = np.array(flat, dtype=np.int64).reshape(-1, 3).T
    first = np.cumsum([0, *map(len, found)])
    return Pieces(first=first, file=file.astype(np.int32), start=start, stop=stop)
