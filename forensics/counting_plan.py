"""What a count of token exposures is to count, and what it would take."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_index.errors import InvalidRange
from data_index.exposures import COLUMNS
from data_index.files import canonical_json, sha256_of_file
from data_index.metric_queries import logged_skips
from data_index.run import Run, parse_steps
from data_index.workspace import Workspace, read_current
from forensics.counting_work import CountingWork
from forensics.fetching import bytes_of_all_tokens, bytes_of_steps

VERSION = 1  # of what is counted
ROWS_IN_MEMORY = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What is to be counted.

    Attributes:
        recorded: steps at which the counts are kept, rising; the last one is among them.
        whole: all steps of the run, so that what is found becomes known of it.
        not_applied: steps of which the trainer logged that it did not apply the update.
    """

    run: Run
    first: int
    last: int
    recorded: tuple[int, ...]
    whole: bool
    not_applied: frozenset[int] = frozenset()

    @property
    def num_tokens(self) -> int:
        return self.tokens_until(self.last)

    def tokens_until(self, step: int) -> int:
        return self.run.tokens_after(step) - self.run.tokens_after(self.first)


def count_of(workspace: Workspace, run: Run, steps: str = "all", every: int | None = None) -> Count:
    """
    Raises:
        UnknownOrder, StepOutOfRange, InvalidRange
    """
    if every is not None and every < 1:
        raise InvalidRange(f"--every {every}: counts are kept every 1, 2, 3 … steps")
    if steps == "all":
        run.segment_of_step(run.last_step)  # says why nothing is known
    first, last = parse_steps(f"{run.first_step - 1}:{run.last_step}" if steps == "all" else steps, run)
    at = {c.step for c in workspace.checkpoints(run) if first < c.step < last} | {last}
    at |= set(range(every * (first // every + 1), last, every)) if every else set()
    whole = (first, last) == (run.first_step - 1, run.last_step)
    skips = frozenset(step for step in logged_skips(workspace, run) if first < step <= last)
    return Count(run=run, first=first, last=last, recorded=tuple(sorted(at)), whole=whole, not_applied=skips)


def bytes_to_fetch(workspace: Workspace, count: Count) -> int:
    if count.whole:
        return bytes_of_all_tokens(count.run)
    return bytes_of_steps(workspace, count.run, count.first, count.last)


def key_of(home: Path, count: Count) -> str:
    """Names all that the counts depend on."""
    parts = {
        "version": VERSION,
        "run": sha256_of_file(home / "run.toml"),
        "edits": read_current(home).get("masks", []),
        "steps": [count.first, count.last],
        "recorded": count.recorded,
        "not_applied": sorted(count.not_applied),
    }
    return hashlib.sha256(canonical_json(parts)).hexdigest()[:12]


def plan_exposures(
    run: str, steps: str = "all", *, every: int | None = None, workspace: Workspace | None = None
) -> dict[str, Any]:
    """What it would take: tokens and bytes to read, bytes to fetch, rows that are kept at most, bytes in memory.

    Raises:
        UnknownRun, UnknownOrder, StepOutOfRange, InvalidRange
    """
    workspace = workspace or Workspace()
    record = workspace.run(run)
    count = count_of(workspace, record, steps, every)
    work = CountingWork(workspace.home(run), key_of(workspace.home(run), count), count.first)
    step = count.last if work.done else work.step
    tokens = count.num_tokens - count.tokens_until(step)
    ids = record.vocabulary_size or 2**16
    per_instance = sum(file.num_bytes for file in record.files) / max(record.num_instances, 1)
    return {
        "run": run,
        "from": count.first,
        "to": count.last,
        "counted_to": step,
        "records": len(count.recorded),
        "tokens": tokens,
        "read": round(tokens / record.tokens_per_instance * per_instance),
        "download": bytes_to_fetch(workspace, count) if tokens else 0,
        "rows_at_most": len(count.recorded) * ids,
        "memory": 8 * (2 * len(COLUMNS) * ids + 4 * ROWS_IN_MEMORY + 2 * len(COLUMNS) * max(ids, ROWS_IN_MEMORY)),
        "seconds_at_100M_tokens_a_second": round(tokens / 1e8, 1),
    }
