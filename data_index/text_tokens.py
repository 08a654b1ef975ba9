"""The tokens of whole texts (documents or instances), one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from data_index.errors import CorruptFile
from data_index.repeated_text import without_end
from data_index.run import Run, TokenFile
from data_index.run_check import LINES
from data_index.tokens import TokenReader

TOKENS_AT_ONCE = 2**22

# (file number, start, stop): tokens of one file, half-open.
Piece = tuple[int, int, int]


class TextTokens(Protocol):
    """Some texts of a run, numbered from 0."""

    lengths: np.ndarray  # int64 of shape [texts]; tokens, with padding and end tokens

    def pieces(self, number: int) -> list[Piece]:
        """Where a text lies."""

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Tokens of texts, without padding and end tokens; what lies on servers is fetched some texts at a time.

        Raises:
            MissingFile, CorruptFile
        """


def text_tokens(reader: TokenReader, texts: Mapping[str, np.ndarray]) -> TextTokens:
    """The tokens of documents (columns id, file, start, stop) or of instances (column id).

    Raises:
        CorruptFile: a document lies in no token file of the run, or beyond the end of one.
    """
    return DocumentTokens(reader, texts) if "file" in texts else InstanceTokens(reader, texts["id"])


def parts(lengths: np.ndarray, most: int) -> Iterator[range]:
    """Stretches of texts with `most` tokens, or a text more."""
    passed = np.cumsum(lengths) // most
    borders = [0, *(np.flatnonzero(np.diff(passed)) + 1).tolist(), len(lengths)]
    yield from (range(first, last) for first, last in zip(borders, borders[1:], strict=False) if first < last)


class DocumentTokens:
    def __init__(self, reader: TokenReader, texts: Mapping[str, np.ndarray]) -> None:
        self._reader = reader
        numbers = {file.name: number for number, file in enumerate(reader.run.files)}
        self._file = np.array([numbers.get(name, -1) for name in texts["file"]], dtype=np.int64)
        self._start, self._stop = texts["start"], texts["stop"]
        self.lengths = self._stop - self._start
        sizes = np.array([*(num_file_tokens(reader.run, file) for file in reader.run.files), -1], dtype=np.int64)
        wrong = (self._start < 0) | (self.lengths < 0) | (self._stop > sizes[self._file])
        if wrong.any():
            self._refuse(texts, int(np.argmax(wrong)), sizes)

    def _refuse(self, texts: Mapping[str, np.ndarray], number: int, sizes: np.ndarray) -> None:
        file = int(self._file[number])
        raise CorruptFile(
            f"document {texts['id'][number]} of {self._reader.run.name} is said to be tokens {self._start[number]}.."
            f"{self._stop[number]} of {texts['file'][number]}, which "
            + (f"has {sizes[file]:,} tokens" if file >= 0 else "is no token file of the run")
            + ": the documents table was not made of these files"
        )

    def pieces(self, number: int) -> list[Piece]:
        return [(int(self._file[number]), int(self._start[number]), int(self._stop[number]))]

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        reader = self._reader
        for part in parts(self.lengths[np.asarray(numbers, dtype=np.int64)], TOKENS_AT_ONCE):
            pieces = [piece for number in part for piece in self.pieces(numbers[number])]
            reader.fetch(pieces)
            for file, start, stop in pieces:
                yield without_end(_read(reader, reader.run.files[file], start, stop), reader.run.eos_token_id)


class InstanceTokens:
    def __init__(self, reader: TokenReader, instances: np.ndarray) -> None:
        self._reader, self._instances = reader, instances
        self.lengths = np.full(len(instances), reader.run.sequence_length, dtype=np.int64)

    def pieces(self, number: int) -> list[Piece]:
        return self._reader.pieces_of(int(self._instances[number]))

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        chosen = self._instances[np.asarray(numbers, dtype=np.int64)]
        for part in parts(self.lengths[: len(chosen)], TOKENS_AT_ONCE):
            some = chosen[part.start : part.stop]
            for row, length in zip(self._reader.rows(some), self._reader.num_tokens_of(some).tolist(), strict=True):
                yield row[:length]


def num_file_tokens(run: Run, file: TokenFile) -> int:
    if file.dtype == LINES:
        return file.num_instances * run.sequence_length
    return file.num_bytes // np.dtype(file.dtype).itemsize


def _read(reader: TokenReader, file: TokenFile, start: int, stop: int) -> np.ndarray:
    """Tokens of a file; of lines of JSON, line by line."""
    if file.dtype != LINES:
        return reader.read(file, start, stop)
    length = reader.run.sequence_length
    borders = [start, *range((start // length + 1) * length, stop, length), stop]
    lines = [reader.read(file, first, last) for first, last in zip(borders, borders[1:], strict=False) if first < last]
    return np.concatenate(lines) if lines else np.empty(0, dtype=np.int64)
