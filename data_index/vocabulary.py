"""A vocabulary sorted by its bytes, so that the tokens that begin, or end, with some bytes are one range.

Arrays by token id have one element more than there are tokens: the wall, which stands for no text and ends every
occurrence. Ids beyond the vocabulary are looked up as the wall.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

NO_RANK = -2


def looked_up(table: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Elements of a table by token id; ids beyond it get its last one."""
    return np.take(table, tokens, mode="clip")


class Ranks:
    """The distinct spellings of a vocabulary in alphabetical order.

    Attributes:
        spellings: the distinct ones, sorted.
        of_token: int32 of shape [tokens + 1]; where the token's spelling stands. `NO_RANK` for the wall.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.spellings = sorted(set(pieces))
        self.number = {spelling: rank for rank, spelling in enumerate(self.spellings)}
        ranks = np.array([self.number[piece] for piece in pieces], dtype=np.int32)
        self.of_token = np.append(ranks, np.int32(NO_RANK))
        self._tokens = np.argsort(ranks, kind="stable")
        self._first = np.searchsorted(ranks[self._tokens], np.arange(len(self.spellings) + 1))

    def beginning_with(self, text: bytes) -> tuple[int, int]:
        """The half-open range of ranks of spellings that begin with a text."""
        size = len(text)
        low = bisect_left(self.spellings, text)
        return low, bisect_right(self.spellings, text, lo=low, key=lambda spelling: spelling[:size])

    def tokens(self, low: int, high: int) -> np.ndarray:
        """The tokens whose ranks are low .. high (exclusive), int64."""
        return self._tokens[self._first[low] : self._first[high]]

    def counts(self, of_tokens: np.ndarray) -> np.ndarray:
        """Numbers by token, summed by rank."""
        return np.bincount(self.of_token[:-1], weights=of_tokens, minlength=len(self.spellings))


class Vocabulary:
    """
    Attributes:
        length: int32 of shape [tokens + 1]; bytes of each token.
        blank: bool of shape [tokens + 1]; tokens that stand for no bytes.
        forwards, backwards: ranks of the spellings, and of the spellings read from their ends.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self.size = len(pieces)
        self.length = np.array([*map(len, pieces), 0], dtype=np.int32)
        self.blank = self.length == 0
        self.blank[self.size] = False
        self.forwards = Ranks(pieces)
        self.backwards = Ranks([piece[::-1] for piece in pieces])

    @property
    def longest(self) -> int:
        return int(self.length.max(initial=0))
