"""The documents and tags that each token was read in: one pass over the steps, in the order in which they were taken.

A reading is a token of a row of an applied step, in the loss or hidden from it; padding is none. Of each token the
first MOST_DOCUMENTS documents are kept, in the order in which the run came to them, and the readings by tag are counted
all. A document of several tags counts for each.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_index.batch import StepPlan
from data_index.batch_queries import plan_of, reader_of
from data_index.errors import CorruptFile, ForensicsError
from data_index.files import (
    canonical_json,
    read_json_object,
    require_file,
    sha256_of_file,
    write_hashed_parquet,
    write_json,
)
from data_index.kinds import arrow_schema
from data_index.origin_queries import Spans, TagSets, spans_in_rows, tag_sets
from data_index.step_rows import Rows, rows_of_step
from data_index.witness import remember_first_seen
from data_index.workspace import Workspace, put_in_force, read_current
from forensics.counting_plan import Count

VERSION = 1  # of what is gathered
MOST_DOCUMENTS = 20
PLANNED_ROWS = 2**18  # whose documents are asked for together
MOST_COUNT_BYTES = 2**29  # of the counts by tags
OTHER = "(other sets of tags)"  # those of fewest documents, where counting all would take more memory

# Called after each step with the tokens gone through, and all of them.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenOrigins:
    """
    Attributes:
        documents: by token, ids in the order of reading.
        tags: by token, with the number of readings; most first.
    """

    documents: tuple[tuple[int, ...], ...]
    tags: tuple[tuple[tuple[str, int], ...], ...]


def token_origins(
    workspace: Workspace, count: Count, num_ids: int, *, progress: Progress = lambda done, total: None
) -> TokenOrigins | None:
    """Of all steps that a count covers; None where no documents are known. Gathered once, it is answered at once.

    Call it only while holding a lock of the run.

    Args:
        num_ids: rows of the embedding; no token id reaches it.
    Raises:
        MissingFile, AccessDenied, Unreachable, Offline
        CorruptFile: a token id is none.
    """
    home = workspace.home(count.run.name)
    if not workspace.learned_files(home, "documents"):
        return None
    folder = home / "token_origins" / _key(home, count, num_ids)
    path = _kept(folder)
    if path is None:
        path = write_hashed_parquet(folder, _gathered(workspace, count, num_ids, progress))
        write_json(folder / "state.json", {"file": path.name})
    put_in_force(home, {"token_origins": [path]})
    return _read(path, num_ids)


def origins_are_kept(workspace: Workspace, count: Count, num_ids: int) -> bool:
    """Were they gathered before?"""
    home = workspace.home(count.run.name)
    return _kept(home / "token_origins" / _key(home, count, num_ids)) is not None


def _key(home: Path, count: Count, num_ids: int) -> str:
    """Names all that the answer depends on."""
    current = read_current(home)
    parts = {
        "version": VERSION,
        "run": sha256_of_file(home / "run.toml"),
        "learned": {kind: current.get(kind, []) for kind in ("documents", "tags")},
        "steps": [count.first, count.last],
        "not_applied": sorted(count.not_applied),
        "ids": num_ids,
    }
    return hashlib.sha256(canonical_json(parts)).hexdigest()[:12]


def _kept(folder: Path) -> Path | None:
    """What is not whole was not kept."""
    try:
        path = folder / str(read_json_object(folder / "state.json").get("file"))
        require_file(path)
    except ForensicsError:
        return None
    return path


def _read(path: Path, num_ids: int) -> TokenOrigins:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path, partitioning=None)
    documents: list[tuple[int, ...]] = [()] * num_ids
    tags: list[tuple[tuple[str, int], ...]] = [()] * num_ids
    for row in table.to_pylist():
        documents[row["token_id"]] = tuple(row["document_ids"])
        tags[row["token_id"]] = tuple(zip(row["tags"], row["tag_counts"], strict=True))
    return TokenOrigins(documents=tuple(documents), tags=tuple(tags))


def _gathered(workspace: Workspace, count: Count, num_ids: int, progress: Progress) -> Any:
    """Rows of `token_origins`."""
    run = count.run
    reader = reader_of(workspace, run)
    found = OriginsOfTokens(num_ids=num_ids, tags=tag_sets(workspace, run))
    together = max(PLANNED_ROWS // max(segment.instances_per_batch for segment in run.segments), 1)
    try:
        for first in range(count.first, count.last, together):
            plan = plan_of(workspace, run, first, min(first + together, count.last))
            spans = spans_in_rows(workspace, run, np.concatenate([plan[step].instances for step in plan.steps]))
            found.begin(spans)
            for step in plan.steps:
                if plan[step].outcome == "applied" and step not in count.not_applied:
                    found.add_step(plan[step], rows_of_step(plan[step], reader))
                progress(count.tokens_until(step), count.num_tokens)
    finally:
        remember_first_seen(workspace, run, reader)
    return found.table()


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
