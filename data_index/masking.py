"""What a trainer hides from the loss by looking at the tokens, and where documents end inside a row.

Source: olmo/data/util.py (Python package ai2-olmo 0.6.0) and olmo_core/data/utils.py (ai2-olmo-core 3.0.0), where the
two functions are the same.
"""

from __future__ import annotations

import numpy as np

# Rows looked at together, so that what is compared stays in the processor's cache.
BLOCK_TOKENS = 2**18


def hidden_by_repetition(
    token_ids: np.ndarray, *, max_period: int, min_period: int, max_count: int, lengths: np.ndarray | None = None
) -> np.ndarray:
    """Which rows the trainers' instance filter hides, bool of shape [rows].

    A row is hidden where a piece of `period` tokens stands at least `max_count` times in a row, for any period from
    `min_period` to `max_period`. The trainers' search sees no run of fewer than 3 repeats, whatever `max_count` says,
    and so no period above a third of the row. What it does at row ends comes to nothing: it pads with a value that no
    token has, so that no run goes around the end.

    Args:
        token_ids: shape [rows, length], as the model reads them, padding included.
        lengths: tokens of each row that are looked at, where the trainer looks before it pads (OLMo-core's padded
            dataset). Otherwise padding is a repetition like any other.
    """
    rows, length = token_ids.shape
    if lengths is not None:
        places = np.arange(length)
        # Each place has a value of its own there, which no token has.
        token_ids = np.where(places < lengths[:, None], token_ids.astype(np.int64), -1 - places)
    hidden = np.zeros(rows, dtype=bool)
    rows_together = max(BLOCK_TOKENS // max(length, 1), 1)
    for start in range(0, rows, rows_together):
        block = token_ids[start : start + rows_together]
        for period in range(max(min_period, 1), min(max_period, length // 3) + 1):
            # n repeats are n - 1 periods of tokens that equal the token one period earlier.
            run_length = (max(max_count, 3) - 1) * period
            open_rows = np.flatnonzero(~hidden[start : start + len(block)])
            candidates = open_rows[may_hold_a_run(block, period, run_length)[open_rows]]
            if len(candidates):
                hidden[start + candidates] = longest_runs(block[candidates], period)[0] >= run_length
    return hidden


def may_hold_a_run(rows: np.ndarray, period: int, run_length: int) -> np.ndarray:
    """False only for rows with no run of `run_length` tokens equal to the one a period earlier; looks at few."""
    stride = max(run_length // 4, 1)
    num_needed = min(run_length // stride, 4)  # any run covers so many neighbouring points of the grid
    equal = rows[:, period::stride] == rows[:, :-period:stride]
    num_grid_points = equal.shape[1] - num_needed + 1
    if num_grid_points < 1:
        return np.zeros(len(rows), dtype=bool)
    together = equal[:, :num_grid_points]
    for shift in range(1, num_needed):
        together = together & equal[:, shift : shift + num_grid_points]
    return together.any(axis=1)


def longest_runs(rows: np.ndarray, period: int) -> tuple[np.ndarray, np.ndarray]:
    """The longest run of tokens that equal the one a period earlier: its length, and the place after its last token.

    Both int of shape [rows]; of equally long runs the first. A run of n tokens and the period before it are one piece
    of n + period tokens, which the same `period` tokens fill over and over.
    """
    # Each row ends with a break, so that none of its runs goes on into the next.
    breaks = np.ones((len(rows), rows.shape[1] - period + 1), dtype=bool)
    np.not_equal(rows[:, period:], rows[:, :-period], out=breaks[:, :-1])
    places = np.flatnonzero(breaks)
    lengths = np.diff(places, prepend=-1) - 1
    begins = np.arange(len(rows)) * breaks.shape[1]
    first = np.searchsorted(places, begins)
    longest = np.maximum.reduceat(lengths, first)
    row, column = np.divmod(places[lengths == np.repeat(longest, np.diff(first, append=len(places)))], breaks.shape[1])
    _, earliest = np.unique(row, return_index=True)
    return longest, column[earliest] + period


def document_lengths(row: np.ndarray, eos: int, bos: int | None = None) -> np.ndarray:
    """Lengths of the documents in one row, int64; they sum to the row. The last may lack its end-of-sequence token.

    Args:
        bos: where given, a document ends only at an `eos` that a `bos` follows.
    """
    if not len(row):
        return np.empty(0, dtype=np.int64)
    ends = row[:-1] == eos if bos is None else (row[:-1] == eos) & (row[1:] == bos)
    borders = np.concatenate([[-1], np.flatnonzero(ends), [len(row) - 1]])
    return np.diff(borders)
