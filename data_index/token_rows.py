"""From stretches of a token file to the stretches of instances that lie there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_index.pieces import Pieces
from data_index.run import TokenFile
from data_index.tokens import TokenReader


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Touched:
    """Stretches of instances: parallel int64 arrays; tokens start .. stop (exclusive) of the row."""

    instance: np.ndarray
    start: np.ndarray
    stop: np.ndarray


def expanded(count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For counts [2, 0, 1]: the row of each element, [0, 0, 2], and its number within the row, [0, 1, 0]."""
    row = np.repeat(np.arange(len(count)), count)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)


class CutRows:
    """A file that is cut at fixed lengths. Its first tokens may end an instance of the file before."""

    def __init__(self, reader: TokenReader, number: int) -> None:
        self._file: TokenFile = reader.run.files[number]
        self._length = reader.run.sequence_length
        before = self._file.first_instance - 1
        continues = self._file.first_token > 0 and before >= 0
        self._lowest = -1 if continues and number in {n for n, _, _ in reader.pieces_of(before)} else 0
        num_tokens = self._file.num_bytes // np.dtype(self._file.dtype).itemsize
        self.num_tokens = min(self._file.first_token + self._file.num_instances * self._length, num_tokens)

    def touched(self, first: np.ndarray, stop: np.ndarray) -> Touched:
        """
        Args:
            first, stop: half-open ranges of the file's tokens.
        """
        base = self._file.first_token
        low = np.maximum((first - base) // self._length, self._lowest)
        high = np.minimum((stop - 1 - base) // self._length, self._file.num_instances - 1)
        if (low != high).any():
            row, number = expanded(np.maximum(high - low + 1, 0))
            place, first, stop = low[row] + number, first[row], stop[row]
        else:
            place = low
        begin = base + place * self._length
        return Touched(
            instance=self._file.first_instance + place,
            start=np.maximum(first - begin, 0),
            stop=np.minimum(stop - begin, self._length),
        )


class PiecePlaces:
    """Where in its row each piece of the run's instances lies."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces = pieces

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.append(0, np.cumsum(self.pieces.stop - self.pieces.start))

    def of(self, piece: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The instance of each piece, and the token of the row at which the piece begins."""
        instance = np.searchsorted(self.pieces.first, piece, side="right") - 1
        return instance, self._ends[piece] - self._ends[self.pieces.first[instance]]


class PieceRows:
    """A file of which pieces were put together to instances; a token may be in many of them, or in none."""

    def __init__(self, reader: TokenReader, number: int, places: PiecePlaces) -> None:
        file, pieces = reader.run.files[number], places.pieces
        here = np.flatnonzero(pieces.file == number)
        self._places = places
        self._piece = here[np.argsort(pieces.start[here], kind="stable")]
        self._start, self._stop = pieces.start[self._piece], pieces.stop[self._piece]
        self._longest = int((self._stop - self._start).max(initial=0))
        self.num_tokens = file.num_bytes // np.dtype(file.dtype).itemsize if len(here) else 0

    def touched(self, first: np.ndarray, stop: np.ndarray) -> Touched:
        """
        Args:
            first, stop: half-open ranges of the file's tokens that rise and do not overlap.
        """
        if not len(first):
            return Touched(instance=first, start=first, stop=stop)
        near = slice(
            int(np.searchsorted(self._start, first[0] - self._longest)), int(np.searchsorted(self._start, stop[-1]))
        )
        begin, end = self._start[near], self._stop[near]
        lowest = np.searchsorted(stop, begin, side="right")
        row, number = expanded(np.maximum(np.searchsorted(first, end) - lowest, 0))
        hit = lowest[row] + number
        instance, offset = self._places.of(self._piece[near][row])
        return Touched(
            instance=instance,
            start=offset + np.maximum(first[hit] - begin[row], 0),
            stop=offset + np.minimum(stop[hit], end[row]) - begin[row],
        )
