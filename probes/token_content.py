"""What rows of token ids look like, by the ids alone: how repetitive, how rare, how diverse, how well ordered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_index.masking import BLOCK_TOKENS, longest_runs, may_hold_a_run

MAX_PERIOD = 13
MIN_REPEATS = 32
NGRAM_TOKENS = 8  # long enough that phrases of the language alone do not make two rows alike
_GOLDEN = 0x9E3779B97F4A7C15
# How many observations the unigram distribution weighs beside the successors that were seen of a token.
PRIOR_SUCCESSORS = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """A piece of `period` tokens that fills tokens start .. stop (end exclusive) of a row over and over.

    `num_repeats` counts whole pieces; what follows the last of them may be the beginning of one more.
    """

    period: int
    num_repeats: int
    start: int
    stop: int


def longest_repetitions(
    token_ids: np.ndarray,
    *,
    max_period: int = MAX_PERIOD,
    min_repeats: int = MIN_REPEATS,
    lengths: np.ndarray | None = None,
) -> list[Repetition | None]:
    """The longest stretch of each row that a piece of 1 .. max_period tokens fills at least `min_repeats` times.

    None where a row has no such stretch; with the defaults, the rows that OLMo's instance filter leaves in the loss. Of
    equally long stretches the one with the shortest piece counts, so that a repetition is told once and not again for
    each multiple of its period; then the first in the row.

    Args:
        token_ids: shape [rows, length].
        min_repeats: 2 or more.
        lengths: tokens of each row before its padding, which is no repetition.
    Source:
        the search of `data_index.masking`, which finds the same rows; OLMo 2 paper (arXiv 2501.00656), section 3.1
    """
    rows, length = token_ids.shape
    if lengths is not None:
        places = np.arange(length)
        # Each place of the padding has a value of its own, which no token has.
        token_ids = np.where(places < np.asarray(lengths)[:, None], token_ids.astype(np.int64), -1 - places)
    best = np.zeros((rows, 3), dtype=np.int64)  # tokens, period, stop
    rows_together = max(BLOCK_TOKENS // max(length, 1), 1)
    for start in range(0, rows, rows_together):
        block = token_ids[start : start + rows_together]
        for period in range(1, min(max_period, length // min_repeats) + 1):
            run_length = (min_repeats - 1) * period
            still_open = best[start : start + len(block), 0] < length
            candidates = np.flatnonzero(still_open & may_hold_a_run(block, period, run_length))
            if len(candidates):
                found, stops = longest_runs(block[candidates], period)
                tokens = np.where(found >= run_length, found + period, 0)
                longer = tokens > best[start + candidates, 0]
                chosen = start + candidates[longer]
                best[chosen] = np.stack([tokens, np.full(len(tokens), period), stops], axis=1)[longer]
    return [
        Repetition(period=period, num_repeats=tokens // period, start=stop - tokens, stop=stop) if tokens else None
        for tokens, period, stop in best.tolist()
    ]


def token_entropy(row: np.ndarray) -> float:
    """Shannon entropy of the row's own token counts, bits per token; log2 of its length where all are different."""
    _, counts = np.unique(row, return_counts=True)
    shares = counts / max(len(row), 1)
    return float(-(shares * np.log2(shares)).sum())


