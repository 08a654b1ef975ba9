"""Where a curve over training changes its slope: a line in each of several stretches, as many as the noise allows.

The stretches are those that minimise the sum of squared residuals divided by the noise variance, plus 4 · log n for
each: two for its line, and two for its border, which was searched for. They are found exactly, by dynamic programming
over all borders. The noise is how far points lie from the line through their two neighbours.

The noise must be independent from point to point: where neighbours err together, their common error is cut into lines
as well, and so is a curve that bends smoothly. A break says that one line does not do, not that something happened
there.

Source: Jackson et al., An algorithm for optimal partitioning of data on an interval, 2005; Zhang and Siegmund, A
modified Bayes information criterion, Biometrics 63, 2007 (what a border costs)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.robust_statistics import SD_PER_MAD

FEWEST = 3  # points of a stretch: two are always on a line
_PENALTY = 4.0
_FAR = 5.0
_SMALLEST_NOISE = 1e-6  # of the range of the values: what rounding leaves of the residuals of exact lines is below


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """A border between two stretches.

    Attributes:
        last: number of the last point before it; the break lies between this point and the next.
        slope_before, slope_after: of the values over x.
        low, high: 95 % interval of the change, slope_after - slope_before, the border held fixed.
    """

    last: int
    slope_before: float
    slope_after: float
    low: float
    high: float


def breakpoints(x: np.ndarray, y: np.ndarray, *, num_draws: int = 1000, seed: int = 0) -> tuple[list[Break], float]:
    """Breaks of a curve and the standard deviation of its noise.

    Args:
        x: rising, float64 [n]; of training curves the logarithm of the step.
        y: finite, float64 [n]; fewer than 2 · FEWEST values have no break.
    Returns:
        The breaks in the order of x; the deviation is NaN where three points in a row are not there.
    Raises:
        ValueError: x does not rise, or shapes differ, or a value is not finite.
    """
    if x.shape != y.shape or (np.diff(x) <= 0).any() or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("breakpoints need finite values at places that rise")
    noise = adjacent_noise(x, y)
    smallest = _SMALLEST_NOISE * float(np.ptp(y)) if len(y) else 0.0
    if len(y) < 2 * FEWEST or not max(noise, smallest) > 0:
        return [], noise
    borders = _best_borders(x, y, max(noise, smallest) ** 2)
    return _breaks(x, y, borders, num_draws, seed), noise


def adjacent_noise(x: np.ndarray, y: np.ndarray) -> float:
    """The standard deviation of independent normal noise, from how far points lie from the line through neighbours.

    Distances of more than five robust deviations are those of breaks, and left out; where most distances are 0 (a score
    that stays 0 at first), all count.
    """
    if len(y) < 3:
        return float("nan")
    share = (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
    distances = y[1:-1] - (1 - share) * y[:-2] - share * y[2:]
    scaled = np.abs(distances) / np.sqrt(1 + share**2 + (1 - share) ** 2)
    typical = float(np.median(scaled))
    return float(np.sqrt(np.pi / 2) * (scaled[scaled <= _FAR * SD_PER_MAD * typical] if typical else scaled).mean())


def _best_borders(x: np.ndarray, y: np.ndarray, variance: float) -> list[int]:
    """Numbers of points that begin a stretch, and n: 0, …, n."""
    count, penalty = len(y), _PENALTY * np.log(len(y))
    sums = [np.concatenate([[0.0], np.cumsum(part)]) for part in _moments(x - x.mean(), y - y.mean())]
    best, begin = np.full(count + 1, np.inf), np.zeros(count + 1, dtype=np.int64)
    best[0] = 0.0
    for end in range(FEWEST, count + 1):
        starts = np.arange(0, end - FEWEST + 1)
        costs = best[starts] + _residuals(sums, starts, end) / variance + penalty
        begin[end] = int(np.argmin(costs))
        best[end] = costs[begin[end]]
    borders = [count]
    while borders[0] > 0:
        borders.insert(0, int(begin[borders[0]]))
    return borders


def _moments(x: np.ndarray, y: np.ndarray) -> Sequence[np.ndarray]:
    return np.ones_like(x), x, y, x * x, x * y, y * y


def _residuals(sums: Sequence[np.ndarray], starts: np.ndarray, end: int) -> np.ndarray:
    """Sums of squared residuals of the lines through points start .. end - 1."""
    number, x, y, xx, xy, yy = (total[end] - total[starts] for total in sums)
    spread, common = xx - x * x / number, xy - x * y / number
    return np.maximum(yy - y * y / number - common**2 / spread, 0.0)


def _breaks(x: np.ndarray, y: np.ndarray, borders: Sequence[int], num_draws: int, seed: int) -> list[Break]:
    stretches = [slice(start, stop) for start, stop in zip(borders, borders[1:], strict=False)]
    if len(stretches) < 2:
        return []
    weights = np.zeros((len(stretches), len(x)))
    fitted = np.empty_like(y)
    for row, stretch in zip(weights, stretches, strict=True):
        apart = x[stretch] - x[stretch].mean()
        row[stretch] = apart / (apart @ apart)
        fitted[stretch] = y[stretch].mean() + apart * (row[stretch] @ y[stretch])
    slopes = weights @ y
    drawn = (fitted + _drawn_residuals(y - fitted, 2 * len(stretches), num_draws, seed)) @ weights.T
    low, high = np.quantile(np.diff(drawn, axis=1), [0.025, 0.975], axis=0)
    return [
        Break(
            last=stretch.stop - 1,
            slope_before=float(slopes[number]),
            slope_after=float(slopes[number + 1]),
            low=float(low[number]),
            high=float(high[number]),
        )
        for number, stretch in enumerate(stretches[:-1])
    ]


def _drawn_residuals(residuals: np.ndarray, num_fitted: int, num_draws: int, seed: int) -> np.ndarray:
    """Residuals in blocks of neighbours, drawn with replacement, that go round from the end to the start: [draws, n].

    Fitting made them too small, and the more so sums of them over a block: each fitted number takes away as much as a
    block holds. (Of planted breaks in independent noise, 89 to 94 % of the intervals then hold the true change, with 13
    to 154 points; with the usual n / (n - fitted), 82 to 87 %.)
    """
    count = len(residuals)
    length = max(2, round(count ** (1 / 3)))
    scale = np.sqrt(count / max(count - length * num_fitted, 1))
    starts = np.random.default_rng(seed).integers(0, count, size=(num_draws, -(-count // length)))
    places = (starts[:, :, None] + np.arange(length)).reshape(num_draws, -1)[:, :count] % count
    return np.asarray(scale * residuals[places])
