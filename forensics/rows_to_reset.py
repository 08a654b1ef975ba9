"""Which rows of an embedding matrix count as never trained, so that they may be reset, and on what evidence.

A token that was never read was hardly ever predicted, but one that was never predicted may have been read at every
turn (what begins a text, what marks a user's words). So rows that the input tells of are reset in both matrices, unless
the output tells that they were trained there; rows that only the output tells of are reset in the output alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_index.errors import InvalidEdit, InvalidRange
from forensics.token_answer import UndertrainedTokens
from probes.embedding_indicators import (
    INPUT_NORM,
    OUTPUT_COSINE,
    OUTPUT_COSINE_CENTRED,
    OUTPUT_COSINE_WITHOUT_FIRST,
    OUTPUT_DISTANCE,
)
from probes.indicator_trust import gap_of
from probes.unused_rows import not_finite_rows, zero_rows

if TYPE_CHECKING:
    import torch

    from forensics.undertrained_tokens import Matrices

# Why a row is reset; where several hold, the first is told.
NAMED, NO_TOKEN, ZEROS, NOT_FINITE = "named", "no token", "all zeros", "not finite"
NEVER_UPDATED, BELOW_GAP = "never updated", "below the gap"
_OF_OUTPUT = (OUTPUT_COSINE, OUTPUT_COSINE_CENTRED, OUTPUT_COSINE_WITHOUT_FIRST, OUTPUT_DISTANCE)
Ids = np.ndarray
_NONE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowsToReset:
    """
    Attributes:
        of: ids by matrix (`input`, and `output` where it is another), int64, rising.
        why: of each id that is reset anywhere, by id.
        judged_by: what told rows of the tokenizer's tokens apart, in a sentence.
        seem_trained: ids that are reset as they were asked to be, though an indicator sees them as trained.
        kept: by matrix, ids that are reset in the other one alone.
        trained: ids whose mean is taken: neither reset, nor known to be unused, nor without a token.
    """

    of: Mapping[str, Ids]
    why: Mapping[int, str]
    judged_by: str
    seem_trained: Ids
    kept: Mapping[str, Ids]
    trained: Ids


def rows_to_reset(found: UndertrainedTokens, matrices: Matrices, named: Sequence[int] | None = None) -> RowsToReset:
    """Choose rows: those without a token, of zeros, or not finite; and those that were named, or else that Adam never
    updated, or else that lie below the gap.

    Args:
        named: ids to reset in place of those that would be found.
    Raises:
        InvalidRange: no row was named or found, and the indicator has no gap; or a named one is none.
        InvalidEdit: nothing is to be reset, or no row is left whose mean could be taken.
    """
    rows = found.shape[0]
    of_matrix = {"input": matrices.input} | ({} if matrices.output is None else {"output": matrices.output})
    why: dict[int, str] = {}
    chosen: dict[str, list[Ids]] = {role: [] for role in of_matrix}
    kept: dict[str, Ids] = {}
    for reason, ids in _of_both(found, named, rows):
        _add(chosen, why, reason, {role: ids for role in of_matrix})
    for reason, damaged in ((ZEROS, zero_rows), (NOT_FINITE, not_finite_rows)):
        _add(chosen, why, reason, {role: damaged(matrix).numpy() for role, matrix in of_matrix.items()})
    if named is not None:
        judged_by = f"{len(set(named)):,} rows that were named"
    else:
        reason, judged_by, ids = _judged(found, nothing_else=not why)
        own, kept = _by_matrix(found, ids, reason, of_matrix)
        _add(chosen, why, reason, own)
    of = {role: np.unique(np.concatenate(parts)).astype(np.int64) for role, parts in chosen.items()}
    reset = np.unique(np.concatenate([*of.values()]))
    if not len(reset):
        raise InvalidEdit(f"{found.label} has no row to reset: {judged_by}, and there are none without a token")
    trained = np.setdiff1d(np.arange(rows), np.concatenate([reset, found.unused.token_ids, _without_token(found)]))
    if not len(trained):
        raise InvalidEdit(
            f"all {rows:,} rows of {found.label} would be reset ({judged_by}), and none would be left whose mean they "
            "could get: take a later checkpoint, or name fewer with --unused IDS"
        )
    asked = np.array([token for token, reason in why.items() if reason in (NAMED, NO_TOKEN)], dtype=np.int64)
    return RowsToReset(
        of=of,
        why={token: why[token] for token in reset.tolist()},
        judged_by=judged_by,
        seem_trained=np.intersect1d(asked, _seen_as_trained(found)),
        kept={role: np.setdiff1d(ids, of[role]) for role, ids in kept.items()},
        trained=trained,
    )


def _of_both(found: UndertrainedTokens, named: Sequence[int] | None, rows: int) -> Iterator[tuple[str, Ids]]:
    if named is not None:
        if wrong := [token for token in named if not 0 <= token < rows]:
            raise InvalidRange(f"row {wrong[0]} was named to be reset; the matrix has rows 0 .. {rows - 1}")
        yield NAMED, np.array(sorted(set(named)), dtype=np.int64)
    yield NO_TOKEN, _without_token(found)


def _without_token(found: UndertrainedTokens) -> Ids:
    """Rows beyond the tokenizer, and ids that its vocabulary leaves out."""
    named = {token.token_id for token in found.analysis.tokens if token.piece is not None}
    return np.array([row for row in range(found.shape[0]) if row not in named], dtype=np.int64)


def _add(chosen: dict[str, list[Ids]], why: dict[int, str], reason: str, ids: Mapping[str, Ids]) -> None:
    for role, of_role in ids.items():
        chosen[role].append(of_role)
        for token in of_role.tolist():
            why.setdefault(token, reason)


def _judged(found: UndertrainedTokens, *, nothing_else: bool) -> tuple[str, str, Ids]:
    """Rows of tokens that were never trained: the reason of each, how that is known, and their ids."""
    never = found.unused.never_updated
    # Of tied embeddings every row gets a gradient as an output, so that only some zeros tell anything.
    if never is not None and (len(never) or not found.tied):
        count = f"{len(never):,} rows have Adam's second moments of exactly 0 (as input): no gradient ever reached them"
        return NEVER_UPDATED, count, never
    if found.gap is not None:
        below = np.flatnonzero(found.values[found.indicator] <= found.gap.cut)
        return BELOW_GAP, f"{len(below):,} rows lie below the gap in {found.indicator} ({found.gap.cut:.6g})", below
    if nothing_else:
        raise InvalidRange(
            f"which rows of {found.label} were never trained is not known: its optimizer's state is not there, and the "
            f"values of {found.indicator} have no gap below which they would lie. Name the rows to reset with --unused "
            "IDS (such as 177-187,50280), or another indicator with --indicator"
        )
    return (
        BELOW_GAP,
        f"the values of {found.indicator} have no gap, so that only rows without a token, of zeros, or not finite are "
        "reset; name others with --unused IDS",
        _NONE,
    )


def _by_matrix(
    found: UndertrainedTokens, ids: Ids, reason: str, of_matrix: Mapping[str, torch.Tensor]
) -> tuple[dict[str, Ids], dict[str, Ids]]:
    """In which matrix they are reset; and in which of two they are left, if in the other."""
    if "output" not in of_matrix:
        return {"input": ids}, {}
    if reason == NEVER_UPDATED or found.indicator == INPUT_NORM:
        untrained = {"input": ids, "output": np.setdiff1d(ids, _above_gap(found, _OF_OUTPUT))}
    else:
        untrained = {"input": np.intersect1d(ids, _below_gap(found, (INPUT_NORM,))), "output": ids}
    return untrained, {role: np.setdiff1d(ids, of_role) for role, of_role in untrained.items()}


def _seen_as_trained(found: UndertrainedTokens) -> Ids:
    """Rows above the gap, in either matrix."""
    main = np.flatnonzero(found.values[found.indicator] > found.gap.cut) if found.gap is not None else _NONE
    return np.unique(np.concatenate([main, _above_gap(found, (INPUT_NORM,)), _above_gap(found, _OF_OUTPUT)]))


def _above_gap(found: UndertrainedTokens, names: Sequence[str]) -> Ids:
    """Rows that the first sure one of these indicators sees as trained; none where none of them tells."""
    told = _cut_of(found, names)
    return _NONE if told is None else np.flatnonzero(found.values[told[0]] > told[1])


def _below_gap(found: UndertrainedTokens, names: Sequence[str]) -> Ids:
    told = _cut_of(found, names)
    return _NONE if told is None else np.flatnonzero(found.values[told[0]] <= told[1])


def _cut_of(found: UndertrainedTokens, names: Sequence[str]) -> tuple[str, float] | None:
    """The first of these indicators that may contradict other evidence, and its cut.

    It has to tell unused rows from others, and put all of them below its gap but one, or one of a hundred: what is
    known to be unused in one matrix may have been used in the other.
    """
    unused, known = found.unused.token_ids, [t.token_id for t in found.analysis.tokens if t.piece is not None]
    for name in names:
        if name not in found.trust or not found.trust[name].informative:
            continue
        values = found.values[name]
        gap = found.gap if name == found.indicator else gap_of(values[known], values[unused])
        if gap is None:
            continue
        above = int((values[unused] > gap.cut).sum())
        if above < len(unused) and above <= max(1, len(unused) // 100):
            return name, gap.cut
    return None
