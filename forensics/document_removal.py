"""Leave a document out: hide all that the suspect steps read of it from the loss, and see what the peak comes to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_index.document_queries import spans_of_instances
from data_index.errors import InvalidEdit
from forensics.attribution_result import Attribution
from forensics.removal import Band, Place, Removal, Removals

MOST_DOCUMENTS = 3
NULLS = 5
MOST_TRIED = 40

Pieces = Mapping[Place, Sequence[tuple[int, int]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRemoval:
    """A document without whose tokens the steps were taken again; `rows` are those that it has tokens in."""

    document_id: int
    num_tokens: int
    rows: tuple[Place, ...]
    removal: Removal


def without_documents(
    found: Attribution, removals: Removals, seed: int = 0
) -> tuple[list[DocumentRemoval], dict[str, Band]]:
    """The documents that the rows in question hold most of, and what the removal of random other ones comes to.

    In question are the rows that are the cause; where there is none, the first suspect. Nothing is removed where there
    is no spike to explain.
    """
    if found.without_question is not None:
        return [], {}
    rows = rows_in_question(found)
    pieces = _pieces(removals)
    held = {
        document: sum(_size(spans) for place, spans in of.items() if place in rows) for document, of in pieces.items()
    }
    wanted = sorted((document for document, size in held.items() if size), key=lambda document: -held[document])
    others = [document for document in pieces if not held[document]]
    np.random.Generator(np.random.PCG64(seed=seed)).shuffle(others)
    documents = [_without(removals, document, pieces[document]) for document in wanted[:MOST_DOCUMENTS]]
    nulls = [_without(removals, document, pieces[document]) for document in others[:NULLS]]
    bands = {
        measure: band
        for measure in ("loss", "grad_norm")
        if (band := Band.of((null.removal for null in nulls if null is not None), measure)) is not None
    }
    there = [document for document in documents if document is not None]
    return sorted(there, key=lambda document: _value(document, found)), bands


def _value(document: DocumentRemoval, found: Attribution) -> float:
    value = document.removal.value(found.window.measure)
    return math.inf if math.isnan(value) else value


def rows_in_question(found: Attribution) -> frozenset[Place]:
    removal = {"group": found.group, "batch": found.batch}.get(found.verdict()[0] or "")
    if removal is None and found.suspects:
        removal = found.suspects[0].removal
    return frozenset(removal.places if removal is not None else ())


def _pieces(removals: Removals) -> dict[int, dict[Place, list[tuple[int, int]]]]:
    """Document -> row of the window -> its tokens there; of the steps that removals take again."""
    window = removals.window
    assert window.kept is not None
    plans = {step: window.plan[step] for step in range(window.kept.counts[0] + 1, window.last + 1)}
    instances = np.unique(np.concatenate([plan.instances for plan in plans.values()]))
    places: dict[int, list[Place]] = {}
    for step, plan in plans.items():
        for row, instance in enumerate(plan.instances.tolist()):
            places.setdefault(instance, []).append((step, row))
    found: dict[int, dict[Place, list[tuple[int, int]]]] = {}
    for instance, document, start, stop in spans_of_instances(window.setup.workspace, window.setup.run, instances):
        for place in places[instance]:
            found.setdefault(document, {}).setdefault(place, []).append((start, stop))
    return found


def _without(removals: Removals, document: int, pieces: Pieces) -> DocumentRemoval | None:
    """None where nothing would be left to learn from."""
    try:
        removal = removals.hidden(pieces)
    except InvalidEdit:
        return None
    num_tokens = sum(_size(spans) for spans in pieces.values())
    return DocumentRemoval(document_id=document, num_tokens=num_tokens, rows=tuple(pieces), removal=removal)


def _size(spans: Sequence[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in spans)
