"""When rows left the cluster of untrained ones, from where they lay at each checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Departures:
    """When rows left the cluster: numbers of checkpoints, int64 of shape [rows]; -1: never.

    Attributes:
        left: the first checkpoint from which on the row was outside, up to the last.
        fell_back: the last checkpoint at which it was inside again.
    """

    left: np.ndarray
    fell_back: np.ndarray


def departures(inside: np.ndarray) -> Departures:
    """
    Args:
        inside: bool of shape [checkpoints, rows], in the order of training.
    """
    count = len(inside)
    # Behind the last checkpoint inside; a row that is inside at the last one has not left.
    behind = count - np.argmax(inside[::-1], axis=0)
    left = np.where(inside.any(axis=0), behind, 0)
    again = np.zeros_like(inside)
    again[1:] = inside[1:] & ~inside[:-1]
    last = count - 1 - np.argmax(again[::-1], axis=0)
    return Departures(
        left=np.where(left < count, left, -1).astype(np.int64),
        fell_back=np.where(again.any(axis=0), last, -1).astype(np.int64),
    )
