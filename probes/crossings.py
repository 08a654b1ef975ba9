"""Where two curves over training cross for the last time, and where they would cross next.

A verdict between two runs is provisional while their curves still move towards each other. The band of the difference
holds at all places together (Bonferroni), so that it excludes 0 somewhere by chance in 5 % of the cases at most,
however the errors of neighbouring checkpoints depend on each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
Z = 1.96  # half the width of a 95 % interval, in standard errors
_OF_THE_END = 3  # one point in so many, at the end, tells where the difference goes, three at the least
_FARTHEST = 1.0  # in the unit of x: a line tells nothing beyond


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """How the difference of two curves, one minus other, changes its sign.

    Attributes:
        before, after: places between which its sign changed for the last time; None: it never did.
        crosses_at: where the line between the two is 0.
        sign: of the difference at the end: 1, -1, or 0 where the curves are equal everywhere.
        was_sure, is_sure: does the band exclude 0 somewhere before the last change, with the sign it had then, and
            somewhere after it, with the sign it has? None where intervals are not known.
        next_at: where the difference, as it goes at the end, will be 0; None where it does not come near.
        num_places: at which both curves have a value, interpolated where only one was measured.
    """

    before: float | None
    after: float | None
    crosses_at: float | None
    sign: int
    was_sure: bool | None
    is_sure: bool | None
    next_at: float | None
    num_places: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Values:
    """A curve: float64 arrays [n], x rising. `half_widths` of the 95 % intervals; NaN where there is none."""

    x: np.ndarray
    y: np.ndarray
    half_widths: np.ndarray

    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values and half-widths there, on the line between neighbours."""
        return np.interp(places, self.x, self.y), np.interp(places, self.x, self.half_widths)


def crossing(one: Values, other: Values) -> Crossing | None:
    """
    Returns:
        None where the curves have no two places in common.
    """
    places = _common_places(one.x, other.x)
    if len(places) < 2:
        return None
    (mine, my_width), (its, its_width) = one.at(places), other.at(places)
    difference, error = mine - its, np.hypot(my_width, its_width) / Z
    signs = np.sign(difference)
    (told,) = np.nonzero(signs)
    changes = np.flatnonzero(np.diff(signs[told]))
    first, last = (int(told[changes[-1]]), int(told[changes[-1] + 1])) if len(changes) else (None, None)
    border = last if last is not None else 0
    sure = _sure_signs(difference, error)
    sign = int(signs[told[-1]]) if len(told) else 0
    return Crossing(
        before=None if first is None else float(places[first]),
        after=None if last is None else float(places[last]),
        crosses_at=None if first is None or last is None else _zero_between(places, difference, first, last),
        sign=sign,
        was_sure=None if sure is None or last is None else bool((sure[:border] == -sign).any()),
        is_sure=None if sure is None else bool(sign and (sure[border:] == sign).any()),
        next_at=_next_zero(places, difference),
        num_places=len(places),
    )


def _common_places(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """All places of either where both have values or lie between values."""
    if not len(one) or not len(other):
        return np.empty(0)
    first, last = max(one[0], other[0]), min(one[-1], other[-1])
    places = np.union1d(one, other)
    return np.asarray(places[(places >= first) & (places <= last)])


def _sure_signs(difference: np.ndarray, error: np.ndarray) -> np.ndarray | None:
    """The sign where the simultaneous band excludes 0, else 0; None where no interval is known."""
    known = np.isfinite(error)
    if not known.any():
        return None
    z = NormalDist().inv_cdf(1 - (1 - LEVEL) / 2 / int(known.sum()))
    excluded = known & (np.abs(difference) > z * np.where(known, error, 0.0))
    return np.where(excluded, np.sign(difference), 0.0)


def _zero_between(places: np.ndarray, difference: np.ndarray, first: int, last: int) -> float:
    """Where the difference is 0: in the middle of equal values, else on the line between its two sides."""
    if last - first > 1:
        return float((places[first + 1] + places[last - 1]) / 2)
    share = difference[first] / (difference[first] - difference[last])
    return float(places[first] + share * (places[last] - places[first]))


def _next_zero(places: np.ndarray, difference: np.ndarray) -> float | None:
    """Where the line through the last third of the differences is 0, if that is ahead and not too far."""
    count = max(len(places) // _OF_THE_END, 3)
    if len(places) < 3:
        return None
    x, y = places[-count:], difference[-count:]
    slope, height = np.polyfit(x - x[-1], y, 1)
    if slope * height >= 0:  # it goes away from 0, or stays
        return None
    ahead = float(-height / slope)
    return float(x[-1] + ahead) if ahead <= _FARTHEST else None
