"""Probes of the losses of rows by when training read them: next-batch loss, memorization by checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.grouped_loss import row_losses
from probes.likelihood_memorization import difference_in_differences, memorization_of
from probes.loss import TokenLosses
from probes.next_batch_generalization import next_batch_gap
from probes.prediction_probes import NATS_PER_TOKEN, loss_measurement
from probes.probe import Measurement, TokenRows
from probes.row_bootstrap import Estimate


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NextBatchLoss:
    """Loss of batches right before and right after a checkpoint, and the gap: read next less read just before.

    At a checkpoint with one kind of rows only (the first, the last) its loss alone is measured.

    Attributes:
        is_read: bool [rows]: the row was read before the checkpoint; else it is read after it.
    """

    rows: TokenRows
    is_read: np.ndarray

    def statistic(self) -> TokenLosses:
        return TokenLosses.of(self.rows.token_ids)

    def measure_predictions(self, statistic: TokenLosses) -> Sequence[Measurement]:
        losses, num_tokens = row_losses(statistic.losses, scored=self.rows.scored)
        sides = {"loss, read just before": self.is_read, "loss, read next": ~self.is_read}
        found = [
            loss_measurement(metric, statistic.losses, self.rows, self._tokens_of(side))
            for metric, side in sides.items()
            if num_tokens[side].any()
        ]
        if len(found) < len(sides):
            return found
        gap = next_batch_gap(losses, self.is_read, num_tokens=num_tokens, clusters=self.rows.clusters).gap
        return [Measurement.of("gap", gap, NATS_PER_TOKEN), *found]

    def _tokens_of(self, side: np.ndarray) -> np.ndarray:
        return np.broadcast_to(side[:, None], self.rows.token_ids.shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowLosses:
    """The mean loss of each row by itself, "row 0" and so on: what `memorization_by_checkpoint` is computed from.

    A row without a scored token has the value NaN.
    """

    rows: TokenRows

    def statistic(self) -> TokenLosses:
        return TokenLosses.of(self.rows.token_ids)

    def measure_predictions(self, statistic: TokenLosses) -> Sequence[Measurement]:
        losses, _ = row_losses(statistic.losses, scored=self.rows.scored)
        return [
            Measurement(metric=f"row {row}", value=float(loss), unit=NATS_PER_TOKEN) for row, loss in enumerate(losses)
        ]


def memorization_by_checkpoint(
    losses: np.ndarray,
    first_checkpoints: np.ndarray,
    *,
    num_tokens: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    checkpoints_later: Sequence[int] = (0, 1, 2, 4, 8),
) -> list[list[Measurement]]:
    """How much having read rows lowers their loss, at each checkpoint, by how long ago they were read.

    "read right before": rows read between the checkpoint and the one before it; "read 1 checkpoint before" and so on:
    rows that were read so many checkpoints earlier. Each is a difference in differences against rows that the
    checkpoint has not read (probes/likelihood_memorization.py), above 0 where reading lowered the loss.

    "before being read" is the check of it, and should be 0: by how much more the loss of the rows that are read right
    after the checkpoint fell since the one before it than that of rows which are read later still. No more of the run
    is needed for it, and it is over the same stretch as "read right before".

    Only what has rows of both kinds is there, at the first checkpoint nothing.

    Args:
        losses: mean loss of each row at each checkpoint, nats per token, [checkpoints, rows], in training order.
        first_checkpoints: of each row [rows], the place of the first checkpoint after it was first read; the number of
            checkpoints where it was read by none of them.
        num_tokens: that each row's loss is the mean of, by which it counts; None: all rows count the same. A row with
            0 tokens does not count, whatever its loss.
        clusters: of each row, integers [rows]; None: each row is its own.
    Returns:
        One list a checkpoint.
    """
    if num_tokens is not None:
        some = num_tokens > 0
        losses, first_checkpoints, num_tokens = losses[:, some], first_checkpoints[some], num_tokens[some]
        clusters = None if clusters is None else clusters[some]
    found: list[list[Measurement]] = []
    for checkpoint in range(len(losses)):
        effects: dict[str, Estimate] = {}
        for later in checkpoints_later:
            cell = memorization_of(
                losses, first_checkpoints, checkpoint - later, checkpoint, num_tokens=num_tokens, clusters=clusters
            )
            if cell is not None:
                effects[_when_read(later)] = cell.effect
        placebo = _placebo(losses, first_checkpoints, checkpoint, num_tokens, clusters)
        if placebo is not None:
            effects["before being read"] = placebo
        found.append([Measurement.of(metric, effect, NATS_PER_TOKEN) for metric, effect in effects.items()])
    return found


def _when_read(later: int) -> str:
    return "read right before" if not later else f"read {later} checkpoint{'s' * (later > 1)} before"


def _placebo(
    losses: np.ndarray,
    first_checkpoints: np.ndarray,
    checkpoint: int,
    num_tokens: np.ndarray | None,
    clusters: np.ndarray | None,
) -> Estimate | None:
    """The rows of the next cohort against later ones, over the stretch before the checkpoint, which read neither."""
    unread = first_checkpoints > checkpoint
    is_next = first_checkpoints == checkpoint + 1
    if checkpoint == 0 or not is_next.any() or not (unread & ~is_next).any():
        return None
    return difference_in_differences(
        losses[checkpoint - 1, unread],
        losses[checkpoint, unread],
        is_next[unread],
        num_tokens=None if num_tokens is None else num_tokens[unread],
        clusters=None if clusters is None else clusters[unread],
    )
