"""`documents`: which documents a run's token files hold, learned where it is not known yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_index.batch_queries import reader_of
from data_index.document_queries import documents_by_file
from data_index.errors import InvalidRange
from data_index.files import exclusive_lock
from data_index.learned_documents import BorderRule, default_rule, learn_documents, rule_by_end_token
from data_index.provenance import require_all
from data_index.run import Run
from data_index.witness import remember_first_seen
from data_index.workspace import Workspace
from forensics.fetching import bytes_of_all_tokens, require_allowed

Progress = Callable[[str], None]


def documents(
    run: str,
    *,
    provenance: Path | str | None = None,
    by_end_token: bool = False,
    verify: bool = True,
    max_fetch: int | None = None,
    workspace: Workspace | None = None,
    progress: Progress = lambda message: None,
) -> Any:
    """Documents by token file, as an Arrow table; learned first where none are known, or where a way is named.

    Args:
        provenance: a folder of `.csv.gz` files, one for each token file.
        by_end_token: find borders by the end token, whatever lies beside the token files.
        max_fetch: bytes of tokens that may be fetched from servers; default: 1 GiB.
    Raises:
        InvalidRange: both ways are named.
        UnknownRun, UnknownDocument, MissingFile, CorruptFile, UnsafeFile, DiskFull
        Busy: another process learns them.
        TooMuchToFetch, AccessDenied, Unreachable, Offline: the tokens are on a server.
    """
    workspace = workspace or Workspace()
    record = workspace.run(run)
    home = workspace.home(run)
    if provenance is None and not by_end_token and workspace.learned_files(home, "documents"):
        return documents_by_file(workspace, record)
    rule = _rule(record, provenance, by_end_token, progress)
    if not rule.provenance:
        require_allowed(bytes_of_all_tokens(record), max_fetch, f"a search through all tokens of {run}")
    with exclusive_lock(home / ".documents.lock", f"learning the documents of {run}"):
        reader = reader_of(workspace, record, verify=verify)
        count = learn_documents(record, home, rule, reader, progress)
        if said := remember_first_seen(workspace, record, reader):
            progress(said)
    progress(f"found {count:,} documents by {rule.described()}")
    return documents_by_file(workspace, record)


def plan_documents(
    run: str, *, provenance: Path | str | None = None, by_end_token: bool = False, workspace: Workspace | None = None
) -> dict[str, Any]:
    """What learning them would read: `run, known, by, files, read_bytes, fetch_bytes`; nothing is read or written.

    Raises:
        as `documents` does before it begins.
    """
    workspace = workspace or Workspace()
    record = workspace.run(run)
    known = bool(workspace.learned_files(workspace.home(run), "documents"))
    rule = _rule(record, provenance, by_end_token, lambda message: None)
    stored = (path.stat().st_size for path in rule.provenance.values())
    return {
        "run": run,
        "known": known,
        "by": rule.described(),
        "files": len(record.files),
        "read_bytes": sum(stored) if rule.provenance else sum(file.num_bytes for file in record.files),
        "fetch_bytes": 0 if rule.provenance else bytes_of_all_tokens(record),
    }


def _rule(run: Run, provenance: Path | str | None, by_end_token: bool, progress: Progress) -> BorderRule:
    if provenance is not None and by_end_token:
        raise InvalidRange("documents are learned by --provenance or --by-end-token, not by both")
    if provenance is not None:
        return BorderRule(provenance=require_all(run, Path(provenance)))
    return rule_by_end_token(run) if by_end_token else default_rule(run, progress)
