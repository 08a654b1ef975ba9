"""The documents and tags that each token was read in: one pass over the steps, in the order in which they were taken.

A reading is a token of a row of an applied step, in the loss or hidden from it; padding is none. Of each token the
first MOST_DOCUMENTS documents are kept, in the order in which the run came to them, and the readings by tag are counted
all. A document of several tags counts for each.

    token_origins/<key>/gathered-<step>.npy    what was gathered up to a step, so that an interrupted pass goes on
    token_origins/<key>/<hash>.parquet         rows of `token_origins`; state.json names them when all is gathered
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_index.batch_queries import plan_of, reader_of
from data_index.errors import ForensicsError
from data_index.files import (
    canonical_json,
    read_json_object,
    require_file,
    sha256_of_file,
    write_hashed_parquet,
    write_json,
    write_npy,
)
from data_index.origin_queries import spans_in_rows, tag_sets
from data_index.step_rows import rows_of_step
from data_index.witness import remember_first_seen
from data_index.workspace import Workspace, put_in_force, read_current
from forensics.counting_plan import Count
from forensics.gathered_origins import OriginsOfTokens

VERSION = 1  # of what is gathered
PLANNED_ROWS = 2**18  # whose documents are asked for together
COMMIT_SECONDS = 60.0

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
    workspace: Workspace,
    count: Count,
    num_ids: int,
    *,
    progress: Progress = lambda done, total: None,
    commit_seconds: float = COMMIT_SECONDS,
) -> TokenOrigins | None:
    """Of all steps that a count covers; None where no documents are known. Gathered once, it is answered at once;
    interrupted, it goes on.

    Call it only while holding a lock of the run.

    Args:
        num_ids: rows of the embedding; no token id reaches it.
        commit_seconds: keep what was gathered about so often.
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
        path = write_hashed_parquet(folder, _gathered(workspace, count, num_ids, folder, progress, commit_seconds))
        write_json(folder / "state.json", {"file": path.name})
        _forget(folder)
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


def _gathered(
    workspace: Workspace, count: Count, num_ids: int, folder: Path, progress: Progress, commit_seconds: float
) -> Any:
    """Rows of `token_origins`."""
    run = count.run
    reader = reader_of(workspace, run)
    found = OriginsOfTokens(num_ids=num_ids, tags=tag_sets(workspace, run))
    began, committed = _resumed(folder, found, count.first), time.monotonic()
    together = max(PLANNED_ROWS // max(segment.instances_per_batch for segment in run.segments), 1)
    try:
        for first in range(began, count.last, together):
            plan = plan_of(workspace, run, first, min(first + together, count.last))
            spans = spans_in_rows(workspace, run, np.concatenate([plan[step].instances for step in plan.steps]))
            found.begin(spans)
            for step in plan.steps:
                if plan[step].outcome == "applied" and step not in count.not_applied:
                    found.add_step(plan[step], rows_of_step(plan[step], reader))
                progress(count.tokens_until(step), count.num_tokens)
            if time.monotonic() - committed >= commit_seconds:
                _forget(folder, but=_commit(folder, plan.steps[-1], found))
                committed = time.monotonic()
    finally:
        remember_first_seen(workspace, run, reader)
    return found.table()


def _commit(folder: Path, step: int, found: OriginsOfTokens) -> Path:
    path = folder / f"gathered-{step}.npy"
    write_npy(path, found.state())
    return path


def _resumed(folder: Path, found: OriginsOfTokens, first: int) -> int:
    """Take up what was gathered before; the step up to which it was."""
    for path in folder.glob("gathered-*.npy"):
        try:
            found.restore(np.load(path, allow_pickle=False))
            return int(path.stem.removeprefix("gathered-"))
        except (OSError, ValueError, EOFError):
            continue
    return first


def _forget(folder: Path, but: Path | None = None) -> None:
    for path in folder.glob("gathered-*.npy"):
        if path != but:
            path.unlink()
