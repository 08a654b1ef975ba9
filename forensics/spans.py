"""The stretch of a row that stands out, token by token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# A stretch has to stand out from the base by half its standard deviation a token, or it would go on and on.
STANDS_OUT = 0.5
WHOLE_ROW = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Tokens start .. stop of a row, half-open.

    Attributes:
        strength: how far their scores exceed ordinary ones in sum, in standard deviations of such a sum.
    """

    start: int
    stop: int
    strength: float


def standing_out(scores: np.ndarray, base: np.ndarray) -> Span | None:
    """The stretch of a row whose scores exceed the base's by most in sum; None if that is most of the row, or nothing.

    Args:
        scores: [length - 1]; entry t is about token t + 1 of the row, so that start is never 0. NaN: no target.
        base: scores of ordinary tokens, of any shape.
    """
    base = base[np.isfinite(base)]
    if not len(base) or not len(scores) or not base.std():
        return None
    far = 1e9
    excess = np.nan_to_num((scores - base.mean()) / base.std() - STANDS_OUT, nan=-STANDS_OUT, posinf=far, neginf=-far)
    start, stop = _largest_sum(excess)
    total = float(excess[start:stop].sum())
    if stop - start >= WHOLE_ROW * len(scores) or total <= 0:
        return None
    return Span(start=start + 1, stop=stop + 1, strength=total / (stop - start) ** 0.5)


def _largest_sum(values: np.ndarray) -> tuple[int, int]:
    """The half-open stretch with the largest sum (Kadane)."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    lowest = np.minimum.accumulate(sums[:-1])
    stop = int(np.argmax(sums[1:] - lowest)) + 1
    return int(np.argmin(sums[:stop])), stop
