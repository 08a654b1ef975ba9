"""From an edit as written to an intervention: the index says which instances and spans a selector means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_index.batch import Denominator, IndexedPlan, Plan, StepPlan, batch_of, denominator_of_rows, read_batch
from data_index.batch_queries import reader_of
from data_index.errors import FailedQuery, ForensicsError, InvalidEdit
from data_index.run import Run
from data_index.store import locked_connection, query_locked, require_one_select
from data_index.tokens import TokenReader
from data_index.workspace import Workspace
from forensics.edit_hits import EditHits, rows_added, rows_reached
from forensics.given_rows import Inserted, json_lines, token_row
from replay.intervention import (
    Edit,
    Insert,
    Intervention,
    Row,
    RowEdit,
    RowWeight,
    Shuffle,
    SwapSteps,
    option_flag,
    option_number,
    rows_of,
)

Spans = dict[int, list[tuple[int, int]]]
MOST_TIMES = 10_000  # a step of so many rows would hardly fit
Reached = tuple[np.ndarray, np.ndarray, np.ndarray]

# What a where: condition can speak of: one row for each piece of a document in each row of each step.
WHERE_ROWS = """
    SELECT b.step, b.epoch, b.position, b.instance, b.file, b."offset", s.document_id, d.source,
           CASE WHEN s.document_id IS NOT NULL THEN coalesce(t.tags, []) END AS tags,
           coalesce(s.start, 0) AS start, coalesce(s.stop, b.num_tokens) AS stop
    FROM batches b LEFT JOIN spans s ON s.instance = b.instance
    LEFT JOIN (SELECT DISTINCT document_id, source FROM documents) d ON d.document_id = s.document_id
    LEFT JOIN (SELECT document_id, list(tag ORDER BY tag) AS tags FROM tags GROUP BY document_id) t
           ON t.document_id = s.document_id
"""


def row_weight(run: Run, rule: Denominator, reader: TokenReader, inserted: Inserted) -> RowWeight:
    """What a row adds to the loss denominator, as a function; it reads the row's tokens."""

    def weight(row: Row) -> int:
        masks = tuple((0, start, stop) for start, stop in row.masks)
        plan = StepPlan(step=0, epoch=1, instances=np.array([row.instance]), masks=masks)
        if row.instance >= inserted.first_instance:
            ids = inserted.rows[row.instance - inserted.first_instance][None]
            batch = batch_of(plan, ids, np.ones(ids.shape, dtype=bool), np.array([ids.shape[1]]), run.masking)
        else:
            batch = read_batch(plan, reader)
        return int(denominator_of_rows(batch, rule)[0])

    return weight


