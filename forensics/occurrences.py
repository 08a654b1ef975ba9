"""The instances that hold a text or a token, found in the token files; with progress, early stop and documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_index.batch_queries import reader_of
from data_index.document_queries import documents_of_stretches
from data_index.errors import InvalidRange, UnknownDocument
from data_index.ngram_lookup import NgramIndex
from data_index.run import Run
from data_index.text import text_matcher
from data_index.token_rows import Touched
from data_index.token_search import Matcher, TokenMatcher, bytes_to_search, search
from data_index.witness import remember_first_seen
from data_index.workspace import Workspace
from forensics.fetching import bytes_of_all_tokens

# Stretches that are kept before their documents are asked for.
STRETCHES_AT_ONCE = 2_000_000

# Bytes done, bytes of all token files, instances found so far.
Progress = Callable[[int, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Occurrences:
    """
    Attributes:
        instances: rising.
        documents: of each instance the documents in which the occurrences lie, in the order of their places.
        notes: sentences for people: how it was searched, where it stopped early.
    """

    instances: tuple[int, ...]
    documents: dict[int, list[int]]
    notes: tuple[str, ...]


def plan_search(workspace: Workspace, name: str, *, searches: bool) -> dict[str, Any]:
    """What `where` would read: bytes of token files to `scan` (none for a document or an instance), and to `download`.

    Raises:
        UnknownRun
    """
    run = workspace.run(name)
    index = NgramIndex(workspace.home(name), run)
    files = run.files if searches else ()
    indexed = [file for file in files if index.has(file)]
    return {
        "run": name,
        "files": len(files),
        "indexed_files": len(indexed),
        "scan": sum(file.num_bytes for file in files if file not in indexed),
        "download": bytes_of_all_tokens(run) if searches else 0,
    }


def matcher_of(run: Run, text: str | None, token: int | None) -> Matcher:
    """
    Raises:
        InvalidRange, UnknownDocument, UnsupportedRecipe, MissingFile, CorruptFile
    """
    if text is not None:
        return text_matcher(run, text)
    assert token is not None
    if token < 0 or token > run.largest_token_id:
        raise UnknownDocument(f"{token} cannot be a token id of {run.name}")
    return TokenMatcher(token)


def find_occurrences(
    workspace: Workspace,
    run: Run,
    matcher: Matcher,
    *,
    limit: int | None = None,
    with_documents: bool = True,
    progress: Progress | None = None,
) -> Occurrences:
    """
    Args:
        limit: stop once so many instances were found.
    Raises:
        InvalidRange: the limit is below 1.
        MissingFile, CorruptFile
    """
    if limit is not None and limit < 1:
        raise InvalidRange(f"--limit takes a number of instances from 1 on, not {limit}")
    reader, shortcut = reader_of(workspace, run), NgramIndex(workspace.home(run.name), run)
    total, stopped = bytes_to_search(run), ""
    holding, documents = np.zeros(run.num_instances, dtype=bool), _Documents(workspace, run)
    num_found = 0
    for found in search(run, reader, matcher, shortcut):
        touched = found.touched
        new = np.unique(touched.instance[~holding[touched.instance]])[: None if limit is None else limit - num_found]
        holding[new] = True
        num_found += len(new)
        if limit is not None and num_found == limit:
            touched = _of_instances(touched, holding)
            stopped = (
                f"stopped early, in {found.file.name}, after {found.num_bytes:,} of {total:,} bytes: "
                f"{limit:,} instances were found (--limit {limit})"
            )
        if with_documents:
            documents.add(touched)
        if progress is not None:
            progress(total if stopped else found.num_bytes, total, num_found)
        if stopped:
            break
    remember_first_seen(workspace, run, reader)
    notes = [*shortcut.notes, *([stopped] if stopped else [])]
    instances = tuple(np.flatnonzero(holding).tolist())
    return Occurrences(instances=instances, documents=documents.by_instance(), notes=tuple(notes))


def _of_instances(touched: Touched, holding: np.ndarray) -> Touched:
    kept = holding[touched.instance]
    return Touched(instance=touched.instance[kept], start=touched.start[kept], stop=touched.stop[kept])


class _Documents:
    """Documents of the stretches found; asked for many stretches at once."""

    def __init__(self, workspace: Workspace, run: Run) -> None:
        self._workspace, self._run = workspace, run
        self._waiting: list[Touched] = []
        self._found: dict[int, dict[int, None]] = {}

    def add(self, touched: Touched) -> None:
        if len(touched.instance):
            self._waiting.append(touched)
        if sum(len(part.instance) for part in self._waiting) > STRETCHES_AT_ONCE:
            self._ask()

    def by_instance(self) -> dict[int, list[int]]:
        self._ask()
        return {instance: list(documents) for instance, documents in self._found.items()}

    def _ask(self) -> None:
        if not self._waiting:
            return
        for instance, document in documents_of_stretches(self._workspace, self._run, self._table()):
            self._found.setdefault(instance, {})[document] = None
        self._waiting.clear()

    def _table(self) -> Any:
        import pyarrow

        names = ("instance", "start", "stop")
        return pyarrow.table({name: np.concatenate([getattr(part, name) for part in self._waiting]) for name in names})
