"""The only place where SQL is executed: views over a workspace, and the questions that the verbs ask.

`connect` gives an in-memory DuckDB with every run attached read-only and one schema of views over them all. User SQL
runs through `run_query`, on a connection that can read the workspace and nothing else.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from data_index.batch import IndexedPlan, StepPlan
from data_index.errors import CorruptFile, FailedQuery, RefusedQuery, UnknownDocument, UnknownInstance
from data_index.files import require_file
from data_index.kinds import KINDS
from data_index.run import Run
from data_index.tokens import BlockHashes, TokenReader
from data_index.workspace import Workspace

QUERY_SECONDS = 60.0
QUERY_MEMORY = "2GB"

_INDEX_VIEWS = {
    "segments": "first_step BIGINT, num_steps BIGINT, attempt BIGINT, epoch BIGINT, first_position BIGINT, "
    "instances_per_batch BIGINT, loss_denominator BIGINT, outcome VARCHAR",
    "files": "file VARCHAR, path VARCHAR, dtype VARCHAR, num_bytes BIGINT, first_instance BIGINT, "
    "num_instances BIGINT, first_token BIGINT",
    "pieces": "instance BIGINT, first_token BIGINT, file VARCHAR, start BIGINT, stop BIGINT",
    "batches": "step BIGINT, attempt INTEGER, epoch INTEGER, position BIGINT, instance BIGINT, file VARCHAR, "
    '"offset" BIGINT, num_tokens INTEGER',
    "instances": "instance BIGINT, epoch INTEGER, step BIGINT, attempt INTEGER, position BIGINT, file VARCHAR, "
    '"offset" BIGINT',
}
_RUN_COLUMNS = {
    "run": "VARCHAR",
    "layout": "VARCHAR",
    "source": "VARCHAR",
    "first_step": "BIGINT",
    "last_step": "BIGINT",
    "sequence_length": "BIGINT",
    "num_instances": "BIGINT",
    "trust": "VARCHAR",
    "parent": "VARCHAR",
    "parent_step": "BIGINT",
}
_CHECKPOINT_COLUMNS = {"run": "VARCHAR", **KINDS["checkpoints"]}


def connect(workspace: Workspace | None = None, names: Sequence[str] | None = None) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection over a workspace, for notebooks and for the verbs.

    Args:
        names: only these runs and forks; default: all of them.
    Raises:
        UnknownRun, CorruptFile
    """
    workspace = workspace or Workspace()
    names = workspace.run_names() + workspace.fork_ids() if names is None else list(names)
    connection = duckdb.connect(":memory:")
    connection.execute("SET enable_progress_bar = false")
    # A file of another kind must not make DuckDB fetch an extension for it.
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET autoload_known_extensions = false")
    runs = {name: workspace.run(name) for name in names}
    for name in names:
        _attach(connection, name, workspace.home(name) / "index.duckdb")
    _create_table(connection, "runs", _RUN_COLUMNS, [_run_row(run) for run in runs.values()])
    checkpoints = [row for run in runs.values() for row in checkpoint_rows(workspace, run)]
    _create_table(connection, "checkpoints", _CHECKPOINT_COLUMNS, checkpoints)
    connection.execute("CREATE VIEW forks AS SELECT * FROM runs WHERE parent IS NOT NULL")
    for view, columns in _INDEX_VIEWS.items():
        parts = [f"SELECT {_text(name)} AS run, * FROM {_name(name)}.{view}" for name in names]
        _create_view(connection, view, columns, parts)
    for kind, names_and_types in KINDS.items():
        if kind == "checkpoints":  # made above: most runs' lie in their folders
            continue
        columns = ", ".join(f'"{column}" {name}' for column, name in names_and_types.items())
        files = {name: workspace.learned_files(workspace.home(name), kind) for name in names}
        parts = [
            f"SELECT {_text(name)} AS run, * FROM read_parquet([{', '.join(_text(str(path)) for path in paths)}])"
            for name, paths in files.items()
            if paths
        ]
        _create_view(connection, kind, columns, parts)
    connection.execute((resources.files("data_index") / "sql" / "views.sql").read_text())
    return connection


