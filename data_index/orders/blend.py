"""Which of several datasets each item of a weighted blend comes from: the one that lags furthest behind its share.

Source: build_blending_indices in megatron/data/helpers.cpp and BlendableDataset of EleutherAI/gpt-neox @ ea7aefd8;
bigscience-workshop/Megatron-DeepSpeed @ 8387ae17 has the same
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_index.errors import OrderMismatch, UnsupportedRecipe

MAX_DATASETS = 254  # the trainers assert it: dataset numbers are bytes


def blend_order(weights: Sequence[float], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Dataset (uint8) and item of that dataset (int64) at each of `length` positions of a blend.

    Position i goes to the dataset with the largest weight * max(i, 1) - items served so far; the first of equals.

    Raises:
        UnsupportedRecipe, OrderMismatch: weights that the trainers refuse.
    """
    if not 0 < len(weights) <= MAX_DATASETS:
        raise UnsupportedRecipe(f"a blend of {len(weights)} datasets; the trainers blend 1 to {MAX_DATASETS}")
    shares = np.array(weights, dtype=np.float64)
    if not shares.sum() > 0:
        raise OrderMismatch(f"the weights {list(weights)} of a blend sum to nothing")
    if len(weights) == 1:
        return np.zeros(length, dtype=np.uint8), np.arange(length, dtype=np.int64)
    datasets = _greedy(shares / shares.sum(), length)
    items = np.empty(length, dtype=np.int64)
    for dataset in range(len(weights)):
        places = np.flatnonzero(datasets == dataset)
        items[places] = np.arange(len(places))
    return datasets, items


def _greedy(shares: np.ndarray, length: int) -> np.ndarray:
    """The dataset at each position, uint8; shares sum to 1.

    Each choice depends on all before it, and a loop over 100 million positions takes minutes (this: 5 seconds). But the
    rule forgets: from counts that are nearly right it finds back to the true ones within a few items. So the positions
    are cut into lanes that run side by side, each from counts guessed a little before its start; where a lane did not
    start from exactly the counts that the lane before it ended with, it runs again from those: the loop's outcome.
    """
    lane = max(int(np.sqrt(length)), 1)
    starts = np.arange(0, length, lane)
    warm_up = int(min(max(64 * len(shares), 8 / shares[shares > 0].min()), lane))
    guess_at = np.maximum(starts - warm_up, 0)
    counts = _near_counts(shares, guess_at)
    _run(shares, counts, guess_at, starts)
    begun, ended = counts.copy(), np.empty_like(counts)
    picks = np.empty((len(starts), lane), dtype=np.uint8)
    stale = np.arange(len(starts))
    while len(stale):
        counts = begun[:, stale]
        picks[stale] = _run(shares, counts, starts[stale], starts[stale] + lane)
        ended[:, stale] = counts
        stale = np.flatnonzero((begun[:, 1:] != ended[:, :-1]).any(axis=0)) + 1
        begun[:, stale] = ended[:, stale - 1]
    return picks.reshape(-1)[:length]


def _near_counts(shares: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Whole counts near share * position that sum to the position, float64 of shape [datasets, positions]."""
    exact = shares[:, None] * positions
    counts = np.floor(exact)
    by_remainder = np.argsort(np.argsort(counts - exact, axis=0, kind="stable"), axis=0, kind="stable")
    return counts + (by_remainder < positions - counts.sum(axis=0))


def _run(shares: np.ndarray, counts: np.ndarray, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Serve positions first .. stop of each lane, advancing `counts` [datasets, lanes]; picks, uint8 [lanes, steps]."""
    num_steps = int((stop - first).max(initial=0))
    picks = np.zeros((num_steps, len(first)), dtype=np.uint8)
    for step in range(num_steps):
        # Lanes near the start of all have less to warm up.
        running = np.flatnonzero(first + step < stop) if len(first) and (stop - first).min() <= step else slice(None)
        position = np.maximum(first[running] + step, 1).astype(np.float64)
        lag = shares[:, None] * position - counts[:, running]
        pick = lag.argmax(axis=0)
        counts[pick, np.arange(len(first))[running]] += 1
        picks[step, running] = pick
    return picks.T
