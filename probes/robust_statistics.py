"""Median, MAD and Theil-Sen slope: how far a value of a series stands out, and whether the series grows.

The robust z of a value is its distance from the median of the values before it, in units of their robust standard
deviation, 1.4826 times their MAD. The window holds the last 128 values before it that were not themselves flagged:
neither the value itself nor an outlier before it can hide it.
"""

from __future__ import annotations

from functools import cache

import numpy as np

WINDOW = 128
FEWEST = 16  # values before one that can be judged
THRESHOLD = 6.0
SD_PER_MAD = 1.4826  # of a normal distribution
NUM_BLOCKS = 20
_ROWS_AT_ONCE = 2048
_DECIMALS = range(2, 9)


def smallest_scale(values: np.ndarray) -> float:
    """The least robust standard deviation that a log of this precision can show, in the unit of the values.

    Where more than half of a window rounds to one number, its MAD is 0 and every other number would stand out without
    bound. Before rounding that MAD was anything up to half a unit of the last digit, and that is the floor. The unit is
    the last decimal that the log prints (at least the second), or the spacing of fp32 where it prints them all.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return SD_PER_MAD / 2 * 0.01
    with np.errstate(all="ignore"):
        for decimals in _DECIMALS:
            if _has_decimals(finite[:256], decimals) and _has_decimals(finite, decimals):
                return SD_PER_MAD / 2 * 10.0**-decimals
        spacing = np.spacing(np.float32(np.median(np.abs(finite))))
    return SD_PER_MAD / 2 * float(spacing if np.isfinite(spacing) else np.finfo(np.float32).max)


def _has_decimals(values: np.ndarray, decimals: int) -> bool:
    power = 10.0**decimals
    return bool((np.round(values * power) / power == values).all())


def window_statistics(kept: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median and MAD of the last 128 values before each of some places of a series, or of as many as there are.

    Args:
        kept: finite values, in order.
        ends: places; a window is kept[end - 128 : end]. At least one value has to be before each.
    """
    windows = np.lib.stride_tricks.sliding_window_view(np.concatenate([np.full(WINDOW, np.inf), kept]), WINDOW)
    medians, mads = np.empty(len(ends)), np.empty(len(ends))
    for start in range(0, len(ends), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        rows = windows[ends[part]]
        counts = np.minimum(ends[part], WINDOW)
        medians[part] = _middle(rows, counts)
        mads[part] = _middle(np.abs(windows[ends[part]] - medians[part, None]), counts)
    return medians, mads


def _middle(rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Medians of the smallest `counts` values of each row, which are sorted in place."""
    rows.sort(axis=1)
    places = np.arange(len(rows))
    return (rows[places, (counts - 1) // 2] + rows[places, counts // 2]) / 2


def robust_z(values: np.ndarray, flagged: np.ndarray, starts: np.ndarray, floor: float) -> np.ndarray:
    """The robust z of every value; NaN where it is not finite, or where fewer than 16 values are before it.

    Args:
        flagged: of each value; these, and those that are not finite, are in no window.
        starts: rising places, the first of them 0, at which the window begins anew (level shifts).
        floor: of the robust standard deviation.
    """
    z = np.full(len(values), np.nan)
    finite = np.isfinite(values)
    for start, stop in zip(starts, [*starts[1:], len(values)], strict=True):
        here = slice(start, stop)
        enters = finite[here] & ~flagged[here]
        ends = np.cumsum(enters) - enters
        judged = finite[here] & (ends >= FEWEST)
        medians, mads = window_statistics(values[here][enters], ends[judged])
        with np.errstate(over="ignore"):
            scores = (values[here][judged] - medians) / np.maximum(SD_PER_MAD * mads, floor)
        z[here][judged] = scores
    return z


def tail_index(values: np.ndarray, share: float = 0.01) -> float | None:
    """Hill's estimate of how fast the upper tail falls off: P(X > x) ~ x ** -index.

    Args:
        values: robust z; those of normal noise have about 7, heavy tails 2 to 4.
        share: of the values that make the tail.
    Returns:
        None with fewer than 20 values in the tail, or where it is not above 0.
    """
    count = int(len(values) * share)
    if count < 20:
        return None
    top = np.partition(values, -count - 1)[-count - 1 :]
    if top.min() <= 0:
        return None
    mean = float(np.log(top / top.min()).sum()) / count
    return 1 / mean if mean > 0 else None


def theil_sen(x: np.ndarray, y: np.ndarray) -> float:
    """The median of the slopes between all pairs of points; above 512 points, of medians of 256 stretches."""
    if len(x) > 512:
        x, y = stretch_medians(x, 256), stretch_medians(y, 256)
    first, second = np.triu_indices(len(x), 1)
    apart = x[second] != x[first]
    first, second = first[apart], second[apart]
    return float(np.median((y[second] - y[first]) / (x[second] - x[first]))) if len(first) else 0.0


def stretch_medians(values: np.ndarray, num_stretches: int) -> np.ndarray:
    """Medians of equal stretches of a series; what is too much for that at its beginning is left out."""
    medians: np.ndarray = np.median(values[len(values) % num_stretches :].reshape(num_stretches, -1), axis=1)
    return medians


def growth_p_value(x: np.ndarray, y: np.ndarray) -> float:
    """How often a series without a trend has a slope as large as this one's: a one-sided block bootstrap.

    The series becomes medians of 20 blocks, so that what is correlated over less than a block stays together. The
    slope is Theil's: the median over pairs of blocks half the series apart. What is left of the blocks when the trend
    is taken away is drawn with replacement, 399 times, always the same draws. A series that does not rise has 1.

    Args:
        x, y: 20 points or more, x rising.
    """
    x, y = stretch_medians(x, NUM_BLOCKS), stretch_medians(y, NUM_BLOCKS)
    half = NUM_BLOCKS // 2
    distances = x[half:] - x[:half]
    slope = np.median((y[half:] - y[:half]) / distances)
    if slope <= 0:
        return 1.0
    # A line that was fitted takes two of the blocks' freedom away.
    left = (y - slope * x) * np.sqrt(NUM_BLOCKS / (NUM_BLOCKS - 2))
    drawn = left[_drawn_blocks()]
    slopes = np.median((drawn[:, half:] - drawn[:, :half]) / distances, axis=1)
    return float((1 + (slopes >= slope).sum()) / (1 + len(slopes)))


@cache
def _drawn_blocks() -> np.ndarray:
    return np.random.default_rng(0).integers(NUM_BLOCKS, size=(399, NUM_BLOCKS))
