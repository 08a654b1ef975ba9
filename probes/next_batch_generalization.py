"""Does a checkpoint predict batches that it has just read better than those it is about to read?

Both are fresh draws from the same data, so the mean loss on the batches right after a checkpoint minus that on the
batches right before it is what the last steps taught of their own batches alone. 0: nothing; above 0: remembered.
Where the data change on the way (a new stage, sorted files), it says how much harder the next batches are, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probes.row_bootstrap import Estimate, estimate_of


@dataclass(frozen=True, slots=True, kw_only=True)
class NextBatchGap:
    """Losses of one checkpoint, nats per token.

    Attributes:
        read, unread: mean loss on rows read right before it, and on rows read right after it.
        gap: unread − read.
    """

    read: float
    unread: float
    gap: Estimate


def next_batch_gap(
    losses: np.ndarray,
    is_read: np.ndarray,
    *,
    num_tokens: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> NextBatchGap:
    """The gap, with a bootstrap over rows or over clusters of rows (batches, documents).

    Args:
        losses: mean loss of each row at the checkpoint, nats per token, [rows].
        is_read: bool [rows]: the row was read before the checkpoint; else it is read after it.
        num_tokens: that each row's loss is the mean of, by which it counts; None: all rows count the same.
    """
    weights = np.ones(len(losses)) if num_tokens is None else num_tokens.astype(np.float64)
    counts = np.stack([weights * ~is_read, weights * is_read], axis=1)
    totals = np.where(counts > 0, counts * losses[:, None], 0)
    gap = estimate_of(totals, counts, [1.0, -1.0], clusters=clusters, num_draws=num_draws, seed=seed)
    with np.errstate(invalid="ignore"):
        unread, read = totals.sum(axis=0) / counts.sum(axis=0)
    return NextBatchGap(read=float(read), unread=float(unread), gap=gap)
