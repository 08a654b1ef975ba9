"""Which texts are nearly the same? MinHash signatures, what they put side by side, and groups of what is alike.

A text is its token ids. Its shingles are the runs of 5 tokens in it (all of it, where it has fewer); how alike two
texts are is the share of common shingles among all that either has (Jaccard). Tokens, not words: nothing needs
decoding, and what the model read is compared. Signatures only propose pairs; every pair that is kept was compared
shingle by shingle.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_index.errors import InvalidRange

SHINGLE_TOKENS = 5
NUM_PERMUTATIONS = 128
SEED = 1
SCHEME = "affine32"
# Signatures of another method cannot be compared with these.
METHOD = f"shingles of {SHINGLE_TOKENS} tokens, {NUM_PERMUTATIONS} permutations, {SCHEME}, seed {SEED}"
LEAST_SIMILARITY = 0.1  # below, 128 permutations could not propose nearly all pairs
PROPOSED_SHARE = 0.999  # of the pairs that are just as alike as asked
SHINGLES_AT_ONCE = 2048  # times the permutations, 1 MiB: what a core's cache holds

Shingles = frozenset[tuple[int, ...]]


def without_end(token_ids: np.ndarray, end_token: int | None) -> np.ndarray:
    """A text without the end token that may follow it, so that it is the same text with it and without."""
    return token_ids[:-1] if len(token_ids) and token_ids[-1] == end_token else token_ids


def shingles_of(token_ids: np.ndarray) -> Shingles:
    ids = token_ids.tolist()
    return frozenset(zip(*(ids[first:] for first in range(min(SHINGLE_TOKENS, len(ids)))), strict=False))


def jaccard(one: Shingles, other: Shingles) -> float:
    common = len(one & other)
    return common / max(len(one) + len(other) - common, 1)


def signature_of(token_ids: np.ndarray) -> np.ndarray:
    """MinHash signature of a text: uint32 of shape [NUM_PERMUTATIONS]; always the same for the same shingles."""
    minhash = _empty_minhash().copy()
    hashes = _hashed(_windows(token_ids, SHINGLE_TOKENS))
    for first in range(0, len(hashes), SHINGLES_AT_ONCE):
        minhash.update_batch(hashes[first : first + SHINGLES_AT_ONCE].tolist())
    return np.asarray(minhash.digest(), dtype=np.uint32)


@functools.cache
def _empty_minhash() -> Any:
    from datasketch import MinHash

    # Shingles come as numbers already; `int` hands them on.
    return MinHash(num_perm=NUM_PERMUTATIONS, seed=SEED, scheme=SCHEME, hashfunc=int)


def _windows(values: np.ndarray, length: int) -> list[np.ndarray]:
    """The first, second … value of every run of `length`; of the one run there is, where there are fewer values."""
    length = min(length, len(values))
    return [values[first : len(values) - length + 1 + first] for first in range(length)]


def _hashed(columns: Sequence[np.ndarray]) -> np.ndarray:
    """A uint32 for each row of some columns; equal rows have equal ones."""
    mixed = np.zeros(len(columns[0]) if columns else 0, dtype=np.uint64)
    for column in columns:
        mixed = (mixed + column.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return (mixed >> np.uint64(32)).astype(np.uint32)


def bands_for(threshold: float) -> tuple[int, int]:
    """How to cut signatures: (bands, rows a band), with as many rows as propose nearly all pairs at the threshold.

    Raises:
        InvalidRange
    """
    if not LEAST_SIMILARITY <= threshold <= 1:
        raise InvalidRange(f"--near takes {LEAST_SIMILARITY} .. 1 (1: the same runs of tokens), not {threshold:g}")
    for rows in range(NUM_PERMUTATIONS, 1, -1):
        bands = NUM_PERMUTATIONS // rows
        if proposed_share(threshold, bands, rows) >= PROPOSED_SHARE:
            return bands, rows
    return NUM_PERMUTATIONS, 1


def proposed_share(similarity: float, bands: int, rows: int) -> float:
    """The share of pairs as alike as this that agree in a whole band, and so are compared."""
    return float(1 - (1 - similarity**rows) ** bands)


def buckets(signatures: np.ndarray, bands: int, rows: int) -> Iterator[np.ndarray]:
    """Numbers of texts, rising, whose signatures agree in a band; band after band, so that one sort is held at a time.

    Args:
        signatures: uint32 of shape [texts, NUM_PERMUTATIONS].
    """
    for band in range(bands):
        hashes = _hashed(list(signatures[:, band * rows : (band + 1) * rows].T))
        order = np.argsort(hashes, kind="stable")
        borders = np.flatnonzero(np.diff(hashes[order])) + 1
        starts, stops = np.append(0, borders), np.append(borders, len(order))
        for number in np.flatnonzero(stops - starts > 1):
            yield order[starts[number] : stops[number]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alike:
    """Texts in groups: each is linked to one of its group, over one or more links, and each link was verified.

    Attributes:
        group: int64 of shape [texts]; the smallest number of a text of its group.
        similarity: float64 of shape [texts]; to the most alike text it was compared with; 0 where it is alone.
        num_compared: pairs that were compared shingle by shingle.
    """

    group: np.ndarray
    similarity: np.ndarray
    num_compared: int


def group_alike(
    proposed: Iterable[np.ndarray], num_texts: int, shingles: Callable[[int], Shingles], threshold: float
) -> Alike:
    """Groups of texts at least as alike as the threshold, or linked by such.

    Two that are in one group already are not compared again, so that many copies of one text cost one comparison each.

    Args:
        proposed: buckets of texts that may be alike.
        shingles: those of a text by its number; the texts may be too many to hold them all.
    """
    parents = list(range(num_texts))
    similarity = np.zeros(num_texts)
    unlike: set[tuple[int, int]] = set()
    num_compared = 0

    def group_of(text: int) -> int:
        while parents[text] != text:
            parents[text] = text = parents[parents[text]]
        return text

    for bucket in proposed:
        members = bucket.tolist()
        while len({group_of(text) for text in members}) > 1:
            first, *members = members
            others = [o for o in members if group_of(o) != group_of(first) and (first, o) not in unlike]
            mine = shingles(first) if others else frozenset()
            for other in others:
                if group_of(other) == group_of(first):
                    continue
                share, num_compared = jaccard(mine, shingles(other)), num_compared + 1
                if share < threshold:
                    unlike.add((first, other))
                    continue
                one, two = sorted((group_of(first), group_of(other)))
                parents[two] = one
                similarity[[first, other]] = np.maximum(similarity[[first, other]], share)
    groups = np.array([group_of(text) for text in range(num_texts)], dtype=np.int64)
    return Alike(group=groups, similarity=similarity, num_compared=num_compared)
