"""The stretch of a row that stands out, token by token."""

from __future__ import annotations

import numpy as np

# A stretch has to stand out from the base by half its standard deviation a token, or it would go on and on.
STANDS_OUT = 0.5
WHOLE_ROW = 0.8


def standing_out(scores: np.ndarray, base: np.ndarray) -> tuple[int, int] | None:
    """Tokens start .. stop of the row whose scores exceed the base's by most in sum; None if that is most of the row.

    Args:
        scores: [length - 1]; entry t is about token t + 1 of the row, so that start is never 0.
        base: scores of ordinary tokens, of any shape.
    """
    base = base[np.isfinite(base)]
    if not len(base) or not len(scores):
        return None
    excess = scores - (base.mean() + STANDS_OUT * base.std())
    start, stop = _largest_sum(excess)
    if stop - start >= WHOLE_ROW * len(scores) or excess[start:stop].sum() <= 0:
        return None
    return start + 1, stop + 1


def _largest_sum(values: np.ndarray) -> tuple[int, int]:
    """The half-open stretch with the largest sum (Kadane)."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    lowest = np.minimum.accumulate(sums[:-1])
    stop = int(np.argmax(sums[1:] - lowest)) + 1
    return int(np.argmin(sums[:stop])), stop
