"""The cluster of untrained rows at a checkpoint, and when rows left it.

Rows that training never used do not lie in one point: each is still partly as it was initialized. How far they scatter
is told by those that are known to be unused, and a row is taken for untrained where one more row of their kind could
well have its value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from probes.embedding_indicators import (
    INPUT_NORM,
    MOST_LEFT_OUT,
    OUTPUT_BIAS,
    OUTPUT_COSINE_CENTRED,
    OUTPUT_COSINE_WITHOUT_FIRST,
    OUTPUT_DISTANCE,
    SMALLEST_PRODUCT,
    cosine_distances,
    distances,
    first_component,
    mean_of_rows,
    row_norms,
)
from probes.indicator_trust import gap_of

FALSELY_OUTSIDE = 1e-4  # of further unused rows
_GROSS = 5.0  # standard deviations
_ENOUGH = 8  # values to tell one that is far off by the others
_LEAST_SHARE = 0.01  # of the way to ordinary tokens


def indicator_of(name: str, matrix: torch.Tensor, unused_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One indicator of every row, and of known-unused rows (up to MOST_LEFT_OUT) when each is left out of their mean.

    The same values as `all_indicators` has under that name, up to rounding, without computing the others.

    Args:
        name: of probes.embedding_indicators.INDICATORS.
        matrix: the one that the indicator is of, [rows, width]; the bias as [rows].
        unused_ids: int64.
    Returns:
        float32 of shape [rows], and of shape [members] or None where they cannot be compared with each other.
    """
    if name in (INPUT_NORM, OUTPUT_BIAS):
        values = row_norms(matrix) if name == INPUT_NORM else matrix.float()
        return values, values[unused_ids] if len(unused_ids) else None
    unused = mean_of_rows(matrix, unused_ids)
    subtracted = mean_of_rows(matrix) if name == OUTPUT_COSINE_CENTRED else None
    removed = first_component(matrix) if name == OUTPUT_COSINE_WITHOUT_FIRST else None
    if name == OUTPUT_DISTANCE:
        values = distances(matrix, unused)
    else:
        values = cosine_distances(matrix, unused, subtracted=subtracted, removed=removed)
    if len(unused_ids) < 2:
        return values, None
    own = matrix[unused_ids[:MOST_LEFT_OUT]].float()
    others = (unused * len(unused_ids) - own) / (len(unused_ids) - 1)
    if name == OUTPUT_DISTANCE:
        return values, torch.linalg.vector_norm(own - others, dim=1)
    if subtracted is not None:
        own, others = own - subtracted, others - subtracted
    if removed is not None:
        own, others = (rows - (rows @ removed)[:, None] * removed for rows in (own, others))
    products = torch.linalg.vector_norm(own, dim=1) * torch.linalg.vector_norm(others, dim=1)
    return values, 1 - (own * others).sum(dim=1) / products.clamp_min(SMALLEST_PRODUCT)


@dataclass(frozen=True, slots=True, kw_only=True)
class UntrainedCluster:
    """Where the untrained rows lie among the values of an indicator.

    Attributes:
        centre: the median of the known-unused rows; None where none is known, and the limit is that of the gap.
        ordinary: the median of all tokens.
        limit: rows at or below it are in the cluster; None: nothing tells which are.
    """

    centre: float | None
    ordinary: float
    limit: float | None


def cluster_of(left_out: np.ndarray | None, values: np.ndarray) -> UntrainedCluster:
    """The limit below which a further unused row would lie with a probability of 0.9999, were they normal.

    It lies between a hundredth and a half of the way from them to the ordinary tokens, if these are apart at all: of
    few rows little can be said, and copies of one row do not scatter. Where no rows are known to be unused, or only
    one, it is the gap's.

    Args:
        left_out: values of the known-unused rows, each left out of their mean. values: of all tokens with a text.
    """
    finite = values[np.isfinite(values)]
    ordinary = float(np.median(finite)) if len(finite) else float("nan")
    known = np.empty(0) if left_out is None else left_out[np.isfinite(left_out)].astype(np.float64)
    if len(known) < 2:
        gap = gap_of(values)
        return UntrainedCluster(centre=None, ordinary=ordinary, limit=gap.cut if gap else None)
    centre, spread, spreads = _centre_and_spread(known)
    way = ordinary - centre
    reach = min(spreads * spread, max(way / 2, _GROSS * spread))
    return UntrainedCluster(centre=centre, ordinary=ordinary, limit=centre + max(reach, _LEAST_SHARE * way))


def _centre_and_spread(known: np.ndarray) -> tuple[float, float, float]:
    """Median, standard deviation around it, and how many of those one more row may be off.

    Rows that are far off are left out: a wrong one would widen the cluster to hold itself.
    """
    centre = float(np.median(known))
    robust = 1.4826 * float(np.median(np.abs(known - centre)))  # the standard deviation, of normal values
    far = max(_GROSS, _spreads(len(known))) * robust
    tells = robust > 0 and len(known) >= _ENOUGH
    near = known[np.abs(known - centre) <= far] if tells else known
    return centre, float(np.sqrt(np.sum((near - centre) ** 2) / (len(near) - 1))), _spreads(len(near))


def _spreads(count: int) -> float:
    """Standard deviations of `count` values above their mean that one more value stays below: Student's quantile."""
    from scipy.stats import t

    return float(t.ppf(1 - FALSELY_OUTSIDE, count - 1)) * (1 + 1 / count) ** 0.5
