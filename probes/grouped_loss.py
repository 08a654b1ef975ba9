"""Loss and bits per byte, overall and for each group of rows or tokens, with exact denominators.

Only scored tokens count, in the numerator and in both denominators. The first token of a row has no loss, so its bytes
are in no denominator either. A loss that is not finite makes its group's figures not finite; it is never left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from probes.prediction_blocks import targets_of
from probes.row_bootstrap import Estimate, estimate_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupedLoss:
    """Sums over the scored tokens of each group; groups without any are not listed.

    Attributes:
        group_ids: int64 of shape [groups], rising.
        total_nats: fp64. num_tokens: int64. num_bytes: int64, of UTF-8; None where no bytes were given.
    """

    group_ids: np.ndarray
    total_nats: np.ndarray
    num_tokens: np.ndarray
    num_bytes: np.ndarray | None

    @property
    def nats_per_token(self) -> np.ndarray:
        return self.total_nats / self.num_tokens

    @property
    def perplexity(self) -> np.ndarray:
        """Of a token: exp of the mean loss; infinite where it is beyond fp64."""
        with np.errstate(over="ignore"):
            return np.exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> np.ndarray:
        """NaN or infinite where the scored tokens of a group have no byte.

        Raises:
            ValueError: no bytes were given.
        """
        if self.num_bytes is None:
            raise ValueError("bits per byte need the UTF-8 bytes of every token; none were given")
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.total_nats / (math.log(2) * self.num_bytes)


def grouped_loss(
    losses: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    scored: np.ndarray | None = None,
    utf8_bytes: np.ndarray | None = None,
) -> GroupedLoss:
    """
    Args:
        losses: nats of every token but the first, [rows, length - 1].
        groups: integer ids (of a domain, a tag, a bin) of each row [rows] or of each token [rows, length]; None: all
            tokens are one group, 0.
        scored: bool [rows, length]; None: all.
        utf8_bytes: of each token, [rows, length]; 0 for tokens that stand for no text.
    Raises:
        ValueError: shapes that do not belong together.
    """
    shape = (len(losses), losses.shape[1] + 1)
    is_target = targets_of(shape, scored)
    of_targets = _of_tokens(np.zeros(shape[0], dtype=np.int64) if groups is None else groups, shape)[is_target]
    group_ids, group = np.unique(of_targets, return_inverse=True)
    num_bytes = None
    if utf8_bytes is not None:
        num_bytes = np.zeros(len(group_ids), dtype=np.int64)
        # Not bincount with weights, whose fp64 would not be exact for any number of bytes.
        np.add.at(num_bytes, group, _of_tokens(utf8_bytes, shape)[is_target].astype(np.int64))
    return GroupedLoss(
        group_ids=group_ids.astype(np.int64),
        total_nats=np.bincount(group, weights=losses[is_target].astype(np.float64), minlength=len(group_ids)),
        num_tokens=np.bincount(group, minlength=len(group_ids)),
        num_bytes=num_bytes,
    )


def _of_tokens(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Values of rows or tokens as values of targets, [rows, length - 1]."""
    if values.shape not in (shape, shape[:1]):
        raise ValueError(f"values of rows have shape {shape[:1]} here, of tokens {shape}, not {values.shape}")
    of_all = values if values.ndim == 2 else values[:, None]
    return np.broadcast_to(of_all, shape)[:, 1:]


def row_losses(losses: np.ndarray, *, scored: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss of each row's scored tokens, nats per token, fp64 [rows], and how many they are, int64 [rows].

    NaN for a row without any.
    """
    totals, num_tokens = _row_totals(losses, scored)
    with np.errstate(invalid="ignore"):
        return totals / num_tokens, num_tokens


def _row_totals(losses: np.ndarray, scored: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    is_target = targets_of((len(losses), losses.shape[1] + 1), scored)
    return np.where(is_target, losses, 0).sum(axis=1, dtype=np.float64), is_target.sum(axis=1)


def mean_loss_estimate(
    losses: np.ndarray,
    *,
    scored: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Mean loss of all scored tokens, nats per token, with its bootstrap interval over rows, or clusters of rows."""
    totals, num_tokens = _row_totals(losses, scored)
    return estimate_of(totals[:, None], num_tokens[:, None], [1.0], clusters=clusters, num_draws=num_draws, seed=seed)


def bits_per_byte_estimate(
    losses: np.ndarray,
    utf8_bytes: np.ndarray,
    *,
    scored: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Bits per UTF-8 byte of all scored tokens, with its bootstrap interval over rows, or clusters of rows.

    Args:
        utf8_bytes: of each token, [rows, length].
    """
    shape = (len(losses), losses.shape[1] + 1)
    totals, _ = _row_totals(losses, scored)
    num_bytes = np.where(targets_of(shape, scored), _of_tokens(utf8_bytes, shape), 0).sum(axis=1, dtype=np.int64)
    bits = totals[:, None] / math.log(2)
    return estimate_of(bits, num_bytes[:, None], [1.0], clusters=clusters, num_draws=num_draws, seed=seed)
