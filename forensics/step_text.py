"""What a step read, as text: its rows cut into their documents, a few rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_index.batch import Batch, read_batch
from data_index.batch_queries import batch_rows, plan_of, reader_of, readings_of_instances
from data_index.document_queries import sources_of_documents, spans_of_instances, tags_of_documents
from data_index.errors import ForensicsError, InvalidRange
from data_index.run import Run
from data_index.text import load_tokenizer
from data_index.witness import remember_first_seen
from data_index.workspace import Workspace
from forensics.cli.output import printable
from forensics.fetching import bytes_of_instances, require_allowed
from forensics.marked_text import pieces_of


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPiece:
    """Tokens start .. stop of a row, half-open, of one document; of none that is known, where `document_id` is None.

    `num_hidden`: those of them that do not count in the loss.
    """

    start: int
    stop: int
    text: str
    document_id: int | None = None
    source: str | None = None
    tags: tuple[str, ...] = ()
    num_hidden: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRow:
    """One row of a step; `number` is its 0-based place in the batch, `offset` in tokens from the file's start."""

    number: int
    position: int
    instance: int
    file: str
    offset: int
    pieces: tuple[TextPiece, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepText:
    """`rows`: those that were asked for, of `num_rows`. `in_words`: False where no tokenizer tells, and ids stand."""

    num_rows: int
    in_words: bool
    rows: tuple[TextRow, ...]


def step_text(
    run: str,
    step: int,
    *,
    first_row: int = 0,
    num_rows: int = 8,
    max_fetch: int | None = None,
    remember: bool = True,
    workspace: Workspace | None = None,
) -> StepText:
    """
    Args:
        first_row: 0-based; with `num_rows`, which rows of the batch.
        max_fetch: bytes of tokens that may be fetched from servers; default: 1 GiB.
        remember: keep the hashes of blocks that were never read before; without, nothing is written.
    Raises:
        UnknownRun, StepOutOfRange, InvalidRange, CorruptFile
        TooMuchToFetch, AccessDenied, Unreachable, Offline: the tokens are on a server.
    """
    workspace = workspace or Workspace()
    record = workspace.run(run)
    table, wanted = _rows_asked_for(workspace, record, step, first_row, num_rows)
    cost = bytes_of_instances(workspace, record, wanted.column("instance").to_pylist())
    require_allowed(cost, max_fetch, f"the tokens of {wanted.num_rows} rows of step {step} of {run}")
    batch = _read(workspace, record, step, slice(first_row, first_row + wanted.num_rows), remember)
    pieces = _pieces(workspace, record, batch)
    rows = [
        TextRow(
            number=first_row + n,
            position=row["position"],
            instance=row["instance"],
            file=row["file"],
            offset=row["offset"],
            pieces=tuple(pieces[n]),
        )
        for n, row in enumerate(wanted.to_pylist())
    ]
    return StepText(num_rows=table.num_rows, in_words=_has_words(record), rows=tuple(rows))


def bytes_of_step_text(
    run: str, step: int, *, first_row: int = 0, num_rows: int = 8, workspace: Workspace | None = None
) -> int:
    """What `step_text` would fetch from servers."""
    workspace = workspace or Workspace()
    record = workspace.run(run)
    _, wanted = _rows_asked_for(workspace, record, step, first_row, num_rows)
    return bytes_of_instances(workspace, record, wanted.column("instance").to_pylist())


def other_readings(run: str, step: int, *, workspace: Workspace | None = None) -> list[dict[str, Any]]:
    """Readings of the rows of a step by other steps, and by other attempts of this one, in step order.

    Raises:
        UnknownRun, StepOutOfRange, CorruptFile
    """
    workspace = workspace or Workspace()
    record = workspace.run(run)
    attempt = record.segment_of_step(step).attempt
    rows = batch_rows(workspace, record, step - 1, step)
    instances = sorted(set(rows.column("instance").to_pylist()))
    readings = readings_of_instances(workspace, record, instances).to_pylist()
    return [row for row in readings if (row["step"], row["attempt"]) != (step, attempt)]


def _rows_asked_for(workspace: Workspace, run: Run, step: int, first_row: int, num_rows: int) -> tuple[Any, Any]:
    run.segment_of_step(step)
    table = batch_rows(workspace, run, step - 1, step)
    if not 0 <= first_row < table.num_rows or num_rows < 1:
        raise InvalidRange(
            f"step {step} of {run.name} has rows 0..{table.num_rows - 1}, not {first_row}..{first_row + num_rows - 1}"
        )
    return table, table.slice(first_row, num_rows)


def _read(workspace: Workspace, run: Run, step: int, rows: slice, remember: bool) -> Batch:
    plan = plan_of(workspace, run, step - 1, step)[step]
    masks = [(row - rows.start, start, stop) for row, start, stop in plan.masks if rows.start <= row < rows.stop]
    reader = reader_of(workspace, run)
    batch = read_batch(replace(plan, instances=plan.instances[rows], masks=tuple(masks)), reader)
    if remember:
        remember_first_seen(workspace, run, reader)
    return batch


def _pieces(workspace: Workspace, run: Run, batch: Batch) -> list[list[TextPiece]]:
    spans: dict[int, list[tuple[int, int, int]]] = {}
    for instance, document, start, stop in spans_of_instances(workspace, run, np.unique(batch.instances)):
        spans.setdefault(instance, []).append((start, stop, document))
    documents = sorted({document for found in spans.values() for _, _, document in found})
    sources, tags = sources_of_documents(workspace, run, documents), tags_of_documents(workspace, run, documents)
    found = []
    for instance, ids, counts in zip(batch.instances.tolist(), batch.token_ids, batch.counts_as_target, strict=True):
        texts = pieces_of(run, ids)
        found.append(
            [
                TextPiece(
                    start=start,
                    stop=stop,
                    text=readable_text("".join(texts[start:stop])),
                    document_id=document,
                    source=sources.get(document) if document is not None else None,
                    tags=tuple(tags.get(document, ())) if document is not None else (),
                    num_hidden=int((~counts[start:stop]).sum()),
                )
                for start, stop, document in tiled(spans.get(instance, []), len(ids))
            ]
        )
    return found


def tiled(spans: Sequence[tuple[int, int, int]], length: int) -> list[tuple[int, int, int | None]]:
    """Spans (start, stop, document) of a row of `length` tokens in their order, and what lies between them as of None.

    Where two overlap, the later one begins where the earlier one ends.
    """
    found: list[tuple[int, int, int | None]] = []
    reached = 0
    for start, stop, document in sorted(spans):
        if start > reached:
            found.append((reached, start, None))
        if stop > max(start, reached):
            found.append((max(start, reached), stop, document))
        reached = max(reached, stop)
    return found if reached >= length else [*found, (reached, length, None)]


def readable_text(text: str) -> str:
    """Text from data as text of several lines; all else that a page or terminal would obey is escaped."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.replace("\r\n", "\n").split("\n"))


def _has_words(run: Run) -> bool:
    try:
        load_tokenizer(run)
    except ForensicsError:
        return False
    return True
