"""What steps read, and who read what: questions to a run's index, in SQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_index.batch import IndexedPlan, StepPlan
from data_index.errors import UnknownInstance
from data_index.run import Run
from data_index.store import opened_for, readable, statement_text
from data_index.tokens import BlockHashes, TokenReader
from data_index.view_catalog import identifier, text_literal
from data_index.workspace import Workspace

ROWS_TOGETHER = 2**22

# Tokens of a file that are looked at together where documents are sought.
BLOCK_TOKENS = 2**20
# Above, what a run read in all is not counted to compare a step with: it would take minutes.
ROWS_FOR_AN_AVERAGE = 50_000_000


def kept_condition(run: Run) -> str:
    """An SQL condition on step and attempt: the attempt of each step whose checkpoint was kept."""
    if all(segment.attempt == 1 for segment in run.segments):
        return "attempt = 1"
    kept = (f"(step BETWEEN {first} AND {last} AND attempt = {attempt})" for first, last, attempt in run.kept_steps())
    return f"({' OR '.join(kept)})"


@readable
def plan_of(workspace: Workspace, run: Run, first: int, last: int) -> IndexedPlan:
    """What steps first+1 .. last read: instances in batch order, masks, denominators."""
    connection = opened_for(workspace, run, "batches edit_masks")
    rows = connection.execute(
        f"SELECT step, epoch, instance FROM batches WHERE step > ? AND step <= ? AND {kept_condition(run)} "
        "ORDER BY step, position",
        [first, last],
    ).fetchnumpy()
    masks = connection.execute(
        f"SELECT step, position, start, stop FROM edit_masks WHERE step > ? AND step <= ? AND {kept_condition(run)} "
        "ORDER BY ALL",
        [first, last],
    ).fetchall()
    hidden: dict[int, list[tuple[int, int, int]]] = {}
    for step, position, start, stop in masks:
        row = position - run.segment_of_step(step).positions_of_step(step).start
        hidden.setdefault(step, []).append((row, start, stop))
    steps, starts = np.unique(rows["step"], return_index=True)
    stops = [*starts[1:], len(rows["step"])][: len(starts)]
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


@readable
def instances_at(workspace: Workspace, run: Run, steps: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The instances that kept attempts read at some steps and positions of the order, int64, in the order given."""
    import pyarrow

    connection = opened_for(workspace, run, "batches")
    connection.register(
        "wanted", pyarrow.table({"number": np.arange(len(steps)), "step": steps, "position": positions})
    )
    found = connection.execute(
        f"SELECT number, instance FROM (FROM batches WHERE {kept_condition(run)}) JOIN wanted USING (step, position) "
        "ORDER BY number"
    ).fetchnumpy()
    assert np.array_equal(found["number"], np.arange(len(steps)))  # each place of a kept step was read once
    return np.asarray(found["instance"], dtype=np.int64)


@readable
def count_readings(workspace: Workspace, run: Run) -> int:
    """Rows of `batches`: instances read over all steps and attempts."""
    found = opened_for(workspace, run, "batches").execute("SELECT count(*) FROM batches").fetchone()
    return int(found[0]) if found else 0


def reader_of(workspace: Workspace, run: Run, *, verify: bool = True) -> TokenReader:
    """A reader of the run's token files, checking blocks against the hashes known for them."""
    if not verify:
        return TokenReader(run, None)
    rows = workspace.learned(workspace.home(run.name), "block_hashes")
    hashes: BlockHashes = {(row["file"], row["block"]): row["sha256"] for row in rows}
    return TokenReader(run, hashes)


@readable
def batch_rows(workspace: Workspace, run: Run, first: int, last: int, instance: int | None = None) -> Any:
    """Rows of `batch`: one for each row of steps first+1 .. last, as an Arrow table.

    `masked` counts the tokens that edits hide from the loss; what the trainer hides is known once the tokens are read.
    """
    query = (
        statement_text("batch_rows").replace("{kept}", kept_condition(run)).replace("{block_tokens}", str(BLOCK_TOKENS))
    )
    connection = opened_for(workspace, run, query)
    return connection.sql(query, params={"first": first, "last": last, "instance": instance}).to_arrow_table()


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


