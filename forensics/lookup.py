"""Plain questions under the key (run, step): what a step read, who read a thing, everything about a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_index.batch import Batch, read_batch, read_batches
from data_index.batch_queries import (
    GROUPS,
    batch_groups,
    batch_rows,
    plan_of,
    reader_of,
    readings_of_instances,
)
from data_index.document_queries import instances_of_document
from data_index.errors import ForensicsError, InvalidRange, UnknownInstance
from data_index.metric_queries import metrics_of_step
from data_index.run import Run, parse_steps
from data_index.shares import mixture
from data_index.store import QUERY_SECONDS, run_query
from data_index.witness import remember_first_seen
from data_index.workspace import Workspace
from forensics.configured import learning_rate_of_step
from forensics.fetching import bytes_of_all_tokens, bytes_of_instances, require_allowed
from forensics.occurrences import Progress, find_occurrences, matcher_of


def batch(
    run: str,
    steps: str | int,
    *,
    instance: int | None = None,
    tokens: bool = False,
    by: str | None = None,
    every: int | None = None,
    verify: bool = True,
    max_fetch: int | None = None,
    workspace: Workspace | None = None,
) -> Any:
    """What a step, or a stretch A:B, read, as an Arrow table.

    Args:
        instance: only this instance's rows.
        tokens: add `token_ids`.
        by: count by document, tag, file or source instead, against the whole run's average.
        every: with `by`: count every so many steps apart, as rows of first_step, last_step, the group, tokens, share.
        max_fetch: bytes of tokens that may be fetched from servers; default: 1 GiB.
    Raises:
        UnknownRun, StepOutOfRange, InvalidRange, UnknownInstance, CorruptFile
        TooMuchToFetch, AccessDenied, Unreachable, Offline: the tokens are on a server.
    """
    import pyarrow

    workspace = workspace or Workspace()
    record = workspace.run(run)
    first, last = parse_steps(str(steps), record)
    if by is not None:
        if by not in GROUPS:
            raise InvalidRange(f"--by takes {', '.join(sorted(GROUPS))}, not {by!r}")
        if every is not None:
            if every < 1:
                raise InvalidRange(f"--every takes a number of steps, not {every}")
            return mixture(workspace, record, first, last, by, every)
        return batch_groups(workspace, record, first, last, by)
    if every is not None:
        raise InvalidRange("--every counts groups: it goes with --by")
    table = batch_rows(workspace, record, first, last, instance)
    if instance is not None and table.num_rows == 0:
        raise UnknownInstance(
            f"steps {first + 1}..{last} of {run} did not read instance {instance} "
            f"(who did: forensics where {run} --instance {instance})"
        )
    if tokens or record.hides_tokens:
        wanted = bytes_of_instances(workspace, record, table.column("instance").to_pylist())
        require_allowed(wanted, max_fetch, f"the tokens of steps {first + 1}..{last} of {run}")
    if record.hides_tokens and table.num_rows:
        table = _with_hidden(workspace, record, table, verify)
    if tokens:
        reader = reader_of(workspace, record, verify=verify)
        rows = reader.rows(table.column("instance").to_numpy())
        remember_first_seen(workspace, record, reader)
        table = table.append_column("token_ids", pyarrow.array(list(rows), pyarrow.list_(pyarrow.int64())))
    return table


def _with_hidden(workspace: Workspace, run: Run, table: Any, verify: bool) -> Any:
    """`masked` as it is once the tokens are read: hidden by the trainer or by an edit."""
    import pyarrow

    reader = reader_of(workspace, run, verify=verify)
    steps = table.column("step").to_pylist()
    hidden: dict[tuple[int, int], int] = {}
    whole = plan_of(workspace, run, min(steps) - 1, max(steps))
    for plan in (whole[step] for step in dict.fromkeys(steps)):
        start = run.segment_of_step(plan.step).positions_of_step(plan.step).start
        counts = (~read_batch(plan, reader).counts_as_target).sum(axis=1)
        hidden |= {(plan.step, start + row): int(count) for row, count in enumerate(counts)}
    remember_first_seen(workspace, run, reader)
    masked = [hidden[key] for key in zip(steps, table.column("position").to_pylist(), strict=True)]
    return table.set_column(table.column_names.index("masked"), "masked", pyarrow.array(masked, pyarrow.int64()))


def batches(run: str, first: int, last: int, *, workspace: Workspace | None = None) -> Iterator[Batch]:
    """Every batch from checkpoint `first` to checkpoint `last`, one after another, tokens included."""
    workspace = workspace or Workspace()
    record = workspace.run(run)
    first, last = parse_steps(f"{first}:{last}", record)
    yield from read_batches(plan_of(workspace, record, first, last), reader_of(workspace, record))


def where(
    run: str,
    *,
    text: str | None = None,
    document: int | None = None,
    instance: int | Sequence[int] | None = None,
    token: int | None = None,
    limit: int | None = None,
    max_fetch: int | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    workspace: Workspace | None = None,
) -> Any:
    """Every reading of an instance, of the instances that hold a document, a text or a token; an Arrow table.

    Of a text, `document_ids` are the documents in which the occurrences in that instance lie.

    Args:
        instance: one, or many at once.
        limit: stop searching for a text or a token once so many instances were found.
        progress: of a search for a text or a token.
        note: called with sentences about how it was searched, and where it stopped.
        max_fetch: bytes of tokens that may be fetched from servers; default: 1 GiB.
    Raises:
        InvalidRange: not exactly one of them is given.
        UnknownRun, UnknownInstance, UnknownDocument, CorruptFile
        TooMuchToFetch, AccessDenied, Unreachable, Offline: the tokens are on a server.
    """
    workspace = workspace or Workspace()
    record = workspace.run(run)
    if not record.segments:
        record.segment_of_step(1)  # says why nothing is known
    if text is not None or token is not None:
        require_allowed(bytes_of_all_tokens(record), max_fetch, f"a search through all tokens of {run}")
    if sum(given is not None for given in (text, document, instance, token)) != 1:
        raise InvalidRange("where takes exactly one of --text, --document, --instance and --token")
    if document is not None:
        instances = instances_of_document(workspace, record, document)
    elif instance is not None:
        instances = [instance] if isinstance(instance, int) else list(instance)
    else:
        matcher = matcher_of(record, text, token)
        found = find_occurrences(
            workspace, record, matcher, limit=limit, with_documents=text is not None, progress=progress
        )
        if note is not None:
            for sentence in found.notes:
                note(sentence)
        table = readings_of_instances(workspace, record, found.instances)
        return table if text is None else _with_documents(table, found.documents)
    return readings_of_instances(workspace, record, instances)


def _with_documents(table: Any, documents: dict[int, list[int]]) -> Any:
    import pyarrow

    ids = [documents.get(instance, []) for instance in table.column("instance").to_pylist()]
    return table.append_column("document_ids", pyarrow.array(ids, pyarrow.list_(pyarrow.int64())))


def sql(query: str, *, seconds: float = QUERY_SECONDS, workspace: Workspace | None = None) -> Any:
    """Answer one read-only SELECT over the views (`forensics sql --schema`) as an Arrow table.

    Raises:
        RefusedQuery, FailedQuery
    """
    return run_query(workspace or Workspace(), query, seconds)


def at(run: str, step: int, *, workspace: Workspace | None = None) -> dict[str, Any]:
    """Everything under the key (run, step).

    Raises:
        UnknownRun, StepOutOfRange
    """
    workspace = workspace or Workspace()
    record = workspace.run(run)
    segment = record.segment_of_step(step)
    there = [c.step for c in workspace.checkpoints(record)]
    before, after = [s for s in there if s < step], [s for s in there if s >= step]
    plan = plan_of(workspace, record, step - 1, step)[step]
    return {
        "run": run,
        "step": step,
        "epoch": segment.epoch,
        "attempt": segment.attempt,
        "order_trust": str(record.trust.of_steps(step, step)),
        "instances": plan.instances.tolist(),
        "num_tokens": len(plan.instances) * record.sequence_length,
        "masked_spans": len(plan.masks),
        "loss_denominator": plan.loss_denominator,
        "outcome": plan.outcome,
        "learning_rate": learning_rate_of_step(workspace, record, step),
        "tokens_after": record.tokens_after(step),
        "checkpoint_before": max(before, default=None),
        "checkpoint_after": min(after, default=None),
        "metrics": metrics_of_step(workspace, record, step),
        "read_by_tag": _groups(workspace, record, step, "tag"),
        "read_by_file": _groups(workspace, record, step, "file"),
        "forks": _forks_through(workspace, run, step),
    }


def _groups(workspace: Workspace, run: Run, step: int, by: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = batch_groups(workspace, run, step - 1, step, by).to_pylist()
    return rows


def _forks_through(workspace: Workspace, run: str, step: int) -> list[str]:
    found = []
    for name in workspace.fork_ids():
        try:
            child = workspace.run(name)
        except ForensicsError:
            continue
        if child.parent and child.parent[0] == run and child.first_step <= step <= child.last_step:
            found.append(name)
    return found