@dataclass(slots=True, kw_only=True)
class Resolver:
    """Resolves the edits of one fork, against its parent's index and plan.

    Attributes:
        plan: the parent's plan over the fork's steps.
        weight: what a row adds to the denominator of its step's loss.
        hits: what each edit reached, for the fork's record and its user.
    """

    workspace: Workspace
    run: Run
    plan: Plan
    inserted: Inserted
    weight: RowWeight
    hits: list[EditHits] = field(default_factory=list)

    def resolve(self, edit: Edit) -> Intervention:
        """
        Raises:
            InvalidEdit: it reaches outside the fork's steps, or hits nothing.
        """
        steps = self._steps(edit)
        if edit.operation == "shuffle":
            self._hit(
                f"shuffle all rows of steps {steps.start}..{steps.stop - 1}", rows_reached(self.plan, steps, None)
            )
            return Shuffle(weight=self.weight, steps=steps, seed=option_number(edit, "seed", 0))
        if edit.operation == "swap" and edit.selector is None:
            return self._swap_steps(edit, steps)
        if edit.operation == "insert":
            rows = self._given_rows(edit)
            said = f"insert {len(rows)} rows into each of steps {steps.start}..{steps.stop - 1}"
            self._hit(said, rows_added(self.plan, steps, rows))
            return Insert(weight=self.weight, steps=steps, rows=rows)
        return self._row_edit(edit, steps, self._selected(edit, steps))

    def _hit(self, said: str, reached: Reached, spans: Spans | None = None) -> None:
        steps, rows, instances = reached
        where = {"steps": steps, "rows": rows, "instances": instances}
        self.hits.append(EditHits(said=said, **where, spans=spans, sequence_length=self.run.sequence_length))

    def _steps(self, edit: Edit) -> range:
        whole = self.plan.steps
        if edit.steps is None:
            return whole
        steps = range(edit.steps[0] + 1, edit.steps[1] + 1)
        if steps.start < whole.start or steps.stop > whole.stop:
            raise InvalidEdit(
                f"{edit.operation} @{edit.steps[0]}:{edit.steps[1]} reaches outside the fork, which takes steps "
                f"{whole.start}..{whole.stop - 1}"
            )
        return steps

    def _swap_steps(self, edit: Edit, steps: range) -> SwapSteps:
        second = option_number(edit, "with", 0)
        if len(steps) != 1 or second not in self.plan.steps or second == steps.start:
            raise InvalidEdit(
                f"swap takes two different steps of the fork (steps {self.plan.steps.start}.."
                f"{self.plan.steps.stop - 1}), such as swap @{self.plan.steps.start} with={self.plan.steps.stop - 1}"
            )
        both = sorted((steps.start, second))
        self._hit(f"swap the batches of steps {steps.start} and {second}", rows_reached(self.plan, both, None))
        return SwapSteps(weight=self.weight, first=steps.start, second=second)

    def _row_edit(self, edit: Edit, steps: range, spans: Spans) -> RowEdit:
        instances = list(spans)
        rescale = option_flag(edit, "rescale", True)
        change: dict[int, tuple[Row, ...]] = {}
        hide: dict[int, tuple[tuple[int, int], ...]] = {}
        times: dict[int, int] = {}
        swap: tuple[int, int] | None = None
        if edit.operation == "drop":
            change = {instance: () for instance in instances}
        elif edit.operation == "mask":
            hide = {instance: tuple(pieces) for instance, pieces in spans.items()}
        elif edit.operation == "repeat":
            times = dict.fromkeys(instances, option_number(edit, "times", 2))
            if instances and times[instances[0]] > MOST_TIMES:
                raise InvalidEdit(f"repeat times={times[instances[0]]}: at most {MOST_TIMES:,} times in a step")
        elif edit.operation == "swap":
            if len(instances) != 2:
                raise InvalidEdit(
                    f"swap takes two instances, such as swap instance:12,40; this selects {len(instances)}"
                )
            swap = (instances[0], instances[1])
        else:
            given = self._given_rows(edit)
            if len(given) not in (1, len(instances)):
                raise InvalidEdit(
                    f"replace has {len(given)} rows for {len(instances)} instances: give one, or one each"
                )
            rows = {a: given[n % len(given)] for n, a in enumerate(instances)}
            # A row replaced by itself stays as it is, masks included.
            change = {a: (row,) for a, row in rows.items() if row.instance != a}
        self._describe(edit, steps, spans, rescale)
        return RowEdit(
            weight=self.weight,
            steps=steps,
            change=change,
            hide=hide,
            times=times,
            swap=swap,
            rescale=rescale,
        )

    def _describe(self, edit: Edit, steps: range, spans: Spans, rescale: bool) -> None:
        reached = rows_reached(self.plan, steps, spans)
        touched = np.unique(reached[0])
        text = f"{edit.operation} {len(reached[0])} rows in {len(touched)} steps ({touched[0]}..{touched[-1]})"
        if edit.operation in ("drop", "mask"):
            text += (
                "; the loss is divided by the targets that remain"
                if rescale
                else "; the loss is divided by as many targets as before"
            )
        self._hit(text, reached, spans if edit.operation == "mask" else None)

    # --- selectors ---------------------------------------------------------------------------------------------

    def _selected(self, edit: Edit, steps: range) -> Spans:
        """Instances that the steps read and the selector means, each with its spans, in reading order."""
        assert edit.selector is not None
        kind, value = edit.selector
        there = [row.instance for step in steps for row in rows_of(self.plan[step])]
        spans = {
            "instance": self._instances,
            "span": self._span,
            "document": self._documents,
            "tag": self._tag,
            "where": lambda text: self._where(text, steps),
        }[kind](value)
        hit = {instance: spans[instance] for instance in dict.fromkeys(there) if instance in spans}
        missing = [instance for instance in spans if instance not in hit]
        if not hit or (kind in ("instance", "span") and missing):
            wanted = f"instance {missing[0]}" if missing and kind in ("instance", "span") else f"{kind}:{value}"
            raise InvalidEdit(
                f"{edit.operation}: no row of steps {steps.start}..{steps.stop - 1} of {self.run.name} is {wanted} "
                f"(who read it: forensics where {self.run.name} --{kind if kind == 'document' else 'instance'} …)"
            )
        return hit

    def _whole(self, instances: Sequence[int]) -> Spans:
        return {instance: [(0, self.run.sequence_length)] for instance in instances}

    def _instances(self, text: str) -> Spans:
        return self._whole(_numbers(text, "instance"))

    def _span(self, text: str) -> Spans:
        match = re.fullmatch(r"(\d{1,18}):(\d{1,9})-(\d{1,9})", text)
        if not match or not int(match[2]) < int(match[3]) <= self.run.sequence_length:
            raise InvalidEdit(
                f"span:{text} is not I:START-STOP with 0 <= START < STOP <= {self.run.sequence_length} (tokens)"
            )
        return {int(match[1]): [(int(match[2]), int(match[3]))]}

    def _documents(self, text: str) -> Spans:
        return self._query("spans", f"document_id IN ({', '.join(map(str, _numbers(text, 'document')))})")

    def _tag(self, text: str) -> Spans:
        tag = "'{}'".format(text.replace("'", "''"))
        return self._query("spans", f"document_id IN (SELECT document_id FROM tags WHERE tag = {tag})")

    def _where(self, text: str, steps: range) -> Spans:
        return self._query(f"({WHERE_ROWS})", f"(step >= {steps.start} AND step < {steps.stop}) AND ({text})")

    def _query(self, rows: str, condition: str) -> Spans:
        query = f"SELECT DISTINCT instance, start, stop FROM {rows} WHERE {condition} ORDER BY ALL"
        try:
            require_one_select(query)
            table = query_locked(locked_connection(self.workspace, [self.run.name]), query, seconds=60)
        except FailedQuery as error:
            raise InvalidEdit(f"where: {condition!r} cannot be answered: {error}") from error
        spans: Spans = {}
        for row in table.to_pylist():
            spans.setdefault(row["instance"], []).append((row["start"], row["stop"]))
        return spans

    # --- rows that are given -----------------------------------------------------------------------------------

    def _given_rows(self, edit: Edit) -> tuple[Row, ...]:
        """Rows of `with=`: instances of the run, or a file of new ones; for insert also its selector."""
        value = edit.options.get("with")
        if value is None or value.startswith("instance:"):
            kind, text = edit.selector if value is None and edit.selector else ("instance", (value or "")[9:])
            if kind != "instance":
                raise InvalidEdit(f"{edit.operation} takes rows as instance:I,… or with=rows.jsonl, not {kind}:")
            rows = tuple(Row(instance) for instance in _numbers(text, "instance"))
            num_instances = self.run.num_instances  # a sum over all files
            wrong = [row.instance for row in rows if row.instance >= num_instances]
            if wrong:
                raise InvalidEdit(f"{self.run.name} has instances 0..{num_instances - 1}, not {wrong[0]}")
            return rows
        return tuple(
            self.inserted.add(*token_row(line, number, Path(value), self.run))
            for number, line in enumerate(json_lines(Path(value)), 1)
        )


