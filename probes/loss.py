"""Cross-entropy of a model on token rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from probes.prediction_blocks import ROWS_AT_ONCE, PredictionBlock, one_pass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenLosses:
    """The loss of every target of a pass.

    Attributes:
        losses: nats, fp32 of shape [rows, length - 1]; NaN where a token is not scored.
    """

    losses: np.ndarray

    @classmethod
    def of(cls, token_ids: np.ndarray) -> TokenLosses:
        """Of rows of shape [rows, length], before the pass."""
        return cls(losses=np.full((len(token_ids), token_ids.shape[1] - 1), np.nan, dtype=np.float32))

    def add(self, block: PredictionBlock) -> None:
        found = -block.log_probabilities.gather(1, block.targets[:, None])[:, 0]
        self.losses.reshape(-1)[block.places] = found.cpu().numpy()


def token_losses(
    model: Any, token_ids: np.ndarray, rows_at_once: int = ROWS_AT_ONCE, *, scored: np.ndarray | None = None
) -> np.ndarray:
    """Loss of every token but the first of each row, nats, fp32 of shape [rows, length - 1].

    The model's mode (training or not) is left as it is: the supported models have no dropout.

    Args:
        scored: bool of shape [rows, length]; tokens that are not scored are context, and their loss is NaN.
    """
    found = TokenLosses.of(token_ids)
    one_pass(model, token_ids, [found], scored=scored, rows_at_once=rows_at_once)
    return found.losses


def mean_loss(model: Any, token_ids: np.ndarray) -> float:
    """Mean cross-entropy over all predicted tokens, nats per token."""
    return float(token_losses(model, token_ids).mean(dtype=np.float64))
