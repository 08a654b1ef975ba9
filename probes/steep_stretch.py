"""Outliers where a series falls or rises so fast that its windows are wider than its scatter.

At the beginning of training the loss falls by more within 128 steps than it scatters from one to the next. The MAD of a
window is then that of the fall, and no spike stands out of it. In the stretches at the beginning in which the trend
makes windows more than twice as wide, and for one window after them, values are therefore judged in a second way as
well: more than 8 standard deviations above the median of the last 16 unflagged values, with a standard deviation from
the differences between neighbours among the last 128 unflagged values, in which a trend does not show. Neighbours are
often alike, which makes this deviation too small: hence 8 and not 6.
"""

from __future__ import annotations

import numpy as np

from probes.robust_statistics import FEWEST, SD_PER_MAD, WINDOW, smallest_scale, window_statistics
from probes.upward_outliers import Outliers, upward_outliers

WIDENED = 2.0
THRESHOLD_OF_TREND = 8.0


def outliers_with_steep_beginning(values: np.ndarray, floor: float | None = None) -> tuple[Outliers, int]:
    """Outliers of a series, in its steep beginning also those that stand out of the trend.

    Those enter no window of the others either.

    Returns:
        The outliers, whose medians and scales are those of the judgement that flagged them, and how many values at
        the beginning were judged in both ways.
    """
    floor = smallest_scale(values) if floor is None else floor
    (finite,) = np.nonzero(np.isfinite(values))
    num_steep = num_steep_values(values[finite], floor)
    found = upward_outliers(values, floor)
    if not num_steep:
        return found, 0
    places = finite[:num_steep]
    flagged, medians, scales = outliers_of_trend(values[places], floor)
    of_trend = places[flagged & ~found.flagged[places]]
    if len(of_trend):
        without = values.copy()
        without[of_trend] = np.nan
        found = upward_outliers(without, floor)
        among = np.flatnonzero(np.isin(places, of_trend))
        found.flagged[of_trend] = True
        found.medians[of_trend], found.scales[of_trend] = medians[among], scales[among]
    return found, int(places[-1]) + 1


def num_steep_values(values: np.ndarray, floor: float) -> int:
    """How many finite values at the beginning lie in windows that a trend widens."""
    num_stretches = len(values) // WINDOW
    rows = values[: num_stretches * WINDOW].reshape(num_stretches, WINDOW)
    with np.errstate(over="ignore", invalid="ignore"):
        deviations = _deviation(rows)
        scatter = np.maximum(_deviation(np.diff(rows, axis=1)) / np.sqrt(2), floor)
        moved = np.abs(np.median(rows[:, WINDOW // 2 :], axis=1) - np.median(rows[:, : WINDOW // 2], axis=1))
        steep = (deviations > WIDENED * scatter) & (moved > deviations)
    count = int(np.argmin(np.append(steep, False)))
    return min((count + 1) * WINDOW, len(values)) if count else 0


def _deviation(rows: np.ndarray) -> np.ndarray:
    """The robust standard deviation of each row."""
    deviations: np.ndarray = SD_PER_MAD * np.median(np.abs(rows - np.median(rows, axis=1, keepdims=True)), axis=1)
    return deviations


def outliers_of_trend(values: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flags, medians of the last 16 unflagged values and standard deviations from their differences.

    Computed like those of `upward_outliers`: from guessed flags, until they agree with themselves.
    """
    flagged = np.zeros(len(values), dtype=bool)
    medians, scales = np.full(len(values), np.nan), np.full(len(values), np.nan)
    while True:
        kept = values[~flagged]
        ends = np.cumsum(~flagged) - ~flagged
        (judged,) = np.nonzero(ends > FEWEST)
        if not len(judged):
            return flagged, medians, scales
        with np.errstate(over="ignore"):
            # The median size of a difference of two values is that of their distance times the square root of 2.
            sizes, _ = window_statistics(np.abs(np.diff(kept)), ends[judged] - 1)
            near = np.lib.stride_tricks.sliding_window_view(kept, FEWEST)[ends[judged] - FEWEST]
            medians[judged] = np.median(near, axis=1)
            scales[judged] = np.maximum(SD_PER_MAD * sizes / np.sqrt(2), floor)
            now = np.zeros(len(values), dtype=bool)
            now[judged] = (values[judged] - medians[judged]) / scales[judged] > THRESHOLD_OF_TREND
        if (now == flagged).all():
            return flagged, medians, scales
        flagged = now
