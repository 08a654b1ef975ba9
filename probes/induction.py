"""Induction: does a model go on as the context went on before, and which heads look there?

Rows are R random tokens, repeated once. The first copy cannot be predicted, the second can be copied; no knowledge of
language helps with either.

Source: Olsson et al. 2022 (arXiv 2209.11895): prefix matching on repeated random tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from probes.attention_weights import observe_attention
from probes.loss import token_losses


def repeated_rows(token_choices: np.ndarray, *, num_repeated: int, num_rows: int, seed: int) -> np.ndarray:
    """Rows of different random tokens, repeated once: int64 of shape [num_rows, 2 * num_repeated].

    Within a copy no token comes twice, so that each has one earlier place.

    Args:
        token_choices: the ids to choose from, such as ordinary tokens of the vocabulary; all are equally likely.
    Raises:
        ValueError: they are fewer than `num_repeated`.
    """
    choices = np.unique(np.asarray(token_choices, dtype=np.int64))
    if not 2 <= num_repeated <= len(choices):
        raise ValueError(f"cannot choose {num_repeated} different tokens, at least 2, out of {len(choices)}")
    generator = np.random.default_rng(seed)
    copies = np.stack([generator.choice(choices, num_repeated, replace=False) for _ in range(num_rows)])
    return np.concatenate([copies, copies], axis=1)


def induction_loss_changes(model: torch.nn.Module, rows: np.ndarray, *, rows_at_once: int = 16) -> np.ndarray:
    """Mean loss on the second copy minus that on the first, nats per token, one a row; below 0 where it copies.

    Both means are over the same tokens, all but a copy's first, which nothing announces.

    Args:
        rows: [rows, 2R], as of `repeated_rows`.
    Raises:
        ValueError: the second half of a row is not the first.
    """
    num_repeated = _num_repeated(rows)
    losses = token_losses(model, rows, rows_at_once).astype(np.float64)
    # losses[:, p] is the loss of token p + 1.
    return losses[:, num_repeated:].mean(axis=1) - losses[:, : num_repeated - 1].mean(axis=1)


def induction_scores(model: Any, rows: np.ndarray, *, rows_at_once: int = 4) -> np.ndarray:
    """Mean attention of each head from place i in the second copy to place i - R + 1, fp64 of shape [layers, heads].

    That is the token which came after the same token before, the one to predict next: an induction head scores 1, a
    uniform head the mean of 1 / (i + 1). Places are 0-based, i = R .. 2R - 1.

    Args:
        model: a causal language model of transformers; left as it was.
        rows: [rows, 2R], as of `repeated_rows`.
    Raises:
        ValueError: the second half of a row is not the first; the model shows no attention weights.
    """
    num_repeated = _num_repeated(rows)
    sums: dict[int, torch.Tensor] = {}

    def add(layer: int, weights: torch.Tensor, _: torch.Tensor) -> None:
        # On this diagonal lie the keys that come R - 1 before their query: queries R - 1 .. 2R - 1, without the first.
        matching = weights.diagonal(offset=1 - num_repeated, dim1=-2, dim2=-1)[..., 1:]
        batch = matching.double().mean(dim=-1).sum(dim=0)
        sums[layer] = sums[layer] + batch if layer in sums else batch

    observe_attention(model, rows, add, rows_at_once=rows_at_once)
    return torch.stack([sums[layer] for layer in sorted(sums)]).cpu().numpy() / len(rows)


def _num_repeated(rows: np.ndarray) -> int:
    half = rows.shape[1] // 2
    if not len(rows) or half < 2 or rows.shape[1] % 2 or not np.array_equal(rows[:, :half], rows[:, half:]):
        raise ValueError(f"rows of shape {rows.shape} are not tokens repeated once")
    return half
