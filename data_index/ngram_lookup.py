"""Where a text may stand, by the n-gram index: ranges of sorted positions instead of a pass over all tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_index.errors import CorruptFile, ForensicsError
from data_index.ngrams import NgramChunk, borders, chunks_of, indexable, open_positions, read_manifest
from data_index.run import Run, TokenFile
from data_index.text_search import Anchor, TextMatcher
from data_index.token_search import TokenMatcher
from data_index.tokens import TokenReader

# Anchors that are compared; a range of so few positions, or so few for each token that may follow, is not narrowed.
ANCHORS, SMALL_RANGE, POSITIONS_PER_TOKEN = 6, 64, 32
# Where more than one token in so many may be one, a scan is as fast.
SCAN_ABOVE = 200
LEAST_LIMIT = 10_000
SAMPLE_TOKENS = 2**16


class NgramIndex:
    """The index of a run where there is one; `notes` says how it was used, or why not."""

    def __init__(self, home: Path, run: Run) -> None:
        self._home, self._run = home, run
        self._unchecked = TokenReader(run, None)
        self._answered = self._scanned = 0
        self._trouble: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        total = self._answered + self._scanned
        used = f"the n-gram index answered for {self._answered} of {total} token files"
        scanned = f"{'the other' if self._answered else 'all'} {self._scanned} token files were scanned"
        return (*self._trouble, "; ".join([used] * bool(self._answered) + [scanned] * bool(self._scanned)))

    def has(self, file: TokenFile) -> bool:
        return self._chunks(file) is not None

    def places(self, file: TokenFile, matcher: Any) -> tuple[Any, np.ndarray] | None:
        """An anchor and the places where it may stand, rising; None where the file has to be scanned."""
        chunks = self._chunks(file)
        found = self._places(chunks, matcher) if chunks is not None else None
        self._answered += found is not None
        self._scanned += found is None
        return found

    def _places(self, chunks: list[SortedChunk], matcher: Any) -> tuple[Any, np.ndarray] | None:
        largest = max(chunk.stored.largest for chunk in chunks)
        if matcher.num_tokens is not None and largest >= matcher.num_tokens:
            return None  # the scan says what is wrong
        limit = max(len(chunks[0].tokens) // SCAN_ABOVE, LEAST_LIMIT)
        if isinstance(matcher, TokenMatcher):
            ranges = [(chunk, *chunk.range_of(matcher.token)) for chunk in chunks]
            return (matcher, _positions(ranges)) if sum(high - low for _, low, high in ranges) <= limit else None
        best: tuple[Any, list[tuple[SortedChunk, int, int]]] | None = None
        for anchor in matcher.anchors(_sample(chunks[0].tokens), ANCHORS):
            taken, count = [], 0
            for chunk, low, high in _ranges(chunks, anchor):
                taken.append((chunk, low, high))
                count += high - low
                if count > limit:
                    break
            if count <= limit:
                best, limit = (anchor, taken), count
            if count <= SMALL_RANGE:
                break
        return (best[0], _positions(best[1])) if best is not None else None

    def _chunks(self, file: TokenFile) -> list[SortedChunk] | None:
        """The chunks of a file, if all of them are there and right."""
        try:
            stored = {(chunk.start, chunk.stop): chunk for chunk in chunks_of(self._manifest, file)}
            if not stored or file not in indexable(self._run):
                return None
            step = max(stop - start for start, stop in stored)
            if any(border not in stored for border in borders(file, step)):
                raise CorruptFile(f"the n-gram index of {file.name} is not finished")
            tokens = np.asarray(self._unchecked.read(file, 0, borders(file, step)[-1][1]))
            return [
                SortedChunk(stored=stored[border], tokens=tokens, positions=open_positions(self._home, stored[border]))
                for border in borders(file, step)
            ]
        except (ForensicsError, OSError) as error:
            self._trouble.append(f"{error}: it is not used (build it with forensics ngrams {self._run.name})")
            return None

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        try:
            return read_manifest(self._home)
        except ForensicsError as error:
            self._trouble.append(f"{error}: it is not used (build it with forensics ngrams {self._run.name})")
            return {}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SortedChunk:
    """Positions of a chunk, sorted by the tokens from each on.

    Attributes:
        tokens: of the whole file.
        positions: uint32, counted from the chunk's start.
    """

    stored: NgramChunk
    tokens: np.ndarray
    positions: np.ndarray

    def range_of(self, token: int) -> tuple[int, int]:
        low, high = self.narrowed(0, len(self.positions), 0, np.array([token]))
        return int(low[0]), int(high[0])

    def narrowed(self, low: int, high: int, depth: int, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of a range in which `depth` tokens are equal, the part of it in which each token follows."""
        return self._bounds(low, high, depth, tokens, False), self._bounds(low, high, depth, tokens, True)

    def _bounds(self, low: int, high: int, depth: int, tokens: np.ndarray, behind: bool) -> np.ndarray:
        """Binary search for many tokens at once: the first place not below a token, or behind it."""
        lows, highs = np.full(len(tokens), low), np.full(len(tokens), high)
        for _ in range(max(high - low, 0).bit_length()):
            going = lows < highs
            middle = (lows + highs) // 2
            there = self._tokens_at(np.minimum(middle, len(self.positions) - 1), depth)
            below = going & ((there <= tokens) if behind else (there < tokens))
            lows, highs = np.where(below, middle + 1, lows), np.where(going & ~below, middle, highs)
        return lows

    def _tokens_at(self, number: np.ndarray, depth: int) -> np.ndarray:
        place = self.stored.start + self.positions[number].astype(np.int64) + depth
        return np.where(place < len(self.tokens), self.tokens[np.minimum(place, len(self.tokens) - 1)], 0)


def _ranges(chunks: list[SortedChunk], anchor: Anchor) -> Iterator[tuple[SortedChunk, int, int]]:
    """Ranges of positions that hold every occurrence with this anchor, and others."""
    matcher: TextMatcher = anchor.matcher
    states = np.minimum(anchor.offsets + matcher.vocabulary.length[anchor.tokens], matcher.size)
    for chunk in chunks:
        lows, highs = chunk.narrowed(0, len(chunk.positions), 0, anchor.tokens)
        there = np.flatnonzero(lows < highs)
        for low, high, state in zip(lows[there].tolist(), highs[there].tolist(), states[there].tolist(), strict=True):
            yield from _narrow(chunk, matcher, low, high, state, 1)


def _narrow(
    chunk: SortedChunk, matcher: TextMatcher, low: int, high: int, state: int, depth: int
) -> Iterator[tuple[SortedChunk, int, int]]:
    if state < matcher.size and depth < chunk.stored.depth and high - low > SMALL_RANGE:
        tokens, states = matcher.following(state)
        if len(tokens) * POSITIONS_PER_TOKEN <= high - low:
            lows, highs = chunk.narrowed(low, high, depth, tokens)
            for n in np.flatnonzero(lows < highs):
                yield from _narrow(chunk, matcher, int(lows[n]), int(highs[n]), int(states[n]), depth + 1)
            return
    yield chunk, low, high


def _positions(ranges: list[tuple[SortedChunk, int, int]]) -> np.ndarray:
    parts = [chunk.stored.start + chunk.positions[low:high].astype(np.int64) for chunk, low, high in ranges]
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, dtype=np.int64)


def _sample(tokens: np.ndarray) -> np.ndarray:
    """Some tokens, spread evenly."""
    return tokens[:: max(len(tokens) // SAMPLE_TOKENS, 1)]
