"""Values of a series that stand out upwards, and places where its level changes for good.

A value is flagged whose robust z (probes.robust_statistics) is above 6. Whether it is depends on which values before it
are, so that the rule reads as a loop over the values. It is not computed as one: flags are guessed, computed from the
guess, and computed again until they agree with themselves. The first value where guess and truth differ is right after
one more round, so the loop ends, and where a guess confirms itself it is what the loop over the values would find.

A value that stands out is looked at with the 64 that follow. Where three quarters of them, and of the last 8, stand 4
deviations above (or below) the level before, and no longer move, the level has changed, and the window begins anew:
with the first value of the new level if it was reached in one step (a shift), or, after values that went beyond the new
level or climbed to it, where they have settled (a spike that left the level changed).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import rank_filter

from probes.robust_statistics import (
    FEWEST,
    SD_PER_MAD,
    THRESHOLD,
    WINDOW,
    smallest_scale,
    window_statistics,
)

AHEAD = 64  # values that a change of level is judged by; at the end of a series half of them are enough
SHIFT = 4.0  # robust standard deviations
SHARE = 0.75  # of those values, and of the last of them
AT_THE_END = 8
PAUSE = 32  # values between two looks at one outlier
_LARGEST_BLOCK, _SMALLEST_BLOCK = 2**16, 2**12


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelChange:
    """A place from which on the window holds new values only.

    Attributes:
        index: of the first value of the new window.
        cause: `shift`: from one value to the next. `spike`: after an outlier.
        before, after: the levels (medians), `scale`: the robust standard deviation before.
    """

    index: int
    cause: Literal["shift", "spike"]
    before: float
    after: float
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outliers:
    """What stands out of a series.

    Attributes:
        flagged: bool, one a value.
        medians, scales: of the window before each flagged value, NaN at others; z is (value - median) / scale.
        changes: in order.
        floor: of `scales`.
    """

    flagged: np.ndarray
    medians: np.ndarray
    scales: np.ndarray
    changes: tuple[LevelChange, ...]
    floor: float

    @property
    def starts(self) -> np.ndarray:
        """Places at which a window begins, from 0 on."""
        return np.array([0, *(change.index for change in self.changes)])


def upward_outliers(values: np.ndarray, floor: float | None = None) -> Outliers:
    """
    Args:
        values: in order; those that are not finite are passed over.
        floor: of the robust standard deviation; default: what the precision of the values allows.
    """
    floor = smallest_scale(values) if floor is None else floor
    (places,) = np.nonzero(np.isfinite(values))
    with np.errstate(over="ignore"):
        search = _Search(values[places], floor)
        search.run()
    flagged = np.zeros(len(values), dtype=bool)
    medians, scales = np.full(len(values), np.nan), np.full(len(values), np.nan)
    flagged[places] = search.flagged
    flags = np.flatnonzero(search.flagged)
    medians[places[flags]], scales[places[flags]] = search.medians[flags], search.scales[flags]
    changes = tuple(
        LevelChange(
            index=int(places[change.index]),
            cause=change.cause,
            before=change.before,
            after=change.after,
            scale=change.scale,
        )
        for change in search.changes
    )
    return Outliers(flagged=flagged, medians=medians, scales=scales, changes=changes, floor=floor)


class _Search:
    """Goes through finite values, a block at a time."""

    def __init__(self, values: np.ndarray, floor: float) -> None:
        self.values, self.floor = values, floor
        self.flagged = np.zeros(len(values), dtype=bool)
        self.medians, self.scales = np.full(len(values), np.nan), np.full(len(values), np.nan)
        self.changes: list[LevelChange] = []
        self.looked = 0  # values before this place have been looked at for a change

    def run(self) -> None:
        position, block = 0, _SMALLEST_BLOCK
        history = self.values[:0]
        while position < len(self.values):
            here = slice(position, min(position + block, len(self.values)))
            low = self._flag(history, here)
            change = self._first_change(here, low)
            if change is None:
                history = np.concatenate([history, self.values[here][~self.flagged[here]]])[-WINDOW:]
                position, block = here.stop, min(2 * block, _LARGEST_BLOCK)
            else:
                self.changes.append(change)
                self.flagged[change.index :] = False
                position = self.looked = change.index
                history, block = self.values[:0], _SMALLEST_BLOCK

    def _flag(self, history: np.ndarray, here: slice) -> np.ndarray:
        """Set the flags of a block, and their medians and scales; returns the places of values that are far below."""
        values, flagged = self.values[here], np.zeros(here.stop - here.start, dtype=bool)
        medians, scales = self.medians[here], self.scales[here]
        low = flagged.copy()
        rows: np.ndarray | None = None
        ends = _ends(len(history), flagged)
        while True:
            kept = np.concatenate([history, values[~flagged]])
            judged = np.arange(len(values)) if rows is None else rows
            candidates = judged if rows is not None else _candidates(kept, ends, values)
            candidates = candidates[ends[candidates] >= FEWEST]
            found, mads = window_statistics(kept, ends[candidates])
            medians[candidates], scales[candidates] = found, np.maximum(SD_PER_MAD * mads, self.floor)
            z = (values[candidates] - found) / scales[candidates]
            now = flagged.copy()
            now[judged] = low[judged] = False
            now[candidates[z > THRESHOLD]] = True
            low[candidates[z < -THRESHOLD]] = True
            (changed,) = np.nonzero(now != flagged)
            if not len(changed):
                self.flagged[here] = flagged
                return np.flatnonzero(low)
            ends_before, ends = ends, _ends(len(history), now)
            rows, flagged = _affected(changed, ends_before, ends), now

    def _first_change(self, here: slice, low: np.ndarray) -> LevelChange | None:
        high = np.flatnonzero(self.flagged[here])
        places = np.sort(np.concatenate([high, low])) + here.start
        for index in self._persistent(places):
            if index < self.looked:
                continue
            self.looked = index + PAUSE
            if change := self._change_at(index, here.stop):
                return change
        return None

    def _persistent(self, places: np.ndarray) -> Iterator[int]:
        """Those of the outliers after which most of 64 values stay on their side of the level before."""
        places = places[places + AHEAD // 2 <= len(self.values)]
        ahead = np.minimum(places[:, None] + np.arange(AHEAD), len(self.values) - 1)
        inside = places[:, None] + np.arange(AHEAD) < len(self.values)
        away = (self.values[ahead] - self.medians[places, None]) / self.scales[places, None]
        side = np.sign(self.values[places] - self.medians[places])
        on_side = (away * side[:, None] > SHIFT) & inside
        counts = inside.sum(axis=1)
        at_the_end = np.arange(AHEAD) >= counts[:, None] - AT_THE_END
        held = on_side.sum(axis=1) >= SHARE * counts
        held &= (on_side & at_the_end).sum(axis=1) >= SHARE * AT_THE_END
        yield from places[held].tolist()

    def _change_at(self, index: int, stop: int) -> LevelChange | None:
        """
        Args:
            stop: values from here on are not judged yet.
        """
        values, begin = self.values, self._begin
        before, scale = float(self.medians[index]), float(self.scales[index])
        ahead = values[index : index + AHEAD]
        half = len(ahead) // 2
        after = float(np.median(ahead[half:]))
        spread = max(SD_PER_MAD * float(np.median(np.abs(ahead[half:] - after))), self.floor)
        if abs(float(np.median(ahead[:half])) - after) > spread:
            return None  # it moves on
        split = _split(values, max(begin + FEWEST, index - PAUSE), index, index + len(ahead), before, after)
        climbed = np.count_nonzero(self.flagged[max(begin, split - PAUSE) : split]) >= 3
        overshot = float(values[split : split + FEWEST].max()) > after + THRESHOLD * spread
        if after < before or not (climbed or overshot):
            return LevelChange(index=split, cause="shift", before=before, after=after, scale=scale)
        settled = next((k for k in range(index, index + PAUSE) if values[k : k + 8].mean() <= after + spread), index)
        settled = min(max(settled, index + 1), stop)
        return LevelChange(index=settled, cause="spike", before=before, after=after, scale=scale)

    @property
    def _begin(self) -> int:
        return self.changes[-1].index if self.changes else 0


def _ends(num_before: int, flagged: np.ndarray) -> np.ndarray:
    """How many unflagged values are before each."""
    return num_before + np.cumsum(~flagged) - ~flagged


def _candidates(kept: np.ndarray, ends: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Places of values that may be further than 6 robust standard deviations from the median; no other is.

    Of 128 sorted values, at most 63 lie strictly between the 33rd and the 97th, so that the MAD, which half of the 128
    are inside of, is at least the smaller of their distances from the middle.
    """
    full = ends >= WINDOW
    candidates = ~full
    if full.any():
        low, left, right, high = (_ranked(kept, rank) for rank in (32, 63, 64, 96))
        mad = SD_PER_MAD * np.minimum(left - low, high - right)
        places = ends[full] - WINDOW
        margin = (1 - 1e-9) * THRESHOLD * mad  # so that rounding excludes none
        here = values[full]
        candidates[full] = (here > (left + margin)[places]) | (here < (right - margin)[places])
    return np.flatnonzero(candidates)


