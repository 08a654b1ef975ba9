"""How heavy the tail of a spectrum is: a power law p(x) ~ x^-alpha fitted to the values from some xmin on.

For every xmin the exponent of largest likelihood is alpha = 1 + n / sum(ln(x / xmin)), over the n values from xmin on.
Of all xmin that one is chosen whose tail lies closest to its power law: the smallest Kolmogorov-Smirnov distance
max |S(x) - P(x)|, S and P being how many values are at most x. S jumps at each value, and both sides of the jump count.

Source: Clauset, Shalizi & Newman 2009, arXiv 0706.1062 (both rules, the standard error; that under 50 values in the
tail say little). weightwatcher (WW_powerlaw.py of 0.7.7) fits eigenvalues of W' W in the same way, but counts only the
lower side of each jump, so that it may choose another xmin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaw:
    """
    Attributes:
        alpha: exponent of the density of the values in the tail.
        xmin: the smallest of them.
        distance: Kolmogorov-Smirnov, of the tail to its power law; between 1 / (2 num_tail) and 1.
        num_tail: values from xmin on. num_values: positive values in all.
    """

    alpha: float
    xmin: float
    distance: float
    num_tail: int
    num_values: int

    @property
    def standard_error(self) -> float:
        """Of alpha, for this xmin."""
        return (self.alpha - 1) / math.sqrt(self.num_tail)


def power_law_tail(values: np.ndarray, fewest_in_tail: int = 2) -> PowerLaw | None:
    """The power law that fits the upper tail of some values best.

    Args:
        values: eigenvalues of W' W (`MatrixSpectrum.eigenvalues`) or any others, in any order; only those that are
            positive count. The unit does not matter to alpha.
        fewest_in_tail: a tail of fewer values is not tried; 2 is all.
    Returns:
        None where no tail has two different values.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    ordered = ordered[np.isfinite(ordered) & (ordered > 0)]
    starts = np.flatnonzero(np.diff(ordered, prepend=0.0))  # the first of each group of equal values
    starts = starts[starts <= len(ordered) - max(fewest_in_tail, 2)]
    fits = [fit for start in starts if (fit := power_law_from(ordered[start:], num_values=len(ordered))) is not None]
    return min(fits, key=lambda fit: fit.distance, default=None)


def power_law_from(tail: np.ndarray, num_values: int | None = None) -> PowerLaw | None:
    """The power law of largest likelihood for values whose smallest is xmin, and its distance from them.

    Args:
        tail: positive, rising. num_values: of which it is the tail; its own number if None.
    Returns:
        None where all values are equal.
    """
    logs = np.log(tail / tail[0])
    total = float(logs.sum())
    if total <= 0:
        return None
    num_tail = len(tail)
    alpha = 1 + num_tail / total
    below = -np.expm1((1 - alpha) * logs)  # P(x) of each value
    counts = np.arange(num_tail + 1) / num_tail
    distance = max(float((counts[1:] - below).max()), float((below - counts[:-1]).max()))
    return PowerLaw(
        alpha=alpha,
        xmin=float(tail[0]),
        distance=distance,
        num_tail=num_tail,
        num_values=num_tail if num_values is None else num_values,
    )