def ngram_hashes(row: np.ndarray, n: int = NGRAM_TOKENS) -> np.ndarray:
    """A uint64 for each run of n tokens, in order; equal runs have equal ones. None for rows shorter than n."""
    num_ngrams = max(len(row) - n + 1, 0)
    mixed = np.zeros(num_ngrams, dtype=np.uint64)
    for shift in range(n):
        mixed = (mixed + row[shift : shift + num_ngrams].astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def repeated_share(hashes: np.ndarray) -> float:
    """Share of a row's n-grams (by their hashes) that stood in the row before; 0 for a row without any."""
    return 1.0 - len(np.unique(hashes)) / len(hashes) if len(hashes) else 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenStatistics:
    """Token and token-pair counts of a sample of rows, to hold other rows against.

    Attributes:
        counts: int64 of shape [vocabulary]; ids above never occurred.
        pairs: numbers of the pairs of neighbouring tokens that occurred (first * vocabulary + second), rising, int64.
        pair_counts: int64, as long.
        followed: how often each id was the first of a pair, int64 of shape [vocabulary].
    """

    counts: np.ndarray
    pairs: np.ndarray
    pair_counts: np.ndarray
    followed: np.ndarray

    @property
    def vocabulary(self) -> int:
        return len(self.counts)

    def mean_surprise(self, row: np.ndarray, *, counted: bool = False) -> float:
        """Mean of -log2 p over the row's tokens, p by the counts with one added to each; bits per token.

        Args:
            counted: the row is one of those counted; what it added is taken out.
        """
        ids, own = np.unique(row, return_counts=True)
        return float((own * self._surprise(ids, own if counted else 0)).sum() / max(len(row), 1))

    def rare_share(self, row: np.ndarray, bits: float, *, counted: bool = False) -> float:
        """Share of the row's tokens whose surprise (as in `mean_surprise`) is above `bits`."""
        ids, own = np.unique(row, return_counts=True)
        return float(own[self._surprise(ids, own if counted else 0) > bits].sum() / max(len(row), 1))

    def _surprise(self, ids: np.ndarray, own: np.ndarray | int) -> np.ndarray:
        total = int(self.counts.sum()) - int(np.sum(own)) + self.vocabulary
        return np.asarray(np.log2(total) - np.log2(_at(self.counts, ids) - own + 1))

    def surprise_exceeded_by(self, share: float) -> float:
        """Bits that so large a share of the counted tokens, or less, exceeds."""
        bits = self._surprise(np.arange(self.vocabulary), 0)
        order = np.argsort(-bits, kind="stable")
        above = np.cumsum(self.counts[order])
        place = int(np.searchsorted(above, share * above[-1], side="right"))
        return float(bits[order[min(place, len(order) - 1)]])

    def order_gain(self, row: np.ndarray, *, counted: bool = False) -> float:
        """How much better than alone the row's tokens are foretold by the token before, mean log2 p(b|a)/p(b); bits.

        p(b|a) = (c(a,b) + k p(b)) / (c(a) + k) with k = `PRIOR_SUCCESSORS`. Text like the sample's gains bits; the same
        tokens in another order lose some, as they are followed by what never followed them.
        """
        if len(row) < 2:
            return 0.0
        first, second = row[:-1].astype(np.int64), row[1:].astype(np.int64)
        width = max(self.vocabulary, int(row.max()) + 1)
        _, place, own = np.unique(first * width + second, return_index=True, return_counts=True)
        first, second = first[place], second[place]
        known = np.maximum(first, second) < self.vocabulary
        together = self._pair_counts(np.where(known, first * self.vocabulary + second, -1))
        followed = _at(self.followed, first)
        taken: np.ndarray | int = 0
        if counted:
            together = together - own
            followed = followed - _own_counts(row[:-1], first)
            taken = _own_counts(row, second)
        total = int(self.counts.sum()) - (len(row) if counted else 0) + self.vocabulary
        alone = (_at(self.counts, second) - taken + 1) / total
        gain = np.log2((together / alone + PRIOR_SUCCESSORS) / (followed + PRIOR_SUCCESSORS))
        return float((own * gain).sum() / (len(row) - 1))

    def _pair_counts(self, keys: np.ndarray) -> np.ndarray:
        if not len(self.pairs):
            return np.zeros(len(keys), dtype=np.int64)
        places = np.minimum(np.searchsorted(self.pairs, keys), len(self.pairs) - 1)
        return np.where(self.pairs[places] == keys, self.pair_counts[places], 0)


def _own_counts(row: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """How often the row holds each of some ids that are in it."""
    own, counts = np.unique(row, return_counts=True)
    return np.asarray(counts[np.searchsorted(own, ids)])


def _at(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Counts of ids, 0 for those above the table."""
    return np.where(ids < len(table), table[np.minimum(ids, len(table) - 1)], 0)


def statistics_of(rows: Sequence[np.ndarray], vocabulary: int) -> TokenStatistics:
    """Counts over rows of any lengths; pairs do not cross from one row into the next.

    Args:
        vocabulary: number of ids; raised to the largest id that occurs.
    """
    vocabulary = max(vocabulary, 1 + max((int(row.max()) for row in rows if len(row)), default=0))
    counts, followed = np.zeros(vocabulary, dtype=np.int64), np.zeros(vocabulary, dtype=np.int64)
    keys = []
    for row in rows:
        ids = row.astype(np.int64)
        counts += np.bincount(ids, minlength=vocabulary)
        followed += np.bincount(ids[:-1], minlength=vocabulary)
        keys.append(ids[:-1] * vocabulary + ids[1:])
    pairs, pair_counts = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *keys]), return_counts=True)
    return TokenStatistics(counts=counts, pairs=pairs, pair_counts=pair_counts, followed=followed)
