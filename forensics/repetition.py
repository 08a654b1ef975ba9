"""Which texts did a run read more than once, in which steps, exactly or nearly the same?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from data_index.batch_queries import reader_of
from data_index.errors import InvalidRange, UnknownDocument
from data_index.repeated_text import Shingles, bands_for, buckets, group_alike, shingles_of
from data_index.run import Run, parse_steps
from data_index.text_queries import TEXTS, documents_in_force, repeated_readings, text_readings, texts_to_hash
from data_index.text_tokens import num_file_tokens, text_tokens
from data_index.workspace import Workspace
from forensics.text_hashes import Progress, TextsRead, bytes_to_fetch, hash_texts, sign_texts, signed_texts, tokens_of

SHINGLES_HELD = 256  # texts whose shingles are kept while pairs are compared


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Repeats:
    """Texts that were read more than once.

    Attributes:
        rows: an Arrow table, group after group, those with most tokens read again first. One row for each reading that
            shares tokens with another, by step; where texts are only nearly the same, for every reading of them.
            `similarity` is 1 for what was read again exactly, else that to the most alike text it was compared with;
            `text` is how the sha256 of the text begins.
        num_texts: that were read, of any length asked for; `num_distinct`: different ones.
        num_groups: of all, also where `rows` was limited; `num_near`: those in which not all texts are the same.
        num_tokens: that were read of the texts; `num_again`: of them, those in a place of a text read before.
    """

    run: str
    of: str
    rows: Any
    num_texts: int
    num_distinct: int
    num_groups: int
    num_near: int
    num_tokens: int
    num_again: int

    def __str__(self) -> str:
        """In one sentence."""
        near = f", {self.num_near:,} of them nearly the same" if self.num_near else ""
        share = self.num_again / max(self.num_tokens, 1)
        return (
            f"{self.num_texts:,} {self.of} read, {self.num_distinct:,} distinct; {self.num_groups:,} groups of repeats"
            f"{near}; {share:.2%} of the {self.num_tokens:,} tokens read of them had been read before, exactly the same"
        )

    def first_groups(self, limit: int | None) -> Any:
        """The rows of the first groups; None: all."""
        groups = self.rows.column("group").to_numpy()
        return self.rows if limit is None else self.rows.slice(0, int(np.searchsorted(groups, limit, side="right")))


def repeats(
    run: str,
    steps: str | int | None = None,
    *,
    of: str = "documents",
    near: float | None = None,
    min_tokens: int = 1,
    limit: int | None = None,
    max_fetch: int | None = None,
    workspace: Workspace | None = None,
    progress: Progress | None = None,
) -> Repeats:
    """Documents or instances that a run read more than once.

    Texts are hashed once; hashes stay with the run (views document_hashes, instance_hashes and minhashes).

    Args:
        steps: only what these steps read, `STEP` or `A:B`; default: the whole run.
        of: `documents` or `instances`.
        near: also texts that have this part of their runs of 5 tokens in common (Jaccard), or more.
        min_tokens: of a text; shorter ones are passed over.
        limit: of groups; default: all.
        max_fetch: bytes of tokens that may be fetched from servers; default: 1 GiB.
    Raises:
        UnknownRun, StepOutOfRange, InvalidRange, UnknownOrder, CorruptFile, Busy
        UnknownDocument: the run has no documents.
        TooMuchToFetch, AccessDenied, Unreachable, Offline: the tokens are on a server.
    """
    if near is not None:
        bands_for(near)
    if limit is not None and limit < 1:
        raise InvalidRange(f"--limit takes 1 or more groups, not {limit}")
    read = _texts_read(run, steps, of, min_tokens, max_fetch, workspace)
    told = progress or _silent
    hash_texts(read, told)
    alike = _near_texts(read, near, told)
    rows, counts = repeated_readings(*read.stored, min_tokens=min_tokens, near=alike, limit=limit)
    return Repeats(run=run, of=of, rows=rows, **counts)


def plan_repeats(
    run: str, steps: str | int | None = None, *, of: str = "documents", workspace: Workspace | None = None
) -> dict[str, Any]:
    """What `repeats` would have to read first: texts without a hash, their tokens and bytes, and bytes to fetch.

    Raises:
        as `repeats`
    """
    workspace = workspace or Workspace()
    first, last = _steps(workspace.run(run), steps)
    read = _texts_read(run, steps, of, 1, None, workspace)
    reader = reader_of(read.workspace, read.run)
    tokens = text_tokens(reader, texts_to_hash(*read.stored))
    used: dict[int, int] = {}
    for number in range(len(tokens.lengths)):
        for file, start, stop in tokens.pieces(number):
            used[file] = used.get(file, 0) + stop - start
    return {
        "run": run,
        "from": first,
        "to": last,
        "to_hash": len(tokens.lengths),
        "tokens": sum(used.values()),
        "read": sum(_bytes_of(read.run, number, count) for number, count in used.items()),
        "download": bytes_to_fetch(reader, tokens),
    }


def _texts_read(
    run: str, steps: str | int | None, of: str, min_tokens: int, max_fetch: int | None, workspace: Workspace | None
) -> TextsRead:
    """
    Raises:
        InvalidRange, UnknownRun, StepOutOfRange, UnknownOrder, UnknownDocument
    """
    if of not in TEXTS:
        raise InvalidRange(f"--of takes {' or '.join(TEXTS)}, not {of!r}")
    if min_tokens < 1:
        raise InvalidRange(f"--min-tokens takes 1 or more, not {min_tokens}: texts without a token are all the same")
    workspace = workspace or Workspace()
    record = workspace.run(run)
    first, last = _steps(record, steps)
    if of == "documents" and not documents_in_force(workspace, record):
        raise UnknownDocument(
            f"where documents of {run} begin and end is not known: forensics documents {run} finds out; or compare "
            f"its rows: forensics repeats {run} --of instances"
        )
    readings = text_readings(workspace, record, of, first, last)
    return TextsRead(
        workspace=workspace, run=record, of=of, readings=readings, min_tokens=min_tokens, max_fetch=max_fetch
    )


def _steps(run: Run, steps: str | int | None) -> tuple[int, int]:
    """Checkpoints (a, b): steps a+1 .. b."""
    run.segment_of_step(run.last_step)  # says why nothing is known
    return parse_steps(str(steps), run) if steps is not None else (run.first_step - 1, run.last_step)


def _bytes_of(run: Run, file: int, num_tokens: int) -> int:
    """Bytes that hold so many tokens of a file; of lines of JSON, on average."""
    return run.files[file].num_bytes * num_tokens // max(num_file_tokens(run, run.files[file]), 1)


def _near_texts(read: TextsRead, near: float | None, progress: Progress) -> Any:
    """Texts that are nearly the same as others: Arrow columns sha256, group, similarity; without `near`, none."""
    import pyarrow

    schema = pyarrow.schema([("sha256", "string"), ("group", "string"), ("similarity", "double")])
    if near is None:
        return schema.empty_table()
    sign_texts(read, progress)
    texts, signatures = signed_texts(read)
    tokens = tokens_of(read, texts)

    @lru_cache(maxsize=SHINGLES_HELD)
    def shingles(number: int) -> Shingles:
        return shingles_of(next(tokens.read([number])))

    alike = group_alike(buckets(signatures, *bands_for(near)), len(signatures), shingles, near)
    chosen = np.flatnonzero(alike.similarity)
    columns = [texts["sha256"][chosen], texts["sha256"][alike.group[chosen]], alike.similarity[chosen]]
    return pyarrow.table(columns, schema=schema)


def _silent(doing: str, done: int, total: int, seconds: float) -> None:
    pass
