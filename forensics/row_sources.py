"""Where the rows come from that probes look at: held-out rows of a run, rows that it was trained on, or a file.

heldout     the run's held-out tokens, from the first on
run         rows that it was trained on, a seeded sample over all steps; what the trainer hid is not scored
FILE        of texts or token ids (forensics/row_files.py)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_index.batch import rows_as_trained
from data_index.batch_queries import instances_at, reader_of
from data_index.document_queries import documents_of_file, spans_of_instances, tags_of_documents
from data_index.errors import InvalidRange, MissingFile
from data_index.run import Run, Segment
from data_index.workspace import Workspace
from forensics.fetching import bytes_of_instances, require_allowed
from forensics.probe_options import ProbeOptions
from forensics.probe_rows import ProbeRows, Span
from forensics.row_files import rows_of_file

HELDOUT, OF_RUN = "heldout", "run"


def probe_rows(workspace: Workspace, run: Run, source: str | None, options: ProbeOptions) -> ProbeRows:
    """
    Args:
        source: as above; None: held-out rows where the run has some, else rows of the run.
    Raises:
        MissingFile, CorruptFile, UnknownOrder, TooMuchToFetch, AccessDenied, Unreachable, Offline
        InvalidRange: no row is left.
    """
    if source is None:
        source = HELDOUT if run.heldout else OF_RUN
    if source == HELDOUT:
        found = _heldout(workspace, run, options)
    elif source == OF_RUN:
        found = _of_run(workspace, run, options)
    else:
        found = rows_of_file(run, Path(source), options)
    if not len(found.token_ids) or found.token_ids.shape[1] < 2:
        raise InvalidRange(f"{source} gives no row of two tokens or more: ask for more with --num-tokens")
    return found


def _heldout(workspace: Workspace, run: Run, options: ProbeOptions) -> ProbeRows:
    if not run.heldout:
        raise MissingFile(f"{run.name} has no held-out tokens: take NAME@run, or NAME@FILE with texts of your own")
    reader, own = reader_of(workspace, run), run.tokens_per_instance
    rows: list[np.ndarray] = []
    spans: list[Span] = []
    documents: set[int] = set()
    for file in run.heldout:
        num_rows = file.num_bytes // np.dtype(file.dtype).itemsize // run.sequence_length
        wanted = min(num_rows, max(options.num_tokens // own, 1) - len(rows))
        if wanted <= 0:
            break
        tokens = reader.read(file, 0, wanted * run.sequence_length).astype(np.int64)
        first = len(rows)
        rows += list(tokens.reshape(wanted, run.sequence_length)[:, :own])
        for document, start, stop in documents_of_file(workspace, run, file.name, 0, len(tokens)):
            documents.add(document)
            spans += _rows_of_stretch(document, start, min(stop, len(tokens)), first, run.sequence_length, own)
    ids = np.stack(rows) if rows else np.empty((0, own), np.int64)
    tags = tags_of_documents(workspace, run, sorted(documents))
    return _cut(HELDOUT, ids, None, spans, tags, options, f"{len(ids)} held-out rows")


def _rows_of_stretch(document: int, start: int, stop: int, first: int, length: int, own: int) -> Iterator[Span]:
    """The rows that tokens start .. stop of a file lie in, rows being cut from its beginning."""
    for row in range(start // length, -(-stop // length)):
        begin, end = max(start - row * length, 0), min(stop - row * length, own)
        if begin < end:
            yield document, first + row, begin, end


def _of_run(workspace: Workspace, run: Run, options: ProbeOptions) -> ProbeRows:
    own = run.tokens_per_instance
    wanted = max(options.num_tokens // own, 1)
    instances = sampled_instances(workspace, run, wanted, options.seed)
    require_allowed(
        bytes_of_instances(workspace, run, instances), options.max_fetch, f"{len(instances)} rows of {run.name}"
    )
    reader = reader_of(workspace, run)
    ids, counts = (array[:, :own] for array in rows_as_trained(instances, reader))
    places = {int(instance): row for row, instance in enumerate(instances)}
    spans = [
        (document, places[instance], start, min(stop, own))
        for instance, document, start, stop in spans_of_instances(workspace, run, instances)
        if start < own
    ]
    tags = tags_of_documents(workspace, run, sorted({span[0] for span in spans}))
    scored = None if counts.all() else counts
    return _cut(OF_RUN, ids, scored, spans, tags, options, f"{len(ids)} rows that the run's steps read")


def sampled_instances(workspace: Workspace, run: Run, count: int, seed: int) -> np.ndarray:
    """Different instances that the run was trained on, each reading equally likely to be chosen; rising, int64.

    Raises:
        UnknownOrder: what the steps read is not known.
    """
    steps, positions = sampled_readings(run, count, seed)
    return np.unique(instances_at(workspace, run, steps, positions))


def applied_stretches(run: Run) -> list[Segment]:
    """The steps that made the run's weights what they are: kept attempts, without what was consumed for nothing.

    Raises:
        UnknownOrder: what the steps read is not known.
        InvalidRange: no step changed the weights.
    """
    kept = run.kept_stretches()
    if not kept:
        run.segment_of_step(run.last_step)  # says why
    applied = [stretch for stretch in kept if stretch.outcome == "applied"]
    if not applied:
        raise InvalidRange(f"no step of {run.name} changed its weights")
    return applied


def sampled_readings(run: Run, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps and positions of readings, all where there are no more than `count`, else a seeded sample; by step.

    Raises:
        UnknownOrder
        InvalidRange: no step changed the weights.
    """
    stretches = applied_stretches(run)
    sizes = np.array([one.num_steps * one.instances_per_batch for one in stretches], dtype=np.int64)
    total = int(sizes.sum())
    if total <= count:
        chosen = np.arange(total)
    else:
        chosen = np.sort(np.random.default_rng(seed).choice(total, count, replace=False, shuffle=False))
    ends = np.cumsum(sizes)
    of = np.searchsorted(ends, chosen, side="right")
    inside = chosen - (ends - sizes)[of]
    per_batch = np.array([one.instances_per_batch for one in stretches])[of]
    steps = np.array([one.first_step for one in stretches])[of] + inside // per_batch
    return steps, np.array([one.first_position for one in stretches])[of] + inside


def _cut(
    source: str,
    ids: np.ndarray,
    scored: np.ndarray | None,
    spans: Sequence[Span],
    tags: Mapping[int, Sequence[str]],
    options: ProbeOptions,
    description: str,
) -> ProbeRows:
    """Rows up to the length that is wanted."""
    length = min(options.length or ids.shape[1], ids.shape[1])
    return ProbeRows(
        source=source,
        token_ids=ids[:, :length],
        scored=None if scored is None else scored[:, :length],
        spans=[(document, row, start, min(stop, length)) for document, row, start, stop in spans if start < length],
        tags=tags,
        description=f"{description} of {length} tokens",
    )
