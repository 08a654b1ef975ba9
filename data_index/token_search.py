"""Which instances hold a text or a token: the files are scanned, and places among their tokens become instances."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_index.errors import CorruptFile
from data_index.files import BLOCK_BYTES
from data_index.run import Run, TokenFile
from data_index.run_check import LINES
from data_index.text_search import Hits, merged
from data_index.token_rows import CutRows, PiecePlaces, PieceRows, Touched
from data_index.tokens import TokenReader

SCAN_TOKENS = 4 * 2**20
SAMPLES, SAMPLE_TOKENS = 16, 4096


class Anchor(Protocol):
    """Where something that is searched for may stand, and whether it does."""

    def places(self, tokens: np.ndarray) -> np.ndarray: ...
    def hits(self, tokens: np.ndarray, places: np.ndarray) -> Hits: ...


class Matcher(Protocol):
    """What is searched for.

    Attributes:
        reach: tokens around a place that nearly always suffice to tell.
        num_tokens: ids from this one on are none of the tokenizer's; None: any id may stand in the files.
    """

    @property
    def reach(self) -> int: ...
    @property
    def num_tokens(self) -> int | None: ...
    def anchor(self, sample: np.ndarray) -> Any: ...


class Shortcut(Protocol):
    """Knows where in a file to look without reading all of it (`data_index.ngram_lookup`)."""

    def places(self, file: TokenFile, matcher: Any) -> tuple[Anchor, np.ndarray] | None:
        """An anchor and the places, rising, where it may stand; None where the file has to be scanned."""
        ...


class TokenMatcher:
    """One token id, as what is searched for."""

    reach, num_tokens = 0, None

    def __init__(self, token: int) -> None:
        self.token = token

    def anchor(self, sample: np.ndarray) -> TokenMatcher:
        return self

    def places(self, tokens: np.ndarray) -> np.ndarray:
        return np.flatnonzero(tokens == self.token)

    def hits(self, tokens: np.ndarray, places: np.ndarray) -> Hits:
        return Hits(first=places, stop=places + 1, cut_before=places[:0], cut_after=places[:0])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """What one more stretch of a file gave.

    Attributes:
        num_bytes: bytes of all files that are done by now, of `bytes_to_search`.
    """

    touched: Touched
    file: TokenFile
    num_bytes: int


def bytes_to_search(run: Run) -> int:
    return sum(file.num_bytes for file in run.files)


def search(run: Run, reader: TokenReader, matcher: Matcher, shortcut: Shortcut | None = None) -> Iterator[Found]:
    """The stretches of instances that hold a piece of an occurrence, file after file.

    Occurrences are found across the borders of instances within a file, and of a row that runs on into the next file;
    rows in lines of JSON are searched one by one.

    Raises:
        MissingFile, CorruptFile
    """
    done = 0
    places = PiecePlaces(reader.pieces) if reader.pieces is not None else None
    for number, file in enumerate(run.files):
        if file.dtype == LINES:
            yield from _search_lines(reader, file, matcher, done)
            done += file.num_bytes
            continue
        rows: list[CutRows | PieceRows] = [PieceRows(reader, number, places)] if places else []
        if file.num_instances:
            rows.append(CutRows(reader, number))
        num_tokens = max((part.num_tokens for part in rows), default=0)
        for first, stop, at in _hits_in_file(reader, file, num_tokens, matcher, shortcut):
            so_far = done + at * np.dtype(file.dtype).itemsize
            for part in rows:
                yield Found(touched=part.touched(first, stop), file=file, num_bytes=so_far)
        last = file.first_instance + file.num_instances - 1
        if file.num_instances and len(reader.pieces_of(last)) > 1:
            touched = _hits_in_rows(reader, range(last, last + 1), matcher)
            yield Found(touched=touched, file=file, num_bytes=done + file.num_bytes)
        done += file.num_bytes


def _hits_in_file(
    reader: TokenReader, file: TokenFile, num_tokens: int, matcher: Matcher, shortcut: Shortcut | None
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Ranges first .. stop of the file's tokens that hold occurrences, and how many of its tokens are done."""
    if shortcut is not None and (known := shortcut.places(file, matcher)) is not None:
        anchor, places = known
        unchecked = TokenReader(reader.run, None)
        for start in range(0, num_tokens, SCAN_TOKENS):
            end = min(start + SCAN_TOKENS, num_tokens)
            here = places[slice(*np.searchsorted(places, [start, end]))]
            if len(here):
                first, stop = _hits_around(unchecked, file, num_tokens, anchor, here, matcher.reach)
                _check_blocks(reader, file, first, stop)
                yield first, stop, end
        return
    # One anchor for the file: of an occurrence across two stretches, two anchors might each lie in the other one.
    anchor = matcher.anchor(_sample_of_file(reader, file, num_tokens))
    for start in range(0, num_tokens, SCAN_TOKENS):
        end = min(start + SCAN_TOKENS, num_tokens)
        tokens = np.asarray(reader.read(file, start, end))
        _require_known(file, tokens, matcher.num_tokens)
        first, stop = _hits_around(reader, file, num_tokens, anchor, start + anchor.places(tokens), matcher.reach)
        yield first, stop, end


