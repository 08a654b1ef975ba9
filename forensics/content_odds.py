"""How much more often some rows carry a signal than a run's rows do, and to which side of them they lie as a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.odds_ratio import odds_of, superiority_of


@dataclass(frozen=True, slots=True, kw_only=True)
class OddsRatio:
    """How much more often suspects carry a signal than the run's rows do.

    Attributes:
        suspects, base: rows of which it is known.
        ratio, low, high, p_value: as in `probes.odds_ratio`. Many signals are tested: of 20, one has a p-value below
            0.05 by chance.
    """

    signal: str
    description: str
    suspects_with: int
    suspects: int
    base_with: int
    base: int
    ratio: float
    low: float
    high: float
    p_value: float

    @property
    def more_frequent(self) -> bool:
        """Do suspects carry it more often? (Of few suspects without it, the ratio alone does not tell.)"""
        return self.suspects_with * self.base > self.base_with * self.suspects


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """Do suspects lie to one side of the run's rows as a group, though none may be strange by itself?

    Attributes:
        signal: a measure that lies on a scale.
        superiority: the probability that a suspect's value is above that of a row of the run, ties counted half.
        p_value: of Mann and Whitney's test, two-sided.
    """

    signal: str
    description: str
    suspects: int
    base: int
    median: float
    base_median: float
    superiority: float
    p_value: float


def odds_ratio(signal: str, description: str, suspects: Sequence[bool], base: np.ndarray) -> OddsRatio:
    """
    Args:
        suspects, base: whether each carries the signal, those of which it is not known left out.
    """
    odds = odds_of(sum(suspects), len(suspects), int(base.sum()), len(base))
    return OddsRatio(
        signal=signal,
        description=description,
        suspects_with=sum(suspects),
        suspects=len(suspects),
        base_with=int(base.sum()),
        base=len(base),
        ratio=odds.ratio,
        low=odds.low,
        high=odds.high,
        p_value=odds.p_value,
    )


def shift(signal: str, description: str, suspects: np.ndarray, base: np.ndarray) -> Shift | None:
    """None where nothing is known, or most of the base has the same value: there the odds of a flag tell."""
    _, counts = np.unique(base, return_counts=True)
    if not len(suspects) or 2 * counts.max(initial=0) >= len(base):
        return None
    superiority, p_value = superiority_of(suspects, base)
    return Shift(
        signal=signal,
        description=description,
        suspects=len(suspects),
        base=len(base),
        median=float(np.median(suspects)),
        base_median=float(np.median(base)),
        superiority=superiority,
        p_value=p_value,
    )
