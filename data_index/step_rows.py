"""The rows of a step in blocks, as they lie in their files, with what is hidden from the loss and why.

`data_index.batch` gives one batch as the model sees it; here nothing is widened or put in order that need not be, so
that whole runs can be gone through at the speed of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np

from data_index.batch import StepPlan, filtered_rows
from data_index.token_blocks import blocks_of
from data_index.tokens import TokenReader


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Some rows of a step. What is None is nowhere.

    Attributes:
        places: int64 of shape [rows]; rows of the batch.
        token_ids: of shape [rows, length], of any integer dtype.
        num_tokens: int64 of shape [rows]; tokens before the padding. None: there is no padding.
        label_masked, token_hidden, edited: bool of shape [rows, length]; hidden from the loss by a label-mask file, by
            the token's id, by an edit. None: nothing is.
        filtered: bool of shape [rows]; taken out as a whole by the instance filter. None: there is none.
    """

    places: np.ndarray
    token_ids: np.ndarray
    num_tokens: np.ndarray | None = None
    label_masked: np.ndarray | None = None
    token_hidden: np.ndarray | None = None
    edited: np.ndarray | None = None
    filtered: np.ndarray | None = None

    def take(self, which: np.ndarray) -> Rows:
        taken = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value[which] for name, value in taken.items() if value is not None})

    def before_padding(self) -> np.ndarray | None:
        """bool of shape [rows, length]; None: all of it."""
        if self.num_tokens is None:
            return None
        return np.arange(self.token_ids.shape[1]) < self.num_tokens[:, None]

    def hidden(self) -> np.ndarray | None:
        """Hidden from the loss for any reason but padding and the filter, bool of shape [rows, length]."""
        hidden = None
        for reason in (self.label_masked, self.token_hidden, self.edited):
            if reason is not None:
                hidden = reason if hidden is None else hidden | reason
        return hidden

    def first_tokens(self) -> np.ndarray:
        """Of rows that are not all padding."""
        return self.token_ids[slice(None) if self.num_tokens is None else self.num_tokens > 0, 0]

    def last_labels(self) -> np.ndarray:
        """Last tokens of rows without padding."""
        full = slice(None) if self.num_tokens is None else self.num_tokens == self.token_ids.shape[1]
        return self.token_ids[full, -1]


def rows_of_step(plan: StepPlan, reader: TokenReader) -> Iterator[Rows]:
    """All rows of a step, each once, in the order of their files.

    Raises:
        UnknownInstance, MissingFile, CorruptFile
    """
    run, masking = reader.run, reader.run.masking
    masked = any(file.label_mask for file in run.files)
    for places, token_ids in blocks_of(plan.instances, reader):
        instances = plan.instances[places]
        num_tokens = None if run.pieces is None else reader.num_tokens_of(instances)
        if num_tokens is not None and (num_tokens == run.sequence_length).all():
            num_tokens = None
        label_masked = ~reader.counts_as_target(instances) if masked else None
        if label_masked is not None and num_tokens is not None:
            label_masked &= np.arange(run.sequence_length) < num_tokens[:, None]
        hidden_id = masking.hidden_token_id
        yield Rows(
            places=places,
            token_ids=token_ids,
            num_tokens=num_tokens,
            label_masked=label_masked,
            token_hidden=None if hidden_id is None else token_ids == hidden_id,
            edited=_edited(plan, places, run.sequence_length),
            filtered=None if masking.repetition is None else filtered_rows(token_ids, num_tokens, masking),
        )


def _edited(plan: StepPlan, places: np.ndarray, length: int) -> np.ndarray | None:
    if not plan.masks:
        return None
    row_of_place = {int(place): row for row, place in enumerate(places)}
    edited = np.zeros((len(places), length), dtype=bool)
    for place, start, stop in plan.masks:
        if place in row_of_place:
            edited[row_of_place[place], start:stop] = True
    return edited


# A stretch of a row that the trainer hid: (place, start, stop, reason), half-open
HiddenStretch = tuple[int, int, int, str]


def hidden_stretches(rows: Rows) -> Iterator[HiddenStretch]:
    """What the trainer hid by content: whole rows by `instance_filter`; of the others stretches, which may overlap, by
    `label_mask`, `hidden_token` and `padding`."""
    length = rows.token_ids.shape[1]
    if rows.filtered is not None and rows.filtered.any():
        for place in rows.places[rows.filtered].tolist():
            yield place, 0, length, "instance_filter"
        rows = rows.take(np.flatnonzero(~rows.filtered))
    valid = rows.before_padding()
    reasons = {
        "label_mask": rows.label_masked,
        "hidden_token": rows.token_hidden if valid is None or rows.token_hidden is None else rows.token_hidden & valid,
        "padding": None if valid is None else ~valid,
    }
    for reason, hidden in reasons.items():
        if hidden is not None and hidden.any():
            for row, start, stop in _stretches(hidden):
                yield int(rows.places[row]), start, stop, reason


def _stretches(hidden: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(row, start, stop) of each run of True in a row."""
    edges = np.diff(np.pad(hidden, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    stops = np.nonzero(edges == -1)[1]
    yield from zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True)