@readable
def batch_groups(workspace: Workspace, run: Run, first: int, last: int, by: str) -> Any:
    """Rows of `batch --by`: what steps first+1 .. last read, counted, beside the whole run's average.

    Columns: the group; instances (readings of rows that hold a piece of it), tokens, share (of the stretch's tokens),
    run_share (of all tokens of the run's steps; null for a run of more than `ROWS_FOR_AN_AVERAGE` rows), repeats (those
    readings whose instance had been read before).
    """
    question = statement_text("batch_groups").format(
        by=by,
        group=GROUPS[by],
        joins=_GROUP_JOINS[by],
        kept=kept_condition(run),
        tokens="b.num_tokens" if by == "file" else "s.stop - s.start",
        readings="{readings}",
        run_share="{run_share}",
    )
    connection = opened_for(workspace, run, f"batches {question}")
    chosen: dict[str, Any] = {"first": first, "last": last}
    if sum(segment.num_steps * segment.instances_per_batch for segment in run.segments) <= ROWS_FOR_AN_AVERAGE:
        readings, run_share = "batches", "any_value(w.tokens) / (SELECT sum(num_tokens) FROM readings)"
    else:
        _see_macros_of(connection, run)
        query = "SELECT DISTINCT instance FROM batches WHERE step > $first AND step <= $last"
        chosen["instances"] = connection.execute(query, chosen).fetchnumpy()["instance"].tolist()
        readings = f"(SELECT *, {run.sequence_length} AS num_tokens FROM steps_of_instances($instances::BIGINT[]))"
        run_share = "NULL::DOUBLE"
    return connection.sql(question.format(readings=readings, run_share=run_share), params=chosen).to_arrow_table()


def _see_macros_of(connection: Any, run: Run) -> None:
    """Let a cursor find the macros and tables of a run's index beside the joined views."""
    connection.execute(f"SET search_path = {text_literal(f'memory.main,{identifier(run.name)}.main')}")


def mixture_rows(workspace: Workspace, run: Run, first: int, last: int, by: str, every: int) -> Any:
    """Rows of `batch --by --every`: what each `every` steps of first+1 .. last read, the last maybe fewer.

    Columns: first_step, last_step, the group, tokens, share (of the tokens of these steps).
    """
    tokens = "b.num_tokens" if by == "file" else "s.stop - s.start"
    return (
        opened_for(workspace, run, f"batches {GROUPS[by]} {_GROUP_JOINS[by]}")
        .sql(
            f"""
            WITH readings AS (
                SELECT *, (step - $first - 1) // $every AS stretch FROM batches
                WHERE step > $first AND step <= $last AND {kept_condition(run)}),
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


@readable
def readings_of_instances(workspace: Workspace, run: Run, instances: Sequence[int]) -> Any:
    """Rows of `where`: every reading of the given instances, in step order.

    Raises:
        UnknownInstance
    """
    num_instances = run.num_instances  # a sum over all files
    wrong = [i for i in instances if not 0 <= i < num_instances]
    if wrong:
        raise UnknownInstance(f"{run.name} has instances 0..{num_instances - 1}, not {wrong[0]}")
    connection = opened_for(workspace, run, "instances")
    _see_macros_of(connection, run)
    return connection.sql(
        'SELECT step, attempt, position, instance, file, "offset", epoch FROM steps_of_instances($instances::BIGINT[])',
        params={"instances": list(instances)},
    ).to_arrow_table()


def positions_by_instance(workspace: Workspace, run: Run, epoch: int) -> Iterator[tuple[int, np.ndarray]]:
    """The first position of every instance in an epoch's order, in stretches: (first instance, positions).

    An instance that the order leaves out has the largest number of the array's type.
    """
    query = f"SELECT position FROM {identifier(run.name)}.inverse_{epoch}"
    first = 0
    for batch in opened_for(workspace, run, "files").sql(query).to_arrow_reader(ROWS_TOGETHER):
        positions = batch.column(0)
        if positions.null_count:
            positions = positions.fill_null(2**positions.type.bit_width - 1)
        yield first, positions.to_numpy()
        first += batch.num_rows


@readable
def further_positions(workspace: Workspace, run: Run, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Instances that stand at several positions of an epoch's order, and the others of those positions; int64."""
    query = f"SELECT instance, position FROM {identifier(run.name)}.inverse_more_{epoch} ORDER BY ALL"
    found = opened_for(workspace, run, "files").execute(query).fetchnumpy()
    return found["instance"], found["position"]
