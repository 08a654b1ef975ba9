"""Loss by position in the row, and the in-context-learning score: how much more context lowers the loss.

Source: Olsson et al. 2022 (arXiv 2209.11895): the loss of the 500th token of the context minus that of the 50th,
averaged over examples
"""

from __future__ import annotations

import numpy as np

from probes.grouped_loss import GroupedLoss, grouped_loss
from probes.prediction_blocks import targets_of
from probes.row_bootstrap import Estimate, estimate_of

EARLY = range(50, 51)
LATE = range(500, 501)


def loss_by_position(losses: np.ndarray, *, scored: np.ndarray | None = None) -> GroupedLoss:
    """The loss at each position; group ids are positions, 1-based: position p is the p-th token of its row.

    Args:
        losses: nats of every token but the first, [rows, length - 1]. scored: bool [rows, length]; None: all.
    """
    shape = (len(losses), losses.shape[1] + 1)
    positions = np.broadcast_to(np.arange(1, shape[1] + 1), shape)
    return grouped_loss(losses, groups=positions, scored=scored)


def in_context_learning_score(
    losses: np.ndarray,
    *,
    early: range = EARLY,
    late: range = LATE,
    scored: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Mean loss at late positions minus mean loss at early ones, nats per token; negative where context helps.

    The interval is a bootstrap over rows, or over clusters of rows.

    Args:
        losses: nats of every token but the first, [rows, length - 1].
        early, late: positions, 1-based and half-open: range(500, 501) is the 500th token alone.
    Raises:
        ValueError: rows have no such positions with a loss.
    """
    length = losses.shape[1] + 1
    for window in (early, late):
        if not len(window) or window.step != 1 or window.start < 2 or window.stop - 1 > length:
            raise ValueError(f"rows of {length} tokens have losses at positions 2 to {length}, not at all of {window}")
    is_target = targets_of((len(losses), length), scored)
    totals, counts = np.empty((2, len(losses), 2))
    for number, window in enumerate((late, early)):
        columns = slice(window.start - 2, window.stop - 2)
        counts[:, number] = is_target[:, columns].sum(axis=1)
        totals[:, number] = np.where(is_target[:, columns], losses[:, columns], 0).sum(axis=1, dtype=np.float64)
    return estimate_of(totals, counts, [1.0, -1.0], clusters=clusters, num_draws=num_draws, seed=seed)
