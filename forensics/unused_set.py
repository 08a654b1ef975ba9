"""Which rows of an embedding matrix are known to be unused, on what evidence, and which of them are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_index.errors import InvalidRange
from data_index.token_categories import TokenizerAnalysis

if TYPE_CHECKING:
    import torch

ROWS_OF_ZEROS = "rows of zeros"
LEAST_COHERENCE = 0.95  # of rows that are to serve as the direction of unused ones
NONE_KNOWN = (
    "no row is known to be unused: there is no padding beyond the tokenizer, no byte that text cannot contain, and no "
    "group of rows that are nearly copies of each other; distances to unused rows are left out. Name some with --unused"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """Rows that one sign says are unused.

    Attributes:
        kind: `given`, `zero second moments`, `padding rows`, `impossible bytes`, `near-duplicate rows`, `identical
            rows`, `rows of zeros`.
        coherence: the probability that one of them lies nearer to the others than another row; None: not comparable.
        chosen: these are compared with.
    """

    kind: str
    token_ids: np.ndarray
    detail: str
    coherence: float | None = None
    chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnusedSet:
    """
    Attributes:
        token_ids: int64, rising; empty where none is known.
        reason: why these, in a sentence.
        never_updated: ids whose second moments are exactly zero; None where the optimizer's state is not there.
    """

    token_ids: np.ndarray
    reason: str
    evidence: tuple[Evidence, ...]
    never_updated: np.ndarray | None = None

    def evidence_by_token(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for one in self.evidence:
            for token in one.token_ids.tolist():
                found.setdefault(token, []).append(one.kind)
        return found


def find_unused(
    output: torch.Tensor,
    analysis: TokenizerAnalysis,
    second_moments: Mapping[str, torch.Tensor],
    given: Sequence[int] | None = None,
) -> UnusedSet:
    """Gather the evidence and choose: what was given; else the first kind, most direct first, whose rows agree.

    Args:
        output: the matrix that unused rows are compared in, [rows, width].
        second_moments: Adam's, by `input` and `output`, where they are there.
    Raises:
        InvalidRange: a given id is no row.
    """
    from dataclasses import replace

    import torch

    from probes.indicator_trust import coherence
    from probes.unused_rows import zero_rows

    blank = zero_rows(output).numpy()
    found = []
    for one in _gathered(output, analysis, second_moments, given, blank):
        usable = np.setdiff1d(one.token_ids, blank)  # rows of zeros have no direction
        agrees = coherence(output, torch.from_numpy(usable)) if len(usable) else None
        found.append(replace(one, coherence=agrees))
    best = next((n for n, one in enumerate(found) if _serves(one, blank)), None)
    never = None
    if "input" in second_moments:
        never = zero_rows(second_moments["input"]).numpy()
    if best is None:
        return UnusedSet(
            token_ids=np.empty(0, dtype=np.int64), reason=_none(found), evidence=tuple(found), never_updated=never
        )
    found[best] = replace(found[best], chosen=True)
    ids = np.setdiff1d(found[best].token_ids, blank)
    return UnusedSet(token_ids=ids, reason=_reason(found[best]), evidence=tuple(found), never_updated=never)


def _serves(one: Evidence, blank: np.ndarray) -> bool:
    usable = np.setdiff1d(one.token_ids, blank)
    if not len(usable) or one.kind in ("identical rows", ROWS_OF_ZEROS):
        return False
    # A single row cannot be compared with others of its kind; of what a person names, nothing is doubted.
    return one.kind == "given" or one.coherence is None or one.coherence >= LEAST_COHERENCE


def _reason(one: Evidence) -> str:
    if one.kind == "given":
        return f"{len(one.token_ids):,} rows that were named"
    sure = (
        "one row, which cannot be checked against others"
        if one.coherence is None
        else (f"each lies nearer to the others than another row does, {one.coherence:.1%} of the time")
    )
    return f"{one.kind} ({len(one.token_ids):,}): {one.detail}; {sure}"


def _none(found: Sequence[Evidence]) -> str:
    if not found:
        return NONE_KNOWN
    doubted = ", ".join(f"{one.kind} ({len(one.token_ids):,})" for one in found)
    return (
        f"no rows serve as the direction of unused ones: {doubted} were found, and point no common way that others do "
        "not; training was too short, or they were used after all. Distances to unused rows are left out; name some "
        "with --unused"
    )


def _gathered(
    output: torch.Tensor,
    analysis: TokenizerAnalysis,
    second_moments: Mapping[str, torch.Tensor],
    given: Sequence[int] | None,
    blank: np.ndarray,
) -> Iterator[Evidence]:
    """The most direct first."""
    from probes.unused_rows import exact_duplicates, near_duplicates, zero_rows

    rows = output.shape[0]
    if given is not None:
        if wrong := [token for token in given if not 0 <= token < rows]:
            raise InvalidRange(f"--unused names {wrong[0]}; the matrix has rows 0 .. {rows - 1}")
        yield Evidence(kind="given", token_ids=np.unique(np.array(given, dtype=np.int64)), detail="named by the user")
    for role, moments in second_moments.items():
        zero = zero_rows(moments).numpy()
        if 0 < len(zero) < rows:
            detail = f"Adam's second moments of the {role} row are exactly 0: no gradient ever reached it"
            yield Evidence(kind="zero second moments", token_ids=zero, detail=detail)
    if (padding := np.arange(len(analysis.tokens), rows)).size:
        detail = f"the matrix has {rows:,} rows, the tokenizer {len(analysis.tokens):,} ids"
        yield Evidence(kind="padding rows", token_ids=padding, detail=detail)
    unused = [token.token_id for token in analysis.tokens if token.category == "unused_byte" and token.token_id < rows]
    if unused:
        detail = "bytes that no UTF-8 text contains (C0, C1, F5 to FF)"
        yield Evidence(kind="impossible bytes", token_ids=np.array(unused), detail=detail)
    if near := near_duplicates(output):
        detail = f"the largest of {len(near)} groups of rows of nearly one direction"
        yield Evidence(kind="near-duplicate rows", token_ids=near[0], detail=detail)
    same = [np.setdiff1d(group, blank) for group in exact_duplicates(output)]
    if same := [group for group in same if len(group)]:
        sizes = ", ".join(str(len(group)) for group in same[:5])
        detail = f"{len(same)} groups of rows that are equal bit for bit, of {sizes} rows"
        yield Evidence(kind="identical rows", token_ids=np.sort(np.concatenate(same)), detail=detail)
    if len(blank):
        yield Evidence(kind=ROWS_OF_ZEROS, token_ids=blank, detail="every element is exactly 0")
