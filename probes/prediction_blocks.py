"""What a model predicts for every token of some rows, block by block: one forward pass for several statistics.

The logits of a few rows are there at a time, and fp32 log-probabilities of a few hundred targets; whoever needs more
than one statistic of them hands all in together:

    losses, calibration = TokenLosses.of(token_ids), Calibration()
    one_pass(model, token_ids, [losses, calibration])

Arrays that say something of every token are of the rows' own shape [rows, length]; what they say of the first token of
a row is ignored, for it is predicted from nothing and never a target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

ROWS_AT_ONCE = 16
TARGETS_AT_ONCE = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PredictionBlock:
    """Predictions of some targets of a pass.

    Attributes:
        log_probabilities: natural, fp32 of shape [targets, vocabulary of the model].
        targets: the tokens that came, int64 [targets]; `contexts`: the token right before each.
        places: of the targets in a flattened array [rows, length - 1], int64 [targets].
    """

    log_probabilities: torch.Tensor
    targets: torch.Tensor
    contexts: torch.Tensor
    places: np.ndarray


class PredictionStatistic(Protocol):
    """Something that is gathered over the blocks of a pass."""

    def add(self, block: PredictionBlock) -> None: ...


# Not inference mode: a model that computes buffers anew in its forward pass would keep ones that cannot be trained.
@torch.no_grad()
def prediction_blocks(
    model: Any,
    token_ids: np.ndarray,
    *,
    scored: np.ndarray | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
    targets_at_once: int = TARGETS_AT_ONCE,
) -> Iterator[PredictionBlock]:
    """The predictions of all scored targets, in the order of the rows.

    Args:
        model: a causal language model of transformers. Its mode (training or not) is left as it is.
        token_ids: integers of shape [rows, length].
        scored: which tokens are targets, bool [rows, length]; None: all. The others are context all the same.
    """
    device = next(model.parameters()).device
    is_target = targets_of(token_ids.shape, scored)
    num_columns = is_target.shape[1]
    for start in range(0, len(token_ids), rows_at_once):
        rows, columns = np.nonzero(is_target[start : start + rows_at_once])
        if not len(rows):
            continue
        part = np.ascontiguousarray(token_ids[start : start + rows_at_once], dtype=np.int64)
        logits = model(input_ids=torch.from_numpy(part).to(device), use_cache=False).logits
        for at in range(0, len(rows), targets_at_once):
            row, column = rows[at : at + targets_at_once], columns[at : at + targets_at_once]
            where = torch.from_numpy(row).to(logits.device), torch.from_numpy(column).to(logits.device)
            yield PredictionBlock(
                log_probabilities=logits[where].float().log_softmax(dim=-1),
                targets=torch.from_numpy(part[row, column + 1]).to(logits.device),
                contexts=torch.from_numpy(part[row, column]).to(logits.device),
                places=(start + row) * num_columns + column,
            )


def one_pass(
    model: Any,
    token_ids: np.ndarray,
    statistics: Sequence[PredictionStatistic],
    *,
    scored: np.ndarray | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
) -> None:
    """Gather several statistics of a model's predictions of the same rows in one forward pass."""
    for block in prediction_blocks(model, token_ids, scored=scored, rows_at_once=rows_at_once):
        for statistic in statistics:
            statistic.add(block)


def targets_of(shape: tuple[int, ...], scored: np.ndarray | None) -> np.ndarray:
    """Which tokens but the first of each row are targets: bool of shape [rows, length - 1].

    Args:
        shape: of the rows, (rows, length).
    Raises:
        ValueError: the mask is of another shape or type.
    """
    if scored is None:
        return np.ones((shape[0], max(shape[1] - 1, 0)), dtype=bool)
    if scored.shape != shape or scored.dtype != np.bool_:
        raise ValueError(f"a mask of scored tokens is bool of shape {shape}, not {scored.dtype} of {scored.shape}")
    return scored[:, 1:]
