"""A series with what stands out of it, and the local measures that an event is described by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forensics.logged_series import Points
from probes.robust_statistics import FEWEST, SD_PER_MAD, WINDOW, growth_p_value, robust_z, window_statistics
from probes.steep_stretch import outliers_with_steep_beginning
from probes.upward_outliers import Outliers

TRAILING = 8  # logged values whose mean has to be back for a spike to be over
AROUND = 64, 256  # unflagged values on either side, at least and at most, for what an event leaves behind
LONGEST_WAIT = 256  # steps
BEFORE = 500  # unflagged values before an event, for whether the gradient norm crept up
FEWEST_BEFORE = 100


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JudgedSeries:
    """
    Attributes:
        steps: int64, rising.
        values: float64, as many.
        interval: steps from one logged value to the next, as a rule.
        num_steep: values at the beginning that were also judged against the trend (probes.steep_stretch).
        unflagged: places of values that are finite and do not stand out.
        finite: places of values that are finite.
    """

    name: str
    steps: np.ndarray
    values: np.ndarray
    outliers: Outliers
    interval: int
    num_steep: int
    unflagged: np.ndarray
    finite: np.ndarray

    @property
    def flagged_steps(self) -> np.ndarray:
        return self.steps[self.outliers.flagged]

    def z(self) -> np.ndarray:
        """The robust z of every value; NaN where there is none."""
        return robust_z(self.values, self.outliers.flagged, self.outliers.starts, self.outliers.floor)

    def sampled_z(self, most: int = 100_000) -> np.ndarray:
        """The robust z of all judged values, or of so many places that lie evenly apart."""
        if len(self.steps) <= most:
            z = self.z()
            return z[np.isfinite(z)]
        found = []
        places = self.finite[np.linspace(0, len(self.finite) - 1, most).astype(np.int64)]
        for start, stop in zip(self.outliers.starts, [*self.outliers.starts[1:], len(self.steps)], strict=True):
            here = places[(places >= start) & (places < stop)]
            first = np.searchsorted(self.unflagged, start)
            ends = np.searchsorted(self.unflagged, here) - first
            here, ends = here[ends >= FEWEST], ends[ends >= FEWEST]
            kept = self.values[self.unflagged[first : np.searchsorted(self.unflagged, stop)]]
            medians, mads = window_statistics(kept, ends)
            found.append((self.values[here] - medians) / np.maximum(SD_PER_MAD * mads, self.outliers.floor))
        return np.concatenate(found)

    def level_at(self, place: int) -> tuple[float, float]:
        """Median and robust standard deviation of the window before a value; NaN where the history is too short."""
        if self.outliers.flagged[place]:
            return float(self.outliers.medians[place]), float(self.outliers.scales[place])
        before = self._unflagged_before(place)
        if len(before) < FEWEST:
            return float("nan"), float("nan")
        medians, mads = window_statistics(self.values[before], np.array([len(before)]))
        return float(medians[0]), max(SD_PER_MAD * float(mads[0]), self.outliers.floor)

    def _unflagged_before(self, place: int, most: int = WINDOW, older_than: int = 0) -> np.ndarray:
        """Places of the last unflagged values since the window before a value, or before `older_than` values, began."""
        number = int(np.searchsorted(self.outliers.starts, place - older_than, "right"))
        begin = self.outliers.starts[max(number - 1, 0)]
        stop = int(np.searchsorted(self.unflagged, place))
        before = self.unflagged[max(stop - most, 0) : stop]
        return before[before >= begin]

    def recovery(self, place: int, median: float, scale: float, limit: int) -> int | None:
        """The first step after a place where the mean of the trailing values is back within one deviation of a level.

        The mean is of the last 8 logged values. Where steps are missing from the log it does not reach back over the
        hole; of fewer values n it may be further away, by sqrt(8 / n), as its own error is larger.

        Args:
            limit: the place to stop at.
        """
        begin, size = int(np.searchsorted(self.finite, place, "right")), TRAILING * 4
        stop = int(np.searchsorted(self.finite, limit))
        while begin < stop:
            here = np.arange(begin, min(begin + size, stop))
            rows = here[:, None] - np.arange(TRAILING)
            places = self.finite[np.maximum(rows, 0)]
            near = self.steps[places] > self.steps[self.finite[here], None] - TRAILING * self.interval
            near &= rows >= 0
            counts = near.sum(axis=1)
            means = np.where(near, self.values[places], 0.0).sum(axis=1) / counts
            back = means <= median + scale * np.sqrt(TRAILING / counts)
            if back.any():
                return int(self.steps[self.finite[here[back.argmax()]]])
            begin, size = begin + size, size * 4
        return None

    def lasting_offset(self, first: int, last: int) -> float | None:
        """Level after an event minus level before it, both as the lines on either side have them in its middle.

        A line goes through twice as many unflagged values as lie between, at least 64 and at most 256, with the median
        slope between those that lie half of them apart: a curve that falls ever more slowly leaves little in the
        difference of both. The values after the event begin as long after it as it lasted, at most 256 steps: a spike
        ends with a tail.

        Args:
            first, last: steps, the last exclusive.
        Returns:
            None with fewer than 16 values on a side.
        """
        places = np.searchsorted(self.steps, (first, last + min(last - first, LONGEST_WAIT)))
        start, stop = np.searchsorted(self.unflagged, places)
        around = min(max(2 * int(places[1] - places[0]), AROUND[0]), AROUND[1])
        before = self.unflagged[max(start - around, 0) : start]
        after = self.unflagged[stop : stop + around]
        if min(len(before), len(after)) < FEWEST:
            return None
        middle = (self.steps[before[-1]] + self.steps[after[0]]) / 2
        return self._level_seen_from(middle, after) - self._level_seen_from(middle, before)

    def _level_seen_from(self, step: float, places: np.ndarray) -> float:
        """Where the line through some values is at a step."""
        half, steps, values = len(places) // 2, self.steps[places], self.values[places]
        first, second = slice(0, len(places) - half), slice(half, None)
        slope = np.median((values[second] - values[first]) / (steps[second] - steps[first]))
        return float(np.median(values - slope * (steps - step)))

    def crept_up(self, place: int, significance: float) -> bool | None:
        """Did the logarithm of the series rise over the 500 unflagged values before? None: too few of them."""
        # The gradient norm may fall to a new level with the spike itself.
        before = self._unflagged_before(place, BEFORE, older_than=FEWEST)
        before = before[self.values[before] > 0]
        if len(before) < FEWEST_BEFORE:
            return None
        return growth_p_value(self.steps[before].astype(float), np.log(self.values[before])) < significance


def steps_of_any(series: Sequence[JudgedSeries]) -> np.ndarray:
    """The steps that one of the series logged, rising."""
    if all(np.array_equal(other.steps, series[0].steps) for other in series[1:]):
        return series[0].steps
    return np.unique(np.concatenate([each.steps for each in series]))


def judged(name: str, points: Points, interval: int, floor: float | None = None) -> JudgedSeries:
    """
    Args:
        floor: of the robust standard deviation; default: what the precision of these values allows.
    """
    outliers, num_steep = outliers_with_steep_beginning(points.values, floor)
    finite = np.isfinite(points.values)
    return JudgedSeries(
        name=name,
        steps=points.steps,
        values=points.values,
        outliers=outliers,
        interval=interval,
        num_steep=num_steep,
        unflagged=np.flatnonzero(finite & ~outliers.flagged),
        finite=np.flatnonzero(finite),
    )
