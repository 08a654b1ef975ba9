"""Which points of a large scatter are sent to a screen: all that are flagged, all extremes, and evenly some others."""

from __future__ import annotations

import numpy as np

MOST_POINTS = 10_000
_STRETCHES = 500  # of either axis, in each of which the extremes of the other one stay
_CELLS = (1600, 800)  # finer than a screen shows


def chosen_points(x: np.ndarray, y: np.ndarray, flagged: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Numbers of the points that stay, rising.

    All flagged ones stay; where there are more than `most`, those that no other flagged one covers. So do the lowest
    and the highest y of each stretch of x and the other way round, if need be in addition to `most`. Of the rest as
    many as there is room for, evenly by their number.

    Args:
        x, y: as far as they can be drawn: others are left out. On a logarithmic axis, their logarithms.
        flagged: bool, of the same shape.
    """
    (there,) = np.nonzero(np.isfinite(x) & np.isfinite(y))
    if len(there) <= most:
        return there
    kept = np.zeros(len(x), dtype=bool)
    marked = there[flagged[there]]
    kept[marked if len(marked) <= most else marked[_uncovered(x[marked], y[marked])]] = True
    for along, across in ((x, y), (y, x)):
        kept[there[_extremes(along[there], across[there])]] = True
    others = there[~kept[there] & ~flagged[there]]
    room = most - int(kept.sum())
    if room > 0:
        kept[others[np.unique(np.linspace(0, len(others) - 1, min(room, len(others))).round().astype(np.int64))]] = True
    return np.flatnonzero(kept)


def _extremes(along: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Numbers of the lowest and the highest in each stretch."""
    stretch = _cells(along, _STRETCHES)
    order = np.lexsort((across, stretch))
    starts = np.flatnonzero(np.diff(stretch[order], prepend=-1))
    ends = np.append(starts[1:], len(order)) - 1
    return np.unique(order[np.concatenate([starts, ends])])


def _uncovered(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Numbers of the first one in each cell of a grid."""
    cells = _cells(x, _CELLS[0]) * _CELLS[1] + _cells(y, _CELLS[1])
    return np.unique(cells, return_index=True)[1]


def _cells(values: np.ndarray, count: int) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    size = (high - low) or 1.0
    return np.minimum(((values - low) / size * count).astype(np.int64), count - 1)