def _attach(connection: Any, name: str, path: Path) -> None:
    require_file(path)
    try:
        connection.execute(f"ATTACH {_text(str(path))} AS {_name(name)} (READ_ONLY, TYPE duckdb)")
    except duckdb.Error as error:
        raise CorruptFile(f"{path} cannot be opened as an index ({error}); register {name} again") from error


def _create_view(connection: Any, view: str, columns: str, parts: list[str]) -> None:
    typed = [column.strip().rsplit(" ", 1) for column in columns.split(",")]
    empty = "SELECT NULL::VARCHAR AS run, " + ", ".join(f"NULL::{kind} AS {name}" for name, kind in typed)
    body = " UNION ALL BY NAME ".join(parts) if parts else f"{empty} WHERE false"
    connection.execute(f"CREATE VIEW {view} AS {body}")


def _create_table(connection: Any, name: str, columns: dict[str, str], rows: list[tuple[Any, ...]]) -> None:
    connection.execute(f"CREATE TABLE {name} ({', '.join(f'{c} {kind}' for c, kind in columns.items())})")
    if rows:
        connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(columns))})", rows)


def _run_row(run: Run) -> tuple[Any, ...]:
    parent, step = run.parent if run.parent else (None, None)
    return (
        run.name,
        run.layout,
        run.origin,
        run.first_step,
        run.last_step,
        run.sequence_length,
        run.num_instances,
        str(run.trust),
        parent,
        step,
    )