def _ranked(kept: np.ndarray, rank: int) -> np.ndarray:
    """The value of a 0-based rank in each window of 128, those of kept[0:128], kept[1:129], …"""
    filtered: np.ndarray = rank_filter(kept, rank, size=WINDOW)
    return filtered[WINDOW // 2 : len(kept) - WINDOW // 2 + 1]


def _affected(changed: np.ndarray, ends_before: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Places whose windows may hold another value now that some flags have changed."""
    stops = np.maximum(*(np.searchsorted(counts, counts[changed] + WINDOW, "right") for counts in (ends_before, ends)))
    marks = np.zeros(len(ends) + 1, dtype=np.int64)
    np.add.at(marks, changed + 1, 1)
    np.add.at(marks, np.maximum(stops, changed + 1), -1)
    return np.flatnonzero(np.cumsum(marks[:-1]) > 0)


def _split(values: np.ndarray, low: int, index: int, stop: int, before: float, after: float) -> int:
    """The first value of the new level: where two levels fit best, in the least squares of values cut at the levels."""
    low = min(low, index)
    cut = np.clip(values[low:stop], min(before, after), max(before, after)) - (before + after) / 2
    sums = np.cumsum(cut if after > before else -cut)[: index - low + 1]
    # Before the split values are on the old level's side, and their sum is least there.
    return low + int(np.argmin(np.concatenate([[0.0], sums[:-1]]))) if len(sums) else index
