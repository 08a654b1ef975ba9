"""How often each token id was consumed: exact counts, step after step.

A row of a step is `sequence_length` tokens. All of them are inputs; with the run's `extra_label` all but the last one,
which is a label only. Tokens 1 .. of a row are targets. Padding is counted nowhere. Each input and each target of a
step that was applied is counted once:

    as_input, filtered_input                    inputs of rows that the trainer's instance filter left in, took out
    as_target, masked_target, filtered_target   targets in the loss; hidden from it by a label mask, by their id or by
                                                an edit; of rows that the filter took out

Of a step whose update was not applied, `not_applied` counts the inputs, and nothing else is counted. `first_step` and
`last_step` are the first and the last applied step whose rows hold the token, hidden or not; 0: none yet.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from data_index.errors import CorruptFile
from data_index.step_rows import Rows

COUNTS = ("as_input", "as_target", "masked_target", "filtered_input", "filtered_target", "not_applied")
COLUMNS = (*COUNTS, "first_step", "last_step")
# Above what any vocabulary has; a damaged file must not make the counts fill the memory.
MAX_TOKEN_IDS = 2**22
# Tokens widened together, so that they stay in the processor's cache.
BLOCK_TOKENS = 2**18


class Exposures:
    """Counts up to a step: int64 arrays by token id, one a column.

    Args:
        extra_label: the last token of a row is a label only.
        table: counts to go on from, int64 of shape [columns, ids]; it grows where there are more ids.
    """

    def __init__(self, *, extra_label: bool, table: np.ndarray | None = None) -> None:
        self.table = np.zeros((len(COLUMNS), 1), dtype=np.int64) if table is None else table
        self.extra_label = extra_label

    def __getitem__(self, column: str) -> np.ndarray:
        """A column by its name: a view, to read or to write."""
        counts: np.ndarray = self.table[COLUMNS.index(column)]
        return counts

    def counted_ids(self) -> np.ndarray:
        """Token ids with any count, rising."""
        return np.flatnonzero(self.table.any(axis=0))

    def count_step(self, step: int, blocks: Iterable[Rows], *, applied: bool) -> None:
        """Count all rows of one step; steps come in rising order.

        Raises:
            CorruptFile: a token id is none.
        """
        if not applied:
            for rows in blocks:
                self._add("not_applied", self._inputs(rows))
            return
        held = np.zeros(0, dtype=np.int64)
        for rows in blocks:
            held = _sum(held, self._count_applied(rows))
        there = np.flatnonzero(held)
        self["last_step"][there] = step
        self["first_step"][there[self["first_step"][there] == 0]] = step

    def _count_applied(self, rows: Rows) -> np.ndarray:
        """Add rows of an applied step; returns how often they hold each id."""
        if rows.filtered is None or not rows.filtered.any():
            return self._count_left_in(rows)
        out = rows.take(np.flatnonzero(rows.filtered))
        held = _histogram(out.token_ids, out.before_padding())
        self._add("filtered_input", self._inputs(out))
        self._add("filtered_target", held)
        self._take_first_tokens("filtered_target", out)
        return _sum(held, self._count_left_in(rows.take(np.flatnonzero(~rows.filtered))))

    def _count_left_in(self, rows: Rows) -> np.ndarray:
        """Each token is an input and a target, but for the first, and perhaps the last, of its row."""
        valid, hidden = rows.before_padding(), rows.hidden()
        held = _histogram(rows.token_ids, valid)
        self._add("as_input", held)
        self._add("as_target", held)
        if self.extra_label:
            np.subtract.at(self["as_input"], rows.last_labels(), 1)
        self._take_first_tokens("as_target", rows)
        if hidden is not None:
            targets = hidden[:, 1:] if valid is None else hidden[:, 1:] & valid[:, 1:]
            masked = _histogram(rows.token_ids[:, 1:], targets)
            self._add("masked_target", masked)
            self["as_target"][: len(masked)] -= masked
        return held

    def _inputs(self, rows: Rows) -> np.ndarray:
        held = _histogram(rows.token_ids, rows.before_padding())
        if self.extra_label:
            np.subtract.at(held, rows.last_labels(), 1)
        return held

    def _take_first_tokens(self, column: str, rows: Rows) -> None:
        np.subtract.at(self[column], rows.first_tokens(), 1)

    def _add(self, column: str, counts: np.ndarray) -> None:
        if (more := len(counts) - self.table.shape[1]) > 0:
            self.table = np.pad(self.table, ((0, 0), (0, more)))
        self[column][: len(counts)] += counts


def _histogram(token_ids: np.ndarray, where: np.ndarray | None) -> np.ndarray:
    """How often each id stands in an array, int64; only where a mask of the same shape is True.

    Raises:
        CorruptFile
    """
    flat = token_ids.reshape(-1) if where is None else token_ids[where]
    if not len(flat):
        return np.zeros(0, dtype=np.int64)
    largest = int(flat.max())
    if largest >= MAX_TOKEN_IDS or int(flat.min()) < 0:
        odd = int(flat[(flat < 0) | (flat >= MAX_TOKEN_IDS)][0])
        raise CorruptFile(
            f"the token files hold the id {odd:,}, which no vocabulary has: they are damaged, or of another dtype than "
            "the run says"
        )
    counts = np.zeros(largest + 1, dtype=np.int64)
    for start in range(0, len(flat), BLOCK_TOKENS):
        counts += np.bincount(flat[start : start + BLOCK_TOKENS].astype(np.intp), minlength=largest + 1)
    return counts


def _sum(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of counts by token id, where one may know more ids than the other."""
    small, large = sorted((one, other), key=len)
    total = large.copy()
    total[: len(small)] += small
    return total