def checkpoint_rows(workspace: Workspace, run: Run) -> list[tuple[Any, ...]]:
    return [
        (
            *(run.name, c.step, c.tokens, str(c.location), c.layout, list(c.states), list(c.issues)),
            *(c.revision, c.commit, c.is_available(), c.checked_at),
        )
        for c in workspace.checkpoints(run)
    ]


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _name(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'


# --- user SQL --------------------------------------------------------------------------------------------------------


def run_query(workspace: Workspace, query: str, seconds: float = QUERY_SECONDS) -> Any:
    """Answer one read-only statement as an Arrow table.

    Raises:
        RefusedQuery: it is not exactly one SELECT or EXPLAIN, or reaches outside the workspace.
        FailedQuery: DuckDB could not answer, or not in time.
    """
    require_one_select(query)
    return query_locked(locked_connection(workspace), query, seconds)


def query_rows(workspace: Workspace, query: str, seconds: float = QUERY_SECONDS) -> tuple[list[str], list[Any]]:
    """Like `run_query`, as column names and tuples: a terminal needs no Arrow, whose import alone takes a while."""
    require_one_select(query)
    connection = locked_connection(workspace)
    with _limits(connection, seconds):
        answer = connection.execute(query)
        names = [column[0] for column in answer.description or ()]
        # Two columns of one name must not hide each other.
        unique = [name if names.index(name) == n else f"{name}_{n + 1}" for n, name in enumerate(names)]
        return unique, answer.fetchall()


# Statements that do something; DuckDB lets some stand inside a SELECT (WITH x AS (COPY …)) or an EXPLAIN ANALYZE.
_DOING = frozenset(
    "alter analyse attach call checkpoint copy create deallocate delete detach drop execute export import insert "
    "install load merge pragma prepare reset set truncate update use vacuum".split()
)


def require_one_select(query: str) -> None:
    """
    Raises:
        RefusedQuery, FailedQuery
    """
    try:
        query.encode()
        statements = duckdb.extract_statements(query)
        tokens = duckdb.tokenize(query)
    except (duckdb.Error, UnicodeError) as error:
        raise FailedQuery(f"this is not SQL: {error}") from error
    allowed = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
    if len(statements) != 1 or statements[0].type not in allowed:
        kinds = ", ".join(statement.type.name for statement in statements) or "nothing"
        raise RefusedQuery(f"sql takes exactly one SELECT (or EXPLAIN of one), not {kinds}; nothing was run")
    # Offsets count bytes.
    raw, ends = query.encode(), [start for start, _ in tokens[1:]] + [len(query.encode())]
    for (start, kind), end in zip(tokens, ends, strict=True):
        letters = re.match(rb"\s*([A-Za-z]+)", raw[start:end])
        word = letters[1].decode().lower() if letters else ""
        if kind == duckdb.token_type.keyword and word in _DOING:
            raise RefusedQuery(
                f"sql only reads, and {word.upper()} is the name of a statement that does something; nothing was run "
                f'(a column of that name is written "{word}")'
            )


def locked_connection(workspace: Workspace, names: Sequence[str] | None = None) -> duckdb.DuckDBPyConnection:
    """A connection that reads inside the workspace only, and cannot be talked out of it."""
    connection = connect(workspace, names)
    connection.execute(f"SET allowed_directories = [{_text(str(workspace.folder))}]")
    connection.execute("SET temp_directory = ''")
    connection.execute("SET enable_external_access = false")
    connection.execute(f"SET memory_limit = {_text(QUERY_MEMORY)}")
    connection.execute("SET lock_configuration = true")
    return connection


def query_locked(connection: duckdb.DuckDBPyConnection, query: str, seconds: float) -> Any:
    with _limits(connection, seconds):
        return connection.sql(query).to_arrow_table()


@contextmanager
def _limits(connection: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[None]:
    """Interrupt what takes too long; DuckDB's errors become ours."""
    timer = threading.Timer(seconds, connection.interrupt)
    timer.start()
    try:
        yield
    except duckdb.PermissionException as error:
        raise RefusedQuery(f"that reaches outside the workspace: {error}") from error
    except duckdb.InterruptException as error:
        raise FailedQuery(f"no answer within {seconds:g} s; narrow the query") from error
    except duckdb.Error as error:
        raise FailedQuery(str(error)) from error
    finally:
        timer.cancel()


def view_columns(workspace: Workspace) -> list[str]:
    """Each view with its columns, then the macros, as lines to read."""
    rows = connect(workspace).execute(
        "SELECT table_name, string_agg(column_name || ' ' || data_type, ', ' ORDER BY column_index) "
        "FROM duckdb_columns() WHERE schema_name = 'main' AND database_name = 'memory' GROUP BY 1 ORDER BY 1"
    )
    lines = [f"{view}({columns})" for view, columns in rows.fetchall()]
    return [*lines, "macros: batch(run, step), steps_of_instance(run, instance); for example: from batch('demo', 137)"]


# --- the verbs' questions --------------------------------------------------------------------------------------------


def _kept(run: Run) -> str:
    """An SQL condition on step and attempt: the attempt of each step whose checkpoint was kept."""
    if all(segment.attempt == 1 for segment in run.segments):
        return "attempt = 1"
    kept = (f"(step BETWEEN {first} AND {last} AND attempt = {attempt})" for first, last, attempt in run.kept_steps())
    return f"({' OR '.join(kept)})"


def plan_of(workspace: Workspace, run: Run, first: int, last: int) -> IndexedPlan:
    """What steps first+1 .. last read: instances in batch order, masks, denominators."""
    connection = connect(workspace, [run.name])
    rows = connection.execute(
        f"SELECT step, epoch, instance FROM batches WHERE step > ? AND step <= ? AND {_kept(run)} "
        "ORDER BY step, position",
        [first, last],
    ).fetchnumpy()
    masks = connection.execute(
        f"SELECT step, position, start, stop FROM masks WHERE step > ? AND step <= ? AND {_kept(run)} ORDER BY ALL",
        [first, last],
    ).fetchall()
    hidden: dict[int, list[tuple[int, int, int]]] = {}
    for step, position, start, stop in masks:
        row = position - run.segment_of_step(step).positions_of_step(step).start
        hidden.setdefault(step, []).append((row, start, stop))
    steps, starts = np.unique(rows["step"], return_index=True)
    stops = [*starts[1:], len(rows["step"])]
    return IndexedPlan(
        by_step={
            int(step): StepPlan(
                step=int(step),
                epoch=int(rows["epoch"][start]),
                instances=np.asarray(rows["instance"][start:stop], dtype=np.int64),
                masks=tuple(hidden.get(int(step), ())),
                loss_denominator=run.segment_of_step(int(step)).loss_denominator,
                outcome=run.segment_of_step(int(step)).outcome,
            )
            for step, start, stop in zip(steps, starts, stops, strict=True)
        }
    )


def count_readings(workspace: Workspace, run: Run) -> int:
    """Rows of `batches`: instances read over all steps and attempts."""
    found = connect(workspace, [run.name]).execute("SELECT count(*) FROM batches").fetchone()
    return int(found[0]) if found else 0


def reader_of(workspace: Workspace, run: Run, *, verify: bool = True) -> TokenReader:
    """A reader of the run's token files, checking blocks against the hashes known for them."""
    if not verify:
        return TokenReader(run, None)
    rows = workspace.learned(workspace.home(run.name), "block_hashes")
    hashes: BlockHashes = {(row["file"], row["block"]): row["sha256"] for row in rows}
    return TokenReader(run, hashes)


def batch_rows(workspace: Workspace, run: Run, first: int, last: int, instance: int | None = None) -> Any:
    """Rows of `batch`: one for each row of steps first+1 .. last, as an Arrow table.

    `masked` counts the tokens that edits hide from the loss; what the trainer hides is known once the tokens are read.
    """
    return (
        connect(workspace, [run.name])
        .sql(
            f"""
            WITH b AS (SELECT * FROM batches WHERE step > $first AND step <= $last AND {_kept(run)}
                       AND ($instance IS NULL OR instance = $instance)),
            pieces AS (SELECT s.instance, list(s.document_id ORDER BY s.start) AS document_ids
                       FROM spans s WHERE s.instance IN (SELECT instance FROM b) GROUP BY s.instance),
            hidden AS (SELECT step, attempt, position, sum(stop - start)::BIGINT AS masked FROM masks GROUP BY ALL)
            SELECT b.step, b.attempt, b.position, b.instance, b.file, b."offset", b.num_tokens,
                   coalesce(p.document_ids, []) AS document_ids,
                   coalesce(h.masked, 0) AS masked, b.epoch
            FROM b LEFT JOIN pieces p USING (instance)
            LEFT JOIN hidden h ON h.step = b.step AND h.attempt = b.attempt AND h.position = b.position
            ORDER BY b.step, b.attempt, b.position
            """,
            params={"first": first, "last": last, "instance": instance},
        )
        .to_arrow_table()
    )


GROUPS = {
    "document": "CAST(s.document_id AS VARCHAR)",
    "source": "d.source",
    "tag": "t.tag",
    "file": "b.file",
}


def batch_groups(workspace: Workspace, run: Run, first: int, last: int, by: str) -> Any:
    """Rows of `batch --by`: what steps first+1 .. last read, counted, beside the whole run's average.

    Columns: the group; instances (readings of rows that hold a piece of it), tokens, share (of the stretch's tokens),
    run_share (of all tokens of the run's steps), repeats (those readings whose instance had been read before).
    """
    group = GROUPS[by]
    joins = "" if by == "file" else "JOIN spans s ON s.instance = b.instance JOIN documents d USING (document_id)"
    joins += " JOIN tags t ON t.document_id = d.document_id" if by == "tag" else ""
    tokens = "b.num_tokens" if by == "file" else "s.stop - s.start"
    return (
        connect(workspace, [run.name])
        .sql(
            f"""
            WITH readings AS (
                SELECT *, row_number() OVER (PARTITION BY instance ORDER BY step, position) > 1 AS again FROM batches
                WHERE {_kept(run)}),
            pieces AS (
                SELECT {group} AS "group", b.step, b.position, b.again, {tokens} AS tokens FROM readings b {joins}),
            whole AS (SELECT "group", sum(tokens) AS tokens FROM pieces GROUP BY ALL),
            stretch AS (SELECT sum(num_tokens) AS tokens FROM readings WHERE step > $first AND step <= $last)
            SELECT p."group" AS "{by}", count(DISTINCT (p.step, p.position)) AS instances,
                   sum(p.tokens)::BIGINT AS tokens,
                   sum(p.tokens) / (SELECT tokens FROM stretch) AS share,
                   any_value(w.tokens) / (SELECT sum(num_tokens) FROM readings) AS run_share,
                   count(DISTINCT (p.step, p.position)) FILTER (p.again) AS repeats
            FROM pieces p JOIN whole w ON w."group" = p."group"
            WHERE p.step > $first AND p.step <= $last GROUP BY p."group" ORDER BY tokens DESC, "{by}"
            """,
            params={"first": first, "last": last},
        )
        .to_arrow_table()
    )


def readings_of_instances(workspace: Workspace, run: Run, instances: Sequence[int]) -> Any:
    """Rows of `where`: every reading of the given instances, in step order.

    Raises:
        UnknownInstance
    """
    wrong = [i for i in instances if not 0 <= i < run.num_instances]
    if wrong:
        raise UnknownInstance(f"{run.name} has instances 0..{run.num_instances - 1}, not {wrong[0]}")
    return (
        connect(workspace, [run.name])
        .sql(
            'SELECT step, attempt, position, instance, file, "offset", epoch FROM instances '
            "WHERE step IS NOT NULL AND instance IN (SELECT unnest($instances::BIGINT[])) "
            "ORDER BY step, attempt, position",
            params={"instances": list(instances)},
        )
        .to_arrow_table()
    )


def instances_of_document(workspace: Workspace, run: Run, document_id: int) -> list[int]:
    """
    Raises:
        UnknownDocument
    """
    connection = connect(workspace, [run.name])
    if not connection.execute("SELECT 1 FROM documents WHERE document_id = ?", [document_id]).fetchone():
        (count,) = connection.execute("SELECT count(*) FROM documents").fetchone() or (0,)
        raise UnknownDocument(
            f"{run.name} has no document {document_id}; it has {count:,} documents"
            + (f" (see forensics sql \"from documents where run = '{run.name}'\")" if count else "")
        )
    found = connection.execute("SELECT instance FROM spans WHERE document_id = ? ORDER BY 1", [document_id]).fetchall()
    return [instance for (instance,) in found]


def documents_of_stretches(workspace: Workspace, run: Run, stretches: Any) -> list[tuple[int, int]]:
    """The documents in stretches of instances: (instance, document id), each once, in the order of their places.

    Args:
        stretches: an Arrow table of instance, start, stop (tokens of the row, half-open).
    """
    connection = connect(workspace, [run.name])
    connection.register("stretches", stretches)
    found = connection.execute(
        "SELECT s.instance, s.document_id FROM spans s JOIN stretches t "
        "ON s.instance = t.instance AND s.start < t.stop AND s.stop > t.start "
        "WHERE s.instance IN (SELECT instance FROM stretches) GROUP BY ALL ORDER BY s.instance, min(s.start)"
    )
    return found.fetchall()


def metrics_of_step(workspace: Workspace, run: Run, step: int) -> dict[str, float]:
    found = connect(workspace, [run.name]).execute(
        "SELECT name, value FROM metrics WHERE step = ? ORDER BY attempt", [step]
    )
    return {name: value for name, value in found.fetchall()}


def logged_metrics(workspace: Workspace, run: Run, first: int, last: int) -> dict[int, dict[str, float]]:
    """Metrics of steps first+1 .. last: step -> name -> value, of the attempt that was kept (the last)."""
    found = connect(workspace, [run.name]).execute(
        "SELECT step, name, value FROM metrics WHERE step > ? AND step <= ? ORDER BY step, attempt", [first, last]
    )
    metrics: dict[int, dict[str, float]] = {}
    for step, name, value in found.fetchall():
        metrics.setdefault(step, {})[name] = value
    return metrics
