"""Is a property more frequent, or a value larger, among some things than among others?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Odds:
    """
    Attributes:
        ratio: (with / without among the suspects) / (with / without in the base), 0.5 added to each of the four counts
            (Haldane, Anscombe), so that it is finite.
        low, high: its 95 % interval, by the normal approximation of its logarithm (Woolf).
        p_value: Fisher's exact test of the counts as they are, two-sided.
    """

    ratio: float
    low: float
    high: float
    p_value: float


def odds_of(with_it: int, suspects: int, base_with_it: int, base: int) -> Odds:
    """The odds of a property among `suspects` things, `with_it` of which have it, beside those in a base."""
    from scipy.stats import fisher_exact

    counts = (with_it, suspects - with_it, base_with_it, base - base_with_it)
    a, b, c, d = (count + 0.5 for count in counts)
    logarithm, spread = math.log(a * d / (b * c)), Z_95 * math.sqrt(1 / a + 1 / b + 1 / c + 1 / d)
    return Odds(
        ratio=math.exp(logarithm),
        low=math.exp(logarithm - spread),
        high=math.exp(logarithm + spread),
        p_value=float(fisher_exact([counts[:2], counts[2:]]).pvalue),
    )


def superiority_of(values: np.ndarray, base: np.ndarray) -> tuple[float, float]:
    """The probability that one of some values is above one of a base (ties half), and Mann and Whitney's p-value.

    Two-sided; by the normal approximation unless there are no ties and few values, and never below what so many values
    can show at all. Of values that are mostly equal the approximation says nothing.
    """
    from scipy.stats import mannwhitneyu

    found = mannwhitneyu(values, base)
    least = 1 / math.comb(len(values) + len(base), len(values))
    return float(found.statistic) / (len(values) * len(base)), max(float(found.pvalue), least)
