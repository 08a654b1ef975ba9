"""What `blame` found, as rows: candidates, groups, documents, steps, and the commands that take the same steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from data_index.document_queries import documents_of_stretches, sources_of_documents
from data_index.run import Run
from data_index.workspace import Workspace
from forensics.attribution_result import Attribution, Cause
from forensics.content_signals import RowSignals
from forensics.document_removal import DocumentRemoval
from forensics.removal import Band, by_step
from forensics.reproduction import Setup
from forensics.window_replay import WindowReplay

Row = Mapping[str, Any]


def documents_of_rows(workspace: Workspace, run: Run, found: Attribution) -> dict[int, list[int]]:
    """Documents of the suspects' rows, or of their spans where one stands out."""
    import pyarrow

    if not found.suspects:
        return {}
    stretches = [
        {"instance": s.instance, "start": s.span.span[0], "stop": s.span.span[1]}
        if s.span is not None and s.span.span is not None
        else {"instance": s.instance, "start": 0, "stop": run.sequence_length}
        for s in found.suspects
    ]
    documents: dict[int, list[int]] = {}
    for instance, document in documents_of_stretches(workspace, run, pyarrow.Table.from_pylist(stretches)):
        documents.setdefault(instance, []).append(document)
    return documents


def candidate_rows(
    found: Attribution, replayed: WindowReplay, signals: Sequence[RowSignals], documents: Mapping[int, list[int]]
) -> Iterator[Row]:
    reader, bands = replayed.reader, found.bands
    for rank, (suspect, told) in enumerate(zip_longest(found.suspects, signals), 1):
        file, offset = reader.place_of(suspect.instance)
        span = suspect.span.span if suspect.span is not None else None
        yield {
            "rank": rank,
            "step": suspect.place[0],
            "row": suspect.place[1],
            "instance": suspect.instance,
            "file": file.name,
            "offset": offset,
            "share": suspect.share,
            "grad_norm_share": suspect.norm,
            "loss": suspect.loss,
            "loss_z": suspect.loss_z,
            "grad_norm_z": suspect.norm_z,
            "loss_if_removed": suspect.removal.loss,
            "null_low": bands["loss"].low if bands else None,
            "null_high": bands["loss"].high if bands else None,
            "grad_norm_if_removed": suspect.removal.grad_norm,
            "grad_norm_null_low": bands["grad_norm"].low if bands else None,
            "grad_norm_null_high": bands["grad_norm"].high if bands else None,
            "restored": _known(found.restored(suspect.removal)),
            "span_start": span[0] if span else None,
            "span_stop": span[1] if span else None,
            "loss_if_span_hidden": suspect.span.loss if suspect.span is not None else None,
            "restored_by_span": _known(found.restored(suspect.span)) if suspect.span is not None else None,
            "documents": documents.get(suspect.instance, []),
            "signals": sorted(told.flags) if told is not None else [],
        }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def removal_row(found: Attribution, removal: Any, bands: Mapping[str, Any]) -> Row | None:
    if removal is None:
        return None
    by_measure = {
        f"{measure}_null_{end}": getattr(bands[measure], end) if measure in bands else None
        for measure in ("loss", "grad_norm")
        for end in ("low", "high")
    }
    return {
        "steps": sorted({step for step, _ in removal.places}),
        "rows": [list(place) for place in removal.places],
        "loss_if_removed": removal.loss,
        "grad_norm_if_removed": removal.grad_norm,
        "restored": _known(found.restored(removal)),
        **by_measure,
    }


def document_rows(
    setup: Setup, found: Attribution, removed: Sequence[DocumentRemoval], bands: Mapping[str, Band]
) -> list[Row]:
    ids = [document.document_id for document in removed]
    sources = sources_of_documents(setup.workspace, setup.run, ids) if ids else {}
    band = bands.get(found.window.measure)
    return [
        {
            "document_id": document.document_id,
            "source": sources.get(document.document_id),
            "num_tokens": document.num_tokens,
            "rows": [list(place) for place in document.rows],
            "loss_if_hidden": document.removal.loss,
            "grad_norm_if_hidden": document.removal.grad_norm,
            "null_low": None if band is None else band.low,
            "null_high": None if band is None else band.high,
            "restored": found.restored(document.removal),
        }
        for document in removed
    ]


def step_rows(found: Attribution) -> Iterator[Row]:
    for step in found.taken:
        yield {
            "step": step.step,
            "loss": step.result.loss,
            "grad_norm": step.result.grad_norm,
            "learning_rate": step.result.learning_rate,
            "peak_loss_before": step.peak_loss_before,
            "moved": step.moved,
            "suspect": step.step in found.steps,
        }


def fork_commands(
    run: Run, found: Attribution, cause: Cause | None, replayed: WindowReplay, notes: list[str]
) -> Iterator[str]:
    """The removal that is called the cause, as a fork; none where an edit would drop more rows than were taken away."""
    removal = {"instance": found.suspects[0].removal if found.suspects else None, "group": found.group}.get(cause or "")
    if removal is None:
        return
    window, edits = found.window, []
    for step, rows in sorted(by_step(removal.places).items()):
        read = replayed.plan[step].instances
        dropped = list(dict.fromkeys(read[rows].tolist()))
        if (num_rows := int(np.isin(read, dropped).sum())) > len(rows):
            notes.append(
                f"No fork takes the same rows away: step {step} reads instances {', '.join(map(str, dropped))} in "
                f"{num_rows} rows, of which {len(rows)} were taken away; drop takes all of them."
            )
            return
        edits.append(f"--edit 'drop instance:{','.join(map(str, dropped))} @{step}'")
    steps = window.peak - window.start.step
    yield f"forensics fork {run.name} --from {window.start.step} --num-steps {steps} {' '.join(edits)}"
