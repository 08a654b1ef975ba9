"""What a fork would be, before it is one: what each edit reaches, its id, what it costs. Nothing is made or fetched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_index.batch_queries import reader_of
from data_index.document_queries import sources_of_documents, spans_of_instances
from data_index.errors import InvalidEdit
from data_index.run import Run
from data_index.workspace import Workspace
from forensics.cli.output import printable
from forensics.edit_hits import EditHits
from forensics.edits import EditedSteps, edited_steps
from forensics.fetching import bytes_of_instances, bytes_of_weights
from forensics.fork_list import file_of_edit, parsed_edits, steps_done
from forensics.forking import ForkRequest, fork_id, fork_request
from forensics.marked_text import pieces_of
from forensics.reproduction import Estimate, estimate, prepare
from forensics.starting import plan_as_taken
from forensics.step_text import readable_text
from replay.recipe import Recipe, apply_overrides, fields_of_recipe, recipe_of_run

MOST_ROWS = 20  # of what an edit reaches that are shown
MOST_CHARACTERS = 600  # of each of them


@dataclass(frozen=True, slots=True, kw_only=True)
class EditPreview:
    """What one edit reaches, in what the edits before it left.

    Attributes:
        said: what it does, in a sentence; kept with the fork.
        num_tokens: of its rows, or of its spans where spans are meant.
        rows: the first of them: step, row (0-based, of the batch), instance, file, offset (in tokens from its start),
            tokens (which of the row, half-open), documents, sources, text (None where the tokens lie on a server).
    """

    edit: str
    said: str
    num_rows: int
    num_instances: int
    num_tokens: int
    num_steps: int
    rows: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkPreview:
    """A fork that was not made.

    Attributes:
        id: the id that it has or would have.
        done: steps that it has taken already; None: it does not exist.
        recipe: (field, before, after) of what differs from the parent's.
        download: bytes that would be fetched; None: a guest asked, and a server would have to tell.
        free_bytes: free disk in the workspace.
    """

    id: str
    parent: str
    from_step: int
    num_steps: int
    done: int | None
    edits: tuple[EditPreview, ...]
    recipe: tuple[tuple[str, Any, Any], ...]
    cost: Estimate
    download: int | None
    free_bytes: int
    notes: tuple[str, ...]


def preview_fork(
    run: str,
    *,
    from_step: int,
    num_steps: int,
    edits: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    save_every: int | None = None,
    workspace: Workspace | None = None,
    device: str = "auto",
    precision: str = "recipe",
    approximate: bool = False,
    fresh_optimizer: bool = False,
    guest: bool = False,
) -> ForkPreview:
    """Resolve the edits as the fork would, and say what they reach and what it would cost; the arguments are `fork`'s.

    Args:
        guest: whoever asks looks from another machine: files that edits name are not read, nothing is asked of servers.
    Raises:
        What `fork` raises before its first step; where an error is of one edit, its `edit_number` says which, from 0.
    """
    workspace = workspace or Workspace()
    if guest:
        _require_no_files(edits)
    asked = fork_request(
        workspace,
        run,
        from_step,
        num_steps,
        edits=edits,
        overrides=overrides,
        precision=precision,
        approximate=approximate,
        fresh_optimizer=fresh_optimizer,
        device=device,
    )
    recipe, name = asked.recipe(), fork_id(asked.to_table())
    setup = prepare(workspace, asked.parent, device, "recipe", approximate=approximate)
    changed = apply_overrides(setup.recipe, asked.overrides)
    # The speed is measured here, and not with more threads than there are cores.
    setup = replace(setup, recipe=replace(changed, num_threads=max(min(changed.num_threads, os.cpu_count() or 1), 1)))
    plan = plan_as_taken(workspace, asked.parent, asked.first, asked.last, recipe)
    edited = edited_steps(workspace, asked.parent, plan, asked.edits, None)
    instances = np.concatenate([step.instances for step in edited.steps])
    tokens = len(instances) * recipe.tokens_per_instance(asked.parent.sequence_length)
    own = np.unique(instances[instances < edited.inserted.first_instance])
    start = workspace.checkpoint(workspace.run(run), asked.first)
    unknown = guest and not isinstance(start.location, Path)
    to_fetch = None if unknown else bytes_of_weights(start) + bytes_of_instances(workspace, asked.parent, own.tolist())
    return ForkPreview(
        id=name,
        parent=run,
        from_step=asked.first,
        num_steps=num_steps,
        done=steps_done(workspace, name),
        edits=tuple(
            _edit_preview(workspace, asked.parent, edited, text, hits)
            for text, hits in zip(edits, edited.hits, strict=True)
        ),
        recipe=_changes(asked, recipe),
        cost=estimate(setup, num_steps, tokens, num_steps // save_every + 1 if save_every else 1),
        download=to_fetch,
        free_bytes=_free_bytes(workspace.folder),
        notes=tuple(_notes(asked)),
    )


def _require_no_files(edits: Sequence[str]) -> None:
    for number, edit in enumerate(parsed_edits(edits)):
        if file_of_edit(edit) is not None:
            error = InvalidEdit(
                f"{edit.operation}: with={edit.options['with']} names a file, and files are only read for who works "
                "on the machine itself; instances can be given, as with=instance:12"
            )
            error.edit_number = number
            raise error


def _changes(asked: ForkRequest, recipe: Recipe) -> tuple[tuple[str, Any, Any], ...]:
    before = fields_of_recipe(recipe_of_run(asked.parent, approximate=asked.approximate))
    after = fields_of_recipe(recipe)
    names = dict.fromkeys([*before, *after])
    return tuple((n, before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n))


def _notes(asked: ForkRequest) -> list[str]:
    notes = [] if asked.edits or asked.overrides else ["Nothing is edited: this fork would equal its parent."]
    if asked.fresh_optimizer and asked.first:
        notes.append("Its optimizer begins at zero, as its parent's did not: that alone makes it differ.")
    return notes


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


# --- the first rows that an edit reaches -----------------------------------------------------------------------------


def _edit_preview(workspace: Workspace, run: Run, edited: EditedSteps, edit: str, hits: EditHits) -> EditPreview:
    return EditPreview(
        edit=edit,
        said=hits.said,
        num_rows=hits.num_rows,
        num_instances=hits.num_instances,
        num_tokens=hits.num_tokens,
        num_steps=hits.num_steps,
        rows=tuple(_first_rows(workspace, run, edited, hits)),
    )


def _first_rows(workspace: Workspace, run: Run, edited: EditedSteps, hits: EditHits) -> list[dict[str, Any]]:
    steps, places, instances = (a[:MOST_ROWS].tolist() for a in (hits.steps, hits.rows, hits.instances))
    own = sorted({instance for instance in instances if instance < edited.inserted.first_instance})
    ids = _token_ids(workspace, run, edited, own, instances)
    documents = _documents(workspace, run, own)
    sources = sources_of_documents(workspace, run, sorted({d for found in documents.values() for d, _, _ in found}))
    reader = reader_of(workspace, run, verify=False)
    rows = []
    for step, place, instance in zip(steps, places, instances, strict=True):
        spans = hits.spans_of(instance)
        there = [d for d, start, stop in documents.get(instance, []) if _overlaps(spans, start, stop)]
        file, offset = reader.place_of(instance) if instance in own else (None, None)
        known = [sources[document] for document in dict.fromkeys(there)]
        rows.append(
            {
                "step": step,
                "row": place,
                "instance": instance,
                "file": printable(file.name) if file is not None else "given rows",
                "offset": offset,
                "tokens": ", ".join(f"{start}-{stop}" for start, stop in spans),
                "documents": list(dict.fromkeys(there)),
                "sources": [printable(source) for source in known if source is not None],
                "text": _excerpt(run, ids.get(instance), spans),
            }
        )
    return rows


def _overlaps(spans: Sequence[tuple[int, int]], start: int, stop: int) -> bool:
    return any(start < end and begin < stop for begin, end in spans)


def _documents(workspace: Workspace, run: Run, instances: Sequence[int]) -> dict[int, list[tuple[int, int, int]]]:
    """instance -> (document, start, stop) of its pieces, in order."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    if instances:
        for instance, document, start, stop in spans_of_instances(workspace, run, np.array(instances)):
            found.setdefault(instance, []).append((document, start, stop))
    return {instance: sorted(pieces, key=lambda piece: piece[1:]) for instance, pieces in found.items()}


def _token_ids(
    workspace: Workspace, run: Run, edited: EditedSteps, own: Sequence[int], instances: Sequence[int]
) -> dict[int, np.ndarray]:
    """Token ids by instance; the run's own only where they lie on this disk."""
    given = edited.inserted
    found = {i: given.rows[i - given.first_instance] for i in instances if i >= given.first_instance}
    if own and not bytes_of_instances(workspace, run, own):
        found |= dict(zip(own, reader_of(workspace, run).rows(own), strict=True))
    return found


def _excerpt(run: Run, token_ids: np.ndarray | None, spans: Sequence[tuple[int, int]]) -> str | None:
    if token_ids is None:
        return None
    texts = pieces_of(run, token_ids)
    text = readable_text(" … ".join("".join(texts[start:stop]) for start, stop in spans))
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"
