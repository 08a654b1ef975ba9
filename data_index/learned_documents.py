"""Learns which documents a run's token files hold: file by file, resumable, a Parquet file for each.

Documents are numbered on from file to file, so that the table is sorted by `document_id`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_index.document_borders import border_tokens, ends_by_line, ends_by_token, num_tokens_of
from data_index.kinds import arrow_schema
from data_index.piecewise import PiecewiseTable
from data_index.provenance import provenance_files, read_provenance
from data_index.run import Run, TokenFile
from data_index.run_check import LINES
from data_index.tokens import TokenReader
from data_index.workspace import put_in_force

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BorderRule:
    """What says where documents end.

    Attributes:
        provenance: token file -> its provenance file, for all token files or none; without, their end token says it.
        eos, bos: as `document_borders.border_tokens` gives them.
    """

    provenance: Mapping[str, Path] = field(default_factory=dict)
    eos: int | None = None
    bos: int | None = None

    def described(self) -> str:
        if self.provenance:
            return "provenance files"
        return f"the end token {self.eos}" + (f" before {self.bos}" if self.bos is not None else "")


def rule_by_end_token(run: Run) -> BorderRule:
    """
    Raises:
        UnknownDocument: the run has no end token.
    """
    if run.files and all(file.dtype == LINES for file in run.files):
        return BorderRule()
    eos, bos = border_tokens(run)
    return BorderRule(eos=eos, bos=bos)


def default_rule(run: Run, progress: Progress = lambda message: None) -> BorderRule:
    """Provenance where it lies beside every token file, else the end token.

    Raises:
        UnknownDocument: the run has no end token.
    """
    found = provenance_files(run)
    if found and len(found) == len(run.files):
        return BorderRule(provenance=found)
    if found:
        progress(f"only {len(found)} of {len(run.files)} token files have provenance beside them; it is not used")
    return rule_by_end_token(run)


def learn_documents(
    run: Run, home: Path, rule: BorderRule, reader: TokenReader, progress: Progress = lambda message: None
) -> int:
    """Learn the documents of all token files and put them in force; returns how many. Goes on where it was stopped.

    Raises:
        MissingFile, CorruptFile, UnsafeFile, DiskFull
        AccessDenied, Unreachable, Offline: token files are on a server.
    """
    table = PiecewiseTable(home, "documents", _work(run, rule))
    for number, file in enumerate(run.files):
        if number < len(table.notes):
            continue
        first = sum(int(note["documents"]) for note in table.notes)
        note = {"documents": 0}
        table.add(_numbered(_documents_of(file, rule, reader), file, first, note), note)
        if len(run.files) > 1:
            progress(f"documents of file {number + 1} of {len(run.files)}: {note['documents']:,}")
    put_in_force(home, {"documents": table.paths()})
    table.forget()
    return sum(int(note["documents"]) for note in table.notes)


def _documents_of(file: TokenFile, rule: BorderRule, reader: TokenReader) -> Iterator[Any]:
    """Arrow tables of at least `start` and `end`, in file order."""
    import pyarrow

    if file.name in rule.provenance:
        yield from read_provenance(rule.provenance[file.name], num_tokens_of(file, reader.run))
        return
    if file.dtype == LINES:
        blocks = ends_by_line(file, reader.run.sequence_length)
    else:
        assert rule.eos is not None
        blocks = ends_by_token(reader, file, rule.eos, rule.bos)
    at = 0
    for ends in blocks:
        yield pyarrow.table({"start": np.append(at, ends)[: len(ends)], "end": ends})
        at = int(ends[-1]) if len(ends) else at


def _numbered(tables: Iterator[Any], file: TokenFile, first: int, note: dict[str, int]) -> Iterator[Any]:
    """The tables with all columns of `documents`, numbered from `first`; `note` counts them as they pass."""
    import pyarrow

    schema = arrow_schema("documents")
    for table in tables:
        count = table.num_rows
        given = {name: table.column(name) for name in table.column_names}
        start = first + note["documents"]
        given["document_id"] = pyarrow.array(np.arange(start, start + count))
        given["file"] = pyarrow.repeat(pyarrow.scalar(file.name, pyarrow.string()), count)
        given["tags"] = pyarrow.array([[]], schema.field("tags").type).take(pyarrow.array(np.zeros(count, np.int64)))
        yield pyarrow.table([given.get(c.name, pyarrow.nulls(count, c.type)) for c in schema], schema=schema)
        note["documents"] += count


def _work(run: Run, rule: BorderRule) -> dict[str, Any]:
    """What the documents depend on."""
    return {
        "files": [[file.name, str(file.path), file.dtype, file.num_bytes] for file in run.files],
        "provenance": {
            name: [str(path), path.stat().st_size, path.stat().st_mtime_ns] for name, path in rule.provenance.items()
        },
        "border": [rule.eos, rule.bos],
    }
