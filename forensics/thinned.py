"""Fewer points for a line that looks the same: of each stretch of x the first, last, lowest, highest, and all gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_POINTS = 16_000
_OF_A_STRETCH = 4


def thinned(
    x: Sequence[float], y: Sequence[float | None], most: int = MOST_POINTS
) -> tuple[Sequence[Any], Sequence[Any]]:
    """A line of at most about `most` points through the same extremes, or the line itself if it is as short.

    In every stretch of x that a pixel would cover the line goes from its first value to its last by way of its lowest
    and its highest, so that no peak is lost. Where values are missing, one None stays of each run of them.

    Args:
        x: rising.
        y: None or NaN where there is no value.
    """
    if len(x) <= most:
        return x, y
    places = np.asarray(x, dtype=np.float64)
    values = np.array([np.nan if value is None else value for value in y], dtype=np.float64)
    there = ~np.isnan(values)
    (kept,) = np.nonzero(there)
    edges = np.linspace(places[0], places[-1], most // _OF_A_STRETCH + 1)
    stretch = np.searchsorted(edges, places[kept], "right")
    starts = np.flatnonzero(np.diff(stretch, prepend=-1))
    ends = np.append(starts[1:], len(kept)) - 1
    order = np.lexsort((values[kept], stretch))  # by stretch, and in it by value: its first is the lowest
    chosen = [kept[starts], kept[ends], kept[order[starts]], kept[order[ends]]]
    gaps = np.flatnonzero(~there & np.append(True, there[:-1]))
    all_kept = np.unique(np.concatenate([*chosen, gaps]))
    return places[all_kept].tolist(), [value if value == value else None for value in values[all_kept].tolist()]
