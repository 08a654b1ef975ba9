"""How far many states are from each other, each given as one vector."""

from __future__ import annotations

import numpy as np

COLUMNS_AT_ONCE = 8192


def pairwise_distances(vectors: np.ndarray) -> np.ndarray:
    """L2 distances between all rows, fp64 of shape [rows, rows].

    Args:
        vectors: [rows, elements]. Exact zeros come out for equal rows.
    """
    squares = np.zeros((len(vectors), len(vectors)))
    for start in range(0, vectors.shape[1], COLUMNS_AT_ONCE):
        part = vectors[:, start : start + COLUMNS_AT_ONCE].astype(np.float64)
        # Products of what is left after the common part: else the difference of two large numbers would be the answer.
        part -= part.mean(axis=0)
        products = part @ part.T
        norms = np.diagonal(products)
        squares += norms[:, None] + norms[None, :] - 2 * products
    distances = np.sqrt(np.maximum(squares, 0.0))
    for row in range(len(vectors) - 1):  # neighbours are the closest, and lose the most in the products above
        change = vectors[row + 1].astype(np.float64) - vectors[row]
        distances[row, row + 1] = distances[row + 1, row] = np.sqrt(change @ change)
    np.fill_diagonal(distances, 0.0)
    return distances


def correlations(vectors: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Correlation between all rows after each group's mean is taken away, fp64 of shape [rows, rows].

    Args:
        vectors: [rows, elements].
        groups: [elements], rising group numbers. Parameters, so that gains which all lie about 1 do not count as alike.
    """
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    counts = np.diff([*starts, len(groups)])
    products = np.zeros((len(vectors), len(vectors)))
    means = np.add.reduceat(vectors, starts, axis=1, dtype=np.float64) / counts
    for start in range(0, vectors.shape[1], COLUMNS_AT_ONCE):
        stop = start + COLUMNS_AT_ONCE
        part = (
            vectors[:, start:stop]
            - means[:, np.searchsorted(starts, np.arange(start, min(stop, len(groups))), "right") - 1]
        )
        products += part @ part.T
    norms = np.sqrt(np.diagonal(products))
    return products / np.maximum(norms[:, None] * norms[None, :], np.finfo(np.float64).tiny)
