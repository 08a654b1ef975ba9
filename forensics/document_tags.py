"""`tag`: tags of documents, from their provenance, from a user's table, or from a user's function over their text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from data_index.batch_queries import reader_of
from data_index.document_queries import count_documents, counted_tags, documents_after, tags_by_provenance, tags_given
from data_index.errors import InvalidRange, UnknownDocument, UnknownOrigin
from data_index.files import exclusive_lock, write_hashed_parquet_parts
from data_index.given_tags import KEYS, read_given_tags
from data_index.kinds import arrow_schema
from data_index.learned_tags import files_by_origin, replace_origin, tags_table
from data_index.piecewise import PiecewiseTable
from data_index.run import Run
from data_index.witness import remember_first_seen
from data_index.workspace import Workspace
from forensics.fetching import bytes_of_all_tokens, require_allowed
from forensics.tagging_function import tagger_of, text_of_document
from forensics.users_functions import find_function, identity_of

Progress = Callable[[str], None]
CHUNK_DOCUMENTS = 5_000  # that a function is asked about between two places where it can be stopped


def tag(
    run: str,
    *,
    provenance: bool = False,
    table: Path | str | None = None,
    function: str | None = None,
    origin: str | None = None,
    remove: str | None = None,
    limit: int | None = None,
    max_fetch: int | None = None,
    workspace: Workspace | None = None,
    progress: Progress = lambda message: None,
) -> Any:
    """Tag documents; returns all learned tags with their counts, as an Arrow table of `origin, tag, documents`.

    Args:
        provenance: from the folders of source paths and the hosts of addresses.
        table: from a Parquet or CSV file with `document_id` or `external_id`, and `tag` (one or a list).
        function: `module:function`, called with the text of every document (and its row, if it takes two arguments);
            returns None, a tag, or several.
        origin: the name under which the tags are kept, and replaced; default: `provenance`, the file's name, or the
            function's.
        remove: take away the tags of this origin.
        limit: ask the function about so many documents only, and keep nothing: the table is of `document_id, tag`.
        max_fetch: bytes of tokens that may be fetched from servers; default: 1 GiB.
    Raises:
        InvalidRange: not exactly one way is named.
        UnknownRun, UnknownDocument, UnknownOrigin, MissingFile, CorruptFile, FailedFunction, DiskFull
        Busy: another process tags the run.
        TooMuchToFetch, AccessDenied, Unreachable, Offline: the tokens are on a server.
    """
    workspace = workspace or Workspace()
    record = workspace.run(run)
    ways = [provenance, table is not None, function is not None, remove is not None]
    if sum(ways) > 1 or (limit is not None and function is None):
        raise InvalidRange("tag takes one of --provenance, --from, --fn and --remove; --limit goes with --fn")
    if not any(ways):
        return counted_tags(workspace, record)
    home = workspace.home(run)
    if remove is None and not workspace.learned_files(home, "documents"):
        raise UnknownDocument(f"no documents of {run} are known yet: forensics documents {run} learns them")
    if function is not None:
        require_allowed(bytes_of_all_tokens(record), max_fetch, f"reading all documents of {run}")
    if function is not None and limit is not None:
        return _tried(workspace, record, function, limit)
    with exclusive_lock(home / ".tags.lock", f"tagging {run}"):
        if remove is not None:
            _remove(workspace, home, run, remove)
        elif function is not None:
            _tag_by_function(workspace, record, function, origin or function, progress)
        elif table is not None:
            path = Path(table)
            _keep(workspace, record, origin or path.name, _tags_of_file(workspace, record, path))
        else:
            _keep(workspace, record, origin or "provenance", tags_by_provenance(workspace, record))
    return counted_tags(workspace, record)


def plan_tag(run: str, *, function: str | None = None, workspace: Workspace | None = None) -> dict[str, Any]:
    """What tagging would read: `run, documents, tokens, read_bytes, fetch_bytes`; only a function reads tokens."""
    workspace = workspace or Workspace()
    record = workspace.run(run)
    documents, tokens = count_documents(workspace, record)
    reads = function is not None
    return {
        "run": run,
        "documents": documents,
        "tokens": tokens,
        "read_bytes": sum(file.num_bytes for file in record.files) if reads else 0,
        "fetch_bytes": bytes_of_all_tokens(record) if reads else 0,
    }


def _remove(workspace: Workspace, home: Path, run: str, origin: str) -> None:
    there = files_by_origin(workspace, home)
    if origin not in there:
        names = ", ".join(sorted(there)) or "none"
        raise UnknownOrigin(f"{run} has no tags from {origin!r}; there are those from: {names}")
    replace_origin(workspace, home, origin, [])


def _tags_of_file(workspace: Workspace, run: Run, path: Path) -> Iterator[Any]:
    tables = read_given_tags(path)
    first = next(tables, None)
    if first is None:
        return iter(())
    key = next(key for key in KEYS if key in first.column_names)
    return tags_given(workspace, run, chain([first], tables), key)


def _keep(workspace: Workspace, run: Run, origin: str, tables: Iterator[Any]) -> None:
    home = workspace.home(run.name)
    tagged = (tags_table(t.column("document_id"), t.column("tag"), origin) for t in tables)
    replace_origin(workspace, home, origin, [write_hashed_parquet_parts(home / "tags", arrow_schema("tags"), tagged)])


def _tag_by_function(workspace: Workspace, run: Run, name: str, origin: str, progress: Progress) -> None:
    """Chunk by chunk; what was tagged before an interruption is not asked about again."""
    function = find_function(name)
    home = workspace.home(run.name)
    in_force = [path.name for path in workspace.learned_files(home, "documents")]
    work = {"origin": origin, "function": name, "code": identity_of(function), "documents": in_force}
    written = PiecewiseTable(home, "tags", work)
    total, _ = count_documents(workspace, run)
    done = sum(int(note["documents"]) for note in written.notes)
    after = int(written.notes[-1]["last"]) if written.notes else None
    for chunk in _chunks(_said(workspace, run, name, function, after)):
        tagged = [(document, tag) for document, tags in chunk for tag in tags]
        tables = [tags_table([document for document, _ in tagged], [tag for _, tag in tagged], origin)]
        written.add(iter(tables), {"documents": len(chunk), "last": chunk[-1][0]})
        done += len(chunk)
        progress(f"tagged {done:,} of {total:,} documents")
    replace_origin(workspace, home, origin, written.paths())
    written.forget()


def _said(
    workspace: Workspace, run: Run, name: str, function: Callable[..., Any], after: int | None
) -> Iterator[tuple[int, list[str]]]:
    """Documents after one, with the tags that a function gives them."""
    tagger = tagger_of(function, name)
    reader = reader_of(workspace, run)
    for rows in documents_after(workspace, run, after):
        yield rows[0]["document_id"], tagger(text_of_document(run, reader, rows), rows)
    remember_first_seen(workspace, run, reader)


def _chunks(documents: Iterator[tuple[int, list[str]]]) -> Iterator[list[tuple[int, list[str]]]]:
    while chunk := list(islice(documents, CHUNK_DOCUMENTS)):
        yield chunk


def _tried(workspace: Workspace, run: Run, name: str, limit: int) -> Any:
    import pyarrow

    said = list(islice(_said(workspace, run, name, find_function(name), None), limit))
    return pyarrow.table(
        {
            "document_id": pyarrow.array([document for document, _ in said], pyarrow.int64()),
            "tag": pyarrow.array([", ".join(tags) for _, tags in said], pyarrow.string()),
        }
    )
