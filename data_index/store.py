"""Connections that answer SQL: views over a workspace, opened here alone.

`connect` gives an in-memory DuckDB with every run attached read-only and one schema of views over them all. User SQL
runs through `run_query`, on a connection that can read the workspace and nothing else.
"""

from __future__ import annotations

import functools
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from data_index.errors import CorruptFile, FailedQuery, RefusedQuery
from data_index.finding_files import finding_rows
from data_index.run import Run
from data_index.seal import check_sealed_size
from data_index.skips import stretches_passed_over
from data_index.view_catalog import (
    DESCRIPTIONS,
    TABLES,
    identifier,
    names_for,
    needs_indexes,
    runs_for,
    statement_of,
    text_literal,
)
from data_index.workspace import Workspace

Answer = TypeVar("Answer")
QUERY_SECONDS = 60.0
QUERY_MEMORY = "2GB"
MAX_OPEN_CONNECTIONS = 8


def connect(workspace: Workspace | None = None, names: Sequence[str] | None = None) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection over a workspace, for notebooks and for the verbs.

    Args:
        names: only these runs and forks; default: all of them.
    Raises:
        UnknownRun, CorruptFile
    """
    return _opened(_statements(workspace or Workspace(), names, None), locked_to=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Statement:
    """One of those that make a connection.

    Attributes:
        failed: what is wrong with the files that it opens, where it fails.
        identity: what changes when an index that it attaches does.
    """

    sql: str
    parameters: tuple[Any, ...] = ()
    failed: str | None = None
    identity: tuple[int, ...] = ()


def opened_for(workspace: Workspace, run: Run, question: str) -> duckdb.DuckDBPyConnection:
    """A cursor of a connection over one run, with the views whose names stand in a question.

    The connection is made once for the files that are in force. What a question makes on its cursor (temporary tables,
    names that it registers) is gone with it.
    """
    return _cached(_statements(workspace, [run.name], question), locked_to=None)


def _statements(workspace: Workspace, names: Sequence[str] | None, question: str | None) -> list[_Statement]:
    """What makes a connection with the views that a question names, or with all: indexes attached, tables, views."""
    names = runs_for(question, workspace.run_names() + workspace.fork_ids()) if names is None else list(names)
    views = names_for(question)
    runs = {name: workspace.run(name) for name in names} if views else {}
    found: list[_Statement] = []
    if needs_indexes(views) or question is None:
        found += [_attach(name, workspace.home(name) / "index.duckdb") for name in names]
    for view in views:
        if view == "runs":
            found += _table(view, [_run_row(run) for run in runs.values()])
        elif view == "checkpoints":
            found += _table(view, [row for run in runs.values() for row in checkpoint_rows(workspace, run)])
        elif view == "findings":
            found += _table(view, finding_rows(workspace))
        elif view == "passed_over":
            found += _table(
                view, [(r.name, *astuple(part)) for r in runs.values() for part in stretches_passed_over(r)]
            )
        else:
            failed = f"the tables of {view} cannot be opened; register the run again"
            found.append(_Statement(sql=statement_of(view, workspace, runs), failed=failed))
    return found


def _attach(name: str, path: Path) -> _Statement:
    check_sealed_size(path.parent, path.name)
    found = path.stat()
    return _Statement(
        sql=f"ATTACH {text_literal(str(path))} AS {identifier(name)} (READ_ONLY, TYPE duckdb)",
        failed=f"{path} cannot be opened as an index; register {name} again",
        identity=(found.st_ino, found.st_size, found.st_mtime_ns),
    )


def _table(name: str, rows: list[tuple[Any, ...]]) -> list[_Statement]:
    columns = TABLES[name]
    create = _Statement(sql=f"CREATE TABLE {name} ({', '.join(f'{c} {kind}' for c, kind in columns.items())})")
    if not rows:
        return [create]
    # As one statement: each takes a millisecond.
    values = ", ".join([f"({', '.join('?' * len(columns))})"] * len(rows))
    fill = _Statement(sql=f"INSERT INTO {name} VALUES {values}", parameters=tuple(v for row in rows for v in row))
    return [create, fill]


def empty_connection() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:")
    connection.execute("SET enable_progress_bar = false")
    # A file of another kind must not make DuckDB fetch an extension for it.
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET autoload_known_extensions = false")
    return connection


def _opened(statements: Sequence[_Statement], locked_to: Path | None) -> duckdb.DuckDBPyConnection:
    """
    Args:
        locked_to: the only folder that can be read from then on.
    Raises:
        CorruptFile: an index cannot be opened.
    """
    connection = empty_connection()
    for statement in statements:
        try:
            connection.execute(statement.sql, statement.parameters or None)
        except duckdb.Error as error:
            if statement.failed is None:
                raise
            raise CorruptFile(f"{statement.failed} ({error})") from error
    if locked_to is not None:
        connection.execute(f"SET allowed_directories = [{text_literal(str(locked_to))}]")
        connection.execute("SET temp_directory = ''")
        connection.execute("SET enable_external_access = false")
        connection.execute(f"SET memory_limit = {text_literal(QUERY_MEMORY)}")
        connection.execute("SET lock_configuration = true")
    return connection


_open_connections: OrderedDict[str, duckdb.DuckDBPyConnection] = OrderedDict()
_opening = threading.Lock()


def _cached(statements: Sequence[_Statement], *, locked_to: Path | None) -> duckdb.DuckDBPyConnection:
    """A cursor of a connection that the same statements made: files in force have names of their own."""
    key = repr((statements, locked_to, QUERY_MEMORY))
    with _opening:
        if key not in _open_connections:
            _open_connections[key] = _opened(statements, locked_to)
            while len(_open_connections) > MAX_OPEN_CONNECTIONS:
                _open_connections.popitem(last=False)
        _open_connections.move_to_end(key)
        return _open_connections[key].cursor()


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


# --- user SQL --------------------------------------------------------------------------------------------------------


def run_query(workspace: Workspace, query: str, seconds: float = QUERY_SECONDS) -> Any:
    """Answer one read-only statement as an Arrow table.

    Raises:
        RefusedQuery: it is not exactly one SELECT or EXPLAIN, or reaches outside the workspace.
        FailedQuery: DuckDB could not answer, or not in time.
    """
    require_one_select(query)
    return query_locked(locked_connection(workspace, question=query), query, seconds)


def query_rows(workspace: Workspace, query: str, seconds: float = QUERY_SECONDS) -> tuple[list[str], list[Any]]:
    """Like `run_query`, as column names and tuples: a terminal needs no Arrow, whose import alone takes a while."""
    require_one_select(query)
    connection = locked_connection(workspace, question=query)
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


def locked_connection(
    workspace: Workspace, names: Sequence[str] | None = None, *, question: str | None = None
) -> duckdb.DuckDBPyConnection:
    """A connection that reads inside the workspace only, and cannot be talked out of it.

    Args:
        question: what will be asked, so that only what it needs is made.
    """
    return _cached(_statements(workspace, names, question), locked_to=workspace.folder)


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
    """Each view with its columns."""
    rows = connect(workspace).execute(
        "SELECT table_name, string_agg(column_name || ' ' || data_type, ', ' ORDER BY column_index) "
        "FROM duckdb_columns() WHERE schema_name = 'main' AND database_name = 'memory' GROUP BY 1 ORDER BY 1"
    )
    return [f"{view}({columns})" for view, columns in rows.fetchall()]


def schema_text(workspace: Workspace) -> list[str]:
    """Each view with its columns, then each macro, with what it holds and a question to try; lines to read."""
    views = {line.partition("(")[0]: line for line in view_columns(workspace)}
    found: list[str] = []
    for name, (description, example) in DESCRIPTIONS.items():
        found += [views[name], f"    {description}"] if name in views else [description]
        found += [f'    forensics sql "{example}"', ""]
    return found[:-1]


def readable(question: Callable[..., Answer]) -> Callable[..., Answer]:
    """What DuckDB says of a damaged index or table is said as an error of ours."""

    @functools.wraps(question)
    def asked(workspace: Workspace, run: Run, *args: Any, **options: Any) -> Answer:
        try:
            return question(workspace, run, *args, **options)
        except duckdb.Error as error:
            home = workspace.home(run.name)
            raise CorruptFile(
                f"the index of {run.name}, or a table learned of it, cannot be read ({error}): forensics audit "
                f"{run.name} --deep says which of {home}; add the run again"
            ) from error

    return asked


def statement_text(name: str) -> str:
    return (resources.files("data_index") / "sql" / f"{name}.sql").read_text()
