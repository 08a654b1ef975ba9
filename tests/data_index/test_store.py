"""User SQL reads the workspace and nothing else; the views say what the design says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data_index import store
from data_index.batch import read_batch
from data_index.batch_queries import plan_of, reader_of
from data_index.document_queries import instances_of_document
from data_index.errors import CorruptFile, FailedQuery, RefusedQuery, UnknownDocument
from data_index.registration import add
from data_index.run_file import read_run, write_run
from data_index.store import connect, query_rows, run_query, schema_text, view_columns
from data_index.view_catalog import DESCRIPTIONS, names_for, runs_for
from data_index.workspace import Workspace
from forensics.lookup import batch

VIEWS = {
    "token_losses": "run step attempt instance position checkpoint token token_id loss",
    "findings": "finding verb runs command made_at",
    "runs": "run layout source first_step last_step sequence_length num_instances trust parent parent_step",
    "forks": "run layout source first_step last_step sequence_length num_instances trust parent parent_step",
    "segments": "run first_step num_steps attempt epoch first_position instances_per_batch loss_denominator outcome",
    "checkpoints": "run step tokens location layout states issues revision commit available checked_at",
    "files": "run file path dtype num_bytes first_instance num_instances first_token",
    "pieces": "run instance first_token file start stop",
    "batches": "run step attempt epoch position instance file offset num_tokens",
    "instances": "run instance epoch step attempt position file offset",
    "documents": "run document_id file start end source source_start source_end tags external_id line",
    "tags": "run document_id tag",
    "learned_tags": "run document_id tag origin",
    "spans": "run instance document_id start stop",
    "masks": "run step attempt position instance start stop reason",
    "edit_masks": "run step attempt position instance start stop reason",
    "hidden": "run step attempt position instance start stop reason",
    "skips": "run first_step last_step attempt kind epoch first_position num_instances",
    "exposures": "run step token_id as_input as_target masked_target filtered_input filtered_target not_applied "
    "first_step last_step",
    "metrics": "run step attempt name value original_name source",
    "spikes": "run onset peak last recovery kind lead_steps attempt series level peak_value peak_z area lasting_offset "
    "detail definition parameters",
    "tokens": "run step token_id text category indicator_name indicator rank candidate below_gap below_2_percent "
    "in_unused_set never_updated evidence max_probability verified",
    "token_paths": "run step token_id indicator_name indicator distance_to_unused untrained",
    "token_origins": "run token_id document_ids tags tag_counts",
    "consumed": "run step attempt instances input_ids_sha256",
    "document_hashes": "run document_id num_tokens sha256 documents",
    "instance_hashes": "run instance num_tokens sha256",
    "minhashes": "run sha256 method signature",
    "evaluations": "run step task metric value stderr num_fewshot source unit",
    "probes": "run step tokens probe metric value low high unit text settings source",
    "measured_probes": "run step tokens probe metric value low high unit text settings",
}

# Statements that would write, reach outside, or change the connection. {new} is a path inside the workspace that does
# not exist, {outside} a file beside it that does.
REFUSED = [
    "COPY (SELECT 1) TO '{new}'",
    "COPY runs TO '{new}' (FORMAT parquet)",
    "COPY runs FROM '{outside}'",
    "EXPORT DATABASE '{new}'",
    "IMPORT DATABASE '{new}'",
    "ATTACH '{new}'",
    "ATTACH '{new}' AS other",
    "DETACH tiny",
    "USE tiny",
    "SET threads = 1",
    "SET enable_external_access = true",
    "RESET memory_limit",
    "PRAGMA version",
    "PRAGMA table_info('runs')",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{outside}'",
    "CREATE TABLE other AS SELECT 1",
    "CREATE OR REPLACE VIEW batches AS SELECT 1",
    "INSERT INTO runs SELECT * FROM runs",
    "DELETE FROM runs",
    "UPDATE runs SET run = 'other'",
    "DROP VIEW batches",
    "CALL pragma_version()",
    "PREPARE p AS SELECT 1",
    "BEGIN",
    "VACUUM",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY (SELECT 1) TO '{new}'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{new}'",
    "explain\nanalyze COPY (SELECT 1) TO '{new}'",
    "SELECT * FROM read_csv('{outside}')",
    "SELECT * FROM '{outside}'",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_text('{workspace}/../outside.csv')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM read_parquet('/tmp/*.parquet')",
    "SELECT * FROM read_json('{outside}')",
    "SELECT * FROM sniff_csv('{outside}')",
    "WITH secret AS (FROM read_text('{outside}')) SELECT * FROM secret",
    "EXPLAIN ANALYZE SELECT * FROM read_text('{outside}')",
    "",
    ";",
    "-- nothing",
]


def tree(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.mark.parametrize("ask", [run_query, query_rows])
@pytest.mark.parametrize("query", REFUSED)
def test_sql_that_is_no_reading_is_refused(
    query: str, ask: Any, tiny_shared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tiny_shared.folder.parent / "outside.csv"
    outside.write_text("secret\n1\n")
    monkeypatch.chdir(tmp_path)
    before = tree(tiny_shared.folder)

    with pytest.raises(RefusedQuery):
        ask(
            tiny_shared,
            query.format(new=tiny_shared.folder / "new", outside=outside, workspace=tiny_shared.folder),
        )
    assert tree(tiny_shared.folder) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("SELECT count(*) AS n FROM batches", [{"n": 160}]),
        ("FROM runs SELECT run", [{"run": "tiny"}]),
        ("WITH b AS (FROM batch('tiny', 7)) SELECT count(*) AS n FROM b", [{"n": 8}]),
        ("SELECT min(step) AS first FROM steps_of_instance('tiny', 50);", [{"first": 3}]),
        ("VALUES (1)", [{"col0": 1}]),
        ("SELECT 'COPY; ATTACH' AS text -- SET", [{"text": "COPY; ATTACH"}]),
    ],
)
def test_reading_is_answered(query: str, rows: list[dict[str, Any]], tiny_shared: Workspace) -> None:
    assert run_query(tiny_shared, query).to_pylist() == rows
    names, tuples = query_rows(tiny_shared, query)
    assert [dict(zip(names, values, strict=True)) for values in tuples] == rows


@pytest.mark.parametrize("query", ["EXPLAIN SELECT 1", "EXPLAIN ANALYZE SELECT 1", "DESCRIBE batches", "SHOW TABLES"])
def test_a_query_can_be_explained_and_a_view_described(query: str, tiny_shared: Workspace) -> None:
    assert run_query(tiny_shared, query).num_rows > 0


def test_two_columns_of_one_name_do_not_hide_each_other(tiny_shared: Workspace) -> None:
    assert query_rows(tiny_shared, "SELECT 1 AS a, 2 AS a, 3 AS b") == (["a", "a_2", "b"], [(1, 2, 3)])


@pytest.mark.parametrize("query", ["SELEC 1", "SELECT nothing FROM runs", "FROM nowhere", "SELECT ?", "SELECT 'a"])
def test_sql_with_a_mistake_is_a_failed_query(query: str, tiny_shared: Workspace) -> None:
    with pytest.raises(FailedQuery, match="Error"):
        run_query(tiny_shared, query)


@pytest.mark.parametrize("ask", [run_query, query_rows])
def test_a_query_that_runs_too_long_is_interrupted(ask: Any, workspace: Workspace) -> None:
    endless = "SELECT sum(a.range * b.range % 7) FROM range(10_000_000) a, range(10_000_000) b"

    with pytest.raises(FailedQuery, match="no answer within 0.2 s; narrow the query"):
        ask(workspace, endless, 0.2)


def test_a_query_that_needs_too_much_memory_fails(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "QUERY_MEMORY", "10MB")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(FailedQuery, match="Out of Memory"):
        run_query(workspace, "SELECT list(range) FROM range(5_000_000)")


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_of_the_design_is_there_even_in_an_empty_workspace(
    view: str, workspace: Workspace, tiny_shared: Workspace
) -> None:
    assert run_query(workspace, f"FROM {view}").column_names == VIEWS[view].split()
    assert run_query(workspace, f"FROM {view}").num_rows == 0
    assert run_query(tiny_shared, f"FROM {view}").column_names == VIEWS[view].split()


def test_views_keep_their_types_without_rows(workspace: Workspace, tiny_shared: Workspace) -> None:
    """An empty view is not a different view: a query that works on a full one works on it."""
    same = [line for line in view_columns(workspace) if line in view_columns(tiny_shared)]

    assert {line.split("(")[0] for line in same} >= set(VIEWS)


def test_runs_of_a_workspace_stand_side_by_side(tiny: Workspace, tiny_source: Path) -> None:
    """Also under a name that SQL would read as an expression."""
    add(tiny_source, name="1-tiny.b", workspace=tiny)

    counts = connect(tiny).execute("SELECT run, count(*) FROM batches GROUP BY run ORDER BY run").fetchall()
    assert counts == [("1-tiny.b", 160), ("tiny", 160)]
    assert connect(tiny, ["tiny"]).execute("SELECT DISTINCT run FROM metrics").fetchall() == [("tiny",)]


def test_an_index_that_is_none_is_corrupt(tiny: Workspace) -> None:
    (tiny.home("tiny") / "index.duckdb").write_bytes(b"no index" * 1000)

    with pytest.raises(
        CorruptFile, match="index.duckdb has 8,000 bytes; when tiny was added it had .*; restore the file"
    ):
        connect(tiny)


def test_masks_and_denominators_reach_the_plan(tiny_copy: Path, workspace: Workspace) -> None:
    """Rows of masks.parquet are positions of the epoch; a plan counts rows of its batch."""
    run = read_run(tiny_copy)
    columns = {"step": [4, 4, 16], "attempt": [1, 1, 1], "position": [26, 24, 15], "instance": [0, 0, 0]}
    columns |= {"start": [5, 0, 60], "stop": [9, 64, 64], "reason": ["skip"] * 3}
    pyarrow.parquet.write_table(pyarrow.table(columns), tiny_copy / "masks.parquet")
    write_run(replace(run, segments=(replace(run.segments[0], loss_denominator=512), run.segments[1])), tiny_copy)
    run = add(tiny_copy, workspace=workspace)
    plan = plan_of(workspace, run, 2, 17)

    assert plan.steps == range(3, 18)
    assert {step: plan[step].masks for step in plan.steps if plan[step].masks} == {
        4: ((0, 0, 64), (2, 5, 9)),
        16: ((7, 60, 64),),
    }
    assert [plan[step].loss_denominator for step in (3, 14, 15, 17)] == [512, 512, None, None]
    assert [plan[step].epoch for step in (14, 15)] == [1, 2]
    counts = read_batch(plan[4], reader_of(workspace, run)).counts_as_target
    assert np.argwhere(~counts).tolist() == [[0, t] for t in range(64)] + [[2, t] for t in range(5, 9)]
    assert batch("tiny", 4, workspace=workspace).column("masked").to_pylist() == [64, 0, 4, 0, 0, 0, 0, 0]


def test_an_unknown_document_says_how_many_there_are(tiny_shared: Workspace, raw: Any) -> None:
    with pytest.raises(UnknownDocument, match=f"tiny has no document 9999; it has {len(raw.documents)} documents"):
        instances_of_document(tiny_shared, tiny_shared.run("tiny"), 9999)


# --- what a question needs -------------------------------------------------------------------------------------------


def test_every_view_and_macro_is_described_with_a_question_that_has_an_answer(tiny_shared: Workspace) -> None:
    macros = (
        "SELECT DISTINCT function_name FROM duckdb_functions() "
        "WHERE function_type = 'table_macro' AND NOT internal AND database_name = 'memory'"
    )
    there = {line.partition("(")[0] for line in view_columns(tiny_shared)}
    there |= {name for (name,) in connect(tiny_shared).execute(macros).fetchall()}

    assert {name.removesuffix("()") for name in DESCRIPTIONS} == there
    text = "\n".join(schema_text(tiny_shared))
    for name, (description, example) in DESCRIPTIONS.items():
        assert description in text and f'forensics sql "{example}"' in text
        assert name.removesuffix("()") in example
        run_query(tiny_shared, example.replace("'demo'", "'tiny'"))


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_question_gets_all_that_the_views_it_names_stand_on(name: str, tiny_shared: Workspace) -> None:
    """And it is answered as on a connection that has every view."""
    question = DESCRIPTIONS[name][1].replace("'demo'", "'tiny'")
    few, all_ = names_for(question), names_for(None)

    assert name in few and len(few) < len(all_) / 2
    assert sorted(map(str, run_query(tiny_shared, question).to_pylist())) == sorted(
        map(str, connect(tiny_shared).sql(question).to_arrow_table().to_pylist())
    )


@pytest.mark.parametrize(
    "question",
    ["FROM duckdb_views()", "SHOW TABLES", "FROM information_schema.tables", "SELECT * FROM pg_catalog.pg_views"],
)
def test_who_asks_what_there_is_is_shown_all_of_it(question: str) -> None:
    assert names_for(question) == names_for(None)


@pytest.mark.parametrize(
    ("question", "runs"),
    [
        ("FROM batch('a', 7)", ["a"]),
        ("select * from Batch ( 'b''s', 7) join steps_of_instance('a', 3) using (step)", ["a", "b's"]),
        ("FROM exposures('c', 7)", []),
        ("FROM batch('a', 7) JOIN runs USING (run)", ["a", "b's"]),
        ("SELECT 1", ["a", "b's"]),
        ("FROM batches WHERE run = 'a'", ["a", "b's"]),
        ("FROM batch('a', 7), duckdb_databases()", ["a", "b's"]),
        ("FROM batch(getenv('X'), 7)", ["a", "b's"]),
    ],
)
def test_a_question_about_one_run_opens_no_other(question: str, runs: list[str]) -> None:
    assert runs_for(question, ["a", "b's"]) == runs


def test_names_in_capitals_and_quotes_are_names(tiny_shared: Workspace) -> None:
    assert run_query(tiny_shared, 'SELECT count(*) AS n FROM "BATCHES"').to_pylist() == [{"n": 160}]
    assert run_query(tiny_shared, "SELECT 'batches' AS n").to_pylist() == [{"n": "batches"}]
