"""How often a run consumed each token id, up to each of its checkpoints: one pass over the steps in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_index.batch import StepPlan
from data_index.batch_queries import plan_of, reader_of
from data_index.exposures import COUNTS, Exposures
from data_index.files import exclusive_lock
from data_index.kinds import arrow_schema
from data_index.run import Run
from data_index.step_rows import Rows, hidden_stretches, rows_of_step
from data_index.witness import remember_first_seen
from data_index.workspace import Workspace
from forensics.counting_plan import ROWS_IN_MEMORY, Count, bytes_to_fetch, count_of, key_of
from forensics.counting_work import CountingWork
from forensics.fetching import require_allowed

COMMIT_SECONDS = 60.0
PLANNED_ROWS = 2**18  # of the plan that is held at a time

# Called after each step with the tokens gone through so far, those of this process among them, and all of them.
Progress = Callable[[int, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenExposures:
    """The counts of one run.

    Attributes:
        first, last: steps first+1 .. last are counted.
        summary: a row for each recorded step: its sums over all ids, how many ids were seen, and how many of them since
            the record before.
        files: Parquet files with the columns of `exposures`.
    """

    run: str
    first: int
    last: int
    summary: list[dict[str, Any]]
    files: tuple[Path, ...]

    def table(self, step: int | None = None, token: int | None = None) -> Any:
        """Rows of `exposures` as an Arrow table; of one recorded step, or of one token id."""
        import pyarrow
        import pyarrow.parquet

        wanted = [(name, "=", value) for name, value in (("step", step), ("token_id", token)) if value is not None]
        tables = [pyarrow.parquet.read_table(path, filters=wanted or None, partitioning=None) for path in self.files]
        return pyarrow.concat_tables([arrow_schema("exposures").empty_table(), *tables])


def exposures(
    run: str,
    steps: str = "all",
    *,
    every: int | None = None,
    verify: bool = True,
    max_fetch: int | None = None,
    workspace: Workspace | None = None,
    progress: Progress = lambda done, here, total: None,
    commit_seconds: float = COMMIT_SECONDS,
) -> TokenExposures:
    """Count how often each token id was consumed up to each checkpoint; what the columns mean: `data_index.exposures`.

    Counts are those of the attempts whose checkpoint was kept. A step is not applied where its outcome says so, or the
    trainer's log. Counted once, the same question is answered at once; interrupted, it goes on.

    Args:
        steps: `all`, counted from the run's first step (of a fork: from its fork on), which also tells what the trainer
            hid from the loss (the view `masks`); or a step or A:B, counted from checkpoint A.
        every: keep the counts every so many steps too.
        verify: check token files against their hashes.
        max_fetch: bytes of tokens that may be fetched from servers; default: 1 GiB.
        commit_seconds: keep what was counted at least so often.
    Raises:
        UnknownRun, UnknownOrder, StepOutOfRange, InvalidRange, CorruptFile, MissingFile
        Busy: another process counts them.
        TooMuchToFetch, AccessDenied, Unreachable, Offline: the tokens are on a server.
    """
    workspace = workspace or Workspace()
    record = workspace.run(run)
    count, home = count_of(workspace, record, steps, every), workspace.home(run)
    with exclusive_lock(home / "exposures.lock", f"counting the tokens of {run}"):
        work = CountingWork(home, key_of(home, count), count.first)
        if not work.done:
            wanted = bytes_to_fetch(workspace, count)
            require_allowed(wanted, max_fetch, f"the tokens of steps {count.first + 1}..{count.last} of {run}")
            _go_through(workspace, count, work, verify, progress, commit_seconds)
        work.finish(in_force=count.whole)
    files = tuple(work.files["exposures"])
    return TokenExposures(run=run, first=count.first, last=count.last, summary=work.summary, files=files)


def _go_through(
    workspace: Workspace, count: Count, work: CountingWork, verify: bool, progress: Progress, commit_seconds: float
) -> None:
    run, began_at = count.run, count.tokens_until(work.step)
    reader = reader_of(workspace, run, verify=verify)
    counts = Exposures(extra_label=run.extra_label, table=work.table)
    found = Found(hidden_too=count.whole, seen=work.summary[-1]["seen_ids"] if work.summary else 0)
    committed, recorded = time.monotonic(), set(count.recorded)
    try:
        for plan in plans_of_steps(workspace, run, work.step, count.last):
            applied = plan.outcome == "applied" and plan.step not in count.not_applied
            blocks = rows_of_step(plan, reader)
            counts.count_step(plan.step, found.watched(run, plan, blocks) if applied else blocks, applied=applied)
            if plan.step in recorded:
                found.record(plan.step, counts)
            late = time.monotonic() - committed >= commit_seconds
            if late or plan.step == count.last or found.num_rows >= ROWS_IN_MEMORY:
                work.commit(plan.step, counts.table, found.tables(), found.summary)
                found, committed = Found(hidden_too=count.whole, seen=found.seen), time.monotonic()
            done = count.tokens_until(plan.step)
            progress(done, done - began_at, count.num_tokens)
    finally:
        remember_first_seen(workspace, run, reader)


def plans_of_steps(workspace: Workspace, run: Run, first: int, last: int) -> Iterator[StepPlan]:
    """The plans of steps first+1 .. last, some at a time."""
    together = max(PLANNED_ROWS // max(segment.instances_per_batch for segment in run.segments), 1)
    for start in range(first, last, together):
        plan = plan_of(workspace, run, start, min(start + together, last))
        yield from (plan[step] for step in plan.steps)


@dataclass(slots=True, kw_only=True)
class Found:
    """What was learned since the last commit.

    Attributes:
        hidden_too: what the trainer hid from the loss as well.
        seen: ids that were seen up to the last record.
    """

    hidden_too: bool
    seen: int
    records: list[Any] = field(default_factory=list)
    hidden: list[tuple[Any, ...]] = field(default_factory=list)
    summary: list[dict[str, Any]] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return len(self.hidden) + sum(table.num_rows for table in self.records)

    def watched(self, run: Run, plan: StepPlan, blocks: Iterable[Rows]) -> Iterator[Rows]:
        """The blocks themselves, noting on the way what the trainer hid in them."""
        if not (self.hidden_too and run.hides_tokens):
            yield from blocks
            return
        segment = run.segment_of_step(plan.step)
        first = segment.positions_of_step(plan.step).start
        for rows in blocks:
            for place, start, stop, reason in hidden_stretches(rows):
                where = (plan.step, segment.attempt, first + place, int(plan.instances[place]))
                self.hidden.append((*where, start, stop, reason))
            yield rows

    def record(self, step: int, counts: Exposures) -> None:
        import pyarrow

        ids = counts.counted_ids()
        columns: dict[str, Any] = {"step": np.full(len(ids), step), "token_id": ids}
        columns |= {name: counts[name][ids] for name in COUNTS}
        for name in ("first_step", "last_step"):
            columns[name] = pyarrow.array(counts[name][ids], mask=counts[name][ids] == 0)
        self.records.append(pyarrow.table(columns, schema=arrow_schema("exposures")))
        seen = int(np.count_nonzero(counts["last_step"]))
        sums = {name: int(counts[name].sum()) for name in COUNTS}
        self.summary.append({"step": step, "seen_ids": seen, "new_ids": seen - self.seen} | sums)
        self.seen = seen

    def tables(self) -> dict[str, Any]:
        """Arrow tables by kind."""
        import pyarrow

        schema = arrow_schema("hidden")
        columns = list(zip(*self.hidden, strict=True)) or [()] * len(schema)
        hidden = [pyarrow.array(values, kind) for values, kind in zip(columns, schema.types, strict=True)]
        return {
            "exposures": pyarrow.concat_tables([arrow_schema("exposures").empty_table(), *self.records]),
            "hidden": pyarrow.table(hidden, schema=schema),
        }