def _no_weight(row: Row) -> int:
    return 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EditedSteps:
    """What a fork's steps read once its edits are resolved; `hits`: what each of them reached."""

    steps: tuple[StepPlan, ...]
    inserted: Inserted
    hits: tuple[EditHits, ...]


def edited_steps(
    workspace: Workspace, run: Run, plan: Plan, edits: Sequence[Edit], rule: Denominator | None
) -> EditedSteps:
    """Apply edits in order, each to what those before it left.

    Args:
        plan: the parent's, over the fork's steps.
        rule: what the fork's loss is divided by; None: that is not asked for, and no token is read.
    Raises:
        InvalidEdit, MissingFile, CorruptFile: the error's `edit_number` says which of them, from 0.
    """
    inserted = Inserted(first_instance=run.num_instances)
    weight = row_weight(run, rule, reader_of(workspace, run), inserted) if rule is not None else _no_weight
    resolver = Resolver(workspace=workspace, run=run, plan=plan, inserted=inserted, weight=weight)
    for number, edit in enumerate(edits):
        try:
            changed = resolver.resolve(edit)(resolver.plan)
            # Every step is looked at here, so that what is wrong with one is known to be of this edit.
            resolver.plan = IndexedPlan(by_step={step: changed[step] for step in changed.steps})
        except ForensicsError as error:
            error.edit_number = number
            raise
    steps = tuple(resolver.plan[step] for step in resolver.plan.steps)
    return EditedSteps(steps=steps, inserted=inserted, hits=tuple(resolver.hits))


def _numbers(text: str, what: str) -> list[int]:
    if not re.fullmatch(r"\d{1,18}(,\d{1,18})*", text):
        raise InvalidEdit(f"{what}:{text} is not a list of numbers such as {what}:12,40")
    return [int(number) for number in text.split(",")]
