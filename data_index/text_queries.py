"""Questions about texts that were read more than once, in SQL."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_index.batch_queries import kept_condition
from data_index.errors import CorruptFile
from data_index.run import Run
from data_index.store import opened_for, statement_text
from data_index.view_catalog import text_literal
from data_index.workspace import Workspace

# What can be compared: the column that names one, and what is told beside it.
TEXTS = {"documents": ("document_id", "source"), "instances": ("instance", "file")}


def text_readings(workspace: Workspace, run: Run, of: str, first: int, last: int) -> Any:
    """Every reading of a piece of a text by steps first+1 .. last, as an Arrow table.

    Columns: id (of the document or instance), step, attempt, position, instance, and first, stop: tokens of the text.
    """
    taken = f"step > {first} AND step <= {last} AND {kept_condition(run)}"
    statement = statement_text(f"read_{of}").format(taken=taken, length=run.tokens_per_instance)
    return opened_for(workspace, run, statement).sql(statement).to_arrow_table()


def _connect_texts(workspace: Workspace, run: Run, of: str, readings: Any) -> Any:
    """A connection with texts, hashes and readings, of documents or of instances."""
    connection = opened_for(workspace, run, "documents document_hashes instance_hashes minhashes batches pieces files")
    connection.execute(statement_text(f"texts_{of}").format(documents=text_literal(documents_in_force(workspace, run))))
    connection.register("readings", readings)
    return connection


def documents_in_force(workspace: Workspace, run: Run) -> str:
    """The documents table that ids now refer to: names of files, which are hashes of their content; "" for none."""
    return " ".join(path.name for path in workspace.learned_files(workspace.home(run.name), "documents"))


def texts_to_hash(workspace: Workspace, run: Run, of: str, readings: Any) -> dict[str, np.ndarray]:
    """The texts that were read and have no hash: columns id, and of documents file, start, stop.

    Raises:
        CorruptFile: two documents have one id.
    """
    connection = _connect_texts(workspace, run, of, readings)
    if of == "documents":
        twice = connection.execute(
            "SELECT document_id FROM documents GROUP BY document_id HAVING count(*) > 1 ORDER BY ALL LIMIT 1"
        ).fetchone()
        if twice:
            raise CorruptFile(f"documents of {run.name}: more than one is called {twice[0]}; ids must be unique")
    order = "file, start, id" if of == "documents" else "id"
    return connection.execute(
        f"SELECT * EXCLUDE (told) FROM texts SEMI JOIN readings USING (id) ANTI JOIN hashes USING (id) ORDER BY {order}"
    ).fetchnumpy()


def has_stale_hashes(workspace: Workspace, run: Run) -> bool:
    """Are there hashes of documents of another table than the one in force?"""
    connection = opened_for(workspace, run, "document_hashes")
    found = connection.execute(
        "SELECT 1 FROM document_hashes WHERE documents <> ? LIMIT 1", [documents_in_force(workspace, run)]
    )
    return found.fetchone() is not None


def distinct_texts(
    workspace: Workspace, run: Run, of: str, readings: Any, *, min_tokens: int, method: str, signed: bool
) -> Any:
    """One of each of the texts that were read, ordered by id, as an Arrow table.

    Columns: those of `texts_to_hash`, sha256, signature.

    Args:
        signed: only texts that have a signature of this method; else only those that have none.
    """
    return (
        _connect_texts(workspace, run, of, readings)
        .sql(
            """
            WITH chosen AS (SELECT sha256, min(id) AS id FROM hashes SEMI JOIN readings USING (id)
                            WHERE num_tokens >= $min_tokens GROUP BY sha256),
            found AS (SELECT sha256, any_value(signature) AS signature FROM minhashes WHERE method = $method GROUP BY 1)
            SELECT * EXCLUDE (told) FROM texts JOIN chosen USING (id) LEFT JOIN found USING (sha256)
            WHERE (signature IS NOT NULL) = $signed ORDER BY id
            """,
            params={"min_tokens": min_tokens, "method": method, "signed": signed},
        )
        .to_arrow_table()
    )


def repeated_readings(
    workspace: Workspace, run: Run, of: str, readings: Any, *, min_tokens: int, near: Any, limit: int | None
) -> tuple[Any, dict[str, int]]:
    """Rows of `repeats`, group after group, as an Arrow table; and counts over all groups.

    Args:
        readings: as `text_readings` answers.
        near: Arrow table of sha256, group, similarity: texts that are nearly the same as others, their groups named.
        limit: of groups; None: all.
    """
    connection = _connect_texts(workspace, run, of, readings)
    connection.register("near", near)
    connection.execute(statement_text("repeats").format(min_tokens=min_tokens))
    column, told = TEXTS[of]
    names = f"r.id AS {column}, r.step, r.attempt, r.position"
    names += ", r.instance, r.first AS first_token" if of == "documents" else ""
    rows = connection.sql(
        f"""
        SELECT g.number AS "group", CASE WHEN r.repeated THEN 1.0 ELSE r.similarity END AS similarity,
               left(r.sha256, 12) AS text, {names},
               r.stop - r.first AS num_tokens, t.told AS {told}
        FROM repeated r JOIN groups g ON g."group" = r."group" JOIN texts t ON t.id = r.id
        WHERE (g.near OR r.repeated) AND ($limit IS NULL OR g.number <= $limit)
        ORDER BY g.number, r.step, r.attempt, r.position, r.first, r.id
        """,
        params={"limit": limit},
    ).to_arrow_table()
    answer = connection.execute(
        "SELECT count(DISTINCT id) AS num_texts, count(DISTINCT sha256) AS num_distinct, "
        "(SELECT count(*) FROM groups) AS num_groups, (SELECT count(*) FROM groups WHERE near) AS num_near, "
        "coalesce(sum(stop - first), 0)::BIGINT AS num_tokens, coalesce(sum(again), 0)::BIGINT AS num_again "
        "FROM repeated"
    )
    counts = dict(zip([c[0] for c in answer.description or ()], answer.fetchone() or (), strict=True))
    return rows, counts
