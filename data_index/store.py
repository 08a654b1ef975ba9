"""The only place where SQL is executed: views over a workspace, and the questions that the verbs ask.

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
import numpy as np

from data_index.batch import IndexedPlan, StepPlan
from data_index.errors import CorruptFile, FailedQuery, RefusedQuery, UnknownDocument, UnknownInstance
from data_index.kinds import KINDS
from data_index.run import Run
from data_index.seal import check_sealed_size
from data_index.skips import stretches_passed_over
from data_index.tokens import BlockHashes, TokenReader
from data_index.view_catalog import (
    DESCRIPTIONS,
    TABLES,
    identifier,
    names_for,
    needs_indexes,
    statement_of,
    text_literal,
)
from data_index.workspace import Workspace

Answer = TypeVar("Answer")
QUERY_SECONDS = 60.0
QUERY_MEMORY = "2GB"
ROWS_TOGETHER = 2**22
MAX_OPEN_CONNECTIONS = 2
# Tokens of a file that are looked at together where documents are sought.
BLOCK_TOKENS = 2**20


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


def _connect(workspace: Workspace, names: Sequence[str] | None, question: str) -> duckdb.DuckDBPyConnection:
    """A connection with the views that a question names; made once for the files that are now in force."""
    return _cached(_statements(workspace, names, question), locked_to=None)


def _statements(workspace: Workspace, names: Sequence[str] | None, question: str | None) -> list[_Statement]:
    """What makes a connection with the views that a question names, or with all: indexes attached, tables, views."""
    names = workspace.run_names() + workspace.fork_ids() if names is None else list(names)
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


def _opened(statements: Sequence[_Statement], locked_to: Path | None) -> duckdb.DuckDBPyConnection:
    """
    Args:
        locked_to: the only folder that can be read from then on.
    Raises:
        CorruptFile: an index cannot be opened.
    """
    connection = duckdb.connect(":memory:")
    connection.execute("SET enable_progress_bar = false")
    # A file of another kind must not make DuckDB fetch an extension for it.
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET autoload_known_extensions = false")
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
    """A cursor of a connection that the same statements made: files in force have names of their own.

    What a question makes on its cursor (temporary tables, names that it registers) is gone with it.
    """
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


# --- the verbs' questions --------------------------------------------------------------------------------------------


def _readable(question: Callable[..., Answer]) -> Callable[..., Answer]:
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


def _kept(run: Run) -> str:
    """An SQL condition on step and attempt: the attempt of each step whose checkpoint was kept."""
    if all(segment.attempt == 1 for segment in run.segments):
        return "attempt = 1"
    kept = (f"(step BETWEEN {first} AND {last} AND attempt = {attempt})" for first, last, attempt in run.kept_steps())
    return f"({' OR '.join(kept)})"


@_readable
def plan_of(workspace: Workspace, run: Run, first: int, last: int) -> IndexedPlan:
    """What steps first+1 .. last read: instances in batch order, masks, denominators."""
    connection = connect(workspace, [run.name])
    rows = connection.execute(
        f"SELECT step, epoch, instance FROM batches WHERE step > ? AND step <= ? AND {_kept(run)} "
        "ORDER BY step, position",
        [first, last],
    ).fetchnumpy()
    masks = connection.execute(
        f"SELECT step, position, start, stop FROM edit_masks WHERE step > ? AND step <= ? AND {_kept(run)} "
        "ORDER BY ALL",
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


@_readable
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


@_readable
def batch_rows(workspace: Workspace, run: Run, first: int, last: int, instance: int | None = None) -> Any:
    """Rows of `batch`: one for each row of steps first+1 .. last, as an Arrow table.

    `masked` counts the tokens that edits hide from the loss; what the trainer hides is known once the tokens are read.
    """
    query = _statement("batch_rows").replace("{kept}", _kept(run)).replace("{block_tokens}", str(BLOCK_TOKENS))
    connection = _connect(workspace, [run.name], query)
    return connection.sql(query, params={"first": first, "last": last, "instance": instance}).to_arrow_table()


def _statement(name: str) -> str:
    return (resources.files("data_index") / "sql" / f"{name}.sql").read_text()


GROUPS = {
    "document": "CAST(s.document_id AS VARCHAR)",
    "source": "d.source",
    "tag": "t.tag",
    "file": "b.file",
}
# A document that lies in several files has a row for each in `documents`, but one source.
_GROUP_JOINS = {
    "document": "JOIN spans s ON s.instance = b.instance",
    "source": "JOIN spans s ON s.instance = b.instance "
    "JOIN (SELECT DISTINCT document_id, source FROM documents) d ON d.document_id = s.document_id",
    "tag": "JOIN spans s ON s.instance = b.instance JOIN tags t ON t.document_id = s.document_id",
    "file": "",
}


@_readable
def batch_groups(workspace: Workspace, run: Run, first: int, last: int, by: str) -> Any:
    """Rows of `batch --by`: what steps first+1 .. last read, counted, beside the whole run's average.

    Columns: the group; instances (readings of rows that hold a piece of it), tokens, share (of the stretch's tokens),
    run_share (of all tokens of the run's steps), repeats (those readings whose instance had been read before).
    """
    group = GROUPS[by]
    joins = _GROUP_JOINS[by]
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


def mixture_rows(workspace: Workspace, run: Run, first: int, last: int, by: str, every: int) -> Any:
    """Rows of `batch --by --every`: what each `every` steps of first+1 .. last read, the last maybe fewer.

    Columns: first_step, last_step, the group, tokens, share (of the tokens of these steps).
    """
    tokens = "b.num_tokens" if by == "file" else "s.stop - s.start"
    return (
        connect(workspace, [run.name])
        .sql(
            f"""
            WITH readings AS (
                SELECT *, (step - $first - 1) // $every AS stretch FROM batches
                WHERE step > $first AND step <= $last AND {_kept(run)}),
            whole AS (SELECT stretch, sum(num_tokens) AS tokens FROM readings GROUP BY stretch),
            groups AS (
                SELECT b.stretch, {GROUPS[by]} AS "group", sum({tokens}) AS tokens
                FROM readings b {_GROUP_JOINS[by]} GROUP BY ALL)
            SELECT $first + g.stretch * $every + 1 AS first_step,
                   least($first + (g.stretch + 1) * $every, $last) AS last_step,
                   g."group" AS "{by}", g.tokens::BIGINT AS tokens, g.tokens / w.tokens AS share
            FROM groups g JOIN whole w USING (stretch) ORDER BY first_step, tokens DESC, "{by}"
            """,
            params={"first": first, "last": last, "every": every},
        )
        .to_arrow_table()
    )


def overlapping_namespaces(workspace: Workspace, run: Run) -> set[str]:
    """Namespaces of tags (what stands before the first colon; else nothing) of which some document has several."""
    query = """SELECT DISTINCT namespace FROM (
        SELECT CASE WHEN contains(tag, ':') THEN split_part(tag, ':', 1) ELSE '' END AS namespace FROM tags
        GROUP BY document_id, namespace HAVING count(*) > 1)"""
    return {namespace for (namespace,) in connect(workspace, [run.name]).execute(query).fetchall()}


@_readable
def readings_of_instances(workspace: Workspace, run: Run, instances: Sequence[int]) -> Any:
    """Rows of `where`: every reading of the given instances, in step order.

    Raises:
        UnknownInstance
    """
    wrong = [i for i in instances if not 0 <= i < run.num_instances]
    if wrong:
        raise UnknownInstance(f"{run.name} has instances 0..{run.num_instances - 1}, not {wrong[0]}")
    connection = connect(workspace, [run.name])
    connection.execute(f"USE {identifier(run.name)}")  # where the macro finds the run's tables
    return connection.sql(
        'SELECT step, attempt, position, instance, file, "offset", epoch FROM steps_of_instances($instances::BIGINT[])',
        params={"instances": list(instances)},
    ).to_arrow_table()


def positions_in_order_of_instances(
    workspace: Workspace, run: Run, epoch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All instances that an epoch's order holds, with their positions: stretches of both, instances rising."""
    connection = connect(workspace, [run.name])
    first = 0
    places = connection.sql(f"SELECT position FROM {identifier(run.name)}.inverse_{epoch}")
    for batch in places.to_arrow_reader(ROWS_TOGETHER):
        positions, instances = batch.column(0), np.arange(first, first + batch.num_rows)
        there = slice(None) if positions.null_count == 0 else positions.is_valid().to_numpy(zero_copy_only=False)
        yield instances[there], positions.drop_null().to_numpy()
        first += batch.num_rows
    more = connection.sql(f"SELECT instance, position FROM {identifier(run.name)}.inverse_more_{epoch} ORDER BY ALL")
    for batch in more.to_arrow_reader(ROWS_TOGETHER):
        yield batch.column(0).to_numpy(), batch.column(1).to_numpy()


@_readable
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


def documents_by_file(workspace: Workspace, run: Run) -> Any:
    """One row for each token file that holds documents: how many, with how many tokens, and what is known of them."""
    return (
        connect(workspace, [run.name])
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
    query = _statement("provenance_tags")
    for batch in connect(workspace, [run.name]).sql(query).to_arrow_reader():
        yield _as_table(batch)


def tags_given(workspace: Workspace, run: Run, given: Iterator[Any], key: str) -> Iterator[Any]:
    """Tables of `document_id, tag`, in their order, from tables of a key (a column of `documents`) and `tag`.

    Raises:
        UnknownDocument: the run has no such document, or, by `external_id`, none of them.
    """
    connection = connect(workspace, [run.name])
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
    found = connect(workspace, [run.name]).sql(query, params={"after": document_id}).to_arrow_reader(10_000)
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
    documents, tokens = connect(workspace, [run.name]).execute(query).fetchone() or (0, 0)
    return int(documents), int(tokens)


def counted_tags(workspace: Workspace, run: Run) -> Any:
    """Rows of `tag`: learned tags with their origin, and how many documents carry each; the most frequent first."""
    return (
        connect(workspace, [run.name])
        .sql(
            "SELECT origin, tag, count(*) AS documents FROM learned_tags GROUP BY ALL "
            "ORDER BY origin, documents DESC, tag"
        )
        .to_arrow_table()
    )


# What a trainer recorded itself comes last, and so counts where an imported log says something else; of one log, the
# last attempt does.
_PRIORITY = "(source IS NULL), attempt, source"


def metrics_of_step(workspace: Workspace, run: Run, step: int) -> dict[str, float]:
    found = connect(workspace, [run.name]).execute(
        f"SELECT name, value FROM metrics WHERE step = ? ORDER BY {_PRIORITY}", [step]
    )
    return {name: value for name, value in found.fetchall()}


def logged_metrics(
    workspace: Workspace, run: Run, first: int, last: int, names: Sequence[str] | None = None
) -> dict[int, dict[str, float]]:
    """Metrics of steps first+1 .. last: step -> name -> value, of the attempt that was kept (the last).

    Args:
        names: only these; default: all that were logged.
    """
    found = connect(workspace, [run.name]).execute(
        "SELECT step, name, value FROM metrics WHERE step > $first AND step <= $last "
        f"AND ($names IS NULL OR list_contains($names::VARCHAR[], name)) ORDER BY step, {_PRIORITY}",
        {"first": first, "last": last, "names": None if names is None else list(names)},
    )
    metrics: dict[int, dict[str, float]] = {}
    for step, name, value in found.fetchall():
        metrics.setdefault(step, {})[name] = value
    return metrics


# --- texts that were read more than once -----------------------------------------------------------------------------

# What can be compared: the column that names one, and what is told beside it.
TEXTS = {"documents": ("document_id", "source"), "instances": ("instance", "file")}


def text_readings(workspace: Workspace, run: Run, of: str, first: int, last: int) -> Any:
    """Every reading of a piece of a text by steps first+1 .. last, as an Arrow table.

    Columns: id (of the document or instance), step, attempt, position, instance, and first, stop: tokens of the text.
    """
    taken = f"step > {first} AND step <= {last} AND {_kept(run)}"
    statement = _statement(f"read_{of}").format(taken=taken, length=run.tokens_per_instance)
    return connect(workspace, [run.name]).sql(statement).to_arrow_table()


def _connect_texts(workspace: Workspace, run: Run, of: str, readings: Any) -> duckdb.DuckDBPyConnection:
    """A connection with texts, hashes and readings, of documents or of instances."""
    connection = connect(workspace, [run.name])
    connection.execute(_statement(f"texts_{of}").format(documents=text_literal(documents_in_force(workspace, run))))
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
    connection = connect(workspace, [run.name])
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
    connection.execute(_statement("repeats").format(min_tokens=min_tokens))
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


def logged_skips(workspace: Workspace, run: Run) -> frozenset[int]:
    """Steps whose last attempt the trainer logged as skipped: it computed the update and did not apply it."""
    found = connect(workspace, [run.name]).execute(
        "SELECT step FROM metrics WHERE name = 'skipped' "
        "QUALIFY row_number() OVER (PARTITION BY step ORDER BY attempt DESC) = 1 AND value > 0"
    )
    return frozenset(step for (step,) in found.fetchall())


# --- tables of one kind, compared ------------------------------------------------------------------------------------

# Two rows are of one point where these agree; a point is the same where all columns but the source do.
_KEYS = {"metrics": ("step", "attempt", "name"), "evaluations": ("step", "task", "metric", "num_fewshot")}


def rows_only_in(kind: str, one: Any, other: Any) -> int:
    """Rows of a table that another one does not have, wherever they come from.

    Args:
        one, other: Parquet files, or Arrow tables.
    """
    columns = ", ".join(f'"{column}"' for column in KINDS[kind] if column != "source")
    connection = _compared(one, other)
    found = connection.execute(
        f"SELECT count(*) FROM (SELECT {columns} FROM one EXCEPT SELECT {columns} FROM other)"
    ).fetchone()
    return int(found[0]) if found else 0


def rows_that_differ(kind: str, one: Any, other: Any) -> tuple[int, tuple[Any, ...]]:
    """How many rows are of a point of which another table says something else, and the first of them.

    Returns:
        The count, and (its keys, the value of the one, of the other).
    """
    keys = ", ".join(f'"{column}"' for column in _KEYS[kind])
    connection = _compared(one, other)
    found = connection.execute(
        f"SELECT count(*) OVER (), {keys}, one.value, other.value FROM one JOIN other USING ({keys}) "
        "WHERE one.value IS DISTINCT FROM other.value ORDER BY ALL LIMIT 1"
    ).fetchone()
    return (int(found[0]), tuple(found[1:])) if found else (0, ())


def _compared(one: Any, other: Any) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:")
    connection.execute("SET enable_progress_bar = false")
    for name, table in (("one", one), ("other", other)):
        if isinstance(table, Path):
            connection.execute(f"CREATE VIEW {name} AS FROM read_parquet([{text_literal(str(table))}])")
        else:
            connection.register(name, table)
    return connection
