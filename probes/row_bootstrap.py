"""Bootstrap intervals of means, and of sums and differences of means, where rows or clusters of rows are independent.

Tokens of a row are not independent, and rows of a document are not either; so whole clusters are drawn. Clusters that
contribute to the same of the means (treated rows, control rows, both …) are drawn among themselves, so that no draw
lacks a side. The interval is the percentile interval.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993 (percentile intervals)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_DRAWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its interval, in the unit of the value.

    Attributes:
        low, high: NaN where a mean has no value, or where every cluster that is drawn is alone among its like, so that
            all draws are the same.
        num_clusters: that are drawn.
    """

    value: float
    low: float
    high: float
    num_clusters: int


def estimate_of(
    totals: np.ndarray,
    counts: np.ndarray,
    weights: Sequence[float] | np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    num_draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Σ_k weight_k · (Σ_rows total_k / Σ_rows count_k): a mean, or several means weighted and added.

    Args:
        totals: what each row adds to the numerator of each mean, [rows, means]; counts: to the denominator, ≥ 0.
        clusters: of each row, integers [rows]; None: each row is its own.
    Raises:
        ValueError: shapes that do not belong together.
    """
    if totals.shape != counts.shape or totals.shape[1:] != (len(weights),):
        raise ValueError(f"totals {totals.shape}, counts {counts.shape} and {len(weights)} weights do not match")
    totals, counts = _of_clusters(totals, clusters), _of_clusters(counts, clusters)
    taken = ((counts > 0) | (totals != 0)).any(axis=1)
    totals, counts = totals[taken], counts[taken]
    factors = np.asarray(weights, dtype=np.float64)
    value = float(_value(totals.sum(axis=0), counts.sum(axis=0), factors))
    kinds, kind = np.unique(counts > 0, axis=0, return_inverse=True)
    if not np.isfinite(value) or len(kinds) == len(totals):
        return Estimate(value=value, low=float("nan"), high=float("nan"), num_clusters=len(totals))
    members = [np.flatnonzero(kind.reshape(-1) == number) for number in range(len(kinds))]
    drawn = _drawn_values(totals, counts, factors, members, num_draws, seed)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value=value, low=float(low), high=float(high), num_clusters=len(totals))


def _of_clusters(values: np.ndarray, clusters: np.ndarray | None) -> np.ndarray:
    values = values.astype(np.float64)
    if clusters is None:
        return values
    if clusters.shape != (len(values),):
        raise ValueError(f"{len(values)} rows need as many cluster ids, not an array of shape {clusters.shape}")
    _, cluster = np.unique(clusters, return_inverse=True)
    summed = np.zeros((int(cluster.max(initial=-1)) + 1, values.shape[1]))
    np.add.at(summed, cluster, values)
    return summed


def _value(totals: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """NaN where a count is 0. The means are in the last dimension."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((totals / counts) @ weights)


def _drawn_values(
    totals: np.ndarray,
    counts: np.ndarray,
    weights: np.ndarray,
    members: Sequence[np.ndarray],
    num_draws: int,
    seed: int,
) -> np.ndarray:
    """The value of each draw: as many clusters of each kind as there are, with replacement."""
    rng = np.random.default_rng(seed)
    values = []
    for start in range(0, num_draws, _DRAWS_AT_ONCE):
        size = min(_DRAWS_AT_ONCE, num_draws - start)
        drawn_totals, drawn_counts = np.zeros((2, size, totals.shape[1]))
        for those in members:
            times = rng.multinomial(len(those), np.full(len(those), 1 / len(those)), size=size).astype(np.float64)
            drawn_totals += times @ totals[those]
            drawn_counts += times @ counts[those]
        values.append(_value(drawn_totals, drawn_counts, weights))
    return np.concatenate(values)
