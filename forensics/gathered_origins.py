"""What is gathered of the documents and tags that tokens were read in, step after step, in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_index.batch import StepPlan
from data_index.errors import CorruptFile
from data_index.kinds import arrow_schema
from data_index.origin_queries import Spans, TagSets
from data_index.step_rows import Rows

MOST_DOCUMENTS = 20
MOST_COUNT_BYTES = 2**29  # of the counts by tags
OTHER = "(other sets of tags)"  # those of fewest documents, where counting all would take more memory


@dataclass(slots=True, kw_only=True)
class OriginsOfTokens:
    """What was gathered so far.

    Attributes:
        documents: int64 of shape [ids, MOST_DOCUMENTS], -1 where there is none yet; filled: int64 of shape [ids].
        counts: readings by token and set of tags, int64 of shape [ids, sets + 2]; the last is of no tag, the one before
            of sets for which there is no room.
    """

    num_ids: int
    tags: TagSets
    most_count_bytes: int = MOST_COUNT_BYTES
    documents: np.ndarray = field(init=False)
    filled: np.ndarray = field(init=False)
    counts: np.ndarray = field(init=False)
    _spans: Spans | None = None
    _set_of_span: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.documents = np.full((self.num_ids, MOST_DOCUMENTS), -1, dtype=np.int64)
        self.filled = np.zeros(self.num_ids, dtype=np.int64)
        room = max(self.most_count_bytes // (8 * self.num_ids) - 2, 0)
        self.counts = np.zeros((self.num_ids, min(len(self.tags.sets), room) + 2), dtype=np.int64)

    def state(self) -> np.ndarray:
        """All that was gathered: int64 of shape [ids, columns]."""
        return np.concatenate([self.documents, self.filled[:, None], self.counts], axis=1)

    def restore(self, state: np.ndarray) -> None:
        """
        Raises:
            ValueError: it is another's.
        """
        own = self.state()
        if state.shape != own.shape or state.dtype != own.dtype:
            raise ValueError(f"a state of shape {state.shape}, not {own.shape}")
        self.documents, self.counts = state[:, :MOST_DOCUMENTS].copy(), state[:, MOST_DOCUMENTS + 1 :].copy()
        self.filled = state[:, MOST_DOCUMENTS].copy()

    def begin(self, spans: Spans) -> None:
        """The pieces of documents in the rows of the next steps."""
        sets, none = self.tags.of_documents(spans.document), self.counts.shape[1] - 1
        self._spans = spans
        # The last entry is that of tokens in no document, whose span is -1.
        self._set_of_span = np.append(np.where(sets < 0, none, np.minimum(sets, none - 1)), none)

    def add_step(self, plan: StepPlan, blocks: Iterable[Rows]) -> None:
        """All rows of one applied step; steps come in the order in which they were taken."""
        found = [self._of_block(rows, plan.instances[rows.places]) for rows in blocks]
        if found:
            self._take(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    def _of_block(self, rows: Rows, instances: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Count a block by tags; returns tokens with room for documents: their ids, documents, places in the batch."""
        assert self._spans is not None and self._set_of_span is not None
        tokens, valid, length = rows.token_ids, rows.before_padding(), rows.token_ids.shape[1]
        spans = self._spans.at_tokens(instances, length)
        places = rows.places[:, None] * length + np.arange(length)
        if valid is None:
            flat = tokens.reshape(-1).astype(np.int64), spans.reshape(-1), places.reshape(-1)
        else:
            flat = tokens[valid].astype(np.int64), spans[valid], places[valid]
        ids, of_span, at = flat
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.num_ids:
            raise CorruptFile(f"the token files hold the id {int(ids.max()):,}, the embedding {self.num_ids:,} rows")
        self._count(ids, self._set_of_span[of_span])
        wanted = (self.filled[ids] < MOST_DOCUMENTS) & (of_span >= 0)
        return ids[wanted], self._spans.document[of_span[wanted]], at[wanted]

    def _count(self, ids: np.ndarray, sets: np.ndarray) -> None:
        width = self.counts.shape[1]
        cells, flat = ids * width + sets, self.counts.reshape(-1)
        if len(flat) <= 4 * len(cells):
            flat += np.bincount(cells, minlength=len(flat))
        else:
            which, times = np.unique(cells, return_counts=True)
            flat[which] += times

    def _take(self, ids: np.ndarray, documents: np.ndarray, places: np.ndarray) -> None:
        """Put the documents of one step behind those that are there, in the order of their places."""
        order = np.lexsort((places, documents, ids))
        ids, documents, places = ids[order], documents[order], places[order]
        new = np.append(True, (np.diff(ids) != 0) | (np.diff(documents) != 0))[: len(ids)]
        ids, documents, places = ids[new], documents[new], places[new]
        new = ~(self.documents[ids] == documents[:, None]).any(axis=1)
        ids, documents, places = ids[new], documents[new], places[new]
        order = np.lexsort((places, ids))
        ids, documents = ids[order], documents[order]
        starts = np.flatnonzero(np.diff(ids, prepend=-1))
        slots = self.filled[ids] + np.arange(len(ids)) - np.repeat(starts, np.diff(np.append(starts, len(ids))))
        fits = slots < MOST_DOCUMENTS
        self.documents[ids[fits], slots[fits]] = documents[fits]
        np.add.at(self.filled, ids[fits], 1)

    def table(self) -> Any:
        """Rows of `token_origins`: tokens that were read in a document, or with tags."""
        import pyarrow

        names = [*self.tags.sets[: self.counts.shape[1] - 2], (OTHER,)]
        rows = []
        for token in np.flatnonzero((self.filled > 0) | self.counts[:, :-1].any(axis=1)).tolist():
            by_tag: Counter[str] = Counter()
            for place in np.flatnonzero(self.counts[token, :-1]).tolist():
                by_tag.update(dict.fromkeys(names[place], int(self.counts[token, place])))
            most = sorted(by_tag.items(), key=lambda item: (-item[1], item[0]))
            rows.append(
                {
                    "token_id": token,
                    "document_ids": self.documents[token, : self.filled[token]].tolist(),
                    "tags": [name for name, _ in most],
                    "tag_counts": [times for _, times in most],
                }
            )
        return pyarrow.Table.from_pylist(rows, schema=arrow_schema("token_origins"))
