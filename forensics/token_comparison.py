"""`tokens --compare`: the same tokens in two checkpoints, or in a base model and one made from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data_index.errors import InvalidRange
from forensics.token_answer import UndertrainedTokens

COLUMNS = (
    *("token_id", "text", "category", "indicator", "indicator_other", "rank", "rank_other", "rank_change"),
    *("candidate", "candidate_other", "change"),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenComparison:
    """
    Attributes:
        one, other: labels.
        rows: COLUMNS; tokens that both have, in the order of `rank` of the first, those without one last. `rank_change`
            is positive where the token rose to a higher rank, that is, looks better trained in the other.
        joined, left: ids that are candidates in the other only, or in the first only.
    """

    one: str
    other: str
    indicator: str
    rows: tuple[dict[str, Any], ...]
    joined: tuple[int, ...]
    left: tuple[int, ...]
    messages: tuple[str, ...]


def compared(one: UndertrainedTokens, other: UndertrainedTokens) -> TokenComparison:
    """
    Raises:
        InvalidRange: the two were judged by different indicators, or have hardly a token in common.
    """
    if one.indicator != other.indicator:
        raise InvalidRange(
            f"{one.label} is judged by {one.indicator}, {other.label} by {other.indicator}: name one for both with "
            "--indicator"
        )
    theirs = {row["token_id"]: row for row in other.rows}
    shared = [row for row in one.rows if (there := theirs.get(row["token_id"])) and there["piece"] == row["piece"]]
    if 2 * len(shared) < min(len(one.rows), len(other.rows)):
        raise InvalidRange(
            f"{one.label} and {other.label} have {len(shared):,} of {len(one.rows):,} and {len(other.rows):,} tokens "
            "in common: their tokenizers differ"
        )
    rows = tuple(_compared(row, theirs[row["token_id"]]) for row in shared)
    apart = len(one.rows) + len(other.rows) - 2 * len(shared)
    said = (
        (f"{apart:,} ids stand for other tokens, or for none, in one of the two; they are left out",) if apart else ()
    )
    return TokenComparison(
        one=one.label,
        other=other.label,
        indicator=one.indicator,
        rows=rows,
        joined=tuple(row["token_id"] for row in rows if row["change"] == "joined"),
        left=tuple(row["token_id"] for row in rows if row["change"] == "left"),
        messages=said,
    )


def _compared(row: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    both = row["rank"] is not None and there["rank"] is not None
    was, now = row["candidate"], there["candidate"]
    return {
        "token_id": row["token_id"],
        "text": row["text"],
        "category": row["category"],
        "indicator": row["indicator"],
        "indicator_other": there["indicator"],
        "rank": row["rank"],
        "rank_other": there["rank"],
        "rank_change": there["rank"] - row["rank"] if both else None,
        "candidate": was,
        "candidate_other": now,
        "change": "joined" if now and not was else "left" if was and not now else None,
    }
