"""The n-gram index of a run's token files: what it would cost, and building it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data_index.batch_queries import reader_of
from data_index.errors import MissingFile
from data_index.ngrams import build_ngrams, indexable, missing_chunks, ngram_folder
from data_index.run import Run
from data_index.witness import remember_first_seen
from data_index.workspace import Workspace

# What --plan reckons with; 100M tokens took 23 s where it was measured (tests/benchmarks/RESULTS.md).
TOKENS_A_SECOND = 4_000_000
BYTES_A_POSITION = 4


def plan_ngrams(run: str, *, workspace: Workspace | None = None) -> dict[str, Any]:
    """What building the index would take: `tokens` to sort, bytes of `disk` and of `memory`, `seconds`.

    Raises:
        UnknownRun, MissingFile
    """
    workspace = workspace or Workspace()
    record = _run_with_files(workspace, run)
    missing = missing_chunks(workspace.home(run), record)
    tokens = sum(stop - start for _, start, stop in missing)
    largest = max((stop - start for _, start, stop in missing), default=0)
    return {
        "run": run,
        "files": len(indexable(record)),
        "chunks": len(missing),
        "tokens": tokens,
        "disk": BYTES_A_POSITION * tokens,
        "memory": 4 * 8 * largest,
        "seconds": round(tokens / TOKENS_A_SECOND, 1),
    }


def ngrams(
    run: str, *, progress: Callable[[int, int], None] | None = None, workspace: Workspace | None = None
) -> dict[str, Any]:
    """Build the n-gram index of a run's token files, or what is missing of it; `where` uses it from then on.

    Args:
        progress: called with the tokens done and the tokens to do.
    Returns:
        `run`, `files`, `tokens` (sorted this time), `bytes` and `folder`.
    Raises:
        UnknownRun, MissingFile, CorruptFile, Busy, DiskFull
    """
    workspace = workspace or Workspace()
    record = _run_with_files(workspace, run)
    home, reader = workspace.home(run), reader_of(workspace, record)
    tokens = build_ngrams(home, record, reader, progress=progress)
    remember_first_seen(workspace, record, reader)
    size = sum(path.stat().st_size for path in ngram_folder(home).glob("*.npy"))
    return {
        "run": run,
        "files": len(indexable(record)),
        "tokens": tokens,
        "bytes": size,
        "folder": str(ngram_folder(home)),
    }


def _run_with_files(workspace: Workspace, name: str) -> Run:
    run = workspace.run(name)
    if not indexable(run):
        raise MissingFile(
            f"{name} has no token files on this disk that are arrays of tokens: there is nothing to build an index "
            "from (where searches what there is)"
        )
    return run
