"""Which documents the tokens of rows belong to, and with which tags, as arrays: for passes over whole runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_index.run import Run
from data_index.store import opened_for, readable
from data_index.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spans:
    """Pieces of documents inside instances: int64 of shape [spans], rising by instance and start; ends exclusive."""

    instance: np.ndarray
    document: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    def at_tokens(self, instances: np.ndarray, length: int) -> np.ndarray:
        """The number of the span that each token of some rows lies in, int64 of shape [rows, length]; -1: in none."""
        first = np.searchsorted(self.instance, instances, side="left")
        counts = np.searchsorted(self.instance, instances, side="right") - first
        numbers = _stretches(first, counts)
        of_row = np.repeat(np.arange(len(instances)), counts)
        starts, lengths = of_row * length + self.start[numbers], self.stop[numbers] - self.start[numbers]
        found = np.full(len(instances) * length, -1, dtype=np.int64)
        found[_stretches(starts, lengths)] = np.repeat(numbers, lengths)
        return found.reshape(len(instances), length)


def _stretches(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1 … of each stretch, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


@readable
def spans_in_rows(workspace: Workspace, run: Run, instances: np.ndarray) -> Spans:
    """Every known piece of a document in these rows. The whole of the documents table is looked at: ask about many rows
    together."""
    import pyarrow

    connection = opened_for(workspace, run, "spans")
    connection.register("wanted", pyarrow.table({"instance": np.unique(instances).astype(np.int64)}))
    found = connection.execute(
        "SELECT instance, document_id, start, stop FROM spans SEMI JOIN wanted USING (instance) WHERE stop > start "
        "ORDER BY instance, start, document_id"
    ).fetchnumpy()
    columns = {name: np.asarray(values, dtype=np.int64) for name, values in found.items()}
    return Spans(document=columns.pop("document_id"), **columns)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TagSets:
    """Tags that documents carry together.

    Attributes:
        sets: each set once, those of most documents first.
        documents: int64, rising; those that carry any tag. numbers: int64 of the same shape, their sets.
    """

    sets: tuple[tuple[str, ...], ...]
    documents: np.ndarray
    numbers: np.ndarray

    def of_documents(self, documents: np.ndarray) -> np.ndarray:
        """The number of each document's set, int64; -1: it carries no tag."""
        if not len(self.documents):
            return np.full(len(documents), -1, dtype=np.int64)
        places = np.minimum(np.searchsorted(self.documents, documents), len(self.documents) - 1)
        return np.where(self.documents[places] == documents, self.numbers[places], -1)


@readable
def tag_sets(workspace: Workspace, run: Run) -> TagSets:
    connection = opened_for(workspace, run, "tags")
    connection.execute(
        """
        CREATE TEMP TABLE tagged AS
        SELECT document_id, list_sort(list(DISTINCT tag)) AS tags FROM tags GROUP BY document_id;
        CREATE TEMP TABLE numbered AS
        SELECT tags, row_number() OVER (ORDER BY count(*) DESC, tags) - 1 AS number FROM tagged GROUP BY tags;
        """
    )
    sets: list[tuple[Any]] = connection.execute("SELECT tags FROM numbered ORDER BY number").fetchall()
    found = connection.execute(
        "SELECT document_id, number FROM tagged JOIN numbered USING (tags) ORDER BY document_id"
    ).fetchnumpy()
    return TagSets(
        sets=tuple(tuple(tags) for (tags,) in sets),
        documents=np.asarray(found["document_id"], dtype=np.int64),
        numbers=np.asarray(found["number"], dtype=np.int64),
    )