def _hits_around(
    reader: TokenReader, file: TokenFile, num_tokens: int, anchor: Anchor, places: np.ndarray, reach: int
) -> tuple[np.ndarray, np.ndarray]:
    """The union of the occurrences with their anchor at one of the places; reads as far around them as it takes."""
    first, stop = [places[:0]], [places[:0]]
    while len(places):
        low, high = max(int(places[0]) - reach, 0), min(int(places[-1]) + 1 + reach, num_tokens)
        hits = anchor.hits(np.asarray(reader.read(file, low, high)), places - low)
        first.append(hits.first + low)
        stop.append(hits.stop + low)
        open_ = [hits.cut_before[:0] if low == 0 else hits.cut_before]
        open_ += [hits.cut_after[:0] if high == num_tokens else hits.cut_after]
        places, reach = np.unique(np.concatenate(open_)) + low, 16 * reach
    return merged(np.concatenate(first), np.concatenate(stop))


def _check_blocks(reader: TokenReader, file: TokenFile, first: np.ndarray, stop: np.ndarray) -> None:
    """What is answered was read with its hashes compared; a block once, however many occurrences lie in it."""
    per_block = BLOCK_BYTES // np.dtype(file.dtype).itemsize
    for low, high in {(int(a), int(b)) for a, b in zip(first // per_block, (stop - 1) // per_block, strict=True)}:
        reader.read(file, low * per_block, high * per_block + 1)


def _search_lines(reader: TokenReader, file: TokenFile, matcher: Matcher, done: int) -> Iterator[Found]:
    end = file.first_instance + file.num_instances
    at_once = max(SCAN_TOKENS // reader.run.sequence_length, 1)
    for first in range(file.first_instance, end, at_once):
        instances = range(first, min(first + at_once, end))
        so_far = file.num_bytes * (instances.stop - file.first_instance) // file.num_instances
        yield Found(touched=_hits_in_rows(reader, instances, matcher), file=file, num_bytes=done + so_far)


def _hits_in_rows(reader: TokenReader, instances: range, matcher: Matcher) -> Touched:
    """Occurrences within rows: a wall after each keeps the next out."""
    file, _ = reader.place_of(instances.start)
    rows = reader.rows(instances)
    _require_known(file, rows, matcher.num_tokens)
    length = rows.shape[1] + 1
    tokens = np.full((len(rows), length), np.iinfo(np.int64).max)
    tokens[:, :-1] = rows
    flat = tokens.reshape(-1)
    anchor = matcher.anchor(flat[: SAMPLES * SAMPLE_TOKENS])
    hits = anchor.hits(flat, anchor.places(flat))
    first, stop = merged(hits.first, hits.stop)
    row = first // length
    return Touched(instance=instances.start + row, start=first - row * length, stop=stop - row * length)


def _sample_of_file(reader: TokenReader, file: TokenFile, num_tokens: int) -> np.ndarray:
    """Some of the file's tokens, spread evenly; of a file on a server the first, which are fetched anyway.

    They only make the search fast: no hash is compared.
    """
    if num_tokens <= SAMPLES * SAMPLE_TOKENS or not isinstance(file.path, Path):
        return np.asarray(reader.read(file, 0, min(num_tokens, SCAN_TOKENS)))[: SAMPLES * SAMPLE_TOKENS]
    unchecked = TokenReader(reader.run, None)
    starts = np.linspace(0, num_tokens - SAMPLE_TOKENS, SAMPLES).astype(np.int64).tolist()
    return np.concatenate([unchecked.read(file, start, start + SAMPLE_TOKENS) for start in starts])


def _require_known(file: TokenFile, tokens: np.ndarray, num_tokens: int | None) -> None:
    """
    Raises:
        CorruptFile: an id is none of the tokenizer's.
    """
    if num_tokens is None or not tokens.size:
        return
    low, high = int(tokens.min()) if tokens.dtype.kind == "i" else 0, int(tokens.max())
    if low < 0 or high >= num_tokens:
        wrong = high if high >= num_tokens else low
        raise CorruptFile(f"{file.path} holds token {wrong}; the tokenizer has {num_tokens}")
