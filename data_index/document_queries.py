"""Questions about documents and their tags, in SQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from data_index.errors import UnknownDocument
from data_index.kinds import KINDS
from data_index.run import Run
from data_index.store import opened_for, readable, statement_text
from data_index.workspace import Workspace


def overlapping_namespaces(workspace: Workspace, run: Run) -> set[str]:
    """Namespaces of tags (what stands before the first colon; else nothing) of which some document has several."""
    query = """SELECT DISTINCT namespace FROM (
        SELECT CASE WHEN contains(tag, ':') THEN split_part(tag, ':', 1) ELSE '' END AS namespace FROM tags
        GROUP BY document_id, namespace HAVING count(*) > 1)"""
    return {namespace for (namespace,) in opened_for(workspace, run, query).execute(query).fetchall()}


@readable
def instances_of_document(workspace: Workspace, run: Run, document_id: int) -> list[int]:
    """
    Raises:
        UnknownDocument
    """
    connection = opened_for(workspace, run, "documents spans")
    found = connection.execute("SELECT instance FROM spans WHERE document_id = ? ORDER BY 1", [document_id]).fetchall()
    if not found and not connection.execute("FROM documents WHERE document_id = ?", [document_id]).fetchall():
        ((count,),) = connection.execute("SELECT count(*) FROM documents").fetchall()
        raise UnknownDocument(
            f"{run.name} has no document {document_id}; it has {count:,} documents"
            + (f" (see forensics sql \"from documents where run = '{run.name}'\")" if count else "")
        )
    return [instance for (instance,) in found]


def documents_of_stretches(workspace: Workspace, run: Run, stretches: Any) -> list[tuple[int, int]]:
    """The documents in stretches of instances: (instance, document id), each once, in the order of their places.

    Args:
        stretches: an Arrow table of instance, start, stop (tokens of the row, half-open).
    """
    connection = opened_for(workspace, run, "spans")
    connection.register("stretches", stretches)
    found = connection.execute(
        "SELECT s.instance, s.document_id FROM spans s JOIN stretches t "
        "ON s.instance = t.instance AND s.start < t.stop AND s.stop > t.start "
        "WHERE s.instance IN (SELECT instance FROM stretches) GROUP BY ALL ORDER BY s.instance, min(s.start)"
    )
    return found.fetchall()


@readable
def documents_of_instances(workspace: Workspace, run: Run, instances: Any) -> dict[str, np.ndarray]:
    """The documents in rows: columns instance, documents (how many have a piece in it), shortest and longest (whole
    documents, tokens), by instance; an instance with no known document is left out.

    Args:
        instances: int64 of any length.
    """
    found = _opened_with(workspace, run, "documents spans", instances).execute(
        """
        WITH here AS (SELECT DISTINCT instance, document_id FROM spans
                      WHERE instance IN (SELECT instance FROM wanted)),
        lengths AS (SELECT document_id, sum("end" - start)::BIGINT AS length FROM documents
                    WHERE document_id IN (SELECT document_id FROM here) GROUP BY ALL)
        SELECT instance, count(*) AS documents, min(length) AS shortest, max(length) AS longest
        FROM here JOIN lengths USING (document_id) GROUP BY ALL ORDER BY instance"""
    )
    return dict(found.fetchnumpy())


@readable
def spans_of_instances(workspace: Workspace, run: Run, instances: Any) -> list[tuple[int, int, int, int]]:
    """(instance, document id, start, stop) of every known piece of a document in these rows, rising."""
    found = _opened_with(workspace, run, "spans", instances).execute(
        "SELECT instance, document_id, start, stop FROM spans WHERE instance IN (SELECT instance FROM wanted) "
        "ORDER BY ALL"
    )
    return found.fetchall()


def sources_of_documents(workspace: Workspace, run: Run, documents: list[int]) -> dict[int, str | None]:
    """Where documents came from, as far as that is known."""
    found = opened_for(workspace, run, "documents").execute(
        "SELECT document_id, any_value(source) FROM documents WHERE list_contains($documents::BIGINT[], document_id) "
        "GROUP BY ALL",
        {"documents": documents},
    )
    return dict(found.fetchall())


@readable
def tags_of_instances(workspace: Workspace, run: Run, instances: Any) -> list[tuple[int, str]]:
    """(instance, tag) for each tag of the documents with a piece in these rows, each once, rising."""
    found = _opened_with(workspace, run, "tags spans", instances).execute(
        "SELECT DISTINCT instance, tag FROM spans JOIN tags USING (document_id) "
        "WHERE instance IN (SELECT instance FROM wanted) ORDER BY ALL"
    )
    return found.fetchall()


def _opened_with(workspace: Workspace, run: Run, question: str, instances: Any) -> Any:
    """A cursor with the views of a question and a table `wanted` of instances."""
    import pyarrow

    connection = opened_for(workspace, run, question)
    connection.register("wanted", pyarrow.table({"instance": np.asarray(instances, dtype=np.int64)}))
    return connection


def documents_by_file(workspace: Workspace, run: Run) -> Any:
    """One row for each token file that holds documents: how many, with how many tokens, and what is known of them."""
    return (
        opened_for(workspace, run, "documents")
        .sql(
            'SELECT file, count(DISTINCT document_id) AS documents, sum("end" - start)::BIGINT AS tokens, '
            "count(external_id) AS with_external_id, count(source) AS with_source FROM documents "
            "GROUP BY file ORDER BY min(document_id)"
        )
        .to_arrow_table()
    )


def _as_table(batch: Any) -> Any:
    import pyarrow

    return pyarrow.Table.from_batches([batch])


def tags_by_provenance(workspace: Workspace, run: Run) -> Iterator[Any]:
    """Tables of `document_id, tag`, in their order: what `source` and `external_id` of documents tell."""
    query = statement_text("provenance_tags")
    for batch in opened_for(workspace, run, query).sql(query).to_arrow_reader():
        yield _as_table(batch)


def tags_given(workspace: Workspace, run: Run, given: Iterator[Any], key: str) -> Iterator[Any]:
    """Tables of `document_id, tag`, in their order, from tables of a key (a column of `documents`) and `tag`.

    Raises:
        UnknownDocument: the run has no such document, or, by `external_id`, none of them.
    """
    connection = opened_for(workspace, run, "documents")
    connection.execute(f"CREATE TEMP TABLE given ({key} {KINDS['documents'][key]}, tag VARCHAR)")
    for table in given:
        connection.register("source", table)
        connection.execute(f"INSERT INTO given SELECT {key}, tag FROM source")
        connection.unregister("source")
    lost = f"FROM given WHERE {key} NOT IN (SELECT {key} FROM documents WHERE {key} IS NOT NULL)"
    counts = f"SELECT count(*), any_value({key}), (SELECT count(*) FROM given) - count(*) {lost}"
    ((num_lost, example, num_found),) = connection.execute(counts).fetchall()
    # A publisher's ids may be of a larger corpus; the run's own cannot.
    if num_lost and (key == "document_id" or not num_found):
        raise UnknownDocument(
            f"{run.name} has no document whose {key} is {str(example)[:80]!r}, nor those of {num_lost - 1:,} other "
            f"rows (what there is: forensics sql \"from documents where run = '{run.name}'\")"
        )
    query = f"SELECT DISTINCT document_id, tag FROM given JOIN documents USING ({key}) ORDER BY ALL"
    for batch in connection.sql(query).to_arrow_reader():
        yield _as_table(batch)


def documents_after(workspace: Workspace, run: Run, document_id: int | None) -> Iterator[list[dict[str, Any]]]:
    """Documents from the one after a given one on, in the order of their numbers: the rows of each."""
    query = "SELECT * EXCLUDE (run) FROM documents WHERE $after IS NULL OR document_id > $after ORDER BY document_id"
    rows: list[dict[str, Any]] = []
    found = opened_for(workspace, run, query).sql(query, params={"after": document_id}).to_arrow_reader(10_000)
    for row in (row for batch in found for row in batch.to_pylist()):
        if rows and rows[0]["document_id"] != row["document_id"]:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


def count_documents(workspace: Workspace, run: Run) -> tuple[int, int]:
    """Documents, and tokens in them."""
    query = 'SELECT count(DISTINCT document_id), coalesce(sum("end" - start), 0) FROM documents'
    documents, tokens = opened_for(workspace, run, query).execute(query).fetchone() or (0, 0)
    return int(documents), int(tokens)


def counted_tags(workspace: Workspace, run: Run) -> Any:
    """Rows of `tag`: learned tags with their origin, and how many documents carry each; the most frequent first."""
    return (
        opened_for(workspace, run, "learned_tags")
        .sql(
            "SELECT origin, tag, count(*) AS documents FROM learned_tags GROUP BY ALL "
            "ORDER BY origin, documents DESC, tag"
        )
        .to_arrow_table()
    )


def documents_of_file(workspace: Workspace, run: Run, file: str, start: int, stop: int) -> list[tuple[int, int, int]]:
    """(document id, start, end) of documents with tokens in start .. stop of a file, by their places."""
    query = (
        'SELECT document_id, start, "end" FROM documents WHERE file = $file AND start < $stop AND "end" > $start '
        "ORDER BY start, document_id"
    )
    found = opened_for(workspace, run, query).execute(query, {"file": file, "start": start, "stop": stop})
    return found.fetchall()


def tags_of_documents(workspace: Workspace, run: Run, documents: list[int]) -> dict[int, list[str]]:
    """The tags of documents, each rising; a document without any is left out."""
    query = (
        "SELECT document_id, list(DISTINCT tag ORDER BY tag) FROM tags "
        "WHERE list_contains($documents::BIGINT[], document_id) GROUP BY document_id"
    )
    return dict(opened_for(workspace, run, query).execute(query, {"documents": documents}).fetchall())
